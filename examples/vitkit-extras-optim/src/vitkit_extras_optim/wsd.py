"""Warm-up, stable, decay: a schedule whose long middle part need not know where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitkit.optim.schedules import Decay
from vitkit.validate import number


@dataclass(frozen=True)
class WSD(Decay):
    r"""The full rate until a last part of the run, in which it falls to ``min_lr``.

    .. math:: \eta(s) = \eta_{\min} + (\eta - \eta_{\min}) \cdot \begin{cases}
              1 & p \le 1 - d \\ 1 - \sqrt{(p - 1 + d) / d} & \text{otherwise} \end{cases}

    for the progress :math:`p` from 0 to 1 after the warm-up and the share :math:`d` of ``decay``
    (Hu et al., 2024, arXiv:2404.06395; the square root is that of Hägele et al., 2024,
    arXiv:2405.18392).

    Parameters
    ----------
    lr : float
        The full rate.
    total_steps : int
        Updates of the whole run.
    warmup_steps : int, default 0
        Updates in which the rate rises.
    min_lr : float, default 0.0
        The rate at the end.
    decay : float, default 0.2
        The share of the steps after the warm-up in which the rate falls, in (0, 1].
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0
    decay: float = 0.2

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        number("decay", self.decay, above=0, at_most=1)

    def remaining(self, progress: float) -> float:
        """Return a number from 1 to 0."""
        fallen = max(0.0, progress - 1 + self.decay) / self.decay
        return 1 - math.sqrt(min(1.0, fallen))
