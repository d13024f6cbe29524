"""Sizes of a ViT that are wrong, each in one thing, and the right one that they were made from."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vitkit.ops import tanh, tanh_backward
from vitkit.registry import Registry
from vitkit.testing.models import check_model

RIGHT: dict[str, Any] = {"dim": 24, "depth": 3, "num_heads": 2, "mlp_dim": 48, "pool": "mean"}


def sized(**changes: Any) -> dict[str, Any]:
    """Return the right options with some of them changed, and without those that are None."""
    return {name: value for name, value in {**RIGHT, **changes}.items() if value is not None}


def dead(x: Any, *, xp: Any) -> Any:
    return x * xp.asarray(np.nan, dtype=x.dtype)


def wrong_backward(dy: Any, x: Any, *, xp: Any) -> Any:
    return tanh_backward(dy, x, xp=xp) * 2


def with_activations(check: Any) -> Any:
    """Return a check that runs while two faulty activations are known."""
    from vitkit.nn import ACTIVATIONS

    def run() -> Any:
        ACTIVATIONS.add("dead", dead, tanh_backward, plugin="faults of a test")
        ACTIVATIONS.add("half", tanh, wrong_backward, plugin="faults of a test")
        try:
            return check()
        finally:
            ACTIVATIONS.remove("faults of a test")

    assert isinstance(ACTIVATIONS, Registry)
    return run


# What is wrong: the name, the options, the checks that fail and no others, what the message says.
FAULTY: dict[str, tuple[str, dict[str, Any], set[str], str]] = {
    "heads do not divide the width": (
        "Mu",
        sized(num_heads=5),
        {"options"},
        "no ViT can be made of them, at patch 4: num_heads: 5 heads do not divide dim 24",
    ),
    "the width is missing": (
        "Mu",
        sized(dim=None),
        {"options"},
        r"dim is missing. Write register\('Mu', dim=..., depth=..., num_heads=...\)",
    ),
    "an option is misspelt": (
        "Mu",
        sized(drop_paths=0.1),
        {"options"},
        "drop_paths is not an option that a size may have",
    ),
    "it brings a patch": (
        "Mu",
        sized(patch_size=8),
        {"options"},
        "patch_size is not an option that a size may have.* the patch is the user's",
    ),
    "the depth is a float": ("Mu", sized(depth=3.0), {"options"}, r"depth: got 3.0; expected"),
    "images go with no patch": (
        "Mu",
        sized(image_size=31),
        {"options"},
        r"image_size=31 goes with no patch of \(4, 8, 16, 32\): 'Mu/4': patch_size: 4 does not",
    ),
    "the name has a patch": (
        "Mu/16",
        sized(),
        {"name"},
        "'Mu/16' cannot be written in a variant",
    ),
    "the name is taken": (
        "Ti",
        sized(),
        {"registered as given"},
        "'Ti/4' has dim=192, where 24 is checked here: another 'Ti' is registered, by plugin",
    ),
    "its activation gives NaN": (
        "Mu",
        sized(activation="dead"),
        {"forward", "gradient"},
        "a block of 'Mu/4' gives numbers that are not finite: look at the activation",
    ),
    "its activation has a wrong backward": (
        "Mu",
        sized(activation="half"),
        {"gradient"},
        "the gradient of a ViT with these options is wrong",
    ),
}

FAULTS = {
    name: (with_activations(partial(check_model, given, options)), message)
    for name, (given, options, _, message) in FAULTY.items()
}
