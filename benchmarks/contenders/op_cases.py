"""The operations that are timed one by one: what goes in, and how much there is to compute."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from contenders.task import Configuration

Shapes = dict[str, tuple[int, ...]]
RATE = 0.1
"""Of dropout."""
MOMENTUM, EMA_DECAY = 0.9, 0.999
LIMIT = 1.0
"""Of a norm, which is just as large: clipping then does all it can, and numbers stay what they are,
but for a millionth."""


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes
    ----------
    op : str
        Its name in ``vitkit.ops``.
    shapes : dict of str to tuple of int
        The arrays that go in; ``labels`` are classes, ``pixels`` uint8, all others float32.
    flop : int
        Operations of its matrix products; 0 for one that has none, and waits for memory.
    label : str
        What tells cases of one operation apart.
    precision : str
        What the products are made of.
    bytes : int
        What has to be read and written, where that is not each array once.
    """

    op: str
    shapes: Shapes
    flop: int = 0
    label: str = ""
    precision: str = "float32"
    bytes: int = 0

    @property
    def name(self) -> str:
        """How tables call it."""
        words = (self.op, self.label, self.precision.replace("float32", ""))
        return " ".join(filter(None, words))

    @property
    def forward(self) -> str:
        """The operation whose gradient this is, or itself."""
        return self.op.removesuffix("_inplace").removesuffix("_backward")

    def arrays(self, num_classes: int) -> dict[str, np.ndarray]:
        """Return what goes in, the same for everyone."""
        rng = np.random.default_rng(0)
        drawn = {
            name: rng.standard_normal(shape, np.float32) for name, shape in self.shapes.items()
        }
        for name, array in drawn.items():
            if name.endswith("weight") and array.ndim == 2:
                array *= array.shape[1] ** -0.5  # or a product would grow with its length
        if "labels" in drawn:
            drawn["labels"] = rng.integers(0, num_classes, self.shapes["labels"])
        if "pixels" in drawn:
            drawn["pixels"] = rng.integers(0, 256, self.shapes["pixels"], np.uint8)
        return drawn


def cases(c: Configuration) -> dict[str, Case]:
    """Return all cases of a configuration, by name."""
    made = [*_linear(c), *_branches(c), *_attention(c), *_rows(c), *_noise(c)]
    made += [*_ends(c), *_flat(c)]
    return {case.name: case for case in made}


def _both(op: str, shapes: Shapes, dy: tuple[int, ...], flop: int = 0, **more: str) -> list[Case]:
    """Return an operation and its gradient, which has twice the products."""
    backward = Case(f"{op}_backward", {**shapes, "dy": dy}, 2 * flop, **more)
    return [Case(op, shapes, flop, **more), backward]


def _linear(c: Configuration) -> list[Case]:
    rows, made = (c.batch_size, c.tokens), []
    widths = {"qkv": (c.dim, 3 * c.dim), "proj": (c.dim, c.dim)}
    widths |= {"fc1": (c.dim, c.mlp_dim), "fc2": (c.mlp_dim, c.dim)}
    for label, (inputs, outputs) in widths.items():
        shapes = {"x": (*rows, inputs), "weight": (outputs, inputs), "bias": (outputs,)}
        flop = 2 * math.prod(rows) * inputs * outputs
        made += _both("linear", shapes, (*rows, outputs), flop, label=label)
    return made


def _branches(c: Configuration) -> list[Case]:
    x, d, m = (c.batch_size, c.tokens, c.dim), c.dim, c.mlp_dim
    rows = c.batch_size * c.tokens
    norm = {"x": x, "norm_weight": (d,), "norm_bias": (d,)}
    mlp = {"fc1_weight": (m, d), "fc1_bias": (m,), "fc2_weight": (d, m), "fc2_bias": (d,)}
    attention = {"qkv_weight": (3 * d, d), "qkv_bias": (3 * d,)}
    attention |= {"proj_weight": (d, d), "proj_bias": (d,)}
    products = {"mlp_branch": 4 * rows * d * m, "attention_branch": 8 * rows * d * d}
    products["attention_branch"] += 4 * rows * c.tokens * d
    made = []
    for precision in ("float32", "bfloat16"):
        for op, weights in (("mlp_branch", mlp), ("attention_branch", attention)):
            shapes, flop = norm | weights, products[op]
            made.append(Case(op, shapes, flop, "", precision))
            backward = {**shapes, "dy": x}
            made.append(Case(f"{op}_backward_inplace", backward, 2 * flop, "", precision))
    return made


def _attention(c: Configuration) -> list[Case]:
    x = (c.batch_size, c.tokens, c.dim)
    flop = 4 * c.batch_size * c.tokens**2 * c.dim
    return _both("multi_head_attention", {"qkv": (*x[:2], 3 * c.dim)}, x, flop)


def _rows(c: Configuration) -> list[Case]:
    x, hidden = (c.batch_size, c.tokens, c.dim), (c.batch_size, c.tokens, c.mlp_dim)
    scores = (c.batch_size, c.num_heads, c.tokens, c.tokens)
    return [
        *_both("layer_norm", {"x": x, "weight": (c.dim,), "bias": (c.dim,)}, x),
        *_both("gelu", {"x": hidden}, hidden),
        *_both("gelu_tanh", {"x": hidden}, hidden),
        *_both("softmax", {"x": scores}, scores),
    ]


def _ends(c: Configuration) -> list[Case]:
    patches = (c.batch_size, c.tokens - 1, c.dim)
    tokens, features = (c.batch_size, c.tokens, c.dim), (c.batch_size, c.dim)
    images = (c.batch_size, 3, c.image_size, c.image_size)
    flat = (c.batch_size, c.tokens - 1, 3 * c.patch_size**2)
    embedding = {"patches": patches, "cls_token": (1, 1, c.dim), "pos_embed": (1, *tokens[1:])}
    logits = {"x": (c.batch_size, c.num_classes), "labels": (c.batch_size,)}
    return [
        Case("normalize_images", {"pixels": images}),
        Case("patchify", {"images": images}),
        Case("unpatchify", {"x": flat}),
        *_both("embed_positions", embedding, tokens),
        Case("pool_first_backward", {"x": tokens, "dy": features}),
        *_both("pool_mean", {"x": tokens}, features),
        Case("softmax_cross_entropy", logits),
    ]


def _noise(c: Configuration) -> list[Case]:
    x = (c.batch_size, c.tokens, c.dim)
    return [*_both("dropout", {"x": x}, x), *_both("drop_path", {"x": x}, x)]


def _flat(c: Configuration) -> list[Case]:
    size = (4 * c.dim**2 + 2 * c.dim * c.mlp_dim,)  # the weights of a block
    rules = ("adamw", "adam", "sgd", "lamb", "lion")
    return [
        Case("global_norm", {"g": size}),
        Case("clip_by_norm_inplace", {"g": size}),
        *(Case(f"{rule}_update_inplace", {"w": size, "g": size}) for rule in rules),
        Case("ema_update_inplace", {"average": size, "w": size}),
    ]
