r"""Muon (Jordan et al., 2024): momentum whose direction is made orthogonal, for matrices.

With weights :math:`W` of shape (A, B), gradient :math:`G`, learning rate :math:`\eta`, momentum
:math:`\mu` and weight decay :math:`\lambda`,

.. math:: M \leftarrow \mu M + (1 - \mu) G, \qquad
          U = \begin{cases} (1 - \mu) G + \mu M & \text{Nesterov} \\ M & \text{otherwise}
              \end{cases}

.. math:: W \leftarrow (1 - \eta \lambda) W - \eta \, s(A, B) \, \mathrm{NS}(U)

where the Newton-Schulz iteration :math:`\mathrm{NS}` starts from
:math:`X = U / \lVert U \rVert_F` and repeats

.. math:: X \leftarrow a X + b (X X^\top) X + c (X X^\top)^2 X,
          \qquad (a, b, c) = (3.4445, -4.7750, 2.0315).

It leaves the singular vectors as they are and brings every singular value near 1 (0.7 to 1.2),
so that all directions of a matrix are learned at the same pace. The factor :math:`s` is
:math:`\sqrt{\max(1, A / B)}` ("original"), or :math:`0.2 \sqrt{\max(A, B)}` ("match_rms_adamw"),
with which the learning rate and weight decay of AdamW can be kept (Liu et al., 2025,
arXiv:2502.16982).

Source: K. Jordan, https://kellerjordan.github.io/posts/muon/. ``torch.optim.Muon`` is the same but
for its arithmetic: it iterates in bfloat16, this in the dtype of the weights.
"""

from __future__ import annotations

import math

from vitkit.backend import Array, ArrayModule
from vitkit.errors import ConfigError
from vitkit.ops import adamw_update_inplace
from vitkit.optim import Optimizer
from vitkit.validate import integer, number, two_betas

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SMALLEST_NORM = 1e-7  # a gradient below it moves its matrix less, in proportion
ADAMW_EPS = 1e-8
TINY = 1e-38  # above 0 in float32, too
SCALES = ("original", "match_rms_adamw")


class Muon(Optimizer):
    """Muon for matrices and the patch kernel, AdamW for all other parameters.

    A matrix is a parameter of two axes; a kernel of four, (D, C, P, P), is the matrix
    (D, C * P * P). Biases, norms, positions and the class token are left to AdamW.

    Parameters
    ----------
    lr : float, default 0.02
        The learning rate of matrices: how far each step moves them, in spectral norm.
    momentum : float, default 0.95
        How much of the running mean of gradients stays, in [0, 1).
    nesterov : bool, default True
        Whether to look ahead.
    ns_steps : int, default 5
        Newton-Schulz iterations; three matrix products each.
    adjust_lr : str, default "original"
        How the step of a matrix goes with its shape: ``"original"`` or ``"match_rms_adamw"``.
    adamw_lr : float, default 0.1
        The learning rate of AdamW, as a share of ``lr``; with ``"match_rms_adamw"``, use 1.
    betas : tuple of two float, default (0.9, 0.95)
        AdamW's.
    weight_decay : float, default 0.01
        How much of the weights is taken off at each update, times the learning rate.
    """

    slots = ("m", "v")
    elementwise = False

    def __init__(
        self,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr: str = "original",
        adamw_lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, weight_decay)
        if adjust_lr not in SCALES:
            raise ConfigError(f"adjust_lr must be one of {', '.join(SCALES)}; got {adjust_lr!r}.")
        self.momentum = number("momentum", momentum, at_least=0, below=1)
        self.nesterov = bool(nesterov)
        self.ns_steps = integer("ns_steps", ns_steps, at_least=1)
        self.adjust_lr = adjust_lr
        self.adamw_lr = number("adamw_lr", adamw_lr, at_least=0)
        self.betas = two_betas(betas)

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
        """Update one parameter and its slots in place."""
        if w.ndim not in (2, 4):
            adamw_update_inplace(
                w,
                g,
                m,
                v,
                lr=lr * self.adamw_lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=ADAMW_EPS,
                weight_decay=weight_decay,
                step=step,
                xp=xp,
            )
            return
        m *= self.momentum
        m += (1 - self.momentum) * g
        u = (1 - self.momentum) * g + self.momentum * m if self.nesterov else m
        direction = orthogonalized(u.reshape(len(u), -1), self.ns_steps, xp=xp)
        w *= 1 - lr * weight_decay
        w -= (lr * self._scale(*direction.shape)) * direction.reshape(w.shape)

    def _scale(self, rows: int, columns: int) -> float:
        if self.adjust_lr == "original":
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))


def orthogonalized(u: Array, steps: int, *, xp: ArrayModule) -> Array:
    """Return a matrix with the singular vectors of ``u`` and singular values near 1.

    Parameters
    ----------
    u : array, shape (A, B)
        The matrix.
    steps : int
        How many iterations.
    xp : module
        The array module.

    Returns
    -------
    array, shape (A, B)
        Zero where ``u`` is zero.
    """
    a, b, c = COEFFICIENTS
    x = u.T if u.shape[0] > u.shape[1] else u  # so that the square matrices are the small ones
    # The largest entry is divided out first: squares of large float32 numbers would overflow.
    largest = xp.abs(x).max()
    x = x / xp.maximum(largest, TINY)
    norm = xp.sqrt(xp.square(x).sum())
    x *= largest / xp.maximum(largest * norm, SMALLEST_NORM)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.T if u.shape[0] > u.shape[1] else x
