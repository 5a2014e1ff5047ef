"""An append-only JSON Lines file of answers that are expensive to get, written as they arrive."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO, Any

from rrm_lm import storage
from rrm_lm.errors import CheckpointError

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


class Journal:
    """Questions and answers. The first line names the source of the answers; each further line is one answer. A last
    line that was cut short is dropped when the file is reopened. Use it as a context manager, in one process at a time.
    Without a `path`, the answers are kept in memory only.
    """

    def __init__(self, path: Path | None, header: Entry) -> None:
        self.path, self.header = path, header
        self.entries: list[Entry] = []
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        """Read the existing answers and open the file for appending. Raises CheckpointError if the file is broken,
        holds answers from another source, or cannot be written.
        """
        if self.path is None:
            return self
        with storage.explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+b")
            self._stream.seek(0)
            content = self._stream.read()
            complete = content.rfind(b"\n") + 1
            if complete < len(content):
                logger.info("%s: dropped the last line, which was cut short", self.path)
                self._stream.truncate(complete)
        try:
            self._read(content[:complete])
            if complete == 0:
                self._write(self.header)
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, entry: Entry) -> None:
        """Append one answer and flush it: only a crash of the whole machine can lose it. Raises CheckpointError if the
        disk is full or cannot be written.
        """
        self._write(entry)
        self.entries.append(entry)

    def _read(self, text: bytes) -> None:
        for row, line in enumerate(text.splitlines(), start=1):
            entry: Any = None
            try:
                entry = json.loads(line)
                problem = "" if isinstance(entry, dict) else f"a {type(entry).__name__}"
            except ValueError as error:
                problem = str(error)
            if problem:
                raise CheckpointError(
                    f"An answer cannot be read ({problem})",
                    where=f"{self.path}, row {row}",
                    expected="one JSON object per line, as this program writes it",
                    remedy="remove the line: its question is asked again",
                )
            if row > 1:
                self.entries.append(entry)
            elif entry != self.header:
                names = dict.fromkeys([*self.header, *entry])
                different = [
                    f"{name} is {entry.get(name)!r} and not {self.header.get(name)!r}"
                    for name in names
                    if entry.get(name) != self.header.get(name)
                ]
                raise CheckpointError(
                    f"The file holds answers from another source: {', '.join(different)}",
                    where=str(self.path),
                    expected=storage.json_text(self.header, indent=None),
                    remedy="collect into another file, or move this one and its feedback away",
                )

    def _write(self, entry: Entry) -> None:
        if self._stream is None or self.path is None:
            return
        with storage.explained(self.path):
            self._stream.write(storage.json_text(entry, indent=None).encode() + b"\n")
            self._stream.flush()
