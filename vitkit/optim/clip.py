"""Gradient clipping by the global norm; the equation is in :mod:`vitkit.ops.norms`."""

from __future__ import annotations

from collections.abc import Sequence

from vitkit.backend import Array, ArrayModule
from vitkit.nn.place import FlatGroup
from vitkit.ops.norms import clip_by_norm_inplace, global_norm
from vitkit.validate import number


def clip_global_norm(
    groups: Sequence[FlatGroup], max_norm: float, *, xp: ArrayModule, norm: Array | None = None
) -> Array:
    """Scale all gradients in place so that their global norm is at most ``max_norm``.

    The equation is that of :func:`vitkit.ops.clip_by_norm_inplace`. The device is not waited for:
    that the gradients are within the limit is found there.

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
    for group in groups:
        clip_by_norm_inplace(group.grads, norm, max_norm, xp=xp)
    return norm
