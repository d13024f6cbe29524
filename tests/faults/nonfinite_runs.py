"""Small runs with everything on, and numbers put into them that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vitkit.checkpoint.files as files
from vitkit.backend import philox
from vitkit.data import ArrayDataset, Loader
from vitkit.models import ViT
from vitkit.nn import Module
from vitkit.ops import softmax_cross_entropy
from vitkit.optim import EMA, AdamW
from vitkit.train import Preprocess, Trainer, TrainState
from vitkit.train.bad_steps import BadSteps
from vitkit.train.callbacks import Average, Callback, Checkpointing, Recorder, Validation
from vitkit.train.restore import find_checkpoint
from vitkit.train.step import MOST_PIECES

STEPS, EPOCHS = 4, 2  # an epoch: 14 images in batches of 2, two of which make a step
Bits = dict[str, bytes]


@dataclass(frozen=True)
class Fault:
    """A number that is not finite, and where it comes from.

    ``layer`` is dotted; ``step`` counts from 0, ``piece`` the batches of a step.
    """

    kind: str
    layer: str = ""
    step: int = 0
    piece: int = 0
    value: float = float("nan")

    def __str__(self) -> str:
        return f"{self.kind}-{self.layer}-{self.step}-{self.piece}-{self.value}".replace("--", "-")


class Clock:
    """Which batch of which step the model is at, and which it is to be spoiled at."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault = fault
        self.now = (-1, -1)

    def strikes(self, *kinds: str) -> bool:
        fault = self.fault
        return fault is not None and fault.kind in kinds and self.now == (fault.step, fault.piece)


class Watched(Module):
    """Tells the clock where the run is; a step that is made again is at the same place."""

    transparent = True

    def __init__(self, inner: Module, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def forward(self, x: Any, ctx: Any) -> Any:
        if ctx.train:
            self.clock.now = divmod(ctx.seeds.step, MOST_PIECES)
        return self.inner.forward(x, ctx)

    def backward(self, dy: Any, ctx: Any) -> Any:
        return self.inner.backward(dy, ctx)


class Spoiled(Module):
    """Puts a value into what a layer returns, or into its gradient; or makes either overflow."""

    transparent = True

    def __init__(self, inner: Module, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def forward(self, x: Any, ctx: Any) -> Any:
        y = self.inner.forward(x, ctx)
        return self._spoiled(y, "activation", "overflow") if ctx.train else y

    def backward(self, dy: Any, ctx: Any) -> Any:
        return self._spoiled(self.inner.backward(dy, ctx), "gradient", "gradient overflow")

    def _spoiled(self, array: Any, kind: str, overflow: str) -> Any:
        if self.clock.strikes(overflow):
            return (array + np.float32(1)) * np.float32(3e38) * np.float32(3e38)
        if self.clock.strikes(kind):
            assert self.clock.fault is not None
            array = array.copy()
            array[1, ..., 2] = self.clock.fault.value
        return array


class Loss:
    """The loss of the run, spoiled when the clock says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, logits: Any, labels: Any, *, xp: Any) -> tuple[Any, Any]:
        value, dlogits = softmax_cross_entropy(logits, labels, xp=xp)
        if self.clock.strikes("loss"):
            value = value * np.float32(self.clock.fault.value)  # type: ignore[union-attr]
        if self.clock.strikes("gradient of the loss"):
            dlogits = dlogits.copy()
            dlogits[1, 2] = self.clock.fault.value  # type: ignore[union-attr]
        return value, dlogits


class Lens(Preprocess):
    """A preprocessing that is spoiled for the images of one batch."""

    marked: tuple[bytes, float] = (b"", 0.0)

    def __call__(self, images: Any, model: Any) -> Any:
        x = super().__call__(images, model)
        if images.tobytes() == self.marked[0]:
            x = x.copy()
            x[1, 0, 3, 5] = self.marked[1]
        return x


class Spoils(Callback):
    """After a step, puts a value into a weight, or into a moment of the optimizer."""

    name = "spoils"

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_end(self, state: TrainState, log: Any) -> None:
        fault = self.run.fault
        if fault is None or state.step != fault.step:
            return
        if fault.kind == "parameter":
            parameter = dict(self.run.model.named_parameters())[fault.layer]
            parameter.value.reshape(-1)[3] = fault.value
        if fault.kind == "moment":
            arrays = self.run.optimizer.state_dict()
            arrays[fault.layer].reshape(-1)[3] = fault.value
            self.run.optimizer.load_state_dict(arrays)


class Remembers(Callback):
    """Keeps the bits of all states after each step, and the learning rates."""

    name = "remembers"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.after: dict[int, Bits] = {}
        self.rates: list[float] = []

    def on_start(self, state: TrainState) -> None:
        self.after[state.step] = self.run.bits()

    def on_step_end(self, state: TrainState, log: Any) -> None:
        self.after[state.step] = self.run.bits()
        self.rates.append(log.lr)


def images() -> ArrayDataset:
    rng = philox(0, "images of faults")
    labels = np.arange(14) % 3
    pixels = (labels[:, None, None, None] * 4 + rng.integers(0, 4, (14, 1, 8, 8))).astype("u1")
    return ArrayDataset(pixels, labels, classes=["a", "b", "c"], scale=16.0)


DATA = images()
LAYERS = [
    "patch_embed",
    "blocks.0.attn",
    "blocks.0.mlp",
    "blocks.1.mlp.fc1",
    "norm",
    "pool",
    "head",
]


def rate(step: int) -> float:
    """Return a learning rate that tells of which update it is."""
    return 1e-2 / (1 + step)


class Run:
    """A run of a small model with dropout, averaged weights, clipping and accumulation."""

    def __init__(
        self,
        folder: Path,
        fault: Fault | None = None,
        *,
        schedule: Callable[[int], float] = rate,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        self.folder, self.fault, self.clock = folder, fault, Clock(fault)
        self.schedule, self.max_grad_norm = schedule, max_grad_norm
        self.model = _model(self.clock, fault)
        self.optimizer = AdamW(1e-2, weight_decay=0.1).attach(self.model)
        self.ema = EMA(self.model, 0.9)
        self.loss = Loss(self.clock)
        self.remembers = Remembers(self)
        self.rows: list[dict[str, Any]] = []
        self.recorder = Recorder([self.rows.append], every=1)
        validation = Validation(
            self.model, Loader(DATA, 7), softmax_cross_entropy, Preprocess.of(DATA), ema=self.ema
        )
        watching = [Average(self.ema), validation, self.recorder, self.remembers]
        self.saving = Checkpointing(
            folder, self.model, self.optimizer, [*watching, Spoils(self)], {}, ema=self.ema
        )
        self.callbacks = [*watching, Spoils(self), self.saving]

    def fit(self, policy: str, state: TrainState | None = None, **options: Any) -> TrainState:
        trainer = Trainer(
            self.model,
            self.optimizer,
            loss=self.loss,
            schedule=self.schedule,
            callbacks=self.callbacks,
            grad_accum=2,
            max_grad_norm=self.max_grad_norm,
            nonfinite=policy,
            bad_steps=BadSteps(self.folder),
            **options,
        )
        return trainer.fit(Loader(DATA, 2, shuffle=True), epochs=EPOCHS, state=state)

    def resume(self) -> TrainState:
        """Go on from the last checkpoint, the fault being gone."""
        self.clock.fault = self.fault = None
        checkpoint = files.load(find_checkpoint(self.folder, "last"))
        trainer = checkpoint.documents["trainer"]
        self.model.load_state_dict(checkpoint.arrays["model"])
        self.optimizer.load_state_dict(checkpoint.arrays["optim"])
        self.ema.load_state_dict(checkpoint.arrays["ema"])
        for callback in self.callbacks:
            if callback.name in trainer["callbacks"]:
                callback.load_state_dict(trainer["callbacks"][callback.name])
        return self.fit("raise", TrainState.from_dict(trainer["state"]))

    def bits(self) -> Bits:
        parts = {"model": self.model, "optim": self.optimizer, "ema": self.ema}
        return {
            f"{stem} {name}": array.tobytes()
            for stem, part in parts.items()
            for name, array in part.state_dict().items()
        }


def _model(clock: Clock, fault: Fault | None) -> ViT:
    model = ViT(
        "Ti/4",
        backend=None,
        image_size=8,
        in_channels=1,
        num_classes=3,
        dim=8,
        depth=2,
        num_heads=2,
        mlp_dim=16,
        dropout=0.1,
        drop_path=0.1,
    )
    if fault is not None and fault.layer in LAYERS:
        *path, last = fault.layer.split(".")
        owner: Any = model
        for part in path:
            owner = owner[int(part)] if part.isdecimal() else getattr(owner, part)
        setattr(owner, last, Spoiled(getattr(owner, last), clock))
    model.patch_embed = Watched(model.patch_embed, clock)  # type: ignore[assignment]
    model.place("numpy", seed=1)
    weight = dict(model.named_parameters())["head.weight"].value
    weight[...] = philox(0, "a head").normal(0, 0.5, weight.shape)  # zeros let no gradient through
    return model


def marked(step: int, piece: int) -> bytes:
    """Return the images of one batch of a run."""
    epoch, step = divmod(step, STEPS)
    batches = list(Loader(DATA, 2, shuffle=True).batches(epoch))
    return batches[2 * step + piece].images.tobytes()


def in_checkpoints(folder: Path) -> dict[str, Bits]:
    """Return the bits of all checkpoints; none may hold a number that is not finite."""
    kept = {}
    for path in sorted(folder.glob("checkpoints/step-*")):
        arrays = files.load(path).arrays
        for named in arrays.values():
            for name, array in named.items():
                assert np.isfinite(array).all(), f"{path.name}: {name}"
        kept[path.name] = {
            f"{stem} {name}": array.tobytes()
            for stem, named in arrays.items()
            for name, array in named.items()
        }
    for pointer in ("last", "best"):
        if (folder / f"{pointer}.json").exists():
            assert files.read_pointer(folder / f"{pointer}.json")["checkpoint"] in kept
    return kept
