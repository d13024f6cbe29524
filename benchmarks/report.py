"""From what was measured to what is read: medians, ratios, tables.

Usage: python benchmarks/report.py FILE [--against NAME] [--format markdown|rst]
shows a file of ``cpu_train.py``, ``cpu_infer.py`` or a program for GPUs again, against another
contender if need be.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Turns = dict[str, float]
"""Seconds, by the number of the round."""


def ratios(base: Turns, own: Turns) -> list[float]:
    """Return how many times as fast as the base a contender was, for each round they shared."""
    return [base[turn] / own[turn] for turn in own if turn in base]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, and the extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(report: dict[str, Any], against: str) -> dict[str, dict[str, Any]]:
    """Return what a table says of each contender that had rounds with one of them.

    Those of other heats, in which that one did not run, cannot be compared to it and are left out.
    """
    contenders = report["contenders"]
    ran = {name: one for name, one in contenders.items() if one.get("turns")}
    if against not in ran:
        raise SystemExit(f"{against!r} did not run; there are {', '.join(ran)}.")
    base = ran[against]["turns"]
    return {
        name: _row(report, one, base) for name, one in ran.items() if ratios(base, one["turns"])
    }


def _row(report: dict[str, Any], one: dict[str, Any], base: Turns) -> dict[str, Any]:
    seconds = statistics.median(one["turns"].values())
    return {
        "median_ms": 1e3 * seconds,
        "best_ms": 1e3 * min(one["turns"].values()),
        "images_per_second": report["configuration"]["batch_size"] / seconds,
        "gflops": report["flop"] / seconds / 1e9,
        "share_of_products": _share(report, one),
        "times_as_fast": spread(ratios(base, one["turns"])),
        "peak_mb": one.get("peak_bytes", 0) / 1e6,
        "import_seconds": one["import_seconds"],
        # From the start of the import to the first result, compilation included.
        "start_seconds": sum(
            (one["import_seconds"], one["prepare_seconds"], one["first_seconds"][0])
        ),
    }


def _share(report: dict[str, Any], one: dict[str, Any]) -> float | None:
    """Return the rate as a share of that of matrix products alone, by the fastest library."""
    rivals = [
        product
        for product in report["products"].values()
        if product["precision"] == one["precision"] and product.get("turns")
    ]
    # A round's rate over that of its products is (flop / own) / (flop of products / theirs).
    shares = [
        statistics.median(ratios(product["turns"], one["turns"])) * report["flop"] / product["flop"]
        for product in rivals
    ]
    return min(shares, default=None)


def rates(products: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return GFLOP/s of matrix products alone, by library."""
    return {
        name: product["flop"] / statistics.median(product["turns"].values()) / 1e9
        for name, product in products.items()
        if product.get("turns")
    }


HEADERS = (
    "contender", "ms", "best", "images/s", "GFLOP/s", "of products", "times as fast", "min-max",
    "peak MB", "import s", "start s",
)  # fmt: skip


def race_table(report: dict[str, Any], against: str, style: str = "markdown") -> str:
    """Return the table of a race, and below it who did not run and how the others agreed."""
    rows = []
    for name, row in summary(report, against).items():
        fast, share = row["times_as_fast"], row["share_of_products"]
        rows.append([
            report["contenders"][name]["title"],
            f"{row['median_ms']:.1f}",
            f"{row['best_ms']:.1f}",
            f"{row['images_per_second']:.1f}",
            f"{row['gflops']:.0f}",
            "" if share is None else f"{share:.0%}",
            f"{fast['median']:.2f}",
            f"{fast['min']:.2f}-{fast['max']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['import_seconds']:.2f}",
            f"{row['start_seconds']:.2f}",
        ])  # fmt: skip
    lines = [heading(report, against), "", table(HEADERS, rows, style), "", *_remarks(report)]
    return "\n".join(lines)


def write(report: dict[str, Any], file: Path) -> None:
    """Write a report as JSON, with as many digits as a measurement has."""
    file.write_text(json.dumps(_rounded(report), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON knows no NaN
    return value


def heading(report: dict[str, Any], against: str) -> str:
    """Return one line that says what was raced."""
    machine = report["machine"]
    return (
        f"{report['benchmark']}, configuration {report['name']}, batch "
        f"{report['configuration']['batch_size']}, {machine['threads']} threads, medians of "
        f"{report['rounds']} rounds, ratios to {report['contenders'][against]['title']}; "
        f"{machine['processor']}, {report['date']}"
    )


def _remarks(report: dict[str, Any]) -> Iterable[str]:
    """Yield a line for the products, and one for each who did not run or was wrong."""
    measured = ", ".join(
        f"{report['products'][name]['title']} {rate:.0f}"
        for name, rate in rates(report["products"]).items()
    )
    yield f"Matrix products alone, GFLOP/s: {measured or 'not measured'}."
    for one in (*report["contenders"].values(), *report["products"].values()):
        if one["status"] != "ran":
            yield f"{one['title']}: {one['status']}: {one['reason']}."


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], style: str = "markdown") -> str:
    """Return a table for Markdown, which is for a terminal too, or for reStructuredText."""
    if style == "rst":
        head = [".. csv-table::", "   :header: " + _csv(headers), ""]
        return "\n".join([*head, *("   " + _csv(row) for row in rows)])
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    pad = [str.ljust] + [str.rjust] * (len(widths) - 1)

    def line(cells: Sequence[str]) -> str:
        padded = (fill(cell, width) for fill, cell, width in zip(pad, cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headers), line(rule), *map(line, rows)])


def _csv(cells: Sequence[str]) -> str:
    return ", ".join(f'"{cell}"' for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--against")
    parser.add_argument("--format", choices=("markdown", "rst"), default="markdown")
    arguments = parser.parse_args()
    report = json.loads(arguments.file.read_text())
    against = arguments.against or report.get("against")
    if report["benchmark"] == "gpu_kernels":
        import gpu_kernels  # which imports this module

        gpu_kernels.show(report, arguments.format)
    elif report["benchmark"] == "gpu_profile":
        import gpu_profile

        print("\n".join(gpu_profile.lines(report, arguments.format)))
    elif report["benchmark"].startswith("gpu_"):
        import gpu_report

        print(gpu_report.race_table(report, against, arguments.format))
    else:
        print(race_table(report, against, arguments.format))


if __name__ == "__main__":
    main()
