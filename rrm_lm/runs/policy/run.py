"""The steps of `rrm-lm policy`, in the order in which they are taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from rrm_lm.api.resuming import identity, is_asked, origin
from rrm_lm.errors import ConfigError
from rrm_lm.feedback.records import Prompt
from rrm_lm.launch.signals import steps_are_finished
from rrm_lm.models.pretrained import process_state, set_seed
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.runs.policy.config import PolicyConfig
from rrm_lm.runs.policy.lines import show_prompt
from rrm_lm.runs.policy.monitor import Monitor
from rrm_lm.runs.policy.prompts import fit_chat, read_prompts
from rrm_lm.runs.policy.results import write_results
from rrm_lm.runs.policy.rewards import Load, Rewards, gold_reward, scorer_loader
from rrm_lm.runs.policy.start import check_start, load_start
from rrm_lm.runs.policy.trainers import Parts, Training, make_training
from rrm_lm.runs.policy_saving import check_saved_policy, logits_of, write_merged_policy
from rrm_lm.settings.data import PromptArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.parser import write_resolved
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments
from rrm_lm.storage import report_full_disk
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.checkpoints import checkpoint_to_resume
from rrm_lm.training.output_folder import OutputFolder

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
        processes = process_state().num_processes
        folder = OutputFolder(
            self.folder,
            command="rrm-lm policy",
            identity=identity(*self.settings, processes=processes),
            allow_change=self.more.allow_config_change,
            resume=is_asked(self.config.resume_from_checkpoint),
            origin=origin(self.config.resume_from_checkpoint),
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
            chat_template=self.model_args.chat_template,
        )
        gold = gold_reward(self.monitor, load, self.data)
        training = self._training(train, watched, load)
        monitor = Monitor(self.monitor, self.config, training, watched, gold, self.folder) if watched else None
        if self.main:
            show_prompt(training.policy.chat, train[0])
        folder.begin()
        if self.main:
            write_resolved(self.folder / "config.yaml", *self.settings)
        process_state().wait_for_everyone()
        with report_full_disk(self.folder):
            with steps_are_finished(training.trainer, every=training.steps_per_update):
                result = training.trainer.train(resume_from_checkpoint=self.config.resume_from_checkpoint)
            self._save(training, train)
        episodes = int(self.config.batch_size or 0)  # which the trainer has worked out
        write_results(self.folder, training, result, monitor, self.settings, episodes)

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
        trainer.save_whole(self.folder)
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
