"""F11: what becomes of odd but legal images is what the guide's table says, case by case."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from injecting import Injected
from odd_images import OUTCOMES, RED, Odd, camera, files, modes, plain, saved

from vitkit.data import FolderDataset, folder, read_image
from vitkit.errors import DataError

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "images.rst"
POSIX = os.name == "posix"
WHITE = np.array([0.299, 0.587, 0.114])


def judged(path: Path, odd: Odd) -> None:
    """Read an image as a photograph and as grey, and compare with what is expected."""
    if isinstance(odd.expected, str):
        for shape in ((3, 16, 16), (1, 4, 4)):
            with pytest.raises(DataError, match=odd.expected) as caught:
                read_image(path, shape)
            assert path.name in str(caught.value) or not path.name.isprintable()
            assert "\n" not in str(caught.value)
        return
    read = read_image(path, (3, 16, 16))
    assert read.dtype == np.uint8
    place = (slice(None), slice(2, 6), slice(2, 6)) if "exif" in path.name else slice(None)
    expected = np.array(odd.expected)[:, None, None]
    assert np.abs(read[place] - expected).max() <= odd.tolerance, path.name
    if "exif" in path.name:
        assert read[:, 10:, :].max() <= 12
        assert read[:, :, 10:].max() <= 12
    grey = read_image(path, (1, 16, 16))[place]
    assert np.abs(grey - WHITE @ np.array(odd.expected)).max() <= odd.tolerance + 1.5, path.name


def test_odd_images(tmp_path: Path, injected: Injected) -> None:
    seen = set()
    count = 0
    for odd in (*modes(), *camera(), *files()):
        assert odd.row in OUTCOMES
        refused = isinstance(odd.expected, str)
        assert refused == (OUTCOMES[odd.row] == "refused" or odd.expected == "")
        place = tmp_path / str(count) / "class"
        place.mkdir(parents=True)
        (place / "good.png").write_bytes(saved(plain(), "PNG"))
        path = place / odd.name
        path.write_bytes(odd.content)
        count += 1
        seen.add(odd.row)
        if odd.expected == "":
            assert len(FolderDataset(place.parent, ["class"], (3, 4, 4))) == 1
            continue
        judged(path, odd)
        if refused:
            with pytest.raises(DataError, match="1 of 2 images cannot be read"):
                FolderDataset(place.parent, ["class"], (3, 4, 4))
            kept = FolderDataset(place.parent, ["class"], (3, 4, 4), bad_files="skip")
            assert [found.name for found in kept.paths] == ["good.png"]
        else:
            assert path in FolderDataset(place.parent, ["class"], (3, 4, 4)).paths
    injected("odd images", count, at_least=60)
    elsewhere = {"link to an image", "link to nothing or to itself", "pipe named like an image"}
    assert seen == set(OUTCOMES) - elsewhere


@pytest.mark.skipif(not POSIX, reason="links and pipes need rights or do not exist elsewhere")
def test_links_pipes_and_names_of_unix(tmp_path: Path, injected: Injected) -> None:
    place = tmp_path / "class"
    place.mkdir()
    good = place / "good.png"
    good.write_bytes(saved(plain(), "PNG"))
    names = ["line\nfeed.png", "tab\t.png", "\x1b[31m.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"\xff\xfe.png"))  # which no text has
    for name in names:
        path = place / name
        path.write_bytes(good.read_bytes())
        judged(path, Odd("", name, b"", RED))
        path.write_bytes(b"")
        judged(path, Odd("", name, b"", "it is empty"))
        with pytest.raises(DataError) as caught:
            folder(tmp_path, 4)
        assert len(str(caught.value).splitlines()) == 3
        assert str(caught.value).replace("\n", "").isprintable()
        path.unlink()
    (place / "link.png").symlink_to(good)
    judged(place / "link.png", Odd("", "", b"", RED))
    assert len(FolderDataset(tmp_path, ["class"], (3, 4, 4))) == 2
    (place / "loop.png").symlink_to(place / "loop.png")
    (place / "nothing.jpg").symlink_to(place / "gone.jpg")
    os.mkfifo(place / "pipe.png")
    (place / "folder.png").mkdir()
    refusals = {
        "loop.png": "a link to nothing or to itself",
        "nothing.jpg": "a link to nothing or to itself",
        "pipe.png": "not a regular file",
    }
    for name, reason in refusals.items():
        judged(place / name, Odd("", name, b"", reason))
    with pytest.raises(DataError, match="3 of 5 images cannot be read") as caught:
        folder(tmp_path, 4)
    assert all(f"{name}: " in str(caught.value) for name in refusals)
    kept = FolderDataset(tmp_path, ["class"], (3, 4, 4), bad_files="skip")
    assert [path.name for path in kept.paths] == ["good.png", "link.png"]
    (tmp_path / "dog").symlink_to(tmp_path / "dog")
    with pytest.raises(DataError, match="dog: a link to nothing; restore or remove it"):
        folder(tmp_path, 4)
    injected("odd names, links and pipes", len(names) + 6, at_least=9)


def test_the_guide_says_what_becomes_of_each(injected: Injected) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for row, outcome in OUTCOMES.items():
        assert f"   * - {row}\n     - {outcome}\n" in text, f"{GUIDE}: {row}: {outcome}"
    table = text.partition(".. list-table:: What becomes of odd images")[2]
    assert table.count("   * - ") == len(OUTCOMES) + 1  # and its header
    injected("rows of the guide's table", len(OUTCOMES), at_least=20)
