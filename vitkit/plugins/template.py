"""A new plugin package: files that are written once, and are the author's from then on.

A template engine such as copier would be 23 MB of packages for eight files and four words in them;
:class:`string.Template` fills those in.
"""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path
from string import Template

from vitkit._version import __version__
from vitkit.errors import ConfigError, VitkitError
from vitkit.registry import BUILTIN, is_name

FILES = {
    "pyproject.toml": "pyproject.toml.tmpl",
    "README.md": "README.md.tmpl",
    "LICENSE": "LICENSE.tmpl",
    ".gitignore": "gitignore.tmpl",
    "src/$module/__init__.py": "init.py.tmpl",
    "src/$module/softsign.py": "softsign.py.tmpl",
    "src/$module/signum.py": "signum.py.tmpl",
    "tests/test_conformance.py": "tests.py.tmpl",
}
"""What is written, and from which file beside this one."""


def render(name: str, out: Path) -> Path:
    """Write a plugin package with an activation, an optimizer and their tests, which pass.

    Parameters
    ----------
    name : str
        Of the distribution, such as ``"vitkit-mish"``; the module is then ``vitkit_mish`` and
        the plugin ``mish``.
    out : pathlib.Path
        Where the folder ``name`` is made.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ConfigError
        If no package can have that name, or there is something of that name already.
    VitkitError
        If the files cannot be written.
    """
    module = module_name(name)
    version = ".".join(__version__.split(".")[:2])
    words = {"name": name, "module": module, "plugin": plugin_name(module), "version": version}
    folder = Path(out) / name
    try:
        folder.mkdir(parents=True)
        for target, source in FILES.items():
            path = folder / Template(target).substitute(words)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(_text(source)).substitute(words), encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} is there already, and nothing is overwritten. Choose another name, "
            "or another folder with --out."
        ) from error
    except OSError as error:
        raise VitkitError(f"{folder}: cannot be written ({error}).") from error
    return folder


def module_name(name: str) -> str:
    """Return the module of a distribution.

    Raises
    ------
    ConfigError
        If the name is none that package indexes take, or that of a module which it would hide.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ConfigError(
            f"NAME: got {name!r}; the name of a package is made of the letters a to z, digits, "
            "'-', '_' and '.', and begins and ends with a letter or digit, such as vitkit-mish."
        )
    module = re.sub(r"[-_.]+", "_", name).lower()
    if not is_name(module):
        raise ConfigError(
            f"NAME: got {name!r}, whose module {module!r} Python could not import; take another "
            f"name, such as vitkit-{name}."
        )
    if module == BUILTIN or module in sys.stdlib_module_names:
        raise ConfigError(
            f"NAME: got {name!r}, which is the name of a module that there is; take another, such "
            f"as vitkit-{'plugin' if module == BUILTIN else name}."
        )
    return module


def plugin_name(module: str) -> str:
    """Return what the plugin is called: the module's name without ``vitkit_``."""
    short = module.removeprefix(f"{BUILTIN}_")
    return short if is_name(short) and short != BUILTIN else module


def _text(source: str) -> str:
    return resources.files("vitkit.plugins").joinpath("new_package", source).read_text("utf-8")
