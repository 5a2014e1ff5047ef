"""An output folder belongs to one run, which may begin only once its input is known to be good."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.errors import CheckpointError, Interrupted
from rrm_lm.training import output_folder
from rrm_lm.training.output_folder import OutputFolder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


ALL_OPTIONS: list[dict[str, Any]] = [{}, {"resume": True}, {"overwrite": True}]

HOLD = textwrap.dedent("""
    import sys
    from rrm_lm.training.output_folder import OutputFolder
    with OutputFolder(sys.argv[1], command="rrm-lm reward") as folder:
        (folder / "begun.txt").write_text("begun")
        print("held", flush=True)
        sys.stdin.read()
""")


def run_elsewhere(folder: Path) -> subprocess.Popen[str]:
    """A run in another process, in progress until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def finished_run(path: Path, command: str = "rrm-lm reward", **options: Any) -> Path:
    with OutputFolder(path, command=command, **options) as folder:
        (folder / "model.bin").write_text("weights")
    return path


class TestOutputFolder:
    def test_a_new_folder_records_its_run(self, tmp_path: Path) -> None:
        with OutputFolder(tmp_path / "a" / "run", command="rrm-lm reward", identity={"model": "m"}) as folder:
            assert folder == tmp_path / "a" / "run"
            assert json.loads((folder / "run.json").read_text())["outcome"] == "running"
        record = json.loads((folder / "run.json").read_text())
        assert (record["command"], record["identity"], record["outcome"]) == (
            "rrm-lm reward",
            {"model": "m"},
            "finished",
        )
        assert record["ended"] >= record["started"]

    def test_how_a_run_stopped_is_recorded_and_the_lock_is_free_again(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path / "run", command="rrm-lm reward"):
            raise ZeroDivisionError
        assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"] == "stopped by ZeroDivisionError"
        finished_run(tmp_path / "run")  # it had written nothing, so it is not in the way

    def test_a_run_in_progress_is_refused_with_its_process(self, tmp_path: Path) -> None:
        other = run_elsewhere(tmp_path / "run")
        try:
            for options in ALL_OPTIONS:
                with pytest.raises(CheckpointError, match=f"in use by another run: process {other.pid} on "):
                    finished_run(tmp_path / "run", **options)
            assert (tmp_path / "run" / "begun.txt").read_text() == "begun"
        finally:
            other.communicate("")

    def test_a_killed_run_can_be_resumed(self, tmp_path: Path) -> None:
        other = run_elsewhere(tmp_path / "run")
        (tmp_path / "run" / ".checkpoint.staging-trainer").mkdir()
        other.send_signal(signal.SIGKILL)
        other.communicate()
        with OutputFolder(tmp_path / "run", command="rrm-lm reward", resume=True) as folder:
            assert (folder / "begun.txt").exists()
            assert not (folder / ".checkpoint.staging-trainer").exists()

    def test_files_of_something_else_are_never_touched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        for options in ALL_OPTIONS:
            with pytest.raises(CheckpointError, match=r"no run of this program made: thesis\.tex"):
                finished_run(tmp_path, **options)
        assert names(tmp_path) == ["thesis.tex"]
        assert (tmp_path / "thesis.tex").read_text() == "years of work"

    def test_another_programs_run_record_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"program": "other"}')
        (tmp_path / "model.bin").write_text("theirs")
        with pytest.raises(CheckpointError, match="no run of this program made"):
            finished_run(tmp_path, overwrite=True)
        assert (tmp_path / "model.bin").read_text() == "theirs"

    @pytest.mark.parametrize("options", ALL_OPTIONS)
    def test_what_another_command_made_is_refused(self, tmp_path: Path, options: dict[str, Any]) -> None:
        finished_run(tmp_path / "run", command="rrm-lm reward")
        with pytest.raises(CheckpointError, match="holds what `rrm-lm reward` made, and this is `rrm-lm evaluate`"):
            finished_run(tmp_path / "run", command="rrm-lm evaluate", **options)
        assert (tmp_path / "run" / "model.bin").exists()

    def test_an_earlier_run_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        finished_run(tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"holds an earlier run .*finished.*--overwrite_output_dir true"):
            finished_run(tmp_path / "run")
        assert (tmp_path / "run" / "model.bin").exists()

    def test_overwriting_deletes_the_earlier_run_but_no_hidden_files(self, tmp_path: Path) -> None:
        finished_run(tmp_path / "run")
        (tmp_path / "run" / "checkpoint-1").mkdir()
        (tmp_path / "run" / ".gitignore").write_text("*")
        with OutputFolder(tmp_path / "run", command="rrm-lm reward", overwrite=True) as folder:
            assert {name for name in names(folder) if not name.startswith(".lock")} == {".gitignore", "run.json"}

    def test_resuming_keeps_everything(self, tmp_path: Path) -> None:
        finished_run(tmp_path / "run", identity={"model": "m", "data": ["a", "b"]})
        with OutputFolder(
            tmp_path / "run", command="rrm-lm reward", resume=True, identity={"model": "m", "data": ("a", "b")}
        ) as folder:
            assert (folder / "model.bin").exists()

    def test_resuming_another_run_is_refused_with_the_differences(self, tmp_path: Path) -> None:
        finished_run(tmp_path / "run", identity={"model": "m", "seed": 1, "data": "a"})
        with pytest.raises(CheckpointError, match=r"data was 'a' and is 'b'; seed was 1 and is None\."):
            finished_run(tmp_path / "run", resume=True, identity={"model": "m", "data": "b"})

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("")
        with pytest.raises(CheckpointError, match="is a file"):
            finished_run(tmp_path / "run")

    def test_other_processes_of_a_run_neither_check_nor_lock(self, tmp_path: Path) -> None:
        with (
            OutputFolder(tmp_path / "run", command="rrm-lm reward"),
            OutputFolder(tmp_path / "run", command="rrm-lm reward", active=False) as folder,
        ):
            assert folder == tmp_path / "run"


# -- a run that begins later -----------------------------------------------------------------------------------------


def visible(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}


def folder_of(path: Path, **options: Any) -> OutputFolder:
    return OutputFolder(path, command="rrm-lm reward", **{"overwrite": True, "deferred": True, **options})


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with the results of a run."""
    with OutputFolder(tmp_path / "run", command="rrm-lm reward") as folder:
        (folder / "model.bin").write_text("weights")
        (folder / "checkpoint-1").mkdir()
    return folder


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_there_stays_until_the_run_begins(fails: bool, earlier: Path) -> None:
    record = (earlier / "run.json").read_text()
    try:
        with folder_of(earlier):
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert visible(earlier) == {"model.bin", "checkpoint-1", "run.json"}
    assert (earlier / "run.json").read_text() == record  # nor did a run take place


def test_beginning_replaces_it(earlier: Path) -> None:
    folder = folder_of(earlier, identity={"model": "m"})
    with folder:
        folder.begin()
        assert visible(earlier) == {"run.json"}
        assert json.loads((earlier / "run.json").read_text())["outcome"] == "running"
        (earlier / "model.bin").write_text("new")
        folder.begin()  # a second time does nothing
        assert (earlier / "model.bin").read_text() == "new"
    record = json.loads((earlier / "run.json").read_text())
    assert (record["outcome"], record["identity"]) == ("finished", {"model": "m"})


def test_beginning_again_where_a_run_was_keeps_it(earlier: Path) -> None:
    folder = folder_of(earlier, overwrite=True, resume=True)
    with folder:
        folder.begin()
    assert visible(earlier) == {"model.bin", "checkpoint-1", "run.json"}


def test_refusals_do_not_wait(earlier: Path) -> None:
    with pytest.raises(CheckpointError, match="holds an earlier run"), folder_of(earlier, overwrite=False):
        pytest.fail("entered")
    with folder_of(earlier), pytest.raises(CheckpointError, match="in use"), folder_of(earlier):
        pytest.fail("entered")


def test_resuming_is_offered_only_where_it_can_be_done(earlier: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume_from_checkpoint"), folder_of(earlier, overwrite=False):
        pytest.fail("entered")
    (earlier / "checkpoint-1").rmdir()
    with pytest.raises(CheckpointError) as caught, folder_of(earlier, overwrite=False):
        pytest.fail("entered")
    assert "--resume" not in str(caught.value) and "--overwrite_output_dir true" in str(caught.value)


def test_a_process_that_does_not_write_changes_nothing(earlier: Path) -> None:
    folder = folder_of(earlier, active=False)
    with folder:
        folder.begin()
    assert visible(earlier) == {"model.bin", "checkpoint-1", "run.json"}


def test_a_signal_while_the_outcome_is_written_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the launcher stops this process, which is already ending because of another's failure."""
    folder, write, interrupts = folder_of(tmp_path / "out"), output_folder.write_json, [Interrupted(signal.SIGTERM)]

    def interrupted(path: Path, record: Any) -> None:
        if record["ended"] and interrupts:
            raise interrupts.pop()
        write(path, record)

    monkeypatch.setattr(output_folder, "write_json", interrupted)
    with pytest.raises(Interrupted), folder:
        folder.begin()
        raise RuntimeError("closed by peer")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["outcome"] == "stopped by RuntimeError" and record["ended"] and not interrupts
