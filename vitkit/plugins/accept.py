"""What a plugin may register, looked at when it does, so that mistakes are found where they are.

Each function gets the name, the objects and the details of one call of ``register``, and returns
what is wrong, or nothing. What only running shows is found by :mod:`vitkit.testing`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vitkit import ops
from vitkit.errors import suggestion
from vitkit.models.sizes import OPTIONS_OF_A_SIZE, REQUIRED
from vitkit.nn.layers import PARTS
from vitkit.nn.module import Module
from vitkit.ops import Op
from vitkit.optim import Optimizer
from vitkit.registry import Registry, is_name
from vitkit.train.callbacks import Callback

DETAILS: dict[str, tuple[str, ...]] = {
    "activations": ("torch",),
    "optimizers": ("example", "reference", "torch"),
    "schedules": ("example",),
    "losses": ("torch", "labels"),
    "datasets": ("prepare", "title", "example"),
    "layers": ("part", "example", "shape", "torch", "batched"),
    "transforms": ("example",),
    "callbacks": ("example",),
    "models": (),
    "kernels": ("backend", "inputs"),
    "commands": (),
}
"""The keywords that ``register`` takes after the objects, by kind."""
WRITTEN = {
    "activations": "register(name, function, backward)",
    "models": "register(name, dim=..., depth=..., num_heads=...)",
}
"""How a registration is written, where it is not ``register(name, object)``."""


def problem(kind: str, objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    """Return what is wrong with one registration, as the end of a sentence, or None.

    Parameters
    ----------
    kind : str
        The field of Registries: ``"activations"``.
    objects : tuple of object
        What was registered.
    details : mapping of str to object
        The keywords.

    Returns
    -------
    str or None
        None where it can be used.
    """
    expected = 2 if kind == "activations" else 1
    if len(objects) != expected:
        written = WRITTEN.get(kind, "register(name, object)")
        return f"got {len(objects)} objects after the name; write {written}"
    for name in details:
        if name not in DETAILS[kind]:
            known = ", ".join(DETAILS[kind]) or "none"
            near = suggestion(name, DETAILS[kind]) or "."
            return f"{name}= is not understood{near} Known: {known}"
    wrong_detail = _wrong_detail(details)
    if wrong_detail:
        return wrong_detail
    if kind != "models" and not all(callable(each) for each in objects):
        wrong = next(each for each in objects if not callable(each))
        return f"got {wrong!r}, which cannot be called"
    return CHECKS[kind](objects, details)


def _wrong_detail(details: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a keyword; None says that nothing is known, as leaving it out."""
    for name in ("torch", "reference", "inputs", "prepare"):
        value = details.get(name)
        if value is not None and not callable(value):
            return f"{name}: got {value!r}, which cannot be called"
    example, shape, title = (details.get(name) for name in ("example", "shape", "title"))
    if example is not None and not (isinstance(example, dict) and all(map(is_name, example))):
        return f"example: got {example!r}, expected a dict of arguments, {{'size': 8}}"
    if shape is not None and not (
        isinstance(shape, tuple) and all(type(side) is int and side > 0 for side in shape)
    ):
        return f"shape: got {shape!r}, expected a tuple of whole numbers, that of one sample"
    if title is not None and not isinstance(title, str):
        return f"title: got {title!r}, expected a text"
    prepare = details.get("prepare")
    return prepare and _signature(prepare, ("folder", "progress"), "(folder, progress)", xp=False)


def _activation(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    forward, backward = objects
    return _signature(forward, ("x",), "(x, *, xp)") or _signature(
        backward, ("dy", "x"), "(dy, x, *, xp)"
    )


def _optimizer(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    (made,) = objects
    if not inspect.isclass(made):
        return None
    if not issubclass(made, Optimizer):
        return f"{made.__name__} is not a subclass of vitkit.optim.Optimizer"
    if made.update is Optimizer.update:
        return f"{made.__name__} does not define update(w, g, *slots, lr, step, weight_decay, xp)"
    return None


def _subclass_of(base: type) -> Callable[[tuple[Any, ...], Mapping[str, Any]], str | None]:
    def check(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
        (made,) = objects
        if inspect.isclass(made) and not issubclass(made, base):
            return f"{made.__name__} is not a subclass of {base.__module__}.{base.__name__}"
        return None

    return check


def _layer(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    part = details.get("part")
    if part is not None and part not in PARTS:
        return f"part: got {part!r}, expected one of {', '.join(PARTS)}, or None"
    return _subclass_of(Module)(objects, details)


def _loss(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    return _signature(objects[0], ("logits", "labels"), "(logits, labels, *, xp)")


def _model(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    options = objects[0]
    if not isinstance(options, dict):
        return f"got {options!r}; write {WRITTEN['models']}"
    for name in options:
        if name not in OPTIONS_OF_A_SIZE:
            near = suggestion(name, OPTIONS_OF_A_SIZE)
            return f"{name}= is not an option of ViT that a size can have{near}"
    missing = [name for name in REQUIRED if name not in options]
    return f"{', '.join(missing)} must be given" if missing else None


def _kernel(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    return None  # judged by the operation it replaces, see find_op


def _anything(objects: tuple[Any, ...], details: Mapping[str, Any]) -> str | None:
    return None


CHECKS: dict[str, Callable[[tuple[Any, ...], Mapping[str, Any]], str | None]] = {
    "activations": _activation,
    "optimizers": _optimizer,
    "schedules": _anything,
    "losses": _loss,
    "datasets": _anything,
    "layers": _layer,
    "transforms": _anything,
    "callbacks": _subclass_of(Callback),
    "models": _model,
    "kernels": _kernel,
    "commands": _anything,
}


def find_op(name: str, activations: Registry) -> Op[..., Any] | None:
    """Return the operation of a name: one of :mod:`vitkit.ops`, or of a plugin's activation.

    Parameters
    ----------
    name : str
        Such as ``"layer_norm"``.
    activations : Registry
        Whose functions count where they are operations.

    Returns
    -------
    Op or None
        None where there is none.
    """
    own = getattr(ops, name, None)
    if isinstance(own, Op):
        return own
    for entry in activations.entries():
        for function in entry.value:
            if isinstance(function, Op) and function.__name__ == name:
                return function
    return None


def op_names(activations: Registry) -> list[str]:
    """Return the names that :func:`find_op` knows, sorted."""
    own = {name for name, value in vars(ops).items() if isinstance(value, Op)}
    theirs = {f.__name__ for e in activations.entries() for f in e.value if isinstance(f, Op)}
    return sorted(own | theirs)


def _signature(
    function: Any, arrays: tuple[str, ...], expected: str, *, xp: bool = True
) -> str | None:
    """Return what is wrong with how a function is called: positional arrays, then ``xp``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # it does not say
    try:
        signature.bind(*arrays, **({"xp": None} if xp else {}))
    except TypeError:
        name = getattr(function, "__name__", repr(function))
        return f"{name} takes {signature}; it must take {expected}"
    return None
