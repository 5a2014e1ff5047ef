"""Train one node's adapters on the shared backbone, with the same trainers as the other commands.

Each training writes a complete, verified folder, and resumes from the newest checkpoint of an interrupted run.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.records import Comparison, Demonstration, Prompt
from rrm_lm.models.agent import REFERENCE, AgentModel
from rrm_lm.models.pretrained import set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.saving.policies import Policy, PolicySettings, put_policy, save_policy
from rrm_lm.recursion.agents import Shared, drop_adapters, policy_adapter, reward_adapter
from rrm_lm.recursion.assistance import Assistance
from rrm_lm.recursion.notes import with_notes
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

LOG = "log_history.json"  # the trainer's log
logger = logging.getLogger(__name__)

_SAVES = 4  # checkpoints per training: an interruption loses at most a quarter of it
_PAIRS_IN_A_ROW = 4  # pairs of one prompt in one row of a batch
_TEMPLATE_TOKENS = 16  # maximum tokens that the chat template adds around a response


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of training on this machine."""

    seed: int = 0  # seed of initial weights and data order
    micro_batch_tokens: int = 2048  # maximum padded tokens in one forward pass
    show_progress: bool = True  # whether to show progress bars

    def common(self, folder: Path, steps: float) -> dict[str, Any]:
        """Arguments of all trainers, with checkpoints next to `folder`."""
        return {
            "output_dir": str(_checkpoints(folder)),
            "seed": self.seed,
            "save_strategy": "steps",
            "save_steps": max(1, math.ceil(steps / _SAVES)),
            "save_total_limit": 1,
            "report_to": "none",
            "disable_tqdm": not self.show_progress,
        }


@dataclass(frozen=True)
class NodeTrainer:
    """Trains the adapters of one node on the shared backbone."""

    shared: Shared  # the backbone
    name: str  # the node's name, used in the names of the adapters
    settings: NodeSettings  # the node's settings
    options: TrainingOptions = field(default_factory=TrainingOptions)  # how training runs

    def train_start(self, drafts: Sequence[Demonstration], folder: Path) -> None:
        """Train the start policy: SFT on well-formed responses, good and bad, to learn the format of a response."""
        if not verify(folder):
            return
        shared, settings, adapter = self.shared, self.settings, policy_adapter(self.name)
        self._begin(adapter)
        shared.backbone.add_adapter(adapter, copy.deepcopy(shared.lora))
        examples = imitations(shared.chat, drafts, FitCounts())
        steps = math.ceil(len(examples) / settings.per_device_train_batch_size) * settings.draft_epochs
        config = SFTConfig(
            **self.options.common(folder, steps),
            num_train_epochs=settings.draft_epochs,
            learning_rate=1e-3,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            loss_type="nll",  # the chunked loss permanently replaces the forward of the model that all agents share
            logging_steps=1000,
        )
        saved = PolicySettings(shared.base_model, shared.chat.max_length, method="sft")
        trainer = SFTTrainer(Policy(shared.backbone, shared.chat, adapter, saved), config, examples, settings=saved)
        with shared.backbone.using(adapter):
            _train(trainer, folder)
        self._finish(trainer, folder, partial(self._save_policy, saved), adapter)

    def train_reward(self, records: Sequence[Comparison], folder: Path) -> None:
        """Train the reward model on comparisons, and on their critiques if `critique_weight` is above 0. Raises
        DataError: there is no usable comparison.
        """
        if not verify(folder):
            return
        if not records:
            raise DataError(
                f"There is no comparison to train the reward of {self.name} on",
                where=self.name,
                expected="pairs of which the overseer prefers one",
                remedy="look at the overseer's answers in the file next to the feedback file",
            )
        shared, settings, adapter = self.shared, self.settings, reward_adapter(self.name)
        self._begin(adapter)
        length, heads = shared.chat.max_length, settings.ensemble_heads
        saved = RewardSettings(shared.base_model, max_length=length, ensemble_heads=heads)
        model = RewardModel.create(shared.backbone, copy.deepcopy(shared.lora), saved, adapter)
        builder = ExampleBuilder(
            shared.chat,
            shared.backbone,
            with_critiques=settings.critique_weight > 0,
            narrow=settings.critique_view == "reward" and shared.backbone.can_mask,
        )
        examples = builder.together(records, _PAIRS_IN_A_ROW)
        if not examples:
            left_out = "; ".join(builder.counts.left_out())
            raise DataError(f"No comparison for the reward of {self.name} can be used", where=left_out)
        if cut := builder.counts.summary():
            logger.warning("%s: %s", self.name, cut)
        pairs_each = sum(len(example.pairs) for example in examples) / len(examples)
        batch = max(1, round(settings.per_device_train_batch_size / pairs_each))
        steps = math.ceil(len(examples) / batch) * settings.num_train_epochs
        config = RewardConfig(
            **self.options.common(folder, steps),
            num_train_epochs=settings.num_train_epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=batch,
            critique_weight=settings.critique_weight,
            critique_view=settings.critique_view,
            ensemble_heads=heads,
            max_length=length,
            micro_batch_tokens=self.options.micro_batch_tokens,
            logging_steps=10,
        )
        trainer = RewardTrainer(model, config, examples, processing_class=shared.chat.tokenizer)

        _train(trainer, folder)
        self._finish(trainer, folder, lambda staged: model.save(staged, shared.chat.tokenizer), adapter)

    def train_policy(self, prompts: Sequence[Prompt], scorer: ResponseScorer, start: Path, folder: Path) -> int:
        """Train the policy with PPO against the reward model, from the start policy in the folder `start`; return the
        number of tokens generated in this call.
        """
        if not verify(folder):
            return 0
        shared, settings, adapter = self.shared, self.settings, policy_adapter(self.name)
        self._begin(adapter, REFERENCE)
        put_policy(shared.backbone, start, adapter, trainable=True)
        agent = AgentModel.create(shared.backbone, copy.deepcopy(shared.lora), policy=adapter)
        saved = PolicySettings(shared.base_model, shared.chat.max_length, method="ppo")
        config = PPOConfig(
            **self.options.common(folder, settings.max_steps),
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.episodes,
            # At most 8 episodes share a prompt and its computation.
            samples_per_prompt=max(count for count in range(1, 9) if settings.episodes % count == 0),
            num_ppo_epochs=2,
            learning_rate=settings.policy_learning_rate,
            lr_scheduler_type="constant",
            kl_coef=settings.kl_coef,
            response_length=settings.max_new_tokens,
            temperature=1.0,
            missing_eos_penalty=1.0,
            micro_batch_tokens=self.options.micro_batch_tokens,
        )
        trainer = PPOTrainer(
            config,
            shared.chat.tokenizer,
            agent,
            train_dataset=list(prompts),
            rewards=[ScorerReward(scorer, reward_adapter(self.name))],
            chat=shared.chat,
            settings=saved,
        )
        _train(trainer, folder)
        self._finish(trainer, folder, partial(self._save_policy, saved), adapter, REFERENCE)
        log = [one for one in trainer.state.log_history if "time/roll_out" in one]
        return round(sum(one["tokens_per_second"] * one["time/roll_out"] for one in log))

    def _save_policy(self, saved: PolicySettings, folder: Path) -> None:
        tokenizer = self.shared.chat.tokenizer
        save_policy(self.shared.backbone, folder, tokenizer, saved, policy_adapter(self.name))

    def _begin(self, *adapters: str) -> None:
        """Remove adapters that an interrupted training left on the backbone, and set the seed."""
        drop_adapters(self.shared, *adapters)
        set_seed(self.options.seed)

    def _finish(self, trainer: Any, folder: Path, save: Callable[[Path], None], *adapters: str) -> None:
        """`save` the result and the log to `folder`, delete the checkpoints, free gradients and optimizer state."""
        with staged_folder(folder, replace=True) as staged:
            save(staged)
            write_json(staged / LOG, trainer.state.log_history)
        remove_folder(_checkpoints(folder))
        trainer.accelerator.free_memory()
        trainer.optimizer = trainer.lr_scheduler = trainer.model = trainer.model_wrapped = None
        drop_adapters(self.shared, *adapters)
        gc.collect()  # trainer and accelerator refer to each other


def _train(trainer: Any, folder: Path) -> None:
    """Train, resuming from the newest checkpoint if there is one."""
    checkpoints = _checkpoints(folder)
    newest = newest_verified(checkpoints) if checkpoints.is_dir() else None
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))


def read_with_notes(records: Sequence[Comparison], assistance: Assistance) -> list[Comparison]:

    def shown(one: Comparison, text: str) -> str:
        return with_notes(text, assistance.notes(one.prompt, text))

    return [replace(one, chosen=shown(one, one.chosen), rejected=shown(one, one.rejected)) for one in records]


def tokens_needed(shared: Shared, settings: NodeSettings, prompts: Sequence[Prompt]) -> int:
    """Number of tokens of the longest prompt with a response of maximum length, without truncation."""
    longest = max(len(shared.chat.uncut.prompt_ids(prompt)) for prompt in prompts)
    return longest + settings.max_new_tokens + _TEMPLATE_TOKENS


def _checkpoints(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_training")
