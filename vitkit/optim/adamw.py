"""Adam with weight decay decoupled from the gradient."""

from __future__ import annotations

from vitkit.ops import Op
from vitkit.ops.updates import adamw_update_inplace
from vitkit.optim.moments import Moments


class AdamW(Moments):
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

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(self, weight_decay: float) -> Op[..., None]:
        """Return AdamW's update."""
        return adamw_update_inplace
