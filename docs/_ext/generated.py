"""Pages, or parts of them, that are made from the code: operations, commands, settings, changes.

Each function returns lines of reStructuredText; the directive of its name parses them in place.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.rst import escape
from typer.main import get_command

from vitkit import ops
from vitkit.cli.main import app as cli
from vitkit.config import RunConfig, Spec
from vitkit.ops import Op

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def operations(module: str) -> list[str]:
    """Return what a module of ``vitkit.ops`` says, and each public op that it defines.

    An op is documented under its public name, ``vitkit.ops.layer_norm``, which may also be the
    name of its module: hence no ``automodule``.
    """
    home = importlib.import_module(f"vitkit.ops.{module}")
    lines = [".. currentmodule:: vitkit.ops", "", *cleandoc(home.__doc__ or "").splitlines(), ""]
    for name, value in vars(home).items():
        is_here = isinstance(value, Op) and value.__module__ == home.__name__
        if is_here and getattr(ops, name, None) is value:
            lines += [f".. autofunction:: {name}", ""]
    return lines


def commands() -> list[str]:
    """Return every command of ``vitkit`` with its arguments and options."""
    root = get_command(cli)
    return list(_command(root, typer.Context(root, info_name="vitkit")))


def _command(command: Any, context: Any) -> Iterator[str]:
    path = context.command_path
    yield from (f".. _cli-{path.replace(' ', '-')}:", "", path, "-" * len(path), "")
    yield from (escape(command.help or ""), "", ".. code-block:: text", "")
    yield from (f"   {command.get_usage(context).removeprefix('Usage: ')}", "")
    yield from (f".. program:: {path}", "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[0] != "--help":
            yield from (f".. option:: {record[0]}", "", f"   {escape(record[1])}", "")
    for name, child in getattr(command, "commands", {}).items():
        yield from _command(child, typer.Context(child, info_name=name, parent=context))


def settings() -> list[str]:
    """Return every setting of a run with its default."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - setting", "     - default"]
    for name, default in _settings(RunConfig, ""):
        lines += [f"   * - ``{name}``", f"     - {default}"]
    return lines


def _settings(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _settings(type(field.default), f"{prefix}{name}.")
        else:
            value = field.default
            if value is None:
                text = ""
            elif isinstance(value, bool):
                text = f"``{str(value).lower()}``"
            elif isinstance(value, tuple):
                text = f"``{list(value)}``"
            else:
                text = f'``"{value}"``' if isinstance(value, (str, Spec)) else f"``{value}``"
            yield f"{prefix}{name}", text


def changelog() -> list[str]:
    """Return the changelog as reStructuredText, without its title.

    It is Markdown of a few forms: headings, lists, links and code.
    """
    lines: list[str] = []
    for line in CHANGELOG.read_text("utf-8").splitlines():
        heading = re.match(r"(#+) (.*)", line)
        line = re.sub(r"`([^`]+)`", r"``\1``", line)
        lines.append(re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"`\1 <\2>`__", line))
        if heading:
            level, text = len(heading[1]), heading[2]
            lines[-1:] = [text, "-~"[level - 2] * len(text)] if level > 1 else []
    return lines


def directive(function: Callable[..., list[str]], arguments: int) -> type[SphinxDirective]:
    """Return the directive that parses what a function returns."""

    class Generated(SphinxDirective):
        required_arguments = arguments

        def run(self) -> list[nodes.Node]:
            text = "\n".join(function(*self.arguments))
            return self.parse_text_to_nodes(text, allow_section_headings=True)

    return Generated


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.add_directive("operations", directive(operations, 1))
    app.add_directive("commands", directive(commands, 0))
    app.add_directive("settings", directive(settings, 0))
    app.add_directive("changelog", directive(changelog, 0))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
