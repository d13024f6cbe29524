"""Adam with weight decay decoupled from the gradient."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops.updates import adamw_update_inplace
from vitkit.optim.optimizer import Optimizer
from vitkit.optim.validate import number, two_betas


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), as ``torch.optim.AdamW``.

    The equation is that of :func:`vitkit.ops.adamw_update_inplace`.

    Parameters
    ----------
    lr : float, default 1e-3
        The learning rate.
    betas : tuple of two float, default (0.9, 0.999)
        How much of the running means of the gradient and of its square stays, in [0, 1).
    eps : float, default 1e-8
        Added to the root of the mean square.
    weight_decay : float, default 1e-2
        How much of the weights is taken off at each update, times the learning rate.
    """

    slots = ("m", "v")

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.betas = two_betas(betas)
        self.eps = number("eps", eps, above=0)

    def update(
        self,
        w: Array,
        g: Array,
        m: Array,
        v: Array,
        *,
        lr: float,
        step: int,
        weight_decay: float,
        xp: ArrayModule,
    ) -> None:
        """Update one flat buffer in place."""
        beta1, beta2 = self.betas
        adamw_update_inplace(
            w,
            g,
            m,
            v,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=self.eps,
            weight_decay=weight_decay,
            step=step,
            xp=xp,
        )
