"""`rrm-lm compare`: are policies better than what they started from, and how far have they moved from it?"""

from __future__ import annotations

from rrm_lm.settings.policies import CompareArguments, DrawingArguments

EXAMPLES = """\
examples:
  rrm-lm compare outputs/demo/policy --prompts data/assistant/heldout.jsonl.gz --gold data/assistant/requests.jsonl
  rrm-lm compare outputs/sft outputs/ppo --prompts my_prompts.jsonl --proxy outputs/reward --reward_model outputs/other
  rrm-lm compare outputs/ppo --prompts my_prompts.jsonl --judge Qwen/Qwen3-8B --reference outputs/sft
  rrm-lm compare outputs/ppo --prompts my_prompts.jsonl --judge llm:Qwen/Qwen3-8B --base_url http://127.0.0.1:8000/v1
  rrm-lm compare outputs/ppo --prompts my_prompts.jsonl --judge Qwen/Qwen3-8B --critic outputs/mine
  rrm-lm compare outputs/ppo --prompts my_prompts.jsonl --gold my_rewards.py:gold     (a function there)
a row of my_prompts.jsonl: {"prompt": "How do I boil an egg?"}
"""


def read(argv: list[str]) -> tuple[CompareArguments, DrawingArguments]:
    """The settings."""
    from rrm_lm.settings.parser import parse

    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    words = ["--policies", *argv] if count else argv
    args, drawing = parse(
        [CompareArguments, DrawingArguments], words, command="rrm-lm compare POLICY ...", examples=EXAMPLES
    )
    args.require()
    return args, drawing


def run(argv: list[str]) -> int:
    """Let policies answer, score the answers, write what was found and print it."""
    settings = read(argv)
    from rrm_lm.runs.compare.run import CompareRun

    CompareRun(*settings).run()
    return 0
