"""`rrm-lm policy`: from prompts and rewards to a policy that earns more of them, watched on held-out prompts."""

from __future__ import annotations

from typing import Any

from rrm_lm.settings.data import PromptArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments

EXAMPLES = """\
examples:
  rrm-lm policy --config configs/policy.yaml
  rrm-lm policy --prompts my_prompts.jsonl --reward_model outputs/reward --output_dir outputs/mine
  rrm-lm policy --prompts my_prompts.jsonl --reward_function my_rewards.py:polite     (a function there)
  rrm-lm policy --model_name_or_path outputs/sft --prompts my_pairs.jsonl --reward_model outputs/reward \\
      --monitor_reward_model outputs/other --stop_when_over_optimised true     (start from a policy, and watch it)
  rrm-lm policy --config configs/policy.yaml --resume_from_checkpoint true
  accelerate launch scripts/train_policy.py --config configs/policy.yaml
a row of my_prompts.jsonl: {"prompt": "How do I boil an egg?"}
my_rewards.py: def polite(prompts, responses): return ["please" in response for response in responses]
"""


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.runs.policy.config import PolicyConfig, StartArguments
    from rrm_lm.settings.parser import parse

    kinds = [PromptArguments, RewardArguments, StartArguments, PolicyConfig, MonitorArguments, PolicyRunArguments]
    return parse(kinds, argv, command="rrm-lm policy", examples=EXAMPLES)


def run(argv: list[str]) -> int:
    """Train, watch, save, reload and check a policy, and write the page about it."""
    settings = read(argv)
    from rrm_lm.runs.policy.run import PolicyRun

    PolicyRun(*settings).run()
    return 0
