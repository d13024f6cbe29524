"""The update rules: closed forms, torch, in place, and independent of shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitkit.backend import Array, ArrayModule, to_numpy
from vitkit.ops import updates
from vitkit.testing import assert_close, strict_device

ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.3}
RULES: dict[str, tuple[int, dict[str, Any]]] = {  # how many slots; keywords
    "sgd_update_inplace": (
        1,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    ),
    "adam_update_inplace": (2, ADAM),
    "adamw_update_inplace": (2, ADAM),
    "lamb_update_inplace": (2, ADAM),
    "lion_update_inplace": (1, {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.3}),
}
ELEMENTWISE = [name for name in RULES if not name.startswith("lamb")]


def apply(name: str, w: Array, gradients: list[Array], xp: ArrayModule, **changed: Any) -> Any:
    """Run a rule once for each gradient, from state zero; return the slots."""
    count, settings = RULES[name]
    slots = [xp.zeros_like(w) for _ in range(count)]
    for step, g in enumerate(gradients, start=1):
        counted = {"step": step} if "beta2" in settings and "lion" not in name else {}
        getattr(updates, name)(w, g, *slots, **(settings | counted | changed), xp=xp)
    return slots


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_follows_torch(name: str, dtype: str, xp: ArrayModule, rng: np.random.Generator) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch, what it is compared to, is missing")
    shape, rule = (3, 4, 5), f"{name}_update_inplace"
    start = rng.standard_normal(shape).astype(dtype)
    gradients = [rng.standard_normal(shape).astype(dtype) for _ in range(12)]
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    settings = {k: v for k, v in RULES[rule][1].items() if "beta" not in k}
    if name != "sgd":
        settings["betas"] = (0.9, 0.99)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[
        name
    ]([theirs], **settings)
    for done, g in enumerate(gradients, start=1):
        theirs.grad = torch.from_numpy(g)
        optimizer.step()
        w = xp.asarray(start.copy())
        apply(rule, w, [xp.asarray(g) for g in gradients[:done]], xp)
        assert_close(w, theirs.detach().numpy())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4)])
def test_writes_through_views_of_any_shape(
    name: str, shape: tuple[int, ...], xp: ArrayModule, rng: np.random.Generator
) -> None:
    size = int(np.prod(shape))
    host = rng.standard_normal(size + 2).astype("float32")
    gradients = [rng.standard_normal(shape).astype("float32") for _ in range(3)]
    buffer = xp.asarray(host.copy())
    apply(name, buffer[1:-1].reshape(shape), [xp.asarray(g) for g in gradients], xp)
    result = to_numpy(buffer)
    assert result.dtype == np.float32
    assert (result[[0, -1]] == host[[0, -1]]).all()  # the neighbours
    expected = host[1:-1].astype("float64").reshape(shape)
    apply(name, expected, [g.astype("float64") for g in gradients], np)
    assert_close(result[1:-1].reshape(shape), expected)
    assert (result[1:-1] != host[1:-1]).all()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_entries_do_not_see_each_other(
    name: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    host = rng.standard_normal(12)
    gradients = [rng.standard_normal(12) for _ in range(3)]
    whole = xp.asarray(host.copy())
    apply(name, whole, [xp.asarray(g) for g in gradients], xp)
    for part in (slice(0, 5), slice(5, 12)):
        piece = xp.asarray(host[part].copy())
        apply(name, piece, [xp.asarray(g[part]) for g in gradients], xp)
        assert_close(piece, whole[part])


@pytest.mark.parametrize("name", RULES)
def test_leaves_the_gradient_and_waits_for_no_device(name: str) -> None:
    xp = strict_device.xp
    w, g = (xp.asarray(np.arange(1.0, 5.0, dtype="float32")) for _ in range(2))
    with strict_device.count_syncs() as syncs:
        slots = apply(name, w, [g, g], xp)
    assert syncs == []
    assert to_numpy(g).tolist() == [1, 2, 3, 4]
    assert {a.dtype for a in (w, g, *slots)} == {np.dtype("float32")}


def test_the_first_adam_step_is_the_learning_rate(xp: ArrayModule) -> None:
    g = np.asarray([3.0, -1e-3, 1e4])  # whatever the gradient's size: m / (1 - b1) = g
    w = xp.zeros(3, "float64")
    apply("adam_update_inplace", w, [xp.asarray(g)], xp, weight_decay=0.0, eps=1e-14)
    assert_close(w, -0.1 * np.sign(g))


def test_adamw_decays_apart_from_the_gradient(xp: ArrayModule) -> None:
    w = xp.asarray(np.asarray([2.0, -4.0]))
    apply("adamw_update_inplace", w, [xp.zeros(2, "float64")] * 3, xp)
    assert_close(w, np.asarray([2.0, -4.0]) * (1 - 0.1 * 0.3) ** 3)


def test_lamb_steps_in_proportion_to_the_length(xp: ArrayModule) -> None:
    w = xp.asarray(np.asarray([3.0, -4.0]))  # length 5; direction (1, 1), length sqrt(2)
    g = xp.asarray(np.asarray([7.0, 0.2]))
    apply("lamb_update_inplace", w, [g], xp, weight_decay=0.0, eps=1e-14)
    assert_close(w, np.asarray([3.0, -4.0]) - 0.1 * 5 / np.sqrt(2))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_lamb_takes_ratio_one_where_a_norm_is_zero(dtype: str, xp: ArrayModule) -> None:
    w = xp.zeros(4, dtype)
    apply("lamb_update_inplace", w, [xp.ones(4, dtype)], xp)
    assert_close(w, np.full(4, -0.1, dtype) / (1 + 1e-6))
    w = xp.ones(4, dtype)
    apply("lamb_update_inplace", w, [xp.zeros(4, dtype)], xp, weight_decay=0.0)
    assert_close(w, np.ones(4, dtype))
    w = xp.zeros(4, dtype)
    apply("lamb_update_inplace", w, [xp.zeros(4, dtype)], xp)
    assert_close(w, np.zeros(4, dtype))


def test_lion_steps_are_all_alike(xp: ArrayModule) -> None:
    w = xp.zeros(3, "float64")
    g = np.asarray([1e-9, -5.0, 0.0])
    (m,) = apply("lion_update_inplace", w, [xp.asarray(g)] * 2, xp, weight_decay=0.0)
    assert_close(w, -0.2 * np.sign(g))
    assert_close(m, (1 - 0.99**2) * g)


def test_sgd_keeps_no_velocity_without_momentum(xp: ArrayModule) -> None:
    w = xp.asarray(np.asarray([1.0, 2.0]))
    g = xp.asarray(np.asarray([10.0, 20.0]))
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 1.0}
    updates.sgd_update_inplace(w, g, None, **settings, xp=xp)
    assert_close(w, np.asarray([1.0 - 0.1 * 11, 2.0 - 0.1 * 22]))


def test_ema_moves_by_what_is_left(xp: ArrayModule) -> None:
    average = xp.asarray(np.asarray([1.0, 2.0], "float32"))
    w = xp.asarray(np.asarray([3.0, 2.0], "float32"))
    updates.ema_update_inplace(average, w, decay=0.75, xp=xp)
    assert average.dtype == np.float32
    assert_close(average, np.asarray([1.5, 2.0], "float32"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in RULES if RULES[name][1] is ADAM])
def test_the_count_may_be_an_array(
    name: str, dtype: str, xp: ArrayModule, rng: np.random.Generator
) -> None:
    start = rng.standard_normal(7).astype(dtype)
    g = rng.standard_normal(7).astype(dtype)
    both = []
    for kind in (int, xp.asarray):
        w = xp.asarray(start.copy())
        m, v = xp.zeros_like(w), xp.zeros_like(w)
        for step in (1, 2, 3000):
            getattr(updates, name)(w, xp.asarray(g), m, v, **ADAM, step=kind(step), xp=xp)
        assert w.dtype == dtype
        both.append(to_numpy(w))
    assert_close(both[1], both[0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_decay_of_an_average_may_be_an_array(dtype: str, xp: ArrayModule) -> None:
    both = []
    for decay in (0.3, xp.asarray(0.3)):
        average = xp.asarray(np.asarray([1.0, 2.0, -3.0], dtype))
        updates.ema_update_inplace(average, xp.ones(3, dtype), decay=decay, xp=xp)
        assert average.dtype == dtype
        both.append(to_numpy(average))
    np.testing.assert_array_equal(both[1], both[0])
