"""`rrm-lm inspect`: show how a file is read and what a model will see, before training."""

from __future__ import annotations

import logging

from rrm_lm.settings.inspection import InspectArguments

EXAMPLES = """\
rrm-lm inspect data/assistant/train.jsonl.gz --model smollm2-135m
rrm-lm inspect my_feedback.csv --columns better=chosen worse=rejected
rrm-lm inspect org/some-dataset --dataset_train_split train_prefs --json
"""
COMMON = (
    "dataset eval_dataset model columns dataset_train_split dataset_test_split dataset_config skip_bad_rows "
    "eval_fraction max_length chat_template_path trust_remote_code rows json"
)


def run(argv: list[str]) -> int:
    """Print what is in the data; returns 1 if nothing can be trained on it."""
    from rrm_lm.settings.parser import parse

    (args,) = parse(
        [InspectArguments], argv, command="rrm-lm inspect", examples=EXAMPLES, common=COMMON, first="dataset"
    )
    from rrm_lm.api.inspection import inspect_sources
    from rrm_lm.errors import DataError
    from rrm_lm.runs.inspect import print_columns, print_inspection
    from rrm_lm.storage import json_text

    logging.getLogger("rrm_lm").setLevel(logging.WARNING)  # the page says it all
    try:
        found = inspect_sources(args)
    except DataError as error:
        problem = error.sentence()
        if args.json:
            print(json_text({"problem": problem}))
        else:
            print_columns(args, problem)
        return 1
    if args.json:
        print(json_text(found.to_dict()))
    else:
        print_inspection(found, args)
    return int(bool(found.problem))
