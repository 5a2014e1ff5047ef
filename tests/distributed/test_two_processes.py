"""Two real processes (gloo, on the CPU) train the same model as one, and exchange only gradients of trained weights."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from rrm_lm.launch.signals import exit_process
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.distributed.processes import counting_bytes, launch
from tests.tiny import critique, rating, some_comparisons, tiny_chat, tiny_reward_model

torch.set_num_threads(1)


class CountBytes(TrainerCallback):
    """Counts the bytes that the second step sends."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.found: dict[str, int] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.found = self.stack.enter_context(counting_bytes())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stack.close()


def train(folder: Path, processes: int, *callbacks: TrainerCallback, resume: Path | None = None) -> RewardTrainer:
    """Two epochs over 21 pieces of feedback in steps of eight, unevenly split over processes and micro-batches."""
    model, chat = tiny_reward_model(), tiny_chat()
    builder = ExampleBuilder(chat, model.backbone)
    examples = builder.comparisons(some_comparisons(15)) + builder.responses(
        [critique(f"sea {n}?", "yes " * n, "too long", row=n) for n in range(1, 4)],
        [rating(f"moon {n}?", "no " * n, 0.3, row=n) for n in range(1, 4)],
    )
    args = RewardConfig(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4 // processes,
        gradient_accumulation_steps=2,
        micro_batch_tokens=100,
        num_train_epochs=2,
        optim="sgd",
        learning_rate=0.02,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        disable_tqdm=True,
    )
    trainer = RewardTrainer(model, args, examples, processing_class=chat.tokenizer, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def learned(trainer: RewardTrainer) -> dict[str, torch.Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch(__file__, tmp_path)
    one = train(tmp_path / "one", 1)
    both = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    begun = dict(tiny_reward_model().named_parameters())
    for name, parameter in learned(one).items():
        assert float((parameter - begun[name]).detach().abs().max()) > 1e-5
        for other in both:
            torch.testing.assert_close(other["learned"][name], parameter, atol=4e-6, rtol=0)
    logged = [entry for entry in one.state.log_history if "loss" in entry]
    assert len(logged) == 6
    for mine, theirs in zip(both[0]["logs"], logged, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        for key in ("loss_pairs", "loss_ratings", "loss_critiques", "accuracy", "margin", "tokens"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=2e-4), key
    fresh = tiny_reward_model()
    fresh.load_adapter_state(tmp_path / "two" / "checkpoint-6")
    for name, value in both[0]["learned"].items():
        assert torch.equal(dict(fresh.named_parameters())[name], value)
        assert all(torch.equal(other["again"][name], value) for other in both)  # on from the middle, bit for bit
    # Only what is trained travels, and it travels once a step; beside it a few counts.
    trained = sum(4 * parameter.numel() for parameter in learned(one).values())
    assert trained < 0.5 * sum(4 * parameter.numel() for parameter in one.model.parameters())
    for other in both:
        assert trained <= sum(other["bytes"].values()) <= trained + 200, other["bytes"]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    count = CountBytes()
    made = train(out / "two", 2, count)
    assert made.accelerator.num_processes == 2
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    found = {"learned": learned(made), "logs": logs, "bytes": count.found}
    found["again"] = learned(train(out / "again", 2, resume=out / "two" / "checkpoint-3"))
    torch.save(found, out / f"rank{made.accelerator.process_index}.pt")
    exit_process(0)
