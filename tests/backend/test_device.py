"""What only a real GPU can show; everything else runs on it through the ``xp`` fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitkit
from vitkit import nn, ops
from vitkit.backend import array_module, cuda_status, synchronize, to_numpy
from vitkit.checkpoint import load, save
from vitkit.data import Loader, Subset, digits
from vitkit.testing import assert_close

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {
    "image_size": 8, "in_channels": 1, "num_classes": 10, "dim": 32, "depth": 2, "num_heads": 2,
    "dropout": 0.1, "drop_path": 0.1, "init": "scratch",
}  # fmt: skip


@pytest.fixture
def cupy() -> Any:
    return array_module("cupy")


def one_pass(backend: str, dtype: str) -> dict[str, np.ndarray]:
    """Return logits, loss and every gradient of one training pass, on the host."""
    model = vitkit.ViT("Ti/2", backend=backend, dtype=dtype, **OPTIONS)
    xp, rng = model.xp, np.random.default_rng(0)
    model.head.weight.value[...] = xp.asarray(rng.normal(size=model.head.weight.shape))
    images = xp.asarray(rng.normal(size=(3, 1, 8, 8)), dtype=dtype)
    ctx = nn.Context(train=True, seed=3)
    logits = model.forward(images, ctx)
    loss, dlogits = ops.softmax_cross_entropy(logits, xp.asarray([1, 0, 9]), xp=xp)
    dimages = model.backward(dlogits, ctx)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {"logits": logits, "loss": loss, "images": dimages}
    return {name: to_numpy(array) for name, array in found.items()}


def test_what_was_found_is_a_device() -> None:
    status = cuda_status()
    assert status.usable
    assert status.cause == "ok"
    assert "CUDA runtime" in status.detail


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_pass_is_the_same_on_both(dtype: str) -> None:
    expected = one_pass("numpy", dtype)
    for name, array in one_pass("cupy", dtype).items():
        assert array.dtype == dtype
        assert_close(array, expected[name], reduction=17 * 32)


def test_there_and_back_again_bit_for_bit(cupy: Any) -> None:
    model = vitkit.ViT("Ti/2", **OPTIONS)
    before = model.state_dict()
    assert model.to("cupy").xp is cupy
    assert isinstance(model.head.weight.value, cupy.ndarray)
    for name, array in model.to("numpy").state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_checkpoint_of_the_device_opens_on_the_host(tmp_path: Path) -> None:
    model = vitkit.ViT("Ti/2", backend="cupy", **OPTIONS)
    save(tmp_path / "it", {"model": model.state_dict()}, {})
    host = vitkit.ViT("Ti/2", seed=None, **OPTIONS)
    host.load_state_dict(load(tmp_path / "it").arrays["model"])
    for name, array in host.state_dict().items():
        np.testing.assert_array_equal(array, to_numpy(dict(model.named_parameters())[name].value))


def test_dropout_draws_the_same_masks(cupy: Any) -> None:
    ones = np.ones((40, 50), "float32")
    on_host = ops.dropout(ones, 0.3, (1, 2, 3), xp=np)
    np.testing.assert_array_equal(
        to_numpy(ops.dropout(cupy.asarray(ones), 0.3, (1, 2, 3), xp=cupy)), on_host
    )


def test_it_learns_there(cupy: Any) -> None:
    data = Subset(digits().train, np.arange(256))
    model = vitkit.ViT("Ti/2", backend="cupy", **{**OPTIONS, "dropout": 0.0, "drop_path": 0.0})
    trainer = vitkit.Trainer(model, vitkit.optim.AdamW(3e-3), max_grad_norm=1.0)
    trainer.fit(Loader(data, 32, shuffle=True), epochs=15)
    synchronize(cupy)
    assert trainer.evaluate(Loader(data, 256)).accuracy > 0.9
