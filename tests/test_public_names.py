"""The names that users may rely on, written down: one that goes away fails here."""

from __future__ import annotations

import importlib
import inspect
from types import FunctionType, ModuleType

import pytest

import vitkit
from vitkit.ops import Op

NAMES = {
    "vitkit": """
        BackendError CheckpointError ConfigError DataError PluginError Trainer ViT ViTConfig
        VitkitError __version__ data hookimpl nn ops optim plugins testing
    """,
    "vitkit.ops": """
        Op Profile profiled reference_only
        adam_update_inplace adamw_update_inplace attention_branch attention_branch_backward_inplace
        attention_weights clip_by_norm_inplace drop_path drop_path_backward
        dropout dropout_backward ema_update_inplace embed_positions embed_positions_backward gelu
        gelu_backward gelu_tanh gelu_tanh_backward global_norm lamb_update_inplace layer_norm
        layer_norm_backward linear linear_backward lion_update_inplace mean_squared_error
        mlp_branch mlp_branch_backward_inplace multi_head_attention multi_head_attention_backward
        normalize_images patchify path_gain pool_first
        pool_first_backward pool_mean pool_mean_backward quick_gelu quick_gelu_backward relu
        relu_backward sgd_update_inplace sigmoid_bce silu silu_backward softmax softmax_backward
        softmax_cross_entropy tanh tanh_backward unpatchify
    """,
    "vitkit.nn": """
        ACTIVATIONS Activation ActivationPair Attention Block Checkpoint Context DropPath Dropout
        FirstToken LAYERS LayerNorm Linear MLP MeanToken Module Parameter PatchEmbed PatchProjection
        Timed unwrap
    """,
    "vitkit.models": "MODELS VARIANTS ViT ViTConfig",
    "vitkit.optim": """
        Adam AdamW Constant Cosine EMA LAMB Linear Lion Optimizer Rsqrt SGD Schedule Step
        clip_global_norm
    """,
    "vitkit.data": """
        ArrayDataset Batch Dataset FolderDataset HorizontalFlip Loader RandomAffine RandomCrop
        SOURCES Splits Subset Transform channel_statistics check_arrays cifar10 cifar100 data_dir
        digits fashion_mnist find folder mnist npz order prepare read_idx read_image split verify
    """,
    "vitkit.plugins": """
        API Failure Plugin PluginError PluginWarning Plugins Registries Registry active hookimpl
        load registries unload
    """,
    "vitkit.testing": """
        Check ConformanceError Skip assert_close check_activation check_callback check_command
        check_dataset check_kernel check_layer check_loss check_model check_op check_optimizer
        check_schedule check_transform directional_derivative_error gradient_error
    """,
}


def public_names(module: ModuleType) -> set[str]:
    """Return what a package re-exports: neither private nor one of its own files."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


@pytest.mark.parametrize("package", [name for name in NAMES if name != "vitkit"])
def test_public_names(package: str) -> None:
    assert public_names(importlib.import_module(package)) == set(NAMES[package].split())


def test_the_package_s_own_names() -> None:
    assert set(vitkit.__all__) == set(NAMES["vitkit"].split())
    assert len(vitkit.__all__) == len(set(vitkit.__all__))
    assert vitkit.__all__[0] == "ViT"
    for name in vitkit.__all__:
        assert getattr(vitkit, name) is not None
    assert set(dir(vitkit)) == set(vitkit.__all__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'vitkit' has no attribute 'Vit'"):
        _ = vitkit.Vit


@pytest.mark.parametrize("package", NAMES)
def test_everything_public_says_what_it_is(package: str) -> None:
    module = importlib.import_module(package)
    for name in NAMES[package].split():
        value = getattr(module, name)
        if isinstance(value, (type, FunctionType, Op)):
            assert inspect.getdoc(value), name
