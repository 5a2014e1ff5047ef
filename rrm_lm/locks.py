"""Who works in a folder: one process at a time, and who it is.

Beside `storage.py`, near the ground: caches, feedback files, agents of a tree and output folders are all locked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import explained, now, write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock, or made a run: enough for a person to find the process."""

    pid: int
    host: str
    started: str
    command: str

    @classmethod
    def this_process(cls) -> Owner:
        """The owner that this process is."""
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
        return cls(os.getpid(), socket.gethostname(), now(), command)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}: {self.command}"


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], *, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; the system frees it if this process dies.

    Args:
        path: The lock file. Beside it, `<path>.owner.json` says who holds it; a dead holder's is taken over.
        what: What is being locked, for messages: "The output folder", "The model cache".
        wait: Seconds to wait for another holder before giving up.

    Raises:
        CheckpointError: Somebody else holds it, with their process, machine, start time and command.
    """
    import filelock

    path = Path(path)
    owner_file = path.with_name(path.name + ".owner.json")
    holder = filelock.FileLock(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            holder.acquire(timeout=0)
        except filelock.Timeout:
            if wait > 0:
                logger.info("%s is in use; waiting for it (%s)", what, _read_owner(owner_file))
            try:
                holder.acquire(timeout=wait, poll_interval=0.2)
            except filelock.Timeout:
                raise CheckpointError(
                    f"{what} is in use by another run: {_read_owner(owner_file)}",
                    where=str(path.parent),
                    remedy="wait for that run to end, or stop it; its lock ends with it",
                ) from None
    try:
        if owner_file.exists():
            logger.warning("took over %s: its holder ended without giving it back (%s)", path, _read_owner(owner_file))
        write_json(owner_file, Owner.this_process())
        try:
            yield
        finally:
            owner_file.unlink(missing_ok=True)
    finally:
        holder.release()


def _read_owner(file: Path) -> str:
    try:
        return str(Owner(**json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        # Between taking the lock and writing the owner file there is a moment with no name.
        return "a process that has not said who it is yet"
