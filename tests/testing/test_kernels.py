"""Every kernel that ships passes the kit; each planted fault is named, by the right checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from faults_kernels import FAULTS, PLANTED, RIGHT, Planted, gelu, never

from vitkit import kernels, ops
from vitkit.backend import cuda_status
from vitkit.ops import Op
from vitkit.testing import kernels as kit
from vitkit.testing.check import ConformanceError, Outcome, outcome_of
from vitkit.testing.kernels import check_kernel, kernel_checks
from vitkit.testing.parts.kernel_inputs import MAKERS, NOTHING_SUMMED, makers, sizes
from vitkit.testing.parts.memory import STRIDED, Placed, watched_memory

kernels.load(np)
OPS = {name: op for name, op in vars(ops).items() if isinstance(op, Op)}
SHIPPED = [(name, backend) for name, op in OPS.items() for backend in op.kernels]


def outcomes(*args: Any, **kwargs: Any) -> dict[str, Outcome]:
    return {check.name: outcome_of(check) for check in kernel_checks(*args, **kwargs)}


@pytest.mark.parametrize(("name", "backend"), SHIPPED)
def test_what_ships_passes(name: str, backend: str) -> None:
    found = outcomes(OPS[name], OPS[name].kernels[backend], backend=backend)
    assert [o for o in found.values() if o.passed is False] == []
    if backend == "numpy":  # what Numba compiles is compiled for float32
        unasked = {o.name for o in found.values() if o.passed is None}
        assert unasked <= {"answers", "values in float64"}


@pytest.mark.parametrize("name", OPS)
def test_every_reference_passes_as_a_kernel_of_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "LENGTHS", (0, *kit.SHORT))  # the longest takes most of the time
    monkeypatch.setattr(kit, "LONG", 50)
    assert {o.passed for o in outcomes(OPS[name], OPS[name].reference).values()} == {True}


@pytest.mark.parametrize("name", ["gelu_backward", "softmax", "global_norm", "sgd_update_inplace"])
def test_kernels_of_a_device_are_compared_with_numpy(name: str) -> None:
    found = outcomes(OPS[name], OPS[name].reference, backend="strict_device")
    assert {o.passed for o in found.values()} == {True}


@pytest.mark.parametrize("right", RIGHT, ids=lambda right: right.kernel.__name__)
def test_the_right_version_of_the_faults_passes(right: Planted) -> None:
    check_kernel(right.op, right.kernel, backend=right.backend)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    check, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message) as caught:
        check()
    assert set(caught.value.failures) == PLANTED[fault].fails, caught.value


@pytest.mark.usefixtures("kernels_on")
def test_what_is_left_to_the_reference_is_said() -> None:
    layer_norm = outcomes(ops.layer_norm, ops.layer_norm.kernels["numpy"])["answers"]
    assert layer_norm.passed is None
    assert "to the reference float32 (n rows) with n = 0; float64" in layer_norm.message
    assert outcomes(ops.gelu, never)["values in float32"].message.endswith("to the reference")


@Op
def halved(x: Any, y: Any, *, half: float, xp: Any) -> Any:
    return half * x + y


def arguments(rng: np.random.Generator, n: int, dtype: str) -> Any:
    x, y = rng.standard_normal((2, 3, n)).astype(dtype)
    return (x,), {"y": y, "half": 0.5}


def other_order(x: Any, y: Any, *, half: float, xp: Any) -> Any:
    return y + half * x


def last_column_lost(x: Any, y: Any, *, half: float, xp: Any) -> Any:
    z = y.copy()
    z[:, :-1] += half * x[:, :-1]
    return z


def test_an_op_of_a_plugin_needs_inputs() -> None:
    found = outcomes(halved, other_order)
    assert found.pop("signature").passed
    assert {o.passed for o in found.values()} == {None}
    assert all("pass inputs=, a function (rng, n, dtype)" in o.message for o in found.values())
    assert {o.passed for o in outcomes(halved, other_order, inputs=arguments).values()} == {True}
    with pytest.raises(ConformanceError, match="the last 1 of 2 positions along axis 1"):
        check_kernel(halved, last_column_lost, inputs=arguments)


def test_inputs_that_raise_are_named() -> None:
    def broken(rng: np.random.Generator, n: int, dtype: str) -> Any:
        raise IndexError(n)

    with pytest.raises(ConformanceError, match=r"inputs for n = 33 .* raised IndexError"):
        check_kernel(halved, other_order, inputs=broken)


def test_an_activation_of_a_plugin_needs_none() -> None:
    @Op
    def mine(x: Any, *, xp: Any) -> Any:
        return ops.gelu(x, xp=xp)

    assert {o.passed for o in outcomes(mine, gelu).values()} == {True}


def test_cupy_is_skipped_without_a_gpu() -> None:
    found = outcomes(ops.gelu, ops.gelu.reference, backend="cupy")
    assert found.pop("signature").passed
    assert {o.passed for o in found.values()} == ({True} if cuda_status().usable else {None})


def test_an_unknown_array_module_is_skipped() -> None:
    found = outcomes(ops.gelu, ops.gelu.reference, backend="abacus")
    assert "no array module 'abacus'" in found["call"].message


def test_every_op_that_is_no_activation_has_makers() -> None:
    assert set(OPS) >= set(MAKERS)
    assert set(MAKERS) >= NOTHING_SUMMED
    assert [name for name, op in OPS.items() if makers(op) is None] == []


def test_shapes_are_read_as_written() -> None:
    assert sizes("2 3n n n+1", 5) == (2, 15, 5, 6)
    assert sizes("2 3n n n+1", 0) == (2, 0, 0, 1)


def test_memory_that_is_watched() -> None:
    with watched_memory(np) as intact:
        inside, whole = np.empty((2, 3), "float32"), np.empty_like(np.ones(3, int))
        assert np.isnan(inside).all()
        assert whole.dtype == int
        inside[...] = 1
        assert intact()
        inside.base[0] = 3
        assert not intact()
    assert np.empty is not None
    assert np.empty(3).base is None


@pytest.mark.parametrize("kind", STRIDED)
def test_what_lies_between_is_watched(kind: str) -> None:
    host = np.arange(6.0).reshape(2, 3)
    placed = Placed(host, STRIDED[kind], before=np.nan, after=np.nan)
    np.testing.assert_array_equal(placed.array, host)
    assert not placed.array.flags.c_contiguous
    placed.array[...] = 7
    assert placed.intact()
    if kind.startswith("every"):
        placed.array.base[-1] = 0
        assert not placed.intact()
