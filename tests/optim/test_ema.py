"""The average of weights: its formula, its swap with the model's weights, its state."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from vitkit.backend import ArrayModule
from vitkit.nn.module import Module
from vitkit.optim import EMA, SGD
from vitkit.testing import assert_close


class EvaluationError(Exception):
    pass


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("warmup", [True, False])
def test_follows_the_formula(warmup: bool, dtype: str, make_model: Any, set_gradients: Any) -> None:
    model = make_model(dtype)
    optimizer = SGD(0.1).attach(model)
    ema = EMA(model, 0.6, warmup=warmup)
    expected = model.state_dict()
    for t in range(1, 13):
        set_gradients(model, t)
        optimizer.step()
        ema.update()
        beta = min(0.6, (1 + t) / (10 + t)) if warmup else 0.6
        for name, value in model.state_dict().items():
            expected[name] = (beta * expected[name] + (1 - beta) * value).astype(dtype)
    assert ema.updates == 12
    for name, value in ema.weights().items():
        assert value.dtype == dtype
        assert_close(value, expected[name], reduction=12)


def test_follows_torch(make_model: Any, set_gradients: Any, torch: Any) -> None:
    swa = torch.optim.swa_utils

    model = make_model()
    optimizer = SGD(0.1).attach(model)
    mirror = torch.nn.ParameterDict()
    names = {name: name.replace(".", "_") for name in model.state_dict()}

    def copy() -> None:
        for name, value in model.state_dict().items():
            mirror[names[name]] = torch.nn.Parameter(torch.from_numpy(value))

    copy()
    average = swa.AveragedModel(mirror, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9))
    average.update_parameters(mirror)  # torch's first update copies the weights
    ema = EMA(model, 0.9, warmup=False)
    for step in range(10):
        set_gradients(model, step)
        optimizer.step()
        ema.update()
        copy()
        average.update_parameters(mirror)
    for name, value in ema.weights().items():
        assert_close(value, average.module[names[name]].detach().numpy())


def test_gives_the_model_the_average_for_a_while(make_model: Any, set_gradients: Any) -> None:
    model = make_model("float32")
    ema = EMA(model, 0.5)
    optimizer = SGD(0.1).attach(model)
    set_gradients(model, 0)
    optimizer.step()
    ema.update()
    own, averaged = model.state_dict(), ema.weights()
    assert any((own[name] != averaged[name]).any() for name in own)
    with contextlib.suppress(EvaluationError), ema.applied():
        inside = model.state_dict()
        with pytest.raises(RuntimeError, match="holds the averaged weights now"):
            ema.update()
        with pytest.raises(RuntimeError, match="holds the averaged weights now"), ema.applied():
            pass
        raise EvaluationError
    assert ema.updates == 1
    for name in own:
        np.testing.assert_array_equal(inside[name], averaged[name])
        np.testing.assert_array_equal(model.state_dict()[name], own[name])
        np.testing.assert_array_equal(ema.weights()[name], averaged[name])


def test_continues_from_its_state_bit_for_bit(make_model: Any, set_gradients: Any) -> None:
    def advance(model: Module, ema: EMA, steps: range) -> dict[str, np.ndarray]:
        optimizer = SGD(0.1).attach(model)
        for step in steps:
            set_gradients(model, step)
            optimizer.step()
            ema.update()
        return ema.state_dict()

    model, resumed = make_model("float32"), make_model("float32")
    ema = EMA(model, 0.999)
    state = advance(model, ema, range(3))
    assert state["updates"] == 3
    resumed.load_state_dict(model.state_dict())
    other = EMA(resumed, 0.999)
    other.load_state_dict(state)
    straight, again = (
        advance(model, ema, range(3, 6)),
        advance(resumed, other, range(3, 6)),
    )
    assert straight.keys() == again.keys()
    assert all(again[name].tobytes() == array.tobytes() for name, array in straight.items())


def test_waits_for_no_device(make_model: Any) -> None:
    from vitkit.testing import strict_device

    model = make_model("float32", strict_device.xp)
    ema = EMA(model)
    with strict_device.count_syncs() as syncs:
        ema.update()
        with ema.applied():
            pass
    assert syncs == []


def test_errors(make_model: Any, xp: ArrayModule) -> None:
    model = make_model()
    wrong: tuple[Any, ...] = (1, -0.1, float("nan"), "0.9")
    for decay in wrong:
        with pytest.raises(ValueError, match=r"decay must be a number >= 0 and < 1; got"):
            EMA(model, decay)
    with pytest.raises(RuntimeError, match="no arrays yet"):
        EMA(Module())
    ema = EMA(model)
    with pytest.raises(ValueError, match="updates: missing"):
        ema.load_state_dict(ema.weights())
    model.place(xp, dtype="float64")
    with pytest.raises(RuntimeError, match=r"placed or moved.*Make EMA\(model\) again"):
        ema.update()
