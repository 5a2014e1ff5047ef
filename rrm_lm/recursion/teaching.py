"""Training inside a tree: the same trainers as everybody's, on one adapter of the shared backbone.

Each function leaves a whole, verified folder, or goes on from the newest checkpoint of a run that was stopped.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Comparison, Demonstration, Prompt
from rrm_lm.models.agent import REFERENCE, AgentModel
from rrm_lm.models.pretrained import set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.saving.policies import Policy, PolicySettings, put_policy, save_policy
from rrm_lm.recursion.agents import Rewards, Shared, drop, policy_adapter, reward_adapter
from rrm_lm.recursion.tree import NodeSettings
from rrm_lm.storage import remove_folder, staged_folder, verify, write_json
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, FitCounts
from rrm_lm.training.reward.trainer import RewardTrainer
from rrm_lm.training.reward_sources import ScorerReward
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.sft.trainer import SFTTrainer, imitations

LOG = "log_history.json"  # how the training went
logger = logging.getLogger(__name__)

_SAVES = 4  # checkpoints in a training: what an interruption can cost is a quarter of it
_TOGETHER = 4  # pairs of one prompt that go through the model as one row
_MARGIN = 16  # tokens that the chat template puts around a response


@dataclass(frozen=True)
class Teaching:
    """How training runs on this machine.

    Attributes:
        seed: Of first weights and orders.
        micro_batch_tokens: Most padded tokens that go through the model at once.
        show_progress: Whether bars are shown.
    """

    seed: int = 0
    micro_batch_tokens: int = 2048
    show_progress: bool = True

    def common(self, folder: Path, steps: float) -> dict[str, Any]:
        """Settings that every trainer here has."""
        return {
            "output_dir": str(folder),
            "seed": self.seed,
            "save_strategy": "steps",
            "save_steps": max(1, math.ceil(steps / _SAVES)),
            "save_total_limit": 1,
            "report_to": "none",
            "disable_tqdm": not self.show_progress,
        }


def is_whole(folder: Path) -> bool:
    """Whether a folder was finished, and nothing in it has changed since."""
    return folder.is_dir() and not verify(folder)


def learn_form(
    shared: Shared, name: str, drafts: Sequence[Demonstration], settings: NodeSettings, teaching: Teaching, folder: Path
) -> None:
    """Let a fresh policy learn from well-formed responses, good and bad alike, how a response is written."""
    if is_whole(folder):
        return
    work, adapter = folder.with_name(f"{folder.name}_training"), policy_adapter(name)
    drop(shared, adapter)
    set_seed(teaching.seed)
    shared.backbone.add_adapter(adapter, copy.deepcopy(shared.lora))
    examples = imitations(shared.chat, drafts, FitCounts())
    steps = math.ceil(len(examples) / settings.per_device_train_batch_size) * settings.draft_epochs
    config = SFTConfig(
        **teaching.common(work, steps),
        num_train_epochs=settings.draft_epochs,
        learning_rate=1e-3,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        loss_type="nll",  # the chunked one changes the model's own forward pass for good, and all agents share it
        logging_steps=1000,
    )
    kept = PolicySettings(shared.base_model, shared.chat.max_length, method="sft")
    trainer = SFTTrainer(Policy(shared.backbone, shared.chat, adapter, kept), config, examples, settings=kept)
    trainer.remove_callback(PrinterCallback)
    with shared.backbone.using(adapter):
        trainer.train(resume_from_checkpoint=_checkpoint(work))
    with staged_folder(folder, replace=True) as staged:
        save_policy(shared.backbone, staged, shared.chat.tokenizer, kept, adapter)
    _release(shared, trainer, adapter)
    remove_folder(work)


def train_reward(
    shared: Shared, name: str, records: Sequence[Comparison], settings: NodeSettings, teaching: Teaching, folder: Path
) -> None:
    """Train a node's reward model on comparisons, and on what was said where it is to learn from words.

    Raises:
        DataError: There is no comparison to learn from.
    """
    if is_whole(folder):
        return
    if not records:
        raise DataError(
            f"There is no comparison to train the reward of {name} on",
            where=name,
            expected="pairs of which the overseer prefers one",
            remedy="look at the overseer's answers beside the feedback file",
        )
    work, adapter = folder.with_name(f"{folder.name}_training"), reward_adapter(name)
    drop(shared, adapter)
    set_seed(teaching.seed)
    kept = RewardSettings(shared.base_model, max_length=shared.chat.max_length, ensemble_heads=settings.ensemble_heads)
    model = RewardModel.create(shared.backbone, copy.deepcopy(shared.lora), kept, adapter)
    narrow = settings.critique_view == "reward" and shared.backbone.can_mask
    builder = ExampleBuilder(shared.chat, shared.backbone, with_critiques=settings.critique_weight > 0, narrow=narrow)
    examples = builder.together(records, _TOGETHER)
    if not examples:
        raise DataError(
            f"No comparison for the reward of {name} can be used", where="; ".join(builder.counts.left_out())
        )
    if cut := builder.counts.summary():
        logger.warning("%s: %s", name, cut)
    each = sum(len(example.pairs) for example in examples) / len(examples)
    batch = max(1, round(settings.per_device_train_batch_size / each))
    steps = math.ceil(len(examples) / batch) * settings.num_train_epochs
    config = RewardConfig(
        **teaching.common(work, steps),
        num_train_epochs=settings.num_train_epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=batch,
        critique_weight=settings.critique_weight,
        critique_view=settings.critique_view,
        ensemble_heads=settings.ensemble_heads,
        max_length=shared.chat.max_length,
        micro_batch_tokens=teaching.micro_batch_tokens,
        logging_steps=10,
    )
    trainer = RewardTrainer(model, config, examples, processing_class=shared.chat.tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_checkpoint(work))
    with staged_folder(folder, replace=True) as staged:
        model.save(staged, shared.chat.tokenizer)
        write_json(staged / LOG, trainer.state.log_history)
    _release(shared, trainer, adapter)
    remove_folder(work)


class _Trainer(PPOTrainer):
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL's draft would be written beside every checkpoint."""


def train_policy(
    shared: Shared,
    name: str,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    settings: NodeSettings,
    teaching: Teaching,
    start: Path,
    folder: Path,
) -> int:
    """Train a node's policy with PPO against its rewards, from a start that knows the form of a response.

    Returns:
        How many tokens it wrote on the way, in this call.
    """
    if is_whole(folder):
        return 0
    work, adapter = folder.with_name(f"{folder.name}_training"), policy_adapter(name)
    drop(shared, adapter, REFERENCE)
    set_seed(teaching.seed)
    put_policy(shared.backbone, start, adapter, trainable=True)
    agent = AgentModel.create(shared.backbone, copy.deepcopy(shared.lora), policy=adapter)
    kept = PolicySettings(shared.base_model, shared.chat.max_length, method="ppo")
    config = PPOConfig(
        **teaching.common(work, settings.max_steps),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.episodes,
        samples_per_prompt=_most_even(settings.episodes),
        num_ppo_epochs=2,
        learning_rate=settings.policy_learning_rate,
        lr_scheduler_type="constant",
        kl_coef=settings.kl_coef,
        response_length=settings.max_new_tokens,
        temperature=1.0,
        missing_eos_penalty=1.0,
        num_sample_generations=0,
        micro_batch_tokens=teaching.micro_batch_tokens,
    )
    source = ScorerReward(_Named(rewards, reward_adapter(name)))
    trainer = _Trainer(
        config,
        shared.chat.tokenizer,
        agent,
        train_dataset=list(prompts),
        rewards=[source],
        chat=shared.chat,
        settings=kept,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_checkpoint(work))
    with staged_folder(folder, replace=True) as staged:
        save_policy(shared.backbone, staged, shared.chat.tokenizer, kept, adapter)
        write_json(staged / LOG, trainer.state.log_history)
    log = trainer.state.log_history
    _release(shared, trainer, adapter, REFERENCE)
    remove_folder(work)
    return round(sum(one["tokens_per_second"] * one["time/roll_out"] for one in log if "time/roll_out" in one))


def _release(shared: Shared, trainer: Any, *adapters: str) -> None:
    """Free what training held: a trainer and its accelerator hold each other, gradients and the optimizer's moments."""
    trainer.accelerator.free_memory()
    trainer.optimizer = trainer.lr_scheduler = trainer.model = trainer.model_wrapped = None
    drop(shared, *adapters)
    gc.collect()


@dataclass(frozen=True)
class _Named:
    """Rewards with a name, as a reward source wants them."""

    rewards: Rewards
    name: str

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        return self.rewards.score(prompts, responses)


def read_with_notes(records: Sequence[Comparison], shown: Any) -> list[Comparison]:
    """Comparisons whose responses have their notes behind them; `shown` gives a response with its notes."""
    return [
        replace(one, chosen=shown(one.prompt, one.chosen), rejected=shown(one.prompt, one.rejected)) for one in records
    ]


def room(shared: Shared, settings: NodeSettings, prompts: Sequence[Prompt]) -> int:
    """Tokens that the longest of these prompts and a response take, with nothing left out."""
    longest = max(len(shared.chat.uncut.prompt_ids(prompt)) for prompt in prompts)
    return longest + settings.max_new_tokens + _MARGIN


def _checkpoint(folder: Path) -> str | None:
    newest = newest_verified(folder) if folder.is_dir() else None
    return None if newest is None else str(newest)


def _most_even(episodes: int) -> int:
    """A divisor of the episodes near 8: so many share the computation of one prompt."""
    return max(count for count in range(1, 9) if episodes % count == 0)
