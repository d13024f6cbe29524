"""The names that configurations may use, and what they stand for."""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from typing import Any

from vitkit.errors import ConfigError, VitkitError, suggestion


class PluginError(VitkitError, ValueError):
    """A plugin registers what it may not; the message names the plugin."""


class Registry:
    """A mapping from a name to what a plugin registered under it.

    Parameters
    ----------
    kind : str
        What the entries are, in the singular, for messages: ``"optimizer"``.

    Attributes
    ----------
    plugins : dict of str to str
        The name of the plugin that registered each entry.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.plugins: dict[str, str] = {}
        self._entries: dict[str, Any] = {}

    def add(self, name: str, *entry: Any, plugin: str) -> None:
        """Register ``entry`` under ``name``; several objects are kept as a tuple.

        Parameters
        ----------
        name : str
            An identifier, so that a configuration can write ``name(key=value)``.
        *entry : object
            One object, or the two of an activation: the function and its backward.
        plugin : str
            Who registers it.

        Raises
        ------
        PluginError
            If the name cannot be written in a configuration, is taken, or stands for nothing.
        """
        who = f"Plugin {plugin!r} registers the {self.kind} {name!r}"
        if not is_name(name):
            raise PluginError(f"{who}; a name is made of letters, digits and '_'.")
        if name in self._entries:
            raise PluginError(f"{who}, which plugin {self.plugins[name]!r} has already registered.")
        if not entry:
            raise PluginError(f"{who} with nothing behind the name: write register(name, object).")
        self._entries[name] = entry[0] if len(entry) == 1 else entry
        self.plugins[name] = plugin

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Any:
        """Return what is registered under ``name``.

        Raises
        ------
        ConfigError
            If nothing is; the message lists the known names and the nearest one.
        """
        if name not in self._entries:
            raise ConfigError(
                f"no {self.kind} is named {name!r}{did_you_mean(name, self._entries)} "
                f"Known: {', '.join(self.names()) or 'none'}."
            )
        return self._entries[name]

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self.names())})"


def is_name(word: object) -> bool:
    """Whether ``word`` can be written as a name in a configuration."""
    return (
        isinstance(word, str)
        and word.isascii()
        and word.isidentifier()
        and not keyword.iskeyword(word)
    )


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return how a message about the unknown ``name`` ends: a suggestion, or a full stop."""
    return suggestion(name, known) or "."
