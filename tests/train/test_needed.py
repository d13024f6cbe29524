"""What a checkpoint says of the plugins that it was made with, where they are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit.checkpoint.files as files
from vitkit import ops
from vitkit.data import ArrayDataset
from vitkit.errors import CheckpointError
from vitkit.models import MODELS, ViT
from vitkit.nn import ACTIVATIONS, LAYERS, MLP
from vitkit.train import Preprocess, restore
from vitkit.train.needed import Needed, missing, needed
from vitkit.train.restore import documents

MISH = {"name": "mish", "source": "entry point", "origin": "vitkit-mish", "version": "1.2.post1"}


def plugin(**changes: Any) -> Needed:
    return Needed(**{**MISH, "uses": ("activation mish",), **changes})


@pytest.mark.parametrize(
    ("changes", "label", "cure"),
    [
        ({}, "mish (vitkit-mish 1.2.post1)", "pip install vitkit-mish==1.2.post1"),
        ({"name": "vitkit-mish"}, "vitkit-mish 1.2.post1", "pip install vitkit-mish==1.2.post1"),
        (
            {"source": "file", "origin": "/a/mish.py", "version": "sha256 0a"},
            "mish (/a/mish.py sha256 0a)",
            "load it with --plugin /a/mish.py",
        ),
        (
            {"source": "object", "origin": "", "version": ""},
            "mish",
            "load it with vitkit.plugins.load",
        ),
        # A checkpoint may come from a stranger, and its reader may copy the line into a shell.
        (
            {"origin": "mish; rm -rf ~"},
            "mish (mish; rm -rf ~ 1.2.post1)",
            "load it with vitkit.plugins.load",
        ),
        ({"version": "1 -i http://x"}, None, "load it with vitkit.plugins.load"),
        ({"origin": "--upgrade"}, None, "load it with vitkit.plugins.load"),
        (
            {"source": "file", "origin": "/a b/$(x).py"},
            None,
            "load it with --plugin '/a b/$(x).py'",
        ),
    ],
)
def test_how_a_plugin_is_called_and_got(
    changes: dict[str, str], label: str | None, cure: str
) -> None:
    found = plugin(**changes)
    assert found.cure == cure
    assert label in (None, found.label)


@pytest.mark.parametrize(
    "listed", [None, 3, "mish", {}, [None, 3, []], [["uses"]], [{"uses": 3, "name": None}]]
)
def test_what_is_no_list_of_plugins_needs_nothing(listed: Any) -> None:
    assert [each.uses for each in needed({"plugins": listed})] in ([], [()])
    assert missing(needed({"plugins": listed}), ["activation mish"]) == []
    assert needed({}) == []


def test_one_line_for_each_plugin_with_all_that_is_missing_of_it() -> None:
    document = {"plugins": [{**MISH, "uses": ["activation mish", "layer swiglu", "loss focal"]}]}
    (found,) = needed(document)
    assert found == plugin(uses=("activation mish", "layer swiglu", "loss focal"))
    other = plugin(name="other", uses=("loss other",))
    assert missing([found, other], ["layer swiglu", "activation mish", "optimizer muon"]) == [
        "It was made with the activation 'mish' and the layer 'swiglu' of plugin 'mish "
        "(vitkit-mish 1.2.post1)', which is not here: pip install vitkit-mish==1.2.post1"
    ]


@pytest.fixture
def zoo() -> Iterator[dict[str, str]]:
    """Register a plugin's parts of a model, and forget them when the test ends."""
    ACTIVATIONS.add("mish", ops.silu, ops.silu_backward, plugin="zoo")
    LAYERS.add("swiglu", MLP, plugin="zoo", part="mlp")
    MODELS.add("Mu", {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}, plugin="zoo")
    yield {"activation": "mish", "mlp": "swiglu"}
    forget()


def forget() -> None:
    for registry in (ACTIVATIONS, LAYERS, MODELS):
        registry.remove("zoo")


def saved(
    path: Path, data: ArrayDataset, plugins: list[dict[str, Any]], **options: Any
) -> dict[str, np.ndarray]:
    """Write a checkpoint of a model of a plugin's size, and return its weights."""
    model = ViT("Mu/4", image_size=8, in_channels=1, num_classes=4, **options)
    document = documents(model, Preprocess.of(data), data.classes, plugins)
    files.save(path, {"model": model.state_dict()}, {"trainer": document})
    return model.state_dict()


def test_weights_are_loaded_without_the_plugin_that_has_only_named_their_size(
    zoo: dict[str, str], tmp_path: Path, make_data: Callable[..., ArrayDataset]
) -> None:
    weights = saved(tmp_path / "c", make_data(), [{**MISH, "uses": ["model Mu"]}])
    forget()
    model = restore(tmp_path / "c").model
    assert (model.config.variant, model.config.dim) == ("Mu/4", 16)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])


def test_a_model_without_its_plugin_says_which(
    zoo: dict[str, str], tmp_path: Path, make_data: Callable[..., ArrayDataset]
) -> None:
    uses = ["activation mish", "layer swiglu", "model Mu", "optimizer muon"]
    saved(tmp_path / "c", make_data(), [{**MISH, "uses": uses}], **zoo)
    restore(tmp_path / "c")
    forget()
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path / "c")
    assert str(error.value) == (
        "It was made with the activation 'mish' and the layer 'swiglu' of plugin 'mish "
        "(vitkit-mish 1.2.post1)', which is not here: pip install vitkit-mish==1.2.post1"
    )


def test_a_model_whose_plugin_nobody_wrote_down_lists_what_is_known(
    zoo: dict[str, str], tmp_path: Path, make_data: Callable[..., ArrayDataset]
) -> None:
    saved(tmp_path / "c", make_data(), [], **zoo)
    forget()
    with pytest.raises(CheckpointError, match="activation: got 'mish'; expected one of gelu"):
        restore(tmp_path / "c")


def test_a_checkpoint_of_before_plugins_were_written_down_is_read(
    tmp_path: Path, make_data: Callable[..., ArrayDataset], make_model: Callable[..., ViT]
) -> None:
    model, data = make_model(), make_data()
    document = documents(model, Preprocess.of(data), data.classes)
    del document["plugins"]
    for name in ("mlp", "norm", "attention"):
        del document["model"][name]
    files.save(tmp_path / "c", {"model": model.state_dict()}, {"trainer": document})
    assert restore(tmp_path / "c").model.config == model.config
