"""The commands that ship, as a plugin: :mod:`vitkit.cli.main` names them."""

from __future__ import annotations

from typing import Any

from vitkit.plugins.hookspecs import Register, hookimpl

COMMANDS: dict[str, Any] = {}


@hookimpl
def register_commands(register: Register) -> None:
    """Register the commands that ship."""
    for name, command in COMMANDS.items():
        register(name, command)
