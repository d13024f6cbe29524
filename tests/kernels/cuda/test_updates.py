"""The update rules' CUDA kernels against float64, PyTorch and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitkit import ops
from vitkit.backend.precision import to_bfloat16
from vitkit.kernels.cuda import _kernel
from vitkit.kernels.cuda.updates import adamw_update_with_copy
from vitkit.testing import cuda_on_cpu, strict_device

xp = strict_device.xp
EPS = np.finfo("float32").eps
ORDERS = (0, 1, 2)
SIZES = [1, 3, 31, 32, 33, 65, 197, 4096, 4097 * 3]
SOME = [3, 197, 4097 * 3]  # a tail, several blocks

ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.3, "step": 3}
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.3}
LION = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.3}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # rule, how many slots, settings
    "sgd": ("sgd", 1, SGD | {"momentum": 0.0}),
    "sgd by a velocity": ("sgd", 1, SGD),
    "sgd looking ahead": ("sgd", 1, SGD | {"nesterov": True}),
    "sgd without decay": ("sgd", 1, SGD | {"weight_decay": 0.0}),
    "adam": ("adam", 2, ADAM),
    "adam without decay": ("adam", 2, ADAM | {"weight_decay": 0.0, "step": 1}),
    "adamw": ("adamw", 2, ADAM),
    "adamw late": ("adamw", 2, ADAM | {"step": 100_000, "eps": 1e-3}),
    "lamb": ("lamb", 2, ADAM),
    "lamb without decay": ("lamb", 2, ADAM | {"weight_decay": 0.0}),
    "lion": ("lion", 1, LION),
    "lion without decay": ("lion", 1, LION | {"weight_decay": 0.0}),
    "ema": ("ema", 0, {"decay": 0.99}),
}
ON_DEVICE = {"lr": "float32", "step": "int64", "decay": "float64"}  # as a graph keeps them


def op(rule: str) -> Any:
    return getattr(ops, f"{rule}_update_inplace")


def drawn(slots: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return float32 weights, gradient and slots, the last of two a mean of squares."""
    arrays = rng.standard_normal((2 + slots, size))
    if slots == 2:
        arrays[3] = arrays[3] ** 2 + 0.1
    return list(arrays.astype("float32"))


def difference(
    case: str, size: int, rng: np.random.Generator, first: int = 0, held: bool = False
) -> float:
    """Return the worst error after an update, in units of what its roundings may amount to.

    Weights may be wrong by 1.5 eps of what they were, since a factor near 1 and the result are
    rounded, and by 3 eps of the step, which takes up to a dozen roundings of half an eps; 8 in
    LAMB, whose norms are sums. Means: by 3 eps of what they are made of. How large that is, the
    rule says of numbers none of which is negative, so that they do not cancel.
    """
    rule, slots, settings = CASES[case]
    hosts = drawn(slots, size, rng)
    padded = [xp.asarray(np.concatenate([np.zeros(first, "float32"), host])) for host in hosts]
    arrays = [array[first:] for array in padded]
    on_device = {
        name: xp.asarray(np.asarray(value, ON_DEVICE[name]))
        for name, value in settings.items()
        if held and name in ON_DEVICE
    }
    with strict_device.count_syncs() as syncs:
        op(rule)(*arrays, **(settings | on_device), xp=xp)
    assert syncs == []
    before = [host.astype("float64") for host in hosts]
    sizes = [np.abs(array) for array in before]
    exact, added = ([array.copy() for array in arrays] for arrays in (before, sizes))
    op(rule).reference(*exact, **settings, xp=np)
    op(rule).reference(*added, **settings, xp=np)
    assert np.array_equal(arrays[1].get(), hosts[1]), "the gradient, which is only read"
    if rule != "ema":
        added[0] -= sizes[0]
    worst, ulps = 0.0, 8 if rule == "lamb" else 3
    for found, expected, terms, was in zip(arrays, exact, added, sizes, strict=True):
        bound = EPS * (1.5 * was + ulps * np.abs(terms)) + 1e-44
        worst = max(worst, float((np.abs(found.get() - expected) / bound).max()))
    return worst


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", CASES)
def test_an_update(case: str, rng: np.random.Generator) -> None:
    assert max(difference(case, size, rng) for size in SIZES) < 1


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_where_vectors_do_not_fit_and_numbers_lie_on_the_device(
    case: str, held: bool, rng: np.random.Generator
) -> None:
    assert max(difference(case, size, rng, 1, held) for size in SOME) < 1
    assert difference(case, 197, rng, 0, held) < 1


@pytest.mark.usefixtures("emulated_once")
@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
def test_follows_torch_over_many_steps(rule: str, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch, what it is compared to, is missing")
    _, slots, settings = CASES["sgd looking ahead" if rule == "sgd" else rule]
    start, *gradients = rng.standard_normal((21, 197)).astype("float32")
    theirs = torch.nn.Parameter(torch.from_numpy(start.astype("float64")))
    given = {
        name: value for name, value in settings.items() if name not in ("beta1", "beta2", "step")
    }
    if "beta1" in settings:
        given["betas"] = settings["beta1"], settings["beta2"]
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[
        rule
    ]([theirs], **given)
    ours, *state = (xp.asarray(start), *(xp.zeros(197, "float32") for _ in range(slots)))
    for step, g in enumerate(gradients, start=1):
        counted = {"step": step} if "step" in settings else {}
        op(rule)(ours, xp.asarray(g), *state, **(settings | counted), xp=xp)
        theirs.grad = torch.from_numpy(g.astype("float64"))
        optimizer.step()
    # Each step is at most about 1 long, and rounded to some eps of that.
    assert np.abs(ours.get() - theirs.detach().numpy()).max() < 20 * 4 * EPS


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", ["adamw", "lamb", "lion", "sgd", "ema"])
@pytest.mark.parametrize("kind", ["float32", "float64", "int64"])
def test_kinds_of_numbers_on_the_device(case: str, kind: str, rng: np.random.Generator) -> None:
    rule, slots, settings = CASES[case]
    rate = 1 if kind == "int64" else 0.25
    changed: dict[str, Any] = {name: rate for name in ("lr", "decay") if name in settings}
    if "step" in settings:
        changed["step"] = 7
    hosts = drawn(slots, 33, rng)
    results = []
    for on_device in (False, True):
        arrays = [xp.asarray(host) for host in hosts]
        numbers: dict[str, Any] = {
            name: xp.asarray(np.asarray(value, kind)) if on_device else value
            for name, value in changed.items()
        }
        op(rule)(*arrays, **(settings | numbers), xp=xp)
        results.append([array.get() for array in arrays])
    for found, expected in zip(*results, strict=True):
        assert np.array_equal(found, expected)


def test_a_graph_that_runs_again_reads_the_numbers_anew(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    hosts, settings = drawn(2, 65, rng), CASES["adamw"][2]
    lr, step = xp.asarray(np.float32(0.25)), xp.asarray(np.int64(1))
    again, arrays = ([xp.asarray(host) for host in hosts] for _ in range(2))
    launches: list[tuple[Any, ...]] = []
    with cuda_on_cpu.emulated():

        def launch(*launched: Any) -> None:
            launches.append(launched)
            cuda_on_cpu.launch(*launched)

        monkeypatch.setitem(_kernel.LAUNCHERS, xp.__name__, launch)
        op("adamw")(*again, **(settings | {"lr": lr, "step": step}), xp=xp)
        lr.fill(0.5)
        step += 1
        for launched in list(launches):
            cuda_on_cpu.launch(*launched)
        for rate, count in ((0.25, 1), (0.5, 2)):
            op("adamw")(*arrays, **(settings | {"lr": rate, "step": count}), xp=xp)
    for found, expected in zip(again, arrays, strict=True):
        assert np.array_equal(found.get(), expected.get())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("size", SOME)
@pytest.mark.parametrize("dtype", ["uint16", "float16"])
def test_a_copy_of_less_precision(dtype: str, size: int, rng: np.random.Generator) -> None:
    hosts = drawn(2, size + 1, rng)
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "step": 3}
    for first in (0, 1):
        arrays, plainly = ([xp.asarray(host)[first:] for host in hosts] for _ in range(2))
        low = xp.zeros(size + 1, dtype)[first:]
        w, g, m, v = arrays
        adamw_update_with_copy(w, g, m, v, low, **settings, weight_decay=0.3, xp=xp)
        op("adamw")(*plainly, **CASES["adamw"][2], xp=xp)
        for found, expected in zip(arrays, plainly, strict=True):
            assert np.array_equal(found.get(), expected.get())
        new = w.get()
        expected = to_bfloat16(new, xp=np) if dtype == "uint16" else new.astype("float16")
        assert np.array_equal(low.get(), expected)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", [0, 1])
def test_numbers_at_the_edge(case: str, place: int, rng: np.random.Generator) -> None:
    rule, slots, settings = CASES[case]
    hosts = drawn(slots, 33, rng)
    hosts[place][:6] = np.nan, np.inf, -np.inf, 3e38, 1e-40, 0.0
    if rule == "lamb":  # one such number decides the norms: then nothing is left to compare
        hosts[place][:4] = 1e-30
    arrays = [xp.asarray(host) for host in hosts]
    with np.errstate(all="ignore"):
        op(rule)(*arrays, **settings, xp=xp)
        op(rule).reference(*hosts, **settings, xp=np)
    for found, expected in zip(arrays, hosts, strict=True):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("w", [0.0, 1.0, np.nan, np.inf])
@pytest.mark.parametrize("g", [0.0, 1.0, 1e30])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_lamb_where_a_norm_is_odd(w: float, g: float, eps: float) -> None:
    hosts = [np.full(33, value, "float32") for value in (w, g, 0.0, 0.0)]
    arrays = [xp.asarray(host) for host in hosts]
    settings = ADAM | {"weight_decay": 0.0, "eps": eps}
    with np.errstate(all="ignore"):
        op("lamb")(*arrays, **settings, xp=xp)
        op("lamb").reference(*hosts, **settings, xp=np)
    for found, expected in zip(arrays, hosts, strict=True):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-5)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("case", CASES)
def test_gaps_and_other_dtypes(case: str, rng: np.random.Generator) -> None:
    rule, slots, settings = CASES[case]
    hosts = [np.stack([host, host], 1) for host in drawn(slots, 65, rng)]

    def run(arrays: list[Any]) -> np.ndarray:
        op(rule)(*arrays, **settings, xp=xp)
        return np.stack([array.get() for array in arrays])

    plainly = run([xp.asarray(np.ascontiguousarray(host[:, 0])) for host in hosts])
    arrays = [xp.asarray(np.ascontiguousarray(host[:, 0])) for host in hosts]
    arrays[1] = xp.asarray(hosts[1])[:, 0]  # what is only read; then all: the reference
    assert np.array_equal(run(arrays), plainly)
    with_gaps = run([xp.asarray(host)[:, 0] for host in hosts])
    np.testing.assert_allclose(with_gaps, plainly, rtol=1e-5, atol=1e-6)
    wide = run([xp.asarray(host[:, 0].astype("float64")) for host in hosts])
    np.testing.assert_allclose(wide, plainly, rtol=1e-5, atol=1e-6)
    assert wide.dtype == np.float64
    nothing = run([xp.zeros((0, 3), "float32") for _ in hosts])
    assert nothing.shape[1:] == (0, 3)


FAULTS = {
    "a shuffle too few": ("for (int lane = 16; lane", "for (int lane = 8; lane"),
    "no barrier": ("  __syncthreads();\n  return warp_sum(", "  return warp_sum("),
    "a dropped tail": ("if (i < left) put", "if (i + 1 < left) put"),
    "a wrong index": ("* blockDim.x + threadIdx.x) * V", "* blockDim.x + threadIdx.x) + V"),
    "a bias left": ("1 / sqrt(second)", "1 / second"),
    "numbers of the host": ("return held ? held[which] : value", "return value"),
    "one beta for both": ("by.beta2 * v", "by.beta1 * v"),
    "uphill": ("- rate * direction", "+ rate * direction"),
    "decay forgotten": ("g + decay * w : g", "g : g"),
    "no look-ahead": ("nesterov ? step[i] + momentum", "nesterov ? step[i] + 0 * momentum"),
    "a ratio turned around": ("length / size", "size / length"),
    "a sum of one block": ("sums[gridDim.x + blockIdx.x] = size", "sums[gridDim.x] = size"),
    "the other beta": ("beta2 * mean[i] + rest2", "beta1 * mean[i] + rest2"),
    "an average of none": ("rest * (x[i] - mean[i])", "rest * x[i]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    if reason := cuda_on_cpu.why_not():
        pytest.skip(reason)
    plant("updates.cuh", *FAULTS[fault])

    def is_noticed(order: int) -> bool:
        with cuda_on_cpu.emulated(order), np.errstate(all="ignore"):
            return any(
                not difference(case, size, rng, held=held) < 1
                for case in CASES
                for size in (33, 4097 * 3)
                for held in (False, True)
            )

    assert any(map(is_noticed, ORDERS))


def test_a_planted_fault_of_the_copy_is_noticed(
    plant: Callable[[str, str, str], None], rng: np.random.Generator
) -> None:
    plant("updates.cuh", "if (low) store_some(x,", "if (low) store_some(mean,")
    with pytest.raises(AssertionError), cuda_on_cpu.emulated():
        test_a_copy_of_less_precision("uint16", 33, rng)
