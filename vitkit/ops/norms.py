r"""The norm of many arrays taken as one vector, and clipping by it.

.. math:: \lVert g \rVert = \sqrt{\sum_i \sum_j g_{ij}^2}, \qquad
          g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right)

with the limit :math:`c` (Pascanu et al., 2013, arXiv:1211.5063), in the form of
``torch.nn.utils.clip_grad_norm_``.
"""

from __future__ import annotations

from collections.abc import Iterable

from vitkit.backend import Array, ArrayModule
from vitkit.ops._op import Op


@Op
def global_norm(arrays: Iterable[Array], *, xp: ArrayModule) -> Array:
    """Return the Euclidean norm of all entries of all arrays, without waiting for the device.

    Parameters
    ----------
    arrays : iterable of array
        Any shapes, one floating dtype. Squares are summed in that dtype: float32 entries above
        about 1e19 give infinity, as in PyTorch.
    xp : module
        The array module.

    Returns
    -------
    array, shape ()
        The norm, on the device, in the arrays' dtype; float32 zero where there are no arrays.
    """
    # Not vdot: BLAS adds float32 one after another, which loses three digits in a large model.
    squares = [xp.square(array).sum() for array in arrays]
    if not squares:
        return xp.zeros((), "float32")
    return xp.asarray(xp.sqrt(sum(squares[1:], start=squares[0])))


@Op
def clip_by_norm_inplace(g: Array, norm: Array, max_norm: float, *, xp: ArrayModule) -> None:
    r"""Scale an array so that the norm that it has a part in is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right)

    As ``torch.nn.utils.clip_grad_norm_``. The device is not waited for.

    Parameters
    ----------
    g : array
        Any shape; changed. Where the norm is within the limit its numbers stay what they are.
    norm : array, shape ()
        The norm of all arrays that are clipped together; see :func:`global_norm`.
    max_norm : float
        The limit :math:`c`, above 0.
    xp : module
        The array module.
    """
    g *= clip_factor(norm, max_norm, xp)


def clip_factor(norm: Array, max_norm: float, xp: ArrayModule) -> Array:
    """Return what clipping multiplies by, at most 1, in the norm's dtype and on its device."""
    return xp.minimum(1.0, max_norm / (norm + 1e-6))
