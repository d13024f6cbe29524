"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from vitkit.backend import backend_of
from vitkit.data import Batch, Loader
from vitkit.nn.module import Module
from vitkit.ops import softmax_cross_entropy
from vitkit.ops._profile import paused, section
from vitkit.optim import AdamW, Optimizer
from vitkit.train.bad_steps import BadStep, BadSteps, cure_of
from vitkit.train.callbacks.base import Callback, LeaveOpen
from vitkit.train.evaluate import evaluate, predict
from vitkit.train.graph import GraphedStep
from vitkit.train.loss_scale import TOO_MANY, LossScale, loss_scale_for
from vitkit.train.memory import too_little
from vitkit.train.metrics import Metrics
from vitkit.train.nonfinite import NotFinite, check_policy
from vitkit.train.preprocess import Preprocess
from vitkit.train.recorded import wants_graphs
from vitkit.train.state import TrainState
from vitkit.train.step import Loss

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGER = logging.getLogger("vitkit")


class Trainer:
    """Teaches a model the images of a loader; everything else is a callback.

    Parameters
    ----------
    model : Module
        The model, placed.
    optimizer : Optimizer, optional
        The update rule, attached here unless it is attached to this model already;
        AdamW(lr=1e-3, weight_decay=0.05) if left out.
    loss : callable, default softmax_cross_entropy
        ``loss(logits, labels, *, xp)`` returns the batch's mean and its gradient.
    schedule : callable, optional
        From the step (0, 1, ...) to the learning rate; by default the optimizer's own rate. Steps
        that were skipped do not count, but on a device, which alone knows of them, they do.
    callbacks : sequence of Callback, default ()
        Called in this order.
    grad_accum : int, default 1
        Batches whose gradients add up to one step.
    max_grad_norm : float, optional
        The global norm that gradients are clipped to.
    seed : int, default 0
        Where dropout draws from.
    loss_scale : LossScale, optional
        What the loss is multiplied by for backward, such as one that a checkpoint is made of; by
        default a new one for a model that computes in float16, and none for others. With it, a
        step whose gradient is not finite is skipped: it changes neither weights nor optimizer.
    graph : bool, optional
        Whether steps are recorded and asked of the device as one graph
        (:class:`vitkit.train.GraphedStep`), and likewise the model's work on the batches that it
        evaluates or predicts. By default they are where they can be, and where that fails one line
        says why; with True it is an error. Numbers that Python knows are then those of the step
        that was recorded: where a callback or plugin changes any but the learning rate and the
        weight decay, use False.
    nonfinite : str, default "raise"
        What to do about a step whose loss or gradient is not finite, where no loss is scaled. On
        the host it is judged before it has changed anything: ``"raise"`` ends the run with an
        error that names the first such number, ``"stop"`` ends it as if it were done, and
        ``"skip"`` goes on without the step, up to 49 in a row. On a device ``"skip"`` has the
        device leave the step out, and the others judge it when a
        :class:`~vitkit.train.callbacks.Recorder` reads its sums.
    bad_steps : BadSteps, optional
        Where such steps are kept, for ``vitkit doctor``.

    Attributes
    ----------
    preprocess : Preprocess or None
        How pixels become input, known after ``fit``.

    Examples
    --------
    >>> import vitkit
    >>> from vitkit.data import Loader, digits
    >>> data = digits()
    >>> model = vitkit.ViT("Ti/4", image_size=8, in_channels=1, num_classes=10, dim=32, depth=1,
    ...                    num_heads=2)
    >>> trainer = vitkit.Trainer(model)
    >>> state = trainer.fit(Loader(data.train, 64, shuffle=True), epochs=1)
    >>> state.step
    23
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer | None = None,
        *,
        loss: Loss = softmax_cross_entropy,
        schedule: Callable[[int], float] | None = None,
        callbacks: Sequence[Callback] = (),
        grad_accum: int = 1,
        max_grad_norm: float | None = None,
        seed: int = 0,
        loss_scale: LossScale | None = None,
        graph: bool | None = None,
        nonfinite: str = "raise",
        bad_steps: BadSteps | None = None,
    ) -> None:
        if grad_accum < 1:
            raise ValueError(f"grad_accum must be 1 or more; got {grad_accum}.")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be an Optimizer, such as vitkit.optim.AdamW(1e-3); got "
                f"{optimizer!r}."
            )
        self.model = model
        self.optimizer = optimizer or AdamW(1e-3, weight_decay=0.05)
        if self.optimizer.attached is not model:
            self.optimizer.attach(model)
        self.loss = loss
        self.schedule = schedule or (lambda step: self.optimizer.lr)
        self.callbacks = list(callbacks)
        self.grad_accum = grad_accum
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.loss_scale = loss_scale_for(model) if loss_scale is None else loss_scale
        wants_graphs(model.xp, graph)  # refuses what cannot be before a run, not in it
        self.graph = graph
        self.nonfinite = check_policy(nonfinite)
        self.bad_steps = bad_steps
        self._on_host = backend_of(model.xp).on_host
        self._told = False  # of a step that was skipped
        self.preprocess: Preprocess | None = None

    def fit(
        self, loader: Loader, *, epochs: int = 1, state: TrainState | None = None
    ) -> TrainState:
        """Train until ``epochs`` epochs are done or a callback sets ``state.stop``.

        Parameters
        ----------
        loader : Loader
            The training images.
        epochs : int, default 1
            Epochs of the whole run, those of a resumed part included.
        state : TrainState, optional
            Where to go on; from the start if left out.

        Returns
        -------
        TrainState
            How far the run has come.

        Raises
        ------
        FloatingPointError
            If a loss or a gradient is not finite, as ``nonfinite`` says. On the host nothing of
            that step is kept, and the run can go on from the one before it.
        """
        if not isinstance(loader, Loader):
            raise TypeError(
                f"fit takes a Loader: wrap the dataset, Loader(dataset, batch_size, shuffle=True); "
                f"got {loader!r}."
            )
        state = state or TrainState(seed=self.seed)
        state.epochs, state.updating, self._told = epochs, False, False
        state.steps_per_epoch = -(-len(loader) // self.grad_accum)
        self.preprocess = Preprocess.of(loader.dataset)
        try:
            self._call("on_start", state)
            make_step = self._step_maker(self.preprocess)
            while state.epoch < epochs and not state.stop:
                self._train_epoch(loader, state, make_step)
            self._call("on_end", state)
        except BaseException as error:
            for failure in self._call_all("on_error", state, error):
                error.add_note(f"Then {type(failure).__name__}: {failure}")
            if isinstance(error, NotFinite):
                raise _as_floating_point_error(error) from None
            raise
        return state

    def _step_maker(self, preprocess: Preprocess) -> GraphedStep:
        """Return what makes steps: recorded as graphs where that is wanted and can be."""
        return GraphedStep(
            self.model,
            self.optimizer,
            self.loss,
            preprocess,
            max_grad_norm=self.max_grad_norm,
            loss_scale=self.loss_scale,
            nonfinite=self.nonfinite,
            records=wants_graphs(self.model.xp, self.graph),
            falls_back=self.graph is None,
        )

    def _train_epoch(self, loader: Loader, state: TrainState, make_step: GraphedStep) -> None:
        started = time.perf_counter()
        for batches in self._grouped(loader.batches(state.epoch, start=state.position)):
            try:
                log = make_step(
                    batches,
                    lr=self.schedule(state.updates),
                    seed=state.seed,
                    step=state.step,
                    before_update=state.begin_update,
                )
            except MemoryError as error:
                raise too_little(error, self.model, self.optimizer, batches) from None
            except NotFinite as error:
                self._refused(str(error), state, batches)
                return
            skipped = self._on_host and log.skipped is not None and bool(log.skipped)
            if skipped and self.loss_scale is None:
                self._judge_skip(state, batches)
            state.end_step(len(batches), (now := time.perf_counter()) - started)
            state.count_skip(skipped)
            started = now
            # A step that is made is seen by all, so that a checkpoint of it is whole.
            with section("callbacks"):
                failures = self._call_all("on_step_end", state, log)
            if failures:
                raise failures[0]
            if state.stop:
                return
        before = state.epoch, state.position, dict(state.metrics)
        state.epoch, state.position = state.epoch + 1, 0
        try:
            with paused():  # a profile is one of steps
                self._call("on_epoch_end", state)
        except LeaveOpen as reason:
            state.epoch, state.position, state.metrics = before
            state.stop = str(reason)

    def _judge_skip(self, state: TrainState, batches: list[Batch]) -> None:
        """Say of a step that was skipped, and raise where skipping is of no use."""
        last = state.skipped_in_a_row + 1 >= TOO_MANY
        hopeless = last or not all(np.isfinite(group.values).all() for group in self.model.groups)
        if self._told and not hopeless:
            return
        self._told = True
        problem = "A loss or gradient is not finite"
        if last:
            problem += f", as in the {TOO_MANY - 1} steps before, which were skipped,"
        outcome = "" if hopeless else "It is skipped, as others will be. "
        said = self._said(problem, outcome, state, batches)[1]
        if hopeless:
            raise NotFinite(said)
        LOGGER.warning(said)

    def _refused(self, problem: str, state: TrainState, batches: list[Batch]) -> None:
        """Raise because of a step, or have the run end before it."""
        stops = self.nonfinite == "stop"
        outcome = "The run ends before it. " if stops else ""
        what, said = self._said(problem, outcome, state, batches)
        if not stops:
            raise NotFinite(said)
        LOGGER.warning(said)
        state.stop = what

    def _said(
        self, problem: str, outcome: str, state: TrainState, batches: list[Batch]
    ) -> tuple[str, str]:
        """Keep a bad step; return what to say of it in short, and with all that can be done."""
        assert self.preprocess is not None  # noqa: S101
        step = BadStep(
            self.model,
            self.optimizer,
            batches,
            self.loss,
            self.preprocess,
            seed=state.seed,
            step=state.step,
            lr=self.schedule(state.updates),
            max_grad_norm=self.max_grad_norm,
        )
        what, found = step.told(problem)
        kept = f" {self.bad_steps.said(step, found)}" if self.bad_steps is not None else ""
        return what, f"{what}. {outcome}{cure_of(found)}{kept}"

    def _grouped(self, batches: Iterator[Batch]) -> Iterator[list[Batch]]:
        """Yield the batches of each step; the last one of an epoch may have fewer."""
        while True:
            with section("loading the batch"):
                group = list(islice(batches, self.grad_accum))
            if not group:
                return
            yield group

    def _call(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    def _call_all(self, event: str, *arguments: Any) -> list[Exception]:
        """Call every callback, whatever others raise, and return that."""
        failures = []
        for callback in self.callbacks:
            try:
                getattr(callback, event)(*arguments)
            except Exception as error:
                failures.append(error)
        return failures

    def evaluate(self, loader: Loader) -> Metrics:
        """Return the metrics over a loader's images, seen as the training images were."""
        return evaluate(
            self.model, loader, loss=self.loss, preprocess=self.preprocess, graph=self.graph
        )

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return class probabilities, (N, K), for uint8 images (N, C, H, W).

        Raises
        ------
        RuntimeError
            Before ``fit``, when it is not known how pixels become input.
        """
        if self.preprocess is None:
            raise RuntimeError("Trainer.predict needs the statistics of fit's images: fit first.")
        return predict(self.model, images, self.preprocess, graph=self.graph)


def _as_floating_point_error(error: NotFinite) -> FloatingPointError:
    """Return what users are told of a step that is not finite."""
    told = FloatingPointError(str(error))
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
