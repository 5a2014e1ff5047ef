"""Checkpoints of any trainer are whole or absent, and resuming from one equals a run that was not interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rrm_lm.storage import verify
from rrm_lm.training.trainer import ResumableTrainer


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


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
