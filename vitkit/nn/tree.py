"""Names in a tree of modules: attributes, and the items of lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def join(prefix: str, key: str) -> str:
    """Return the dotted name of ``key`` below ``prefix``."""
    return f"{prefix}.{key}" if prefix else key


def parts(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield named values, those in lists, tuples and dicts by ``name.index`` or ``name.key``."""
    for key, value in entries.items():
        if isinstance(value, (list, tuple)):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            for inner, item in parts(value):
                yield f"{key}.{inner}", item
        else:
            yield key, value


class Snapshot:
    """What hung where in a tree of modules, to see in microseconds that nothing has changed.

    Parameters
    ----------
    root : module
        The top of the tree; whatever has ``named_parameters`` or a ``group`` is part of it.
    """

    def __init__(self, root: Any) -> None:
        self._sizes: list[tuple[Any, int]] = []
        self._links: list[tuple[Any, Any, Any]] = []
        self._groups: list[tuple[Any, Any]] = []
        self._walk(vars(root))

    def _walk(self, container: Any) -> None:
        self._sizes.append((container, len(container)))
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            if isinstance(value, (list, tuple, dict)):
                self._walk(value)
            elif hasattr(value, "named_parameters"):
                self._links.append((container, key, value))
                self._walk(vars(value))
            elif hasattr(value, "group"):
                self._links.append((container, key, value))
                self._groups.append((value, value.group))

    def holds(self) -> bool:
        """Return whether every part hangs where it did, in the buffers it had."""
        try:
            return (
                all(len(container) == size for container, size in self._sizes)
                and all(container[key] is value for container, key, value in self._links)
                and all(parameter.group is group for parameter, group in self._groups)
            )
        except (KeyError, IndexError):
            return False


def entry(owner: Any, key: str) -> Any:
    """Return what ``key`` names in a module, list or dict, looking through wrappers."""
    while getattr(owner, "transparent", False):
        _, owner = next(owner.children())
    if isinstance(owner, (list, tuple)):
        return owner[int(key)]
    return owner[key] if isinstance(owner, dict) else vars(owner)[key]
