"""From a run folder back to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vitkit.checkpoint.files as files
import vitkit.checkpoint.runs as runs
from vitkit.backend import ArrayModule
from vitkit.checkpoint import Checkpoint
from vitkit.errors import CheckpointError, ConfigError, suggestion
from vitkit.models import ViT, ViTConfig
from vitkit.nn.activation import ACTIVATIONS
from vitkit.nn.layers import LAYERS, PARTS
from vitkit.train.needed import missing, needed
from vitkit.train.preprocess import Preprocess


@dataclass(frozen=True)
class Restored:
    """A trained model and what it takes to use it.

    Attributes
    ----------
    model : ViT
        The model, placed.
    preprocess : Preprocess
        How it was taught to see pixels.
    classes : tuple of str
        What its outputs stand for.
    checkpoint : Checkpoint
        Where it came from.
    """

    model: ViT
    preprocess: Preprocess
    classes: tuple[str, ...]
    checkpoint: Checkpoint


def documents(
    model: ViT,
    preprocess: Preprocess,
    classes: tuple[str, ...],
    plugins: Sequence[dict[str, Any]] = (),
    *,
    precision: str | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint must hold besides arrays for :func:`restore` to work.

    Parameters
    ----------
    model : ViT
        The model.
    preprocess : Preprocess
        How it sees pixels.
    classes : tuple of str
        What its outputs stand for.
    plugins : sequence of dict, default ()
        Those in use; see :mod:`vitkit.train.needed`.
    precision : str, optional
        What was asked for; the model's own, which is what was served, if left out.
    """
    return {
        "model": model.config.to_dict(),
        "preprocess": preprocess.to_dict(),
        "classes": list(classes),
        "plugins": list(plugins),
        "precision": {"asked": precision or model.precision, "served": model.precision},
    }


def find_checkpoint(path: Path, which: str = "best") -> Path:
    """Return the checkpoint directory that ``path`` means.

    Parameters
    ----------
    path : Path
        A run folder, or a checkpoint directory, which is returned as it is.
    which : str, default "best"
        ``"best"`` or ``"last"``; a run without validation has no best, and its last is taken.

    Raises
    ------
    ConfigError
        If ``which`` is neither.
    CheckpointError
        If there is none.
    """
    _refuse_others("which", which, ("best", "last"))
    if (path / files.MANIFEST).is_file():
        return path
    for name in (which, "last"):
        pointer = path / f"{name}.json"
        if pointer.is_file():
            return path / runs.FOLDER / str(files.read_pointer(pointer)["checkpoint"])
    if not path.exists():
        raise CheckpointError(f"There is no {path}. Name a run folder, such as runs/<name>.")
    if runs.entries(path):  # of a process that was killed before it had written a pointer
        return runs.latest(path)
    raise CheckpointError(
        f"{path} holds no checkpoint: neither last.json nor {files.MANIFEST} is there. Name a run "
        "folder that training has written, or a folder under its checkpoints/."
    )


def restore(
    path: str | Path,
    *,
    backend: str | ArrayModule = "numpy",
    which: str = "best",
    weights: str = "auto",
) -> Restored:
    """Return the model of a run folder or checkpoint directory, verified.

    It computes in the precision it was trained in, where that is served here.

    Parameters
    ----------
    path : str or Path
        Where it is.
    backend : str or module, default "numpy"
        Where the model is to compute.
    which : str, default "best"
        ``"best"`` or ``"last"``, for a run folder.
    weights : str, default "auto"
        ``"raw"``, ``"ema"``, or ``"auto"``: the averaged weights where there are some, since it is
        those that were validated.

    Raises
    ------
    ConfigError
        If ``which`` or ``weights`` is none of these.
    CheckpointError
        If there is none, or it is damaged, or it is not a vitkit model, or a plugin that the
        model is made with is not here.
    """
    _refuse_others("weights", weights, ("auto", "raw", "ema"))
    checkpoint = files.load(find_checkpoint(Path(path), which))
    arrays = _weights(checkpoint, weights)
    try:
        trainer = checkpoint.documents["trainer"]
        options = dict(trainer["model"])
        _refuse_missing(trainer, options)
        config = ViTConfig.from_dict(options)
        preprocess = Preprocess.from_dict(trainer["preprocess"])
        if len(preprocess.mean) != config.in_channels:
            raise ValueError(f"preprocess is of {len(preprocess.mean)} channels")
        classes = _classes(trainer["classes"], config.num_classes)
        model = ViT(config, backend=None)
        precision = trainer.get("precision", {"served": "float32"})["served"]
        model.place(backend, seed=None, precision=precision)
        model.load_state_dict(arrays)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"The checkpoint {checkpoint.path} does not hold a vitkit model: "
            f"{f'{error} is missing' if isinstance(error, KeyError) else error}"
        ) from error
    return Restored(model, preprocess, classes, checkpoint)


def _classes(names: object, count: int) -> tuple[str, ...]:
    """Return the names of classes: one for each output, or none at all."""
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if isinstance(names, list) and known and len(names) in (0, count):
        return tuple(names)
    raise ValueError(f"classes must be a list of {count} names")


def _refuse_missing(trainer: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise if a part of the model came from a plugin that is not here."""
    named = [("layer", options.get(part)) for part in PARTS]
    named.append(("activation", options.get("activation")))
    known = {"layer": LAYERS, "activation": ACTIVATIONS}
    absent = [f"{kind} {name}" for kind, name in named if name and name not in known[kind]]
    lines = missing(needed(trainer), absent) if absent else []
    if lines:
        raise CheckpointError("\n".join(lines))


def _weights(checkpoint: Checkpoint, weights: str) -> dict[str, Any]:
    averaged = "ema" in checkpoint.arrays if weights == "auto" else weights == "ema"
    stem = "ema" if averaged else "model"
    if stem not in checkpoint.arrays:
        raise CheckpointError(
            f"The checkpoint {checkpoint.path} has no {stem}.safetensors; it holds "
            f"{', '.join(sorted(checkpoint.arrays)) or 'no arrays'}."
        )
    return {name: array for name, array in checkpoint.arrays[stem].items() if name != "updates"}


def _refuse_others(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(
            f"{name}: got {value!r}, expected {', '.join(known[:-1])} or {known[-1]}"
            f"{suggestion(value, known) or '.'}"
        )
