"""Stdin, stdout and stderr, so that no command fails over how it was started.

A stream may be closed, be a pipe whose reader leaves or a file on a full disk, or be unable to
write a character that the name of a file or of a class has.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from typing import IO, Any

import typer

ESCAPED = "vitkit.escaped"
"""How characters are written that a stream has no code for."""


def settle() -> None:
    """Put the three streams in order, once, before anything is read or written."""
    codecs.register_error(ESCAPED, _escaped)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest number that is free is that of this stream; otherwise the next file that
            # is opened, of a checkpoint perhaps, would have it.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            plain = codecs.lookup(stream.encoding).name == "ascii"  # typer writes UTF-8 then
            stream.reconfigure(encoding="utf-8" if plain else stream.encoding, errors=ESCAPED)
    if not isinstance(sys.stdout, _Watched):
        sys.stdout = Results(sys.stdout)
    if not isinstance(sys.stderr, _Watched):
        sys.stderr = Remarks(sys.stderr)


class _Watched:
    """A stream of text that knows what to do about what cannot be written."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if that is possible."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Write what was kept back, if that is possible."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        raise NotImplementedError


class Results(_Watched):
    """Stdout: what cannot be written is an error, which says of what."""

    def _lost(self, error: OSError) -> None:
        swallow(self._stream)  # what is left would fail again at exit, and change the exit code
        if isinstance(error, BrokenPipeError):  # a reader that leaves has had enough
            raise error
        raise OSError(error.errno, error.strerror, "standard output") from error


class Remarks(_Watched):
    """Stderr: what cannot be written is lost, since no run ends over its progress."""

    def _lost(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):  # a full disk may have room again
            swallow(self._stream)


def swallow(stream: IO[str]) -> None:
    """Have what is written to a stream from now on, and what it still holds, go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # no file of the system is behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def show_json(value: Any) -> None:
    """Write a value to stdout as JSON."""
    typer.echo(json.dumps(value, indent=1))


def on_a_line(text: object) -> str:
    """Return the name of a file or a class as it can be shown: nothing in it moves the cursor."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else _code(c) for c in shown)


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _escaped(error: UnicodeError) -> tuple[bytes, int]:
    """Escape characters as TOML and JSON do; bytes of a file name that are no text stay as is."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    codes = (
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else _code(c).encode()
        for c in error.object[error.start : error.end]
    )
    return b"".join(codes), error.end
