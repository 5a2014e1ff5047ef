"""SFT and RLOO with TRL's trainers, on one process or on two that hold half of the model each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.models.agent import POLICY
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.saving.policies import Policy, PolicySettings
from rrm_lm.models.sharding import gather, run_as_forward
from rrm_lm.training.reward.examples import FitCounts
from rrm_lm.training.reward_sources import AdapterReward, PythonReward, RewardSum
from rrm_lm.training.rloo.trainer import RLOOTrainer
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.sft.trainer import Imitation, SFTTrainer, imitations, response_nll, to_imitate
from tests.distributed.processes import share_held
from tests.tiny import lora, some_comparisons, tiny_chat, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting

STEPS: dict[str, Any] = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


def policy(layers: int, name: str) -> Policy:
    """A policy with a nonzero adapter."""
    model = tiny_model(layers=layers)
    model.name_or_path = name
    backbone = Backbone(model, pad_id=0)
    torch.manual_seed(1)
    backbone.add_adapter(POLICY, lora())
    return Policy(backbone, tiny_chat(), POLICY)


def learned(backbone: Backbone) -> dict[str, Tensor]:
    found = gather(dict(adapter_parameters(backbone, POLICY)))
    return {name: tensor.clone() for name, tensor in found.items()}


def logged(made: Any, key: str, names: Sequence[str]) -> list[dict[str, float]]:
    entries = [entry for entry in made.state.log_history if key in entry]
    return [{n: float(value) for n, value in entry.items() if n.startswith(tuple(names))} for entry in entries]


# -- imitation --------------------------------------------------------------------------------------------------------


def to_learn() -> list[Imitation]:
    return imitations(CHAT, to_imitate(Feedback.of(some_comparisons(13, critiques=False)), ["chosen"]), FitCounts())


def sft_on(folder: Path, base: Path, layers: int, processes: int, **more: Any) -> dict[str, Any]:
    """Four steps of at most eight responses of different lengths; their results, and the saved policy."""
    start = policy(layers, str(base))
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,  # of 13: the last batch of a pass is uneven, and empty on one of two processes
        "learning_rate": 0.02,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = SFTConfig(**{**settings, **STEPS, **more})
    made = SFTTrainer(start, args, to_learn(), settings=PolicySettings(str(base), method="sft"))
    made.train()
    root: Any = made.accelerator.unwrap_model(made.model)
    found: dict[str, Any] = {"learned": learned(start.backbone), "share": share_held(root)}
    found["logs"] = logged(made, "loss", ["loss", "grad_norm"])
    start.backbone.eval()
    lines = [example.line for example in to_learn()[:3]]
    nll = run_as_forward(root, response_nll, start.backbone, POLICY, lines)
    found["nll"] = [float(tokens.mean()) for tokens in nll]
    made.save_model(str(folder / "saved"))
    return found


# -- RLOO -------------------------------------------------------------------------------------------------------------


def rloo_on(folder: Path, base: Path, layers: int, processes: int, **more: Any) -> dict[str, Any]:
    """Three updates of eight episodes; one of two rewards is an ensemble on the policy's own backbone."""
    start = policy(layers, str(base))
    own = RewardModel.create(start.backbone, lora(), RewardSettings("tiny", ensemble_heads=3))
    own.requires_grad_(False)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8 // processes,
        "samples_per_prompt": 2,
        "micro_batch_tokens": 60,
        "rollout_batch_tokens": 40,
        "max_steps": 3,
        "temperature": 0.5,
        "stop_token_id": 352,  # which this model often writes
        "missing_eos_penalty": 0.5,
        "max_kl": 100.0,
        "learning_rate": 0.001,
    }
    rewards = RewardSum([AdapterReward(own), PythonReward(counting)], [0.5, 1.0])
    made = RLOOTrainer(start, config(folder, **{**settings, **STEPS, **more}), rewards, PROMPTS)
    made.train()
    found: dict[str, Any] = {"learned": learned(start.backbone), "share": share_held(start.backbone.model)}
    found["logs"] = logged(made, "objective/kl", ["objective/", "reward", "disagreement/", "val/"])
    made.save_model(str(folder / "saved"))
    return found


RUNS: dict[str, Callable[..., dict[str, Any]]] = {"sft": sft_on, "rloo": rloo_on}
