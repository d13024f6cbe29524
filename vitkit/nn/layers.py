"""The table of layers known by name, and the places that they can take in a block."""

from __future__ import annotations

from vitkit.nn.attention import Attention
from vitkit.nn.layer_norm import LayerNorm
from vitkit.nn.mlp import MLP
from vitkit.registry import BUILTIN, Registry

PARTS = ("mlp", "norm", "attention")
"""The places of a block: what a layer's entry in :data:`LAYERS` may have as its ``part``."""

LAYERS = Registry("layer", late=True)
"""The layers that a model knows by name, those of plugins among them.

``LAYERS.entry(name).details["part"]`` says which place of a block a layer can take, ``"mlp"``,
``"norm"`` or ``"attention"``; it is then made with the arguments of :class:`MLP`,
:class:`LayerNorm` or :class:`Attention`.
"""

LAYERS.add("mlp", MLP, plugin=BUILTIN, part="mlp")
LAYERS.add("layer_norm", LayerNorm, plugin=BUILTIN, part="norm")
LAYERS.add("attention", Attention, plugin=BUILTIN, part="attention")
