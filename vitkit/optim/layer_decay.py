r"""Smaller learning rates for lower layers, read off the parameters' names.

.. math:: \eta_l = \eta \, \gamma^{L + 1 - l}

for a model of depth :math:`L`, where the layer :math:`l` is 0 for the embeddings, :math:`i + 1`
for block :math:`i`, and :math:`L + 1` for what comes after the blocks (final normalization and
head), which so keeps the full rate. From ELECTRA (Clark et al., 2020, arXiv:2003.10555), with the
layers counted as BEiT (arXiv:2106.08254) and timm count them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
EMBEDDING = re.compile(r"(?:^|\.)(?:patch_embed|cls_token|pos_embed)(?:\.|$)")


def layer_id(name: str, depth: int) -> int:
    """Return the layer of the parameter ``name`` in a model of ``depth`` blocks."""
    block = BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if EMBEDDING.search(name) else depth + 1


def lr_scales(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Return what each parameter's learning rate is multiplied by.

    Parameters
    ----------
    names : iterable of str
        Every parameter of the model, by dotted name.
    layer_decay : float
        The factor from one layer to the one below, in (0, 1]; 1 gives every parameter 1.

    Returns
    -------
    dict of str to float
        The scale for each name, in the order given.

    Raises
    ------
    ValueError
        If ``layer_decay`` is not 1 and no name is that of a block or an embedding, so that the
        setting would do nothing.
    """
    names = list(names)
    depth = max((int(block[1]) + 1 for name in names if (block := BLOCK.search(name))), default=0)
    layers = {name: layer_id(name, depth) for name in names}
    if layer_decay != 1 and all(layer == depth + 1 for layer in layers.values()):
        raise ValueError(
            f"layer_decay={layer_decay:g} needs parameters named 'blocks.<i>.*', 'patch_embed.*', "
            f"'cls_token' or 'pos_embed'; got {', '.join(names[:4])}. Use layer_decay=1."
        )
    return {name: layer_decay ** (depth + 1 - layer) for name, layer in layers.items()}
