"""What `policy.py` measures: TRL's PPO, ours, and ours doing exactly TRL's update; one iteration per call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl.experimental.ppo import PPOConfig as TrlConfig
from trl.experimental.ppo import PPOTrainer as TrlTrainer
from trl.experimental.ppo import ppo_trainer as trl_module

from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, load_sequence_classifier
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.prompts import PromptItem
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.ppo.trainer import PPOTrainer

MODEL, NEW_TOKENS = "smollm2-135m", 32
# Listed, because "all-linear" would include TRL's classification heads.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Prompts = Sequence[Sequence[int]]  # the token ids of each


@dataclass(frozen=True)
class Case:
    """One case of the benchmark.

    Attributes:
        prompts: Different prompts.
        epochs: PPO epochs.
        samples: Episodes per prompt.
    """

    prompts: Prompts
    epochs: int
    samples: int = 1

    @property
    def episodes(self) -> int:
        return len(self.prompts) * self.samples


@dataclass
class PhaseClock:
    """Seconds of one iteration, in total and by phase."""

    seconds: dict[str, float]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=TARGETS)


def settings(folder: str, case: Case, micro_batch: int | None = None) -> dict[str, Any]:
    """Settings of both sides: fp32, no recomputation, no token that ends a response early."""
    size = micro_batch or case.episodes
    return {
        "output_dir": folder, "total_episodes": case.episodes, "per_device_train_batch_size": size,
        "gradient_accumulation_steps": case.episodes // size, "num_ppo_epochs": case.epochs,
        "response_length": NEW_TOKENS, "temperature": 0.7, "learning_rate": 1e-5, "lr_scheduler_type": "constant",
        "bf16": False, "gradient_checkpointing": False, "num_sample_generations": 0, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip


def trl_models() -> dict[str, Any]:
    """The four roles of TRL's trainer; the reference is the policy without its adapter."""
    return {
        "model": load_causal_lm(MODEL, dtype="float32"),
        "ref_model": None,
        "reward_model": load_sequence_classifier(MODEL, dtype="float32", num_labels=1),
        "value_model": load_sequence_classifier(MODEL, dtype="float32", num_labels=1),
        "peft_config": lora(),
    }


def rows(case: Case) -> Dataset:
    """The prompts in TRL's format."""
    return Dataset.from_dict({"input_ids": [list(prompt) for prompt in case.prompts]})


class Trl:
    """TRL's trainer. Its time is measured by wrapping the functions that its `train` method calls.

    Attributes:
        responses: Its last responses, by prompt.
    """

    def __init__(self, folder: str, case: Case, micro_batch: int) -> None:
        tokenizer: Any = load_tokenizer(MODEL)
        config = TrlConfig(**settings(folder, case, micro_batch), local_rollout_forward_batch_size=case.episodes)
        self.pad = int(tokenizer.pad_token_id)
        self.trainer: Any = TrlTrainer(config, tokenizer, train_dataset=rows(case), **trl_models())
        self.trainer.remove_callback(PrinterCallback)
        self.responses: dict[tuple[int, ...], list[int]] = {}

    def __call__(self, case: Case) -> dict[str, float]:
        """Seconds of one iteration, in total and by phase."""
        clock, trainer = PhaseClock({}), self.trainer
        trainer.args.num_ppo_epochs = case.epochs
        trainer.dataloader = [self._padded(case)]
        with watched(clock, trainer, self._note), clock("iteration"):
            trainer.train()
        seconds = clock.seconds
        seconds["update"] = seconds.pop("until_log") - seconds.pop("until_whitened")
        seconds["score"] = seconds["iteration"] - seconds["roll_out"] - seconds["update"]
        return seconds

    def _padded(self, case: Case) -> dict[str, torch.Tensor]:
        """A batch as from TRL's collator, each prompt repeated for its samples."""
        width = max(map(len, case.prompts))
        padded = [
            [*[self.pad] * (width - len(prompt)), *prompt] for prompt in case.prompts for _ in range(case.samples)
        ]
        return {"input_ids": torch.tensor(padded)}

    def _note(self, queries: torch.Tensor, both: torch.Tensor) -> None:
        start = queries.shape[1]
        for row in both.tolist():
            self.responses[tuple(token for token in row[:start] if token != self.pad)] = row[start:]


@contextmanager
def watched(clock: PhaseClock, trainer: Any, note: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Take the time of TRL's rollouts, of its values, and of its update: from whitened advantages to what it logs."""
    own = {name: getattr(trl_module, name) for name in ("batch_generation", "get_reward", "masked_whiten")}
    log, started = trainer.log, time.perf_counter()

    def batch_generation(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        with clock("roll_out"):
            found = own["batch_generation"](model, queries, *args)
        note(queries, found[0])
        return found

    def get_reward(model: Any, *args: Any) -> Any:
        with clock("values" if model is trainer.value_model else "reward"):
            return own["get_reward"](model, *args)

    def masked_whiten(*args: Any, **options: Any) -> Any:
        found = own["masked_whiten"](*args, **options)
        clock.seconds["until_whitened"] = time.perf_counter() - started
        return found

    def logged(*args: Any) -> None:
        clock.seconds["until_log"] = time.perf_counter() - started
        log(*args)

    try:
        for function in (batch_generation, get_reward, masked_whiten):
            setattr(trl_module, function.__name__, function)
        trainer.log = logged
        yield
    finally:
        for name, function in own.items():
            setattr(trl_module, name, function)
        trainer.log = log


class WatchedPPO(PPOTrainer):
    """Our trainer, which keeps its last responses."""

    rollouts: Rollouts

    def roll_out(self, items: Sequence[PromptItem]) -> Rollouts:
        self.rollouts = super().roll_out(items)
        return self.rollouts

    def iterate(self) -> dict[str, float]:
        """Seconds of one iteration, in total and by phase."""
        clock = PhaseClock({})
        with clock("iteration"):
            self.train()
        logged = self.state.log_history[-1].items()
        return clock.seconds | {n.removeprefix("time/"): float(s) for n, s in logged if n.startswith("time/")}


class Ours:
    """Our trainer: policy, value head, reference and reward on one backbone. Each case has its own, on one agent."""

    def __init__(self, folder: str, cases: Mapping[str, Case]) -> None:
        tokenizer: Any = load_tokenizer(MODEL)
        backbone = Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))
        self.agent = AgentModel.create(backbone, lora())
        self.agent.add_reward(RewardModel.create(backbone, lora(), RewardSettings(MODEL)))
        self.trainers = {}
        for name, case in cases.items():
            config = PPOConfig(**settings(folder, case), samples_per_prompt=case.samples)
            self.trainers[name] = WatchedPPO(config, tokenizer, self.agent, train_dataset=rows(case))
            self.trainers[name].remove_callback(PrinterCallback)

    def __call__(self, name: str) -> dict[str, float]:
        return self.trainers[name].iterate()


class Equivalent:
    """Our trainer with TRL's arguments and models (so the same trained parameters and conventions) on given responses.

    Args:
        reward_model: TRL's, to save memory; our code does not modify it.
    """

    def __init__(self, folder: str, case: Case, reward_model: Any) -> None:
        models = {**trl_models(), "reward_model": reward_model}
        self.trainer = WatchedPPO(TrlConfig(**settings(folder, case)), load_tokenizer(MODEL), train_dataset=rows(case),
                                  **models)  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)

    def __call__(self, responses: Mapping[tuple[int, ...], list[int]]) -> dict[str, float]:
        """Seconds of one iteration with given responses."""
        agent: Any = self.trainer.agent
        agent.roll_out = lambda prompts, *_, **__: [[responses[tuple(prompt)]] for prompt in prompts]
        return self.trainer.iterate()
