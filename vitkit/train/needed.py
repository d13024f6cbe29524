"""Which plugins a run was made with, as its checkpoints tell where the plugins are not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DISTRIBUTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")


@dataclass(frozen=True)
class Needed:
    """A plugin as a checkpoint remembers it.

    Attributes
    ----------
    name, source, origin, version : str
        Those of the plugin: ``source`` is ``"entry point"``, ``"file"`` or ``"object"``,
        ``origin`` the distribution or the file.
    uses : tuple of str
        What the run has of it: ``"activation mish"``.
    """

    name: str
    source: str
    origin: str
    version: str
    uses: tuple[str, ...]

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.origin == self.name:
            return f"{self.name} {self.version}".strip()
        place = " ".join(part for part in (self.origin, self.version) if part)
        return f"{self.name} ({place})" if place else self.name

    @property
    def cure(self) -> str:
        """What to do to have it."""
        if self.source == "file" and self.origin.isprintable():
            return f"load it with --plugin {shlex.quote(self.origin)}"
        # Only what cannot be anything but a name: a checkpoint may come from a stranger.
        is_distribution = DISTRIBUTION.fullmatch(self.origin) and VERSION.fullmatch(self.version)
        if self.source == "entry point" and is_distribution:
            return f"pip install {self.origin}=={self.version}"
        return "load it with vitkit.plugins.load"


def needed(trainer: dict[str, Any]) -> list[Needed]:
    """Return the plugins that the document of a checkpoint lists; older ones list none.

    Parameters
    ----------
    trainer : dict
        The document ``trainer.json``.

    Returns
    -------
    list of Needed
        What is not understood is left out.
    """
    listed = trainer.get("plugins")
    found = []
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict):
            uses = each.get("uses")
            keys = ("name", "source", "origin", "version")
            texts = {key: str(each.get(key) or "") for key in keys}
            found.append(
                Needed(**texts, uses=tuple(map(str, uses if isinstance(uses, list) else ())))
            )
    return found


def missing(plugins: Iterable[Needed], absent: Iterable[str]) -> list[str]:
    """Return a line for each plugin that brought what is not here.

    Parameters
    ----------
    plugins : iterable of Needed
        Those the run was made with.
    absent : iterable of str
        What names stand for nothing, as ``"activation mish"``.

    Returns
    -------
    list of str
        Empty where none of it came from a plugin.
    """
    absent = set(absent)
    lines = []
    for plugin in plugins:
        used = [shown(use) for use in plugin.uses if use in absent]
        if used:
            lines.append(
                f"It was made with {' and '.join(used)} of plugin {plugin.label!r}, which is not "
                f"here: {plugin.cure}"
            )
    return lines


def shown(use: str) -> str:
    """Return ``"the activation 'mish'"`` for ``"activation mish"``."""
    kind, _, name = use.partition(" ")
    return f"the {kind} {name!r}"
