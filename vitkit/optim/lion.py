"""Lion: the sign of the momentum."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops.updates import lion_update_inplace
from vitkit.optim.optimizer import Optimizer
from vitkit.validate import two_betas


class Lion(Optimizer):
    """Lion (Chen et al., 2023, arXiv:2302.06675): every weight moves by the learning rate.

    The equation is that of :func:`vitkit.ops.lion_update_inplace`. The paper advises a
    learning rate 3 to 10 times smaller than AdamW's, and a weight decay larger by as much.

    Parameters
    ----------
    lr : float, default 1e-4
        The learning rate.
    betas : tuple of two float, default (0.9, 0.99)
        How much of the mean gradient counts in the direction, and how much of it stays; in [0, 1).
    weight_decay : float, default 0.0
        How much of the weights is taken off at each update, times the learning rate.
    """

    slots = ("m",)

    def __init__(
        self,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.betas = two_betas(betas)

    def update(
        self,
        w: Array,
        g: Array,
        m: Array,
        *,
        lr: float,
        step: int,
        weight_decay: float,
        xp: ArrayModule,
    ) -> None:
        """Update one flat buffer in place."""
        beta1, beta2 = self.betas
        lion_update_inplace(
            w, g, m, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, xp=xp
        )
