"""Adam, with weight decay coupled to the gradient."""

from __future__ import annotations

from vitkit.ops import Op
from vitkit.ops.updates import adam_update_inplace
from vitkit.optim.moments import Moments


class Adam(Moments):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980), as ``torch.optim.Adam``.

    The equation is that of :func:`vitkit.ops.adam_update_inplace`.

    Parameters
    ----------
    lr : float, default 1e-3
        The learning rate.
    betas : tuple of two float, default (0.9, 0.999)
        How much of the running means of the gradient and of its square stays, in [0, 1).
    eps : float, default 1e-8
        Added to the root of the mean square.
    weight_decay : float, default 0.0
        Added to the gradient, times the weights; for decay that the moments do not see use
        :class:`vitkit.optim.AdamW`.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(self, weight_decay: float) -> Op[..., None]:
        """Return Adam's update."""
        return adam_update_inplace
