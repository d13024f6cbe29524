"""What wraps a module: time by layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from vitkit import nn
from vitkit.backend import ArrayModule, to_numpy
from vitkit.models import ViT
from vitkit.nn import Context
from vitkit.optim import AdamW
from vitkit.testing import strict_device


def ticking() -> Callable[[], float]:
    """Return a clock that is read once a second."""
    ticks = count()
    return lambda: float(next(ticks))


@pytest.fixture
def model(xp: ArrayModule) -> ViT:
    sizes = {"image_size": 8, "in_channels": 1, "num_classes": 3, "dim": 8, "depth": 2}
    return ViT("Ti/4", **sizes, num_heads=2, mlp_dim=16, drop_path=0.3, xp=xp)


def passed(model: ViT) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the output of a pass and the gradient of every parameter."""
    xp = model.xp
    images = xp.asarray(np.linspace(0, 1, 4 * 64, dtype="float32").reshape(4, 1, 8, 8))
    ctx = Context(train=True, seed=1)
    y = model.forward(images, ctx)
    model.zero_grad()
    model.backward(xp.ones_like(y), ctx)
    return to_numpy(y), {name: to_numpy(p.grad).copy() for name, p in model.named_parameters()}


def test_a_timed_block_computes_the_same_and_counts(model: ViT) -> None:
    optimizer = AdamW().attach(model)
    plain, gradients = passed(model)
    blocks = [nn.Timed(block, clock=ticking()) for block in model.blocks]
    model.blocks[:] = blocks
    for _ in range(2):
        again, theirs = passed(model)
        assert np.array_equal(plain, again)
        assert theirs.keys() == gradients.keys()
        assert all(np.array_equal(theirs[name], grad) for name, grad in gradients.items())
    for block in blocks:
        assert (block.forward_calls, block.backward_calls) == (2, 2)
        assert (block.forward_seconds, block.backward_seconds) == (2.0, 2.0)
    optimizer.step()  # the parameters are where they were
    blocks[0].reset()
    assert (blocks[0].forward_calls, blocks[0].backward_seconds) == (0, 0.0)
    assert nn.unwrap(model.blocks[0]) is blocks[0].inner


def test_what_fails_is_not_counted() -> None:
    layer = nn.Timed(nn.Linear(3, 2), xp=np)
    with pytest.raises(ValueError, match="Linear takes arrays"):
        layer(np.ones((1, 4), "float32"))
    assert (layer.forward_calls, layer.forward_seconds) == (0, 0.0)


def test_inference_is_counted_too(xp: ArrayModule) -> None:
    layer = nn.Timed(nn.Linear(3, 2), xp=xp)
    layer(xp.ones((1, 3), "float32"))
    assert (layer.forward_calls, layer.backward_calls) == (1, 0)
    assert layer.forward_seconds > 0


def test_a_device_is_waited_for_on_both_sides() -> None:
    xp = strict_device.xp
    layer = nn.Timed(nn.Linear(3, 2), xp=xp)
    x = xp.ones((1, 3), "float32")
    with strict_device.count_syncs() as syncs:
        layer(x)
    assert syncs == ["synchronize"] * 2
