"""Everything that is measured on a GPU, in one command and under nine minutes.

Usage: python benchmarks/gpu_all.py --out DIR [--budget SECONDS] [--only PART,PART]
           [--dry | --dry-complete]

First it prints what there is, then it runs one program after the other, each of which shows that
everyone is right before it times anyone, and each with a share of the seconds: what one leaves is
for those after it. Each writes its file whenever it knows more, so whoever ends this early keeps
what was measured. It ends with 1 if anyone computes something else, or fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import command
import compiler
import gpu_machine
import gpu_profile
import gpu_report
import machine
import report
from command import say
from gpu_race import Clock

HERE = Path(__file__).resolve().parent
VITKITS = "bfloat16_graph,bfloat16_narrow_graph,bfloat16,tf32,reference,eager"
RACE_B = "bfloat16_graph,bfloat16_narrow_graph,bfloat16,eager,compiled,max_autotune,tf32"
RACE_T = "bfloat16_graph,bfloat16_narrow_graph,eager,compiled"
RACE_TINY = "bfloat16_graph,bfloat16_narrow_graph,eager"
PARTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "train_B": (250, ("gpu_train.py", "B", "--rounds", "5", "--only", RACE_B)),
    "profile_B": (35, ("gpu_profile.py", "B")),
    "train_T": (55, ("gpu_train.py", "T", "--rounds", "5", "--only", RACE_T)),
    "infer_B": (65, ("gpu_infer.py", "B", "--rounds", "5", "--only", RACE_B)),
    "profile_B_narrow": (30, ("gpu_profile.py", "B", "--narrow")),
    "kernels": (65, ("gpu_kernels.py", "B")),
    "profile_T": (20, ("gpu_profile.py", "T")),
}
"""What is run, and how much of the time each gets, in the order of how much it matters."""
DRY: dict[str, tuple[float, tuple[str, ...]]] = {
    "train_tiny": (4, ("gpu_train.py", "--dry", "--only", RACE_TINY)),
    "infer_tiny": (1, ("gpu_infer.py", "--dry", "--only", RACE_TINY)),
    "profile_tiny": (1, ("gpu_profile.py", "--dry")),
    "kernels": (1, ("gpu_kernels.py", "--dry", "--only", "attention_own,product,norm_low")),
}
"""The same without a GPU."""
DRY_COMPLETE: dict[str, tuple[float, tuple[str, ...]]] = {
    "train_tiny": (6, ("gpu_train.py", "--dry")),
    "train_tiny_erf": (2, ("gpu_train.py", "--dry", "--gelu", "erf", "--only", VITKITS)),
    "profile_tiny": (1, ("gpu_profile.py", "--dry")),
    "profile_tiny_erf": (1, ("gpu_profile.py", "--dry", "--gelu", "erf")),
    "profile_tiny_narrow": (1, ("gpu_profile.py", "--dry", "--narrow")),
    "infer_tiny": (5, ("gpu_infer.py", "--dry")),
    "kernels": (4, ("gpu_kernels.py", "--dry")),
    "kernels_erf": (1, ("gpu_kernels.py", "--dry", "--gelu", "erf", "--only", "activate")),
}
"""The same with everyone and everything, for before a GPU is at hand: some minutes."""
LEAST, GRACE = 10.0, 15.0
"""Seconds below which a part is not begun; and beyond its own that it may take to end."""
HEADERS = (
    "part",
    "contender",
    "batch",
    "images/s",
    "MFU",
    "x eager",
    "x compile",
    "x max-autotune",
)


def run(words: Sequence[str], budget: float, out: Path) -> tuple[int | None, str]:
    """Run a program; return its exit code, and why it has none if it took too long."""
    told = [sys.executable, str(HERE / words[0]), *words[1:]]
    told += ["--budget", f"{budget:.0f}", "--out", str(out)]
    try:
        return subprocess.run(told, check=False, timeout=budget + GRACE).returncode, ""
    except subprocess.TimeoutExpired:
        return None, f"ended after {budget + GRACE:.0f} s"


def parts(chosen: dict[str, Any], clock: Clock, folder: Path) -> dict[str, dict[str, Any]]:
    """Run all parts that there is time for; return what came of each."""
    found: dict[str, dict[str, Any]] = {}
    for name, (weight, words) in chosen.items():
        waiting = sum(chosen[each][0] for each in chosen if each not in found)
        share = clock.left() * weight / waiting
        if share < LEAST:
            found[name] = {"reason": "no time was left for it"}
            say(f"{name}: {found[name]['reason']}")
            continue
        say(f"\n[{clock.spent():.0f} s] {name}, {share:.0f} s: {' '.join(words)}")
        file = folder / f"{name}.json"
        file.unlink(missing_ok=True)
        code, reason = run(words, share, file)
        found[name] = {"code": code, "file": file.name, "seconds": clock.spent()}
        if reason or not file.exists():
            found[name]["reason"] = reason or f"ended with {code} and nothing measured"
        print(flush=True)
    return found


def rows(name: str, measured: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the compact table that a race gives."""
    contenders, made = measured["contenders"], []
    for who, row in measured["summary"].items():
        ratios = []
        for other in ("eager", "compiled", "max_autotune"):
            turns = contenders.get(other, {}).get("turns", {})
            shared = report.ratios(turns, contenders[who]["turns"])
            ratios.append(f"{report.spread(shared)['median']:.2f}" if shared else "")
        made.append([
            name,
            contenders[who]["title"],
            str(row["batch_size"]),
            f"{row['images_per_second']:.0f}",
            "" if row["mfu"] is None else f"{row['mfu']:.1%}",
            *ratios,
        ])  # fmt: skip
    return made


def show(found: dict[str, Any], folder: Path) -> None:
    """Print one table of all races, the goals, what failed and what was cut."""
    lines, said = [], []
    for name, part in found["parts"].items():
        if "reason" in part:
            said.append(f"{name}: {part['reason']}.")
        file = folder / part.get("file", "")
        if not file.is_file():
            continue
        measured = json.loads(file.read_text())
        said += [f"{name}: {cut}" for cut in measured["cut"]]
        if measured["benchmark"] == "gpu_profile":
            said += [f"{name}: {each}" for each in gpu_profile.short(measured)]
            continue
        if "contenders" not in measured:
            wrong = [case for case, one in measured["cases"].items() if one["summary"]["wrong"]]
            said.append(f"{name}: {len(measured['cases'])} kernels; wrong: {wrong or 'none'}.")
            continue
        lines += rows(name, measured)
        said += gpu_report.goals(measured)
        said += [
            f"{name}: {one['title']}: {one['status']}: {one['reason']}."
            for one in measured["contenders"].values()
            if one["status"] != "ran"
        ]
    print(f"{found['gpu']['name']}, {found['date']}, {found['seconds']:.0f} s\n")
    print(report.table(HEADERS, lines) if lines else "Nobody was timed.")
    print("\n".join(["", *said]))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds in all")
    parser.add_argument("--only", help=f"which of {', '.join(PARTS)}, separated by commas")
    dry = parser.add_mutually_exclusive_group()
    dry.add_argument("--dry", action="store_true", help="tiny models, without a GPU")
    dry.add_argument("--dry-complete", action="store_true", help="that, everyone and everything")
    arguments = parser.parse_args()
    known = DRY if arguments.dry else DRY_COMPLETE if arguments.dry_complete else PARTS
    names = arguments.only.split(",") if arguments.only else list(known)
    if unknown := set(names) - set(known):
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    arguments.parts = {name: known[name] for name in names}
    return arguments


def main() -> int:
    arguments = parse()
    clock = Clock(arguments.budget)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "benchmark": "gpu_all",
        "command": command.command_line(),
        **gpu_machine.describe(machine.usable_cpus()),
        "budget": clock.budget,
    }
    for what in ("gpu", "versions", "machine"):
        print(f"{what}: {', '.join(f'{name} {value}' for name, value in found[what].items())}")
    print(flush=True)
    dry = arguments.dry or arguments.dry_complete
    with compiler.once() if dry else nullcontext():
        found["parts"] = parts(arguments.parts, clock, arguments.out)
    found["seconds"] = clock.spent()
    report.write(found, arguments.out / "all.json")
    show(found, arguments.out)
    return int(any(part.get("code", 0) != 0 for part in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
