"""What is read of a race on a GPU: images a second, how much of the GPU that is, goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import report

GOALS: dict[str, dict[str, float]] = {
    "gpu_train B": {"images/s": 5200, "max_autotune": 1.15},
    "gpu_infer B": {"images/s": 16000},
    "gpu_train T": {"eager": 3.0},
}
"""What the fastest of vitkit's contenders is to reach: a rate, or so many times another's."""
HEADERS = (
    "contender", "batch", "ms", "images/s", "MFU", "times as fast", "min-max", "peak MB", "SM MHz",
    "W", "start s",
)  # fmt: skip


def summary(found: dict[str, Any], against: str) -> dict[str, dict[str, Any]]:
    """Return what a table says of each contender that was timed."""
    timed = {name: one for name, one in found["contenders"].items() if one.get("turns")}
    return {name: _row(found, one, timed[against]["turns"]) for name, one in timed.items()}


def _row(found: dict[str, Any], one: dict[str, Any], base: report.Turns) -> dict[str, Any]:
    seconds = statistics.median(one["turns"].values())  # of one image
    batch = one["batches"][str(one["batch_size"])]
    ratios = report.ratios(base, one["turns"])
    states = [state for state in one["states"].values() if state]
    peak = found["peak"]["flops"]
    return {
        "batch_size": one["batch_size"],
        "median_ms": 1e3 * seconds * one["batch_size"],
        "images_per_second": 1 / seconds,
        "tflops": found["flop_per_image"] / seconds / 1e12,
        "mfu": found["flop_per_image"] / seconds / peak if peak else None,
        "times_as_fast": report.spread(ratios) if ratios else None,
        "peak_mb": batch["peak_bytes"] / 1e6,
        "state": {
            unit: statistics.median(state[unit] for state in states) for unit in (states or [{}])[0]
        },
        "start_seconds": one["import_seconds"] + one["start_seconds"],
    }


def base_of(found: dict[str, Any], wanted: str) -> str | None:
    """Return whom the others are compared to: who is wanted, or the next who was timed."""
    timed = [name for name, one in found["contenders"].items() if one.get("turns")]
    preferred = (wanted, "max_autotune", "compiled", "eager", *timed)
    return next((name for name in preferred if name in timed), None)


def race_table(found: dict[str, Any], against: str, style: str = "markdown") -> str:
    """Return the table of a race, and below it what there is to say."""
    base = base_of(found, against)
    if base is None:
        return "\n".join(["Nobody was timed.", *_remarks(found)])
    rows = []
    for name, row in summary(found, base).items():
        fast, state = row["times_as_fast"], row["state"]
        rows.append([
            found["contenders"][name]["title"],
            str(row["batch_size"]),
            f"{row['median_ms']:.2f}",
            f"{row['images_per_second']:.0f}",
            "" if row["mfu"] is None else f"{row['mfu']:.1%}",
            "" if fast is None else f"{fast['median']:.2f}",
            "" if fast is None else f"{fast['min']:.2f}-{fast['max']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{state['MHz']:.0f}" if state else "",
            f"{state['W']:.0f}" if state else "",
            f"{row['start_seconds']:.0f}",
        ])  # fmt: skip
    lines = [heading(found, base), "", report.table(HEADERS, rows, style), "", *_remarks(found)]
    return "\n".join([*lines, *goals(found)])


def heading(found: dict[str, Any], base: str) -> str:
    """Return one line that says what was raced."""
    versions = found["versions"]
    used = [f"{name} {versions[name]}" for name in versions if name.startswith(("cupy", "torch"))]
    return (
        f"{found['benchmark']}, configuration {found['name']}, {found['activation']}, medians of "
        f"{found['rounds']} rounds, ratios to {found['contenders'][base]['title']}; "
        f"{found['gpu']['name']}, {', '.join(used)}, {found['date']}"
    )


def _remarks(found: dict[str, Any]) -> Iterable[str]:
    """Yield a line on the peak, on what was cut, and for each on batches, attention, failure."""
    yield f"MFU is of {found['peak']['by']}."
    yield from found["cut"]
    for one in found["contenders"].values():
        said = []
        if one["status"] != "ran":
            said.append(f"{one['status']}: {one['reason'].rstrip('.')}")
        notes = one.get("notes", {})
        if "attention" in notes:
            said.append(f"attention by {notes['attention']}")
        said += [
            f"batch {size}: {each['reason']}"
            for size, each in one["batches"].items()
            if "reason" in each
        ]
        if said:
            yield f"{one['title']}: {'; '.join(said)}."


def goals(found: dict[str, Any]) -> Iterable[str]:
    """Yield a line for each goal of this race that the fastest of vitkit's contenders has."""
    contenders = found["contenders"]
    ours = {
        name: statistics.median(one["turns"].values())
        for name, one in contenders.items()
        if one["title"].startswith("vitkit") and one.get("turns")
    }
    wanted = GOALS.get(f"{found['benchmark']} {found['name']}", {})
    if not (ours and wanted):
        return
    best = min(ours, key=ours.__getitem__)
    for what, goal in wanted.items():
        if what == "images/s":
            have, unit = 1 / ours[best], "images/s"
        else:
            theirs = contenders.get(what, {}).get("turns", {})
            ratios = report.ratios(theirs, contenders[best]["turns"])
            if not ratios:
                yield f"Goal: {goal:g} times {what}: not measured."
                continue
            have, unit = statistics.median(ratios), f"times {contenders[what]['title']}"
        reached = "reached" if have >= goal else f"{have / goal:.0%} of it"
        yield f"Goal: {goal:g} {unit}; {contenders[best]['title']}: {have:.4g}, {reached}."
