"""What every operation means: pure array functions, forward and backward side by side."""

from vitkit.ops._op import Op as Op
from vitkit.ops._op import reference_only as reference_only
from vitkit.ops._profile import Profile as Profile
from vitkit.ops._profile import profiled as profiled
from vitkit.ops.activations import quick_gelu as quick_gelu
from vitkit.ops.activations import quick_gelu_backward as quick_gelu_backward
from vitkit.ops.activations import relu as relu
from vitkit.ops.activations import relu_backward as relu_backward
from vitkit.ops.activations import silu as silu
from vitkit.ops.activations import silu_backward as silu_backward
from vitkit.ops.activations import tanh as tanh
from vitkit.ops.activations import tanh_backward as tanh_backward
from vitkit.ops.attention import attention_weights as attention_weights
from vitkit.ops.attention import multi_head_attention as multi_head_attention
from vitkit.ops.attention import multi_head_attention_backward as multi_head_attention_backward
from vitkit.ops.attention_branch import attention_branch as attention_branch
from vitkit.ops.attention_branch import (
    attention_branch_backward_inplace as attention_branch_backward_inplace,
)
from vitkit.ops.dropout import drop_path as drop_path
from vitkit.ops.dropout import drop_path_backward as drop_path_backward
from vitkit.ops.dropout import dropout as dropout
from vitkit.ops.dropout import dropout_backward as dropout_backward
from vitkit.ops.dropout import path_gain as path_gain
from vitkit.ops.gelu import gelu as gelu
from vitkit.ops.gelu import gelu_backward as gelu_backward
from vitkit.ops.gelu import gelu_tanh as gelu_tanh
from vitkit.ops.gelu import gelu_tanh_backward as gelu_tanh_backward
from vitkit.ops.images import normalize_images as normalize_images
from vitkit.ops.layer_norm import layer_norm as layer_norm
from vitkit.ops.layer_norm import layer_norm_backward as layer_norm_backward
from vitkit.ops.linear import linear as linear
from vitkit.ops.linear import linear_backward as linear_backward
from vitkit.ops.losses import mean_squared_error as mean_squared_error
from vitkit.ops.losses import sigmoid_bce as sigmoid_bce
from vitkit.ops.losses import softmax_cross_entropy as softmax_cross_entropy
from vitkit.ops.mlp import mlp_branch as mlp_branch
from vitkit.ops.mlp import mlp_branch_backward_inplace as mlp_branch_backward_inplace
from vitkit.ops.norms import clip_by_norm_inplace as clip_by_norm_inplace
from vitkit.ops.norms import global_norm as global_norm
from vitkit.ops.patches import patchify as patchify
from vitkit.ops.patches import unpatchify as unpatchify
from vitkit.ops.pooling import pool_first as pool_first
from vitkit.ops.pooling import pool_first_backward as pool_first_backward
from vitkit.ops.pooling import pool_mean as pool_mean
from vitkit.ops.pooling import pool_mean_backward as pool_mean_backward
from vitkit.ops.positions import embed_positions as embed_positions
from vitkit.ops.positions import embed_positions_backward as embed_positions_backward
from vitkit.ops.softmax import softmax as softmax
from vitkit.ops.softmax import softmax_backward as softmax_backward
from vitkit.ops.updates import adam_update_inplace as adam_update_inplace
from vitkit.ops.updates import adamw_update_inplace as adamw_update_inplace
from vitkit.ops.updates import ema_update_inplace as ema_update_inplace
from vitkit.ops.updates import lamb_update_inplace as lamb_update_inplace
from vitkit.ops.updates import lion_update_inplace as lion_update_inplace
from vitkit.ops.updates import sgd_update_inplace as sgd_update_inplace
