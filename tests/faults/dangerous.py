"""What row F9 looks for in a syntax tree: what runs, unpacks or loads whatever it is given.

A name counts wherever it is read, not only where it is called, so that ``run = eval`` is found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MODULES = set(
    """pickle cPickle _pickle pickletools cloudpickle dill joblib marshal shelve dbm yaml torch.hub
    code codeop pty telnetlib ftplib""".split()
)
"""Modules that are not imported: what they read is run, or what they start is a shell."""
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
NAMES = set(
    """os.system os.popen os.startfile subprocess.getoutput subprocess.getstatusoutput
    asyncio.create_subprocess_shell runpy.run_path runpy.run_module tempfile.mktemp
    shutil.unpack_archive urllib.request.urlopen urllib.request.urlretrieve
    numpy.lib.format.read_array pandas.read_pickle torch.load torch.jit.load
    ssl._create_unverified_context importlib.util.spec_from_file_location
    importlib.util.module_from_spec""".split()
)
"""Functions by their whole names, however they were imported; builtins are beside them."""
ENDS = {"extractall", "exec_module", "load_module", "read_pickle", "to_pickle"}
"""Methods of whatever object they are asked of."""
FAMILIES = re.compile(r"os\.(exec|spawn|posix_spawn)[lvpe]*")
LOADERS = {"numpy.load", "cupy.load"}
"""They load pickles unless they are told not to, or were in an older version."""
KEYWORDS = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "verify": True}
"""Keywords that have to have this value, written out, where they are given."""


def found_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each dangerous thing in a module."""
    aliases = dict(_aliases(tree))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((node.lineno, name) for name in _imported(node) if _is_module(name))
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = _whole_name(node, aliases)
            if _is_dangerous(name) or (isinstance(node, ast.Attribute) and node.attr in ENDS):
                yield node.lineno, name
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _of_call(node, aliases))


def found_in_folder(folder: Path) -> tuple[int, list[str]]:
    """Return how many files a folder has, and ``file:line name`` of what is dangerous in them."""
    files = sorted(folder.rglob("*.py"))
    return len(files), [
        f"{folder.name}/{file.relative_to(folder).as_posix()}:{line} {name}"
        for file in files
        for line, name in found_in(ast.parse(file.read_bytes(), str(file)))
    ]


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    return [base] if _is_module(base) else [f"{base}.{alias.name}" for alias in node.names]


def _is_module(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in MODULES)


def _is_dangerous(name: str) -> bool:
    name = name.removeprefix("builtins.")
    return name in BUILTINS or name in NAMES or bool(FAMILIES.fullmatch(name))


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each imported name and what it stands for: ``np`` for ``numpy``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (_first(alias.name),) * 2
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _first(name: str) -> str:
    return name.partition(".")[0]


def _whole_name(node: ast.expr, aliases: dict[str, str]) -> str:
    """Return the dotted name of an expression, with its first part as it was imported."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_whole_name(node.value, aliases)}.{node.attr}"
    return "?"


def _of_call(call: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    """Yield what is dangerous in how something is called."""
    name = _whole_name(call.func, aliases)
    for keyword in call.keywords:
        wanted = KEYWORDS.get(keyword.arg or "")
        if wanted is not None and getattr(keyword.value, "value", None) is not wanted:
            yield f"{name}({keyword.arg}=)"
    if name in LOADERS and "allow_pickle" not in {keyword.arg for keyword in call.keywords}:
        yield f"{name} without allow_pickle=False"
    if name == "importlib.import_module":
        module = getattr(call.args[0], "value", None) if call.args else None
        if not isinstance(module, str):
            yield f"{name} of a name that is computed"
        elif _is_module(module):
            yield module
    if name == "getattr" and len(call.args) > 1:
        word = getattr(call.args[1], "value", None)
        if isinstance(word, str) and _is_dangerous(f"{_whole_name(call.args[0], aliases)}.{word}"):
            yield f"getattr of {word}"
