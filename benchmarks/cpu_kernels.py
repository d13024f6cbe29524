"""The operations of vitkit one by one: kernels, references, and PyTorch's function for the same.

Usage: python benchmarks/cpu_kernels.py [S|B|tiny] [--rounds N] [--only OP,OP] [--out FILE]

Three processes take turns. It ends with 1 if one computes something else than the reference.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import report
from command import say
from contenders.entries import OPERATIONS, Entry
from contenders.op_cases import Case, cases
from contenders.task import CONFIGURATIONS, Order
from process import Dropped, Racer

TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far a result may be from the reference's, relative to its norm."""
TURN = 0.2
"""Seconds that a turn should take."""


class Trial:
    """The processes, and what they found of one case after the other.

    Parameters
    ----------
    order : Order
        What is the same in all orders.
    threads, rounds : int
        How many threads each uses, and how many rounds there are of each case.
    folder : Path
        Where what they print goes.
    entries : dict of str to Entry
        Who takes part.
    truth : str
        The one whose results the others' are compared to.
    turn : float
        Seconds that a turn should take.
    stops : bool, default True
        Whether a process is stopped between its turns.
    """

    def __init__(
        self,
        order: Order,
        threads: int,
        rounds: int,
        folder: Path,
        entries: dict[str, Entry] = OPERATIONS,
        truth: str = "reference",
        turn: float = TURN,
        stops: bool = True,
    ) -> None:
        self.order, self.rounds, self.truth, self.turn = order, rounds, truth, turn
        self.missing: dict[str, str] = {}
        self.racers: dict[str, Racer] = {}
        self._rng = np.random.default_rng(0)
        for who, entry in entries.items():
            self.racers[who] = Racer(entry, threads, folder / f"{who}.log", stops, waits=False)
        for who, entry in entries.items():
            try:
                self.racers[who].ready()
            except Dropped as dropped:
                self.racers.pop(who).close()
                self.missing[entry.title] = dropped.reason
                say(f"{entry.title}: {dropped.reason}")

    def close(self) -> None:
        """End the processes."""
        for racer in self.racers.values():
            racer.close()

    def measure(self, case: Case) -> dict[str, Any]:
        """Return the times of everyone who can compute a case, and whether they agree."""
        found: dict[str, Any] = {"flop": case.flop, "reasons": {}}
        numbers, repeats = {}, {}
        for who in list(self.racers):
            try:
                made = self.racers[who].ask(
                    do="prepare", **asdict(replace(self.order, task=case.name))
                )
                first = self.racers[who].ask(do="first", count=2)
            except Dropped as dropped:
                found["reasons"][who] = f"{dropped.status}: {dropped.reason}"
                continue
            found |= made["notes"] if who == "kernel" else {}
            if who == "torch":
                found["torch"] = made["notes"]
            numbers[who] = first["numbers"][0]
            repeats[who] = int(min(max(self.turn / first["seconds"][1], 3), 1000))
        found["seconds"] = self._rounds(repeats, found["reasons"])
        found["difference"] = differences(numbers, self.truth)
        return found

    def _rounds(self, repeats: dict[str, int], reasons: dict[str, str]) -> dict[str, Any]:
        seconds: dict[str, dict[str, float]] = {who: {} for who in repeats}
        for number in range(self.rounds):
            for who in self._rng.permutation(list(seconds)):
                try:
                    spent = self.racers[who].ask(do="time", repeats=repeats[who])["seconds"]
                    seconds[who][str(number)] = statistics.median(spent)
                except Dropped as dropped:
                    reasons[who] = f"{dropped.status}: {dropped.reason}"
                    del seconds[who]
        return seconds


def differences(numbers: dict[str, list[float]], base: str = "reference") -> dict[str, float]:
    """Return how far the others are from the base: of each array by its norm, the worst."""
    truth = numbers.get(base, [])
    # Two numbers for each array, the first its norm: see contenders.sums.
    sizes = np.repeat(truth[::2], 2)
    return {  # NumPy's max, since Python's may pass over a NaN
        who: float(np.max(np.abs(np.subtract(mine, truth)) / sizes))
        for who, mine in numbers.items()
        if who != base and truth and mine  # PyTorch's dropout draws others
    }


def summary(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """Return what a table says of a case."""
    seconds = found["seconds"]
    row: dict[str, Any] = {
        f"{who}_us": 1e6 * statistics.median(turns.values()) for who, turns in seconds.items()
    }
    if "kernel" in seconds:
        for who in set(seconds) - {"kernel"}:
            row[f"times_as_fast_as_{who}"] = report.spread(
                report.ratios(seconds[who], seconds["kernel"])
            )
        work, unit = (found["flop"], "gflops") if found["flop"] else (found["bytes"], "gb_per_s")
        row[unit] = work / row["kernel_us"] / 1e3
    row["served"] = found.get("served", False)
    tolerance = TOLERANCES[case.precision]
    row["wrong"] = [who for who, apart in found["difference"].items() if not apart <= tolerance]
    return row


HEADERS = ("operation", "kernel us", "rate", "reference us", "x", "PyTorch us", "x", "remark")


def line(name: str, row: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    """Return a table's line."""
    rate = f"{row['gflops']:.0f} GFLOP/s" if "gflops" in row else ""
    rate = f"{row['gb_per_s']:.1f} GB/s" if "gb_per_s" in row else rate
    remarks = [f"{who} {reason}" for who, reason in reasons.items()]
    remarks += [f"wrong: {who}" for who in row["wrong"]]
    if "kernel_us" in row and not row["served"]:
        remarks.append("left to the reference")
    cells = [name, _number(row.get("kernel_us")), rate]
    for who in ("reference", "torch"):
        ratio = row.get(f"times_as_fast_as_{who}", {}).get("median")
        cells += [_number(row.get(f"{who}_us")), "" if ratio is None else f"{ratio:.2f}"]
    return [*cells, "; ".join(remarks)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def with_kernels() -> set[str]:
    """Return the names of the operations that have a kernel of vitkit's for NumPy."""
    from vitkit import kernels, ops

    kernels.load(np)
    found = {name: op for name, op in vars(ops).items() if isinstance(op, ops.Op)}
    return {name for name, op in found.items() if "numpy" in op.kernels}


def main() -> int:
    served = with_kernels()
    ops = sorted({case.op for case in cases(CONFIGURATIONS["tiny"]).values()})
    arguments = command.parse(command.parser(__doc__, rounds=7), ops)
    all_cases = cases(CONFIGURATIONS[arguments.name])
    chosen = {n: c for n, c in all_cases.items() if c.op in served & set(arguments.only)}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Order("", arguments.name), arguments.threads, arguments.rounds, Path(folder))
        try:
            for name, case in chosen.items():
                command.say(name)
                found[name] = trial.measure(case)
                found[name]["summary"] = summary(case, found[name])
        finally:
            trial.close()
    whole = {
        "benchmark": "cpu_kernels",
        "command": command.command_line(),
        **machine.describe(arguments.threads),
        "name": arguments.name,
        "configuration": asdict(CONFIGURATIONS[arguments.name]),
        "rounds": arguments.rounds,
        "missing": trial.missing,
        "kernels_without_a_case": sorted(served - set(ops)),
        "cases_without_a_kernel": sorted(set(ops) - served),
        "cases": found,
    }
    if arguments.out:
        report.write(whole, arguments.out)
    show(whole, arguments.style)
    failed = any("failed" in reason for one in found.values() for reason in one["reasons"].values())
    return int(failed or any(one["summary"]["wrong"] for one in found.values()))


def show(found: dict[str, Any], style: str) -> None:
    """Print the table, and what it leaves out."""
    cases = found["cases"].items()
    lines = [line(name, one["summary"], one["reasons"]) for name, one in cases]
    c = found["configuration"]
    print(
        f"Configuration {found['name']}: {c['batch_size']} images of {c['image_size']}x"
        f"{c['image_size']}, width {c['dim']}, {c['num_heads']} heads, MLP {c['mlp_dim']}; "
        f"{found['machine']['threads']} threads, medians of {found['rounds']} rounds; x: how many "
        f"times as fast the kernel is. {found['machine']['processor']}, {found['date']}\n"
    )
    print(report.table(HEADERS, lines, style))
    for title, reason in found["missing"].items():
        print(f"\n{title}: skipped: {reason}")
    for key in ("kernels_without_a_case", "cases_without_a_kernel"):
        if found[key]:
            print(f"\n{key.replace('_', ' ').capitalize()}: {', '.join(found[key])}")


if __name__ == "__main__":
    sys.exit(main())
