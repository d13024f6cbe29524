"""LAMB: Adam with the step of each parameter in proportion to its length."""

from __future__ import annotations

from vitkit.ops import Op
from vitkit.ops.updates import adam_update_inplace, lamb_update_inplace
from vitkit.optim.moments import Moments


class LAMB(Moments):
    """LAMB (You et al., 2020, arXiv:1904.00962), for very large batches.

    The equation is that of :func:`vitkit.ops.lamb_update_inplace`. As in the authors'
    code (and timm's), a parameter without weight decay takes Adam's plain step: biases start at
    zero, so steps in proportion to their length would hardly move them.

    Parameters
    ----------
    lr : float, default 1e-3
        The learning rate: how far a parameter moves, relative to its length.
    betas : tuple of two float, default (0.9, 0.999)
        How much of the running means of the gradient and of its square stays, in [0, 1).
    eps : float, default 1e-6
        Added to the root of the mean square.
    weight_decay : float, default 1e-2
        Added to Adam's direction, times the weights. With 0 no parameter has decay, which
        leaves Adam; ``always_adapt`` changes that.
    always_adapt : bool, default False
        Whether parameters without decay, too, step in proportion to their length, as
        Algorithm 2 of the paper has it.
    """

    elementwise = False

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        always_adapt: bool = False,
    ) -> None:
        super().__init__(lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.always_adapt = always_adapt

    def rule(self, weight_decay: float) -> Op[..., None]:
        """Return LAMB's update, or Adam's for a parameter that does not adapt."""
        adapts = weight_decay or self.always_adapt
        return lamb_update_inplace if adapts else adam_update_inplace
