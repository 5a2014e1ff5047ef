"""`rrm-lm policy`: read prompts and gold reward, and pass them to `PolicyTraining`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rrm_lm.api.output_run import OutputRun
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.policy.prompts import read_prompts
from rrm_lm.api.policy.start import check_start
from rrm_lm.api.policy.trainer import Given, PolicySettingsGroup, PolicyTraining
from rrm_lm.feedback.records import Prompt
from rrm_lm.runs.gold import load_gold
from rrm_lm.settings.data import PromptArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments


class PolicyRun:
    """One run. It locks the output folder, and changes it only after all inputs are valid."""

    def __init__(
        self,
        data: PromptArguments,
        rewards: RewardArguments,
        model: ModelArguments,
        config: PolicyConfig,
        monitor: MonitorArguments,
        more: PolicyRunArguments,
    ) -> None:
        self.data, self.group = data, PolicySettingsGroup(data, rewards, model, config, monitor, more)
        # A copy: the trainer writes derived values into its settings.
        self.settings = (data, rewards, model, copy.copy(config), monitor, more)

    def run(self) -> None:
        _, rewards, model, config, monitor, more = self.group
        rewards.require()
        check_start(Path(str(config.output_dir)), model, rewards, config)
        with OutputRun("rrm-lm policy", config, more, self.settings, config.resume_from_checkpoint) as run:
            rows: dict[Prompt, Any] | None = {} if rewards.reward_function or monitor.gold else None
            prompts = read_prompts(self.data, rows)
            gold = None if monitor.gold is None else load_gold(monitor.gold, self.data, rows)
            group = self.group._replace(model=run.on_its_date(self.group.model))
            training = PolicyTraining(group, Given(prompts, gold=gold, rows=rows))
            training.show_prompt()
            training.train(run)
