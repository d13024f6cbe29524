"""The operations that are timed one by one on a GPU: parts of a block in bfloat16, then the rest.

Sizes are those of a whole model's batch; what is held in 16 bits is drawn in float32 and rounded.
"""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import replace

import numpy as np

from contenders import costs
from contenders.costs import Cost
from contenders.op_cases import Case, Shapes, cases
from contenders.task import Configuration

HALF = "bfloat16"
HEAD = 64
"""How wide heads are, as in every ViT of the papers but the largest."""
DRAWN = 4_000_037
"""How many numbers are drawn; a larger array has them several times, out of step with its rows."""
FLAT = ("global", "clip", *costs.UPDATES)
"""How operations begin that run over all weights at once."""
ONLY_DY = ("dropout", "drop_path", "pool_first", "pool_mean")
"""Operations whose gradient reads nothing but that of the output."""
UNSUITED = ("linear", "multi_head_attention")
"""Operations of float32 alone, which no step in bfloat16 has."""


@functools.cache
def gpu_cases(c: Configuration) -> dict[str, Case]:
    """Return all cases of a configuration, by name, those that take most of a step first."""
    own = [*_attentions(c), *_products(c), *_between(c)]
    public = list(cases(c).values())
    public = [each for each in public if each.forward not in UNSUITED]
    branches = [each for each in public if "branch" in each.op and each.precision == HALF]
    others = [_counted(_whole(each, c)) for each in public if "branch" not in each.op]
    return {case.name: case for case in (*own, *branches, *others)}


def _case(op: str, given: Shapes, cost: Cost, label: str = "") -> Case:
    return Case(op, given, cost.flop, label, HALF, cost.bytes)


def _attentions(c: Configuration) -> list[Case]:
    shapes = [(c.batch_size, c.tokens, c.num_heads)]
    if c.tokens > 65:
        shapes.append((4 * c.batch_size, 65, 3))  # ViT-Ti on small images
    made = []
    for batch, tokens, heads in shapes:
        dim, label = heads * HEAD, f"N={tokens}"
        sizes = batch, tokens, heads, HEAD
        given: Shapes = {"qkv": (batch, tokens, 3 * dim)}
        given_back = {**given, "dy": (batch, tokens, dim)}
        for by in ("own", "cudnn"):
            forward, backward = f"attention_{by}", f"attention_{by}_backward"
            made.append(_case(forward, given, costs.attention(*sizes), label))
            made.append(_case(backward, given_back, costs.attention_backward(*sizes), label))
    return made


def _products(c: Configuration) -> list[Case]:
    """Return a block's products as a step has them: forward, and those of both gradients."""
    rows, made = c.batch_size * c.tokens, []
    widths = {"qkv": (c.dim, 3 * c.dim), "proj": (c.dim, c.dim)}
    widths |= {"fc1": (c.dim, c.mlp_dim), "fc2": (c.mlp_dim, c.dim)}
    single = costs.SINGLE
    for label, (inputs, outputs) in widths.items():
        x, dy, weight = (rows, inputs), (rows, outputs), (outputs, inputs)
        sizes = rows, inputs, outputs
        given: Shapes = {"x": x, "weight": weight, "bias": (outputs,)}
        if label in ("proj", "fc2"):  # a residual comes in, and both are float32
            given = {**given, "residual": dy}
            cost = costs.product(*sizes, out=single, plus=True)
            made.append(_case("product_plus", given, cost, label))
        else:
            made.append(_case("product", given, costs.product(*sizes), label))
        given_back: Shapes = {"dy": dy, "weight": weight}
        made.append(_case("product_dx", given_back, costs.product(rows, outputs, inputs), label))
        # Added to a gradient in float32.
        cost = costs.product(outputs, rows, inputs, out=single, plus=True)
        made.append(_case("product_dw", {"dy": dy, "x": x}, cost, label))
    return [*made, *_products_through_gelu(c)]


def _products_through_gelu(c: Configuration) -> list[Case]:
    """Return those on both sides of the activation, where it is a part of them."""
    if c.activation != "gelu_tanh":
        return []
    rows = c.batch_size * c.tokens
    x, hidden = (rows, c.dim), (rows, c.mlp_dim)
    # What the GELU is of comes in, or goes out, beside the result.
    cost = costs.product(rows, c.dim, c.mlp_dim, plus=True)
    forward: Shapes = {"x": x, "weight": (c.mlp_dim, c.dim), "bias": (c.mlp_dim,)}
    backward: Shapes = {"dy": x, "weight": (c.dim, c.mlp_dim), "h": hidden}
    return [
        _case("product_gelu", forward, cost, "fc1"),
        _case("product_dx_gelu", backward, cost, "fc2"),
    ]


def _between(c: Configuration) -> list[Case]:
    """Return what stands between the products."""
    x, hidden = (c.batch_size, c.tokens, c.dim), (c.batch_size, c.tokens, c.mlp_dim)
    packed, flat = (c.batch_size * c.tokens, 3 * c.dim), (_weights(c),)
    norm: Shapes = {"x": x, "norm_weight": (c.dim,), "norm_bias": (c.dim,)}
    numbers, wide = math.prod(x), math.prod(hidden)
    given: list[tuple[str, Shapes, Cost]] = [
        ("norm_low", norm, costs.norm(numbers)),
        ("norm_low_again", norm, costs.norm(numbers)),
        ("norm_low_backward", {**norm, "dy": x, "residual": x}, costs.norm_backward(numbers)),
        ("activate", {"h": hidden}, costs.activation(wide)),
        ("through_activation", {"dy": hidden, "h": hidden}, costs.through_activation(wide)),
        ("narrow_and_sum", {"dy": x}, costs.narrow(numbers)),
        ("column_sums", {"dy": packed}, costs.sums(math.prod(packed))),
        ("narrow", {"w": flat}, costs.narrow(math.prod(flat))),
    ]
    return [_case(*each) for each in given]


def _whole(case: Case, c: Configuration) -> Case:
    """Return the case of a block's weights for those of all blocks."""
    rule = case.op.partition("_")[0]
    if rule not in FLAT:
        return case
    size = _weights(c)
    shapes = dict.fromkeys(case.shapes, (size,))
    moved = {"global": costs.SINGLE * size, "clip": costs.CHANGED * size}
    return replace(case, shapes=shapes, bytes=moved.get(rule) or costs.update(rule, size).bytes)


def _counted(case: Case) -> Case:
    """Return a gradient's case with what it must read and write, where that is not each array."""
    if case.op == case.forward:
        return case
    if case.forward in ONLY_DY:
        return replace(case, bytes=4 * (math.prod(case.shapes["x"]) + math.prod(case.shapes["dy"])))
    if case.forward == "embed_positions":  # the gradient of patches is that of tokens
        return replace(case, bytes=4 * math.prod(case.shapes["dy"]))
    return case


def _weights(c: Configuration) -> int:
    return c.depth * (4 * c.dim**2 + 2 * c.dim * c.mlp_dim)


def drawn() -> np.ndarray:
    """Return the numbers that all arrays are made of."""
    return np.random.default_rng(0).standard_normal(DRAWN, np.float32)


def place(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return where an array begins among the drawn numbers, its size, and how often it needs all.

    Parameters
    ----------
    name : str
        Of the array, so that two of one shape are not equal.
    shape : tuple of int
        Its sizes.
    """
    start, size = zlib.crc32(name.encode()) % DRAWN, math.prod(shape)
    return start, size, -(-(start + size) // DRAWN)


def small(case: Case, num_classes: int) -> dict[str, np.ndarray]:
    """Return the arrays of a case that are not float32: labels and pixels."""
    names = [name for name in case.shapes if name in ("labels", "pixels")]
    shapes = {name: case.shapes[name] for name in names}
    return Case(case.op, shapes).arrays(num_classes)


def scale(name: str, shape: tuple[int, ...]) -> float:
    """Return what the drawn numbers are multiplied by: a product must not grow with its length."""
    return shape[1] ** -0.5 if name.endswith("weight") and len(shape) == 2 else 1.0
