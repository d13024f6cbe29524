"""Everything that the package registers keeps vitkit's contract of its kind."""

from functools import partial
from pathlib import Path

from vitkit.testing import (
    check_command,
    check_dataset,
    check_layer,
    check_model,
    check_transform,
)
from vitkit_extras_data import (
    MICRO,
    Cutout,
    SwiGLU,
    contact_sheet,
    photo_patches,
    torch_swiglu,
)


def test_photo_patches(patches: Path) -> None:
    check_dataset(partial(photo_patches, patches))


def test_swiglu() -> None:
    check_layer(partial(SwiGLU, 8, 12), (5, 8), torch=lambda torch: torch_swiglu(torch, 8, 12))


def test_cutout() -> None:
    check_transform(Cutout)


def test_micro() -> None:
    check_model("Micro", MICRO)


def test_contact_sheet() -> None:
    check_command("contact_sheet", contact_sheet)
