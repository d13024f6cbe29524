r"""Learning rates as functions of the step.

A step :math:`s` counts updates from 0. Every schedule with ``warmup_steps`` :math:`W > 0` begins
with

.. math:: \eta(s) = \eta \, \frac{s + 1}{W}, \qquad s < W,

so that the first update is not wasted on a rate of zero, and the last one of the warm-up has the
full rate :math:`\eta` (Goyal et al., 2017, arXiv:1706.02677). From :math:`s = W` on each goes its
own way, from :math:`\eta` again. Those with ``total_steps`` :math:`T` use the progress
:math:`p = \min(1, (s - W) / (T - W))` and stay at ``min_lr`` from :math:`s = T` on.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from vitkit.errors import ConfigError
from vitkit.validate import integer, number


class Schedule:
    """A learning rate for every step: a warm-up, then ``after_warmup``.

    A subclass is a frozen dataclass with ``lr`` and ``warmup_steps`` among its fields.
    """

    lr: float
    warmup_steps: int

    def __post_init__(self) -> None:
        """Check the fields that every schedule has."""
        number("lr", self.lr, at_least=0)
        integer("warmup_steps", self.warmup_steps, at_least=0)

    def __call__(self, step: int) -> float:
        """Return the learning rate of the update ``step``, counted from 0.

        Raises
        ------
        ValueError
            If ``step`` is negative or not a whole number.
        """
        step = integer("step", step, at_least=0)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """Return the learning rate of ``step``, which is at least ``warmup_steps``."""
        raise NotImplementedError(f"{type(self).__name__} must define after_warmup(step).")


@dataclass(frozen=True)
class Constant(Schedule):
    r"""The full rate: :math:`\eta(s) = \eta`."""

    lr: float
    warmup_steps: int = 0

    def after_warmup(self, step: int) -> float:
        """Return the full rate."""
        return self.lr


class Decay(Schedule):
    """A schedule that ends: it goes from ``lr`` to ``min_lr`` as its progress goes to 1."""

    total_steps: int
    min_lr: float

    def __post_init__(self) -> None:
        """Check the fields, and that the warm-up ends before the schedule does."""
        super().__post_init__()
        integer("total_steps", self.total_steps, at_least=1)
        number("min_lr", self.min_lr, at_least=0, at_most=self.lr)
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps must be less than total_steps={self.total_steps}; "
                f"got {self.warmup_steps}."
            )

    def after_warmup(self, step: int) -> float:
        """Return the rate between ``min_lr`` and ``lr`` that ``remaining`` says."""
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * self.remaining(min(1.0, progress))

    def remaining(self, progress: float) -> float:
        """Return a number from 1, at progress 0, to 0, at progress 1."""
        raise NotImplementedError(f"{type(self).__name__} must define remaining(progress).")


@dataclass(frozen=True)
class Cosine(Decay):
    r"""Half a cosine, without restarts (SGDR, Loshchilov and Hutter, 2017, arXiv:1608.03983).

    .. math:: \eta(s) = \eta_{\min} + (\eta - \eta_{\min}) \, \frac{1 + \cos \pi p}{2}
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0

    def remaining(self, progress: float) -> float:
        """Return half a cosine."""
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Linear(Decay):
    r"""A straight line, as ViT is pre-trained on large data (arXiv:2010.11929, Table 3).

    .. math:: \eta(s) = \eta_{\min} + (\eta - \eta_{\min}) (1 - p)
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0

    def remaining(self, progress: float) -> float:
        """Return a straight line."""
        return 1 - progress


@dataclass(frozen=True)
class Rsqrt(Schedule):
    r"""The reciprocal square root, which needs no end (Zhai et al., 2022, arXiv:2106.04560).

    .. math:: \eta(s) = \eta \, \sqrt{\frac{\tau}{\tau + s - W}}

    for the ``timescale`` :math:`\tau`: after as many steps the rate has fallen to
    :math:`1 / \sqrt 2`. The form is that of big_vision; :math:`\tau = W` gives the schedule of
    "Attention is all you need" (arXiv:1706.03762).
    """

    lr: float
    warmup_steps: int = 0
    timescale: int = 10_000

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        integer("timescale", self.timescale, at_least=1)

    def after_warmup(self, step: int) -> float:
        """Return the rate that falls with the root of the step."""
        return self.lr * math.sqrt(self.timescale / (self.timescale + step - self.warmup_steps))


@dataclass(frozen=True)
class Step(Schedule):
    r"""Multiplied by ``factor`` :math:`\gamma` at each of the ``milestones`` :math:`M`.

    .. math:: \eta(s) = \eta \, \gamma^{\lvert \{ m \in M : m \le s \} \rvert}

    Milestones are steps counted from 0, like all others, and come after the warm-up.
    """

    lr: float
    milestones: tuple[int, ...]
    factor: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Check the fields, and that the milestones rise."""
        super().__post_init__()
        number("factor", self.factor, above=0, at_most=1)
        if not isinstance(self.milestones, Iterable):
            raise ConfigError(
                f"milestones must be a list of steps, such as (30, 60); got {self.milestones!r}."
            )
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for milestone in self.milestones:
            integer("milestones", milestone, at_least=self.warmup_steps)
        if any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones must rise; got {self.milestones}.")

    def after_warmup(self, step: int) -> float:
        """Return the rate after the milestones passed."""
        return self.lr * self.factor ** bisect_right(self.milestones, step)
