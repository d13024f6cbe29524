"""A profile of training steps: it adds up to the step, names nearly all of it, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit.backend import ArrayModule
from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.ops import Op, Profile
from vitkit.ops._op import watch
from vitkit.train import Trainer, TrainState
from vitkit.train.callbacks import Callback, Profiling
from vitkit.train.callbacks.profiling import REST, as_lines, table

MakeData = Callable[..., ArrayDataset]
MakeModel = Callable[..., ViT]


class Seconds(Callback):
    """Writes down the time spent training after each step."""

    def __init__(self) -> None:
        self.after: list[float] = []

    def on_step_end(self, state: TrainState, log: Any) -> None:
        self.after.append(state.seconds)


class Busy(Callback):
    """Computes at the end of an epoch, as validation does."""

    def __init__(self, model: ViT) -> None:
        self.model = model

    def on_epoch_end(self, state: TrainState) -> None:
        images = np.zeros((64, 1, 8, 8), "float32")
        for _ in range(20):
            self.model(self.model.xp.asarray(images))


def test_the_rows_add_up_to_the_step_and_nearly_all_is_named(xp: ArrayModule) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8 * 32, 3, 32, 32), np.uint8)
    labels = rng.integers(0, 10, len(images))
    data = ArrayDataset(images, labels, classes=[str(k) for k in range(10)])
    sizes = {"image_size": 32, "num_classes": 10, "dim": 128, "depth": 2, "num_heads": 2}
    model = ViT("Ti/4", **sizes, mlp_dim=512, xp=xp)
    found: list[dict[str, Any]] = []
    seconds = Seconds()
    profiling = Profiling(found.append, steps=4, warmup=2)
    Trainer(model, callbacks=[profiling, seconds], max_grad_norm=1.0).fit(Loader(data, 32))
    (result,) = found
    rows = {row["name"]: row for row in result["rows"]}
    assert result["steps"] == 4
    total = sum(row["seconds"] for row in rows.values())
    assert total == pytest.approx(result["seconds"], rel=1e-9)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    measured = (seconds.after[5] - seconds.after[1]) / 4  # by the trainer's own clock
    assert total == pytest.approx(measured, rel=0.05)
    assert rows[REST]["share"] < 0.05
    operations = sum(row["share"] for row in rows.values() if row["operation"])
    assert 0.3 < operations < 1
    assert rows["layer_norm"]["calls"] >= 1
    assert rows["loading the batch"]["calls"] == 1
    assert rows["adamw_update_inplace"]["calls"] == 2  # with weight decay and without
    assert {"clipping", "optimizer", "callbacks", "zeroing gradients"} <= rows.keys()


def test_the_end_of_an_epoch_is_left_out(make_model: MakeModel, make_data: MakeData) -> None:
    calls = []
    for epochs, data in ((1, make_data(16 * 6)), (6, make_data(16))):
        model, found = make_model(), []
        callbacks = [Profiling(found.append, steps=4, warmup=2), Busy(model)]
        Trainer(model, callbacks=callbacks).fit(Loader(data, 16), epochs=epochs)
        calls.append({row["name"]: row["calls"] for row in found[0]["rows"] if row["operation"]})
    assert calls[0] == calls[1]


def test_results_are_the_same_to_the_bit(make_model: MakeModel, make_data: MakeData) -> None:
    ends = []
    for callbacks in ([], [Profiling(lambda found: None, steps=3, warmup=1)]):
        model = make_model(dropout=0.2, drop_path=0.2)
        Trainer(model, callbacks=callbacks).fit(Loader(make_data(), 8, shuffle=True), epochs=3)
        ends.append(model.state_dict())
    for name, array in ends[0].items():
        np.testing.assert_array_equal(ends[1][name], array, name)


@pytest.mark.parametrize(("epochs", "steps"), [(1, None), (2, 2)])
def test_a_run_that_ends_before(
    epochs: int, steps: int | None, make_model: MakeModel, make_data: MakeData
) -> None:
    found: list[dict[str, Any]] = []
    trainer = Trainer(make_model(), callbacks=[Profiling(found.append, steps=9, warmup=2)])
    trainer.fit(Loader(make_data(16), 8), epochs=epochs)
    assert [result["steps"] for result in found] == ([] if steps is None else [steps])
    assert watch.get() is None


def test_an_error_ends_the_profile(make_model: MakeModel, make_data: MakeData) -> None:
    class Fails(Callback):
        def on_step_end(self, state: TrainState, log: Any) -> None:
            if state.step == 2:
                raise ZeroDivisionError

    found: list[dict[str, Any]] = []
    trainer = Trainer(make_model(), callbacks=[Profiling(found.append, warmup=1), Fails()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Loader(make_data(), 8))
    assert found == []
    assert watch.get() is None


def test_there_must_be_something_to_measure() -> None:
    for wrong in ({"steps": 0}, {"warmup": 0}):
        with pytest.raises(ValueError, match="steps and warmup must be 1 or more"):
            Profiling(print, **wrong)


def test_the_lines_for_people() -> None:
    def an_op(*, xp: ArrayModule) -> None: ...

    ticks = iter([0.0, 1.0, 3.0, 4.0, 10.0])
    profile = Profile(clock=lambda: next(ticks))
    profile.start()  # at 0
    with profile.section("loading"):  # from 1 to 3
        pass
    done = profile(Op(an_op), None)  # from 4 to 10
    done()
    found = table(profile, 2)
    assert [row["name"] for row in found["rows"]] == ["an_op", "loading", REST]
    assert found["seconds"] == 5.0
    assert as_lines(found) == [
        "operation          calls/step  ms/step   share",
        "an_op                     0.5  3000.00   60.0%",
        "(loading)                 0.5  1000.00   20.0%",
        "(everything else)         1.0  1000.00   20.0%",
        "one step of 2                  5000.00  100.0%",
    ]
