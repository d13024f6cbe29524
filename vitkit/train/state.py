"""How far a run has come: all that callbacks share, and all that resuming needs to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainState:
    """The position of a run.

    Attributes
    ----------
    seed : int
        Where order, augmentation and dropout come from.
    epochs : int
        How many epochs the run is to have.
    steps_per_epoch : int
        Optimizer steps in an epoch.
    step : int
        Optimizer steps made, those included that were skipped for their gradients.
    skipped, skipped_in_a_row : int
        How many of them were skipped, in all and since the last that was not; on a device, which
        alone knows, none.
    epoch : int
        Epochs finished.
    position : int
        Batches consumed of the current epoch.
    seconds : float
        Time spent training, resumed parts added up.
    metrics : dict of str to float
        The results of the latest epoch, such as ``"train_loss"`` and ``"val_loss"``.
    stop : str
        Why the run is to end before its last epoch; empty while it is not.
    updating : bool
        Whether step ``step + 1`` is changing the weights, which belong to no finished step then.
    """

    seed: int = 0
    epochs: int = 0
    steps_per_epoch: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    stop: str = ""
    updating: bool = False

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def updates(self) -> int:
        """Optimizer steps that changed the weights; the learning rate is a function of them."""
        return self.step - self.skipped

    def begin_update(self) -> None:
        """Say that the weights are about to change."""
        self.updating = True

    def end_step(self, batches: int, seconds: float) -> None:
        """Count a step that is finished, and the batches and the time it took."""
        self.updating = False
        self.step += 1
        self.position += batches
        self.seconds += seconds

    def count_skip(self, skipped: bool) -> None:
        """Count whether the step that is finished was skipped."""
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """Return the state that ``to_dict`` wrote, about to go on."""
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        return cls(**{**kept, "stop": "", "updating": False})
