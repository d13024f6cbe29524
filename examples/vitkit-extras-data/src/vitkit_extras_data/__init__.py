"""A plugin for vitkit: a data set with its own prepare step, a layer, and more."""

from __future__ import annotations

from vitkit import hookimpl
from vitkit.plugins.hookspecs import Register
from vitkit_extras_data.contact_sheet import contact_sheet as contact_sheet
from vitkit_extras_data.cutout import Cutout as Cutout
from vitkit_extras_data.photo_patches import photo_patches as photo_patches
from vitkit_extras_data.photo_patches import prepare as prepare
from vitkit_extras_data.swiglu import SwiGLU as SwiGLU
from vitkit_extras_data.swiglu import torch_swiglu as torch_swiglu

VITKIT_API = 1
MICRO = {"dim": 64, "depth": 4, "num_heads": 4, "mlp_dim": 128, "init": "scratch"}
SMALL = {"dim": 8, "mlp_dim": 12}  # a layer for the conformance kit


@hookimpl
def register_datasets(register: Register) -> None:
    """Make ``vitkit data prepare photo_patches`` and ``--dataset photo_patches`` work."""
    register(
        "photo_patches",
        photo_patches,
        prepare=prepare,
        title="patches of two photographs, 32x32, 5 classes (CC BY 2.0)",
    )


@hookimpl
def register_layers(register: Register) -> None:
    """Make ``ViT(mlp="swiglu")`` work."""
    register(
        "swiglu",
        SwiGLU,
        part="mlp",
        example=SMALL,
        shape=(5, SMALL["dim"]),
        torch=lambda torch: torch_swiglu(torch, **SMALL),
    )


@hookimpl
def register_transforms(register: Register) -> None:
    """Make ``--set "data.augment=['cutout(size=8)']"`` work."""
    register("cutout", Cutout)


@hookimpl
def register_models(register: Register) -> None:
    """Make ``--model Micro/8`` work: a size that learns small images in a minute."""
    register("Micro", **MICRO)


@hookimpl
def register_commands(register: Register) -> None:
    """Make ``vitkit contact-sheet`` work."""
    register("contact_sheet", contact_sheet)
