"""What is kept of compiled kernels is what was asked for, whoever else writes there at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

caching: Any = pytest.importorskip("numba.core.caching", reason="Numba is not installed")

from vitkit.kernels.cpu import _cache  # noqa: E402 (it imports Numba)

ONE, OTHER = ("float32", "one"), ("float64", "other")


def files(folder: Path, stamp: str = "now") -> Any:
    """Return the files of a kernel, as a process of its own would make them."""
    return _cache.KernelFiles(caching.IndexDataCacheFile(str(folder), "kernel-1.py3", ""), stamp)


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Have something happen once, just before a method of the files writes."""
    write = getattr(caching.IndexDataCacheFile, name)

    def after(self: Any, *args: Any) -> None:
        monkeypatch.setattr(caching.IndexDataCacheFile, name, write)
        act()
        write(self, *args)

    monkeypatch.setattr(caching.IndexDataCacheFile, name, after)


def killed() -> None:
    raise KeyboardInterrupt


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    files(tmp_path).save(ONE, "code of one")
    files(tmp_path).save(OTHER, "code of other")
    found = files(tmp_path)
    assert (found.load(ONE), found.load(OTHER)) == ("code of one", "code of other")
    assert found.load(("int8", "third")) is None
    files(tmp_path).save(ONE, "again")
    assert found.load(ONE) == "again"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("at", ["_save_index", "_save_data"])
def test_two_at_once(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is compiled again at worst, and never taken for the other."""
    meanwhile(monkeypatch, at, lambda: files(tmp_path).save(OTHER, "code of other"))
    files(tmp_path).save(ONE, "code of one")
    found = files(tmp_path)
    assert found.load(ONE) == "code of one"
    assert found.load(OTHER) in ("code of other", None)


@pytest.mark.parametrize("at", ["_save_index", "_save_data"])
def test_a_kill_leaves_nothing_of_an_older_version(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, "before").save(ONE, "older code")
    meanwhile(monkeypatch, at, killed)
    with pytest.raises(KeyboardInterrupt):
        files(tmp_path).save(ONE, "code of one")
    assert files(tmp_path).load(ONE) is None
    files(tmp_path).save(ONE, "code of one")
    assert files(tmp_path).load(ONE) == "code of one"


@pytest.mark.parametrize("at", ["_save_index", "_save_data"])
def test_who_reads_in_between(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "before").save(ONE, "older code")
    read: list[Any] = []
    meanwhile(monkeypatch, at, lambda: read.append(files(tmp_path).load(ONE)))
    files(tmp_path).save(ONE, "code of one")
    assert read == [None]


def test_an_older_version_leaves_no_files(tmp_path: Path) -> None:
    for key in (ONE, OTHER):
        files(tmp_path, "before").save(key, "older code")
    files(tmp_path).save(ONE, "code of one")
    assert len(list(tmp_path.glob("*.nbc"))) == 1
    assert files(tmp_path, "before").load(ONE) is None


def test_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A kernel that cannot be kept is used all the same; a line says so, once."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cache, "_told", [])
    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    with caplog.at_level(logging.WARNING, "vitkit"):
        for key in (ONE, OTHER):
            files(tmp_path).save(key, "code")
    (line,) = caplog.messages
    assert line.startswith(
        f"Compiled CPU kernels cannot be kept in {tmp_path} (OSError: [Errno 28]"
    )
    assert files(tmp_path).load(ONE) is None


def test_kernels_are_kept_so() -> None:
    pytest.importorskip("vitkit.kernels.cpu.norms", reason="there are no CPU kernels here")
    from vitkit.kernels.cpu.norms import sum_of_squares

    assert isinstance(sum_of_squares._cache._cache_file, _cache.KernelFiles)
