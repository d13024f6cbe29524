"""A step that was not finite, from the folder that training has written back to its objects."""

from __future__ import annotations

import tomllib
from pathlib import Path

import vitkit.checkpoint.files as files
from vitkit.config.build import components
from vitkit.config.run import RunConfig
from vitkit.errors import CheckpointError
from vitkit.plugins import Registries
from vitkit.train.bad_steps import BadStep, bad_steps_of, batches_of
from vitkit.train.restore import restore


def latest_bad_step(path: Path) -> Path | None:
    """Return the bad step that a path means: itself, or the last of a run folder, if it has one.

    Raises
    ------
    CheckpointError
        If there is nothing of the kind.
    """
    if (path / files.MANIFEST).is_file():
        return path
    if not (path / "config.toml").is_file():
        raise CheckpointError(
            f"{path} is neither a run folder nor a bad step: it has no config.toml and no "
            f"{files.MANIFEST}. Name a folder that 'vitkit train' has written, or a folder "
            "bad-step-NNNNNNNN in it."
        )
    return next(reversed(bad_steps_of(path)), None)


def open_bad_step(path: Path, registries: Registries) -> BadStep:
    """Return a bad step, verified, with its model, optimizer and loss made anew.

    Parameters
    ----------
    path : Path
        A folder ``bad-step-NNNNNNNN``.
    registries : Registries
        What names stand for.

    Raises
    ------
    CheckpointError
        If it is damaged or no bad step.
    """
    if "step.json" not in files.verify(path):
        raise CheckpointError(
            f"{path} is no bad step: it holds no step.json. Name a folder bad-step-NNNNNNNN, or "
            "the run folder that it is in."
        )
    restored = restore(path, weights="raw")
    arrays, documents = restored.checkpoint.arrays, restored.checkpoint.documents
    try:
        facts = documents["step"]
        config = RunConfig.model_validate(tomllib.loads(documents["trainer"]["config"]))
        optimizer, _, loss, _ = components(config, registries, None)
        model = restored.model
        if config.dtype != "float32":
            model.place("numpy", seed=None, dtype=config.dtype)
            model.load_state_dict(arrays["model"])
        optimizer.attach(model, layer_decay=config.train.layer_decay)
        optimizer.load_state_dict(arrays["optim"])
        norm = facts["max_grad_norm"]
        return BadStep(
            model,
            optimizer,
            batches_of(arrays["batch"]),
            loss,
            restored.preprocess,
            seed=int(facts["seed"]),
            step=int(facts["step"]),
            lr=float(facts["lr"]),
            max_grad_norm=None if norm is None else float(norm),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path} does not hold a bad step of this vitkit: {what}. Run it again where it was "
            "written."
        ) from error
