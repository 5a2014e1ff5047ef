"""`rrm-lm policy`: read prompts and gold reward, and pass them to `PolicyTraining`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rrm_lm.api.output_run import OutputRun
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.policy.prompts import read_prompts
from rrm_lm.api.policy.trainer import Given, PolicySettingsGroup, PolicyTraining
from rrm_lm.api.policy.trainers import check_start
from rrm_lm.api.start import refuse_inside
from rrm_lm.feedback.records import Prompt
from rrm_lm.runs.gold import load_gold
from rrm_lm.settings.data import PromptArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments


def train_policy(
    data: PromptArguments,
    rewards: RewardArguments,
    model: ModelArguments,
    config: PolicyConfig,
    monitor: MonitorArguments,
    more: PolicyRunArguments,
) -> None:
    """Lock the output folder, and change it only after all inputs are valid: train, monitor, save, reload, report."""
    monitor.require_gold()
    refuse_inside(config.output_dir, [], [*data.prompts, *data.eval_prompts])
    check_start(Path(str(config.output_dir)), model, rewards, config)
    # A copy: the trainer writes derived values into its settings.
    settings = (data, rewards, model, copy.copy(config), monitor, more)
    with OutputRun("rrm-lm policy", config, more, settings, config.resume_from_checkpoint) as run:
        rows: dict[Prompt, Any] | None = {} if rewards.reward_function or monitor.gold else None
        prompts = read_prompts(data, rows)
        gold = None if monitor.gold is None else load_gold(monitor.gold, data, rows)
        group = PolicySettingsGroup(data, rewards, run.on_its_date(model), config, monitor, more)
        training = PolicyTraining(group, Given(prompts, gold=gold, rows=rows))
        training.show_prompt()
        training.train(run)
