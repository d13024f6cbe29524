"""Which contenders there are, and the environment each is started in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Entry:
    """One contender: how it is called, and how it is started.

    Attributes
    ----------
    title : str
        How tables call it.
    library, module, mode : str
        What :mod:`contenders.serve` is started with.
    precision : str
        ``"float32"``, ``"tf32"`` or ``"bfloat16"``: which tolerance and which matrix products it
        is held to.
    environment : dict of str to str
        Variables beside those that everyone has.
    """

    title: str
    library: str
    module: str
    mode: str
    precision: str = "float32"
    environment: dict[str, str] = field(default_factory=dict)


# What somebody would set who wants the most from PyTorch: memory is never given back to the
# system, comes in huge pages, and threads stay on their cores.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
}
HALF = "bfloat16"


def _torch(title: str, mode: str, precision: str = "float32", tuned: bool = False) -> Entry:
    environment = TUNED if tuned else {}
    return Entry(f"PyTorch {title}", "torch", "torch_contender", mode, precision, environment)


def _vitkit(title: str, mode: str, precision: str = "float32", kernels: str = "on") -> Entry:
    environment = {"VITKIT_KERNELS": kernels}
    # vitkit.train, because vitkit itself imports nothing until it is asked for something.
    library = "vitkit.train"
    return Entry(f"vitkit {title}", library, "vitkit_contender", mode, precision, environment)


ENTRIES = {
    "eager": _torch("eager", "eager"),
    "fused": _torch("eager, fused AdamW", "fused"),
    "tuned": _torch("eager, fused AdamW, tuned", "fused", tuned=True),
    "compiled": _torch("torch.compile", "compiled"),
    "bf16": _torch("bf16 autocast", "bf16", HALF),
    "bf16_tuned": _torch("bf16 autocast, tuned", "bf16", HALF, tuned=True),
    "bf16_compiled": _torch("bf16 autocast, torch.compile", "bf16_compiled", HALF),
    "jax": Entry("JAX jit", "jax", "jax_contender", "float32"),
    "reference": _vitkit("references", "float32", kernels="off"),
    "kernels": _vitkit("kernels", "float32"),
    "bfloat16": _vitkit("kernels, bf16", "bfloat16", HALF),
}
"""Those who train and infer, by the names that ``--only`` takes."""

PRODUCTS = {
    "numpy": Entry("numpy.matmul", "numpy", "products", "numpy"),
    "torch": Entry("torch.mm", "torch", "products", "torch"),
    "torch_bf16": Entry("torch.mm, bf16", "torch", "products", "torch_bf16", HALF),
}
"""The roofline: the model's matrix products and nothing else, by the libraries there are."""


def _gpu_torch(title: str, mode: str) -> Entry:
    return Entry(f"PyTorch {title}", "torch", "gpu_torch", mode, HALF)


def _gpu_vitkit(title: str, mode: str, precision: str, kernels: str = "on") -> Entry:
    environment = {"VITKIT_KERNELS": kernels}
    return Entry(f"vitkit {title}", "vitkit.train", "gpu_vitkit", mode, precision, environment)


GPU_ENTRIES = {
    "bfloat16_graph": _gpu_vitkit("bf16, CUDA graph", "bfloat16_graph", HALF),
    "bfloat16_narrow_graph": _gpu_vitkit(
        "bf16, residual too, CUDA graph", "bfloat16_narrow_graph", HALF
    ),
    "bfloat16": _gpu_vitkit("bf16", "bfloat16", HALF),
    "eager": _gpu_torch("bf16 eager", "eager"),
    "compiled": _gpu_torch("bf16 torch.compile", "compiled"),
    "max_autotune": _gpu_torch("bf16 torch.compile max-autotune", "max_autotune"),
    "tf32": _gpu_vitkit("tf32", "tf32", "tf32"),
    "reference": _gpu_vitkit("references", "reference", "float32", kernels="off"),
}
"""Those who train and infer on a GPU, in the order in which they come in: the last are those who
matter least where time is short."""

GPU_PROFILE = Entry(
    "vitkit bf16", "vitkit.train", "gpu_vitkit_profile", HALF, HALF, {"VITKIT_KERNELS": "on"}
)
"""Who shows where a training step's time goes on a GPU."""
GPU_PROFILE_NARROW = replace(GPU_PROFILE, title="vitkit bf16, residual too", mode="bfloat16_narrow")
"""The same of a model whose residual is bfloat16 too."""

OPERATIONS = {
    "torch": Entry("PyTorch", "torch", "torch_ops", "float32"),
    "reference": Entry(
        "vitkit reference", "vitkit", "vitkit_ops", "float32", environment={"VITKIT_KERNELS": "off"}
    ),
    "kernel": Entry("vitkit kernel", "vitkit", "vitkit_ops", "float32"),
}
"""Those who compute one operation at a time."""

GPU_OPERATIONS = {
    "torch": Entry("PyTorch", "torch", "gpu_torch_ops", "", HALF),
    "kernel": Entry(
        "vitkit kernel", "vitkit", "gpu_vitkit_ops", "", HALF, {"VITKIT_KERNELS": "on"}
    ),
}
"""Those who compute one operation at a time on a GPU."""
