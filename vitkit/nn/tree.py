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


def entry(owner: Any, key: str) -> Any:
    """Return what ``key`` names in a module, list or dict, looking through wrappers."""
    while getattr(owner, "transparent", False):
        _, owner = next(owner.children())
    if isinstance(owner, (list, tuple)):
        return owner[int(key)]
    return owner[key] if isinstance(owner, dict) else vars(owner)[key]
