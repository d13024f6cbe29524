"""A thin binding of NVIDIA's cuBLASLt by ctypes: matrix products with what is added to them.

CuPy's own products cannot be part of a captured graph, and know neither biases nor residuals. The
numbers of the enumerations are those of ``cublasLt.h`` and ``library_types.h``; what each function
takes is in NVIDIA's cuBLAS documentation, "Using the cuBLASLt API".
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitkit.backend import compute_capability
from vitkit.kernels.cuda._gpu import Gpu

LOGGER = logging.getLogger("vitkit")
SONAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
TYPES = {"float32": 0, "float16": 2, "uint16": 14}  # cudaDataType, by dtype; bfloat16 as uint16
FLOAT = TYPES["float32"]
COMPUTE = {"float32": 68, "tf32": 77}  # cublasComputeType_t: CUBLAS_COMPUTE_32F, _32F_FAST_TF32
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
BEFORE, BEFORE_STEP = 11, 12  # likewise, _EPILOGUE_AUX_POINTER and _EPILOGUE_AUX_LD
BATCH_COUNT, BATCH_STEP = 5, 6  # cublasLtMatrixLayoutAttribute_t
WORKSPACE_BYTES, REDUCTIONS = 1, 3  # cublasLtMatmulPreferenceAttributes_t
ALIGNMENTS = (5, 6, 7, 8)  # likewise; of A to D
IN_FLOAT = 2  # cublasLtReductionScheme_t: parts of a sum are kept in the type of the computation
EPILOGUES = {  # cublasLtEpilogue_t, by how a product ends and whether there is a bias
    ("", False): 1,
    ("", True): 4,
    ("gelu", True): 36,  # _GELU_BIAS
    ("gelu_kept", True): 164,  # _GELU_AUX_BIAS
    ("gelu_backward", True): 208,  # _DGELU_BGRAD
    ("sums", True): 512,  # _BGRADB
}
KEEPS = ("gelu_kept", "gelu_backward")
"""Ends that write, or read, what a GELU is of."""
CANDIDATES = 32
WORKSPACE = 32 << 20  # bytes that a product may use beside its arrays
BIAS_ALIGNMENT = 16  # bytes; on an A100, algorithms that add a bias have failed with less
NOT_INITIALIZED, NOT_SUPPORTED = 1, 15
STATUS = {
    NOT_INITIALIZED: "not initialized",
    3: "allocation failed",
    7: "invalid value",
    8: "architecture mismatch",
    13: "execution failed",
    14: "internal error",
    NOT_SUPPORTED: "not supported",
    16: "licence error",
}


class CublasError(RuntimeError):
    """A function of the library answered that it failed.

    Parameters
    ----------
    message : str
        Which, and how.
    status : int
        The number that it returned.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unsupported(CublasError):
    """The library has no algorithm for a product."""


class Algorithm(ctypes.Structure):
    """What the heuristic returns: an opaque algorithm and what it needs."""

    _fields_ = (
        ("data", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class Problem:
    """A product of row-major matrices, ``out = op(a) op(b) + bias + plus``.

    Attributes
    ----------
    m, n, k : int
        The result is (m, n), and k products are summed.
    transpose_a, transpose_b : bool
        Whether the operand lies as (k, m), or (n, k).
    dtype, out : str
        The dtypes of the operands, and of the result, bias and ``plus``.
    precision : str
        ``"float32"``, or ``"tf32"`` where float32 operands may be rounded.
    bias, adds : bool
        Whether there is a bias (n,), and a ``plus`` (m, n).
    batch : int
        How many products, one matrix behind the other.
    alignment : int
        Bytes of which the addresses of matrices are multiples, at most 256; that of the bias is
        one of 16.
    ends : str
        What becomes of ``h = op(a) op(b) + bias``. ``""``: it is the result. ``"gelu"``:
        ``gelu_tanh(h)`` is. ``"gelu_kept"``: so it is, and ``h`` is written too. At
        ``"gelu_backward"`` the result is ``op(a) op(b)`` times the derivative of ``gelu_tanh`` at
        an ``h`` that is given, and the sums of its columns are written where a bias would lie. At
        ``"sums"`` those of ``op(a)`` over ``k``, (m,), are written there, and no bias is added.
    """

    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    dtype: str
    out: str
    precision: str = "float32"
    bias: bool = False
    adds: bool = False
    batch: int = 1
    alignment: int = 256
    ends: str = ""

    @property
    def key(self) -> str:
        """What names it in a file."""
        flags = "".join("ny"[flag] for flag in (self.transpose_a, self.transpose_b))
        more = "".join("ny"[flag] for flag in (self.bias, self.adds))
        sizes = f"{self.batch}x{self.m}x{self.n}x{self.k}"
        found = f"{sizes} {flags} {self.dtype} {self.out} {self.precision} {more} {self.alignment}"
        return f"{found} {self.ends}".rstrip()


class Plan:
    """A product set up: its descriptors, and the algorithm that computes it.

    The library reads columns where we have rows: to it, a row-major (m, n) matrix is one of (n, m).
    So it is given the product turned round, :math:`D^T = op(B)^T op(A)^T`: its A is our b, and its
    B our a, with their flags; its bias has one number for each of its rows, which are our columns.

    Parameters
    ----------
    binding : Binding
        The library.
    problem : Problem
        The product.
    """

    def __init__(self, binding: Binding, problem: Problem) -> None:
        self._binding, self.problem = binding, problem
        p = problem
        self._made: list[tuple[Callable[..., int], Any]] = []
        weakref.finalize(self, _destroy, self._made)  # first: what follows may fail half-way
        self._description = self._new("cublasLtMatmulDesc", COMPUTE[p.precision], FLOAT)
        self._set("MatmulDesc", self._description, TRANSPOSE_A, ctypes.c_int32(p.transpose_b))
        self._set("MatmulDesc", self._description, TRANSPOSE_B, ctypes.c_int32(p.transpose_a))
        epilogue = EPILOGUES[p.ends, p.bias]
        self._set("MatmulDesc", self._description, EPILOGUE, ctypes.c_int32(epilogue))
        if p.ends in KEEPS:
            self._set("MatmulDesc", self._description, BEFORE_STEP, ctypes.c_int64(p.n))
        self._first = self._layout(p.dtype, *((p.n, p.k) if p.transpose_b else (p.k, p.n)))
        self._second = self._layout(p.dtype, *((p.k, p.m) if p.transpose_a else (p.m, p.k)))
        self._result = self._layout(p.out, p.m, p.n)
        self._scales = ctypes.c_float(1.0), ctypes.c_float(1.0 if p.adds else 0.0)
        self._places: dict[int, int] = {}
        self.algorithm: Algorithm | None = None

    def candidates(self) -> list[Algorithm]:
        """Return the algorithms that the library proposes, the likeliest first.

        Raises
        ------
        Unsupported
            If it has none.
        CublasError
            If asking fails otherwise.
        """
        call, p, preference = self._binding.call, self.problem, self.preference()
        # Only how these addresses are aligned is looked at here, and they are not kept.
        self._set_places(BIAS_ALIGNMENT, BIAS_ALIGNMENT)
        found, count = (Algorithm * CANDIDATES)(), ctypes.c_int(0)
        layouts = self._first, self._second, self._result, self._result
        arguments = (self._binding.handle(), self._description, *layouts, preference)
        results = CANDIDATES, found, ctypes.byref(count)
        try:
            call("cublasLtMatmulAlgoGetHeuristic", *arguments, *results)
        except CublasError as error:
            kind = Unsupported if error.status == NOT_SUPPORTED else CublasError
            raise kind(f"{error}, for {p.key}", error.status) from None
        usable = [each for each in found[: count.value] if each.state == 0]
        if not usable:
            raise Unsupported(f"cuBLASLt has no algorithm for {p.key}", NOT_SUPPORTED)
        return usable

    def preference(self) -> Any:
        """Return a description of which algorithms are asked for."""
        preference, p = self._new("cublasLtMatmulPreference"), self.problem
        self._set("MatmulPreference", preference, WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE))
        for attribute in ALIGNMENTS:
            self._set("MatmulPreference", preference, attribute, ctypes.c_uint32(p.alignment))
        if TYPES[p.out] != FLOAT:  # or parts of a sum may be rounded to 16 bits
            self._set("MatmulPreference", preference, REDUCTIONS, ctypes.c_uint32(IN_FLOAT))
        return preference

    def __call__(
        self,
        a: int,
        b: int,
        plus: int,
        out: int,
        *,
        bias: int = 0,
        before: int = 0,
        workspace: int = 0,
        stream: int = 0,
        algorithm: Algorithm | None = None,
    ) -> None:
        """Ask the device for the product of what lies at these addresses.

        Without ``plus`` its address is not looked at, nor that of ``before``, what a GELU is of,
        where none is kept. The algorithm is the plan's own if none is given.

        Raises
        ------
        CublasError
            If the library refuses.
        """
        self._set_places(bias, before)
        chosen = algorithm or self.algorithm
        alpha, beta = self._scales
        self._binding.call(
            "cublasLtMatmul",
            self._binding.handle(),
            self._description,
            ctypes.byref(alpha),
            ctypes.c_void_p(b),
            self._first,
            ctypes.c_void_p(a),
            self._second,
            ctypes.byref(beta),
            ctypes.c_void_p(plus if self.problem.adds else out),
            self._result,
            ctypes.c_void_p(out),
            self._result,
            None if chosen is None else ctypes.byref(chosen),
            ctypes.c_void_p(workspace),
            ctypes.c_size_t(WORKSPACE if workspace else 0),
            ctypes.c_void_p(stream),
        )

    def _set_places(self, bias: int, before: int) -> None:
        """Say where they lie, unless it was said last."""
        wanted = {BIAS: bias} if self.problem.bias else {}
        if self.problem.ends in KEEPS:
            wanted[BEFORE] = before
        for attribute, address in wanted.items():
            if self._places.get(attribute) != address:
                self._set("MatmulDesc", self._description, attribute, ctypes.c_void_p(address))
                self._places[attribute] = address

    def _layout(self, dtype: str, rows: int, columns: int) -> Any:
        """Return the description of a row-major matrix, our columns being the library's rows."""
        sizes = ctypes.c_uint64(columns), ctypes.c_uint64(rows), ctypes.c_int64(columns)
        layout = self._new("cublasLtMatrixLayout", TYPES[dtype], *sizes)
        if self.problem.batch > 1:
            self._set("MatrixLayout", layout, BATCH_COUNT, ctypes.c_int32(self.problem.batch))
            self._set("MatrixLayout", layout, BATCH_STEP, ctypes.c_int64(rows * columns))
        return layout

    def _new(self, kind: str, *arguments: Any) -> Any:
        made = ctypes.c_void_p()
        self._binding.call(f"{kind}Create", ctypes.byref(made), *arguments)
        self._made.append((getattr(self._binding.lib, f"{kind}Destroy"), made))
        return made

    def _set(self, kind: str, described: Any, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        name = f"cublasLt{kind}SetAttribute"
        self._binding.call(name, described, attribute, ctypes.byref(value), size)


class Binding:
    """The library, loaded.

    Parameters
    ----------
    lib : ctypes.CDLL
        The library, or what behaves like it.
    device : callable, optional
        Returns which device is in use; each has a handle of its own.

    Attributes
    ----------
    refusal : str
        Why the library did not start on a device; from then on it is tried on no other.
    """

    def __init__(self, lib: Any, device: Callable[[], int] = lambda: 0) -> None:
        self.lib, self.device, self.refusal = lib, device, ""
        lib.cublasLtGetVersion.restype = ctypes.c_size_t
        self.version = int(lib.cublasLtGetVersion())
        self._handles: dict[int, Any] = {}

    def handle(self) -> Any:
        """Return the handle of the device in use; a line says it where there can be none."""
        device = self.device()
        if device not in self._handles:
            if self.refusal:
                raise CublasError(self.refusal, NOT_INITIALIZED)
            made = ctypes.c_void_p()
            try:
                self.call("cublasLtCreate", ctypes.byref(made))
            except CublasError as error:
                self.refusal = f"cuBLASLt {self.version} does not start ({error})"
                LOGGER.warning("Products are CuPy's, in float32: %s.", self.refusal)
                raise CublasError(self.refusal, error.status) from None
            self._handles[device] = made
        return self._handles[device]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library.

        Raises
        ------
        CublasError
            If it does not answer with success.
        """
        status = getattr(self.lib, name)(*arguments)
        if status:
            raise CublasError(f"{name} failed: {STATUS.get(status, 'status')} ({status})", status)


def _destroy(made: list[tuple[Callable[..., int], Any]]) -> None:
    while made:
        destroy, what = made.pop()
        destroy(what)


@functools.cache
def library() -> Binding:
    """Return the library of this machine.

    Raises
    ------
    OSError
        If there is none, saying where it was looked for.
    """
    for name in (*_found_by_pathfinder(), *SONAMES):
        try:
            return Binding(ctypes.CDLL(name), Gpu().device)
        except OSError:
            continue
    raise OSError(
        f"{' and '.join(SONAMES)} are not found; pip install 'cupy-cuda12x[ctk]' (or "
        "'cupy-cuda13x[ctk]') brings the one that fits"
    )


def _found_by_pathfinder() -> list[str]:
    """Return where NVIDIA's own finder, which CuPy brings, sees the library."""
    if not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.pathfinder")):
        return []
    try:
        found = importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt")
    except RuntimeError:  # not found; the loader of the system may still know it
        return []
    return [str(found.abs_path)]


def why_none() -> str:
    """Return why the library cannot be used here: it may load and not start, as one too new."""
    reason = why_not_loaded()
    if reason or not compute_capability():
        return reason
    try:
        library().handle()
    except CublasError as error:
        return str(error)
    return ""


@functools.cache
def why_not_loaded() -> str:
    """Return why the library cannot be loaded, or nothing."""
    try:
        library()
    except (OSError, AttributeError) as error:
        return str(error)
    return ""
