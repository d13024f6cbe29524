"""Where each millisecond of vitkit's training step goes on a GPU, against its floor.

Usage: python benchmarks/gpu_profile.py [B|T|tiny] [--budget SECONDS] [--batch IMAGES] [--narrow]
           [--out FILE]

The GPU notes a time around each part of a bfloat16 step, while the host is ahead of it, so that a
part's time is the part's and not that of asking for it. The floor of a part is the longer of two
times: what it must read and write, at the rate of a large copy, and its products, at that of a
large product, both measured in the same process. Parts come in the order of what could be won.
It ends with 1 if the step in parts computes something else, or fails.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import command
import gpu_machine
import report
from contenders.costs import Cost
from contenders.entries import GPU_PROFILE, GPU_PROFILE_NARROW, Entry
from contenders.task import Order, write_data
from gpu_race import Clock
from process import Dropped, Racer
from race import difference, write_weights

BATCHES = {"B": 256, "T": 128, "tiny": 4}
TOLERANCE = 1e-3
"""How far loss and norm of the step in parts may be from those of the step as it is."""
HEADERS = ("part", "calls", "ms", "floor ms", "x floor", "to win ms", "of step", "bound by")
MOST = 8
"""How many parts are named where there is no table of them."""
OTHERS = "other operations"
"""What operations are called that belong to no group."""


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of a table, those that most could be won of first, and their sums."""
    top = found["ceilings"]
    rows = {name: _row(part, top) for name, part in found["parts"].items()}
    rows = dict(sorted(rows.items(), key=lambda item: -item[1]["to_win_ms"]))
    groups: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        group = groups.setdefault(_group(name), {"ms": 0.0, "floor_ms": 0.0, "to_win_ms": 0.0})
        for key in group:
            group[key] += row[key]
    step: dict[str, Any] = {
        "parts_ms": sum(row["ms"] for row in rows.values()),
        "marks_ms": 1e3 * found["marks"]["count"] * found["marks"]["seconds"],
        "floor_ms": sum(row["floor_ms"] for row in rows.values()),
    }
    for how in ("eager", "graph"):
        if seconds := found.get(f"{how}_seconds"):
            step[f"{how}_ms"] = 1e3 * statistics.median(seconds)
            step[f"{how}_gap_ms"] = step[f"{how}_ms"] - (step["parts_ms"] - step["marks_ms"])
    upload = found["upload"]
    step["upload_ms"] = 1e3 * upload["seconds"]
    step["upload_floor_ms"] = 1e3 * upload["bytes"] / upload["bytes_per_second"]
    groups = dict(sorted(groups.items(), key=lambda item: -item[1]["to_win_ms"]))
    return {"step": step, "groups": groups, "rows": rows, "wrong": wrong(found["numbers"])}


def _row(part: dict[str, Any], top: dict[str, float]) -> dict[str, Any]:
    floors = Cost(part["flop"], part["bytes"]).floors(top["product_flops"], top["bytes_per_second"])
    bound = max(floors, key=floors.__getitem__)
    spent, floor = 1e3 * statistics.median(part["seconds"]), 1e3 * floors[bound]
    return {
        "calls": part["calls"],
        "ms": spent,
        "floor_ms": floor,
        "times_floor": spent / floor if floor else None,
        "to_win_ms": spent - floor,
        "bound": bound if floor else "",
    }


def _group(name: str) -> str:
    return name.partition(": ")[0] if ": " in name else OTHERS


def wrong(numbers: dict[str, list[float]]) -> str:
    """Return how the step in parts differs from the step as it is, or nothing."""
    pairs = zip(numbers["parts"], numbers["plain"], strict=True)
    named = zip(("loss", "norm"), [difference([mine], [true]) for mine, true in pairs], strict=True)
    return ", ".join(f"{what} {each:.1e} apart" for what, each in named if not each <= TOLERANCE)


def measured(
    order: Order, threads: int, clock: Clock, folder: Path, entry: Entry = GPU_PROFILE
) -> dict[str, Any]:
    """Return what a process of its own found; raise Dropped if it cannot."""
    decayed, _, flop = write_weights(replace(order.sizes, batch_size=1), Path(order.weights))
    write_data(order.sizes, folder)
    racer = Racer(entry, threads, folder / "log", stops=False)
    try:
        request = asdict(replace(order, decayed=decayed))
        patience = max(clock.left(), 5.0)
        found = racer.ask(patience=patience, do="call", what="profile", file="", **request)
    finally:
        racer.close()
    return {"flop": int(flop) * order.sizes.batch_size, **found}


def main() -> int:
    parser = command.parser(__doc__, rounds=5, names=BATCHES, name="B")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds in all")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--gelu", choices=("tanh", "erf"), default="tanh")
    parser.add_argument("--narrow", action="store_true", help="the residual is bfloat16 too")
    arguments = command.parse(parser, ())
    clock = Clock(arguments.budget)
    with tempfile.TemporaryDirectory() as where:
        order = Order(
            "train",
            arguments.name,
            str(Path(where) / "weights.safetensors"),
            device="dry" if arguments.dry else "cuda",
            batch_size=arguments.batch or BATCHES[arguments.name],
            activation="gelu_tanh" if arguments.gelu == "tanh" else "gelu",
            data=where,
        )
        found: dict[str, Any] = {
            "benchmark": "gpu_profile",
            "command": command.command_line(),
            **gpu_machine.describe(arguments.threads),
            "name": arguments.name,
            "narrow": arguments.narrow,
            "configuration": asdict(order.sizes),
            "budget": clock.budget,
            "cut": [],
        }
        try:
            entry = GPU_PROFILE_NARROW if arguments.narrow else GPU_PROFILE
            found |= measured(order, 1, clock, Path(where), entry)
            found["summary"] = judged(found)
        except Dropped as dropped:
            found["cut"].append(f"Not measured: {dropped.status}: {dropped.reason}.")
            found["status"] = dropped.status
    if arguments.out:
        report.write(found, arguments.out)
    print("\n".join(lines(found, arguments.style)))
    return int(found.get("status") == "failed" or bool(found.get("summary", {}).get("wrong")))


def lines(found: dict[str, Any], style: str = "markdown") -> Iterable[str]:
    """Yield a table of all parts, then of groups, and what there is to say."""
    yield from found["cut"]
    if "summary" not in found:
        return
    summary, c, top = found["summary"], found["configuration"], found["ceilings"]
    whole = summary["step"]["parts_ms"]
    yield (
        f"gpu_profile, configuration {found['name']}: a training step of {c['batch_size']} images "
        f"in bfloat16, {'its residual too, ' if found.get('narrow') else ''}{c['activation']}; "
        f"medians of steps. {found['gpu']['name']}, {found['date']}"
    )
    for each in (summary["rows"], summary["groups"]):
        yield ""
        rows = [_cells(name, row, whole) for name, row in each.items()]
        yield report.table(HEADERS, rows, style)
    yield ""
    yield from said(found)
    yield (
        f"Floors: {top['product_flops'] / 1e12:.4g} TFLOP/s of products and "
        f"{top['bytes_per_second'] / 1e9:.4g} GB/s of copies, read and written, measured here."
    )


def said(found: dict[str, Any]) -> Iterable[str]:
    """Yield the sums, and how far they are from the step without marks and from its graph."""
    summary = found["summary"]
    step = summary["step"]
    yield (
        f"All parts: {step['parts_ms']:.4g} ms; their floors: {step['floor_ms']:.4g} ms, "
        f"{step['floor_ms'] / step['parts_ms']:.0%}. "
        f"Noting times took {step['marks_ms']:.3g} ms of it."
    )
    for how, title in (("eager", "Asked for part by part"), ("graph", "As one graph")):
        if f"{how}_ms" in step:
            gap = step[f"{how}_gap_ms"]
            yield f"{title}: {step[f'{how}_ms']:.4g} ms, so gaps of {gap:.4g} ms."
    if "graph" in found:
        yield f"As one graph: {found['graph']}."
    yield (
        f"Beside a step, which does not wait for it: {step['upload_ms']:.4g} ms to bring its "
        f"pixels, {step['upload_floor_ms']:.4g} ms from pinned memory at best."
    )
    yield from [f"wrong: {summary['wrong']}"] if summary["wrong"] else []


def short(found: dict[str, Any]) -> Iterable[str]:
    """Yield what a table of everything says of this, if anything was measured."""
    if "summary" in found:
        rows = list(found["summary"]["rows"].items())[:MOST]
        named = [f"{name} {row['to_win_ms']:.3g} ms" for name, row in rows]
        yield from said(found)
        yield f"To win: {', '.join(named)}."


def _cells(name: str, row: dict[str, Any], whole: float) -> list[str]:
    times = row.get("times_floor", row["ms"] / row["floor_ms"] if row["floor_ms"] else None)
    return [
        name,
        str(row.get("calls", "")),
        f"{row['ms']:.3g}",
        f"{row['floor_ms']:.3g}",
        "" if times is None else f"{times:.2f}",
        f"{row['to_win_ms']:.3g}",
        f"{row['ms'] / whole:.1%}",
        row.get("bound", ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
