"""Downloads from a server on this machine; nothing here reaches the network."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vitkit.data import SOURCES, data_dir, find, mnist, prepare, verify
from vitkit.data import sources as sources_module
from vitkit.data.sources import Archive
from vitkit.errors import DataError

Writer = Callable[[np.ndarray], bytes]


class Server:
    """Serves files, and counts and spoils the answers as the test says."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fault = ""
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.answer(self)

            def log_message(self, *_: object) -> None:
                """Keep stderr clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        self.asked.append(name)
        content = self.files.get(name)
        if self.fault == "redirect to a file":
            request.send_response(302)
            request.send_header("Location", "file:///etc/hostname")
            request.end_headers()
            return
        if content is None or self.fault.isdigit():
            request.send_error(int(self.fault or 404))
            return
        if self.fault == "long":
            content += bytes(1 << 20)
        request.send_response(200)
        if self.fault != "no length":
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if self.fault == "short":
            content = content[: len(content) // 2]
        elif self.fault == "wrong":
            content = bytes(reversed(content))
        request.wfile.write(content)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server, with the way to the real ones shut."""
    for name in ("VITKIT_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def small_mnist(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    mnist_arrays: dict[str, np.ndarray],
    to_idx: Writer,
) -> Server:
    """Serve a small MNIST, and make it the one that is known."""
    files = []
    for original, array in zip(SOURCES["mnist"].files, mnist_arrays.values(), strict=True):
        content = to_idx(array)
        packed = gzip.compress(content)
        server.files[f"{original.name}.gz"] = packed
        files.append(
            dataclasses.replace(
                original,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                gz_sha256=hashlib.sha256(packed).hexdigest(),
                gz_size=len(packed),
            )
        )
    source = dataclasses.replace(SOURCES["mnist"], urls=(server.url,), files=tuple(files))
    monkeypatch.setitem(SOURCES, "mnist", source)
    monkeypatch.setattr(sources_module, "MNIST", source)
    return server


def test_what_was_prepared_is_whole_and_readable(small_mnist: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = prepare("mnist", tmp_path / "m", progress=lambda *args: seen.append(args))
    assert sorted(p.name for p in folder.iterdir()) == [".lock", *sorted(small_mnist.files)]
    assert verify("mnist", folder) == []
    assert len(mnist(folder).train) == 30
    assert all(
        (name, len(content), len(content)) in seen for name, content in small_mnist.files.items()
    )
    prepare("mnist", folder)
    assert len(small_mnist.asked) == 4  # nothing is downloaded twice


def test_the_default_folder(
    small_mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITKIT_DATA_DIR", str(tmp_path / "data"))
    assert prepare("mnist") == tmp_path / "data" / "mnist" == find("mnist")
    monkeypatch.setenv("VITKIT_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_dir().name == "data"
    assert "vitkit" in data_dir().parts


@pytest.mark.parametrize("fault", ["404", "500", "short", "wrong", "long", "redirect to a file"])
def test_a_bad_answer_leaves_nothing(small_mnist: Server, tmp_path: Path, fault: str) -> None:
    small_mnist.fault = fault
    reason = "more than the [0-9]+ bytes that are due" if fault == "long" else r"127\.0\.0\.1"
    with pytest.raises(DataError, match=f"(?s)could not be downloaded.*{reason}.*SHA-256 must"):
        prepare("mnist", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    small_mnist.fault = ""
    assert verify("mnist", prepare("mnist", tmp_path)) == []


def test_a_server_that_states_no_length(small_mnist: Server, tmp_path: Path) -> None:
    small_mnist.fault = "no length"
    assert verify("mnist", prepare("mnist", tmp_path)) == []


def test_the_next_server_is_tried(
    small_mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = ("http://127.0.0.1:9/", small_mnist.url)
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], urls=urls))
    assert verify("mnist", prepare("mnist", tmp_path)) == []


def test_only_what_is_missing_or_wrong_is_fetched(small_mnist: Server, tmp_path: Path) -> None:
    prepare("mnist", tmp_path)
    names = sorted(small_mnist.files)
    (tmp_path / names[0]).write_bytes(b"damaged")
    (tmp_path / names[1]).unlink()
    small_mnist.asked.clear()
    prepare("mnist", tmp_path)
    assert sorted(small_mnist.asked) == names[:2]
    assert verify("mnist", tmp_path) == []


def test_two_at_once_download_once(small_mnist: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: prepare("mnist", tmp_path), range(4)))
    assert folders == [tmp_path] * 4
    assert sorted(small_mnist.asked) == sorted(small_mnist.files)


def test_what_a_killed_download_left_is_removed(small_mnist: Server, tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "tmpabc").write_bytes(b"half")
    prepare("mnist", tmp_path)
    assert not (tmp_path / ".partial").exists()


def test_offline(small_mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITKIT_OFFLINE", "1")
    with pytest.raises(DataError, match=r"VITKIT_OFFLINE forbids.*train-images-idx3-ubyte\.gz"):
        prepare("mnist", tmp_path / "m")
    assert not small_mnist.asked
    assert not (tmp_path / "m").exists()
    monkeypatch.setenv("VITKIT_OFFLINE", "0")
    prepare("mnist", tmp_path / "m")
    monkeypatch.setenv("VITKIT_OFFLINE", "1")
    prepare("mnist", tmp_path / "m")  # complete, so nothing is needed


def test_a_folder_that_cannot_be_made(small_mnist: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written.*VITKIT_DATA_DIR"):
        prepare("mnist", tmp_path / "file" / "m")


def test_unknown_names() -> None:
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        prepare("cifar-10")
    with pytest.raises(DataError, match="digits comes with vitkit"):
        prepare("digits")


class TestVerify:
    def test_each_problem_is_named(self, small_mnist: Server, tmp_path: Path) -> None:
        prepare("mnist", tmp_path)
        names = sorted(small_mnist.files)
        content = gzip.decompress(small_mnist.files[names[1]])
        (tmp_path / names[0]).unlink()
        (tmp_path / names[1]).write_bytes(gzip.compress(content[:-1]))
        content = gzip.decompress(small_mnist.files[names[2]])
        (tmp_path / names[2]).write_bytes(gzip.compress(content[:-1] + b"\x09"))
        (tmp_path / names[3]).write_bytes(small_mnist.files[names[3]][:-9])
        problems = sorted(verify("mnist", tmp_path))
        assert [name in problem for name, problem in zip(names, problems, strict=True)] == [
            True
        ] * 4
        assert "missing" in problems[0]
        assert "27 bytes; 28 (10000 labels) are due" in problems[1]
        assert "not the original" in problems[2]
        assert "cannot be read" in problems[3]

    def test_unpacked_and_repacked_files_are_the_same(
        self, small_mnist: Server, tmp_path: Path
    ) -> None:
        for i, (name, packed) in enumerate(small_mnist.files.items()):
            content = gzip.decompress(packed)
            if i % 2:
                (tmp_path / name.removesuffix(".gz")).write_bytes(content)
            else:
                (tmp_path / name).write_bytes(gzip.compress(content, 1))
        assert verify("mnist", tmp_path) == []

    def test_a_bomb_is_not_unpacked(self, small_mnist: Server, tmp_path: Path) -> None:
        prepare("mnist", tmp_path)
        path = tmp_path / "t10k-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(bytes(100 << 20), 1))
        assert verify("mnist", tmp_path) == [
            f"{path}: more than 28 bytes; 28 (10000 labels) are due"
        ]

    def test_what_has_no_known_hash_is_not_called_right(
        self, small_mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = tuple(dataclasses.replace(f, sha256="") for f in SOURCES["mnist"].files)
        monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], files=files))
        prepare("mnist", tmp_path)
        assert verify("mnist", tmp_path) == []
        packed = tmp_path / "t10k-labels-idx1-ubyte.gz"
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
        assert "cannot be verified" in verify("mnist", tmp_path)[0]

    def test_the_real_files(self, real_mnist: Path, real_cifar10: Path) -> None:
        assert verify("mnist", real_mnist) == []
        problems = verify("cifar10", real_cifar10)
        if (real_cifar10 / "test_batch.bin").exists():
            assert problems == []
        else:
            assert problems == [f"{real_cifar10 / 'test_batch.bin'}: missing"]


class TestArchive:
    @pytest.fixture
    def contents(self, cifar10_folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in cifar10_folder.iterdir()}

    def serve(
        self,
        server: Server,
        monkeypatch: pytest.MonkeyPatch,
        contents: dict[str, bytes],
        tar: bytes,
    ) -> None:
        known = SOURCES["cifar10"]
        files = tuple(
            dataclasses.replace(
                file,
                size=len(contents[file.name]),
                sha256=hashlib.sha256(contents[file.name]).hexdigest(),
            )
            for file in known.files
        )
        assert known.archive is not None
        archive = Archive(
            "c.tar.gz", len(tar), hashlib.sha256(tar).hexdigest(), known.archive.extras
        )
        server.files["c.tar.gz"] = tar
        source = dataclasses.replace(known, urls=(server.url,), files=files, archive=archive)
        monkeypatch.setitem(SOURCES, "cifar10", source)

    def pack(self, members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for info, content in members:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def member(self, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, target, 0o4777
        return info

    def test_only_the_named_members_come_out(
        self,
        server: Server,
        contents: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        inside = "cifar-10-batches-bin"
        hostile = [
            (self.member("../escaped.bin"), b"x"),
            (self.member("/absolute.bin"), b"x"),
            (self.member(f"{inside}/../../data_batch_1.bin"), b"x"),
            (self.member(f"{inside}/data_batch_1.bin", tarfile.SYMTYPE, "/etc/hostname"), b""),
            (self.member(f"{inside}/data_batch_2.bin", tarfile.LNKTYPE, "../x"), b""),
            (self.member(f"{inside}/data_batch_3.bin", tarfile.FIFOTYPE), b""),
            (self.member(f"{inside}/readme.html"), b"<p>"),
        ]
        good = [(self.member(f"{inside}/{name}"), content) for name, content in contents.items()]
        names = (
            self.member(f"{inside}/batches.meta.txt"),
            b"\n".join(b"%d" % i for i in range(10)),
        )
        self.serve(server, monkeypatch, contents, self.pack([*hostile, *good, names]))
        target = tmp_path / "a" / "b"
        prepare("cifar10", target)
        assert verify("cifar10", target) == []
        expected = sorted([".lock", "batches.meta.txt", *contents])
        assert sorted(p.name for p in target.iterdir()) == expected
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
        assert all(not p.is_symlink() and p.stat().st_mode & 0o7000 == 0 for p in target.iterdir())

    def test_a_member_that_is_too_large_missing_or_changed(
        self,
        server: Server,
        contents: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = next(iter(contents))
        for changed, message in (
            ({first: contents[first] + b"x"}, "at most are due"),
            ({first: bytes(len(contents[first]))}, "not the original"),
            ({first: None}, "missing"),
        ):
            members = [
                (self.member(f"cifar-10-batches-bin/{name}"), content)
                for name, content in (contents | changed).items()
                if content is not None
            ]
            self.serve(server, monkeypatch, contents, self.pack(members))
            with pytest.raises(DataError, match=message):
                prepare("cifar10", tmp_path / "c")
            assert [p.name for p in (tmp_path / "c").iterdir()] == [".lock"]

    def test_too_many_members_and_no_tar_at_all(
        self,
        server: Server,
        contents: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        many = self.pack([(self.member(f"x{i}"), b"") for i in range(100)])
        for content, message in ((many, "more than 64 members"), (b"no tar", "cannot be read")):
            self.serve(server, monkeypatch, contents, content)
            with pytest.raises(DataError, match=message):
                prepare("cifar10", tmp_path / "c")
