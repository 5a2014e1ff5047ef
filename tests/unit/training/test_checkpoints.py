"""Checkpoints are whole or not there, resuming takes a whole one, and an output folder belongs to one run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import staged_folder, verify
from rrm_lm.training.checkpoints import checkpoint_to_resume, newest_verified, prune
from rrm_lm.training.output_folder import OutputFolder
from rrm_lm.training.trainer import ResumableTrainer


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def make_checkpoint(output_dir: Path, step: int, text: str = "weights") -> Path:
    folder = output_dir / f"checkpoint-{step}"
    with staged_folder(folder) as staged:
        (staged / "model.bin").write_text(text)
    return folder


class TestSave:
    def test_a_checkpoint_has_a_manifest(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 40)
        assert names(checkpoint) == ["manifest.json", "model.bin"]
        assert verify(checkpoint) == []


class TestResume:
    def test_steps_are_compared_as_numbers(self, tmp_path: Path) -> None:
        for step in (9, 100, 20):
            make_checkpoint(tmp_path, step)
        assert newest_verified(tmp_path) == tmp_path / "checkpoint-100"

    def test_what_is_broken_is_passed_over_and_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        make_checkpoint(tmp_path, 40)
        (make_checkpoint(tmp_path, 60) / "model.bin").write_text("weighty")
        (tmp_path / "checkpoint-80").mkdir()
        (tmp_path / "checkpoint-80" / "model.bin").write_text("no manifest yet")
        (tmp_path / "checkpoint-99").mkdir()
        (tmp_path / "checkpoint-100").write_text("a file")
        (tmp_path / "checkpoint-last").mkdir()
        assert newest_verified(tmp_path) == tmp_path / "checkpoint-40"
        messages = [record.getMessage() for record in caplog.records]
        assert [message.partition(": ")[0].rpartition("/")[2] for message in messages] == [
            "checkpoint-99",
            "checkpoint-80",
            "checkpoint-60",
        ]
        assert "it is empty" in messages[0]
        assert "no manifest.json" in messages[1]
        assert "model.bin changed" in messages[2]

    @pytest.mark.parametrize("there", [True, False])
    def test_no_checkpoint(self, tmp_path: Path, there: bool) -> None:
        assert newest_verified(tmp_path if there else tmp_path / "missing") is None

    @pytest.mark.parametrize("asked", [None, False, "false", "no", ""])
    def test_not_asked_for(self, tmp_path: Path, asked: str | bool | None) -> None:
        make_checkpoint(tmp_path, 40)
        assert checkpoint_to_resume(tmp_path, asked) is None

    @pytest.mark.parametrize("asked", [True, "true", "True"])
    def test_the_newest(self, tmp_path: Path, asked: str | bool) -> None:
        make_checkpoint(tmp_path, 40)
        (tmp_path / "checkpoint-99").mkdir()
        assert checkpoint_to_resume(tmp_path, asked) == tmp_path / "checkpoint-40"

    def test_the_newest_where_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            checkpoint_to_resume(tmp_path, True)

    def test_one_by_name_must_be_whole(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 40)
        assert checkpoint_to_resume(tmp_path / "elsewhere", str(checkpoint)) == checkpoint
        (checkpoint / "model.bin").unlink()
        with pytest.raises(CheckpointError, match=r"model\.bin is missing"):
            checkpoint_to_resume(tmp_path, str(checkpoint))


class TestPrune:
    def left(self, tmp_path: Path) -> list[int]:
        return sorted(int(name.removeprefix("checkpoint-")) for name in names(tmp_path))

    @pytest.mark.parametrize(("limit", "left"), [(None, [9, 10, 100]), (0, [9, 10, 100]), (2, [10, 100]), (1, [100])])
    def test_the_oldest_go(self, tmp_path: Path, limit: int | None, left: list[int]) -> None:
        for step in (10, 9, 100):
            make_checkpoint(tmp_path, step)
        prune(tmp_path, limit)
        assert self.left(tmp_path) == left

    def test_the_best_and_the_last_stay(self, tmp_path: Path) -> None:
        folders = {step: make_checkpoint(tmp_path, step) for step in (20, 40, 60)}
        prune(tmp_path, 1, keep=[folders[60], folders[20]])
        assert self.left(tmp_path) == [20, 60]

    def test_a_branch_that_was_left_goes_first(self, tmp_path: Path) -> None:
        folders = {step: make_checkpoint(tmp_path, step) for step in (20, 40, 60, 80)}
        prune(tmp_path, 2, keep=[folders[40]])  # resumed at 20, just saved 40: 60 and 80 are of the run before
        assert self.left(tmp_path) == [20, 40]


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


class Line(nn.Module):
    """y = w x, with dropout so that random states matter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predictions = self.layer(self.dropout(x)).squeeze(-1)
        return {"loss": (predictions - labels).pow(2).mean(), "logits": predictions}


class LineTrainer(ResumableTrainer, Trainer):
    def save_weights(self, folder: Path, write: bool) -> None:
        assert isinstance(self.model, Line)
        save_model(self.model, str(folder / "model.safetensors"))

    def load_weights(self, folder: Path) -> None:
        assert isinstance(self.model, Line)
        load_model(self.model, folder / "model.safetensors")

    @property
    def weight(self) -> torch.Tensor:
        assert isinstance(self.model, Line)
        return self.model.layer.weight


def line_trainer(output_dir: Path, callbacks: list[TrainerCallback] | None = None, **options: Any) -> LineTrainer:
    torch.manual_seed(0)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    data = [{"x": row, "labels": row.sum()} for row in x]
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=6,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    return LineTrainer(Line(), arguments, train_dataset=data, eval_dataset=data[:8], callbacks=callbacks)  # pyright: ignore[reportArgumentType]


class TestTrainer:
    def test_every_checkpoint_has_all_of_the_trainers_state_and_verifies(self, tmp_path: Path) -> None:
        line_trainer(tmp_path).train()
        assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
        for step in (2, 4, 6):
            checkpoint = tmp_path / f"checkpoint-{step}"
            assert verify(checkpoint) == []
            state = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
            assert state <= set(names(checkpoint))
            assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step

    def test_resuming_passes_over_a_broken_checkpoint_and_equals_an_uninterrupted_run(self, tmp_path: Path) -> None:
        whole = line_trainer(tmp_path / "whole")
        whole.train()
        line_trainer(tmp_path / "cut").train()
        (tmp_path / "cut" / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
        (tmp_path / "cut" / "checkpoint-99").mkdir()
        resumed = line_trainer(tmp_path / "cut")
        seen: list[int] = []

        class Steps(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                seen.append(state.global_step)

        resumed.add_callback(Steps())
        resumed.train(resume_from_checkpoint=True)
        assert seen == [5, 6]
        assert torch.equal(resumed.weight, whole.weight)
        assert verify(tmp_path / "cut" / "checkpoint-6") == []  # the broken one was replaced

    def test_an_interruption_while_saving_leaves_no_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = line_trainer(tmp_path)

        def crash(output_dir: str) -> None:
            assert (Path(output_dir) / "model.safetensors").exists()
            raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "_save_rng_state", crash)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert [name for name in names(tmp_path) if not name.startswith(".")] == []
        assert trainer._get_output_dir(None) == str(tmp_path)
        line_trainer(tmp_path).train()  # what was left is no obstacle
        assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]

    def test_the_best_checkpoint_is_known_by_its_final_name_and_kept(self, tmp_path: Path) -> None:
        class Worsen(TrainerCallback):
            """After step 2 every evaluation is worse, so that the first checkpoint stays the best."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step > 2:
                    with torch.no_grad():
                        kwargs["model"].layer.weight.add_(100.0)

        trainer = line_trainer(
            tmp_path,
            [Worsen()],
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            save_total_limit=2,
        )
        trainer.train()
        assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
        for step in (2, 6):
            state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
            assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
            assert verify(tmp_path / f"checkpoint-{step}") == []
        assert trainer.weight.max() < 50  # the best model was loaded again at the end

    def test_an_upload_waits_for_the_final_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pushed: list[str] = []

        def push(self: Trainer, checkpoint_folder: str) -> None:
            assert verify(checkpoint_folder) == []
            pushed.append(checkpoint_folder)

        monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
        monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: None)
        monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)
        line_trainer(tmp_path, push_to_hub=True, hub_model_id="nobody/nothing").train()
        assert pushed == [str(tmp_path / f"checkpoint-{step}") for step in (2, 4, 6)]
