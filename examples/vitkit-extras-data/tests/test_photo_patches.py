"""How the patches are cut, and what happens where the file is not the one that was written."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from vitkit.errors import DataError
from vitkit_extras_data import photo_patches, prepare
from vitkit_extras_data.photo_patches import BLOCK, CLASSES, FILE, REGIONS


def test_sizes(patches: Path) -> None:
    data = photo_patches(patches)
    assert (len(data.train), len(data.test)) == (875, 450)
    assert data.train.classes == CLASSES == ("sky", "pagoda", "trees", "petals", "leaves")
    assert data.train.image_shape == (3, 32, 32)
    assert np.bincount(data.test.labels).min() >= 75


def test_no_pixel_is_in_two_blocks_and_every_block_is_on_its_photo() -> None:
    for photo in ("china.jpg", "flower.jpg"):
        seen = np.zeros((427, 640), int)
        for region in REGIONS:
            for left, top, _ in region.blocks() if region.photo == photo else ():
                block = seen[top : top + BLOCK, left : left + BLOCK]
                assert block.shape == (BLOCK, BLOCK)
                block += 1
        assert seen.max() == 1


def test_progress_comes_to_an_end(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prepare(tmp_path, lambda *call: calls.append(call))
    files, done, totals = zip(*calls, strict=True)
    assert set(files) == {FILE}
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]} == {(875 + 450) * 3 * 32 * 32}
    calls.clear()
    prepare(tmp_path, lambda *call: calls.append(call))
    assert calls == []  # it was whole


def test_a_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITKIT_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"run `vitkit data prepare photo_patches`"):
        photo_patches()
    prepare(tmp_path / "photo_patches")
    assert len(photo_patches().train) == len(photo_patches(tmp_path).train) == 875


@pytest.mark.parametrize("fault", ["a byte is another", "the end is missing"])
def test_a_file_that_is_damaged(fault: str, patches: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(patches, tmp_path / "copy"))
    content = bytearray((folder / FILE).read_bytes())
    if fault == "a byte is another":
        content[100_000] ^= 1
    else:
        del content[-1]
    (folder / FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"SHA-256 is not the one in .* again\."):
        photo_patches(folder)
    prepare(folder)
    assert len(photo_patches(folder).test) == 450
    assert {path.name for path in folder.iterdir()} == {FILE, f"{FILE}.sha256"}


def test_a_digest_that_is_missing(patches: Path, tmp_path: Path) -> None:
    shutil.copy(patches / FILE, tmp_path)
    with pytest.raises(DataError, match="its SHA-256 cannot be read"):
        photo_patches(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .* --data-dir or VITKIT_DATA_DIR"):
        prepare(tmp_path / "file" / "folder")
