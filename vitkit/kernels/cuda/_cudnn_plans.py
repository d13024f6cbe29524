"""What cuDNN is asked to plan for attention, and the plans; :mod:`vitkit.kernels.cuda._cudnn` asks.

Nothing here needs a device but running a plan: cuDNN plans for one that is only described to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vitkit.backend import Array, ArrayModule
from vitkit.errors import first_line

TYPES = {"uint16": "BFLOAT16", "float16": "HALF"}
"""What cuDNN calls the numbers of an array; bits of bfloat16 are kept as uint16."""
Q, K, V, Y, STATS, DY, DQ, DK, DV = range(1, 10)  # what tensors are called when a plan is run


class Shape(NamedTuple):
    """What a plan is made for: a device, a dtype, and the sizes B, h, N and d."""

    device: int
    dtype: str
    batch: int
    heads: int
    tokens: int
    width: int

    def __str__(self) -> str:
        kind = TYPES[self.dtype].lower()
        return f"{self.batch} x {self.tokens} tokens, {self.heads} heads of {self.width} ({kind})"


def sizes(shape: Shape) -> list[int]:
    """Return the sizes of queries, keys and values as cuDNN has them, (B, h, N, d)."""
    return [shape.batch, shape.heads, shape.tokens, shape.width]


def packed(shape: Shape) -> list[int]:
    """Return how far apart numbers are in (B, N, 3, h, d), along B, h, N and d."""
    row = 3 * shape.heads * shape.width
    return [shape.tokens * row, shape.width, row, 1]


def separate(shape: Shape) -> list[int]:
    """Return how far apart numbers are in (B, N, h, d), along B, h, N and d."""
    row = shape.heads * shape.width
    return [shape.tokens * row, shape.width, row, 1]


def of_rows(shape: Shape) -> tuple[list[int], list[int]]:
    """Return the sizes and strides of one number for each row of scores, (B, h, N, 1)."""
    return [*sizes(shape)[:3], 1], [shape.heads * shape.tokens, shape.tokens, 1, 1]


def scale(shape: Shape) -> float:
    """Return what scores are multiplied by."""
    return float(shape.width**-0.5)


def forward_graph(cudnn: Any, shape: Shape, **where: Any) -> Any:
    """Return cuDNN's description of the forward pass; ``where`` says for which device."""
    graph = _graph(cudnn, shape, where)
    q, k, v = (_operand(cudnn, graph, shape, uid, packed(shape)) for uid in (Q, K, V))
    y, stats = graph.sdpa(
        name="attention", q=q, k=k, v=v, generate_stats=True, attn_scale=scale(shape)
    )
    y.set_output(True).set_uid(Y).set_dim(sizes(shape)).set_stride(separate(shape))
    dim, stride = of_rows(shape)
    stats.set_output(True).set_uid(STATS).set_data_type(cudnn.data_type.FLOAT)
    stats.set_dim(dim).set_stride(stride)
    return graph


def backward_graph(cudnn: Any, shape: Shape, deterministic: bool, **where: Any) -> Any:
    """Return cuDNN's description of the backward pass; ``where`` says for which device."""
    graph = _graph(cudnn, shape, where)
    q, k, v = (_operand(cudnn, graph, shape, uid, packed(shape)) for uid in (Q, K, V))
    y, dy = (_operand(cudnn, graph, shape, uid, separate(shape)) for uid in (Y, DY))
    dim, stride = of_rows(shape)
    stats = graph.tensor(dim=dim, stride=stride, data_type=cudnn.data_type.FLOAT, uid=STATS)
    gradients = graph.sdpa_backward(
        name="attention_backward",
        q=q,
        k=k,
        v=v,
        o=y,
        dO=dy,
        stats=stats,
        attn_scale=scale(shape),
        use_deterministic_algorithm=deterministic,
    )
    for gradient, uid in zip(gradients, (DQ, DK, DV), strict=True):
        gradient.set_output(True).set_uid(uid).set_dim(sizes(shape)).set_stride(packed(shape))
    return graph


def _graph(cudnn: Any, shape: Shape, where: dict[str, Any]) -> Any:
    return cudnn.pygraph(
        io_data_type=getattr(cudnn.data_type, TYPES[shape.dtype]),
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        **where,
    )


def _operand(cudnn: Any, graph: Any, shape: Shape, uid: int, stride: list[int]) -> Any:
    kind = getattr(cudnn.data_type, TYPES[shape.dtype])
    return graph.tensor(dim=sizes(shape), stride=stride, data_type=kind, uid=uid)


def build(cudnn: Any, graph: Any) -> tuple[int, int]:
    """Build the best plan that can be built; return its index, and the bytes that it works in.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    reasons = ["it proposes none"]
    for index in range(graph.get_execution_plan_count()):
        try:
            graph.build_plan_at_index(index)
            return index, int(graph.get_workspace_size_plan_at_index(index))
        except Exception as error:  # the next may do
            reasons.append(first_line(error))
    raise RuntimeError(f"no plan can be built ({reasons[-1]})")


class Handle:
    """cuDNN's state on one device.

    Parameters
    ----------
    cudnn : module
        The frontend.
    """

    def __init__(self, cudnn: Any) -> None:
        self.cudnn, self.raw = cudnn, cudnn.create_handle()
        self._stream: int | None = None

    def follow(self, stream: int) -> None:
        """Ask for what comes next on this stream."""
        if stream != self._stream:  # several calls of the driver, even where nothing changes
            self.cudnn.set_stream(self.raw, stream)
            self._stream = stream


class Plan:
    """One direction of one shape, planned.

    Parameters
    ----------
    graph : object
        What :func:`forward_graph` or :func:`backward_graph` returned.
    handle : Handle
        That of the device it is for.
    """

    def __init__(self, graph: Any, handle: Handle) -> None:
        self._graph, self._handle = graph, handle
        self._index, self.bytes = build(handle.cudnn, graph)
        self._workspace: Array | None = None

    def run(self, pointers: dict[int, int], stream: int, xp: ArrayModule) -> None:
        """Ask the device to do it to what lies at these addresses, after what the stream has.

        One memory to work in serves all layers of a shape, and graphs that were captured with it:
        what is asked of one device is asked in one order.
        """
        if self._workspace is None:
            self._workspace = xp.empty(max(self.bytes, 1), "uint8")
        self._handle.follow(stream)
        # By index, which the frontends do with the least work on the host: 6 us in 1.28, where
        # `execute` takes 22.
        self._graph.execute_plan_at_index(
            pointers, self._workspace.data.ptr, self._index, self._handle.raw
        )
