"""What is known of a plugin: who it is, where it comes from, what it brings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Plugin:
    """A plugin that is loaded, or about to be.

    Attributes
    ----------
    name : str
        Its entry point's name, its file's stem, or its module.
    source : str
        ``"built in"``, ``"entry point"``, ``"file"`` or ``"object"``.
    origin : str
        The distribution, the file or the module that it comes from.
    version : str
        Of the distribution; of a file, the beginning of its SHA-256.
    module : str
        Where its code is.
    provides : dict of str to list of str
        The names it registered, by kind.
    seconds : float
        How long it took to load.
    plugin : object
        The module or object itself.
    """

    name: str
    source: str = "object"
    origin: str = ""
    version: str = ""
    module: str = ""
    provides: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    plugin: object = None

    @property
    def label(self) -> str:
        """What messages call it: its name and, in brackets, where it comes from."""
        if self.origin == self.name:
            return f"{self.name} {self.version}".strip()
        place = " ".join(part for part in (self.origin, self.version) if part)
        return f"{self.name} ({place})" if place else self.name

    def is_replaced_by(self, other: Plugin) -> bool:
        """Whether ``other`` is this plugin again, perhaps edited: of the same file or module."""
        if self.source != other.source or self.source not in ("file", "object"):
            return False
        if self.source == "file":
            return Path(self.origin).resolve() == Path(other.origin).resolve()
        return self.module == other.module

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` is this plugin's, its distribution's, its module's or its file's."""
        return _plain(name) in {_plain(n) for n in (self.name, self.origin, self.module) if n}

    def owns(self, module: str) -> bool:
        """Whether a module is part of this plugin's package."""
        top = self.module.partition(".")[0] if self.source == "entry point" else self.module
        return bool(top) and (module == top or module.startswith(f"{top}."))

    def to_dict(self) -> dict[str, Any]:
        """Return what to show and to record, as plain values."""
        return {
            "name": self.name,
            "source": self.source,
            "origin": self.origin,
            "version": self.version,
            "provides": {kind: list(names) for kind, names in self.provides.items()},
        }


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be loaded.

    Attributes
    ----------
    record : Plugin
        Who it is.
    message : str
        What to say, on one line.
    error : BaseException
        What happened.
    """

    record: Plugin
    message: str
    error: BaseException

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` means this plugin."""
        return self.record.answers_to(name)

    def __str__(self) -> str:
        return self.message


def _plain(name: str) -> str:
    """Return a name with the differences removed that package names may have."""
    return name.replace("-", "_").replace(".", "_").lower()
