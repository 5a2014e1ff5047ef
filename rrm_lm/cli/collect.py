"""`rrm-lm collect`: a policy answers prompts, and an overseer compares and criticizes the answers."""

from __future__ import annotations

from rrm_lm.settings.policies import CollectArguments

EXAMPLES = """\
rrm-lm collect smollm2-135m --prompts data/assistant/train.jsonl.gz \\
    --overseer data/assistant/requests.jsonl                (a simulated user)
rrm-lm collect outputs/policy --prompts my_prompts.jsonl \\
    --overseer my_overseers.py:judge --output_dir outputs/round2
rrm-lm collect outputs/policy --prompts my_prompts.jsonl \\
    --overseer llm:Qwen/Qwen3-8B --base_url http://127.0.0.1:8000/v1
rrm-lm reward --dataset_name outputs/round2          (train on the feedback)
"""
COMMON = (
    "policy prompts max_prompts overseer base_url samples comparisons_per_prompt critiques max_new_tokens "
    "temperature seed output_dir"
)


def read(argv: list[str]) -> tuple[CollectArguments]:
    """The settings."""
    from rrm_lm.settings.parser import parse

    (args,) = parse(
        [CollectArguments], argv, command="rrm-lm collect POLICY", examples=EXAMPLES, common=COMMON, first="policy"
    )
    args.require()
    return (args,)


def run(argv: list[str]) -> int:
    """Sample answers, ask the overseer, and write the feedback."""
    settings = read(argv)
    from rrm_lm.runs.collect import collect_feedback

    collect_feedback(*settings)
    return 0
