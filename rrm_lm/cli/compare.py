"""`rrm-lm compare`: are policies better than their starting point, and how far have they moved from it?"""

from __future__ import annotations

from rrm_lm.settings.policies import CompareArguments, DrawingArguments

EXAMPLES = """\
rrm-lm compare outputs/demo/policy --prompts data/assistant/heldout.jsonl.gz \\
    --gold data/assistant/requests.jsonl                (after `make demo`)
rrm-lm compare outputs/sft outputs/ppo --prompts my_prompts.jsonl \\
    --proxy outputs/reward --reward_model outputs/other
rrm-lm compare outputs/ppo --prompts my_prompts.jsonl \\
    --judge llm:Qwen/Qwen3-8B --base_url http://127.0.0.1:8000/v1
a row of my_prompts.jsonl: {"prompt": "How do I boil an egg?"}
"""
COMMON = (
    "policies reference prompts max_prompts gold proxy reward_model judge base_url critic samples "
    "max_new_tokens output_dir"
)


def read(argv: list[str]) -> tuple[CompareArguments, DrawingArguments]:
    """The settings."""
    from rrm_lm.settings.parser import parse

    kinds = [CompareArguments, DrawingArguments]
    args, drawing = parse(
        kinds, argv, command="rrm-lm compare POLICY ...", examples=EXAMPLES, common=COMMON, first="policies"
    )
    args.require()
    return args, drawing


def run(argv: list[str]) -> int:
    """Sample answers, score them, write the results and print them."""
    settings = read(argv)
    from rrm_lm.runs.compare.run import CompareRun

    CompareRun(*settings).run()
    return 0
