"""F4: a signal ends a command in time, and a run goes on from its last finished step.

SIGTERM and SIGINT come at random moments of training (in steps, validations and saves), of the
evaluation at its end, and of preparing, evaluating, timing and compiling. The exit code is 143 or
130, and a run that goes on ends with the bits of an undisturbed one. A second signal leaves at
once. Handlers of a program that uses the library are called, and put back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import Undisturbed, finished, undisturbed
from forking import NOT_OURS, TINY, Child, End, wait_for
from injecting import Injected, faults

from vitkit.checkpoint import load_latest, runs
from vitkit.data import Loader, digits
from vitkit.models import ViT
from vitkit.signals import Terminated, leaving
from vitkit.train import Trainer, TrainState
from vitkit.train.callbacks import Callback, Checkpointing, StopOnSignal, Validation

if not sys.platform.startswith("linux"):
    pytest.skip("children are made by fork, and counted in /proc", allow_module_level=True)

TERM, INT = signal.SIGTERM, signal.SIGINT
CODES = {TERM: 143, INT: 130}
WORDS = {TERM: "terminated", INT: "interrupted"}
IN_TIME, AT_ONCE = 10.0, 5.0  # far more than it takes: others may use the processors
WATCHED = [*TINY, "--set", "train.log_every=1"]  # a row for each step that is finished
RESUME = ["train", "--resume", "auto", "--quiet"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """Return a server, and an undisturbed run."""
    with undisturbed(tmp_path_factory.mktemp("f04"), WATCHED) as found:
        yield found


def ended(child: Child, number: int, seconds: float) -> bool:
    """Return whether a signal that was sent has ended a child, as it should."""
    sent = time.monotonic()
    code, shown, said = child.wait(seconds)
    assert time.monotonic() - sent <= seconds
    assert "Traceback" not in said + shown
    if code in (0, NOT_OURS, -number):  # it was done, or had not begun
        return False
    assert code == CODES[signal.Signals(number)], said
    return True


def run_of(place: Path) -> Path | None:
    found = {path.parents[1] for path in place.glob("runs/*/checkpoints/step-*")}
    return next(iter(found), None)


def last_step(run: Path) -> int:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return int(max(row["step"] for row in rows))


def assert_at_the_last_step(place: Path) -> bool:
    """Check the checkpoint of a stopped run; return whether it left an epoch open."""
    run = run_of(place)
    if run is None:  # it had not begun
        return False
    last = runs.entries(run)[0]
    assert last.step == last_step(run)
    assert json.loads((run / "last.json").read_text())["checkpoint"] == last.path.name
    assert not list(run.rglob(".tmp-*"))
    return not last.ended


def test_training(found: Undisturbed, injected: Injected) -> None:
    wanted = [TERM] * faults(36) + [INT] * faults(18)
    random = np.random.Generator(np.random.Philox(4))
    random.shuffle(wanted)
    counted = opened = done = 0
    while wanted:
        (place := found.folder / f"train-{done}").mkdir()
        over = False
        while not over:
            arguments = RESUME if run_of(place) else WATCHED
            slow = {"inject": "injections:slow_validation", "seconds": 0.1} if counted % 3 else {}
            child = found.server.start(*arguments, cwd=place, **slow)
            if wanted:
                time.sleep(random.uniform(0.02, found.seconds))
                child.send(wanted[-1])
                if ended(child, wanted[-1], IN_TIME):
                    wanted.pop()
                    counted += 1
                    opened += assert_at_the_last_step(place)
                    continue
            over = child.wait().code == 0
        assert finished(place) == found.whole
        done += 1
    injected(f"signals while {done} runs train", counted, at_least=faults(36) + faults(18))
    injected("of them left an epoch open", opened, at_least=faults(4))


def test_a_second_signal(found: Undisturbed, injected: Injected) -> None:
    random = np.random.Generator(np.random.Philox(15))
    wanted, counted, done = faults(15), 0, 0
    while counted < wanted:
        (place := found.folder / f"second-{done}").mkdir()
        over = False
        while not over:
            arguments = RESUME if run_of(place) else WATCHED
            (heard := found.folder / "heard").unlink(missing_ok=True)
            slow = {"inject": "injections:slow_sync_and_heard", "heard": str(heard)}
            child = found.server.start(*arguments, cwd=place, **(slow if counted < wanted else {}))
            if counted < wanted:
                first, second = (signal.Signals(int(n)) for n in random.choice([TERM, INT], 2))
                time.sleep(random.uniform(0.3, 1.0))
                wait_for(lambda c=child, p=place: c.poll() or any(p.rglob("checkpoints/.tmp-*")))
                child.send(first)
                # Until it is heard of, another of the same number is the same signal.
                wait_for(lambda c=child, h=heard: c.poll() or h.exists())
                time.sleep(random.uniform(0.0, 0.05))
                if child.send(second) and ended(child, second, AT_ONCE):
                    counted += 1
                    run = run_of(place)
                    assert run is None or not load_latest(run)[1]  # all of them are whole
                    continue
            over = child.wait().code == 0
        assert finished(place) == found.whole
        done += 1
    injected("second signals", counted, at_least=wanted)


@pytest.mark.timeout(1200)
def test_in_each_function(found: Undisturbed, injected: Injected) -> None:
    """Whoever called it, what it was amid: it is left by no other way, and leaves nothing."""
    (place := found.folder / "functions").mkdir()
    called = found.folder / "called"
    short = [*TINY, "--set", "train.epochs=1"]

    def send(number: int, at: int) -> End:
        shutil.rmtree(place)
        place.mkdir()
        watch = {"inject": "injections:signal_in_function", "number": number, "at": at}
        return found.server.run(*short, cwd=place, **watch, file=str(called))

    assert send(TERM, 0).code == 0
    functions = int(called.read_text().split()[0])
    each = max(1, functions // faults(100, functions))
    counted = 0
    for at in range(1 + each // 2, functions, each):
        number = (TERM, INT)[counted % 2]
        code, shown, said = send(number, at)
        where = called.read_text()
        if code in (0, NOT_OURS, -number):  # it was done, or had not begun
            continue
        assert code == CODES[number], f"{where}{said}"
        assert not said or said.startswith(f"vitkit: {WORDS[number]}\n"), where
        assert "Traceback" not in said + shown, where
        assert not list(place.rglob(".tmp-*")), where
        counted += 1
    injected("functions in which a signal comes", counted, at_least=functions // each * 4 // 5)


COMMANDS = {
    "data prepare": (4, ["data", "prepare", "mnist", "--data-dir", "here"], 0.3),
    "evaluate": (10, ["evaluate", "RUN", "--split", "train", "--batch-size", "1"], 0.4),
    "bench": (5, ["bench", "--depth", "1", "--batch-size", "8", "--rounds", "999"], 0.5),
    "kernels compile": (3, ["kernels", "compile"], 0.2),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_save_nothing(command: str, found: Undisturbed, injected: Injected) -> None:
    count, arguments, longest = COMMANDS[command]
    (place := found.folder / command.replace(" ", "-")).mkdir()
    run = run_of(found.folder / "undisturbed")
    given = [str(run) if each == "RUN" else each for each in arguments]
    slow = {"inject": "injections:slow_download", "seconds": 0.01}
    random = np.random.Generator(np.random.Philox(len(command)))
    counted = 0
    while counted < faults(count):
        number = INT if counted % 3 == 2 else TERM
        child = found.server.start(*given, cwd=place, **(slow if "prepare" in command else {}))
        time.sleep(random.uniform(0.05, longest))
        child.send(number)
        if ended(child, number, IN_TIME):
            counted += 1
            said = child.read("stderr").splitlines()
            assert said[-1] == f"vitkit: {WORDS[number]}"
            assert child.read("stdout") == ""
        left = [path.name for path in place.rglob("*") if path.is_file()]
        assert set(left) <= {".lock"}
    injected(f"signals in vitkit {command}", counted, at_least=faults(count))


def a_trainer(folder: Path, *callbacks: Callback, epochs: int = 2) -> tuple[Trainer, Loader]:
    model = ViT("Ti/4", image_size=8, in_channels=1, num_classes=10, dim=8, depth=1, num_heads=1)
    trainer = Trainer(model)
    saving = Checkpointing(folder, model, trainer.optimizer, callbacks, {})
    trainer.callbacks = [*callbacks, saving, StopOnSignal()]
    return trainer, Loader(digits().test, 120)  # of three batches


class Raises(Callback):
    """Sends a signal to its own process after a step."""

    name = "raises"

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_step_end(self, state: TrainState, log: Any) -> None:
        if state.step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_handler_of_the_program_is_called_and_put_back(
    number: signal.Signals, tmp_path: Path
) -> None:
    got: list[int] = []

    def own(number: int, frame: object) -> None:
        got.append(number)

    before = signal.signal(number, own)
    try:
        trainer, loader = a_trainer(tmp_path, Raises(number))
        state = trainer.fit(loader, epochs=2)
        assert signal.getsignal(number) is own
        os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    assert got == [number, number]
    assert (state.step, state.stop) == (2, {TERM: "terminated", INT: "interrupted"}[number])
    assert [each.path.name for each in runs.entries(tmp_path)] == ["step-00000002"]


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(INT, signal.SIG_IGN)
    try:
        trainer, loader = a_trainer(tmp_path, Raises(INT))
        state = trainer.fit(loader, epochs=2)
        assert signal.getsignal(INT) is signal.SIG_IGN
    finally:
        signal.signal(INT, before)
    assert (state.step, state.stop) == (6, "")


def test_a_signal_ends_a_validation_and_leaves_the_epoch_open(tmp_path: Path) -> None:
    """The validation is made again when the run goes on."""
    batches: list[int] = []
    trainer, loader = a_trainer(tmp_path)

    def on_batch(images: int) -> None:
        batches.append(images)
        if len(batches) == 5:  # the second of the second epoch's
            os.kill(os.getpid(), TERM)

    stopper = trainer.callbacks[-1]
    assert isinstance(stopper, StopOnSignal)
    validation = Validation(
        trainer.model,
        loader,
        trainer.loss,
        None,
        on_batch=on_batch,
        stopped=lambda: stopper.reason,
    )
    trainer.callbacks.insert(0, validation)
    state = trainer.fit(loader, epochs=3)
    assert len(batches) == 5
    assert (state.step, state.epoch, state.position) == (6, 1, 3)
    assert state.stop == "terminated"
    assert state.metrics.keys() == {"val_loss", "val_accuracy"}
    names = [each.path.name for each in runs.entries(tmp_path)]
    assert names == ["step-00000006-open", "step-00000003"]
    state = TrainState.from_dict(load_latest(tmp_path)[0].documents["trainer"]["state"])
    assert (state.step, state.epoch, state.position) == (6, 1, 3)
    state = trainer.fit(loader, epochs=3, state=state)
    assert (state.step, state.epoch) == (9, 3)
    assert len(batches) == 5 + 3 + 3


def test_a_signal_while_an_object_is_finalized_is_not_lost() -> None:
    """Python drops what a finalizer raises."""

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(TERM)

    before = signal.getsignal(TERM)

    def work() -> None:
        with leaving():
            Finalized()
            wait_for(lambda: False, AT_ONCE)

    with pytest.raises(Terminated) as left:
        work()
    assert left.value.code == 143
    assert signal.getsignal(TERM) is before
