"""`rrm-lm feedback`: export, import, merge, retract and count what a store of feedback holds."""

from __future__ import annotations

from rrm_lm.settings.feedback import FeedbackArguments

EXAMPLES = """\
rrm-lm feedback import feedback.db data/assistant/train.jsonl.gz
rrm-lm feedback stats feedback.db
rrm-lm feedback export feedback.db --output my_feedback
rrm-lm feedback export feedback.db --output pairs.jsonl --format trl
rrm-lm feedback merge all.db anna.db ben.db
rrm-lm feedback retract feedback.db --person ben     (his answers so far)
"""
COMMON = "words output format person item columns split skip_bad_rows"


def run(argv: list[str]) -> int:
    """Do one of these, and print counts."""
    from rrm_lm.settings.parser import parse

    command = "rrm-lm feedback ACTION STORE"
    (args,) = parse([FeedbackArguments], argv, command=command, examples=EXAMPLES, common=COMMON, first="words")
    from rrm_lm.runs.feedback import ACTIONS

    ACTIONS[args.action](args)
    return 0
