from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitkit.data import read_idx
from vitkit.errors import DataError

Writer = Callable[[np.ndarray], bytes]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_every_type_of_the_format(kind: str, packed: bool, tmp_path: Path, to_idx: Writer) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    content = to_idx(array)
    path = tmp_path / "some.file"  # the name says nothing about compression
    path.write_bytes(gzip.compress(content) if packed else content)
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


def header(*shape: int, code: int = 8) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"\0\0\x08", "not an IDX file: it starts with 00 00 08"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX file: it starts with 89 50 4e 47"),
        (header(3, code=7) + b"abc", "not an IDX file"),
        (b"\0\0\x08\0", "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends within its header"),
        (header(3) + b"ab", "declares 3 values, 3 bytes .* only 2 follow: truncated"),
        (header(3) + b"abcd", "but more follow"),
        (header(2**31) + b"abc", "declares 2147483648 values"),
        (header(*[2**32 - 1] * 60) + b"abc", "only 3 follow"),
        (header(3, 0), "that is none"),
        (header(2, code=0x0E) + b"12345678", "16 bytes after the header, but only 8"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_faults(content: bytes, message: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "faulty-idx"
    path.write_bytes(gzip.compress(content) if packed else content)
    if packed and ("2147483648" in message or "only 3" in message):
        message = "more than 67108864 bytes are refused"
    with pytest.raises(DataError, match=f"faulty-idx: .*{message}"):
        read_idx(path)


def test_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: there is no such file"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a regular file"):
        read_idx(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="not a regular file"):  # and it does not wait
            read_idx(tmp_path / "pipe")


@pytest.mark.parametrize("declared", [1000, 2**31])
def test_a_bomb_is_not_unpacked(declared: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(header(declared) + bytes(200 << 20), 1))
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="more"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_the_size_is_compared_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(header(2**31))
    os.truncate(path, 1 << 30)
    tracemalloc.start()
    with pytest.raises(DataError, match="only 1073741816 follow: truncated"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_truncated_or_damaged_gzip(tmp_path: Path, to_idx: Writer) -> None:
    packed = gzip.compress(to_idx(np.arange(5000, dtype=np.int32)))
    path = tmp_path / "x.gz"
    for content in (packed[: len(packed) // 2], packed[:-4] + b"abcd", packed[:12]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.gz: "):
            read_idx(path)


ORIGINAL = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


@given(data=st.data(), packed=st.booleans())
def test_mutated_files_are_refused_or_read_as_they_are(
    data: st.DataObject,
    packed: bool,
    to_idx: Writer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = bytearray(to_idx(ORIGINAL))
    if packed:
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "insert"]))
        if change == "byte":
            content[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[place : place + data.draw(st.integers(1, 8))]
        else:
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "mutated-idx"
    path.write_bytes(content)
    try:
        read = read_idx(path)
    except DataError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "mutated-idx" in message
    elif packed and content[:2] == b"\x1f\x8b":  # its CRC was right
        np.testing.assert_array_equal(read, ORIGINAL)
    else:
        assert to_idx(read) == content
