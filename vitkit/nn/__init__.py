"""Layers: parameters, and what to keep of forward for backward."""

from vitkit.nn.activation import ACTIVATIONS as ACTIVATIONS
from vitkit.nn.activation import Activation as Activation
from vitkit.nn.activation import ActivationPair as ActivationPair
from vitkit.nn.attention import Attention as Attention
from vitkit.nn.block import Block as Block
from vitkit.nn.context import Context as Context
from vitkit.nn.dropout import Dropout as Dropout
from vitkit.nn.dropout import DropPath as DropPath
from vitkit.nn.layer_norm import LayerNorm as LayerNorm
from vitkit.nn.layers import LAYERS as LAYERS
from vitkit.nn.linear import Linear as Linear
from vitkit.nn.mlp import MLP as MLP
from vitkit.nn.module import Module as Module
from vitkit.nn.parameter import Parameter as Parameter
from vitkit.nn.patch_embed import PatchEmbed as PatchEmbed
from vitkit.nn.patch_embed import PatchProjection as PatchProjection
from vitkit.nn.pool import FirstToken as FirstToken
from vitkit.nn.pool import MeanToken as MeanToken
from vitkit.nn.wrappers import Checkpoint as Checkpoint
from vitkit.nn.wrappers import Timed as Timed
from vitkit.nn.wrappers import unwrap as unwrap
