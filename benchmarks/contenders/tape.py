"""Where a training step's time goes on a GPU: to parts of operations, each with its cost.

The GPU notes a time wherever something begins or ends, in the order of its own work, and nobody
waits for it until the step has been asked for. Operations are told by vitkit itself, as to
:func:`vitkit.ops.profiled`; what they are made of is told by the functions that ask for it, which
are wrapped for as long as a tape runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from contenders import costs, device
from contenders.costs import NOTHING, Cost
from contenders.task import Configuration
from vitkit.kernels.cuda import _branch, _products, attention_branch, casts, linear, mlp
from vitkit.nn.parameter import Parameter
from vitkit.ops import Op, Profile
from vitkit.ops._op import watch
from vitkit.ops._profile import Spent

Arguments = dict[str, Any]
Told = tuple[str, Cost]
"""What a part is called, and its cost."""


class Tape(Profile):
    """A profile whose clock is the GPU's, read when all is done.

    Parameters
    ----------
    gpu : Device
        What has the clock.

    Attributes
    ----------
    costs : dict of str to Cost
        What the parts that were told of cost, by name.
    marks : int
        How many times were noted, once it has been read.
    """

    def __init__(self, gpu: device.Device) -> None:
        super().__init__(clock=gpu.mark)
        self.costs: dict[str, Cost] = {}
        self.marks = 0
        self._gpu = gpu
        self._laps: list[tuple[Spent, Any, Any]] = []

    def __call__(self, op: Op[..., Any], xp: Any) -> Callable[[], None]:
        """Charge what follows to an operation, until what is returned is called."""
        return self.begin(op.__name__)

    def begin(self, name: str, cost: Cost = NOTHING) -> Callable[[], None]:
        """Do so for a part of one."""
        self._enter(self.operations.setdefault(name, Spent()))
        self.costs[name] = self.costs.get(name, NOTHING) + cost
        return self._leave

    def _cut(self) -> None:
        now = self._clock()
        self._laps.append((self._stack[-1], self._since, now))
        self._since = now

    def read(self) -> dict[str, Spent]:
        """Return calls and seconds of everything, once the GPU has done it all."""
        for row, begun, ended in self._laps:
            row.seconds += self._gpu.between(begun, ended)
        self.marks = len(self._laps)
        self._laps.clear()
        return {**self.operations, **self.sections, "the rest": self.rest}


@contextmanager
def taped(gpu: device.Device, c: Configuration, xp: Any) -> Iterator[Tape]:
    """Note what a step inside the block does; the tape is to be read after it."""
    tape = Tape(gpu)
    with ExitStack() as stack:
        for owner, name, tell in parts(c, xp):
            stack.enter_context(patch.object(owner, name, _telling(tape, owner, name, tell)))
        token = watch.set(tape)
        tape.start()
        try:
            yield tape
        finally:
            tape.stop()
            watch.reset(token)


def _telling(
    tape: Tape, owner: Any, name: str, tell: Callable[[Arguments], Told]
) -> Callable[..., Any]:
    function = getattr(owner, name)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        done = tape.begin(*tell(bound.arguments))
        try:
            return function(*args, **kwargs)
        finally:
            done()

    return told


def parts(c: Configuration, xp: Any) -> list[tuple[Any, str, Callable[[Arguments], Told]]]:
    """Return which functions are told of: where each is looked up, its name, what tells of it."""
    block = {(3 * c.dim, c.dim): "qkv", (c.dim, c.dim): "proj"}
    block |= {(c.mlp_dim, c.dim): "fc1", (c.dim, c.mlp_dim): "fc2"}
    ends = {(c.dim, 3 * c.patch_size**2): "patches", (c.num_classes, c.dim): "head"}
    found: list[tuple[Any, str, Callable[[Arguments], Told]]] = [
        (casts, "_rounded", _rounded),
        (Parameter, "add_grad", _added),
    ]
    for module in (_branch, attention_branch, mlp, linear):
        weights = ends if module is linear else block
        telling = {name: functools.partial(tell, weights) for name, tell in PRODUCTS.items()}
        telling |= PARTS
        found += [(module, name, telling[name]) for name in telling if name in vars(module)]
    if xp.__name__ in _products.GELU:
        kind = type(_products.GELU[xp.__name__])
        found += [(kind, "forward", _product_gelu), (kind, "backward", _product_dx_gelu)]
    return found


def _product(labels: dict[tuple[int, ...], str], given: Arguments) -> Told:
    a, out, forward = given["a"], given["out"], given["transpose_b"]
    inner = a.shape[0] if given["transpose_a"] else a.shape[1]
    kind = "forward" if forward else "dw" if given["transpose_a"] else "dx"
    label = labels[(out if kind == "dw" else given["b"]).shape]
    sizes = out.shape[0], inner, out.shape[1]
    plus = given["plus"] is not None
    return f"products: {label} {kind}", costs.product(*sizes, a.itemsize, out.itemsize, plus)


def _gradients(labels: dict[tuple[int, ...], str], given: Arguments) -> Told:
    """Tell of the gradients of a weight and its bias, whose sums may be a part of the product."""
    multiplied = {"a": given["dy"], "b": given["x"], "out": given["dweight"]}
    how = {"transpose_a": True, "transpose_b": False, "plus": given["adds"] or None}
    return _product(labels, multiplied | how)


def _product_gelu(given: Arguments) -> Told:
    x, (outputs, inputs) = given["x"], given["fc1"].shape
    cost = costs.product(x.size // inputs, inputs, outputs, plus=given["keep"])
    return "products: fc1 forward, through GELU", cost


def _product_dx_gelu(given: Arguments) -> Told:
    dy, (outputs, inputs) = given["dy"], given["fc2"].shape
    cost = costs.product(dy.size // outputs, outputs, inputs, plus=True)
    return "products: fc2 dx, through GELU", cost


def _attention(given: Arguments) -> Told:
    (batch, tokens, packed), heads = given["qkv"].shape, given["num_heads"]
    return "attention: forward", costs.attention(batch, tokens, heads, packed // (3 * heads))


def _attention_backward(given: Arguments) -> Told:
    (batch, tokens, packed), heads = given["qkv"].shape, given["largest"].shape[1]
    cost = costs.attention_backward(batch, tokens, heads, packed // (3 * heads))
    return "attention: backward", cost


def _norm(what: str, given: Arguments) -> Told:
    x, out = given["x"], np.dtype(given["dtype"]).itemsize
    cost = costs.norm(x.size, out, x.itemsize)
    return f"norms: {what}", cost


def _norm_backward(given: Arguments) -> Told:
    dy, x, residual = given["dy"], given["x"], given["residual"] is not None
    return "norms: backward", costs.norm_backward(dy.size, dy.itemsize, residual, x.itemsize)


def _activation(given: Arguments) -> Told:
    return "GELU: forward", costs.activation(given["h"].size, given["keep"])


def _through_activation(given: Arguments) -> Told:
    return "GELU: backward", costs.through_activation(given["dhidden"].size)


def _gained_cast(given: Arguments) -> Told:
    dy = given["dy"]
    return "casts and sums: gradients to bf16, summed", costs.narrow(dy.size, dy.itemsize)


def _add_gained(given: Arguments) -> Told:
    residual = given["residual"]
    cost = costs.add_gained(residual.size, residual.itemsize)
    return "casts and sums: branches to the residual", cost


def _rounded(given: Arguments) -> Told:
    x = given["x"]
    what = "weights" if x.ndim == 1 else "others"  # all weights are one flat array
    kinds = "to bf16" if x.dtype == "float32" else "to float32"
    return f"casts and sums: {what} {kinds}", costs.narrow(x.size)


def _added(given: Arguments) -> Told:
    return "casts and sums: adding to gradients", costs.added(given["grad"].size)


PRODUCTS: dict[str, Callable[[dict[tuple[int, ...], str], Arguments], Told]] = {
    "multiply": _product,
    "gradients": _gradients,
}
"""What tells of products, by the function's name and given names of weights by their shapes."""
PARTS: dict[str, Callable[[Arguments], Told]] = {
    "attend": _attention,
    "attend_backward": _attention_backward,
    "normalize": functools.partial(_norm, "forward"),
    "normalized_again": functools.partial(_norm, "again"),
    "normalize_backward": _norm_backward,
    "activate": _activation,
    "through_activation": _through_activation,
    "gained_cast": _gained_cast,
    "add_gained": _add_gained,
}
"""What tells of other parts."""
