"""QLoRA with FSDP2: two processes (gloo, on the CPU) that share a backbone in 4 bit train as one process does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.launch.signals import exit_process
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.settings.models import ModelArguments, quantized
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.distributed.processes import launch, shard_on_cpu, share_held
from tests.distributed.test_sharded import (
    LAYERS,
    MOST,
    close,
    learned,
    losses,
    policy_on,
    reward_examples,
    scores,
)
from tests.tiny import save_tiny_model, tiny_chat, tiny_reward_model
from tests.tiny_policy import tiny_agent

torch.set_num_threads(1)


def in_four_bits(base: Path) -> Any:
    """The backbone, as `--load_in_4bit true` loads it in this launch."""
    return load_causal_lm(str(base), dtype="float32", **quantized(ModelArguments(load_in_4bit=True, dtype="float32")))


def trained_reward(folder: Path, base: Path, processes: int) -> dict[str, Any]:
    model = tiny_reward_model(model=in_four_bits(base), base_model=str(base))
    args = RewardConfig(
        str(folder),
        use_cpu=True,
        per_device_train_batch_size=4 // processes,
        micro_batch_tokens=100,
        max_steps=4,
        optim="sgd",
        learning_rate=0.02,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    made = RewardTrainer(model, args, reward_examples(model), processing_class=tiny_chat().tokenizer)
    made.train()
    made.save_model(str(folder))
    return {"losses": losses(made), "learned": learned(model), "share": share_held(model)}


def trained_policy(folder: Path, base: Path, processes: int) -> dict[str, Any]:
    agent = tiny_agent(value="adapter", reward=True, model=in_four_bits(base))
    found = policy_on(folder, processes, agent=agent)
    return {name: found[name] for name in ("learned", "share", "logs")}


def both(folder: Path, base: Path, processes: int) -> dict[str, Any]:
    return {
        "reward": trained_reward(folder / "reward", base, processes),
        "policy": trained_policy(folder / "policy", base, processes),
    }


@pytest.mark.timeout(240)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes, which `make test` installs")
    base = save_tiny_model(tmp_path / "base", layers=LAYERS)
    launch(__file__, tmp_path)
    one = both(tmp_path / "one", base, 1)
    for found in [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]:
        assert found["reward"]["share"] <= MOST and found["policy"]["share"] <= MOST
        close(found["reward"]["losses"], one["reward"]["losses"], 1e-5)
        close(found["reward"]["learned"], one["reward"]["learned"], 1e-4)
        close(found["policy"]["learned"], one["policy"]["learned"], 1e-4)
        # Sharded or not, the saved model is loaded in 4 bit and gives the same rewards.
        plain = load_scorer(str(tmp_path / "two" / "reward"), micro_batch_tokens=1, dtype="float32")
        assert found["scores"] == scores(plain)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    shard_on_cpu()
    result = both(out / "two", out / "base", 2)
    fresh: Any = load_scorer(str(out / "two" / "reward"), micro_batch_tokens=1, dtype="float32", shard=True)
    assert share_held(fresh.model) <= MOST
    torch.save(result | {"scores": scores(fresh)}, out / f"rank{torch.distributed.get_rank()}.pt")
    exit_process(0)
