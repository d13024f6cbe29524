"""What NVIDIA documents of cuBLASLt, in NumPy: column-major products on host memory.

Its numbers are written down here once more, from the documentation and headers, so that a wrong one
in the binding is noticed.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np

TYPES = {0: "float32", 2: "float16", 14: "uint16"}
DESCRIPTION = {3: ("transa", 4), 4: ("transb", 4), 7: ("epilogue", 4), 8: ("bias", 8)}
DESCRIPTION |= {11: ("before", 8), 12: ("before step", 8)}
LAYOUT = {5: ("batch", 4), 6: ("step", 8)}
PREFERENCE = {1: ("workspace", 8), 3: ("reductions", 4)}
PREFERENCE |= {number: (f"alignment{number}", 4) for number in range(5, 9)}
DEFAULT, BIAS = 1, 4
GELU_BIAS, GELU_AUX_BIAS, DGELU_BGRAD = 36, 164, 208
BGRADA, BGRADB = 256, 512
BIASED = (BIAS, GELU_BIAS, GELU_AUX_BIAS, DGELU_BGRAD, BGRADA, BGRADB)  # that write or read one
KEPT = (GELU_AUX_BIAS, DGELU_BGRAD)  # that write or read what a GELU is of
INVALID, UNSUPPORTED = 7, 15
ATTRIBUTES = {"MatmulDesc": DESCRIPTION, "MatrixLayout": LAYOUT, "MatmulPreference": PREFERENCE}


class Version:
    """A function whose result has a type, as ctypes has it."""

    restype: Any = None

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> int:
        return self.number


class FakeCublasLt:
    """Behaves like the library; ``live`` are the descriptors that nobody has destroyed."""

    def __init__(self, algorithms: int = 3, version: int = 120902) -> None:
        self.cublasLtGetVersion = Version(version)
        self.algorithms, self.epilogues = algorithms, {DEFAULT, *BIASED}
        self.live: dict[int, dict[str, Any]] = {}
        self.states: dict[int, int] = {}  # of proposals that are none
        self.refused: set[int] = set()  # proposals that do not run
        self.calls: list[int] = []  # the number of the algorithm of each product
        self.places: list[tuple[Any, ...]] = []  # workspace, its bytes, and stream of each
        self.asked: list[dict[str, Any]] = []  # which algorithms were wanted
        self._numbers = itertools.count(1)

    def described(self) -> set[int]:
        """Return the epilogues of the products that are described now."""
        made = self.live.values()
        return {each["epilogue"] for each in made if each["kind"] == "MatmulDesc"}

    def _make(self, place: Any, **values: Any) -> int:
        number = next(self._numbers)
        self.live[number] = values
        place._obj.value = number
        return 0

    def cublasLtCreate(self, place: Any) -> int:
        return self._make(place, kind="handle")

    def cublasLtMatmulDescCreate(self, place: Any, compute: int, scale: int) -> int:
        if compute not in (68, 77) or scale != 0:
            return INVALID
        numbers = {name: 0 for name, _ in DESCRIPTION.values()}
        numbers["epilogue"] = DEFAULT
        return self._make(place, kind="MatmulDesc", compute=compute, **numbers)

    def cublasLtMatrixLayoutCreate(
        self, place: Any, kind: int, rows: Any, columns: Any, leading: Any
    ) -> int:
        sizes = {"rows": rows.value, "columns": columns.value, "leading": leading.value}
        if kind not in TYPES or sizes["leading"] < sizes["rows"]:
            return INVALID
        return self._make(place, kind="MatrixLayout", dtype=TYPES[kind], batch=1, step=0, **sizes)

    def cublasLtMatmulPreferenceCreate(self, place: Any) -> int:
        return self._make(place, kind="MatmulPreference", workspace=0, reductions=7)

    def _set(self, kind: str, described: Any, attribute: int, value: Any, size: Any) -> int:
        name, expected = ATTRIBUTES[kind].get(attribute, ("", -1))
        target = self.live[described.value]
        if size.value != expected or target["kind"] != kind:
            return INVALID
        target[name] = value._obj.value
        return 0

    def __getattr__(self, name: str) -> Any:
        for kind in ATTRIBUTES:
            if name == f"cublasLt{kind}SetAttribute":
                return lambda *arguments: self._set(kind, *arguments)
            if name == f"cublasLt{kind}Destroy":
                return lambda made: 0 if self.live.pop(made.value, None) else INVALID
        raise AttributeError(name)

    def cublasLtMatmulAlgoGetHeuristic(
        self,
        handle: Any,
        description: Any,
        a: Any,
        b: Any,
        c: Any,
        d: Any,
        preference: Any,
        asked: int,
        found: Any,
        count: Any,
    ) -> int:
        settings, wanted = self.live[description.value], self.live[preference.value]
        if not self.algorithms or settings["epilogue"] not in self.epilogues:
            return UNSUPPORTED
        needed = [wanted["workspace"], *(settings[name] for name in self._read(settings))]
        if not all(needed):
            return INVALID
        settings["promised"] = {
            name: settings[name] & -settings[name] for name in self._read(settings)
        }
        self.asked.append(dict(wanted))
        count._obj.value = min(asked, self.algorithms)
        for number in range(count._obj.value):
            found[number].data[0] = 1000 + number
            for place in range(4):  # of A to D; what an algorithm may take for granted
                found[number].data[1 + place] = wanted[f"alignment{5 + place}"]
            found[number].state = self.states.get(number, 0)
        return 0

    def cublasLtMatmul(
        self,
        handle: Any,
        description: Any,
        alpha: Any,
        a: Any,
        a_layout: Any,
        b: Any,
        b_layout: Any,
        beta: Any,
        c: Any,
        c_layout: Any,
        d: Any,
        d_layout: Any,
        algorithm: Any,
        workspace: Any,
        workspace_bytes: Any,
        stream: Any,
    ) -> int:
        settings = self.live[description.value]
        layouts = [self.live[each.value] for each in (a_layout, b_layout, c_layout, d_layout)]
        self.calls.append(-1 if algorithm is None else algorithm._obj.data[0] - 1000)
        self.places.append((workspace.value, workspace_bytes.value, stream.value))
        if self.states.get(self.calls[-1]) or self.calls[-1] in self.refused:
            return UNSUPPORTED
        if algorithm is not None:
            promised = list(algorithm._obj.data[1:5])
            given = [place.value for place in (a, b, c, d)]
            for name, alignment in settings["promised"].items():
                promised.append(alignment)
                given.append(settings[name] or 0)
            if any(place % step for place, step in zip(given, promised, strict=True)):
                return INVALID
        with np.errstate(all="ignore"):  # what is timed may be made of anything
            return self._multiply(
                settings, layouts, (a, b, c, d), alpha._obj.value, beta._obj.value
            )

    @staticmethod
    def _read(settings: dict[str, Any]) -> list[str]:
        """Return which addresses an epilogue looks at."""
        named = {"bias": BIASED, "before": KEPT}
        return [name for name, epilogues in named.items() if settings["epilogue"] in epilogues]

    def _multiply(
        self,
        settings: dict[str, Any],
        layouts: list[dict[str, Any]],
        places: tuple[Any, ...],
        alpha: float,
        beta: float,
    ) -> int:
        a, b, c, d = places
        for image in range(layouts[3]["batch"]):
            left, right, added = (
                wide(columns(place, layout, image))
                for place, layout in zip((a, b, c), layouts[:3], strict=True)
            )
            if settings["compute"] == 77:  # CUBLAS_COMPUTE_32F_FAST_TF32
                left, right = rounded(left), rounded(right)
            left = left.T if settings["transa"] else left
            right = right.T if settings["transb"] else right
            if left.shape[1] != right.shape[0]:
                return INVALID
            result = alpha * (left @ right)
            if beta:
                result += beta * added
            if not all(settings[name] for name in self._read(settings)):
                return INVALID
            if settings["epilogue"] in KEPT and (
                settings["before step"] % 8 or settings["before step"] < layouts[3]["rows"]
            ):
                return INVALID
            result = ended(result, left, right, settings, layouts[3])
            target = columns(d, layouts[3], image)
            target[...] = narrow(result, target.dtype)
        return 0


def ended(
    result: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    settings: dict[str, Any],
    layout: dict[str, Any],
) -> np.ndarray:
    """Return what an epilogue makes of a product of two operands."""
    epilogue = settings["epilogue"]
    if epilogue in (BGRADA, BGRADB):  # which store sums over k, whatever beta is
        sums = left.sum(1) if epilogue == BGRADA else right.sum(0)
        lies = {**layout, "leading": len(sums), "rows": len(sums), "columns": 1}
        into = columns(ctypes.c_void_p(settings["bias"]), lies, 0)
        into[...] = narrow(sums[:, None], into.dtype)
        return result
    if epilogue in BIASED:
        bias = columns(ctypes.c_void_p(settings["bias"]), {**layout, "columns": 1}, 0)
    if epilogue in KEPT:
        lies = {**layout, "leading": settings["before step"]}
        kept = columns(ctypes.c_void_p(settings["before"]), lies, 0)
    if epilogue == DGELU_BGRAD:
        result = result * gelu(wide(kept))[1]
        bias[...] = narrow(result.sum(1, keepdims=True), bias.dtype)
        return result
    if epilogue in BIASED:
        result = result + wide(bias)
    if epilogue == GELU_AUX_BIAS:
        kept[...] = narrow(result, kept.dtype)
    return gelu(result)[0] if epilogue in (GELU_BIAS, GELU_AUX_BIAS) else result


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the approximation by a hyperbolic tangent, and its derivative."""
    factor, cube = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(factor * (x + cube * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * factor * (1 + 3 * cube * x**2)
    return 0.5 * x * (1 + t), slope


def columns(place: Any, layout: dict[str, Any], image: int) -> np.ndarray:
    """Return a view of a column-major matrix."""
    dtype = np.dtype(layout["dtype"])
    first = place.value + image * layout["step"] * dtype.itemsize
    size = layout["leading"] * layout["columns"]
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(first)
    return np.frombuffer(memory, dtype).reshape(layout["columns"], -1).T[: layout["rows"]]


def wide(matrix: np.ndarray) -> np.ndarray:
    """Return stored numbers as float64."""
    if matrix.dtype == "uint16":
        return (matrix.astype("uint32") << 16).view("float32").astype("float64")
    return matrix.astype("float64")


def rounded(matrix: np.ndarray) -> np.ndarray:
    """Return float64 with the 10 bits of fraction that TF32 keeps."""
    fraction, exponent = np.frexp(matrix)
    return np.ldexp(np.round(np.ldexp(fraction, 11)), exponent - 11)


def narrow(matrix: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return float64 as stored numbers, to the nearest."""
    if dtype != "uint16":
        return matrix.astype(dtype)
    bits = np.ascontiguousarray(matrix, "float32").view("uint32")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")
