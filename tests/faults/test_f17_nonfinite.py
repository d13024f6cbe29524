"""F17: numbers that are not finite, in every place of a step, under every policy.

Shows that each policy is kept, bit for bit: a step that is refused has touched nothing, a run that
was ended by one goes on as if it had never been, and no checkpoint ever holds such a number. And
that the scale of float16 follows its law and never becomes 0 or infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injecting import Injected, faults
from nonfinite_runs import (
    DATA,
    EPOCHS,
    LAYERS,
    STEPS,
    Bits,
    Fault,
    Lens,
    Run,
    in_checkpoints,
    marked,
    rate,
)

from vitkit import ops
from vitkit.backend import philox
from vitkit.data import Loader
from vitkit.errors import CheckpointError
from vitkit.models import ViT
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, AdamW
from vitkit.testing import cuda_on_cpu, strict_device
from vitkit.train import LossScale, Preprocess, Trainer, TrainState, train_step
from vitkit.train.callbacks import Average, Recorder
from vitkit.train.loss_scale import TOO_MANY

POLICIES = ("raise", "skip", "stop")
NAN, INF = float("nan"), float("inf")


def in_one_step() -> Iterator[Fault]:
    """Yield faults of one step, after which the run would be as sound as before."""
    values, places = cycle([NAN, INF, -INF]), cycle([(0, 0), (2, 1), (3, 0), (5, 1), (6, 0)])
    for kind, layer, _ in product(("activation", "gradient"), LAYERS, range(2)):
        step, piece = next(places)
        if (kind, layer) != ("gradient", "patch_embed"):  # no weight learns from that of images
            yield Fault(kind, layer, step, piece, next(values))
    for kind, _ in product(("loss", "gradient of the loss", "input"), range(4)):
        step, piece = next(places)
        yield Fault(kind, "", step, piece, next(values))
    for kind, layer in product(("overflow", "gradient overflow"), LAYERS[1:4]):
        step, piece = next(places)
        yield Fault(kind, layer, step, piece)


def for_good() -> Iterator[Fault]:
    """Yield faults of what is kept: weights, and the optimizer's moments."""
    names = cycle(["head.weight", "blocks.0.attn.qkv.weight", "pos_embed", "blocks.1.mlp.fc2.bias"])
    values = cycle([NAN, INF, -INF])
    for kind, step in product(("parameter", "moment"), (1, 2, 4, 5, 6)):
        name = next(names)
        layer = name if kind == "parameter" else f"{name}.{'mv'[step % 2]}"
        yield Fault(kind, layer, step, 0, next(values))


PASSING, LASTING = list(in_one_step()), list(for_good())
RATES = [Fault("rate", "", step) for step in range(8)]
FAULTS = [*PASSING, *LASTING, *RATES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that nothing disturbs."""
    run = Run(tmp_path_factory.mktemp("whole"))
    run.fit("raise")
    return run


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bits]:
    """Return how runs end that never had one of the steps, which are made by hand."""
    return {step: _without(step) for step in {fault.step for fault in PASSING}}


def _without(left_out: int) -> Bits:
    run = Run(Path("unused"))
    preprocess, step, updates = Preprocess.of(DATA), 0, 0
    for epoch in range(EPOCHS):
        batches = list(Loader(DATA, 2, shuffle=True).batches(epoch))
        for first in range(0, len(batches), 2):
            if step != left_out:
                train_step(
                    run.model,
                    run.optimizer,
                    batches[first : first + 2],
                    run.loss,
                    preprocess,
                    lr=rate(updates),
                    seed=0,
                    step=step,
                    max_grad_norm=1.0,
                )
                run.ema.update()
                updates += 1
            step += 1
    return run.bits()


def run_with(fault: Fault, folder: Path, patch: pytest.MonkeyPatch) -> Run:
    run = Run(folder, fault)
    if fault.kind == "input":
        patch.setattr(Lens, "marked", (marked(fault.step, fault.piece), fault.value))
        patch.setattr("vitkit.train.trainer.Preprocess", Lens)
    if fault.kind == "rate":
        run.schedule = lambda step: 1e20 if step >= fault.step else rate(step)
        run.max_grad_norm = None
    return run


STAGES = {
    "activation": "forward",
    "overflow": "forward",
    "gradient": "backward",
    "gradient overflow": "backward",
    "loss": "loss",
    "gradient of the loss": "loss",
    "input": "input",
}


def assert_named(fault: Fault, said: str) -> None:
    """Ask that the first place is named: its step, direction, layer and image."""
    assert f" in step {fault.step + 1}: {STAGES[fault.kind]}: " in said
    if fault.layer:
        assert f"{fault.layer}'" in said
    by_item = fault.kind in ("activation", "gradient", "gradient of the loss", "input")
    if by_item:
        assert f"item 1 of batch {fault.piece} " in said
    if by_item and not fault.kind.startswith("gradient"):
        assert f"has {fault.value} at [1," in said


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", sorted(STAGES))
def test_a_step_that_is_not_finite_is_refused_before_it_has_touched_anything(
    kind: str,
    policy: str,
    whole: Run,
    without: dict[int, Bits],
    tmp_path: Path,
    injected: Injected,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = [fault for fault in PASSING if fault.kind == kind]
    for number, fault in enumerate(chosen):
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            run = run_with(fault, tmp_path / str(number), patch)
            before = whole.remembers.after[fault.step]
            if policy == "skip":
                state = run.fit(policy)
                assert run.remembers.after[fault.step + 1] == before, fault
                assert (state.step, state.skipped, state.updates) == (8, 1, 7)
                expected = [rate(step - (step > fault.step)) for step in range(STEPS * EPOCHS)]
                assert run.remembers.rates == expected
                assert run.bits() == without[fault.step], fault
                assert run.rows[-1]["skipped"] == 1
                assert_named(fault, caplog.text)
                in_checkpoints(run.folder)
                continue
            if policy == "raise":
                with pytest.raises(FloatingPointError) as error:
                    run.fit(policy)
                assert_named(fault, str(error.value))
                state = None
            else:
                state = run.fit(policy)
                assert_named(fault, state.stop)
                assert (state.step, state.skipped) == (fault.step, 0)
            assert run.bits() == before, fault
            name = f"step-{fault.step:08d}"
            assert in_checkpoints(run.folder)[name] == before, fault
            assert (run.folder / f"bad-step-{fault.step + 1:08d}").is_dir()
        again = Run(run.folder)
        again.resume()
        assert again.bits() == whole.bits(), fault
    injected("faults of one step", len(chosen), at_least=3)


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_and_moments_that_are_not_finite_end_the_run_and_are_never_saved(
    policy: str, whole: Run, tmp_path: Path, injected: Injected
) -> None:
    for number, fault in enumerate(LASTING):
        run = run_with(fault, tmp_path / str(number), pytest.MonkeyPatch())
        with pytest.raises((FloatingPointError, CheckpointError)) as error:
            run.fit(policy)
        said = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
        assert fault.layer.removesuffix(".m").removesuffix(".v") in said, said
        kept = in_checkpoints(run.folder)
        assert all(int(name[5:13]) < fault.step or "partial" in name for name in kept)
    injected("weights and moments", len(LASTING), at_least=10)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("clips", [None, 1.0])
def test_no_learning_rate_makes_a_checkpoint_that_is_not_finite(
    clips: float | None, policy: str, tmp_path: Path, injected: Injected
) -> None:
    ended = 0
    for number, fault in enumerate(RATES):
        run = run_with(fault, tmp_path / str(number), pytest.MonkeyPatch())
        run.max_grad_norm = clips
        try:
            state = run.fit(policy)
            ended += bool(state.stop or state.skipped)
        except (FloatingPointError, CheckpointError):
            ended += 1
        in_checkpoints(run.folder)
    injected("learning rates of 1e20", len(RATES))
    assert ended > len(RATES) / 2


def test_there_are_as_many_faults_as_the_matrix_asks_for(injected: Injected) -> None:
    assert len({str(fault) for fault in FAULTS}) == len(FAULTS)
    injected("faults, each under 3 policies", len(FAULTS), at_least=60)


def test_finite_gradients_whose_squares_overflow_are_clipped_and_not_refused(
    tmp_path: Path,
) -> None:
    class Large:
        def __init__(self, factor: float) -> None:
            self.factor = np.float32(factor)

        def __call__(self, logits: Any, labels: Any, *, xp: Any) -> Any:
            value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
            return value, dlogits * self.factor

    ends = []
    for factor in (2.0**10, 2.0**90):
        run = Run(tmp_path / str(factor))
        run.loss = Large(factor)  # type: ignore[assignment]
        state = run.fit("raise")
        assert (state.step, state.skipped, state.stop) == (8, 0, "")
        ends.append(run.model.state_dict())
    for name, array in ends[0].items():  # clipping takes the factor out again
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding
            np.testing.assert_allclose(ends[1][name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_skipping_gives_up_after_fifty_in_a_row(tmp_path: Path, injected: Injected) -> None:
    model = ViT("Ti/4", image_size=8, in_channels=1, num_classes=3, dim=8, depth=1, num_heads=2)
    state, after = TrainState(), []

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return (value, dlogits * np.float32(NAN)) if state.step >= 3 else (value, dlogits)

    class Keeps(Recorder):
        def on_step_end(self, state: TrainState, log: Any) -> None:
            super().on_step_end(state, log)
            after.append(model.head.weight.value.tobytes())

    recorder = Keeps([], every=1)
    trainer = Trainer(model, loss=loss, callbacks=[recorder], nonfinite="skip")
    with pytest.raises(FloatingPointError, match=f"as in the {TOO_MANY - 1} steps before"):
        trainer.fit(Loader(_many(), 1), epochs=1, state=state)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (52, 49, 49)
    assert len(set(after[2:])) == 1
    assert TrainState.from_dict(state.to_dict()).skipped_in_a_row == 49
    old = {k: v for k, v in state.to_dict().items() if not k.startswith("skipped")}
    assert TrainState.from_dict(old).skipped == 0
    injected("steps in a row", TOO_MANY)


def _many() -> Any:
    from vitkit.data import Subset

    return Subset(DATA, np.arange(70) % len(DATA))


@pytest.mark.parametrize("graph", [False, True], ids=["step by step", "as graphs"])
def test_a_device_skips_by_itself_and_touches_nothing(graph: bool) -> None:
    if graph and (reason := cuda_on_cpu.why_not()):
        pytest.skip(reason)
    with cuda_on_cpu.emulated() if graph else nullcontext():  # references cannot be recorded
        _skips_on_a_device(graph)


def _skips_on_a_device(graph: bool) -> None:
    xp = strict_device.xp
    model = ViT(
        "Ti/4", image_size=8, in_channels=1, num_classes=3, dim=32, depth=1, num_heads=1, xp=xp
    )
    optimizer, ema = AdamW(1e-2).attach(model), EMA(model, 0.9)
    factor, bad, changed = xp.ones((), "float32"), {1, 4, 5}, []

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return value, dlogits * factor

    class Spoils(Average):
        """Before each step, sets the factor that the device multiplies gradients by."""

        before: Bits | None = None

        def on_step_end(self, state: TrainState, log: Any) -> None:
            super().on_step_end(state, log)
            factor.fill(NAN if state.step in bad else 1.0)
            parts = {"model": model, "optim": optimizer, "ema": ema}
            now = {
                f"{stem} {name}": array.tobytes()
                for stem, part in parts.items()
                for name, array in part.state_dict().items()
            }
            changed.append(now != self.before)
            self.before = now

    rows: list[dict[str, Any]] = []
    trainer = Trainer(
        model,
        optimizer,
        loss=loss,
        callbacks=[Spoils(ema), Recorder([rows.append], every=1)],
        graph=graph,
        nonfinite="skip",
    )
    state = trainer.fit(Loader(DATA, 2), epochs=1)
    assert changed == [step not in bad for step in range(7)]
    assert (state.step, rows[-1]["skipped"]) == (7, len(bad))
    assert optimizer.state_dict()["step"] == ema.state_dict()["updates"] == 7 - len(bad)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_scale_that_is_exhausted_ends_a_run_in_float16(policy: str) -> None:
    with ops.reference_only():
        sizes = {"image_size": 8, "in_channels": 1, "num_classes": 3, "dim": 8, "depth": 1}
        model = ViT("Ti/4", **sizes, num_heads=2, precision="float16")  # type: ignore[arg-type]
    before = model.state_dict()

    def loss(logits: Any, labels: Any, *, xp: Any) -> Any:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        return value, dlogits * np.float32(INF)

    trainer = Trainer(model, loss=loss, callbacks=[Recorder([], every=1)], nonfinite=policy)
    with pytest.raises(FloatingPointError, match="even with a loss scale of 1"):
        trainer.fit(Loader(_many(), 1), epochs=2)
    assert trainer.loss_scale is not None
    assert float(trainer.loss_scale.scale) == 1.0
    for name, array in model.state_dict().items():
        assert array.tobytes() == before[name].tobytes()


def test_the_scale_follows_its_law_whatever_comes(injected: Injected) -> None:
    """Times 0.5 at a bad step, 2 after 2000 good ones in a row, from 1 to 2**24; never 0 or Inf."""
    sequences, changes = faults(1000, 10_000), 0
    for sequence in range(sequences):
        rng = philox(0, "a scale", sequence)
        scale = LossScale(np)
        law = (2.0 ** int(rng.integers(0, 25)), int(rng.integers(1960, 2000)), 0)
        names = ("scale", "good_steps", "skipped")
        scale.load_state_dict({k: np.asarray(v) for k, v in zip(names, law, strict=True)})
        for finite in rng.random(60) < rng.choice([0.0, 0.5, 0.9, 0.99, 1.0]):
            value, good, skipped = law
            if not finite:
                law = (max(value / 2, 1.0), 0, skipped + 1)
            elif good + 1 == 2000:
                law = (min(value * 2, 2.0**24), 0, skipped)
            else:
                law = (value, good + 1, skipped)
            scale.update(np.asarray(finite))
            assert (float(scale.scale), int(scale.good_steps), int(scale.skipped)) == law
            assert math.isfinite(float(scale.scale))
            assert float(scale.scale) >= 1.0
            changes += law[0] != value
    injected("sequences of 60 steps", sequences, at_least=faults(1000))
    assert changes > 2 * sequences
