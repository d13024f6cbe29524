"""Every product that vitkit asks for, described to the real cuBLASLt and read back; without a GPU.

The library takes a number of the right size for anything, so what it was told is compared to what
NVIDIA documents. Whether it has an algorithm is a question for a device.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import pytest

from vitkit.kernels.cuda import _cublaslt, _lt_gelu, _lt_sums
from vitkit.kernels.cuda._cublaslt import Binding, CublasError, Plan, Problem

NUMBERS = {"float32": 0, "float16": 2, "uint16": 14}  # CUDA_R_32F, _16F and _16BF
DTYPES = [
    ("float32", "float32"),
    *itertools.product(("uint16", "float16"), ("float32",)),
    ("uint16", "uint16"),
    ("float16", "float16"),
]
TURNS = [(False, False), (False, True), (True, False), (True, True)]
FLAGS = [False, True]
SIZES = 5, 24, 16
ADDRESS = 0x7F0000000A00

# Attributes by their numbers in ``cublasLt.h``, with the type of each.
MATRIX = {  # TYPE, ORDER, ROWS, COLS, LD, BATCH_COUNT, STRIDED_BATCH_OFFSET
    **{0: ctypes.c_uint32, 1: ctypes.c_int32, 2: ctypes.c_uint64, 3: ctypes.c_uint64},
    **{4: ctypes.c_int64, 5: ctypes.c_int32, 6: ctypes.c_int64},
}
PRODUCT = {  # COMPUTE_TYPE, SCALE_TYPE, POINTER_MODE, TRANSA, TRANSB, TRANSC, EPILOGUE,
    # BIAS_POINTER, EPILOGUE_AUX_POINTER, EPILOGUE_AUX_LD, and the data type of the bias
    **dict.fromkeys((*range(6), 7), ctypes.c_int32),
    **{8: ctypes.c_uint64, 11: ctypes.c_uint64, 12: ctypes.c_int64, 26: ctypes.c_int32},
}
PREFERENCE = {  # MAX_WORKSPACE_BYTES, REDUCTION_SCHEME_MASK, and the alignments of A, B, C and D
    **{1: ctypes.c_uint64, 3: ctypes.c_uint32},
    **dict.fromkeys(range(5, 9), ctypes.c_uint32),
}
EPILOGUES = {
    ("", False): 1,  # DEFAULT
    ("", True): 4,  # BIAS
    ("gelu", True): 4 | 32,  # GELU_BIAS
    ("gelu_kept", True): 4 | 32 | 128,  # GELU_AUX_BIAS
    ("gelu_backward", True): 16 | 64 | 128,  # DGELU_BGRAD
    ("sums", True): 512,  # BGRADB
}


def problems() -> list[Problem]:
    """Return what the products of ``_lt``, ``_lt_gelu`` and ``_lt_sums`` ask for."""
    precisions = [(*dtypes, "float32") for dtypes in DTYPES] + [("float32", "float32", "tf32")]
    found = [
        Problem(*SIZES, *turned, *precision, bias=bias, adds=adds, batch=batch, alignment=alignment)
        for turned, precision, bias, adds in itertools.product(TURNS, precisions, FLAGS, FLAGS)
        for batch, alignment in ((1, 16), (3, 8))
    ]
    found += [
        Problem(*SIZES, False, True, dtype, dtype, bias=True, alignment=16, ends="gelu")
        for dtype in _lt_gelu.FORWARD
    ]
    for dtype in _lt_gelu.BACKWARD:
        kept = {"bias": True, "alignment": 16}
        found.append(Problem(*SIZES, False, True, dtype, dtype, ends="gelu_kept", **kept))
        found.append(Problem(*SIZES, False, False, dtype, dtype, ends="gelu_backward", **kept))
    found += [
        Problem(*SIZES, True, False, dtype, "float32", bias=True, adds=adds, ends="sums")
        for dtype in _lt_sums.SERVED
        for adds in FLAGS
    ]
    return found


@pytest.fixture
def binding() -> Binding:
    """Return the real library."""
    if reason := _cublaslt.why_none():
        pytest.skip(reason)
    return _cublaslt.library()


def told(binding: Binding, kind: str, described: Any, attributes: dict[int, Any]) -> dict[int, int]:
    """Return what the library says that it was told, of which each has exactly its size."""
    found = {}
    for attribute, number in attributes.items():
        value, written = number(), ctypes.c_size_t()
        binding.call(
            f"cublasLt{kind}GetAttribute",
            *(described, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))),
            ctypes.byref(written),
        )
        assert written.value == ctypes.sizeof(value)
        found[attribute] = value.value
    return found


def matrix(dtype: str, rows: int, columns: int, batch: int) -> dict[int, int]:
    """Return what describes our row-major matrix: theirs lie column by column, with our rows."""
    found = {0: NUMBERS[dtype], 1: 0, 2: columns, 3: rows, 4: columns}
    return {**found, 5: batch, 6: rows * columns if batch > 1 else 0}


def product(p: Problem) -> dict[int, int]:
    """Return what describes a product turned round, whose A is our b; the rest is as it comes."""
    compute = 77 if p.precision == "tf32" else 68  # CUBLAS_COMPUTE_32F_FAST_TF32, _32F
    found = {0: compute, 1: 0, 2: 0, 3: int(p.transpose_b), 4: int(p.transpose_a), 5: 0}
    kept = p.ends in ("gelu_kept", "gelu_backward")
    found |= {7: EPILOGUES[p.ends, p.bias], 8: ADDRESS if p.bias else 0}
    return found | {11: ADDRESS + 256 if kept else 0, 12: p.n if kept else 0, 26: -1}


def preference(p: Problem) -> dict[int, int]:
    """Return what describes the algorithms asked for, which keep sums in float32.

    Reductions are 1, in place, plus 2, in the computation's type, plus 4, in the result's.
    """
    reductions = 7 if p.out == "float32" else 2
    return {1: 32 * 2**20, 3: reductions, **dict.fromkeys(range(5, 9), p.alignment)}


def differs(problem: Problem, binding: Binding) -> bool:
    """Return whether the library was told anything else than what a product is."""
    p, plan = problem, Plan(binding, problem)
    plan._set_places(ADDRESS, ADDRESS + 256)
    matrices = plan._first, plan._second, plan._result
    found = [
        told(binding, "MatmulDesc", plan._description, PRODUCT),
        *(told(binding, "MatrixLayout", each, MATRIX) for each in matrices),
        told(binding, "MatmulPreference", plan.preference(), PREFERENCE),
    ]
    return found != [
        product(p),
        matrix(p.dtype, *((p.n, p.k) if p.transpose_b else (p.k, p.n)), p.batch),
        matrix(p.dtype, *((p.k, p.m) if p.transpose_a else (p.m, p.k)), p.batch),
        matrix(p.out, p.m, p.n, p.batch),
        preference(p),
    ]


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.key)
def test_the_library_was_told_what_was_meant(problem: Problem, binding: Binding) -> None:
    assert not differs(problem, binding)


FAULTS: dict[str, tuple[str, Any]] = {
    "flags that change places": ("TRANSPOSE_A", 4),
    "a bias where a GELU's operand lies": ("BIAS", 11),
    "numbers of another type": ("TYPES", {"float32": 0, "float16": 2, "uint16": 4}),
    "products rounded to TF32": ("COMPUTE", {"float32": 77, "tf32": 77}),
    "a batch far apart": ("BATCH_STEP", 7),
    "rows of another length": ("BEFORE_STEP", 13),
    "sums of the other operand": ("EPILOGUES", {**_cublaslt.EPILOGUES, ("sums", True): 256}),
    "parts of sums that are rounded": ("REDUCTIONS", 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(
    fault: str, binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cublaslt, *FAULTS[fault])
    assert any(differs(problem, binding) for problem in problems())


def test_what_is_planned_here() -> None:
    """Also what flows in 16 bits: it is added to, and a bias on top, without being float32."""
    found = problems()
    assert len(set(found)) == len(found)
    assert {each.ends for each in found} == {ends for ends, _ in _cublaslt.EPILOGUES}
    flows = Problem(*SIZES, False, True, "uint16", "uint16", bias=True, adds=True, alignment=16)
    assert flows in found


def test_a_number_of_another_size_is_refused(binding: Binding) -> None:
    assert binding.version >= 120000
    plan = Plan(binding, Problem(5, 7, 3, False, True, "uint16", "uint16", bias=True))
    with pytest.raises(CublasError, match="invalid value"):
        plan._set("MatmulDesc", plan._description, 3, ctypes.c_int8(0))
