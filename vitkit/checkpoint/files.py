"""A checkpoint on disk: one directory, one commit.

Files are written under a temporary name, synced, listed in a manifest with their SHA-256, and
only then renamed into place, so that a checkpoint is either whole or absent. Reading verifies the
manifest before anything is believed: a flipped bit in a safetensors file would otherwise load
silently as a wrong weight. Arrays are safetensors
(https://github.com/huggingface/safetensors#format), documents JSON; nothing here can execute.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vitkit.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
KEYS = {"format", "environment", "environment_sha256", "files"}
FIRST_KEYS = {"format", "files"}
"""What the manifests of the first checkpoints had."""
LARGEST_DOCUMENT = 16 * 2**20
CHUNK = 2**20
FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
UNSYNCABLE = {errno.EINVAL, errno.ENOTSUP}


class NewerFormat(CheckpointError):
    """A checkpoint was written by a later version of vitkit, and may be whole."""


class Unreadable(CheckpointError):
    """A checkpoint cannot be read here and now, and may be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """The verified content of a checkpoint directory.

    Attributes
    ----------
    path : Path
        The directory.
    arrays : dict of str to dict of str to numpy.ndarray
        By file stem (``"model"``, ``"optim"``, ``"ema"``, ``"loss_scale"``), then by name.
    documents : dict of str to dict
        By file stem, such as ``"trainer"``.
    environment : dict
        What it was computed with; empty where nothing was said.
    """

    path: Path
    arrays: dict[str, dict[str, np.ndarray]]
    documents: dict[str, dict[str, Any]]
    environment: dict[str, Any] = field(default_factory=dict)


def save(
    path: Path,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    documents: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory in one commit; none that exists is ever written over.

    Parameters
    ----------
    path : Path
        The directory to make.
    arrays : mapping of str to mapping of str to numpy.ndarray
        One safetensors file for each stem.
    documents : mapping of str to mapping
        One JSON file for each stem.
    environment : mapping, optional
        What it was computed with, for the manifest.

    Raises
    ------
    CheckpointError
        If it cannot be written; nothing of it is left then. Or if the directory is there already.
    """
    if path.exists() or path.is_symlink():
        raise CheckpointError(
            f"Cannot write the checkpoint {path}: it is there already. Choose another name, or "
            "remove it."
        )
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed and had our number
    try:
        temporary.mkdir(parents=True)
        for stem, named in arrays.items():
            # Not ascontiguousarray, which makes counters, of shape (), vectors.
            whole = {name: np.asarray(array, order="C") for name, array in named.items()}
            safetensors.numpy.save_file(whole, temporary / f"{stem}.safetensors")
        for stem, document in documents.items():
            text = _as_json(document)
            if len(text.encode()) > LARGEST_DOCUMENT:
                raise CheckpointError(
                    f"Cannot write the checkpoint {path}: {stem}.json would have {len(text):,} "
                    f"characters, and none of more than {LARGEST_DOCUMENT:,} bytes is read again. "
                    "Keep less in the states of callbacks."
                )
            (temporary / f"{stem}.json").write_text(text, encoding="utf-8")
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(temporary.iterdir())
        }
        computed_with = json.dumps(dict(environment or {}), sort_keys=True)
        manifest = _as_json(
            {
                "format": FORMAT,
                "environment": json.loads(computed_with),
                "environment_sha256": _digest(computed_with.encode()),
                "files": files,
            }
        )
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(
            np.asarray(array).nbytes for named in arrays.values() for array in named.values()
        )
        what = f"Cannot write the checkpoint {path}"
        raise CheckpointError(f"{what}: {error}{_room(error, size, path)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint directory after verifying every file against the manifest.

    Raises
    ------
    NewerFormat
        If the format is newer than this version of vitkit.
    CheckpointError
        If a file is missing, damaged or no plain file.
    """
    arrays, documents = {}, {}
    try:
        manifest = _manifest(path)
        for name, entry in manifest["files"].items():
            file = _verified(path, name, entry)
            if file.suffix == ".safetensors":
                arrays[file.stem] = safetensors.numpy.load_file(file)
            else:
                documents[file.stem] = _read_json(file)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _refused(path, error) from error
    return Checkpoint(path, arrays, documents, manifest["environment"])


def verify(path: Path) -> dict[str, str]:
    """Compare every file of a checkpoint directory with the manifest, and read no array.

    Returns
    -------
    dict of str to str
        The SHA-256 of each file by its name.

    Raises
    ------
    NewerFormat, CheckpointError
        As :func:`load`.
    """
    try:
        entries = _manifest(path)["files"]
        for name, entry in entries.items():
            _verified(path, name, entry)
        return {name: str(entry["sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _refused(path, error) from error


def load_document(path: Path, stem: str) -> dict[str, Any]:
    """Read one document of a checkpoint directory, verified; the other files are left alone.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    name = f"{stem}.json"
    try:
        return _read_json(_verified(path, name, _manifest(path)["files"].get(name)))
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error


def write_file(path: Path, text: str) -> None:
    """Replace a small file, so that a reader finds the old text or the new, never a part.

    Raises
    ------
    CheckpointError
        If it cannot be written; the old file is as it was then.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:  # a signal too leaves nothing behind
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"Cannot write {path}: {error}{_room(error, len(text), path)}"
        ) from error


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all.

    Raises
    ------
    CheckpointError
        If it cannot be written; the file is as it was then.
    """
    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as stream:
            before = os.fstat(stream.fileno()).st_size
            try:
                left = data
                while left:  # a disk that is about to be full takes a part
                    left = left[os.write(stream.fileno(), left) :]
            except OSError:
                stream.truncate(before)
                raise
    except OSError as error:
        raise CheckpointError(
            f"Cannot write {path}: {error}{_room(error, len(data), path)}"
        ) from error


def write_pointer(path: Path, target: str, **details: Any) -> None:
    """Replace the small JSON file ``path`` so that it names the checkpoint ``target``."""
    write_file(path, _as_json({"checkpoint": target, **details}))


def read_pointer(path: Path) -> dict[str, Any]:
    """Return what a pointer file holds, its ``"checkpoint"`` being a plain folder name.

    Raises
    ------
    CheckpointError
        If it is absent, damaged, or names something outside its folder.
    """
    document = _read_json(path)
    target = document.get("checkpoint")
    if not isinstance(target, str) or Path(target).name != target or target in ("", ".", ".."):
        raise _damaged(path, f"it names {target!r}, which is no folder of this run")
    return document


def _manifest(path: Path) -> dict[str, Any]:
    """Return the manifest, with what it says of each file and of the environment."""
    manifest = _read_json(path / MANIFEST)
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise NewerFormat(
            f"The checkpoint {path} has format {version}, and this vitkit reads format {FORMAT}: "
            "upgrade vitkit."
        )
    if version != FORMAT:
        raise _damaged(path, f"its format is {version!r}, not {FORMAT}")
    listed, environment = manifest.get("files"), manifest.get("environment", {})
    if not isinstance(listed, dict) or not listed:
        raise _damaged(path, "the manifest lists no files")
    if set(manifest) not in (FIRST_KEYS, KEYS):  # a damaged key would hide what it names
        raise _damaged(path, f"the manifest has the keys {', '.join(manifest)}"[:200])
    written = json.dumps(environment, sort_keys=True).encode()
    if set(manifest) == KEYS and manifest["environment_sha256"] != _digest(written):
        raise _damaged(path, "the environment in the manifest has changed since it was written")
    if not isinstance(environment, dict):
        raise _damaged(path, "the manifest names no environment")
    return {"files": listed, "environment": environment}


def _verified(path: Path, name: str, entry: Any) -> Path:
    """Return a file of a checkpoint, after comparing it with what the manifest says of it."""
    file = path / name
    if Path(name).name != name or file.is_symlink() or not file.is_file():
        raise _damaged(path, f"{name!r} is missing or no plain file")
    understood = isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}
    if not understood or file.suffix not in (".safetensors", ".json"):
        raise _damaged(path, f"the manifest entry of {name!r} is not understood")
    if file.stat().st_size != entry.get("bytes"):
        raise _damaged(path, f"{name} has {file.stat().st_size} of {entry.get('bytes')} bytes")
    if _sha256(file) != entry.get("sha256"):
        raise _damaged(path, f"the content of {name} has changed since it was written")
    return file


def _refused(path: Path, error: Exception) -> CheckpointError:
    """Return what to raise for an error while reading; one of the system says nothing of data."""
    gone = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, OSError) and not isinstance(error, gone) and error.errno != errno.ELOOP:
        return Unreadable(
            f"Cannot read the checkpoint {path}: {error}. Try again, or see to its permissions; to "
            "do without it, move it out of the run folder."
        )
    return _damaged(path, str(error))


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"Cannot trust the checkpoint {path}: {why}. Use another checkpoint.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would not end
            raise _damaged(file, "it is no plain file")
        if found.st_size > LARGEST_DOCUMENT:
            raise _damaged(file, f"it is larger than {LARGEST_DOCUMENT} bytes")
        document = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except FileNotFoundError as error:
        raise _damaged(file, "there is no such file") from error
    except OSError as error:
        raise _refused(file, error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"it cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise _damaged(file, "it holds no JSON object")
    return document


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of two values of one name other readers take another than ours."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has two values of one name")
    return found


def _sync(path: Path) -> None:
    """Have the file's or directory's content on the disk before going on."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open directories
        return
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory; what they have is what there is.
        if error.errno not in UNSYNCABLE or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _room(error: Exception, size: int, path: Path) -> str:
    """Return how much room there is and should be, where a disk is full; otherwise nothing."""
    numbers = [getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))]
    if not FULL.intersection(numbers):
        return ""
    place = next((each for each in path.parents if each.is_dir()), Path())
    free = shutil.disk_usage(place).free
    return f". It takes {size:,} bytes and some more; {free:,} are free: make room"
