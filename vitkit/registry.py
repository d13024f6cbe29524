"""Tables from names to what plugins, vitkit's own first, registered under them."""

from __future__ import annotations

import keyword
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitkit.errors import ConfigError, VitkitError, suggestion

BUILTIN = "vitkit"
"""What messages call the plugin of what ships."""


class PluginError(VitkitError, ValueError):
    """A plugin cannot be used, or registers what it may not; the message names the plugin."""


class NameTaken(PluginError):
    """Two plugins register the same name; the message names both."""


class UnknownName(ConfigError, KeyError):
    """A name that nothing is registered under; the message lists the known and the nearest."""

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes
    ----------
    name : str
        How configurations write it.
    value : object
        What it stands for; a tuple where several objects were registered.
    plugin : str
        Who registered it, as messages say it.
    details : mapping of str to object
        What else was said of it, such as how the conformance kit makes one.
    """

    name: str
    value: Any
    plugin: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Registry(Mapping[str, Any]):
    """A mapping from a name to what was registered under it, in order of registration.

    Parameters
    ----------
    kind : str
        What the entries are, in the singular, for messages: ``"optimizer"``.
    late : bool, default False
        Whether a name that is missing makes the installed plugins load, once, before it is
        declared unknown. For the tables that models look names up in, which must work without
        plugins ever being mentioned.
    """

    def __init__(self, kind: str, *, late: bool = False) -> None:
        self.kind = kind
        self._late = late
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, *objects: Any, plugin: str, **details: Any) -> None:
        """Register ``objects`` under ``name``; several are kept as a tuple.

        The same plugin may say the same thing twice.

        Parameters
        ----------
        name : str
            An identifier, so that a configuration can write ``name(key=value)``.
        *objects : object
            One object, or the two of an activation: the function and its backward.
        plugin : str
            Who registers it.
        **details : object
            What else is to be known of it.

        Raises
        ------
        PluginError
            If the name cannot be written in a configuration, is taken (NameTaken), or stands for
            nothing.
        """
        self.check(name, objects, plugin)
        value = objects[0] if len(objects) == 1 else objects
        self._entries[name] = Entry(name, value, plugin, details)

    def check(self, name: str, objects: tuple[Any, ...], plugin: str) -> None:
        """Raise the PluginError that :meth:`add` would raise."""
        who = f"Plugin {plugin!r} registers the {self.kind} {name!r}"
        if not is_name(name):
            raise PluginError(f"{who}; a name is made of letters, digits and '_'.")
        if not objects:
            raise PluginError(f"{who} with nothing behind the name: write register(name, object).")
        held = self._entries.get(name)
        if held is None:
            return
        same = held.value if isinstance(held.value, tuple) else (held.value,)
        if held.plugin != plugin or [id(o) for o in same] != [id(o) for o in objects]:
            raise NameTaken(f"{who}, which plugin {held.plugin!r} has already registered.")

    def remove(self, plugin: str) -> None:
        """Forget every entry of a plugin."""
        self._entries = {n: entry for n, entry in self._entries.items() if entry.plugin != plugin}

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        return tuple(sorted(self._entries))

    def entry(self, name: str) -> Entry:
        """Return the entry of ``name``, with who registered it.

        Raises
        ------
        UnknownName
            If there is none; the message lists the known names and the nearest one.
        """
        if name not in self:
            raise UnknownName(
                f"no {self.kind} is named {name!r}{did_you_mean(name, self._entries)} "
                f"Known: {', '.join(self.names()) or 'none'}."
            )
        return self._entries[name]

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry, in order of registration."""
        return tuple(self._entries.values())

    def __contains__(self, name: object) -> bool:
        if name not in self._entries and self._late:
            discover()
        return name in self._entries

    def __getitem__(self, name: str) -> Any:
        return self.entry(name).value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self.names())})"


_finders: list[Callable[[], object]] = []
_looked: list[tuple[str, ...]] = []
_searching = threading.RLock()


def on_missing_name(finder: Callable[[], object]) -> None:
    """Have ``finder`` called when a late registry misses a name; it loads plugins."""
    _finders[:] = [finder]


def discover() -> None:
    """Load what may register a missing name, or a kernel; again only where the path has changed."""
    path = tuple(sys.path)
    with _searching:  # other threads wait for the names
        if path in _looked:
            return
        _looked[:] = [path]  # before the search: a plugin may make a model when it is imported
        try:
            for finder in _finders:
                finder()
        except BaseException:  # the next name or model tries again, and fails again
            _looked.clear()
            raise


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
