"""One training step of vitkit on a GPU: as it is, part by part, and as one graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from contenders import costs, device, task
from contenders.gpu_vitkit import GRAPHED, array_module_of, ceilings, made, prepare, trainer
from contenders.serve import Skip, one_line
from contenders.tape import taped
from vitkit.backend import to_numpy, uploader
from vitkit.kernels.cuda._products import multiply

ROUNDS = {"cuda": 7, "dry": 1}
WARM = {"cuda": 3, "dry": 1}
"""Steps that do not count: kernels are compiled in them, and products timed."""
RECORDED = 3
"""Steps until there is a graph."""
TURN = 0.3
"""Seconds that the steps of a round should take."""
AHEAD = 4
"""How many steps' time the GPU is kept busy for, so that it never waits to be asked for a part."""
MARKS = 500
"""How many are noted one after the other to know what one takes."""
LINK = {"cuda": 2**28, "dry": 2**16}
"""Bytes that are brought from the host to see how fast that can be."""


def profile(mode: str, order: task.Order, file: Path) -> dict[str, Any]:
    """Return what a step takes, what its parts take and cost, and what the GPU can do at best."""
    found = {"ceilings": ceilings(mode, order, file), **_by_parts(mode, order)}
    found["upload"] = upload(mode, order)
    try:
        graph = prepare(f"{mode}{GRAPHED}", order)
        for _ in range(RECORDED):
            graph.run()
        found["graph_seconds"] = _rounds(graph.repeat, order)
    except Exception as error:  # whatever it is, the parts are known
        reason = str(error) if isinstance(error, Skip) else one_line(error)
        found["graph"] = f"no graph: {reason}"
    return found


def _by_parts(mode: str, order: task.Order) -> dict[str, Any]:
    """Return the seconds of a step and of its parts; weights stay what they are."""
    model, gpu, batch = made(mode, order)
    c, xp = order.sizes, model.xp
    step = trainer(model, batch, graphed=False, lr=0.0)
    for _ in range(WARM[order.device]):
        plain = _numbers(step())
    eager = _rounds(lambda count: gpu.repeat(step, count), order)
    keep_busy = busy(xp, gpu, order, AHEAD * statistics.median(eager))
    gpu.waited(step)  # the memory it needs is asked for anew
    parts: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS[order.device]):
        keep_busy()
        with taped(gpu, c, xp) as tape:
            result = step()
        gpu.synchronize()
        for name, spent in tape.read().items():
            part = parts.setdefault(name, {"calls": spent.calls, "seconds": []})
            part["seconds"].append(spent.seconds)
    marks = {"count": tape.marks, "seconds": seconds_of_a_mark(gpu, keep_busy)}
    weights, mine = sum(group.values.size for group in model.groups), _numbers(result)
    cost = tape.costs | costs.operations(c, weights, plain[1] > task.MAX_GRAD_NORM)
    for name, part in parts.items():
        part |= asdict(cost.get(name, costs.NOTHING))
    numbers = {"plain": plain, "parts": mine}
    return {"eager_seconds": eager, "parts": parts, "marks": marks, "numbers": numbers}


def seconds_of_a_mark(gpu: device.Device, keep_busy: Callable[[], None]) -> float:
    """Return what noting a time takes the GPU: it is a part of what is noted."""
    keep_busy()
    marks = [gpu.mark() for _ in range(MARKS)]
    gpu.synchronize()
    return gpu.between(marks[0], marks[-1]) / (MARKS - 1)


def _numbers(result: tuple[Any, Any]) -> list[float]:
    return [float(to_numpy(each)) for each in result]


def _rounds(repeat: Callable[[int], float], order: task.Order) -> list[float]:
    """Return the seconds of a step in each round."""
    first = repeat(1)
    count = int(np.clip(TURN / first, 1, 200))
    return [first, *(repeat(count) / count for _ in range(ROUNDS[order.device] - 1))]


def busy(xp: Any, gpu: device.Device, order: task.Order, seconds: float) -> Callable[[], None]:
    """Return what asks the GPU for products that take so long, and waits for none."""
    size, most = (8192, 200) if order.device == "cuda" else (64, 2)
    a, out = xp.zeros((size, size), "uint16"), xp.empty((size, size), "uint16")

    def product() -> None:
        multiply(a, a, out, xp=xp)

    each = gpu.median(product, rounds=1)
    count = int(np.clip(seconds / each, 1, most))

    def run() -> None:
        for _ in range(count):
            product()

    return run


def upload(mode: str, order: task.Order) -> dict[str, Any]:
    """Return what it takes to bring a batch of pixels to the GPU, and what it would at best."""
    xp, c = array_module_of(order, mode), order.sizes
    gpu, size = device.of_vitkit(xp), LINK[order.device]
    large = np.frombuffer(gpu.cuda.alloc_pinned_memory(size), np.uint8, size)
    room = xp.empty(size, "uint8")
    bring = getattr(room, "set", None) or uploader(room, xp=xp)
    rate = size / gpu.median(lambda: bring(large))
    shape = (c.batch_size, 3, c.image_size, c.image_size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write = uploader(xp.empty(shape, "uint8"), xp=xp)
    seconds = gpu.median(lambda: write(pixels), count=5)
    return {"seconds": seconds, "bytes": pixels.nbytes, "bytes_per_second": rate}
