"""An acknowledged event is on disk: after SIGKILL, with two writers, on a full disk. Other files are refused."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rrm_lm.errors import CheckpointError, DataError
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store import files
from rrm_lm.feedback.store.events import ANSWER, Item
from rrm_lm.feedback.store.files import Store

ITEM = Item((Message("user", "Capital of Norway?"),), ("Rome.", "Oslo."))
SKIP = {"verdict": "skip"}
# Forks a child for each kill: starting Python fifty times would take most of the time.
WRITER = """
import os, sys
from rrm_lm.feedback.store.files import Store
while True:
    sys.stdin.readline()
    if (child := os.fork()) == 0:
        with Store(sys.argv[1], create=True) as store:
            number = 0
            while True:
                number, _ = store.append("answer", person="anna", item="x", body={"demonstration": "word " * 400})
                os.write(1, b"%d\\n" % number)
    os.write(1, b"child %d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def numbers(path: Path) -> list[int]:
    with Store(path, writable=False) as store:
        assert all(event.body["demonstration"] == "word " * 400 for event in store.events())
        return [event.id for event in store.events()]


def test_no_acknowledged_answer_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path, rng = tmp_path / "feedback.db", random.Random(0)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    acknowledged: list[int] = []
    try:
        for kill in range(50):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            child = 0
            while not child:
                line = process.stdout.readline()
                child = int(line.split()[1]) if line.startswith(b"child") else 0
                acknowledged += [] if child else [int(line)]
            if kill % 2:  # while it is writing for sure, however slow the machine is
                acknowledged.append(int(process.stdout.readline()))
            time.sleep(rng.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline()) != b"dead\n":
                acknowledged.append(int(line))
    finally:
        process.kill()
        process.wait()
    found = numbers(path)
    assert len(acknowledged) > 20 and set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + 50  # a killed process may have stored one that it did not acknowledge
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    stores = [Store(path, create=True), Store(path, create=True)]

    def write(store: Store, person: str) -> None:
        for n in range(40):
            store.append(ANSWER, person=person, item=str(n), body=SKIP)

    threads = [threading.Thread(target=write, args=pair) for pair in zip(stores, ("anna", "ben"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        assert len(store.state().answers("anna")) == len(store.state().answers("ben")) == 40
        with store:
            pass


def test_a_repeated_request_is_stored_once(tmp_path: Path) -> None:
    with Store(tmp_path / "feedback.db", create=True) as store:
        first = store.append(ANSWER, person="anna", item="x", body=SKIP, request="form 1")
        assert store.append(ANSWER, person="anna", item="x", body=SKIP, request="form 1") == (first[0], False)
        assert store.add_items([ITEM, ITEM]) == 1 and store.add_items([ITEM]) == 0
        assert list(store.state().items) == [ITEM.id]


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store(path, create=True) as store:
        store.append(ANSWER, person="anna", item="x", body={"demonstration": "kept"})
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(CheckpointError, match=r"full; nothing was saved.*free some space"):
            store.append(ANSWER, person="anna", item="y", body={"demonstration": "x" * 100_000})
        assert [event.item for event, _ in store.state().answers()] == ["x"]
        store._connection.execute("PRAGMA max_page_count=1000000")
        store.append(ANSWER, person="anna", item="y", body=SKIP)
    with Store(path, writable=False) as store:
        assert [event.item for event, _ in store.state().answers()] == ["x", "y"]


def test_events_are_never_changed(tmp_path: Path) -> None:
    with Store(tmp_path / "feedback.db", create=True) as store:
        store.append(ANSWER, person="anna", item="x", body=SKIP)
        for statement in ("DELETE FROM events", "UPDATE events SET person = 'ben'"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                store._connection.execute(statement)


def test_durability_and_permissions(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "feedback.db"
    with Store(path, create=True) as store:
        values = {
            name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        }
        assert values == {"journal_mode": "wal", "synchronous": 2}
    assert path.stat().st_mode & 0o077 == 0


def _other_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events (id INTEGER)")
    connection.close()


def _newer(path: Path) -> None:
    with Store(path, create=True) as store:
        store._connection.execute(f"PRAGMA user_version={len(files.MIGRATIONS) + 1}")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such store"),
        (lambda path: path.write_text("prompt,chosen\n"), "not a SQLite file"),
        (lambda path: path.write_bytes(files.MAGIC + b"broken" * 100), "damaged|not a database"),
        (_other_program, "belongs to another program"),
        (_newer, "newer version"),
    ],
)
def test_other_files_are_refused_and_left_as_they_are(make: object, what: str, tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(DataError, match=what):
        Store(path)
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("version", range(1, len(files.MIGRATIONS) + 1))
def test_a_store_of_every_earlier_version_opens(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feedback.db"
    with monkeypatch.context() as earlier:
        earlier.setattr(files, "MIGRATIONS", files.MIGRATIONS[:version])
        with Store(path, create=True) as store:
            store.append(ANSWER, person="anna", item="x", body=SKIP)
    with Store(path) as store:
        assert len(store.state().answers("anna")) == 1


def test_a_later_migration_keeps_the_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feedback.db"
    with Store(path, create=True) as store:
        store.append(ANSWER, person="anna", item="x", body=SKIP)
    monkeypatch.setattr(files, "MIGRATIONS", (*files.MIGRATIONS, "ALTER TABLE events ADD COLUMN more TEXT;"))
    with Store(path) as store:
        assert len(store.state().answers()) == 1
        assert store._connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_store_in_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feedback.db"
    with Store(path, create=True) as store:
        store.add_items([ITEM])
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with Store(path, writable=False) as store:
        assert list(store.state().items) == [ITEM.id]
