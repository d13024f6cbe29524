"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from vitkit.backend import can_record
from vitkit.data import Batch, Loader
from vitkit.errors import BackendError
from vitkit.kernels import why_none
from vitkit.nn.module import Module
from vitkit.ops import softmax_cross_entropy
from vitkit.ops._op import kernels_off
from vitkit.ops._profile import paused, section
from vitkit.optim import AdamW, Optimizer
from vitkit.train.callbacks.base import Callback
from vitkit.train.evaluate import evaluate, predict
from vitkit.train.graph import GraphedStep
from vitkit.train.loss_scale import LossScale, loss_scale_for
from vitkit.train.memory import too_little
from vitkit.train.metrics import Metrics
from vitkit.train.preprocess import Preprocess
from vitkit.train.state import TrainState
from vitkit.train.step import Loss

if TYPE_CHECKING:
    from collections.abc import Callable


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
        From the step (0, 1, ...) to the learning rate; by default the optimizer's own rate. The
        step is that of the run, in which those that were skipped count too.
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
        (:class:`vitkit.train.GraphedStep`). By default they are where they can be, and where that
        fails one line says why; with True it is an error. Numbers that Python knows are then those
        of the step that was recorded: where a callback or plugin changes any but the learning rate
        and the weight decay, use False.

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
        if graph and not can_record(model.xp):
            raise BackendError(
                f"graph=True needs a GPU to record on; the model is on {model.xp.__name__}. Leave "
                "it out, or place the model with backend='cupy'."
            )
        self.graph = graph
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
        """
        if not isinstance(loader, Loader):
            raise TypeError(
                f"fit takes a Loader: wrap the dataset, Loader(dataset, batch_size, shuffle=True); "
                f"got {loader!r}."
            )
        state = state or TrainState(seed=self.seed)
        state.epochs, state.updating = epochs, False
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
            raise
        return state

    def _step_maker(self, preprocess: Preprocess) -> GraphedStep:
        """Return what makes steps: recorded as graphs where that is wanted and can be."""
        xp = self.model.xp
        records = can_record(xp) and not why_none(xp) and not kernels_off()
        return GraphedStep(
            self.model,
            self.optimizer,
            self.loss,
            preprocess,
            max_grad_norm=self.max_grad_norm,
            loss_scale=self.loss_scale,
            records=records if self.graph is None else self.graph,
            falls_back=self.graph is None,
        )

    def _train_epoch(self, loader: Loader, state: TrainState, make_step: GraphedStep) -> None:
        started = time.perf_counter()
        for batches in self._grouped(loader.batches(state.epoch, start=state.position)):
            try:
                log = make_step(
                    batches,
                    lr=self.schedule(state.step),
                    seed=state.seed,
                    step=state.step,
                    before_update=state.begin_update,
                )
            except MemoryError as error:
                raise too_little(error, self.model, self.optimizer, batches) from None
            state.end_step(len(batches), (now := time.perf_counter()) - started)
            started = now
            # A step that is made is seen by all, so that a checkpoint of it is whole.
            with section("callbacks"):
                failures = self._call_all("on_step_end", state, log)
            if failures:
                raise failures[0]
            if state.stop:
                return
        state.epoch, state.position = state.epoch + 1, 0
        with paused():  # a profile is one of steps
            self._call("on_epoch_end", state)

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
        return evaluate(self.model, loader, loss=self.loss, preprocess=self.preprocess)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return class probabilities, (N, K), for uint8 images (N, C, H, W).

        Raises
        ------
        RuntimeError
            Before ``fit``, when it is not known how pixels become input.
        """
        if self.preprocess is None:
            raise RuntimeError("Trainer.predict needs the statistics of fit's images: fit first.")
        return predict(self.model, images, self.preprocess)
