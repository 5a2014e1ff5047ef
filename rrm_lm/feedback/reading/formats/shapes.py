"""The table of formats: the columns that each needs, the function that reads its rows, and the columns it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rrm_lm.feedback.reading.formats import benchmarks, pairs, responses
from rrm_lm.feedback.reading.formats.columns import Columns
from rrm_lm.feedback.reading.formats.row import SUBSETS, Row
from rrm_lm.feedback.reading.formats.verdicts import Verdicts, find_verdicts, read_verdict
from rrm_lm.feedback.records import Record


class FileColumns(Columns):
    """The columns of a file, and the responses that some formats look for in them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], file: str = "") -> None:
        super().__init__(rows)
        self.file = file

    @cached_property
    def verdicts(self) -> Verdicts | None:
        """The columns of two responses and a verdict, in a file without chosen and rejected."""
        return None if self.have("chosen", "rejected") else find_verdicts(self.kinds, self.rows, self.file)

    @cached_property
    def ranked(self) -> str:
        """The column with a list of ranked or scored responses, or ""."""
        for name, kind in self.kinds.items():
            first = next(iter(self.values(name)), None) if kind in ("objects", "messages") else None
            if first is not None and benchmarks.ranked_keys(first[0]) is not None:
                return name
        return ""

    def fit(self, needs: str) -> bool:
        """Whether the file meets `Format.needs`."""
        return any(all(map(self._has, way.split())) for way in needs.split(" or "))

    def _has(self, need: str) -> bool:
        names, _, kind = need.removeprefix("!").partition(":")
        if names.startswith("@"):
            found = bool(getattr(self, names[1:]))
        else:
            found = any(self.kinds.get(name) == kind if kind else name in self.kinds for name in names.split("|"))
        return found != need.startswith("!")


@dataclass(frozen=True)
class Format:
    """One shape of rows."""

    # name, shape: its name, and its columns as text for messages
    name: str
    shape: str
    # columns that a file must have, separated by spaces: `a|b` means either, `!a` means no such column, `a:texts` means
    # a column of that kind, `@verdicts` is a property of `FileColumns`, and `or` separates alternatives
    needs: str
    read: Callable[[Row], Iterator[Record]]  # reads the records of a row
    reads: str = ""  # the columns it reads in addition to `ALWAYS`
    source: str = ""  # the source of the records if rows do not name it; "" for the name of the file or set


ALWAYS = ("prompt", "system", "tools", "source", *SUBSETS)
PAIR = (
    "chosen rejected margin chosen_critiques rejected_critiques chosen_critique rejected_critique chosen_rating "
    "rejected_rating score_chosen score_rejected"
)
CRITIQUED = "chosen_critiques|chosen_critique|chosen_rating|rejected_critiques|rejected_critique|rejected_rating"
ANSWER = "response completion messages label"
ABOUT_ONE = (*responses.CRITIQUES, *responses.CORRECTED, "rating", "verdict")
LISTS = "prompt chosen:texts rejected:texts"
SLF5K = "generated_summary_for_comparison_A generated_summary_for_comparison_B generated_summary_for_feedback"

# From the most specific to the most general; the first that fits is used.
# fmt: off
FORMATS: tuple[Format, ...] = (
    Format("RM-Bench", "prompt, chosen [3 texts], rejected [3 texts], domain",
           f"{LISTS} domain !subset|num_correct", benchmarks.read_rm_bench, "chosen rejected id", "rm-bench"),
    Format("RewardBench 2", "prompt, chosen [texts], rejected [texts], subset, num_correct",
           f"{LISTS} subset|num_correct", benchmarks.read_best_of, "chosen rejected id num_correct", "rewardbench-2"),
    Format("best of n", "prompt, chosen [texts], rejected [texts]",
           LISTS, benchmarks.read_best_of, "chosen rejected id"),
    Format("RewardBench", "prompt, chosen, rejected, chosen_model, rejected_model, subset",
           "prompt chosen rejected chosen_model rejected_model subset", pairs.read_preference, PAIR, "rewardbench"),
    Format("HelpSteer3", "context, response1, response2, overall_preference",
           "response1 response2 overall_preference", pairs.read_graded,
           "context response1 response2 overall_preference individual_preference", "helpsteer3"),
    Format("HelpSteer3-Feedback", "context, response1, response2, feedback1, feedback2",
           "response1 response2 feedback1 feedback2", pairs.read_feedback_pair,
           "context response1 response2 feedback1 feedback2", "helpsteer3"),
    Format("HelpSteer3-Edit", "context, original_response, edited_response, feedback",
           "context original_response edited_response", responses.read_response,
           "context original_response edited_response feedback", "helpsteer3"),
    Format("HelpSteer2-Preference", "prompt, response_1, response_2, preference_strength",
           "response_1 response_2 preference_strength", pairs.read_graded,
           "response_1 response_2 preference_strength preference_statement preference_elaboration", "helpsteer2"),
    Format("HelpSteer2", "prompt, response, helpfulness, correctness, coherence",
           "prompt response helpfulness correctness coherence", responses.read_helpsteer2,
           "response helpfulness", "helpsteer2"),
    Format("SLF5K", "title, post, generated_summary_for_comparison_A and _B, comparison_preference, feedback",
           "title post generated_summary_for_feedback|generated_summary_for_comparison_A", pairs.read_slf5k,
           f"title post subreddit comparison_preference {SLF5K} feedback feedback_class ideal_human_summary", "slf5k"),
    Format("two responses and a verdict",
           "prompt, response_a, response_b, winner (arena, PKU-SafeRLHF, SHP, WebGPT ...), or a score of each",
           "@verdicts", read_verdict),
    Format("ranked responses", "prompt, answers [{answer, rank}] (Nectar), or scores instead of ranks",
           "@ranked", benchmarks.read_ranked),
    Format("HH transcripts", 'chosen and rejected "\\n\\nHuman: ... \\n\\nAssistant: ..."',
           "chosen:transcript rejected:transcript", pairs.read_preference, PAIR),
    Format("critiqued pairs",
           "prompt, chosen, rejected, chosen_critiques, rejected_critiques, chosen_rating, rejected_rating",
           f"chosen rejected !chosen:texts {CRITIQUED}", pairs.read_preference, PAIR),
    Format("UltraFeedback-binarized", "prompt, chosen [messages], rejected [messages], score_chosen, score_rejected",
           "chosen rejected !chosen:texts score_chosen score_rejected", pairs.read_preference, PAIR, "ultrafeedback"),
    Format("preference pairs", "prompt, chosen, rejected (texts or messages), margin if graded",
           "prompt chosen rejected !chosen:texts", pairs.read_preference, PAIR),
    Format("preference pairs with implicit prompt", "chosen, rejected that begin with the same prompt",
           "chosen rejected !chosen:texts", pairs.read_preference, PAIR),
    Format("unpaired preference", "prompt, completion (or messages), label (true or false)",
           f"prompt completion|response label !{'|'.join(ABOUT_ONE)} or messages:messages label !{'|'.join(ABOUT_ONE)}",
           responses.read_response, ANSWER),
    Format("critiques, ratings and corrections",
           "prompt, response (or messages), and any of critique, rating, label, verdict, corrected",
           f"prompt completion|response label|{'|'.join(ABOUT_ONE)} or messages:messages label|{'|'.join(ABOUT_ONE)}",
           responses.read_response, " ".join((ANSWER, *ABOUT_ONE, "rating_min rating_max"))),
    Format("demonstrations", "prompt, completion (or messages)",
           "prompt completion|response or messages:messages", responses.read_demonstration, ANSWER),
    Format("goal examples", "goal_example, prompt if it has one",
           "goal_example", responses.read_goal, "goal_example"),
)
# fmt: on
PROMPTS = Format("prompts", "prompt", "prompt", lambda row: iter(()))
PARTICULAR = tuple(known for known in FORMATS if known.source)
