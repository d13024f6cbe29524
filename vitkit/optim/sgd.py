"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops.updates import sgd_update_inplace
from vitkit.optim.optimizer import Optimizer
from vitkit.validate import number


class SGD(Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD`` without dampening.

    The equation is that of :func:`vitkit.ops.sgd_update_inplace`.

    Parameters
    ----------
    lr : float, default 1e-2
        The learning rate.
    momentum : float, default 0.0
        How much of the velocity stays, in [0, 1); at 0 no velocity is kept.
    nesterov : bool, default False
        Whether to look ahead along the velocity; needs momentum.
    weight_decay : float, default 0.0
        Added to the gradient, times the weights.
    """

    def __init__(
        self,
        lr: float = 1e-2,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = number("momentum", momentum, at_least=0, below=1)
        self.nesterov = nesterov
        if nesterov and not momentum:
            raise ValueError(f"nesterov=True needs momentum > 0; got momentum={momentum!r}.")
        self.slots = ("m",) if momentum else ()

    def update(
        self,
        w: Array,
        g: Array,
        m: Array | None = None,
        *,
        lr: float,
        step: int,
        weight_decay: float,
        xp: ArrayModule,
    ) -> None:
        """Update one flat buffer in place."""
        sgd_update_inplace(
            w,
            g,
            m,
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=weight_decay,
            xp=xp,
        )
