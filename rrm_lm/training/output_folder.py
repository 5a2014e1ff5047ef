"""The output folder of a run: one run at a time, no foreign files, and resumed only by the same run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rrm_lm.errors import CheckpointError
from rrm_lm.locks import Owner, lock
from rrm_lm.storage import clear_leftovers, json_text, now, read_object, remove_folder, write_json
from rrm_lm.training.checkpoints import has_checkpoint

logger = logging.getLogger(__name__)

RUN_RECORD = "run.json"
_LOCK = ".lock"


class OutputFolder:
    """The folder of one run, locked during the run and never mixed with foreign files.

    Use it as a context manager; it yields the folder's path. `run.json` records the command and how the run ended.
    Hidden files are ignored. In a distributed run, all processes must wait until the active one has entered before they
    read the folder: it repairs or removes what an interrupted run left.

    Args:
        command: The command that writes it, for example `rrm-lm reward`. A folder of another command is refused.
        identity: What identifies the run, for example the model, the data and the settings. Resuming with another
            identity is an error that names each difference; entries that the earlier run lacks are not compared.
        allow_change: Whether another identity is only a warning; None if there is no such option.
        resume: Whether to continue in a folder that this command wrote.
        origin: The output folder of the run to resume, if it is a different one.
        overwrite: Whether to delete the files of an earlier run of this command. Foreign files are never deleted.
        active: False in all processes of a distributed run except the one that writes; it disables checks and the lock.
        deferred: Start the run when `begin` is called, not on entering. Until then, the files of an earlier run stay,
            for example if the input turns out to be invalid.

    Raises:
        CheckpointError: On entering: the folder is in use, or contains files that this run must not touch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        command: str,
        identity: Mapping[str, Any] | None = None,
        allow_change: bool | None = None,
        resume: bool = False,
        origin: Path | None = None,
        overwrite: bool = False,
        active: bool = True,
        deferred: bool = False,
    ) -> None:
        self.path = Path(path)
        self.command = command
        self.identity: dict[str, Any] = json.loads(json_text(dict(identity or {})))
        self.allow_change, self.origin = allow_change, origin
        self.resume, self.overwrite, self.active, self.deferred = resume, overwrite, active, deferred
        self._begun = False
        self._owner = Owner.this_process()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Path:
        if not self.active:
            return self.path
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError("The output folder is a file", where=str(self.path), remedy="name another folder")
        self._refuse_foreign()  # before locking, so that a foreign folder gets no lock file
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(self.path / _LOCK, what="The output folder"))
            self._refuse_occupied()
            if self.origin is not None and (earlier := _record_in(self.origin)) is not None:
                self._refuse_other_identity(earlier["identity"])
            if not self.deferred:
                self.begin()
            self._held = stack.pop_all()
        return self.path

    def begin(self) -> None:
        """Delete the files of an earlier run if `overwrite` is set, and record that this run has started."""
        if not self.active or self._begun:
            return
        if self.overwrite and not self.resume:
            for entry in self._contents():
                if entry.is_dir() and not entry.is_symlink():
                    remove_folder(entry)
                else:
                    entry.unlink()
        self._begun = True
        self._record(ended=None, outcome="running")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._held:
            if not self._begun:
                return
            outcome = "finished" if kind is None else f"stopped by {kind.__name__}"
            try:
                self._record(ended=now(), outcome=outcome)
            except KeyboardInterrupt:  # a launcher sends SIGTERM while a process stops because another has failed
                self._record(ended=now(), outcome=outcome)
                raise
            except CheckpointError as fault:
                if kind is None:
                    raise
                logger.warning("could not record how the run ended: %s", fault)  # must not mask the run's own error

    def _contents(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted(e for e in self.path.iterdir() if e.name != RUN_RECORD and not e.name.startswith("."))

    def _refuse_foreign(self) -> None:
        contents, earlier = self._contents(), _record_in(self.path)
        if not contents or (earlier is not None and earlier.get("command") == self.command):
            return
        names = ", ".join(entry.name for entry in contents[:5]) + (", ..." if len(contents) > 5 else "")
        if earlier is None:
            raise CheckpointError(
                f"The output folder holds files that no run of this program made: {names}",
                where=str(self.path),
                expected="a new folder, an empty one, or that of an earlier run",
                remedy="choose another --output_dir, or move these files away",
            )
        raise CheckpointError(
            f"The output folder holds what `{earlier.get('command')}` made, and this is `{self.command}`: {names}",
            where=str(self.path),
            remedy="choose another --output_dir, or delete the folder if it is not needed",
        )

    def _refuse_occupied(self) -> None:
        self._refuse_foreign()  # again: another run may have written files since the check before the lock
        clear_leftovers(self.path)
        contents, earlier = self._contents(), _record_in(self.path)
        if not contents or earlier is None:
            return
        if self.resume:
            self._refuse_other_identity(earlier["identity"])
        elif not self.overwrite:
            resumable = "resume that run with --resume_from_checkpoint true, " if has_checkpoint(self.path) else ""
            raise CheckpointError(
                f"The output folder holds an earlier run of `{self.command}`, started {earlier.get('started')} "
                f"({earlier.get('outcome')})",
                where=str(self.path),
                remedy=f"choose another --output_dir, {resumable}or replace it with --overwrite_output_dir true",
            )

    def _refuse_other_identity(self, earlier: Mapping[str, Any]) -> None:
        differences = [
            f"{name} was {earlier[name]!r} and is {self.identity.get(name)!r}"
            for name in sorted(earlier)
            if earlier[name] != self.identity.get(name)
        ]
        if differences and self.allow_change:
            logger.warning("resuming although the run is not the same: %s", "; ".join(differences))
        elif differences:
            allowing = "" if self.allow_change is None else "pass --allow_config_change true to resume anyway, "
            raise CheckpointError(
                f"The run to resume is another one: {'; '.join(differences)}",
                where=str(self.path),
                remedy=f"resume with the settings of that run, {allowing}or choose another --output_dir",
            )

    def _record(self, *, ended: str | None, outcome: str) -> None:
        from rrm_lm import __version__

        record = {
            "program": "rrm_lm",
            "version": __version__,
            "command": self.command,
            "command_line": self._owner.command,
            "identity": self.identity,
            "pid": self._owner.pid,
            "host": self._owner.host,
            "started": self._owner.started,
            "ended": ended,
            "outcome": outcome,
        }
        write_json(self.path / RUN_RECORD, record)


def _record_in(folder: Path) -> dict[str, Any] | None:
    """The record of the run that wrote a folder, or None if no run of this program did."""
    record = read_object(folder / RUN_RECORD)
    return record if record.get("program") == "rrm_lm" and isinstance(record.get("identity"), dict) else None
