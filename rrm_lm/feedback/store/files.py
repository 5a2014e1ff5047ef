"""A store of feedback on disk: a SQLite file in WAL mode whose table of events is only ever appended to.

An event that `append` returned is on disk (`synchronous=FULL`), and a killed process leaves whole events only. Several
processes may write. `request` makes a repeated write harmless: the same request is stored once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rrm_lm import storage
from rrm_lm.errors import CheckpointError, DataError
from rrm_lm.feedback.store.events import ITEM, Event, Item, State

SUFFIX = ".db"
MAGIC = b"SQLite format 3\0"
APPLICATION = int.from_bytes(b"rrmf")  # marks SQLite files of this kind (PRAGMA application_id)
WAIT = 30.0  # seconds to wait for another process that writes
# Each script leads from one version of the schema to the next; a new store runs all of them.
MIGRATIONS = (
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, person TEXT NOT NULL, kind TEXT NOT NULL,
        item TEXT NOT NULL, body TEXT NOT NULL, request TEXT UNIQUE
    ) STRICT;
    CREATE TRIGGER no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    CREATE TRIGGER no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
    CREATE TABLE properties (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    """,
)
_COLUMNS = "id, time, person, kind, item, body"


def is_store(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a store: an existing file, by its suffix."""
    path = Path(name).expanduser()
    return path.suffix.lower() == SUFFIX and path.is_file()


class Store:
    """An open store; a context manager. Safe to use from several threads.

    Args:
        path: The file. It is created, readable by its owner only, if `create` is set.
        create: Whether to create a missing file.
        writable: Whether to open it for writing; a store of an older schema is then migrated.

    Raises:
        DataError: No such file, not a store of feedback, or one of a newer version.
        CheckpointError: The disk is full, or the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False, writable: bool = True) -> None:
        self.path = Path(path).expanduser()
        if create and not self.path.exists():
            with storage.explained(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._check_file()
        writable = writable or bool(self.path.with_name(self.path.name + "-wal").exists())
        mode = "rw" if writable and os.access(self.path, os.W_OK) else "ro"
        still = "&immutable=1" if mode == "ro" and not os.access(self.path.parent, os.W_OK) else ""
        self._lock = threading.RLock()
        self._state, self._seen = State(), 0
        with self._explained():
            self._connection = sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?mode={mode}{still}",
                uri=True,
                timeout=WAIT,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare(mode)
            except BaseException:
                self._connection.close()
                raise

    def _check_file(self) -> None:
        if not self.path.is_file():
            remedy = "check the path; rrm-lm ask and rrm-lm feedback import create a store"
            raise DataError("there is no such store of feedback", where=str(self.path), remedy=remedy)
        with self.path.open("rb") as file:
            begin = file.read(len(MAGIC))
        if begin not in (b"", MAGIC):
            raise self._foreign("the file is not a SQLite file")

    def _foreign(self, what: str) -> DataError:
        remedy = "name another file; a new one is created"
        return DataError(what, where=str(self.path), expected="a store that rrm-lm wrote", remedy=remedy)

    def _prepare(self, mode: str) -> None:
        run = self._connection.execute
        application, version = (run(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        tables = run("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application != APPLICATION and (application or version or tables):
            raise self._foreign("the SQLite file belongs to another program")
        if version > len(MIGRATIONS):
            what = f"the store has version {version} and this program reads up to {len(MIGRATIONS)}"
            raise DataError(what, where=str(self.path), remedy="install a newer version of rrm_lm")
        if mode == "ro":
            if not tables:
                raise self._foreign("the store is empty")
            return
        for statement in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            run(f"PRAGMA {statement}")
        if version < len(MIGRATIONS):
            with self._transaction():
                version = run("PRAGMA user_version").fetchone()[0]  # another process may have migrated it meanwhile
                for script in MIGRATIONS[version:]:
                    for statement in _statements(script):
                        run(statement)
                run("INSERT OR IGNORE INTO properties VALUES ('id', ?)", (secrets.token_hex(8),))
                run(f"PRAGMA application_id={APPLICATION}")
                run(f"PRAGMA user_version={len(MIGRATIONS)}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            what, remedy = f"The store cannot be used: {error}", "free some space, or choose a writable folder"
            raise CheckpointError(f"{what}; nothing was saved", where=str(self.path), remedy=remedy) from error
        except sqlite3.DatabaseError as error:
            remedy = "restore a copy, or merge what is left: sqlite3 BROKEN .recover"
            raise DataError(f"the store is damaged ({error})", where=str(self.path), remedy=remedy) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._connection.close()

    @property
    def id(self) -> str:
        """A random name of this store, which its copies share."""
        with self._lock, self._explained():
            return self._connection.execute("SELECT value FROM properties WHERE name = 'id'").fetchone()[0]

    def append(
        self, kind: str, *, person: str = "", item: str = "", body: Mapping[str, Any] | None = None, request: str = ""
    ) -> tuple[int, bool]:
        """Store an event; returns its number, and whether it is new: an event with the same `request` is not repeated.
        Raises CheckpointError: it was not stored.
        """
        now = storage.now()
        return self.append_all([(Event(0, now, person, kind, item, body or {}), request)])[0]

    def append_all(self, events: Sequence[tuple[Event, str]]) -> list[tuple[int, bool]]:
        """Store events with their times, each with its request, all or none; returns as `append`."""
        with self._transaction():
            return [self._insert(event, request) for event, request in events]

    def add_items(self, items: Sequence[Item]) -> int:
        """Store items that are not in the store yet; returns how many are new."""
        events = [(Event(0, storage.now(), "", ITEM, item.id, item.to_dict()), f"item:{item.id}") for item in items]
        return sum(new for _, new in self.append_all(events))

    def _insert(self, event: Event, request: str) -> tuple[int, bool]:
        if request:
            known = self._connection.execute("SELECT id FROM events WHERE request = ?", (request,)).fetchone()
            if known is not None:
                return known[0], False
        body = json.dumps(storage.plain(event.body))
        values = (event.time, event.person, event.kind, event.item, body, request or None)
        statement = "INSERT INTO events (time, person, kind, item, body, request) VALUES (?, ?, ?, ?, ?, ?)"
        return int(self._connection.execute(statement, values).lastrowid or 0), True

    def events(self, after: int = 0) -> list[Event]:
        """The events whose number is above `after`, oldest first."""
        query = f"SELECT {_COLUMNS} FROM events WHERE id > ? ORDER BY id"
        with self._lock, self._explained():
            rows = self._connection.execute(query, (after,)).fetchall()
        return [Event(n, time, who, kind, item, json.loads(body)) for n, time, who, kind, item, body in rows]

    def state(self) -> State:
        """The current state, with what other processes wrote. Later events make another one."""
        with self._lock:
            new = self.events(self._seen)
            self._state = self._state.after(new)
            self._seen = new[-1].id if new else self._seen
            return self._state


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, for `execute`: `executescript` would commit the transaction around them."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
