"""vitkit's CUDA kernels one by one, beside what the GPU could do at best and PyTorch's function.

Usage: python benchmarks/gpu_kernels.py [B|T|tiny] [--budget SECONDS] [--only OP,OP] [--out FILE]

The floor of an operation is the longer of two times: what it must read and write, at the rate of a
large copy, and its products, at the rate of a large product, both measured first. It ends with 1 if
a kernel computes something else than PyTorch's function.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import command
import gpu_machine
import report
from command import say
from contenders.entries import GPU_OPERATIONS
from contenders.gpu_cases import gpu_cases
from contenders.op_cases import Case
from contenders.task import Order
from cpu_kernels import Trial, summary
from gpu_race import Clock
from process import Dropped

BATCHES = {"B": 256, "T": 128, "tiny": 4}
TURN = 0.05
"""Seconds that a turn should take."""
HEADERS = ("operation", "kernel us", "floor us", "of floor", "rate", "PyTorch us", "x", "remark")


def ceilings(trial: Trial) -> dict[str, Any]:
    """Return what the first of the processes that can measures of the GPU."""
    for who, racer in list(trial.racers.items()):
        try:
            return racer.ask(do="call", what="ceilings", file="", **asdict(trial.order))
        except Dropped as dropped:
            trial.missing[GPU_OPERATIONS[who].title] = dropped.reason
            trial.racers.pop(who).close()
            say(f"{GPU_OPERATIONS[who].title}: {dropped.reason}")
    return {}


def judged(case: Case, found: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    """Return what a table says of a case."""
    row = summary(case, found)
    moved = found.get("bytes", 0)
    if not (ceilings and "kernel_us" in row):
        return row
    floors = {
        "memory": 1e6 * moved / ceilings["bytes_per_second"],
        "products": 1e6 * case.flop / ceilings["product_flops"],
    }
    row["bound"] = max(floors, key=floors.__getitem__)
    row["floor_us"] = floors[row["bound"]]
    row["of_floor"] = row["floor_us"] / row["kernel_us"]
    return row


def line(name: str, found: dict[str, Any]) -> list[str]:
    """Return a table's line."""
    row = found["summary"]
    rate = f"{row['gflops'] / 1e3:.0f} TFLOP/s" if "gflops" in row else ""
    rate = f"{row['gb_per_s']:.0f} GB/s" if "gb_per_s" in row else rate
    ratio = row.get("times_as_fast_as_torch", {}).get("median")
    torch = found.get("torch", {})
    remarks = [f"{who} {reason}" for who, reason in found["reasons"].items()]
    remarks += [f"wrong: {who}" for who in row["wrong"]]
    if "kernel_us" in row and not row["served"]:
        remarks.append("left to the reference")
    remarks += [str(found[key]) for key in ("remark",) if found.get(key)]
    remarks += [f"PyTorch {torch['remark']}"] if torch.get("remark") else []
    remarks += [f"PyTorch by {torch['by']}"] if torch.get("by") else []
    return [
        name,
        _number(row.get("kernel_us")),
        _number(row.get("floor_us")),
        f"{row['of_floor']:.0%}" if "of_floor" in row else "",
        rate,
        _number(row.get("torch_us")),
        "" if ratio is None else f"{ratio:.2f}",
        "; ".join(remarks),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def operations() -> list[str]:
    """Return the names of all operations; some have a case with one form of GELU alone."""
    forms = [Order("", "tiny", activation=form).sizes for form in ("gelu", "gelu_tanh")]
    return sorted({case.op for form in forms for case in gpu_cases(form).values()})


def main() -> int:
    parser = command.parser(__doc__, rounds=3, names=BATCHES, name="B")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds in all")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--gelu", choices=("tanh", "erf"), default="tanh")
    arguments = command.parse(parser, operations())
    order = Order(
        "",
        arguments.name,
        device="dry" if arguments.dry else "cuda",
        batch_size=arguments.batch or BATCHES[arguments.name],
        activation="gelu_tanh" if arguments.gelu == "tanh" else "gelu",
    )
    clock = Clock(arguments.budget)
    chosen = {n: c for n, c in gpu_cases(order.sizes).items() if c.op in arguments.only}
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(
            order, 1, arguments.rounds, Path(folder), GPU_OPERATIONS, "torch", TURN, stops=False
        )
        found: dict[str, Any] = {
            "benchmark": "gpu_kernels",
            "command": command.command_line(),
            **gpu_machine.describe(arguments.threads),
            "name": arguments.name,
            "configuration": asdict(order.sizes),
            "rounds": arguments.rounds,
            "budget": clock.budget,
            "ceilings": ceilings(trial),
            "missing": trial.missing,
            "cut": [],
            "cases": {},
        }
        try:
            measure(trial, chosen, found, clock, arguments.out)
        finally:
            trial.close()
    show(found, arguments.style)
    cases = found["cases"].values()
    failed = any("failed" in reason for one in cases for reason in one["reasons"].values())
    return int(failed or not cases or any(one["summary"]["wrong"] for one in cases))


def measure(
    trial: Trial,
    chosen: dict[str, Case],
    found: dict[str, Any],
    clock: Clock,
    out: Path | None,
) -> None:
    """Measure one case after the other as long as there is time; write after each."""
    longest = 0.0
    for number, (name, case) in enumerate(chosen.items()):
        if not trial.racers or (number and clock.left() < longest):
            left = ", ".join(list(chosen)[number:])
            why = f"the budget of {clock.budget:.0f} s is spent" if trial.racers else "nobody can"
            found["cut"].append(f"Not measured, since {why}: {left}.")
            break
        say(f"[{clock.spent():.0f} s] {name}")
        began = clock.spent()
        one = trial.measure(case)
        one["summary"] = judged(case, one, found["ceilings"])
        found["cases"][name] = one
        longest = max(longest, clock.spent() - began)
        if out:
            report.write(found, out)
    if out:
        report.write(found, out)


def show(found: dict[str, Any], style: str) -> None:
    """Print the table, and what it leaves out."""
    lines = [line(name, one) for name, one in found["cases"].items()]
    c, top = found["configuration"], found["ceilings"]
    print(
        f"gpu_kernels, configuration {found['name']}: {c['batch_size']} images of "
        f"{c['image_size']}x{c['image_size']}, width {c['dim']}, {c['num_heads']} heads, MLP "
        f"{c['mlp_dim']}; medians of {found['rounds']} rounds; x: how many times as fast the "
        f"kernel is. {found['gpu']['name']}, {found['date']}\n"
    )
    print(report.table(HEADERS, lines, style))
    if top:
        print(
            f"\nFloors: {top['product_flops'] / 1e12:.4g} TFLOP/s of products and "
            f"{top['bytes_per_second'] / 1e9:.4g} GB/s of copies, read and written, "
            f"measured by {top['by']}."
        )
    for title, reason in found["missing"].items():
        print(f"\n{title}: skipped: {reason}")
    for cut in found["cut"]:
        print(f"\n{cut}")


if __name__ == "__main__":
    sys.exit(main())
