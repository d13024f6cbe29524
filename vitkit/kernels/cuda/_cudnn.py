"""Attention by cuDNN, through NVIDIA's ``nvidia-cudnn-frontend``, where a machine has both.

cuDNN reads queries, keys and values where the packed array has them and writes gradients likewise.
What a shape needs is planned once, about a second for both directions, and from then on may be
asked while a stream captures.

By default the gradients of queries are summed in any order, so their last bits may differ from
one run to the next. ``VITKIT_DETERMINISTIC=1`` in the environment asks for the same bits each time,
which takes more memory: in cuDNN 9.28 on compute capability 9.0, for 256 images of 197 tokens and
12 heads of 64, 405 MB in place of 157 MB. A plan keeps what it works in.
"""

from __future__ import annotations

import functools
import importlib
import logging

from vitkit.backend import Array, ArrayModule
from vitkit.errors import first_line
from vitkit.kernels.cuda import _cudnn_plans
from vitkit.kernels.cuda._arrays import aligned
from vitkit.kernels.cuda._cudnn_plans import (
    DK,
    DQ,
    DV,
    DY,
    STATS,
    TYPES,
    Handle,
    K,
    Plan,
    Q,
    Shape,
    V,
    Y,
    sizes,
)
from vitkit.kernels.cuda._gpu import Gpu, wants_same_bits

LOGGER = logging.getLogger("vitkit")
NAME = "cuDNN"
LEAST_CAPABILITY = 80
FRONTENDS = ((1, 24), (1, 29))  # from which on, and before which
LEAST_CUDNN = 91900
CURE = "pip install 'vitkit[cudnn12]' (CUDA 12.x) or 'vitkit[cudnn13]' (CUDA 13.x)"
WIDEST, MULTIPLE = 128, 8  # of heads: cuDNN's backward pass takes no wider ones on every GPU
DIFFERENT = "gradients whose last bits may differ (VITKIT_DETERMINISTIC=1 makes them the same)"
SAME = "gradients of the same bits each time (VITKIT_DETERMINISTIC=1)"


GPU = Gpu()


class Pair:
    """Both directions of a shape.

    Parameters
    ----------
    shape : Shape
        The shape.

    Attributes
    ----------
    forward, backward : Plan
        The two plans.
    zeros : array, shape (B, h, N)
        What every forward pass returns beside its statistics; nobody writes to it.
    """

    def __init__(self, shape: Shape) -> None:
        cudnn = importlib.import_module("cudnn")
        if shape.device not in HANDLES:
            HANDLES[shape.device] = Handle(cudnn)
        handle = HANDLES[shape.device]
        deterministic = wants_same_bits()
        where = {"handle": handle.raw}
        self.forward = Plan(_cudnn_plans.forward_graph(cudnn, shape, **where), handle)
        self.backward = Plan(
            _cudnn_plans.backward_graph(cudnn, shape, deterministic, **where), handle
        )
        self.zeros: Array | None = None
        LOGGER.info(
            "cuDNN %s serves attention of %s: %s, and %.0f MB to work in.",
            _dotted(cudnn.backend_version()),
            shape,
            SAME if deterministic else DIFFERENT,
            (self.forward.bytes + self.backward.bytes) / 1e6,
        )


HANDLES: dict[int, Handle] = {}
PAIRS: dict[Shape, Pair | None] = {}
"""What has been planned; None where that failed."""
REFUSALS: dict[Shape, str] = {}
"""How it failed."""


def why_none() -> str:
    """Return why cuDNN cannot compute attention here and what would cure that, or nothing."""
    have = GPU.capability()
    if have < LEAST_CAPABILITY:
        found = f"this one has {have / 10}" if have else "there is none"
        return f"it needs a GPU of compute capability 8.0, and {found}"
    return _why_no_library()


@functools.cache
def _why_no_library() -> str:
    try:
        cudnn = importlib.import_module("cudnn")
    except ImportError as error:
        missing = error.name == "cudnn"
        reason = "is not installed" if missing else f"does not import ({first_line(error)})"
        return f"nvidia-cudnn-frontend {reason}: {CURE}"
    except Exception as error:  # it loads libraries and asserts that it finds one of each
        return f"nvidia-cudnn-frontend does not import ({first_line(error)}): {CURE}"
    version = str(getattr(cudnn, "__version__", "0"))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not FRONTENDS[0] <= parts < FRONTENDS[1]:
        return f"nvidia-cudnn-frontend {version} is not one of 1.24 to 1.28: {CURE}"
    try:
        backend = int(cudnn.backend_version())
    except Exception as error:  # a RuntimeError of one kind or another
        return f"libcudnn cannot be loaded ({first_line(error)}): {CURE}"
    if backend < LEAST_CUDNN:
        return f"cuDNN {_dotted(backend)} is older than {_dotted(LEAST_CUDNN)}: {CURE}"
    return ""


def serves(qkv: Array, num_heads: int, xp: ArrayModule) -> bool:
    """Return whether cuDNN takes ``qkv`` (B, N, 3 D); both directions are planned if need be.

    Parameters
    ----------
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values.
    num_heads : int
        How many heads, each at most 128 wide, a multiple of 8.
    xp : module
        The array module.

    Returns
    -------
    bool
        False also while a stream captures a shape that was not planned before.
    """
    if xp.__name__ != GPU.name or qkv.dtype.name not in TYPES or not qkv.size:
        return False
    width, left = divmod(qkv.shape[-1], 3 * num_heads)
    if left or width % MULTIPLE or width > WIDEST:
        return False
    return _pair(_shape(qkv, num_heads)) is not None


def why_not(qkv: Array, num_heads: int, xp: ArrayModule) -> str:
    """Return why :func:`serves` says no, in words that fit every shape of which that is true.

    Nothing where nobody expects it to serve: in float32, on another array module, for no numbers.
    Nothing either for a shape that may yet have a plan.
    """
    if xp.__name__ != GPU.name or qkv.dtype.name not in TYPES or not qkv.size:
        return ""
    width = qkv.shape[-1] // (3 * num_heads)
    if not (reason := why_none()) and (width % MULTIPLE or width > WIDEST):
        return f"it takes heads whose width is a multiple of {MULTIPLE}, to {WIDEST}; got {width}"
    shape = _shape(qkv, num_heads)
    if not reason and shape in REFUSALS:
        return f"it has no plan for {shape} ({REFUSALS[shape]})"
    return reason


def forget(qkv: Array, num_heads: int) -> None:
    """Let go of what was planned for ``qkv``, and of the memory that it works in."""
    PAIRS.pop(_shape(qkv, num_heads), None)


def version() -> str:
    """Return what is timed and remembered by, where it serves."""
    return f"cudnn-{importlib.import_module('cudnn').backend_version()}"


def attend(qkv: Array, num_heads: int, xp: ArrayModule) -> tuple[Array, Array, Array]:
    """Return the gathered values, in the dtype of ``qkv``, and what backward needs.

    Parameters
    ----------
    qkv : array, shape (B, N, 3 D)
        Queries, keys and values that cuDNN serves: bits of bfloat16 as uint16, or float16.
    num_heads : int
        How many heads.
    xp : module
        The array module.

    Returns
    -------
    y : array, shape (B, N, D)
        The gathered values.
    largest, log_total : array, shape (B, h, N)
        Float32 whose sum is each row's logarithm of the sum of exponentials; the second is zero.
    """
    shape, qkv = _shape(qkv, num_heads), aligned(qkv, xp)
    pair = _served(shape)
    y = xp.empty((*qkv.shape[:2], qkv.shape[2] // 3), qkv.dtype)
    # cuDNN keeps one number of a row where vitkit's own kernels keep two. A float32 of size s is
    # off by up to s 2^-24, and so is every probability that backward makes of it: less than what
    # rounding them to bfloat16 does while scores are below 2^16, or to float16 below 2^13.
    stats = xp.empty(sizes(shape)[:3], "float32")
    pair.forward.run(
        {**_parts(qkv, (Q, K, V)), Y: y.data.ptr, STATS: stats.data.ptr}, GPU.stream(), xp
    )
    if pair.zeros is None:
        pair.zeros = xp.zeros(stats.shape, "float32")
    return y, stats, pair.zeros


def attend_backward(
    dy: Array, qkv: Array, y: Array, largest: Array, log_total: Array, xp: ArrayModule
) -> Array:
    """Return ``dqkv`` of :func:`attend`, or of another kernel that returns the same three.

    Parameters
    ----------
    dy : array, shape (B, N, D)
        The gradient of ``y``, in the dtype of ``qkv``.
    qkv : array, shape (B, N, 3 D)
        The input of the forward pass.
    y : array, shape (B, N, D)
        What it returned.
    largest, log_total : array, shape (B, h, N)
        What else it returned.
    xp : module
        The array module.

    Returns
    -------
    array, shape (B, N, 3 D)
        The gradients of queries, keys and values, in the dtype of ``qkv``.
    """
    shape = _shape(qkv, largest.shape[1])
    pair = _served(shape)
    dy, qkv, y = (aligned(array, xp) for array in (dy, qkv, y))
    after_own = log_total is pair.zeros  # then there is nothing to add
    stats = aligned(largest if after_own else largest + log_total, xp)
    dqkv = xp.empty(qkv.shape, qkv.dtype)
    others = {Y: y.data.ptr, DY: dy.data.ptr, STATS: stats.data.ptr}
    pair.backward.run(
        {**_parts(qkv, (Q, K, V)), **others, **_parts(dqkv, (DQ, DK, DV))}, GPU.stream(), xp
    )
    return dqkv


def _shape(qkv: Array, num_heads: int) -> Shape:
    batch, tokens, packed_width = qkv.shape
    width = packed_width // (3 * num_heads)
    return Shape(GPU.device(), qkv.dtype.name, batch, num_heads, tokens, width)


def _pair(shape: Shape) -> Pair | None:
    """Return both plans of a shape, or None where there are none."""
    if shape not in PAIRS:
        if why_none() or GPU.capturing():  # in the latter a failure would spoil what is captured
            return None
        try:
            PAIRS[shape] = Pair(shape)
        except Exception as error:  # whatever it is, another kernel serves
            PAIRS[shape] = None
            REFUSALS[shape] = first_line(error)
    return PAIRS[shape]


def _served(shape: Shape) -> Pair:
    pair = _pair(shape)
    if pair is None:
        raise RuntimeError(f"cuDNN does not serve attention of {shape}.")
    return pair


def _parts(array: Array, uids: tuple[int, ...]) -> dict[int, int]:
    """Return the addresses of what the last axis holds side by side."""
    step = array.shape[-1] // len(uids) * array.itemsize
    return {uid: array.data.ptr + index * step for index, uid in enumerate(uids)}


def _dotted(version: int) -> str:
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
