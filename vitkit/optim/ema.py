r"""A running average of the weights, which often tests better than the weights themselves.

.. math:: \overline w \leftarrow \beta_t \overline w + (1 - \beta_t) w, \qquad
          \beta_t = \min\left(\beta, \frac{1 + t}{10 + t}\right)

at update :math:`t = 1, 2, 3, \ldots`; without warm-up :math:`\beta_t = \beta`. The warm-up, that of
TensorFlow's ``ExponentialMovingAverage``, lets the average forget the first weights, which a
decay near one would remember for thousands of updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from vitkit.backend import Array, backend_of
from vitkit.nn.module import Module
from vitkit.ops.updates import ema_update_inplace
from vitkit.optim.skip import Skipped, undone_unless
from vitkit.optim.state import FlatState
from vitkit.validate import number


class EMA:
    """An exponential moving average of a model's weights, starting at its present ones.

    Parameters
    ----------
    model : Module
        A placed model.
    decay : float, default 0.9999
        How much of the average stays at each update, in [0, 1).
    warmup : bool, default True
        Whether the first updates use a smaller decay, ``(1 + t) / (10 + t)``.

    Attributes
    ----------
    updates : int
        How many updates have been made; on a device those that were skipped count too, and
        ``state_dict()["updates"]`` is without them.

    Raises
    ------
    RuntimeError
        If the model has not been placed.
    ValueError
        If ``decay`` is out of range.
    """

    def __init__(self, model: Module, decay: float = 0.9999, *, warmup: bool = True) -> None:
        self.decay = number("decay", decay, at_least=0, below=1)
        self.warmup = warmup
        self.updates = 0
        self._skipped = Skipped()
        self._applied = False
        self._state = FlatState(model, ("",))
        self._averages = self._state.buffers[""]
        for average, group in zip(self._averages, self._state.groups, strict=True):
            average[...] = group.values

    def update(self, *, where: Array | None = None) -> None:
        """Move the average towards the model's weights.

        Parameters
        ----------
        where : array, shape (), optional
            Whether to move it at all, a boolean on the model's device, which is not waited for.

        Raises
        ------
        RuntimeError
            If the model has been placed anew since, or holds the average at the moment.
        """
        self._check()
        xp = self._state.xp
        if where is not None and backend_of(xp).on_host:
            if not where:
                return
            where = None
        self.updates += 1
        self._skipped.expect(where, xp)
        decay = self._decay_now()
        with undone_unless(where, self._averages, xp):
            for average, group in zip(self._averages, self._state.groups, strict=True):
                ema_update_inplace(average, group.values, decay=decay, xp=xp)
        self._skipped.add_unless(where, xp)

    def _decay_now(self) -> float | Array:
        """Return the decay of this update: a number, or an array where the device counts."""
        if not self.warmup:
            return self.decay
        made = self._skipped.made(self.updates)
        warm = (1 + made) / (10 + made)
        smaller = min if isinstance(made, int) else self._state.xp.minimum
        return smaller(self.decay, warm)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own again after it.

        Raises
        ------
        RuntimeError
            If the model has been placed anew since, or holds the average already.
        """
        self._check()
        groups = self._state.groups
        own = [group.values.copy() for group in groups]
        for group, average in zip(groups, self._averages, strict=True):
            group.values[...] = average
        self._applied = True
        try:
            yield
        finally:
            self._applied = False
            for group, values in zip(groups, own, strict=True):
                group.values[...] = values

    def weights(self) -> dict[str, np.ndarray]:
        """Return a copy of the averaged weights on the host, as ``Module.state_dict`` does."""
        return self._state.state_dict()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the averaged weights on the host, by parameter, and ``"updates"``."""
        return {**self.weights(), "updates": self._skipped.made_on_host(self.updates)}

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take up the state that ``state_dict`` returned; on an error nothing has changed.

        Raises
        ------
        ValueError
            Listing every name that is missing, unexpected or of another shape.
        """
        self.updates = self._state.load_state_dict(arrays, counter="updates")
        self._skipped.reset()

    def _check(self) -> None:
        label = self._state.model.label
        if self._state.stale:
            raise RuntimeError(
                f"{label} has been placed or moved since the average was made, so its weights lie "
                "elsewhere. Make EMA(model) again, and load the state_dict() of this one."
            )
        if self._applied:
            raise RuntimeError(
                f"{label} holds the averaged weights now. Leave the applied() block first."
            )

    def __repr__(self) -> str:
        return f"EMA(decay={self.decay!r}, warmup={self.warmup!r}, updates={self.updates})"
