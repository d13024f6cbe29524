"""A race of training steps, or of inferences, between processes that take turns.

Each contender is a process of its own, with its own libraries, threads and environment. In every
round each has one turn, in an order that is drawn anew; what counts is the ratio of two turns of
one round, since a machine is not the same a minute later. Before the first round everyone shows
that it computes the same thing. Where not all fit in memory at once they run in heats, and the one
that the others are compared to is in every heat.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import report
from command import say
from contenders.entries import ENTRIES, PRODUCTS, Entry
from contenders.task import CONFIGURATIONS, Configuration, Order
from process import Dropped, Racer

TOLERANCES = {
    "train": {"float32": (1e-5, 5e-4), "bfloat16": (5e-3, 5e-2)},
    "infer": {"float32": (1e-5, 1e-5), "bfloat16": (2e-2, 2e-2)},
}
"""How far apart two contenders may be, relatively: losses at first and after three steps, logits
at first and again."""
FIRST = {"train": 4, "infer": 2}
"""How often everyone computes before it is timed; the loss of a step is that before its update."""


class Race:
    """Contenders, as far as they have come.

    Parameters
    ----------
    order : Order
        What they compute.
    threads : int
        How many threads each uses.
    repeats : int
        How often each computes in its turn, of which the median counts.
    folder : Path
        Where what they print goes.
    """

    def __init__(self, order: Order, threads: int, repeats: int, folder: Path) -> None:
        self.order, self.threads, self.repeats, self.folder = order, threads, repeats, folder
        self.racers: dict[str, Racer] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self._rng, self._round = np.random.default_rng(0), 0

    def enter(self, name: str, entry: Entry) -> bool:
        """Start a contender and let it compute the first times; return whether it is in."""
        found = {"title": entry.title, "precision": entry.precision, "status": "ran"}
        self.found[name] = found
        say(f"{entry.title}: starting")
        try:
            racer = Racer(entry, self.threads, self.folder / f"{name}.log")
            self.racers[name] = racer
            found["import_seconds"] = racer.import_seconds
            made = racer.ask(do="prepare", **asdict(self.order))
            found |= {"prepare_seconds": made["seconds"], **made["notes"]}
            first = racer.ask(do="first", count=FIRST[self.order.task])
            found |= {"first_seconds": first["seconds"], "numbers": first["numbers"], "turns": {}}
        except Dropped as dropped:
            self._drop(name, dropped)
        return name in self.racers

    def run(self, rounds: int) -> None:
        """Let everyone who is in take one turn a round."""
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: {', '.join(self.racers)}")
            for name in self._rng.permutation(list(self.racers)):
                try:
                    seconds = self.racers[name].ask(do="time", repeats=self.repeats)["seconds"]
                    self.found[name]["turns"][str(self._round)] = float(np.median(seconds))
                except Dropped as dropped:
                    self._drop(name, dropped)
            self._round += 1

    def leave(self, names: Sequence[str]) -> None:
        """Note how much memory contenders took and where their time went, and end them."""
        for name in [name for name in names if name in self.racers]:
            try:
                self.found[name]["peak_bytes"] = self.racers[name].ask(do="peak")["bytes"]
                self.found[name] |= self.racers[name].ask(do="profile")
            except Dropped as dropped:
                self._drop(name, dropped)
            else:
                self.racers.pop(name).close()

    def close(self) -> None:
        """End everyone."""
        while self.racers:
            self.racers.popitem()[1].close()

    def _drop(self, name: str, dropped: Dropped) -> None:
        self.found[name] |= {"status": dropped.status, "reason": dropped.reason}
        say(f"{self.found[name]['title']}: {dropped.status}: {dropped.reason}")
        if name in self.racers:
            self.racers.pop(name).close()


def compete(race: Race, names: list[str], against: str, rounds: int) -> str:
    """Run all heats; return who the others were compared to.

    That is ``against``, whether it is among the names or not, or the first that runs where that
    one cannot.
    """
    everywhere = [f"products {name}" for name in PRODUCTS]
    for label, entry in zip(everywhere, PRODUCTS.values(), strict=True):
        race.enter(label, entry)
    waiting = [against, *(name for name in names if name != against)]
    while waiting:
        base = waiting.pop(0)
        if race.enter(base, ENTRIES[base]):
            break
    else:
        raise SystemExit("Nobody can run here.")
    heat = race.order.sizes.heat
    for start in range(0, max(len(waiting), 1), heat):
        entering = waiting[start : start + heat]
        for name in entering:
            race.enter(name, ENTRIES[name])
        race.run(rounds)
        race.leave(entering)
        if base not in race.racers:
            raise SystemExit(f"Nothing to compare to: {race.found[base]['reason']}")
    race.leave([base, *everywhere])
    return base


def check(race: Race, base: str) -> None:
    """Mark contenders as wrong whose numbers are not the base's, and note the differences."""
    truth, tolerances = race.found[base]["numbers"], TOLERANCES[race.order.task]
    for found in race.found.values():
        numbers = found.pop("numbers", None)
        if not numbers or not numbers[0]:
            continue  # never came so far, or is only products
        differences = [
            difference(mine, theirs) for mine, theirs in zip(numbers, truth, strict=True)
        ]
        apart = {"first": differences[0], "later": differences[-1]}
        allowed = dict(zip(apart, tolerances[found["precision"]], strict=True))
        found["check"] = {"difference": apart, "tolerance": allowed}
        if race.order.task == "train":
            found["check"]["losses"] = [loss for (loss,) in numbers]
        wrong = [when for when in apart if not apart[when] <= allowed[when]]
        if wrong and found["status"] == "ran":
            listed = ", ".join(f"{when} {apart[when]:.1e}" for when in wrong)
            found |= {"status": "wrong", "reason": f"differs from {base}: {listed}"}
            say(f"{found['title']}: wrong: {found['reason']}")


def difference(mine: list[float], theirs: list[float]) -> float:
    """Return how far apart two lists of numbers are, relative to the second."""
    return float(np.linalg.norm(np.subtract(mine, theirs)) / np.linalg.norm(theirs))


def write_weights(c: Configuration, file: Path) -> tuple[tuple[str, ...], float, float]:
    """Write what everyone starts from; return the decayed parameters and operations.

    The weights are vitkit's first ones and a little noise on each: a head of zeros, biases of zero
    and scales of one would hide mistakes. Of the operations the first number is those of a forward
    pass, the second those of a training step: three times as many, but for the gradient of the
    images, which nobody needs.
    """
    from contenders.vitkit_contender import make_model
    from safetensors.numpy import save_file

    from vitkit import ops
    from vitkit.train.speed import flops

    with ops.reference_only():
        model = make_model(c)
        rng = np.random.default_rng(0)
        noisy = {
            name: value + 0.02 * rng.standard_normal(value.shape, np.float32)
            for name, value in model.state_dict().items()
        }
    save_file(noisy, file)
    decayed = tuple(name for name, each in model.named_parameters() if each.decay)
    forward = flops(model) * c.batch_size
    patches = 2.0 * (c.tokens - 1) * 3 * c.patch_size**2 * c.dim * c.batch_size
    return decayed, forward, 3 * forward - patches


def parse(description: str) -> argparse.Namespace:
    """Return the command line, its gaps filled."""
    parser = command.parser(description, rounds=5)
    parser.add_argument("--repeats", type=int, help="times in a turn")
    parser.add_argument("--against", choices=ENTRIES, default="eager", metavar="CONTENDER")
    arguments = command.parse(parser, ENTRIES)
    arguments.repeats = arguments.repeats or CONFIGURATIONS[arguments.name].repeats
    return arguments


def main(task: str, description: str) -> int:
    """Run the race that the command line describes; return the exit code."""
    arguments = parse(description)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        decayed, forward, train = write_weights(CONFIGURATIONS[arguments.name], weights)
        order = Order(task, arguments.name, str(weights), decayed)
        race = Race(order, arguments.threads, arguments.repeats, Path(folder))
        try:
            base = compete(race, arguments.only, arguments.against, arguments.rounds)
        finally:
            race.close()
    check(race, base)
    found = result(race, arguments, base, train if task == "train" else forward)
    if arguments.out:
        report.write(found, arguments.out)
    print(report.race_table(found, base, arguments.style))
    return int(any(one["status"] in ("wrong", "failed") for one in race.found.values()))


def result(race: Race, arguments: argparse.Namespace, base: str, flop: float) -> dict[str, Any]:
    """Return all that was found and how."""
    products = {name: race.found.pop(f"products {name}") for name in PRODUCTS}
    found = {
        "benchmark": f"cpu_{race.order.task}",
        "command": command.command_line(),
        **machine.describe(arguments.threads),
        "name": arguments.name,
        "configuration": asdict(race.order.sizes),
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
        "flop": flop,
        "against": base,
        "products": products,
        "contenders": race.found,
    }
    return {**found, "summary": report.summary(found, base)}
