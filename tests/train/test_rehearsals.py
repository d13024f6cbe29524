"""Nothing is asked of the device for the first time while it is recorded.

What is asked for the first time is compiled or loaded, and a stream that captures only bears that.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from recordings import Recordings, made, no_room

from vitkit import optim
from vitkit.data import Batch
from vitkit.kernels.cuda import _kernel, _products
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, Optimizer
from vitkit.testing import cuda_on_cpu, recording, strict_device
from vitkit.train.graph import GraphedForward, GraphedStep
from vitkit.train.loss_scale import loss_scale_for
from vitkit.train.preprocess import Preprocess
from vitkit.train.recorded import REPAID, WARM_UP

PREPROCESS = Preprocess(255.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
LR = 1e-2
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "adamw": lambda: optim.AdamW(LR, weight_decay=0.1),
    "sgd": lambda: optim.SGD(LR, momentum=0.9),
    "lion": lambda: optim.Lion(LR),
    "lamb": lambda: optim.LAMB(LR),
}


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    with cuda_on_cpu.emulated():
        yield


class Asked:
    """What the device is asked, by name and by what decides which code it runs.

    Attributes
    ----------
    before, recorded : set
        What came outside of recordings, and within.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: set[Any] = set()
        self.recorded: set[Any] = set()
        array, xp = strict_device.DeviceArray, strict_device.xp
        methods = [*strict_device._OPERATORS, *strict_device._METHODS, "__getitem__", "__setitem__"]
        for owner, names in ((array, methods), (xp, strict_device.CUPY)):
            for name in names:
                call = getattr(owner, name, None)
                if isinstance(call, types.FunctionType):
                    monkeypatch.setattr(owner, name, self._noting(name, call))
        launch, multiply = (
            table["strict_device"] for table in (_kernel.LAUNCHERS, _products.PRODUCTS)
        )

        def launched(kernel: Any, grid: Any, block: Any, arguments: Any, shared: int) -> None:
            self._note(kernel.name, _kind(arguments))
            launch(kernel, grid, block, arguments, shared)

        def multiplied(*given: Any) -> None:
            places = [x.data.ptr % 16 for x in given if isinstance(x, strict_device.DeviceArray)]
            self._note("product", _kind(given), *places)  # an algorithm is chosen by these
            multiply(*given)

        monkeypatch.setitem(_kernel.LAUNCHERS, "strict_device", launched)
        monkeypatch.setitem(_products.PRODUCTS, "strict_device", multiplied)

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._note(name, _kind(args), *sorted((key, _kind(x)) for key, x in kwargs.items()))
            return call(*args, **kwargs)

        return noting

    def _note(self, *what: Any) -> None:
        (self.recorded if recording._tapes else self.before).add(what)


def _kind(value: Any) -> Any:
    """Return what CuPy compiles a kernel for: dtypes, counts of axes, and which are numbers."""
    if isinstance(value, (tuple, list)):
        return tuple(_kind(each) for each in value)
    if isinstance(value, strict_device.DeviceArray):
        return value.dtype.name, value.shape if value.ndim < 2 else value.ndim, value.flags[0]
    return type(value).__name__


def groups(count: int, rng: np.random.Generator, size: int = 3, pieces: int = 1) -> Any:
    """Return the batches of some steps."""

    def batch() -> Batch:
        images = rng.integers(0, 256, (size, 3, 8, 8), dtype=np.uint8)
        return Batch(images, rng.integers(0, 5, size), np.arange(size), 0)

    return [[batch() for _ in range(pieces)] for _ in range(count)]


def stepping(model: Any = None, optimizer: Optimizer | None = None, **settings: Any) -> GraphedStep:
    """Return what makes steps of a model, which falls back unless told otherwise."""
    model = made() if model is None else model
    optimizer = optim.SGD(LR, momentum=0.9) if optimizer is None else optimizer
    parts = {"loss": softmax_cross_entropy, "preprocess": PREPROCESS, "falls_back": True}
    if optimizer.attached is None:
        optimizer.attach(model)
    return GraphedStep(model, optimizer, **{**parts, **settings})


def state_of(step: GraphedStep) -> dict[str, np.ndarray]:
    """Return the weights and what the optimizer keeps."""
    return {**step.model.state_dict(), **step.optimizer.state_dict()}


def assert_same(one: GraphedStep, other: GraphedStep) -> None:
    mine, theirs = state_of(one), state_of(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    assert one.optimizer.steps == other.optimizer.steps


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.3, "drop_path": 0.5},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"pieces": 2},
        {"nonfinite": "skip"},
        {"layer_decay": 0.7},
    ],
    ids=str,
)
def test_a_step_asks_for_nothing_new_while_it_is_recorded(
    settings: dict[str, Any], name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_model = dict(settings)
    pieces, nonfinite = of_model.pop("pieces", 1), of_model.pop("nonfinite", None)
    decay = of_model.pop("layer_decay", 1.0)
    model = made(**of_model)
    optimizer = OPTIMIZERS[name]().attach(model, layer_decay=decay)
    ema, scale = EMA(model, 0.9), loss_scale_for(model)
    others = {"max_grad_norm": 0.1, "loss_scale": scale, "nonfinite": nonfinite}
    step = stepping(model, optimizer, falls_back=False, **others)
    recordings, asked = Recordings(monkeypatch), Asked(monkeypatch)
    for number, group in enumerate(groups(WARM_UP + 1, rng, pieces=pieces)):
        assert not recordings.tried
        log = step(group, lr=LR, seed=3, step=number)
        ema.update()
        assert (optimizer.steps, log.lr, type(log.lr)) == (number + 1, LR, float)
    assert recordings.tried == 1
    assert asked.recorded
    assert asked.recorded <= asked.before, asked.recorded - asked.before


def test_inference_asks_for_nothing_new_while_it_is_recorded(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph reads images of its own, without the gaps that those it is given may have."""
    xp, recordings = strict_device.xp, Recordings(monkeypatch)
    forward, asked = GraphedForward(made()), Asked(monkeypatch)
    images = xp.asarray(rng.standard_normal((6, 3, 8, 8), np.float32))[::2]
    found = [forward(images).get() for _ in range(WARM_UP + 2)]
    assert (recordings.tried, recordings.replays) == (1, 1)
    assert asked.recorded
    assert asked.recorded <= asked.before, asked.recorded - asked.before
    for each in found:
        np.testing.assert_array_equal(each, found[0])


def test_passes_that_are_too_few_to_be_recorded_are_not_rehearsed(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = made(), []
    images = strict_device.xp.asarray(rng.standard_normal((3, 3, 8, 8), np.float32))
    forward = model.forward

    def noted(x: Any, ctx: Any) -> Any:
        seen.append(x is images)
        return forward(x, ctx)

    vars(model)["forward"] = noted
    recordings = Recordings(monkeypatch)
    graphed = GraphedForward(model)
    for left in (REPAID - 1,) * 4:
        graphed(images, left=left)
    assert (seen, recordings.tried) == ([True] * 4, 0)
    graphed(images, left=REPAID)
    assert (seen[4:], recordings.tried) == ([False], 0)  # and not recorded before that
    graphed(images, left=REPAID)
    assert (seen[5:], recordings.tried) == ([False], 1)


def test_a_rehearsal_leaves_nothing_behind(rng: np.random.Generator) -> None:
    kept: list[weakref.ref[Any]] = []

    def noting(images: Any, model: Any) -> Any:
        if isinstance(images, strict_device.DeviceArray):
            kept.append(weakref.ref(images))
        return PREPROCESS(images, model)

    step = stepping(preprocess=noting)
    gc.disable()
    try:
        for number, group in enumerate(groups(WARM_UP, rng)):
            step(group, lr=LR, seed=3, step=number)
        assert len(kept) == 1
        assert kept[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [TypeError, MemoryError])
def test_what_cannot_be_rehearsed_is_said_and_done_once_without(
    error: type[Exception],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    updates: list[int] = []

    def on_host(images: Any, model: Any) -> Any:
        if isinstance(images, strict_device.DeviceArray):
            raise error("images of the host, please")
        return PREPROCESS(images, model)

    recordings, given = Recordings(monkeypatch), groups(WARM_UP + 2, rng)
    step, plain = stepping(preprocess=on_host), stepping(records=False)
    for number, group in enumerate(given):
        before = functools.partial(updates.append, number)
        step(group, lr=LR, seed=3, step=number, before_update=before)
        plain(group, lr=LR, seed=3, step=number)
        assert_same(step, plain)
    assert updates == [0, 1, 2, 3]
    assert recordings.tried == 0
    assert [record.getMessage() for record in caplog.records] == [
        "A training step on images of shape (3, 3, 8, 8) cannot be recorded as a graph: "
        f"{error.__name__}: images of the host, please."
    ]
    refusing = stepping(preprocess=on_host, falls_back=False)
    refusing(given[0], lr=LR, seed=3, step=0)
    with pytest.raises(error, match="of the host"):
        refusing(given[1], lr=LR, seed=3, step=1)
    assert refusing.optimizer.steps == 1


class Reading(optim.SGD):
    """Reads the learning rate on the host, amid the update."""

    def update(self, *args: Any, lr: Any, **kwargs: Any) -> None:
        """Update once."""
        super().update(*args, lr=float(lr), **kwargs)


def test_what_reads_the_learning_rate_is_rehearsed_and_not_recorded(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recordings = Recordings(monkeypatch)
    step, plain = stepping(optimizer=Reading(LR, momentum=0.9)), stepping(records=False)
    for number, group in enumerate(groups(WARM_UP + 2, rng)):
        step(group, lr=LR, seed=3, step=number)
        plain(group, lr=LR, seed=3, step=number)
        assert_same(step, plain)
    assert recordings.tried == 1
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "A training step on images of shape (3, 3, 8, 8) cannot be recorded as a graph"
    ]


class Failing(optim.SGD):
    """Fails at its second segment where it is given arrays."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(LR, momentum=0.9)
        self.error, self.updates = error, 0

    def update(self, *args: Any, lr: Any, **kwargs: Any) -> None:
        """Update once, and fail the second time."""
        self.updates += 1
        if isinstance(lr, strict_device.DeviceArray) and not self.updates % 2:
            raise self.error
        super().update(*args, lr=lr, **kwargs)


@pytest.mark.parametrize(
    "error", [TypeError("a number"), MemoryError("full"), KeyboardInterrupt()], ids=repr
)
def test_a_rehearsal_that_has_touched_the_weights_is_not_tried_again(
    error: BaseException, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, updates = Failing(error), []
    step, plain = stepping(optimizer=optimizer), stepping(records=False)
    assert len(step.model.groups) == 2
    given = groups(2, rng)
    step(given[0], lr=LR, seed=3, step=0)
    plain(given[0], lr=LR, seed=3, step=0)
    with pytest.raises(type(error)) as raised:
        step(given[1], lr=LR, seed=3, step=1, before_update=functools.partial(updates.append, 1))
    assert raised.value is error
    assert updates == [1]
    assert optimizer.updates == 4
    assert optimizer.steps == 2  # as where a step fails that is not rehearsed
    assert not caplog.records
    notes = getattr(error, "__notes__", [])
    assert ["graph=False does without" in note for note in notes] == (
        [] if isinstance(error, KeyboardInterrupt) else [True]
    )
    step.model.load_state_dict(plain.model.state_dict())
    optimizer.load_state_dict(plain.optimizer.state_dict())
    optimizer.step(LR)  # a count that was left with the optimizer would be taken for this one
    assert optimizer.steps == 2


def test_a_rehearsal_checks_what_a_step_checks(rng: np.random.Generator) -> None:
    step, given = stepping(falls_back=False), groups(WARM_UP, rng)
    step(given[0], lr=LR, seed=3, step=0)
    with pytest.raises(ValueError, match="lr must be"):
        step(given[1], lr=float("nan"), seed=3, step=1)
    step.model.place(step.model.xp)
    with pytest.raises(RuntimeError, match="has been placed or moved since"):
        step(given[1], lr=LR, seed=3, step=1)
    assert step.optimizer.steps == 1


def test_an_interrupt_before_the_update_leaves_a_step_to_be_rehearsed(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts = [KeyboardInterrupt()]

    def interrupted(images: Any, model: Any) -> Any:
        if isinstance(images, strict_device.DeviceArray) and interrupts:
            raise interrupts.pop()
        return PREPROCESS(images, model)

    recordings, given = Recordings(monkeypatch), groups(WARM_UP + 2, rng)
    step, plain = stepping(preprocess=interrupted), stepping(records=False)
    for number, group in enumerate(given):
        if number == WARM_UP - 1:
            with pytest.raises(KeyboardInterrupt):
                step(group, lr=LR, seed=3, step=number)
            assert step.optimizer.steps == number
        step(group, lr=LR, seed=3, step=number)
        plain(group, lr=LR, seed=3, step=number)
        assert_same(step, plain)
    assert (recordings.tried, recordings.replays) == (1, 1)


def test_a_rehearsal_without_room_beside_graphs_is_one_without_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recordings = Recordings(monkeypatch)
    small, large = groups(2, rng, 2), groups(WARM_UP + 1, rng)
    step = stepping(loss=no_room(recordings, 2))
    plain = stepping(records=False)
    asked = Asked(monkeypatch)
    given = [small[0], *large, small[1], small[0]]
    alive = []
    for number, group in enumerate(given):
        step(group, lr=LR, seed=3, step=number)
        plain(group, lr=LR, seed=3, step=number)
        assert_same(step, plain)
        alive.append(recordings.alive)
    assert alive == [0, 0, 0, 1, 0, 1]
    assert recordings.tried == 2
    assert asked.recorded <= asked.before, asked.recorded - asked.before
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "they are let go of" in said[0]
