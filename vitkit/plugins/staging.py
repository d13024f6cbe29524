"""What a plugin registers, checked one by one, before any of it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitkit.backend import known_backends
from vitkit.plugins.accept import find_op, op_names, problem
from vitkit.plugins.registries import Registries
from vitkit.registry import PluginError, Registry, did_you_mean, is_name

Registration = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""Kind, name, objects, details."""


class Staging:
    """Collects what the hooks of one plugin register.

    Parameters
    ----------
    registries : Registries
        What it is about to enter, and may not clash with.
    label : str
        What messages call the plugin.

    Attributes
    ----------
    entries : list of tuple
        Kind, name, objects and details of each.
    """

    def __init__(self, registries: Registries, label: str) -> None:
        self.entries: list[Registration] = []
        self._registries, self._label = registries, label
        self._open = True

    def add(self, kind: str, name: str, /, *objects: Any, **details: Any) -> None:
        """Be the ``register`` that the hook of a kind is called with.

        Raises
        ------
        PluginError
            If this cannot be registered; the message says what is wrong.
        """
        if not self._open:
            raise PluginError(
                f"Plugin {self._label!r} calls register after its hook has returned, when nothing "
                "can be registered any more; call it inside."
            )
        registry: Registry = getattr(self._registries, kind)
        who = f"it registers the {registry.kind} {name!r}"
        if kind == "models" and not objects:
            objects, details = (details,), {}
        if not is_name(name):
            raise PluginError(f"{who}; a name is made of letters, digits and '_'.")
        wrong = problem(kind, objects, details)
        if wrong:
            raise PluginError(f"{who}: {wrong}.")
        if kind == "kernels":
            name, details = self._kernel(who, name, objects[0], details)
        registry.check(name, objects, self._label)
        if any((kind, name) == other[:2] for other in self.entries):
            raise PluginError(f"{who} twice.")
        self.entries.append((kind, name, objects, details))

    def close(self) -> None:
        """Take nothing more.

        Raises
        ------
        PluginError
            If nothing was registered.
        """
        self._open = False
        if not self.entries:
            raise PluginError("its hooks register nothing")

    def _kernel(
        self, who: str, name: str, function: Callable[..., Any], details: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """Return the name of a kernel's entry, and its details with the operation."""
        own = Registry("activation")
        for kind, other, objects, _ in self.entries:
            if kind == "activations":
                own.add(other, *objects, plugin="")
        op = find_op(name, self._registries.activations) or find_op(name, own)
        if op is None:
            known = op_names(self._registries.activations)
            raise PluginError(f"{who}: no operation has that name{did_you_mean(name, known)}")
        backend, known = details.get("backend", "numpy"), known_backends()
        if backend not in known:
            raise PluginError(
                f"{who}: backend: got {backend!r}, expected one of {', '.join(known)}"
                f"{did_you_mean(backend, known)}"
            )
        try:
            op.check_kernel(function, backend)
        except TypeError as error:
            raise PluginError(f"{who}: {error}") from None
        return f"{name}_{backend}", {**details, "op": op, "backend": backend}
