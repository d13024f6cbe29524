r"""The norm of many arrays taken as one vector.

.. math:: \lVert g \rVert = \sqrt{\sum_i \sum_j g_{ij}^2}

What gradient clipping compares to its limit (Pascanu et al., 2013, arXiv:1211.5063).
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
