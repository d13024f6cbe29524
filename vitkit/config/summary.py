"""The results of a run: evaluated, drawn, and summed up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitkit.errors import CheckpointError
from vitkit.signals import STOPPED
from vitkit.train import plots
from vitkit.train.evaluate import evaluate
from vitkit.train.restore import Restored, restore

if TYPE_CHECKING:
    from vitkit.config.runner import Run


def summary_of(run: Run) -> dict[str, Any]:
    """Evaluate the best checkpoint on what is held back, draw pictures, and sum up."""
    best = _best(run)
    interrupted = run.state.stop in STOPPED.values()
    results: dict[str, float] = {}
    parts = {"val": run.parts.val, "test": run.parts.test}
    for part, loader in parts.items():
        if loader is not None and not interrupted:
            with run.display.counting(part, len(loader.dataset)) as on_batch:
                found = evaluate(
                    best.model,
                    loader,
                    loss=run.parts.loss,
                    preprocess=best.preprocess,
                    on_batch=on_batch,
                    graph=run.config.train.graph,
                )
            results |= {f"{part}_accuracy": found.accuracy, f"{part}_loss": found.loss}
    pictures = [] if interrupted else _pictures(run, best)
    return {
        "dataset": run.config.data.name,
        "model": run.parts.model.config.variant,
        "parameters": run.parts.model.num_parameters,
        "backend": run.parts.model.xp.__name__,
        "seed": run.config.seed,
        "epochs": run.state.epoch,
        "steps": run.state.step,
        "seconds": round(run.state.seconds, 2),
        "train_loss": run.state.metrics.get("train_loss"),
        "val_accuracy": results.get("val_accuracy"),
        "val_loss": results.get("val_loss"),
        "test_accuracy": results.get("test_accuracy"),
        "test_loss": results.get("test_loss"),
        "test_images": len(run.data.test),
        "note": run.data.test.note,
        "train_note": run.data.train.note,
        "stopped": run.state.stop or None,
        "checkpoint": best.checkpoint.path.name,
        "plots": pictures,
    }


def _best(run: Run) -> Restored:
    """Return the model of the best checkpoint, or of the last where that cannot be trusted."""
    xp = run.parts.model.xp
    try:
        return restore(run.folder, backend=xp)
    except CheckpointError as error:
        found = restore(run.folder, backend=xp, which="last")
        run.display.warn(f"{error} The results are those of {found.checkpoint.path.name}.")
        return found


def _pictures(run: Run, best: Restored) -> list[str]:
    if not plots.available():
        run.say(plots.MISSING)
        return []
    curve, attention = run.folder / "plots/curve.png", run.folder / "plots/attention.png"
    plots.learning_curve(run.folder / "metrics.jsonl", curve)
    drawn = [curve]
    try:
        plots.attention_picture(best.model, run.data.test, best.preprocess, attention)
        drawn.append(attention)
    except NotImplementedError as error:
        run.say(f"No picture of attention: {error}")
    return [path.relative_to(run.folder).as_posix() for path in drawn]
