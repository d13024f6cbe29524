r"""Loss scaling: gradients that float16 would lose are made larger for backward.

.. math:: g = \frac{1}{s} \, \frac{\partial\, (s L)}{\partial w}

The smallest float16 is 6e-8, and much of a gradient is smaller; so backward starts from
:math:`s\, \partial L / \partial y`, and the weights' gradients, which are float32, are divided by
:math:`s` (Micikevicius et al., 2018, arXiv:1710.03740, section 3.2). The scale is found on the way:
it doubles after 2000 steps in a row whose gradients are finite, and is halved by a step whose
gradients are not, which is skipped. Being a power of two, it changes no digit of what neither
overflows nor underflows. bfloat16 and tf32 have float32's range and need none of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.nn.module import Module
from vitkit.nn.place import FlatGroup
from vitkit.train.nonfinite import finite_gradients

FIRST = 65536.0
GROWS_AFTER = 2000
LEAST, MOST = 1.0, 2.0**24
TOO_MANY = 50
"""Steps skipped in a row after which a run has failed: the scale has long been 1 by then."""


class LossScale:
    """The factor of the loss, found while training, on the device and without waiting for it.

    Parameters
    ----------
    xp : module
        The array module of the model.

    Attributes
    ----------
    scale : array, shape ()
        The factor, float32, from 1 to 2**24.
    good_steps : array, shape ()
        Steps with finite gradients since the scale last changed.
    skipped : array, shape ()
        Steps without, in all.
    """

    def __init__(self, xp: ArrayModule) -> None:
        self.xp = xp
        self.scale = xp.full((), FIRST, "float32")
        self.good_steps = xp.zeros((), "int64")
        self.skipped = xp.zeros((), "int64")

    def scale_gradient(self, dlogits: Array) -> Array:
        """Return the gradient that backward starts from, times the scale."""
        return dlogits * self.scale

    def unscale_(self, groups: Sequence[FlatGroup]) -> None:
        """Divide all gradients by the scale, in place."""
        for group in groups:
            gradient = group.grads
            gradient /= self.scale

    def finite(self, groups: Sequence[FlatGroup]) -> Array:
        """Return whether every gradient is finite, as an array of shape () on the device."""
        return finite_gradients(groups, xp=self.xp)

    def update(self, finite: Array) -> None:
        """Count a step, and change the scale where it is time to.

        Parameters
        ----------
        finite : array, shape ()
            What :meth:`finite` said of the step.
        """
        xp = self.xp
        good = (self.good_steps + 1) * finite
        grows = good >= GROWS_AFTER
        larger = xp.minimum(self.scale * 2, MOST)
        smaller = xp.maximum(self.scale * 0.5, LEAST)
        # In place: the arrays stay where they are, as a captured graph needs them to.
        self.scale[...] = xp.where(finite, xp.where(grows, larger, self.scale), smaller)
        self.good_steps[...] = xp.where(grows, 0, good)
        self.skipped += xp.logical_not(finite)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the state on the host, by name; this waits for the device."""
        return {name: to_numpy(array).copy() for name, array in self._arrays().items()}

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take up the state that ``state_dict`` returned; on an error nothing has changed.

        Raises
        ------
        ValueError
            Listing every name that is missing, unexpected, or not a number that it can be.
        """
        own = self._arrays()
        problems = [f"{name}: missing" for name in own if name not in arrays]
        problems += [f"{name}: not expected" for name in arrays if name not in own]
        ranges = {"scale": (LEAST, MOST), "good_steps": (0, GROWS_AFTER - 1)}
        for name in (name for name in own if name in arrays):
            value, (least, most) = to_numpy(arrays[name]), ranges.get(name, (0, 2**62))
            if value.shape != () or not least <= value <= most:  # not a NaN either
                problems.append(f"{name}: {value!r}, expected one number from {least} to {most}")
        if problems:
            raise ValueError("The state does not fit a LossScale:\n  " + "\n  ".join(problems))
        for name, array in own.items():
            array[...] = self.xp.asarray(arrays[name], dtype=array.dtype)

    def _arrays(self) -> dict[str, Array]:
        names = ("scale", "good_steps", "skipped")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return f"LossScale({self.xp.__name__})"


def loss_scale_for(model: Module) -> LossScale | None:
    """Return a new loss scale for a model that computes in float16, and None for any other."""
    return LossScale(model.xp) if model.precision == "float16" else None


def overflow_expected() -> AbstractContextManager[None]:
    """Have NumPy say nothing of numbers that are not finite: a step with such is skipped."""
    return np.errstate(over="ignore", invalid="ignore")
