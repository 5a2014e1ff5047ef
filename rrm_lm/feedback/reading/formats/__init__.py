"""The shapes that feedback comes in, recognised by their columns.

A file has one shape. The first entry of `FORMATS` whose test its columns pass is the one: entries are ordered from the
most particular to the most general, so the choice is the same every time and a set with more columns is never read as a
poorer one. The columns of a file are all that occur in any of its rows; what a column holds is told by the first row
that has something in it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats import benchmarks, pairs, responses
from rrm_lm.feedback.reading.formats.row import Row, is_transcript
from rrm_lm.feedback.records import Record


class Columns:
    """The columns of a file and what they hold: "messages", "texts", "objects", "transcript", "text", "other"."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.kinds: dict[str, str] = {}
        for row in rows:
            for name, value in row.items():
                if self.kinds.get(name, "nothing") == "nothing":
                    self.kinds[name] = _kind(value)

    def have(self, *names: str) -> bool:
        return all(name in self.kinds for name in names)

    def have_any(self, *names: str) -> bool:
        return any(name in self.kinds for name in names)

    def hold(self, kind: str, *names: str) -> bool:
        return all(self.kinds.get(name) == kind for name in names)


@dataclass(frozen=True)
class Format:
    """One shape: its name, its columns as a person would write them, how to tell it, how to read a row of it.

    `source` is what its records are called when the rows do not say; "" takes the name of the file or the set.
    """

    name: str
    shape: str
    matches: Callable[[Columns], bool]
    read: Callable[[Row], Iterator[Record]]
    source: str = ""


def _lists(columns: Columns) -> bool:
    return columns.have("prompt") and columns.hold("texts", "chosen", "rejected")


def _pair(columns: Columns) -> bool:
    return columns.have("chosen", "rejected") and not columns.hold("texts", "chosen", "rejected")


CRITIQUED = (
    *("chosen_critiques", "chosen_critique", "chosen_rating"),
    *("rejected_critiques", "rejected_critique", "rejected_rating"),
)
SUMMARIES = ("generated_summary_for_comparison_A", "generated_summary_for_feedback")
ABOUT_ONE = (*responses.CRITIQUES, *responses.CORRECTED, "rating", "verdict")

FORMATS: tuple[Format, ...] = (
    Format(
        "RM-Bench",
        "prompt, chosen [3 texts], rejected [3 texts], domain",
        lambda c: _lists(c) and c.have("domain") and not c.have_any("subset", "num_correct"),
        benchmarks.read_rm_bench,
        "rm-bench",
    ),
    Format(
        "RewardBench 2",
        "prompt, chosen [texts], rejected [texts], subset, num_correct",
        lambda c: _lists(c) and c.have_any("subset", "num_correct"),
        benchmarks.read_best_of,
        "rewardbench-2",
    ),
    Format("best of n", "prompt, chosen [texts], rejected [texts]", _lists, benchmarks.read_best_of),
    Format(
        "RewardBench",
        "prompt, chosen, rejected, chosen_model, rejected_model, subset",
        lambda c: _pair(c) and c.have("prompt", "chosen_model", "rejected_model", "subset"),
        pairs.read_preference,
        "rewardbench",
    ),
    Format(
        "HelpSteer3",
        "context, response1, response2, overall_preference",
        lambda c: c.have("response1", "response2", "overall_preference"),
        pairs.read_graded,
        "helpsteer3",
    ),
    Format(
        "HelpSteer3-Feedback",
        "context, response1, response2, feedback1, feedback2",
        lambda c: c.have("response1", "response2", "feedback1", "feedback2"),
        pairs.read_feedback_pair,
        "helpsteer3",
    ),
    Format(
        "HelpSteer3-Edit",
        "context, original_response, edited_response, feedback",
        lambda c: c.have("context", "original_response", "edited_response"),
        responses.read_response,
        "helpsteer3",
    ),
    Format(
        "HelpSteer2-Preference",
        "prompt, response_1, response_2, preference_strength",
        lambda c: c.have("response_1", "response_2", "preference_strength"),
        pairs.read_graded,
        "helpsteer2",
    ),
    Format(
        "HelpSteer2",
        "prompt, response, helpfulness",
        lambda c: c.have("prompt", "response", "helpfulness"),
        responses.read_helpsteer2,
        "helpsteer2",
    ),
    Format(
        "SLF5K",
        "title, post, generated_summary_for_comparison_A and _B, comparison_preference, feedback",
        lambda c: (
            c.have("title", "post")
            and c.have_any("generated_summary_for_feedback", "generated_summary_for_comparison_A")
        ),
        pairs.read_slf5k,
        "slf5k",
    ),
    Format(
        "HH transcripts",
        'chosen and rejected "\\n\\nHuman: ... \\n\\nAssistant: ..."',
        lambda c: c.hold("transcript", "chosen", "rejected"),
        pairs.read_preference,
    ),
    Format(
        "critiqued pairs",
        "prompt, chosen, rejected, chosen_critiques, rejected_critiques, chosen_rating, rejected_rating",
        lambda c: _pair(c) and c.have_any(*CRITIQUED),
        pairs.read_preference,
    ),
    Format(
        "UltraFeedback-binarized",
        "prompt, chosen [messages], rejected [messages], score_chosen, score_rejected",
        lambda c: _pair(c) and c.have("score_chosen", "score_rejected"),
        pairs.read_preference,
        "ultrafeedback",
    ),
    Format(
        "preference pairs",
        "prompt, chosen, rejected (texts or messages), margin if graded",
        lambda c: _pair(c) and c.have("prompt"),
        pairs.read_preference,
    ),
    Format(
        "preference pairs with implicit prompt",
        "chosen, rejected that begin with the same prompt",
        _pair,
        pairs.read_preference,
    ),
    Format(
        "unpaired preference",
        "prompt, completion, label (true or false)",
        lambda c: c.have("prompt", "completion", "label"),
        responses.read_unpaired,
    ),
    Format(
        "critiques, ratings and corrections",
        "prompt, response, and any of critique, rating, verdict, corrected",
        lambda c: c.have("prompt") and c.have_any("response", "completion") and c.have_any(*ABOUT_ONE),
        responses.read_response,
    ),
    Format(
        "demonstrations",
        "prompt, completion (or messages)",
        lambda c: (c.have("prompt") and c.have_any("completion", "response")) or c.hold("messages", "messages"),
        responses.read_demonstration,
    ),
    Format(
        "goal examples", "goal_example, prompt if it has one", lambda c: c.have("goal_example"), responses.read_goal
    ),
)

# The names that --columns may map to: every column that some format reads.
_NAMES = """
prompt context chosen rejected margin chosen_critiques rejected_critiques chosen_rating rejected_rating
score_chosen score_rejected chosen_model rejected_model source subset domain id num_correct
response completion messages critique critiques feedback rating rating_min rating_max verdict label
corrected refinement original_response edited_response goal_example helpfulness
response_1 response_2 preference_strength preference_statement preference_elaboration
response1 response2 overall_preference individual_preference feedback1 feedback2
title post subreddit comparison_preference generated_summary_for_comparison_A generated_summary_for_comparison_B
generated_summary_for_feedback feedback_class ideal_human_summary
"""
COLUMNS = frozenset(_NAMES.split())


def recognise(rows: Sequence[Mapping[str, Any]], file: str) -> Format:
    """The format of a file's rows, after any mapping of columns.

    Raises:
        DataError: No format fits; names the columns found, the shapes that are known, and --columns.
    """
    columns = Columns(rows)
    for candidate in FORMATS:
        if candidate.matches(columns):
            return candidate
    found = ", ".join(columns.kinds) or "none"
    raise DataError(
        f"these columns are no known shape of feedback: {found}",
        where=file,
        expected="one of: " + "; ".join(f"{known.name} ({known.shape})" for known in FORMATS),
        remedy="say which column is which with --columns, for example --columns question=prompt better=chosen "
        "worse=rejected",
    )


def rename(rows: Sequence[dict[str, Any]], mapping: Mapping[str, str], file: str) -> list[dict[str, Any]]:
    """Rows with their columns under our names; `mapping` is theirs to ours.

    A column that is not mapped keeps its name, unless a mapped one takes that name: then it is left aside.

    Raises:
        DataError: A column that no row has, a name of ours that does not exist, or two columns mapped to one.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    for theirs, ours in mapping.items():
        if theirs not in present:
            raise DataError(
                f"--columns names {theirs!r}, which the file does not have",
                where=file,
                expected="one of its columns: " + ", ".join(present),
                remedy=_nearest(theirs, present),
            )
        if ours not in COLUMNS:
            raise DataError(
                f"--columns maps {theirs!r} to {ours!r}, which is no column that is read",
                where=file,
                expected="one of " + ", ".join(sorted(COLUMNS)),
                remedy=_nearest(ours, sorted(COLUMNS)),
            )
    if len(set(mapping.values())) != len(mapping):
        raise DataError("--columns maps two columns to one name", where=file, remedy="map each to a name of its own")
    taken = set(mapping.values())
    return [
        {mapping.get(name, name): value for name, value in row.items() if name in mapping or name not in taken}
        for row in rows
    ]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _kind(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "nothing"
    if isinstance(value, list):
        if isinstance(value[0], dict):
            return "messages" if "role" in value[0] else "objects"
        return "texts" if isinstance(value[0], str) else "other"
    if isinstance(value, str):
        return "transcript" if is_transcript(value) else "text"
    return "other"
