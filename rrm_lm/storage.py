"""Atomic writes to disk: readers see the old version or the complete new one, never a part.

Files and folders are written next to their destination, synced to disk and renamed. A folder also gets a
`manifest.json` with the size and SHA-256 of each file, written last, so that `verify` detects an incomplete folder.

Checkpoints and output folders of training are in `rrm_lm/training/checkpoints.py` and `output_folder.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rrm_lm.errors import CheckpointError, RRMError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_STAGING = ".staging-"
_REPLACED = ".replaced-"


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """JSON of whatever `plain` takes. Non-finite numbers become null, so that every reader accepts the file."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any, *, only_finite: bool = True) -> Any:
    """Convert dataclasses, enums, paths, sets and anything with `.tolist()` (NumPy, torch) to JSON types.

    `only_finite`: whether NaN and infinity become None. Raises TypeError: a value of another type.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) or not only_finite else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    convert = functools.partial(plain, only_finite=only_finite)
    if isinstance(value, dict):
        return {str(convert(key)): convert(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [convert(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((convert(item) for item in value), key=str)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: convert(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(to_list := getattr(value, "tolist", None)):
        return convert(to_list())
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


@contextlib.contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds, the file there replaces `path` atomically.

    Creates the folders above `path`. If the block raises, `path` does not change. Raises CheckpointError: the disk is
    full, or the folder is not writable.
    """
    path = Path(path)
    staged = _sibling(path, _STAGING)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staged
            _sync(staged)
            os.replace(staged, path)
            _sync(path.parent)
        finally:
            staged.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically. Raises what `staged_file` raises."""
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON (see `json_text`), atomically. Raises what `staged_file` raises."""
    write_text(path, json_text(value) + "\n")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Write a JSON value per line, atomically. Raises what `staged_file` raises."""
    with staged_file(path) as staged, staged.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json_text(row, indent=None) + "\n")


@contextlib.contextmanager
def staged_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; if the block succeeds, it becomes `path`, with a manifest.

    With `replace`, a folder there that is not empty is deleted after the new one is in place. Raises CheckpointError:
    `path` is not empty and `replace` is off, the disk is full, or the folder is not writable.
    """
    path = Path(path)
    _refuse_occupied(path, replace)
    staged = _sibling(path, _STAGING)
    with explained(path):
        staged.mkdir(parents=True)
        try:
            yield staged
            commit_folder(staged, path, replace=replace)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def commit_folder(staged: Path, path: Path, *, replace: bool = False) -> None:
    """Sync every file of `staged` to disk, write its manifest, and rename it to `path` on the same file system. Raises
    CheckpointError: `path` is not empty and `replace` is off.
    """
    _refuse_occupied(path, replace)
    for folder, _, names in os.walk(staged):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    write_manifest(staged)
    displaced = None
    if path.is_dir() and any(path.iterdir()):
        displaced = _sibling(path, _REPLACED)
        os.rename(path, displaced)
    try:
        os.rename(staged, path)
    except BaseException:
        if displaced is not None and not path.exists():
            os.rename(displaced, path)
        raise
    _sync(path.parent)
    if displaced is not None:
        shutil.rmtree(displaced, ignore_errors=True)


def replace_files(staged: Path, folder: Path) -> None:
    """Sync every file under `staged` to disk and move it to its place under `folder`, replacing files there."""
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        place = folder / file.relative_to(staged)
        place.parent.mkdir(parents=True, exist_ok=True)
        _sync(file)
        os.replace(file, place)
        _sync(place.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder, if it exists. If interrupted, no part of it keeps its name."""
    staged = _sibling(path, _STAGING)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, staged)
    shutil.rmtree(staged, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove unfinished files and folders directly in `folder`; restore a folder that was about to be replaced.

    Only for the holder of the folder's lock, because the unfinished work of a running process looks the same.
    """
    for entry in sorted(folder.glob(".*")):
        if _REPLACED in entry.name:
            original = folder / entry.name[1 : entry.name.index(_REPLACED)]
            if original.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                logger.warning("restored %s: the run that was replacing it was interrupted", original)
                os.rename(entry, original)
        elif _STAGING in entry.name:
            logger.info("removed an unfinished write of an interrupted run: %s", entry)
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` with the size and SHA-256 of every file under `folder`."""
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    write_json(folder / MANIFEST, {"format": 1, "files": files})


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Compare `folder` with its manifest; returns a sentence for each problem, none if the folder is complete.

    Files that are not in the manifest are fine: people add notes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return ["there is no such folder"]
    if not any(folder.iterdir()):
        return ["it is empty"]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return [f"it has no {MANIFEST}: it was never finished, or another program wrote it"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return [f"its {MANIFEST} cannot be read"]
    problems = []
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
        elif sha256(file) != digest:
            problems.append(f"the contents of {name} changed after it was written")
    return problems


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256(file: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def now() -> str:
    """The current UTC time to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sibling(path: Path, mark: str) -> Path:
    """A new hidden name in the folder of `path`, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}{mark}{os.getpid()}-{secrets.token_hex(4)}")


def _refuse_occupied(path: Path, replace: bool) -> None:
    if path.exists() and not (path.is_dir() and (replace or not any(path.iterdir()))):
        raise CheckpointError(
            "The destination is not empty",
            where=str(path),
            expected="an empty folder, or one that does not exist",
            remedy="choose another name, or move the old folder away",
        )


def _sync(path: Path) -> None:
    """Sync a file's bytes, or a folder's list of names, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FULL = {errno.ENOSPC, errno.EDQUOT}
# Torch and safetensors have their own messages; the last one is torch's for an unfinished file.
_FULL_TEXT = re.compile(r"No space left|Disk quota exceeded|PytorchStreamWriter failed writing|unexpected pos \d+ vs")


@contextlib.contextmanager
def report_full_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any library's error about a full disk into a CheckpointError."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in _FULL or _FULL_TEXT.search(str(error))
        if isinstance(error, RRMError) or not full:
            raise
        raise CheckpointError(
            f"The disk is full ({' '.join(str(error).split())})",
            where=str(folder),
            expected="space for a checkpoint; earlier checkpoints are still complete",
            remedy="free some space, and resume with --resume_from_checkpoint true",
        ) from error


_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError that the user can fix, such as a full disk or a read-only folder, into a CheckpointError."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not _related(Path(os.fsdecode(error.filename)), path.parent)
        if error.errno not in _DISK_FAULTS or elsewhere:
            raise
        what = f"Cannot write: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
        raise CheckpointError(what, where=str(path), remedy="free some space, or choose a writable folder") from error


def _related(one: Path, other: Path) -> bool:
    """Whether two paths are equal or one contains the other."""
    one, other = one.absolute(), other.absolute()
    return one == other or one in other.parents or other in one.parents
