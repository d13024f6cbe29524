"""What operations must compute and move at least, from shapes alone: the floors of what is timed.

Bytes are those of each array that goes in and of each that comes out, once; statistics of rows and
what else is short beside them are left out. Products are counted as two operations a multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass

from contenders.task import Configuration

SINGLE, HALF = 4, 2
"""Bytes of float32, and of bfloat16."""
ROWS = 32
"""How many rows the last block makes at least, of all images together, where a head reads one."""
UPDATES = {"adamw": 28, "adam": 28, "sgd": 20, "lamb": 28, "lion": 20, "ema": 12}
"""Bytes an update must read and write for each weight."""
CHANGED = 2 * SINGLE
"""Bytes that are read and written of each number that is changed where it lies."""


@dataclass(frozen=True)
class Cost:
    """What an operation cannot do without.

    Attributes
    ----------
    flop : int
        Operations of its matrix products.
    bytes : int
        What it must read and write.
    """

    flop: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.bytes + other.bytes)

    def floors(self, product_flops: float, bytes_per_second: float) -> dict[str, float]:
        """Return the seconds that each of the two takes at the rates of a GPU."""
        return {"memory": self.bytes / bytes_per_second, "products": self.flop / product_flops}


NOTHING = Cost()


def product(
    rows: int, inputs: int, outputs: int, each: int = HALF, out: int = HALF, plus: bool = False
) -> Cost:
    """Return the cost of ``(rows, inputs) @ (inputs, outputs)``.

    Parameters
    ----------
    rows, inputs, outputs : int
        The sizes.
    each, out : int, default 2
        Bytes of a number that goes in, and of one that comes out.
    plus : bool, default False
        Whether something of the result's shape and type is added.
    """
    given = each * (rows * inputs + inputs * outputs)
    return Cost(2 * rows * inputs * outputs, given + (1 + plus) * out * rows * outputs)


def attention(batch: int, tokens: int, heads: int, width: int) -> Cost:
    """Return the cost of attention of packed heads: queries, keys and values in, one array out."""
    numbers, stats = batch * tokens * heads * width, SINGLE * batch * heads * tokens
    return Cost(4 * batch * heads * tokens**2 * width, 4 * HALF * numbers + stats)


def attention_backward(batch: int, tokens: int, heads: int, width: int) -> Cost:
    """Return the cost of its gradient, which has to make the scores again: five products of two."""
    forward = attention(batch, tokens, heads, width)
    stats = SINGLE * batch * heads * tokens
    return Cost(5 * forward.flop // 2, 2 * forward.bytes - stats)


def norm(numbers: int, out: int = HALF, flowing: int = SINGLE) -> Cost:
    """Return the cost of normalizing rows, ``flowing`` bytes a number, the first time and again."""
    return Cost(0, (flowing + out) * numbers)


def norm_backward(
    numbers: int, each: int = HALF, residual: bool = True, flowing: int = SINGLE
) -> Cost:
    """Return the cost of its gradient, to which that of a residual is added."""
    return Cost(0, (each + (2 + residual) * flowing) * numbers)


def add_gained(numbers: int, flowing: int = SINGLE) -> Cost:
    """Return the cost of adding to a residual what is float32, times the gain of each sample."""
    return Cost(0, (2 * flowing + SINGLE) * numbers)


def activation(numbers: int, keep: bool = True) -> Cost:
    """Return the cost of an activation in 16 bits, and of its derivative if that is kept."""
    return Cost(0, (2 + keep) * HALF * numbers)


def through_activation(numbers: int) -> Cost:
    """Return the cost of a gradient times a derivative, both in 16 bits."""
    return Cost(0, 3 * HALF * numbers)


def narrow(numbers: int, each: int = SINGLE) -> Cost:
    """Return the cost of rounding float32 to 16 bits, of widening them, or of changing them."""
    return Cost(0, (each + HALF) * numbers)


def sums(numbers: int, each: int = HALF) -> Cost:
    """Return the cost of adding up columns."""
    return Cost(0, each * numbers)


def added(numbers: int) -> Cost:
    """Return the cost of adding to float32 where it lies."""
    return Cost(0, (SINGLE + CHANGED) * numbers)


def update(rule: str, weights: int) -> Cost:
    """Return the cost of an optimizer's step."""
    return Cost(0, UPDATES[rule] * weights)


def operations(c: Configuration, weights: int, clips: bool) -> dict[str, Cost]:
    """Return the cost in one training step of what is no part of a block, and has no products.

    Parameters
    ----------
    c : Configuration
        The model and its batch.
    weights : int
        How many numbers are learned.
    clips : bool
        Whether the gradient is above its limit: where it is not, nobody reads it for that.
    """
    tokens, first = c.batch_size * c.tokens * c.dim, c.batch_size * c.dim
    patches, logits = tokens - first, c.batch_size * c.num_classes
    last = min(tokens, -(-ROWS // c.batch_size) * first)  # what the last block makes of its MLP
    pixels = c.batch_size * 3 * c.image_size**2
    numbers = {
        "patchify": 2 * pixels,
        "embed_positions": patches + tokens,
        "layer_norm": 2 * last,
        "layer_norm_backward": 3 * last,
        "pool_first_backward": (first + last) + (first + tokens),
        "softmax_cross_entropy": 2 * logits,
        "embed_positions_backward": tokens,
        "zeroing gradients": weights,
        "global_norm": weights,
        "clip_by_norm_inplace": 2 * weights if clips else 0,
    }
    found = {name: Cost(0, SINGLE * count) for name, count in numbers.items()}
    return {**found, "adamw_update_inplace": update("adamw", weights)}
