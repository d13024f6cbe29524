"""Settings that name nothing there is, for row F16, by one slip of the keyboard."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis.strategies as st
from configurations import misspelt

NAMED = {
    "backend": ["numpy", "cupy", "auto"],
    "optimizer": ["adamw", "adam", "lion", "lamb"],
    "schedule": ["cosine", "linear", "constant", "rsqrt"],
    "train.loss": ["softmax_cross_entropy", "sigmoid_bce", "mean_squared_error"],
    "train.callbacks[0]": ["early_stopping"],
    "data.augment[0]": ["crop", "flip", "affine"],
    "data.name": ["digits", "mnist", "cifar10", "fashion_mnist", "folder"],
    "model.activation": ["gelu", "gelu_tanh", "silu", "quick_gelu"],
    "model.norm": ["layer_norm"],
    "model.attention": ["attention"],
    "model.init": ["scratch", "timm"],
    "model.pool": ["mean"],
}
"""Settings that name something, and some of what there is to name."""
ARGUMENTS = {
    "optimizer": ("adamw", ["betas"]),
    "schedule": ("cosine", ["min_lr"]),
    "data.augment[0]": ("crop", ["padding"]),
    "train.callbacks[0]": ("early_stopping", ["patience"]),
}
"""Settings that take arguments, with something that they name and what it takes."""


class Unknown(NamedTuple):
    """A setting that names nothing there is, nearly, and what it was to name."""

    where: str
    value: str
    slip: str
    meant: str

    @property
    def override(self) -> str:
        path, listed, _ = self.where.partition("[0]")
        return f"{path}=['{self.value}']" if listed else f"{path}='{self.value}'"


@st.composite
def unknown_names(draw: st.DrawFn) -> list[Unknown]:
    """Return settings that name a thing, or an argument of a thing, with a slip."""
    found = []
    for where in draw(
        st.lists(st.sampled_from(sorted(NAMED)), min_size=1, max_size=4, unique=True)
    ):
        if where in ARGUMENTS and draw(st.booleans()):
            owner, names = ARGUMENTS[where]
            meant = draw(st.sampled_from(names))
            slip = draw(misspelt(meant))
            known, value = names, f"{owner}({slip}=1)"
        else:
            known = NAMED[where]
            meant = draw(st.sampled_from(known))
            value = slip = draw(misspelt(meant))
        # A digit in front makes it no name, and "Numpy" may be known where case does not matter.
        if slip.isidentifier() and slip.lower() not in known:
            found.append(Unknown(where, value, slip, meant))
    return found or [Unknown("optimizer", "adanw", "adanw", "adamw")]
