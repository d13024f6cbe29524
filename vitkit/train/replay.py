"""A step made again under observation, to name the first number in it that is not finite.

Every module's ``forward`` and ``backward`` are watched while the same batches go through the model
with the same random numbers; operations that do the work of several modules are taken apart. Only
where nothing is found then, since rounding differs, are they watched as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitkit.data import Batch
from vitkit.nn.module import Module
from vitkit.optim import Optimizer, clip_global_norm
from vitkit.train.nonfinite import judge
from vitkit.train.preprocess import Preprocess
from vitkit.train.step import MOST_PIECES, Loss, add_gradients

MODULES = ("forward", "backward")
BRANCHES = ("branch", "branch_backward")
_ABSENT = object()


@dataclass(frozen=True)
class Finding:
    """The first number of a step that is not finite.

    Attributes
    ----------
    stage : str
        ``"weights"`` (before the step), ``"input"``, ``"forward"``, ``"loss"``, ``"backward"`` or
        ``"optimizer"``.
    module : str
        What made the number, such as ``"Linear 'head'"``.
    array : str
        What it made, such as ``"output"`` or ``"gradient of head.weight"``.
    shape, index : tuple of int
        The array's shape, and where in it the number is.
    value : str
        The number: ``"nan"``, ``"inf"`` or ``"-inf"``.
    piece, item, sample : int or None
        Which batch of the step, which image of the batch, and which of the data set; None where
        the number belongs to no single image.
    low, high : float or None
        The range of the finite numbers that the module was given.
    """

    stage: str
    module: str
    array: str
    shape: tuple[int, ...]
    index: tuple[int, ...]
    value: str
    piece: int | None = None
    item: int | None = None
    sample: int | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        place = f" at {list(self.index)}" if self.index else ""
        shape = f" of shape {self.shape}" if self.shape else ""
        text = f"{self.stage}: the {self.array}{shape} of {self.module} has {self.value}{place}"
        if self.item is not None:
            whose = f"image {self.sample} of those to train on"
            text += f", item {self.item} of batch {self.piece} ({whose})"
        if self.low is not None:
            text += f"; given were numbers from {self.low:.4g} to {self.high:.4g}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "shape": list(self.shape), "index": list(self.index)}


class _Found(Exception):
    """Ends a replay at what it has found."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class _Observer:
    """Looks at arrays, and raises at the first that is not finite."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.piece = batches, -1

    def look(
        self,
        stage: str,
        module: str,
        array: str,
        value: Any,
        given: tuple[float, float] | None = None,
        *,
        by_item: bool = True,
    ) -> None:
        """Raise if an array, or one of several, is not finite."""
        if isinstance(value, (tuple, list)):
            for each in value:
                self.look(stage, module, array, each, given, by_item=by_item)
            return
        numbers = np.asarray(value)
        if numbers.dtype.kind != "f" or (finite := np.isfinite(numbers)).all():
            return
        index = tuple(int(i) for i in np.unravel_index(np.argmin(finite), numbers.shape))
        finding = Finding(stage, module, array, numbers.shape, index, str(float(numbers[index])))
        known: dict[str, Any] = {}
        if 0 <= self.piece < len(self.batches) and by_item:
            batch = self.batches[self.piece]
            known["piece"] = self.piece
            if index and numbers.shape[0] == len(batch):
                known |= {"item": index[0], "sample": int(batch.indices[index[0]])}
        if given is not None:
            known |= {"low": given[0], "high": given[1]}
        raise _Found(Finding(**{**vars(finding), **known}))

    def method(self, module: Module, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of a module that is looked at."""
        backward = name.endswith("backward")
        stage, array = ("backward", "gradient of the input") if backward else ("forward", "output")

        def watched(*args: Any, **kwargs: Any) -> Any:
            given = _range(args)  # before the call, which may write over what it is given
            out = method(*args, **kwargs)
            self.look(stage, module.label, array, out, given)
            if backward:
                for parameter_name, p in module.named_parameters():
                    what = f"gradient of {p.name or parameter_name}"
                    self.look(stage, module.label, what, p.grad, given, by_item=False)
            return out

        return watched

    def preprocess(self, function: Callable[..., Any], scale: float) -> Callable[..., Any]:
        """Return a preprocessing that is looked at; each call begins a batch."""

        def watched(images: Any, model: Module) -> Any:
            self.piece += 1
            x = function(images, model)
            self.look("input", "preprocessing", "output", x, (0.0, scale))
            return x

        return watched

    def loss(self, function: Loss) -> Loss:
        """Return a loss that is looked at."""
        name = getattr(getattr(function, "func", function), "__qualname__", type(function).__name__)

        def watched(logits: Any, labels: Any, *, xp: Any) -> Any:
            given = _range([logits])
            value, dlogits = found = function(logits, labels, xp=xp)
            # Of the two, the gradient tells which image it is.
            self.look("loss", name, "gradient of the logits", dlogits, given)
            self.look("loss", name, "value", value, given)
            return found

        return watched


def first_not_finite(
    model: Module,
    batches: Sequence[Batch],
    loss: Loss,
    preprocess: Preprocess,
    *,
    seed: int,
    step: int,
) -> Finding | None:
    """Make the forward and backward of a step again, and name its first number that is not finite.

    The weights stay; gradients are those of the replay. For a model on the host.

    Parameters
    ----------
    model : Module
        The model, with the weights that the step began with.
    batches : sequence of Batch
        The step's images.
    loss, preprocess, seed, step
        As :func:`vitkit.train.train_step` takes them.

    Returns
    -------
    Finding or None
        None where all numbers are finite this time.
    """
    try:
        with np.errstate(all="ignore"):
            for name, p in model.named_parameters():
                _Observer(()).look("weights", model.label, f"parameter {name}", p.value)
            for apart in (True, False):
                observer = _Observer(batches)
                with _watched(model, observer, apart=apart):
                    total, _ = add_gradients(
                        model,
                        batches,
                        observer.loss(loss),
                        observer.preprocess(preprocess, preprocess.scale),
                        seed,
                        step * MOST_PIECES,
                        None,
                    )
                rest = _Observer(())
                rest.look("loss", "the mean over the step", "value", total)
                for name, p in model.named_parameters():
                    rest.look("backward", model.label, f"gradient of {name}", p.grad)
    except _Found as found:
        return found.finding
    return None


def first_after_update(
    model: Module, optimizer: Optimizer, *, lr: float, max_grad_norm: float | None
) -> Finding | None:
    """Update the model by the gradients it has, and name the first number that is not finite then.

    What the optimizer held before is looked at first. Weights and optimizer are those after it.
    """
    observer, name = _Observer(()), type(optimizer).__name__
    try:
        with np.errstate(all="ignore"):
            for key, array in optimizer.state_dict().items():
                observer.look("optimizer", f"{name} before the step", f"state {key}", array)
            given = _range([group.grads for group in model.groups])
            if max_grad_norm is not None:
                _, norm = judge(0.0, model.groups, clips=True, xp=model.xp)
                clip_global_norm(model.groups, max_grad_norm, xp=model.xp, norm=norm)
            optimizer.step(lr)
            for key, array in optimizer.state_dict().items():
                observer.look("optimizer", name, f"state {key}", array, given)
            for key, array in model.state_dict().items():
                observer.look("optimizer", name, f"parameter {key}", array, given)
    except _Found as found:
        return found.finding
    return None


@contextmanager
def _watched(model: Module, observer: _Observer, *, apart: bool) -> Iterator[None]:
    """Watch every module inside the block; ``apart`` has no operation do the work of several."""
    changed: list[tuple[dict[str, Any], str, Any]] = []

    def put(module: Module, name: str, method: Any) -> None:
        changed.append((vars(module), name, vars(module).get(name, _ABSENT)))
        vars(module)[name] = method

    try:
        for module in {id(module): module for _, module in model.modules()}.values():
            for name in (*MODULES, *(() if apart else BRANCHES)):
                if callable(method := getattr(module, name, None)):
                    put(module, name, observer.method(module, name, method))
            if apart and hasattr(module, "fuses"):
                put(module, "fuses", lambda ctx: False)
        yield
    finally:
        for own, name, old in reversed(changed):
            if old is _ABSENT:
                del own[name]
            else:
                own[name] = old


def _range(arrays: Sequence[Any]) -> tuple[float, float] | None:
    """Return the least and the largest finite number of some arrays; None where there is none."""
    finite = [
        numbers[np.isfinite(numbers)]
        for array in arrays
        if (numbers := np.asarray(array)).dtype.kind == "f"
    ]
    finite = [numbers for numbers in finite if numbers.size]
    if not finite:
        return None
    return min(float(n.min()) for n in finite), max(float(n.max()) for n in finite)
