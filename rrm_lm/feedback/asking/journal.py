"""Answers that cost something to get, kept one by one as they come: a JSON Lines file that is only ever added to."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rrm_lm import storage
from rrm_lm.errors import CheckpointError

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


class Journal:
    """What was asked and answered. The first line says whom the answers are from; each further line is one answer.

    A line that an interruption cut short is dropped when the file is opened again. To be used as a context, by one
    process at a time.

    Args:
        path: The file; None keeps the answers in memory alone.
        header: Whom the answers are from.
    """

    def __init__(self, path: Path | None, header: Entry) -> None:
        self.path, self.header = path, header
        self.entries: list[Entry] = []
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        """Read what is there, and open the file to add to it.

        Raises:
            CheckpointError: The file is broken, holds answers from somebody else, or cannot be written.
        """
        if self.path is None:
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+b")
            self._stream.seek(0)
            whole = self._stream.read()
            kept = whole.rfind(b"\n") + 1
            if kept < len(whole):
                logger.info("%s: the last line was cut short and is left out", self.path)
                self._stream.truncate(kept)
        except OSError as error:
            raise self._failed("opened", error) from error
        try:
            self._read(whole[:kept])
            if kept == 0:
                self._write(self.header)
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, entry: Entry) -> None:
        """Keep one answer; it is handed to the system at once, so that only a crash of the whole machine loses it.

        Raises:
            CheckpointError: The disk is full or cannot be written.
        """
        self._write(entry)
        self.entries.append(entry)

    def _read(self, text: bytes) -> None:
        for row, line in enumerate(text.splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise self._broken(row, str(error)) from None
            if not isinstance(entry, dict):
                raise self._broken(row, f"a {type(entry).__name__}")
            if row > 1:
                self.entries.append(entry)
            elif entry != self.header:
                raise CheckpointError(
                    f"The file holds answers from another source: {', '.join(_different(entry, self.header))}",
                    where=str(self.path),
                    expected=storage.json_text(self.header, indent=None),
                    remedy="collect into another file, or move this one and its feedback away",
                )

    def _write(self, entry: Entry) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(storage.json_text(entry, indent=None).encode() + b"\n")
            self._stream.flush()
        except OSError as error:
            raise self._failed("written", error) from error

    def _failed(self, how: str, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"The file of answers cannot be {how}: {error.strerror}",
            where=str(self.path),
            remedy="free some space, or choose a folder that you may write to; answers so far are kept",
        )

    def _broken(self, row: int, what: str) -> CheckpointError:
        return CheckpointError(
            f"An answer cannot be read ({what})",
            where=f"{self.path}, row {row}",
            expected="one JSON object a line, as this program writes it",
            remedy="remove the line: its question is asked again",
        )


def _different(found: Entry, wanted: Entry) -> Iterator[str]:
    for name in dict.fromkeys([*wanted, *found]):
        if found.get(name) != wanted.get(name):
            yield f"{name} is {found.get(name)!r} and not {wanted.get(name)!r}"
