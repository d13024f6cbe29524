"""What Adam and its kin share: running means of the gradient and of its square."""

from __future__ import annotations

from vitkit.backend import Array, ArrayModule
from vitkit.ops import Op
from vitkit.optim.optimizer import Optimizer
from vitkit.validate import number, two_betas


class Moments(Optimizer):
    """An optimizer whose rule takes both running means; a subclass names the rule."""

    slots = ("m", "v")

    def __init__(
        self, lr: float, *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(lr, weight_decay)
        self.betas = two_betas(betas)
        self.eps = number("eps", eps, above=0)

    def rule(self, weight_decay: float) -> Op[..., None]:
        """Return the operation that updates a parameter with that weight decay."""
        raise NotImplementedError(f"{type(self).__name__} must define rule(weight_decay).")

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
        """Update weights and both means in place."""
        beta1, beta2 = self.betas
        self.rule(weight_decay)(
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
