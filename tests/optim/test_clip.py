"""Clipping against torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit.ops import profiled
from vitkit.optim import clip_global_norm
from vitkit.testing import assert_close


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e6])
def test_follows_torch(
    max_norm: float, dtype: str, make_model: Any, set_gradients: Any, torch: Any, to_torch: Any
) -> None:
    model = make_model(dtype)
    weights = to_torch(model)
    for name, gradient in set_gradients(model, 0).items():
        weights[name].grad = torch.from_numpy(gradient)
    expected = torch.nn.utils.clip_grad_norm_(list(weights.values()), max_norm)
    assert (expected > max_norm) == (max_norm < 1e6)
    norm = clip_global_norm(model.groups, max_norm, xp=model.xp)
    assert norm.shape == ()
    assert norm.dtype == dtype
    assert_close(norm, expected.numpy())
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == dtype
        assert_close(parameter.grad, weights[name].grad.numpy())


def test_leaves_gradients_within_the_limit_as_they_are(make_model: Any, set_gradients: Any) -> None:
    model = make_model("float32")
    before = set_gradients(model, 0)
    clip_global_norm(model.groups, 1e6, xp=model.xp)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.grad.tolist(), before[name].tolist())


@pytest.mark.parametrize("max_norm", [0, -1.0, float("nan"), None])
def test_refuses_a_limit_that_is_none(max_norm: Any, make_model: Any) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="max_norm must be a number > 0; got"):
        clip_global_norm(model.groups, max_norm, xp=model.xp)


@pytest.mark.parametrize("max_norm", [0.5, 1e6], ids=["clipped", "within"])
def test_is_one_call_of_the_operation_for_each_buffer(
    max_norm: float, make_model: Any, set_gradients: Any
) -> None:
    model = make_model("float32")
    set_gradients(model, 0)
    with profiled() as profile:
        clip_global_norm(model.groups, max_norm, xp=model.xp)
    assert {name: spent.calls for name, spent in profile.operations.items()} == {
        "global_norm": 1,
        "clip_by_norm_inplace": len(model.groups),
    }
