"""A stand-in for NVIDIA's frontend of cuDNN: it notes what it is told and computes by NumPy.

What is computed follows from the sizes, strides, types and attributes that were described, and from
the addresses that a plan is run with, which are those of host memory. Two nodes are known, ``sdpa``
and ``sdpa_backward``; they compute in float64 and round what they write.
"""

from __future__ import annotations

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vitkit.backend.precision import from_bfloat16, to_bfloat16
from vitkit.testing import recording

DTYPES = {"BFLOAT16": "uint16", "HALF": "float16", "FLOAT": "float32"}


def low(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Return numbers as they are stored: in bfloat16 where that is uint16."""
    single = values.astype("float32")
    return to_bfloat16(single, xp=np) if dtype == "uint16" else single.astype(dtype)


def wide(stored: np.ndarray) -> np.ndarray:
    """Return stored numbers in float64."""
    found = from_bfloat16(stored, xp=np) if stored.dtype == "uint16" else stored
    return found.astype("float64")


class Tensor:
    """What is said of an operand or a result."""

    def __init__(self, dim: Any, stride: Any, data_type: Any, uid: int) -> None:
        self.dim, self.stride, self.data_type, self.uid = dim, stride, data_type, uid
        self.output = False

    def set_output(self, value: bool) -> Tensor:
        self.output = value
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self

    def set_data_type(self, data_type: str) -> Tensor:
        self.data_type = data_type
        return self

    def at(self, address: int) -> np.ndarray:
        """Return what lies there, as it was described."""
        dtype = np.dtype(DTYPES[self.data_type])
        pairs = zip(self.dim, self.stride, strict=True)
        size = dtype.itemsize * (1 + sum((dim - 1) * stride for dim, stride in pairs))
        flat = np.frombuffer((ctypes.c_char * size).from_address(address), dtype)
        return as_strided(flat, self.dim, [dtype.itemsize * stride for stride in self.stride])


class Graph:
    """One node and its tensors, and the plans that are said to exist."""

    def __init__(self, cudnn: FakeCudnn, **attributes: Any) -> None:
        self.cudnn, self.attributes = cudnn, attributes
        self.tensors: dict[str, Tensor] = {}
        self.node: dict[str, Any] = {}
        self.steps: list[str] = []
        self.built: set[int] = set()
        self.runs: list[tuple[dict[int, int], int, int, Any]] = []

    def tensor(self, dim: Any, stride: Any, data_type: str, uid: int = -1) -> Tensor:
        return Tensor(dim, stride, data_type, uid)

    def sdpa(self, q: Any, k: Any, v: Any, generate_stats: bool, **node: Any) -> Any:
        self.node = {"backward": False, **node}
        y, stats = (self._result() for _ in range(2))
        self.tensors = {"q": q, "k": k, "v": v, "y": y}
        if not generate_stats:
            return y, None
        self.tensors["stats"] = stats
        return y, stats

    def sdpa_backward(
        self, q: Any, k: Any, v: Any, o: Any, dO: Any, stats: Any, **node: Any
    ) -> list[Tensor]:
        self.node = {"backward": True, **node}
        gradients = [self._result() for _ in range(3)]
        self.tensors = {"q": q, "k": k, "v": v, "y": o, "dy": dO, "stats": stats}
        self.tensors |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
        return gradients

    def _result(self) -> Tensor:
        return Tensor(None, None, self.attributes["io_data_type"], -1)

    def validate(self) -> None:
        assert all(tensor.dim and tensor.stride for tensor in self.tensors.values())
        uids = [tensor.uid for tensor in self.tensors.values()]
        assert min(uids) > 0
        assert len(set(uids)) == len(uids)
        self.steps.append("validate")

    def build_operation_graph(self) -> None:
        self.steps.append("build_operation_graph")

    def create_execution_plans(self, modes: list[str]) -> None:
        assert set(modes) <= {"A", "FALLBACK"}
        self.steps.append("create_execution_plans")

    def check_support(self) -> None:
        if self.cudnn.refusal:
            raise self.cudnn.cudnnGraphNotSupportedError(self.cudnn.refusal)
        self.steps.append("check_support")

    def get_execution_plan_count(self) -> int:
        return self.cudnn.plans

    def build_plan_at_index(self, index: int) -> None:
        if index < self.cudnn.unbuildable:
            raise self.cudnn.cudnnGraphNotSupportedError(f"plan {index} did not build\nat all")
        self.built.add(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self.built
        return 1000 * (1 + self.node["backward"])

    def execute_plan_at_index(
        self, pointers: dict[int, int], workspace: int, index: int, handle: Any
    ) -> None:
        assert index in self.built
        assert handle is self.attributes["handle"]
        assert all(type(number) is int for pair in pointers.items() for number in pair)
        assert set(pointers) == {tensor.uid for tensor in self.tensors.values()}
        assert all(pointer % 16 == 0 for pointer in pointers.values())
        self.runs.append((pointers, workspace, self.cudnn.streams[-1][1], handle))

        def once() -> None:
            compute = self._backward if self.node["backward"] else self._forward
            for name, values in compute(pointers).items():
                tensor = self.tensors[name]
                assert tensor.output
                target = tensor.at(pointers[tensor.uid])
                target[...] = low(values, target.dtype)

        once()
        recording.note(once)

    def _read(self, name: str, pointers: dict[int, int]) -> np.ndarray:
        return wide(self.tensors[name].at(pointers[self.tensors[name].uid]))

    def _scores(self, pointers: dict[int, int]) -> np.ndarray:
        q, k = (self._read(name, pointers) for name in "qk")
        return np.einsum("bhid,bhjd->bhij", q, k) * self.node.get("attn_scale", 1.0)

    def _forward(self, pointers: dict[int, int]) -> dict[str, np.ndarray]:
        scores = self._scores(pointers)
        stats = np.logaddexp.reduce(scores, axis=-1, keepdims=True)
        y = np.einsum("bhij,bhjd->bhid", np.exp(scores - stats), self._read("v", pointers))
        return {"y": y, "stats": stats}

    def _backward(self, pointers: dict[int, int]) -> dict[str, np.ndarray]:
        q, k, v, y, dy, stats = (
            self._read(name, pointers) for name in ("q", "k", "v", "y", "dy", "stats")
        )
        p = np.exp(self._scores(pointers) - stats)
        dp = np.einsum("bhid,bhjd->bhij", dy, v) - (dy * y).sum(-1, keepdims=True)
        ds = p * dp * self.node.get("attn_scale", 1.0)
        return {
            "dq": np.einsum("bhij,bhjd->bhid", ds, k),
            "dk": np.einsum("bhij,bhid->bhjd", ds, q),
            "dv": np.einsum("bhij,bhid->bhjd", p, dy),
        }


class FakeCudnn(ModuleType):
    """The module ``cudnn``.

    Attributes
    ----------
    graphs : list of Graph
        All that were made.
    streams : list of tuple
        The handle and the stream of each call of ``set_stream``.
    handles : list
        All that were made.
    refusal : str
        Why no graph is supported, or nothing.
    plans, unbuildable : int
        How many plans there are of a graph, and how many of them, the first, do not build.
    """

    class cudnnGraphNotSupportedError(Exception):
        """What the frontend raises where cuDNN has no kernel."""

    def __init__(self, version: str = "1.28.0", backend: int = 92800) -> None:
        super().__init__("cudnn")
        self.__version__, self._backend = version, backend
        self.data_type = SimpleNamespace(**{name: name for name in DTYPES})
        self.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
        self.graphs: list[Graph] = []
        self.streams: list[tuple[Any, int]] = []
        self.handles: list[Any] = []
        self.refusal, self.plans, self.unbuildable = "", 2, 0

    def backend_version(self) -> int:
        if not self._backend:
            raise RuntimeError("Unable to find symbol cudnnGetVersion")
        return self._backend

    def create_handle(self) -> object:
        self.handles.append(object())
        return self.handles[-1]

    def set_stream(self, handle: Any, stream: int) -> None:
        assert handle in self.handles
        self.streams.append((handle, stream))

    def pygraph(self, **attributes: Any) -> Graph:
        self.graphs.append(Graph(self, **attributes))
        return self.graphs[-1]


class FakeGpu:
    """The strict device as if it were a GPU."""

    name = "strict_device"

    def __init__(self) -> None:
        self.number, self.current, self.has = 0, 5, 90

    def capability(self) -> int:
        return self.has

    def device(self) -> int:
        return self.number

    def stream(self) -> int:
        return self.current

    def capturing(self) -> bool:
        return bool(recording._tapes)
