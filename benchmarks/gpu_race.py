"""A race of training steps, or of inferences, between processes that share one GPU.

Each contender is a process of its own, which holds its model and, where it has one, its graph on
the GPU while others compute; all other memory it gives back after each turn. One after the other
they show that they compute what is right, then look for the batch they are fastest with; then they
take turns. What counts is the ratio of two turns of one round. Everything has to fit into a budget
of seconds: what does not is left out, and said.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import command
import gpu_machine
import gpu_report
import gpu_truth
import numpy as np
import report
from command import say
from contenders.entries import GPU_ENTRIES
from contenders.task import Order, write_data
from process import Dropped, NoMemory, Racer
from race import difference, write_weights

BATCHES = {"B": (256, 512, 128, 1024), "T": (128,), "tiny": (4, 8)}
"""Which batches everyone tries, in this order; at the first all numbers are compared."""
AGAINST = {"B": "max_autotune", "T": "eager", "tiny": "eager"}
CHECKED = 2
"""Images in the batch whose gradients or logits are compared to float64."""
FIRST = 4
"""How often everyone computes before it is timed; the last of a recorded step is a replay."""
TURN = 1.0
"""Seconds that a turn should take."""
PEERS = {
    "train": {"first loss": 2e-3, "first norm": 2e-2, "later losses": 2e-2},
    "infer": {"logits": 3e-2},
}
"""How far apart two contenders may be, relatively, since most are bfloat16."""
WEIGHTS = {
    "compiled": 3.0,
    "max_autotune": 6.0,
    "bfloat16_graph": 2.0,
    "bfloat16_narrow_graph": 2.0,
}
"""Shares of the time to look for a batch in, where they are not 1."""
WITHOUT_EVIDENCE = ("compiled", "max_autotune")
"""Who would have to be compiled for the small batch too: their numbers are compared to others'."""


class Clock:
    """How much of a budget is left.

    Parameters
    ----------
    budget : float
        Seconds from now.
    """

    def __init__(self, budget: float) -> None:
        self.budget, self._started = budget, time.monotonic()
        self.reserve = min(0.2 * budget, 40.0)  # for the rounds

    def spent(self) -> float:
        """Return how many seconds have passed."""
        return time.monotonic() - self._started

    def left(self) -> float:
        """Return how many are left."""
        return self.budget - self.spent()


class Race:
    """Contenders on one GPU, as far as they have come.

    Parameters
    ----------
    order : Order
        What they compute.
    arguments : argparse.Namespace
        The command line.
    folder : Path
        Where what they print and write goes.
    """

    def __init__(self, order: Order, arguments: argparse.Namespace, folder: Path) -> None:
        self.order, self.arguments, self.folder = order, arguments, folder
        self.clock = Clock(arguments.budget)
        self.batches: Sequence[int] = arguments.batches
        self.racers: dict[str, Racer] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.cut: list[str] = []
        self.ceilings: dict[str, Any] = {}
        self.rounds = 0
        self._rng = np.random.default_rng(0)

    def start(self, names: Sequence[str]) -> None:
        """Start everyone's process, without waiting for any."""
        for name in names:
            entry = GPU_ENTRIES[name]
            self.found[name] = {"title": entry.title, "precision": entry.precision}
            self.found[name] |= {"status": "ran", "batches": {}, "turns": {}, "states": {}}
            log = self.folder / f"{name}.log"
            self.racers[name] = Racer(entry, 1, log, stops=False, waits=False)

    def ready(self) -> None:
        """Wait until everyone's library is imported, and ask one how fast the GPU is."""
        for name in list(self.racers):
            try:
                self.racers[name].ready()
                self.found[name]["import_seconds"] = self.racers[name].import_seconds
            except Dropped as dropped:
                self._drop(name, dropped)
        able = [name for name in self.racers if GPU_ENTRIES[name].precision == "bfloat16"]
        for name in sorted(able, key=lambda name: GPU_ENTRIES[name].library != "torch"):
            try:
                self.ceilings = self._ask(
                    name, do="call", what="ceilings", file="", **asdict(self.order)
                )
                return
            except Dropped as dropped:
                self._drop(name, dropped)

    def enter(self, name: str, waiting: Sequence[str], truth: gpu_truth.Truth) -> None:
        """Let a contender show that it is right, then look for its batch; ``waiting`` come next."""
        if self.clock.left() < self.clock.reserve:
            self._drop(name, Dropped("skipped", "no time was left for it"))
            return
        say(f"[{self.clock.spent():.0f} s] {self.found[name]['title']}")
        started = time.monotonic()
        try:
            if name not in WITHOUT_EVIDENCE:
                self._show(name, truth)
            share = WEIGHTS.get(name, 1.0) / sum(
                WEIGHTS.get(each, 1.0) for each in [name, *waiting]
            )
            until = started + share * (self.clock.left() - self.clock.reserve)
            self._search(name, until)
        except Dropped as dropped:
            self._drop(name, dropped)

    def _show(self, name: str, truth: gpu_truth.Truth) -> None:
        """Compare a contender's gradients or logits of a small batch to the truth."""
        order, file = replace(self.order, batch_size=CHECKED), self.folder / f"{name}.safetensors"
        call = {"do": "call", "what": "evidence", "file": str(file)}
        loss = self._ask(name, **call, **asdict(order))["loss"]
        check = truth.check(loss, file, self.found[name]["precision"])
        file.unlink()
        self.found[name]["check"] = check
        if check["wrong"]:
            raise Dropped("wrong", check["wrong"])

    def _search(self, name: str, until: float) -> None:
        """Try one batch after the other, as long as there is time, and keep the fastest."""
        batches, ready, took = self.found[name]["batches"], 0, 0.0
        speed: dict[int, float] = {}
        for size in self.batches:
            started = time.monotonic()
            if speed and started + 2 * took > until:  # it may have to come back to the fastest
                batches[str(size)] = {"reason": "not tried, for want of time"}
                continue
            try:
                batches[str(size)] = one = self._try(name, size)
                speed[size], ready = one["images_per_second"], size
            except Dropped as dropped:
                if not (isinstance(dropped, NoMemory) or (speed and dropped.answers)):
                    raise
                batches[str(size)], ready = {"reason": dropped.reason}, 0
            took = time.monotonic() - started
        if not speed:
            raise Dropped("failed", "out of memory at every batch")
        best = max(speed, key=speed.__getitem__)
        self.found[name]["batch_size"] = best
        say(f"  {speed[best]:.0f} images/s with a batch of {best}")
        if best != ready:
            self._prepare(name, best)

    def _prepare(self, name: str, size: int) -> dict[str, Any]:
        """Let a contender make what computes a batch, and compute the first times."""
        order = asdict(replace(self.order, batch_size=size))
        made = self._ask(name, do="prepare", **order)
        first = self._ask(name, do="first", count=FIRST)
        return {"prepare_seconds": made["seconds"], **made["notes"], **first}

    def _try(self, name: str, size: int) -> dict[str, Any]:
        found, one = self.found[name], self._prepare(name, size)
        numbers, first = one.pop("numbers"), one.pop("seconds")
        if size == self.batches[0]:
            found["numbers"] = numbers
        found.setdefault("start_seconds", one["prepare_seconds"] + first[0])
        for note in ("attention", "attention_ms"):
            if note in one:
                found.setdefault("notes", {})[note] = one[note]
        one["first_seconds"] = first
        repeats = int(np.clip(0.5 * TURN / first[-1], 3, 200))
        seconds = self._ask(name, do="time", repeats=repeats)["seconds"][0]
        one |= {
            "images_per_second": size / seconds,
            "peak_bytes": self._ask(name, do="peak")["bytes"],
        }
        return one

    def _ask(self, name: str, **request: Any) -> dict[str, Any]:
        patience = max(self.clock.left() - self.clock.reserve, 5.0)
        return self.racers[name].ask(patience=patience, **request)

    def run(self, watch: gpu_machine.Watch) -> None:
        """Let everyone who is in take one turn a round, as long as there is time."""
        for number in range(self.arguments.rounds):
            turn = float(np.clip(self.clock.left() / (2 * len(self.racers) + 1), 0.1, TURN))
            if number and self.clock.left() < 2 * len(self.racers) * turn:
                self.cut.append(
                    f"Cut after {number} of {self.arguments.rounds} rounds: the budget of "
                    f"{self.clock.budget:.0f} s is spent."
                )
                break
            say(f"[{self.clock.spent():.0f} s] round {number + 1}: {', '.join(self.racers)}")
            for name in self._rng.permutation(list(self.racers)):
                self._turn(str(name), turn, watch)
            self.rounds += 1
            self.save()

    def _turn(self, name: str, seconds: float, watch: gpu_machine.Watch) -> None:
        found = self.found[name]
        best = found["batches"][str(found["batch_size"])]
        step = found["batch_size"] / best["images_per_second"]
        started = time.perf_counter()
        try:
            answer = self.racers[name].ask(
                do="time", repeats=int(np.clip(seconds / step, 1, 2000)), patience=60 + 10 * seconds
            )
        except Dropped as dropped:
            self._drop(name, dropped)
            return
        found["turns"][str(self.rounds)] = answer["seconds"][0] / found["batch_size"]
        found["states"][str(self.rounds)] = watch.between(started, time.perf_counter())

    def close(self) -> None:
        """End everyone."""
        while self.racers:
            self.racers.popitem()[1].close()

    def _drop(self, name: str, dropped: Dropped) -> None:
        self.found[name] |= {"status": dropped.status, "reason": dropped.reason}
        say(f"{self.found[name]['title']}: {dropped.status}: {dropped.reason}")
        if name in self.racers:
            self.racers.pop(name).close()

    def compare(self) -> None:
        """Compare everyone's first numbers to those of PyTorch eager, or of the first there is."""
        with_numbers = [name for name, one in self.found.items() if one.get("numbers")]
        if not with_numbers:
            return
        base = "eager" if "eager" in with_numbers else with_numbers[0]
        truth = self.found[base]["numbers"]
        for name in with_numbers:
            apart = differences(self.order.task, self.found[name]["numbers"], truth)
            allowed = PEERS[self.order.task]
            wrong = [
                f"{what} {apart[what]:.1e}" for what in allowed if not apart[what] <= allowed[what]
            ]
            self.found[name]["peers"] = {"to": base, "apart": apart, "tolerance": allowed}
            if wrong and name in self.racers:
                self._drop(name, Dropped("wrong", f"differs from {base}: {', '.join(wrong)}"))

    def result(self) -> dict[str, Any]:
        """Return all that was found so far, and how."""
        arguments, speed = self.arguments, self.ceilings.get("product_flops")
        gpu = gpu_machine.describe(arguments.threads)
        name = (
            gpu["gpu"]["name"] if "why" not in gpu["gpu"] else self.ceilings.get("gpu", "unknown")
        )
        gpu["gpu"]["name"] = name
        flops, by = gpu_machine.peak(name, speed)
        found = {
            "benchmark": f"gpu_{self.order.task}",
            "command": command.command_line(),
            **gpu,
            "name": arguments.name,
            "configuration": asdict(self.order.sizes),
            "activation": self.order.sizes.activation,
            "rounds": self.rounds,
            "budget": self.clock.budget,
            "spent": self.clock.spent(),
            "cut": self.cut,
            "flop_per_image": arguments.flop,
            "peak": {"flops": flops, "by": by},
            "ceilings": self.ceilings,
            "against": arguments.against,
            "contenders": {
                name: {key: value for key, value in one.items() if key != "numbers"}
                for name, one in self.found.items()
            },
        }
        base = gpu_report.base_of(found, arguments.against)
        return {**found, "summary": gpu_report.summary(found, base) if base else {}}

    def save(self) -> None:
        """Write what was found so far, for whoever is ended early."""
        if self.arguments.out:
            report.write(self.result(), self.arguments.out)


def differences(task: str, mine: list[list[float]], theirs: list[list[float]]) -> dict[str, float]:
    """Return how far apart the first numbers of two contenders are, relatively."""
    if task == "infer":
        return {"logits": difference(mine[-1], theirs[-1])}
    (my_losses, my_norms), (losses, norms) = (zip(*each, strict=True) for each in (mine, theirs))
    return {
        "first loss": difference(list(my_losses[:1]), list(losses[:1])),
        "first norm": difference(list(my_norms[:1]), list(norms[:1])),
        "later losses": difference(list(my_losses[1:]), list(losses[1:])),
    }


def parse(task: str, description: str) -> argparse.Namespace:
    """Return the command line, its gaps filled."""
    parser = command.parser(description, rounds=5, names=BATCHES, name="B")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds in all")
    parser.add_argument("--batches", help="which to try, separated by commas")
    parser.add_argument("--gelu", choices=("tanh", "erf"), default="tanh")
    parser.add_argument("--against", choices=GPU_ENTRIES, metavar="CONTENDER")
    arguments = command.parse(parser, GPU_ENTRIES)
    given = [int(size) for size in (arguments.batches or "").split(",") if size]
    arguments.batches = given or BATCHES[arguments.name]
    arguments.against = arguments.against or AGAINST[arguments.name]
    arguments.task = task
    return arguments


def main(task: str, description: str) -> int:
    """Run the race that the command line describes; return the exit code."""
    arguments = parse(task, description)
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        order = Order(
            task,
            arguments.name,
            str(folder / "weights.safetensors"),
            device="dry" if arguments.dry else "cuda",
            activation="gelu_tanh" if arguments.gelu == "tanh" else "gelu",
            data=where,
        )
        c = replace(order.sizes, batch_size=1)
        race = Race(order, arguments, folder)
        watch = gpu_machine.Watch()
        try:
            race.start([name for name in GPU_ENTRIES if name in arguments.only])
            decayed, forward, train = write_weights(c, Path(order.weights))
            write_data(replace(c, batch_size=max(*arguments.batches, CHECKED)), folder)
            arguments.flop = train if task == "train" else forward
            race.order = replace(order, decayed=decayed)
            truth = gpu_truth.compute(replace(race.order, batch_size=CHECKED))
            race.ready()
            waiting = list(race.racers)
            while waiting:
                race.enter(waiting.pop(0), waiting, truth)
                race.save()
            race.compare()
            if race.racers:
                race.run(watch)
        finally:
            watch.close()
            race.close()
        found = race.result()
    if arguments.out:
        report.write(found, arguments.out)
    print(gpu_report.race_table(found, arguments.against, arguments.style))
    bad = any(one["status"] in ("wrong", "failed") for one in race.found.values())
    return int(bad or not found["summary"])
