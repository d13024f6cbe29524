"""A server on this machine that spoils its answers, as row F15 has it, and small originals."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import hostile_archives as archives

from vitkit.backend import philox
from vitkit.data import SOURCES
from vitkit.data.sources import Archive, Source

LONGEST = 60.0  # seconds for anything that is waited for
GOOD = "good/"
"""What a path begins with for which an answer is good, whatever others are."""
PACKED = "packed.tar.gz"
EXTRA = "batches.meta.txt"

Spoil: TypeAlias = Callable[[BaseHTTPRequestHandler, bytes], None]
"""Sends an answer in its own way, given what a good one holds."""


class Server:
    """Serves files, and lets ``spoiled`` answer for those that are in it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.encodings: set[str | None] = set()
        self.spoiled: dict[str, Spoil] = {}
        self.errors: list[BaseException | None] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.answer(self)

            def log_message(self, *_: object) -> None:
                """Keep stderr clean."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # the client has left
                    served.errors.append(sys.exc_info()[1])

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        self.asked.append(name)
        self.encodings.add(request.headers["Accept-Encoding"])
        content = self.files[name.removeprefix(GOOD)]
        self.spoiled.get(name, send)(request, content)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(LONGEST)
        assert not self.errors, self.errors


def send(request: BaseHTTPRequestHandler, content: bytes, length: object = None) -> None:
    """Send a good answer, or one that says another length."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    request.wfile.write(content)


def reset(part: float) -> Spoil:
    """Reset the connection when a part of the contents has been sent."""

    def spoil(request: BaseHTTPRequestHandler, content: bytes) -> None:
        send(request, content[: int(part * len(content))], len(content))
        request.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # a close then resets
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.connection.close()

    return spoil


class Pause:
    """Stops in the middle of an answer, until it may go on."""

    def __init__(self, part: float) -> None:
        self.part = part
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        some = int(self.part * len(content))
        send(request, content[:some], len(content))
        request.wfile.flush()
        self.reached.set()
        self.go.wait(LONGEST)
        request.wfile.write(content[some:])


def originals(server: Server) -> dict[str, Source]:
    """Serve small files in place of MNIST's and CIFAR-10's, and return what is known of them."""
    rng = philox(0, "F15")
    idx = []
    for original, size in zip(SOURCES["mnist"].files, (200_000, 3_000, 90_000, 40), strict=True):
        content = rng.bytes(size)
        packed = gzip.compress(content, mtime=0)
        server.files[f"{original.name}.gz"] = packed
        known = (size, original.holds, _sha256(content), _sha256(packed), len(packed))
        idx.append(type(original)(original.name, *known))
    members, files = [archives.member(f"{archives.INSIDE}/{EXTRA}", b"names")], []
    for original in SOURCES["cifar10"].files:
        content = rng.bytes(30_000)
        members.append(archives.member(f"{archives.INSIDE}/{original.name}", content))
        files.append(dataclasses.replace(original, size=30_000, sha256=_sha256(content)))
    packed = server.files[PACKED] = gzip.compress(archives.tar(members), mtime=0)
    archive = Archive(PACKED, len(packed), _sha256(packed), (EXTRA,))
    changes: dict[str, Any] = {"mnist": {"files": tuple(idx)}}
    changes["cifar10"] = {"files": tuple(files), "archive": archive}
    return {
        name: dataclasses.replace(SOURCES[name], urls=(server.url,), **change)
        for name, change in changes.items()
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def changed(change: Callable[[bytes], bytes]) -> Spoil:
    """Send other contents."""
    return lambda request, content: send(request, change(content))


def status(code: int, *lines: tuple[str, str]) -> Spoil:
    """Send a status and headers, and no contents."""

    def spoil(request: Any, _: bytes) -> None:
        request.send_response(code)
        for key, value in lines:
            request.send_header(key, value.format(path=request.path))
        request.send_header("Content-Length", "0")
        request.end_headers()

    return spoil


def to(address: str, code: int = 301) -> Spoil:
    """Send the client elsewhere."""
    return status(code, ("Location", address))


def raw(*pieces: bytes, then: Callable[[bytes], bytes] = lambda _: b"", wait: float = 0) -> Spoil:
    """Send these bytes for all of an answer, and then some that depend on the contents."""

    def spoil(request: Any, content: bytes) -> None:
        for piece in (*pieces, then(content)):
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(wait)

    return spoil


def slowly(request: Any, content: bytes) -> None:
    """Send the contents in twenty pieces, with a little time between."""
    send(request, b"", len(content))
    step = len(content) // 20 + 1
    for first in range(0, len(content), step):
        request.wfile.write(content[first : first + step])
        request.wfile.flush()
        time.sleep(0.005)


def chunks(content: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return contents as HTTP/1.1 sends them that does not know their length."""
    return b"%x\r\n%s\r\n%s" % (len(content), content, end)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PACKING = OK + b"Content-Encoding: gzip\r\n\r\n"
SPOILED: dict[str, tuple[Spoil, str]] = {
    "reversed": (changed(lambda c: c[::-1]), "SHA256 hash"),
    "one bit": (changed(lambda c: c[:-1] + bytes([c[-1] ^ 1])), "SHA256 hash"),
    "zeros": (changed(lambda c: bytes(len(c))), "SHA256 hash"),
    "a page": (changed(lambda _: b"<html>Please log in</html>"), "SHA256 hash"),
    "nothing": (changed(lambda _: b""), "SHA256 hash"),
    "a byte less": (changed(lambda c: c[:-1]), "SHA256 hash"),
    "a byte more": (changed(lambda c: c + b"x"), "bytes that are due"),
    "a megabyte more": (changed(lambda c: c + bytes(1 << 20)), "bytes that are due"),
    "unpacked": (changed(gzip.decompress), "SHA256 hash|bytes that are due"),
    "short": (lambda r, c: send(r, c[: len(c) // 2], len(c)), "IncompleteRead"),
    "shorter than said": (lambda r, c: send(r, c, 10 * len(c)), "IncompleteRead"),
    "longer than said": (lambda r, c: send(r, c, len(c) - 1), "SHA256 hash"),
    "a length of words": (lambda r, c: send(r, c, "all of it"), ""),
    **{str(code): (status(code), str(code)) for code in (403, 404, 410, 429, 500, 503)},
    "no content": (status(204), "SHA256 hash"),
    "part": (status(206), "SHA256 hash"),
    "301 to a file": (to("file:///etc/hostname"), "InvalidSchema"),
    "302 to a file": (to("file:///etc/hostname", 302), "InvalidSchema"),
    "307 to ftp": (to("ftp://127.0.0.1/x", 307), "InvalidSchema"),
    "301 to nothing": (to(""), "SHA256 hash|Redirect"),
    "301 to itself": (to("{path}"), "TooManyRedirects"),
    "301 to a bad address": (to("http://[::1/x"), ""),
    "301 to a bad port": (to("http://127.0.0.1:99999/"), ""),
    "301 to a closed port": (to("http://127.0.0.1:9/x"), "ConnectionError"),
    "no answer": (raw(), "ConnectionError"),
    "garbage": (raw(b"\0\xff" * 500), "ConnectionError"),
    "endless header": (raw(OK, b"X: " + b"x" * 200_000), "ConnectionError"),
    "many headers": (raw(OK, b"X: y\r\n" * 1000, b"\r\n"), "ConnectionError"),
    "a reason for a terminal": (raw(b"HTTP/1.1 404 \x1b]0;x\x07\r\n\r\n"), r"\\x1b\]0;x\\x07"),
    "chunks cut": (raw(CHUNKED, then=lambda c: chunks(c)[:-9]), "Chunked|IncompleteRead"),
    "chunks of no size": (raw(CHUNKED, b"zz\r\n"), "Chunked|InvalidChunkLength"),
    "chunks that are wrong": (raw(CHUNKED, then=lambda c: chunks(c[1:])), "SHA256 hash"),
    "packed once more, badly": (raw(PACKING, b"no gzip"), "ContentDecodingError"),
    "packed zeros": (raw(PACKING, gzip.compress(bytes(64 << 20), 1)), "bytes that are due"),
    **{f"reset at {p:g}": (reset(p), "") for p in (0, 0.001, 0.1, 0.25, 0.4, 0.5, 0.65, 0.8)},
    "reset before the last bytes": (reset(0.99), ""),
    "reset after the last byte": (reset(1), ""),
}
"""How an answer is spoiled, and what is said of it; nothing where it may be taken."""
TAKEN: dict[str, Spoil] = {
    "a length below zero": lambda r, c: send(r, c, -1),
    "no length": raw(OK + b"\r\n", then=lambda c: c),
    "slow": slowly,
    "in chunks": raw(CHUNKED, then=chunks),
    "packed once more": raw(PACKING, then=gzip.compress),
    "301 to a good one": to("/good{path}"),
    "old": raw(b"HTTP/1.0 200 OK\r\n\r\n", then=lambda c: c),
}
"""Answers that are odd, and good."""
