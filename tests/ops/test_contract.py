"""What every operation keeps to: dtype, inputs left alone, any batch, no wait for the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend import Array, ArrayModule, philox, to_numpy
from vitkit.ops import Op
from vitkit.ops.attention_branch import AttentionArrays
from vitkit.ops.mlp import MLPArrays
from vitkit.testing import assert_close, strict_device

KEY = (0, 1, 2)
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.3, "step": 2}
LION = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.3}
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}
BRANCHES = ["attention_branch", "mlp_branch"]
ELEMENTWISE = ["relu", "silu", "quick_gelu", "tanh", "gelu", "gelu_tanh"]

Make = Callable[..., Array]


def arguments(name: str, make: Make, b: int, n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what an op may be called with: ``b`` samples of ``n`` tokens."""
    x = make(b, n, 6)
    if name.removesuffix("_backward") in ELEMENTWISE:
        return ((x, make(b, n, 6)) if name.endswith("_backward") else (x,)), {}
    if name in BRANCHES:
        return branch_arguments(name, make, b, n), {}
    labels, logits = make(b, integer=True), make(b, n)
    table: dict[str, Callable[[], tuple[Any, ...]]] = {
        "linear": lambda: (x, make(4, 6), make(4)),
        "linear_backward": lambda: (make(b, n, 4), x, make(4, 6)),
        "layer_norm": lambda: (x, make(6), make(6), 1e-6),
        "layer_norm_backward": lambda: (x, make(b, n, 6), make(6), make(b, n, 1), make(b, n, 1)),
        "softmax": lambda: (x,),
        "softmax_backward": lambda: (x, make(b, n, 6)),
        "multi_head_attention": lambda: (x, 2),
        "multi_head_attention_backward": lambda: (
            make(b, n, 2),
            x,
            make(b, n, 2),
            make(b, 2, n),
            make(b, 2, n),
        ),
        "attention_weights": lambda: (x, 2),
        "dropout": lambda: (x, 0.5, KEY),
        "dropout_backward": lambda: (x, 0.5, KEY),
        "drop_path": lambda: (x, 0.5, KEY),
        "drop_path_backward": lambda: (x, 0.5, KEY),
        "normalize_images": lambda: (make(b, 2, n, n), 255, (0.1, 0.2), (1.0, 2.0), x.dtype),
        "patchify": lambda: (make(b, 2, n, 2 * n), (n, n)),
        "unpatchify": lambda: (make(b, 2, 2 * n * n), (n, 2 * n), (n, n)),
        "pool_first": lambda: (x,),
        "pool_first_backward": lambda: (make(b, 6), n),
        "pool_mean": lambda: (x,),
        "pool_mean_backward": lambda: (make(b, 6), n),
        "embed_positions": lambda: (x, make(1, 1, 6), make(1, n + 1, 6)),
        "embed_positions_backward": lambda: (make(b, n + 1, 6), True),
        "softmax_cross_entropy": lambda: (logits, labels, 0.1),
        "sigmoid_bce": lambda: (logits, labels, 0.1),
        "mean_squared_error": lambda: (logits, labels, 0.1),
        "global_norm": lambda: ([x, make(b, n)],),
    }
    return table[name](), {}


def branch_arguments(name: str, make: Make, b: int, n: int) -> tuple[Any, ...]:
    """Return what a branch of a block may be called with, forward or backward."""
    x, gain = make(b, n, 6), make(b)
    if name.startswith("attention"):
        kind, shapes, settings = AttentionArrays, ((18, 6), 18, (6, 6)), (2, 1e-6)
        kept = [(b, n, 1), (b, n, 1), (b, n, 18), (b, n, 6), (b, 2, n), (b, 2, n)]
    else:
        kind, shapes, settings = MLPArrays, ((8, 6), 8, (6, 8)), (1e-6, "gelu")
        kept = [(b, n, 1), (b, n, 1), (b, n, 8), (b, n, 8)]

    def parameters() -> Any:
        weight1, bias1, weight2 = shapes
        return kind(make(6), make(6), make(*weight1), make(bias1), make(*weight2), make(6))

    if not name.endswith("_inplace"):
        return (x, parameters(), *settings, gain, "float32", True)
    arrays = tuple(make(*shape) for shape in kept)
    return (make(b, n, 6), x, arrays, parameters(), parameters(), gain, "float32")


def update_arguments(name: str, make: Make) -> tuple[tuple[Any, ...], dict[str, Any]]:
    table: dict[str, tuple[int, dict[str, Any]]] = {
        "sgd_update_inplace": (3, SGD),
        "adam_update_inplace": (4, ADAM),
        "adamw_update_inplace": (4, ADAM),
        "lamb_update_inplace": (4, ADAM),
        "lion_update_inplace": (3, LION),
        "ema_update_inplace": (2, {"decay": 0.9}),
    }
    count, keywords = table[name]
    return tuple(make(3, 5) for _ in range(count)), keywords


OPS = sorted(name for name, value in vars(ops).items() if isinstance(value, Op))
PURE = [name for name in OPS if not name.endswith("_inplace")]
LOSSES = ["mean_squared_error", "sigmoid_bce", "softmax_cross_entropy"]
INPLACE = [name for name in OPS if name.endswith("_update_inplace")]
BACKWARD = [name for name in OPS if name.endswith("_backward_inplace")]


class Maker:
    """Makes the arrays of a call, between 0.5 and 1.5, and remembers what they were."""

    def __init__(self, xp: ArrayModule, dtype: str) -> None:
        self.xp, self.dtype, self.rng = xp, dtype, philox(0, "arguments")
        self.made: list[tuple[Array, np.ndarray]] = []

    def __call__(self, *shape: int, integer: bool = False) -> Array:
        host = np.zeros(shape, "int64") if integer else self.rng.random(shape) + 0.5
        host = host if integer else host.astype(self.dtype)
        array = self.xp.asarray(host.copy())
        self.made.append((array, host))
        return array

    def freeze(self) -> None:
        for array, _ in self.made:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def assert_unchanged(self) -> None:
        for array, host in self.made:
            np.testing.assert_array_equal(to_numpy(array), host)


def arrays_in(result: Any) -> Iterator[Array]:
    for item in result if isinstance(result, tuple) else (result,):
        if isinstance(item, tuple):
            yield from arrays_in(item)
        elif item is not None:
            yield item


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "batch", "tokens"),
    [
        *((name, *sizes) for name in PURE for sizes in [(1, 1), (2, 3), (3, 31), (2, 32), (1, 33)]),
        *((name, 0, 3) for name in PURE if name not in LOSSES),  # no mean without a sample
    ],
)
def test_keeps_the_dtype_and_leaves_its_inputs(
    name: str, dtype: str, batch: int, tokens: int, xp: ArrayModule
) -> None:
    make = Maker(xp, dtype)
    args, kwargs = arguments(name, make, batch, tokens)
    make.freeze()
    results = [list(arrays_in(getattr(ops, name)(*args, **kwargs, xp=xp))) for _ in range(2)]
    make.assert_unchanged()
    assert {a.dtype for a in results[0]} == {np.dtype(dtype)}
    for one, two in zip(*results, strict=True):  # and the same once more
        np.testing.assert_array_equal(to_numpy(one), to_numpy(two))


@pytest.mark.parametrize("name", PURE)
def test_waits_for_no_device(name: str) -> None:
    make = Maker(strict_device.xp, "float32")
    args, kwargs = arguments(name, make, 2, 3)
    with strict_device.count_syncs() as syncs:
        getattr(ops, name)(*args, **kwargs, xp=strict_device.xp)
    assert syncs == []


@pytest.mark.parametrize("name", INPLACE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_place_means_the_weights_and_the_state(name: str, dtype: str, xp: ArrayModule) -> None:
    make = Maker(xp, dtype)
    args, kwargs = update_arguments(name, make)
    assert getattr(ops, name)(*args, **kwargs, xp=xp) is None
    for at, (array, host) in enumerate(make.made):
        assert array.dtype == dtype
        changed = (to_numpy(array) != host).all()
        assert changed == (at != 1)  # the second is what is read


@pytest.mark.parametrize("name", BACKWARD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_branch_s_backward_adds_to_the_gradients_alone(
    name: str, dtype: str, xp: ArrayModule
) -> None:
    make = Maker(xp, dtype)
    args = branch_arguments(name, make, 2, 3)
    dx = getattr(ops, name)(*args, xp=xp)
    assert (dx.dtype, dx.shape) == (dtype, (2, 3, 6))
    added = {id(array) for array in args[4]}
    for array, host in make.made:
        changed = to_numpy(array) != host
        assert changed.any() == (id(array) in added)
    once = [to_numpy(array).copy() for array in args[4]]
    getattr(ops, name)(*args, xp=xp)
    for array, first, (_, start) in zip(
        args[4], once, [made for made in make.made if id(made[0]) in added], strict=True
    ):
        assert_close(to_numpy(array) - first, (first - start).astype("float64"), reduction=50)


@pytest.mark.parametrize("name", [*INPLACE, *BACKWARD])
def test_an_update_waits_for_no_device(name: str) -> None:
    make = Maker(strict_device.xp, "float32")
    args, kwargs = (
        update_arguments(name, make)
        if name in INPLACE
        else (branch_arguments(name, make, 2, 3), {})
    )
    with strict_device.count_syncs() as syncs:
        getattr(ops, name)(*args, **kwargs, xp=strict_device.xp)
    assert syncs == []


@pytest.mark.parametrize("name", OPS)
def test_takes_xp_by_keyword_and_last(name: str) -> None:
    last = list(inspect.signature(getattr(ops, name)).parameters.values())[-1]
    assert (last.name, last.kind, last.default) == ("xp", last.KEYWORD_ONLY, last.empty)


@pytest.mark.parametrize("name", PURE)
def test_every_op_has_its_gradient(name: str) -> None:
    without = {
        *LOSSES,  # they return it
        *("attention_weights", "global_norm", "normalize_images"),  # nothing to learn behind them
        *("patchify", "unpatchify"),  # each is that of the other
    }
    backward = f"{name}_backward_inplace" if name in BRANCHES else f"{name}_backward"
    if not name.endswith("_backward"):
        assert (backward in OPS) == (name not in without)
