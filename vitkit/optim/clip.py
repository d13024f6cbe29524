r"""Gradient clipping by the global norm (Pascanu et al., 2013, arXiv:1211.5063).

.. math:: g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right)

in the form of ``torch.nn.utils.clip_grad_norm_``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitkit.backend import Array, ArrayModule
from vitkit.nn.place import FlatGroup
from vitkit.ops.norms import global_norm
from vitkit.validate import number


def clip_global_norm(
    groups: Sequence[FlatGroup], max_norm: float, *, xp: ArrayModule, norm: Array | None = None
) -> Array:
    """Scale all gradients in place so that their global norm is at most ``max_norm``.

    The device is not waited for: gradients within the limit are multiplied by one.

    Parameters
    ----------
    groups : sequence of FlatGroup
        The model's ``groups``.
    max_norm : float
        The limit :math:`c`, above 0.
    xp : module
        The array module.
    norm : array, shape (), optional
        The norm, where it is known already.

    Returns
    -------
    array, shape ()
        The norm before clipping, on the device.

    Raises
    ------
    ValueError
        If ``max_norm`` is not a number above 0.
    """
    max_norm = number("max_norm", max_norm, above=0)
    if norm is None:
        norm = global_norm([group.grads for group in groups], xp=xp)
    scale = xp.minimum(1.0, max_norm / (norm + 1e-6))
    for group in groups:
        gradient = group.grads
        gradient *= scale
    return norm
