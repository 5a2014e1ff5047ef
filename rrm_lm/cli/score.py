"""`rrm-lm score`: write the reward of each response in a file as JSON lines."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from rrm_lm.settings.scoring import ScoreArguments

if TYPE_CHECKING:
    from rrm_lm.feedback.reading.datasets import Feedback
    from rrm_lm.feedback.records import Prompt

EXAMPLES = """\
rrm-lm score --model smollm2-135m --dataset data/assistant/heldout.jsonl.gz
rrm-lm score --model outputs/reward --dataset responses.jsonl \\
    --output_file rewards.jsonl
a row of responses.jsonl: {"prompt": "How do I boil an egg?",
    "completion": "Eight minutes in boiling water."}
"""
COMMON = (
    "model dataset output_file split columns skip_bad_rows max_length micro_batch_tokens dtype base_model "
    "ensemble chat_template_path trust_remote_code"
)

logger = logging.getLogger(__name__)


def run(argv: list[str]) -> int:
    """Write a line per distinct response: its prompt, text, reward and origin.

    For a reward ensemble also ``std``, the standard deviation over its members; for a model with criteria, the part of
    the reward that each contributes.
    """
    from rrm_lm.settings.parser import parse

    (args,) = parse([ScoreArguments], argv, command="rrm-lm score", examples=EXAMPLES, common=COMMON)
    args.require()
    from rrm_lm.evaluation.preferences.scoring import score_responses
    from rrm_lm.models.pretrained import process_state
    from rrm_lm.runs.scoring import load_sets, make_scorer
    from rrm_lm.storage import json_text, write_jsonl

    state = process_state()
    origins = _origins(load_sets(args))
    scorer = make_scorer(args, str(args.model))
    groups = {prompt: list(found) for prompt, found in origins.items()}
    rewards = score_responses(scorer, groups)
    if not state.is_main_process:
        return 0
    parts = _parts(scorer, groups)
    rows = [
        {
            "prompt": [m.to_dict() for m in prompt],
            "response": response,
            "reward": rewards[prompt][response],
            **_disagreement(rewards[prompt][response]),
            **({"criteria": parts[prompt, response]} if parts else {}),
            "origin": origin,
        }
        for prompt, found in origins.items()
        for response, origin in found.items()
    ]
    missing = [row["origin"] for row in rows if not math.isfinite(row["reward"])]
    if missing:
        logger.warning("%d of %d responses got no reward (null), the first in %s", len(missing), len(rows), missing[0])
    if args.output_file:
        write_jsonl(args.output_file, rows)
        logger.info("%d rewards in %s", len(rows), args.output_file)
    else:
        for row in rows:
            print(json_text(row, indent=None))
    return 0


def _disagreement(reward: float) -> dict[str, float]:
    """The standard deviation over the members of an ensemble; nothing for other models."""
    from rrm_lm.models.ensemble import EnsembleReward

    return {"std": reward.std} if isinstance(reward, EnsembleReward) else {}


def _parts(scorer: Any, groups: dict[Prompt, list[str]]) -> dict[tuple[Prompt, str], dict[str, float]]:
    """The contribution of each criterion to the reward of each response, in nats; empty for models without criteria."""
    criteria = getattr(scorer, "criteria", None)
    if criteria is None:
        return {}
    names = [one.name for one in criteria.criteria]
    found = zip(groups.items(), criteria.contributions(list(groups), list(groups.values())), strict=True)
    return {
        (prompt, response): dict(zip(names, row.tolist(), strict=True))
        for (prompt, responses), table in found
        for response, row in zip(responses, table, strict=True)
    }


def _origins(sets: dict[str, Feedback]) -> dict[Prompt, dict[str, str]]:
    """Every distinct response of every prompt, and its first origin.

    Raises:
        DataError: No set has a response.
    """
    from rrm_lm.errors import DataError

    origins: dict[Prompt, dict[str, str]] = {}
    for feedback in sets.values():
        for record in feedback.records():
            for response in _responses(record):
                origins.setdefault(record.prompt, {}).setdefault(response, str(record.origin))
    if not origins:
        raise DataError(
            "There are no responses to score",
            where=", ".join(sets),
            expected='rows with a prompt and a response, such as {"prompt": ..., "completion": ...}',
        )
    return origins


def _responses(record: object) -> list[str]:
    """The responses in a record."""
    names = ("chosen", "rejected", "response", "corrected")
    return [text for name in names if isinstance(text := getattr(record, name, None), str) and text]
