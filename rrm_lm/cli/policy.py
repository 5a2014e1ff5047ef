"""`rrm-lm policy`: train a policy on prompts and rewards, and monitor it on held-out prompts."""

from __future__ import annotations

from typing import Any

from rrm_lm.settings.data import PromptArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments

EXAMPLES = """\
rrm-lm policy --config configs/policy.yaml     (after sft.yaml, reward.yaml)
rrm-lm policy --prompts my_prompts.jsonl --reward_model outputs/reward
rrm-lm policy --prompts my_prompts.jsonl --reward_function rewards.py:polite
rrm-lm policy --config configs/policy.yaml --resume_from_checkpoint true
a row of my_prompts.jsonl: {"prompt": "How do I boil an egg?"}
rewards.py: def polite(prompts, responses):
               return ["please" in response for response in responses]
"""
COMMON = (
    "prompts reward_model reward_function model_name_or_path algorithm gold max_steps per_device_train_batch_size "
    "learning_rate kl_coef response_length output_dir"
)


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.api.policy.config import PolicyConfig, StartArguments
    from rrm_lm.settings.parser import parse

    kinds = [PromptArguments, RewardArguments, StartArguments, PolicyConfig, MonitorArguments, PolicyRunArguments]
    return parse(kinds, argv, command="rrm-lm policy", examples=EXAMPLES, common=COMMON)


def run(argv: list[str]) -> int:
    """Train, monitor, save, reload and check a policy, and write its report."""
    settings = read(argv)
    from rrm_lm.runs.policy import PolicyRun

    PolicyRun(*settings).run()
    return 0
