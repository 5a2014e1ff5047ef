"""Short PPO runs on tiny agents, and helpers to compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrm_lm.feedback.records import Prompt
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward_sources import PythonReward
from tests.tiny import lora, prompt_of, tiny_chat, tiny_model

CHAT = tiny_chat()
PROMPTS = [
    prompt_of(f"what is the {word} made of?") for word in ("moon", "sea", "story about the sea", "answer", "sun")
]


def tiny_agent(
    family: str = "llama",
    *,
    value: str = "head",
    reward: bool = False,
    random: bool = True,
    dropout: float = 0.0,
    sharing: bool | None = None,
    seed: int = 0,
    layers: int = 2,
    attention: str = "sdpa",
    model: Any = None,
) -> AgentModel:
    """An agent on a tiny backbone; the same arguments give the same weights."""
    torch.manual_seed(seed + 1)
    model = model if model is not None else tiny_model(family, seed=seed, layers=layers, attention=attention)
    backbone = Backbone(model, pad_id=0, sharing=sharing)
    agent = AgentModel.create(backbone, lora(family, random=random, dropout=dropout), value=value)
    if reward:
        agent.add_reward(RewardModel.create(backbone, lora(family), RewardSettings("tiny")))
    with torch.no_grad():
        for parameter in agent.value_head.parameters():  # it is initialized to zero, which would hide errors
            parameter.normal_(std=0.1)
    return agent


def config(folder: Path, **more: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "response_length": 6,
        "temperature": 1.0,
        "max_steps": 2,
        "num_ppo_epochs": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "num_sample_generations": 0,
        "max_kl": None,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return PPOConfig(**{**settings, **more})


def counting(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """A reward that differs between responses: their characters, and how many of them are vowels."""
    return [len(text) / 10 - sum(text.count(vowel) for vowel in "aeiou") / 3 for text in responses]


def trainer(folder: Path, agent: AgentModel | None = None, **more: Any) -> PPOTrainer:
    """A trainer on tiny prompts; `more` has settings, and arguments of the trainer."""
    own = {name: more.pop(name) for name in ("rewards", "train_dataset", "eval_dataset", "callbacks") if name in more}
    agent = agent if agent is not None else tiny_agent()
    own.setdefault("rewards", [] if agent.has_reward else [PythonReward(counting)])
    own.setdefault("train_dataset", PROMPTS)
    return PPOTrainer(config(folder, **more), CHAT.tokenizer, agent, chat=CHAT, **own)


def state(agent: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}


def written(responses: Sequence[Sequence[int]]) -> Callable[..., list[list[list[int]]]]:
    """A replacement for an agent's `roll_out` that cycles through these responses."""
    place = 0

    def roll_out(prompts: Sequence[Any], sampling: Any, *, num_return: int = 1, **_: Any) -> list[list[list[int]]]:
        nonlocal place
        found = []
        for _prompt in prompts:
            found.append([list(responses[(place + k) % len(responses)]) for k in range(num_return)])
            place += num_return
        return found

    return roll_out


TIMES = ("eps", "tokens_per_second")


def logs(trainer: PPOTrainer) -> list[dict[str, Any]]:
    """The log without times."""
    return [
        {key: value for key, value in entry.items() if not key.startswith("time/") and key not in TIMES}
        for entry in trainer.state.log_history
        if "objective/kl" in entry
    ]
