"""One process at a time in a folder: locks for caches, feedback files, agents of a tree and output folders."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import explained, now, write_json

if TYPE_CHECKING:
    import filelock

logger = logging.getLogger(__name__)

# What flock says on an NFS mount without a lock service; filelock itself handles ENOSYS (Lustre without `-o flock`).
_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP)


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lock or started a run, described so that a person can find it."""

    pid: int
    host: str
    started: str
    command: str

    @classmethod
    def this_process(cls) -> Owner:
        """This process as an owner."""
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
        return cls(os.getpid(), socket.gethostname(), now(), command)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}: {self.command}"


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], *, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` during the block; the system releases it if this process dies.

    On a file system without flock, or where other machines do not see it, the lock is the existence of `<path>.soft`.
    If its holder is killed, it stays until the next process of the same machine finds the holder gone, or until a
    person deletes it.

    Args:
        path: The lock file. `<path>.owner.json` describes its holder; the file of a dead process is replaced.
        what: What is locked, for messages: "The output folder", "The model cache".
        wait: Seconds to wait for another holder.

    Raises:
        CheckpointError: Another process holds it; the message gives the process, machine, start time and command.
    """
    path = Path(path)
    owner_file = path.with_name(path.name + ".owner.json")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = _acquire(path, owner_file, what, wait)
    try:
        if owner_file.exists():
            logger.warning("took over %s: its holder ended without releasing it (%s)", path, _read_owner(owner_file))
        write_json(owner_file, Owner.this_process())
        try:
            yield
        finally:
            owner_file.unlink(missing_ok=True)
    finally:
        holder.release()


def _acquire(path: Path, owner_file: Path, what: str, wait: float) -> filelock.BaseFileLock:
    import filelock

    holder: filelock.BaseFileLock = filelock.FileLock(path)
    remedy = "wait for that run to end, or stop it; its lock ends with it"
    try:
        why = "this file system is mounted with local locks" if _locks_are_local(path) else ""
        try:
            if not why:
                holder.acquire(timeout=0)
        except OSError as error:
            if error.errno not in _NO_FLOCK:  # a timeout has no number
                raise
            why = f"this file system has no flock ({error.strerror})"
        if why:
            soft = path.with_name(path.name + ".soft")
            logger.warning("%s: %s; %s is the lock", path.parent, why, soft)
            remedy = f"wait for that run to end; if it was killed on another machine, delete {soft}"
            holder = filelock.SoftFileLock(soft)
            holder.acquire(timeout=0)
    except filelock.Timeout:
        if wait > 0:
            logger.info("%s is in use; waiting (%s)", what, _read_owner(owner_file))
        try:
            holder.acquire(timeout=wait, poll_interval=0.2)
        except filelock.Timeout:
            raise CheckpointError(
                f"{what} is in use by another run: {_read_owner(owner_file)}", where=str(path.parent), remedy=remedy
            ) from None
    return holder


def _locks_are_local(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether flock succeeds although other machines do not see it: on NFS that is mounted with `nolock` or
    `local_lock` (nfs(5)). False where the mounts cannot be read.
    """
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    except OSError:
        return False
    folder = os.path.realpath(path.parent)
    found = ("", "", "")  # the mount that holds the folder: the longest path, and of equal ones the last
    for _, where, kind, options, *_ in (line for line in lines if len(line) >= 4):
        place = re.sub(r"\\(\d{3})", lambda match: chr(int(match.group(1), 8)), where)  # a space is written as \040
        if os.path.commonpath([place, folder]) == place and len(place) >= len(found[0]):
            found = (place, kind, options)
    local = {"nolock", "local_lock=all", "local_lock=flock"}
    return found[1].startswith("nfs") and not local.isdisjoint(found[2].split(","))


def _read_owner(file: Path) -> str:
    try:
        return str(Owner(**json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        # The owner file is written a moment after the lock is taken.
        return "a process that has not written its name yet"
