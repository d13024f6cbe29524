"""A plugin for vitkit: the optimizer Muon, the activation Mish, and the schedule WSD."""

from __future__ import annotations

from vitkit import hookimpl
from vitkit.plugins.hookspecs import Register
from vitkit_extras_optim.mish import mish as mish
from vitkit_extras_optim.mish import mish_backward as mish_backward
from vitkit_extras_optim.mish_numpy import mish_backward_numpy, mish_numpy
from vitkit_extras_optim.muon import Muon as Muon
from vitkit_extras_optim.muon_reference import muon_reference as muon_reference
from vitkit_extras_optim.wsd import WSD as WSD

VITKIT_API = 1


@hookimpl
def register_optimizers(register: Register) -> None:
    """Make ``--set "optimizer=muon(lr=0.02)"`` work."""
    register("muon", Muon, reference=muon_reference)


@hookimpl
def register_activations(register: Register) -> None:
    """Make ``ViT(activation="mish")`` work."""
    register("mish", mish, mish_backward, torch=lambda torch: torch.nn.functional.mish)


@hookimpl
def register_kernels(register: Register) -> None:
    """Make Mish as fast on the CPU as what ships."""
    register("mish", mish_numpy, backend="numpy")
    register("mish_backward", mish_backward_numpy, backend="numpy")


@hookimpl
def register_schedules(register: Register) -> None:
    """Make ``--set schedule=wsd`` work."""
    register("wsd", WSD)
