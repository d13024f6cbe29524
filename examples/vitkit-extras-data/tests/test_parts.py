"""What the kit cannot know of the layer, the augmentation and the command."""

from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import vitkit
from vitkit.cli.main import app
from vitkit.data import digits
from vitkit_extras_data import Cutout, SwiGLU
from vitkit_extras_data.contact_sheet import sheet


def test_swiglu_has_as_many_parameters_as_the_mlp() -> None:
    plain, gated = (vitkit.ViT("S/16", mlp=mlp, backend=None) for mlp in ("mlp", "swiglu"))
    assert isinstance(gated.blocks[0].mlp, SwiGLU)
    assert abs(gated.num_parameters / plain.num_parameters - 1) < 0.001


def test_cutout_covers_a_square() -> None:
    image = np.full((3, 32, 32), 200, np.uint8)
    covered = [(Cutout(8)(image, np.random.default_rng(k)) == 0).all(0) for k in range(200)]
    sizes = [int(each.sum()) for each in covered]
    assert min(sizes) < 32 < max(sizes) == 64  # at a corner, and inside
    assert np.any(covered, axis=0).all()
    assert (image == 200).all()


def test_contact_sheet_of_any_data_set(tmp_path: Path) -> None:
    file = tmp_path / "sheet.png"
    end = CliRunner().invoke(app, ["contact-sheet", "digits", "--columns", "5", "--out", str(file)])
    assert end.exit_code == 0, end.output
    assert end.stdout.splitlines()[3] == "row   4  3"
    with Image.open(file) as image:
        assert image.size == (5 * 10 - 2, 10 * 10 - 2)
    pixels = sheet(digits().train, 5)
    first = digits().train.images(np.flatnonzero(digits().train.labels == 3)[:1])[0, 0]
    assert np.array_equal(pixels[30:38, :8, 0], np.rint(first * (255 / 16)))
