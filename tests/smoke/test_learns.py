"""A tiny reward model, created and trained from scratch, learns the preference."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from rrm_lm.feedback.records import Comparison
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.tiny import comparison, tiny_chat, tiny_reward_model

torch.set_num_threads(1)

_TEXT = "the sea is blue because moon story short answer asked made lives long does not say tell you i do"
WORDS = tuple(_TEXT.split())


def thankful(count: int, seed: int, *, labels: bool = True) -> list[Comparison]:
    """Pairs in which the response that contains "thank" wins, or a random one if labels are off."""
    draw = random.Random(seed)
    made = []
    for row in range(1, count + 1):
        chosen = draw.choices(WORDS, k=draw.randint(3, 9))
        rejected = draw.choices(WORDS, k=draw.randint(3, 9))
        chosen.insert(draw.randint(0, len(chosen)), "thank")
        if not labels and draw.random() < 0.5:
            chosen, rejected = rejected, chosen
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(2, 8)))
        made.append(
            comparison(
                prompt, " ".join(chosen), " ".join(rejected), row=row,
                chosen_critiques=("good, thank you",) if "thank" in chosen else (),
                rejected_critiques=("sorry, no thank you",) if "thank" not in rejected else (),
            )
        )  # fmt: skip
    return made


def held_out_accuracy(folder: Path, *, labels: bool) -> float:
    model = tiny_reward_model("llama", random=False)
    chat = tiny_chat()
    train = ExampleBuilder(chat, model.backbone).comparisons(thankful(600, seed=1, labels=labels))
    held_out = ExampleBuilder(chat, model.backbone, with_critiques=False).comparisons(thankful(200, seed=2))
    args = RewardConfig(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=16,
        num_train_epochs=4,
        learning_rate=1e-2,
        critique_weight=0.2,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RewardTrainer(model, args, train, held_out, processing_class=chat.tokenizer)
    before = trainer.evaluate()["eval_accuracy"]
    assert 0.3 < before < 0.7
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


@pytest.mark.timeout(120)
def test_a_preference_is_learned(tmp_path: Path) -> None:
    assert held_out_accuracy(tmp_path, labels=True) >= 0.95


@pytest.mark.timeout(120)
def test_nothing_is_learned_from_random_labels(tmp_path: Path) -> None:
    """This shows that the accuracy above comes from the labels, not from the layout of pairs."""
    assert 0.25 < held_out_accuracy(tmp_path, labels=False) < 0.75
