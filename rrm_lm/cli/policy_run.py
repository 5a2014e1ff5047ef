"""The steps of `rrm-lm policy`, in the order in which they are taken."""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rrm_lm.cli.parser import write_resolved
from rrm_lm.cli.policy import MonitorArguments, PolicyRunArguments, PromptArguments, RewardArguments
from rrm_lm.cli.policy_config import PolicyConfig
from rrm_lm.cli.policy_left import write_what_is_left
from rrm_lm.cli.policy_lines import show_prompt
from rrm_lm.cli.policy_monitor import Monitor
from rrm_lm.cli.policy_prompts import fit_chat, read_prompts
from rrm_lm.cli.policy_rewards import Load, Rewards, gold_reward, scorer_loader
from rrm_lm.cli.policy_save import check_saved_policy, logits_of, write_merged_policy
from rrm_lm.cli.policy_start import check_start, load_start
from rrm_lm.cli.policy_trainers import Parts, Training, make_training
from rrm_lm.cli.settings import ModelArguments, read_template
from rrm_lm.errors import CheckpointError, ConfigError
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.policy_files import PolicySettings
from rrm_lm.models.pretrained import process_state, set_seed
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.checkpoints import OutputFolder, checkpoint_to_resume

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(r"No space left|Disk quota exceeded|PytorchStreamWriter failed writing")
_CHECKED = 4  # prompts at which the logits must be the same after a reload


class PolicyRun:
    """One run: read prompts, load the start, put rewards beside it, train, save, reload, tell."""

    def __init__(
        self,
        data: PromptArguments,
        rewards: RewardArguments,
        model: ModelArguments,
        config: PolicyConfig,
        monitor: MonitorArguments,
        more: PolicyRunArguments,
    ) -> None:
        self.data, self.rewards, self.model_args, self.config = data, rewards, model, config
        self.monitor, self.more = monitor, more
        self.folder = Path(str(config.output_dir))
        self.main = bool(config.should_save)
        # As given: the trainer writes into its settings what it works out from others.
        self.settings = (data, rewards, model, copy.copy(config), monitor, more)

    def run(self) -> None:
        """Everything; the output folder is locked while it lasts, and changed only once all inputs are good."""
        self.rewards.require()
        check_start(self.folder, self.model_args, self.rewards, self.config)
        resume = str(self.config.resume_from_checkpoint or "false").lower() not in ("false", "no", "none")
        folder = OutputFolder(
            self.folder,
            command="rrm-lm policy",
            identity=self._identity(),
            resume=resume,
            overwrite=self.more.overwrite_output_dir,
            active=self.main,
            deferred=True,
        )
        with folder:
            process_state().wait_for_everyone()
            checkpoint_to_resume(self.folder, self.config.resume_from_checkpoint)  # a broken one is told at once
            self._train(folder)

    def _train(self, folder: OutputFolder) -> None:
        train, heldout = read_prompts(self.data)
        watched = heldout[: self.monitor.monitor_prompts]
        self._check_monitor(watched)
        load = scorer_loader(
            self.model_args.loading(),
            micro_batch_tokens=self.config.micro_batch_tokens,
            seed=self.config.seed,
            chat_template=read_template(self.model_args.chat_template_path),
        )
        gold = gold_reward(self.monitor, load)
        training = self._training(train, watched, load)
        monitor = Monitor(self.monitor, self.config, training, watched, gold, self.folder) if watched else None
        if self.main:
            show_prompt(training.policy.chat, train[0])
        folder.begin()
        if self.main:
            write_resolved(self.folder / "config.yaml", *self.settings)
        process_state().wait_for_everyone()
        with _told_if_full(self.folder):
            result = training.trainer.train(resume_from_checkpoint=self.config.resume_from_checkpoint)
            self._save(training, train)
        episodes = int(self.config.batch_size or 0)  # which the trainer has worked out
        write_what_is_left(self.folder, training, result, monitor, self.settings, episodes)

    def _identity(self) -> dict[str, Any]:
        """What a run cannot change when it goes on."""
        names = ("value_function", "reference", "samples_per_prompt", "seed")
        return {
            "model": self.model_args.model_name_or_path,
            "prompts": self.data.prompts,
            "eval_prompts": self.data.eval_prompts,
            "reward_model": self.rewards.reward_model,
            "reward_function": self.rewards.reward_function,
            "algorithm": self.more.algorithm,
            "lora_r": self.model_args.lora_r,
            "episodes": self.config.per_device_train_batch_size
            * self.config.gradient_accumulation_steps
            * process_state().num_processes,
            **{name: getattr(self.config, name) for name in names},
        }

    def _check_monitor(self, watched: list[Prompt]) -> None:
        if watched or not self.monitor.has_gold:
            return
        raise ConfigError(
            "There is a reward to watch the policy by, and no held-out prompt to do it on",
            where="eval_prompts, eval_fraction and monitor_prompts",
            remedy="pass --eval_prompts, or an --eval_fraction and --monitor_prompts above 0",
        )

    def _training(self, train: list[Prompt], watched: list[Prompt], load: Load) -> Training:
        policy = load_start(self.model_args, self.config.stop_token_id)
        length = self.config.response_length
        chat, longest = fit_chat(policy.chat, policy.backbone, self.data.max_length, length, [*train, *watched])
        start = policy.settings or PolicySettings(str(self.model_args.model_name_or_path))
        set_seed(self.config.seed)  # fresh weights do not depend on what was loaded before
        parts = Parts(
            policy=policy._replace(chat=chat),
            prompts=train,
            heldout=watched,
            config=self.config,
            model=self.model_args,
            rewards=self.rewards,
            put_rewards=lambda backbone: Rewards(self.rewards, backbone, chat, load),
            settings=replace(start, max_length=longest, method=self.more.algorithm),
        )
        return make_training(self.more.algorithm, parts)

    def _save(self, training: Training, train: list[Prompt]) -> None:
        trainer, policy = training.trainer, training.policy
        trainer.save_model(str(self.folder))
        trainer.save_state()
        trainer.accelerator.wait_for_everyone()
        root = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        # Any tokens behind a prompt will do: every logit has to be the same.
        prompts = [policy.chat.prompt_ids(prompt) for prompt in train[:_CHECKED]]
        sample = [ChatFormat.sampled_line(ids, (*ids[-8:], policy.chat.end_id)) for ids in prompts]
        logits = logits_of(root, policy, sample)
        if not self.main:
            return
        check_saved_policy(logits, policy, self.folder, sample, **self.model_args.loading())
        if self.more.merge:
            code = self.model_args.trust_remote_code
            merged = self.folder / "merged"
            write_merged_policy(logits, policy, self.folder, merged, sample, trust_remote_code=code)


@contextmanager
def _told_if_full(folder: Path) -> Iterator[None]:
    """Say in one message that the disk is full. Libraries that write weights say it each in its own way."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if getattr(error, "errno", None) not in _FULL and not _FULL_TEXT.search(str(error)):
            raise
        raise CheckpointError(
            f"The disk is full ({error})",
            where=str(folder),
            expected="room for a checkpoint; those that were whole before still are",
            remedy="free some space, and go on with --resume_from_checkpoint true",
        ) from error
