"""The only code that writes to disk: a reader finds the old thing or the whole new one, never half of it.

Files and folders are written beside their destination, forced to disk and renamed into place. A folder also gets a
`manifest.json` with the size and SHA-256 of each of its files, written last, so that `verify` can tell a whole folder
from a broken one.

This lives on the bottom floor, beside the errors, because several floors write (models: fetched backbones and saved
adapters; training: checkpoints; evaluation: results) and a floor may import only from those below it. What is about
training checkpoints and output folders in particular is in `rrm_lm/training/checkpoints.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
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

# ---- values -> JSON ----


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """JSON of plain values, dataclasses, enums, paths, sets and anything with `.tolist()` (NumPy, torch).

    JSON has no NaN and no infinity: a number that is not finite becomes null, so that every reader accepts the file.
    """
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(to_list := getattr(value, "tolist", None)):
        return _plain(to_list())
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


# ---- files ----


@contextlib.contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the block ends well, what is there becomes `path` in one step.

    The folders above `path` are made. If the block raises, `path` is left as it was.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    path = Path(path)
    staged = _beside(path, _STAGING)
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
    """Write `text` as UTF-8, in one step as seen by readers. Raises what `staged_file` raises."""
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON (see `json_text`), in one step. Raises what `staged_file` raises."""
    write_text(path, json_text(value) + "\n")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> None:
    """Write one JSON value a line as `rows` gives them, in one step. Raises what `staged_file` raises."""
    with staged_file(path) as staged, staged.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json_text(row, indent=None) + "\n")


# ---- folders ----


@contextlib.contextmanager
def staged_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill; when the block ends well, it becomes `path` with its manifest.

    Args:
        path: The folder to make. An empty folder may be there already.
        replace: Whether a folder that holds something may be replaced. The old one is deleted only after the new one
            is in its place.

    Raises:
        CheckpointError: `path` holds something and `replace` is off, the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    _refuse_occupied(path, replace)
    staged = _beside(path, _STAGING)
    with explained(path):
        staged.mkdir(parents=True)
        try:
            yield staged
            commit_folder(staged, path, replace=replace)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def commit_folder(staged: Path, path: Path, *, replace: bool = False) -> None:
    """Force every file of `staged` to disk, write its manifest, and rename it to `path` on the same file system.

    Raises:
        CheckpointError: `path` holds something and `replace` is off.
    """
    _refuse_occupied(path, replace)
    for folder, _, names in os.walk(staged):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    write_manifest(staged)
    displaced = None
    if path.is_dir() and any(path.iterdir()):
        displaced = _beside(path, _REPLACED)
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
    """Force every file under `staged` to disk and move it to its place under `folder`, over what is there."""
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        place = folder / file.relative_to(staged)
        place.parent.mkdir(parents=True, exist_ok=True)
        _sync(file)
        os.replace(file, place)
        _sync(place.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that an interruption leaves no half of it under its own name. A missing one is fine."""
    staged = _beside(path, _STAGING)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, staged)
    shutil.rmtree(staged, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted writers left directly in `folder`; put back a folder that was about to be replaced.

    Only for the holder of the folder's lock: another process's unfinished work looks the same.
    """
    for entry in sorted(folder.glob(".*")):
        if _REPLACED in entry.name:
            original = folder / entry.name[1 : entry.name.index(_REPLACED)]
            if original.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                logger.warning("%s was put back: the run that was replacing it was interrupted", original)
                os.rename(entry, original)
        elif _STAGING in entry.name:
            logger.info("removed what an interrupted run had not finished writing: %s", entry)
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def write_manifest(folder: Path) -> None:
    """Write the size and SHA-256 of every file under `folder` into its `manifest.json`."""
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
    write_json(folder / MANIFEST, {"format": 1, "files": files})


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """What is wrong with `folder` against its manifest: one sentence a problem, none if it is whole.

    Files that the manifest does not name are no problem: people add notes.
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
        return [f"it has no {MANIFEST}: it was never finished, or another program made it"]
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


def sha256(file: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- shared ----


def now() -> str:
    """The time in UTC to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _beside(path: Path, mark: str) -> Path:
    """A hidden name that nothing has, in the folder of `path`, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}{mark}{os.getpid()}-{secrets.token_hex(4)}")


def _refuse_occupied(path: Path, replace: bool) -> None:
    if path.exists() and not (path.is_dir() and (replace or not any(path.iterdir()))):
        raise CheckpointError(
            "The destination already holds something",
            where=str(path),
            expected="a folder that does not exist yet, or is empty",
            remedy="choose another name, or move the old one away",
        )


def _sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no way to open a folder for this
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FULL = {errno.ENOSPC, errno.EDQUOT}
# Torch and safetensors say it each in its own way; the last one is what torch says of a file that it could not end.
_FULL_TEXT = re.compile(r"No space left|Disk quota exceeded|PytorchStreamWriter failed writing|unexpected pos \d+ vs")


@contextlib.contextmanager
def report_full_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one message that the disk is full, whichever library has found it so.

    Raises:
        CheckpointError: Instead of the error of that library.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in _FULL or _FULL_TEXT.search(str(error))
        if isinstance(error, RRMError) or not full:
            raise
        raise CheckpointError(
            f"The disk is full ({' '.join(str(error).split())})",
            where=str(folder),
            expected="room for a checkpoint; those that were whole before still are",
            remedy="free some space, and go on with --resume_from_checkpoint true",
        ) from error


_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder, which only the user can mend, into a message that says so."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not _related(Path(os.fsdecode(error.filename)), path.parent)
        if error.errno not in _DISK_FAULTS or elsewhere:
            raise
        raise CheckpointError(
            f"Could not write: {error.strerror}" + (f" ({error.filename})" if error.filename else ""),
            where=str(path),
            remedy="free some space, or choose a folder that you may write to",
        ) from error


def _related(one: Path, other: Path) -> bool:
    """Whether one of two paths is the other or lies above it."""
    one, other = one.absolute(), other.absolute()
    return one == other or one in other.parents or other in one.parents
