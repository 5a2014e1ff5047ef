"""Files on disk are never partially written, and broken files are detected."""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm import locks, storage
from rrm_lm.errors import CheckpointError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def make_folder(path: Path, **files: str) -> Path:
    with storage.staged_folder(path) as staged:
        for name, text in files.items():
            (staged / name).write_text(text)
    return path


class TestJson:
    def test_values_beyond_plain_ones(self) -> None:
        @dataclasses.dataclass
        class Point:
            x: float
            names: tuple[str, ...]

        class Colour(enum.Enum):
            RED = "red"

        value = {"p": Point(1.5, ("a", "b")), "path": Path("a/b"), "set": {"b", "a"}, "c": Colour.RED, 3: None}
        assert json.loads(storage.json_text(value)) == {
            "p": {"x": 1.5, "names": ["a", "b"]},
            "path": "a/b",
            "set": ["a", "b"],
            "c": "red",
            "3": None,
        }

    def test_numpy_values_and_numbers_that_are_not_finite(self) -> None:
        value = {
            "a": np.float32(0.5),
            "b": np.arange(3),
            "c": np.float64("nan"),
            "d": [math.inf, 1],
            "e": np.bool_(True),
        }
        assert json.loads(storage.json_text(value)) == {"a": 0.5, "b": [0, 1, 2], "c": None, "d": [None, 1], "e": True}

    def test_text_is_kept_readable(self) -> None:
        assert storage.json_text("größer") == '"größer"'

    def test_a_value_that_cannot_be_written_is_refused_and_the_old_file_stays(self, tmp_path: Path) -> None:
        storage.write_json(tmp_path / "a.json", {"old": 1})
        with pytest.raises(TypeError, match="object"):
            storage.write_json(tmp_path / "a.json", {"new": object()})
        assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


class TestFiles:
    def test_write_text_makes_folders_and_leaves_only_the_file(self, tmp_path: Path) -> None:
        storage.write_text(tmp_path / "a" / "b" / "c.txt", "one\ntwo\n")
        assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"one\ntwo\n"
        assert names(tmp_path / "a" / "b") == ["c.txt"]

    def test_jsonl_has_one_line_a_row(self, tmp_path: Path) -> None:
        storage.write_jsonl(tmp_path / "rows.jsonl", ({"n": n, "text": "a\nb"} for n in range(3)))
        lines = (tmp_path / "rows.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"n": n, "text": "a\nb"} for n in range(3)]

    def test_a_failure_half_way_keeps_the_old_file_and_leaves_nothing_behind(self, tmp_path: Path) -> None:
        storage.write_text(tmp_path / "a.jsonl", "old")

        def rows():
            yield 1
            raise RuntimeError("half way")

        with pytest.raises(RuntimeError, match="half way"):
            storage.write_jsonl(tmp_path / "a.jsonl", rows())
        assert (tmp_path / "a.jsonl").read_text() == "old"
        assert names(tmp_path) == ["a.jsonl"]

    def test_bytes_are_forced_to_disk_before_the_name_appears(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[str] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
        monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
        storage.write_text(tmp_path / "a.txt", "text")
        assert events == ["fsync", "rename", "fsync"]  # the bytes, then the name, then the folder that has the name

    def test_a_full_disk_is_explained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        storage.write_text(tmp_path / "a.txt", "old")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
            storage.write_text(tmp_path / "a.txt", "new")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_a_parent_that_is_a_file_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="Cannot write: File exists"):
            storage.write_text(tmp_path / "file" / "a.txt", "text")

    def test_a_fault_of_another_file_is_not_blamed_on_the_destination(self, tmp_path: Path) -> None:
        with pytest.raises(PermissionError), storage.staged_file(tmp_path / "here" / "a.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "elsewhere" / "secret"))


def cut(folder: Path) -> None:
    (folder / "weights").write_text("wei")


def change_a_byte(folder: Path) -> None:
    (folder / "weights").write_text("weighty"[:7])


def remove_a_file(folder: Path) -> None:
    (folder / "weights").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"weights": 3}}')


def empty(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()


def remove_all(folder: Path) -> None:
    empty(folder)
    folder.rmdir()


class TestFolders:
    def test_a_whole_folder_verifies_and_its_manifest_names_every_file(self, tmp_path: Path) -> None:
        with storage.staged_folder(tmp_path / "model") as staged:
            assert not (tmp_path / "model").exists()
            (staged / "shards").mkdir()
            (staged / "shards" / "1.bin").write_bytes(b"\0" * 10)
            (staged / "config.json").write_text("{}")
        manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
        assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
            "config.json": 2,
            "shards/1.bin": 10,
        }
        assert manifest["files"]["config.json"]["sha256"].startswith("44136fa355b3678a")  # of "{}", from sha256sum
        assert storage.verify(tmp_path / "model") == []
        assert names(tmp_path) == ["model"]

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            (cut, "weights has 3 bytes instead of 7"),
            (change_a_byte, "the contents of weights changed"),
            (remove_a_file, "weights is missing"),
            (remove_the_manifest, "no manifest.json"),
            (break_the_manifest, "manifest.json cannot be read"),
            (empty, "empty"),
            (remove_all, "no such folder"),
        ],
    )
    def test_damage_is_found_and_named(self, tmp_path: Path, damage: Callable[[Path], None], found: str) -> None:
        folder = make_folder(tmp_path / "model", weights="weights")
        damage(folder)
        (problem,) = storage.verify(folder)
        assert found in problem

    def test_a_file_added_later_is_no_damage(self, tmp_path: Path) -> None:
        folder = make_folder(tmp_path / "model", weights="weights")
        (folder / "notes.txt").write_text("mine")
        assert storage.verify(folder) == []

    @given(position=st.integers(0, 999), flip=st.integers(1, 255))
    def test_any_changed_byte_is_found(self, position: int, flip: int) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_folder(Path(temporary) / "model", weights="w" * 1000)
            data = bytearray((folder / "weights").read_bytes())
            data[position] ^= flip
            (folder / "weights").write_bytes(data)
            assert len(storage.verify(folder)) == 1

    def test_a_failure_half_way_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), storage.staged_folder(tmp_path / "model") as staged:
            (staged / "weights").write_text("half")
            raise RuntimeError
        assert names(tmp_path) == []

    def test_the_manifest_comes_after_the_bytes_and_before_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(folder: Path) -> None:
            assert (folder / "weights").exists()
            assert not (tmp_path / "model").exists()
            raise KeyboardInterrupt

        monkeypatch.setattr(storage, "write_manifest", crash)
        with pytest.raises(KeyboardInterrupt):
            make_folder(tmp_path / "model", weights="w")
        assert names(tmp_path) == []

    def test_what_is_there_is_refused_before_any_work(self, tmp_path: Path) -> None:
        make_folder(tmp_path / "model", weights="old")
        with pytest.raises(CheckpointError, match="is not empty"), storage.staged_folder(tmp_path / "model"):
            pytest.fail("the block must not run")
        assert (tmp_path / "model" / "weights").read_text() == "old"

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        make_folder(tmp_path / "model", weights="new")
        assert storage.verify(tmp_path / "model") == []

    def test_replacing_swaps_old_for_new(self, tmp_path: Path) -> None:
        make_folder(tmp_path / "model", weights="old", extra="old")
        with storage.staged_folder(tmp_path / "model", replace=True) as staged:
            (staged / "weights").write_text("new")
        assert names(tmp_path / "model") == ["manifest.json", "weights"]
        assert storage.verify(tmp_path / "model") == []
        assert names(tmp_path) == ["model"]

    def test_a_failed_replacement_puts_the_old_one_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_folder(tmp_path / "model", weights="old")
        rename = os.rename

        def fail_on_the_new_one(source: Path, target: Path) -> None:
            if ".staging-" in str(source):
                raise OSError(errno.EIO, "Input/output error")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail_on_the_new_one)
        with (
            pytest.raises(OSError, match="Input/output"),
            storage.staged_folder(tmp_path / "model", replace=True) as staged,
        ):
            (staged / "weights").write_text("new")
        assert (tmp_path / "model" / "weights").read_text() == "old"
        assert storage.verify(tmp_path / "model") == []

    def test_leftovers_are_removed_and_a_displaced_folder_is_put_back(self, tmp_path: Path) -> None:
        make_folder(tmp_path / ".gone.replaced-1-ab", weights="old")
        make_folder(tmp_path / "there", weights="new")
        make_folder(tmp_path / ".there.replaced-1-ab", weights="old")
        (tmp_path / ".half.staging-1-cd").mkdir()
        (tmp_path / ".a.txt.staging-1-cd").write_text("half")
        (tmp_path / ".hidden").write_text("mine")
        storage.clear_leftovers(tmp_path)
        assert names(tmp_path) == [".hidden", "gone", "there"]
        assert (tmp_path / "gone" / "weights").read_text() == "old"
        assert (tmp_path / "there" / "weights").read_text() == "new"

    def test_removing(self, tmp_path: Path) -> None:
        make_folder(tmp_path / "model", weights="w")
        storage.remove_folder(tmp_path / "model")
        storage.remove_folder(tmp_path / "model")
        assert names(tmp_path) == []


LOCAL = -1  # instead of an error number
HOLD = textwrap.dedent("""
    import fcntl, os, sys
    from rrm_lm import locks

    def no_lock_service(fd, operation):
        raise OSError(error, os.strerror(error))

    error = int(sys.argv[2])
    if error == -1:
        locks._locks_are_local, fcntl.flock = lambda path: True, lambda fd, operation: None
    elif error:
        fcntl.flock = no_lock_service
    with locks.lock(sys.argv[1], what="The folder"):
        print("held", flush=True)
        sys.stdin.read()
""")


def hold_elsewhere(path: Path, error: int = 0) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin closes; its flock fails with `error`, unless that is 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(error)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("error", [0, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, LOCAL])
@pytest.mark.filterwarnings("ignore:flock not supported")
class TestLock:
    """Also on a shared folder whose file system has no flock, which then fails with `error`, or has it for each machine
    alone (`LOCAL`), so that two processes get it.
    """

    @pytest.fixture(autouse=True)
    def no_lock_service(self, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(fd: int, operation: int) -> None:
            raise OSError(error, os.strerror(error))

        if error == LOCAL:
            monkeypatch.setattr(locks, "_locks_are_local", lambda path: True)
            monkeypatch.setattr("fcntl.flock", lambda fd, operation: None)
        elif error:
            monkeypatch.setattr("fcntl.flock", flock)

    def test_a_held_lock_is_refused_with_its_holders_name(self, error: int, tmp_path: Path) -> None:
        holder = hold_elsewhere(tmp_path / ".lock", error)
        try:
            with pytest.raises(CheckpointError) as caught, locks.lock(tmp_path / ".lock", what="The folder"):
                pytest.fail("the lock must not be given twice")
            assert f"The folder is in use by another run: process {holder.pid} on " in str(caught.value)
        finally:
            holder.communicate("")
        with locks.lock(tmp_path / ".lock", what="The folder"):
            assert "pid" in json.loads((tmp_path / ".lock.owner.json").read_text())
        assert not (tmp_path / ".lock.owner.json").exists()

    def test_the_lock_of_a_killed_process_is_taken_over(
        self, error: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        holder = hold_elsewhere(tmp_path / ".lock", error)
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        with locks.lock(tmp_path / ".lock", what="The folder", wait=60):
            assert json.loads((tmp_path / ".lock.owner.json").read_text())["pid"] == os.getpid()
        assert f"process {holder.pid}" in caplog.text

    def test_waiting_for_the_holder(self, error: int, tmp_path: Path) -> None:
        holder = hold_elsewhere(tmp_path / ".lock", error)
        assert holder.stdin is not None
        holder.stdin.close()  # it ends by itself now, a moment later
        with locks.lock(tmp_path / ".lock", what="The folder", wait=60):
            assert json.loads((tmp_path / ".lock.owner.json").read_text())["pid"] == os.getpid()
        holder.wait()

    def test_it_is_given_back_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), locks.lock(tmp_path / ".lock", what="The folder"):
            raise RuntimeError
        with locks.lock(tmp_path / ".lock", what="The folder"):
            pass


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("nfs", "rw,vers=3,nolock,addr=10.0.0.1", True),
        ("nfs", "rw,vers=3,local_lock=flock", True),
        ("nfs4", "rw,vers=4.2,local_lock=all", True),
        ("nfs4", "rw,vers=4.2,local_lock=none", False),
        ("nfs", "rw,vers=3,local_lock=posix", False),
        ("ext4", "rw,nolock", False),
    ],
)
def test_nfs_with_local_locks_is_recognized(kind: str, options: str, expected: bool, tmp_path: Path) -> None:
    """In the format of /proc/mounts; of several mounts, the one that holds the folder."""
    shared = tmp_path / "shared folder"
    (shared / "run").mkdir(parents=True)
    place = str(shared).replace(" ", "\\040")
    lines = [
        "/dev/sda / ext4 rw 0 0",
        f"server:/y {place} {'ext4 rw' if expected else 'nfs rw,nolock'} 0 0",  # the later mount hides it
        f"server:/x {place} {kind} {options} 0 0",
        f"server:/y {place}2 nfs rw,nolock 0 0",
        "odd",
    ]
    mounts = tmp_path / "mounts"
    mounts.write_text("\n".join(lines))
    assert locks._locks_are_local(shared / "run" / ".lock", mounts) is expected
    (tmp_path / "link").symlink_to(shared / "run")
    assert locks._locks_are_local(tmp_path / "link" / ".lock", mounts) is expected
    assert not locks._locks_are_local(tmp_path / "elsewhere" / ".lock", mounts)
    assert not locks._locks_are_local(shared / ".lock", tmp_path / "no mounts")
