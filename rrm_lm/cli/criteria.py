"""`rrm-lm criteria`: list what the critiques in a file ask for, and write it as criteria."""

from __future__ import annotations

from rrm_lm.settings.inspection import CriteriaArguments

EXAMPLES = """\
rrm-lm criteria data/assistant/train.jsonl.gz
rrm-lm criteria --dataset my_feedback.jsonl --output criteria.yaml
rrm-lm reward --dataset_name my_feedback.jsonl --criteria criteria.yaml
"""
COMMON = "dataset output uncovered columns split dataset_config skip_bad_rows json"


def run(argv: list[str]) -> int:
    """Print and write the criteria; returns 1 if the feedback has no critique that names one."""
    from rrm_lm.settings.parser import parse

    kinds = [CriteriaArguments]
    (args,) = parse(kinds, argv, command="rrm-lm criteria", examples=EXAMPLES, common=COMMON, first="dataset")
    from rrm_lm.runs.criteria import list_criteria

    return list_criteria(args)
