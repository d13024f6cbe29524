r"""The update rules of the optimizers, each in place on arrays of any shape.

Throughout, :math:`w` are the weights, :math:`g` their gradient, :math:`\eta` the learning rate,
:math:`\lambda` the weight decay and :math:`t = 1, 2, 3, \ldots` the count of updates, this one
included; state starts at zero, and the gradient is read, never written.

SGD with momentum :math:`\mu` (Sutskever et al., 2013; in the form of ``torch.optim.SGD``):

.. math:: g' = g + \lambda w, \qquad m \leftarrow \mu m + g', \qquad
          w \leftarrow w - \eta \cdot \begin{cases}
          g' + \mu m & \text{Nesterov} \\ m & \text{otherwise} \end{cases}

Adam's direction :math:`d` (Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 1):

.. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
          v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
          d = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

============ ==========================================================================
Adam         :math:`w \leftarrow w - \eta d`, with :math:`g + \lambda w` in place of
             :math:`g`: the decay passes through the moments (``torch.optim.Adam``)
AdamW        :math:`w \leftarrow w - \eta \lambda w - \eta d`: the decay does not (Loshchilov
             and Hutter, 2019, arXiv:1711.05101; in the form of ``torch.optim.AdamW``)
LAMB         :math:`u = d + \lambda w`, :math:`w \leftarrow w - \eta \frac{\lVert w
             \rVert}{\lVert u \rVert} u` (You et al., 2020, arXiv:1904.00962, Algorithm 2)
============ ==========================================================================

Lion (Chen et al., 2023, arXiv:2302.06675, Algorithm 2):

.. math:: w \leftarrow w - \eta \, (\operatorname{sign}(\beta_1 m + (1 - \beta_1) g)
          + \lambda w), \qquad m \leftarrow \beta_2 m + (1 - \beta_2) g

Exponential moving average of the weights (Polyak averaging with a decay):

.. math:: \overline w \leftarrow \beta \overline w + (1 - \beta) w

All of them but LAMB treat each entry alone, so one call may serve a flat buffer that holds many
parameters; LAMB needs one call for each parameter. Hyper-parameters are Python numbers, which
leave a float32 array float32; nothing waits for the device. Where only the device knows how many
updates there were, :math:`t`, or a decay made of it, is an array of one number there.
"""

from __future__ import annotations

import math

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def sgd_update_inplace(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    xp: ArrayModule,
) -> None:
    r"""Step down the gradient, by way of a velocity ``m`` where there is momentum.

    .. math:: g' = g + \lambda w, \qquad m \leftarrow \mu m + g', \qquad
              w \leftarrow w - \eta m

    or :math:`w \leftarrow w - \eta (g' + \mu m)` with Nesterov's look-ahead. As
    ``torch.optim.SGD`` without dampening.

    Parameters
    ----------
    w, g : array
        Weights, which are changed, and their gradient, of one shape and dtype.
    m : array or None
        The velocity, which is changed; not used, and may be None, where ``momentum`` is 0.
    lr, momentum, weight_decay : float
        :math:`\eta`, :math:`\mu` and :math:`\lambda`.
    nesterov : bool
        Whether to look ahead.
    xp : module
        The array module.
    """
    if weight_decay:
        g = g + weight_decay * w
    if momentum:
        m *= momentum
        m += g
        g = g + momentum * m if nesterov else m
    w -= lr * g


@Op
def adam_update_inplace(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int | Array,
    xp: ArrayModule,
) -> None:
    r"""Step along Adam's direction; weight decay is added to the gradient.

    .. math:: w \leftarrow w - \eta \, d(g + \lambda w)

    with the direction :math:`d` of this module's docstring (arXiv:1412.6980). As
    ``torch.optim.Adam``.

    Parameters
    ----------
    w, g, m, v : array
        Weights, gradient, and running means of the gradient and of its square, of one shape and
        dtype; all but ``g`` are changed.
    lr, beta1, beta2, eps, weight_decay : float
        :math:`\eta, \beta_1, \beta_2, \epsilon` and :math:`\lambda`.
    step : int, or array of shape ()
        Which update this is, from 1.
    xp : module
        The array module.
    """
    if weight_decay:
        g = g + weight_decay * w
    w -= lr * _adam_direction(g, m, v, beta1=beta1, beta2=beta2, eps=eps, step=step, xp=xp)


@Op
def adamw_update_inplace(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int | Array,
    xp: ArrayModule,
) -> None:
    r"""Step along Adam's direction; weight decay shrinks the weights by itself.

    .. math:: w \leftarrow (1 - \eta \lambda) w - \eta \, d(g)

    with the direction :math:`d` of this module's docstring (arXiv:1711.05101). The decay is
    scaled by the learning rate, as in ``torch.optim.AdamW``.

    Parameters
    ----------
    w, g, m, v, lr, beta1, beta2, eps, weight_decay, step, xp : as for Adam
        See :func:`adam_update_inplace`.
    """
    w *= 1 - lr * weight_decay
    w -= lr * _adam_direction(g, m, v, beta1=beta1, beta2=beta2, eps=eps, step=step, xp=xp)


@Op
def lamb_update_inplace(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int | Array,
    xp: ArrayModule,
) -> None:
    r"""Step along Adam's direction, as far as the weights are long.

    .. math:: u = d(g) + \lambda w, \qquad
              w \leftarrow w - \eta \frac{\lVert w \rVert}{\lVert u \rVert} u

    with the direction :math:`d` of this module's docstring. This is Algorithm 2 of
    arXiv:1904.00962: Adam's bias correction, :math:`\phi(z) = z` (the ratio is not clamped), the
    Euclidean norm, and no normalization of the gradient beforehand. Where either norm is zero
    the ratio is 1.

    Parameters
    ----------
    w, g, m, v, lr, beta1, beta2, eps, weight_decay, step, xp : as for Adam
        See :func:`adam_update_inplace`; ``w`` is one whole parameter, whose norm counts.
    """
    u = _adam_direction(g, m, v, beta1=beta1, beta2=beta2, eps=eps, step=step, xp=xp)
    if weight_decay:
        u += weight_decay * w
    w_norm, u_norm = xp.sqrt(xp.square(w).sum()), xp.sqrt(xp.square(u).sum())
    usable = (w_norm > 0) & (u_norm > 0)
    ratio = xp.where(usable, w_norm / xp.where(usable, u_norm, 1.0), 1.0)
    w -= (lr * ratio) * u


@Op
def lion_update_inplace(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    xp: ArrayModule,
) -> None:
    r"""Step by the sign of a running mean of the gradient.

    .. math:: w \leftarrow w - \eta \, (\operatorname{sign}(\beta_1 m + (1 - \beta_1) g)
              + \lambda w), \qquad m \leftarrow \beta_2 m + (1 - \beta_2) g

    (arXiv:2302.06675, Algorithm 2.) The sign looks at the present gradient more than the kept
    mean does, since :math:`\beta_1 < \beta_2`.

    Parameters
    ----------
    w, g, m : array
        Weights, gradient and its running mean, of one shape and dtype; all but ``g`` are changed.
    lr, beta1, beta2, weight_decay : float
        :math:`\eta, \beta_1, \beta_2` and :math:`\lambda`.
    xp : module
        The array module.
    """
    u = xp.sign(beta1 * m + (1 - beta1) * g)
    if weight_decay:
        u += weight_decay * w
    w -= lr * u
    m *= beta2
    m += (1 - beta2) * g


@Op
def ema_update_inplace(average: Array, w: Array, *, decay: float | Array, xp: ArrayModule) -> None:
    r"""Move the average of the weights towards the weights.

    .. math:: \overline w \leftarrow \overline w + (1 - \beta) (w - \overline w)

    Parameters
    ----------
    average, w : array
        The average, which is changed, and the weights, of one shape and dtype.
    decay : float, or array of shape ()
        :math:`\beta`, how much of the average stays.
    xp : module
        The array module.
    """
    rest = 1 - decay
    if isinstance(decay, xp.ndarray):
        rest = xp.asarray(rest, dtype=w.dtype)
    average += rest * (w - average)


def _adam_direction(
    g: Array,
    m: Array,
    v: Array,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    step: int | Array,
    xp: ArrayModule,
) -> Array:
    """Update both moments in place and return the bias-corrected direction, a new array."""
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * xp.square(g)
    first, second = 1 - beta1**step, 1 - beta2**step
    if isinstance(step, xp.ndarray):
        # In the dtype of the moments, as numbers of Python are taken; wider ones would widen.
        first = xp.asarray(first, dtype=m.dtype)
        root = xp.asarray(xp.sqrt(second), dtype=v.dtype)
    else:
        root = math.sqrt(second)
    denominator = xp.sqrt(v)
    denominator /= root
    denominator += eps
    direction = m / denominator
    direction /= first
    return direction
