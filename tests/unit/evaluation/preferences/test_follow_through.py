"""Follow-through: which faults are edited away, and what share of rewards rises."""

import math
from typing import Any

import pytest

from rrm_lm.evaluation.preferences.follow_through import fixed_faults, follow_through
from rrm_lm.feedback.records import Comparison, Origin
from tests.tiny import prompt_of

LONG = "Sure! It opens at 8. The door is red. It is near the station."
ROWS = [
    ("At 8.", ["There is no friendly close."], LONG, ["Far too long.", 'No need for "Sure!" at the start.']),
    ("At 9.", ["Nice and short."], "- At 9.\n- In town.", ["I do not need a list.", "The tone is odd."]),
]


def pairs() -> list[Comparison]:
    return [
        Comparison(
            prompt=prompt_of(f"when does it open on day {n}?"), chosen=chosen, rejected=rejected,
            chosen_critiques=tuple(good), rejected_critiques=tuple(bad), origin=Origin("rows", n + 1),
        )
        for n, (chosen, good, rejected, bad) in enumerate(ROWS)
    ]  # fmt: skip


class Scorer:
    name = "made up"

    def __init__(self, reward: Any) -> None:
        self.reward = reward

    def score(self, prompts: Any, responses: Any) -> list[list[float]]:
        return [[float(self.reward(text)) for text in group] for group in responses]


def test_each_fault_that_an_edit_fixes() -> None:
    found, faults = fixed_faults(pairs())
    edits = {(one.aspect, one.response): one.edit for one in found}
    assert edits["length", LONG] == "Sure! It opens at 8."
    assert edits["filler_opening", LONG] == "It opens at 8. The door is red. It is near the station."
    assert edits["lists", "- At 9.\n- In town."] == "At 9. In town."
    assert edits["close", "At 8."].startswith("At 8. ")
    assert len(found) == 4 == faults  # praise is no fault, and the tone has no aspect


def test_edits_are_made_of_the_response_alone() -> None:
    """The answer to another question, or text of another response, would not fix what people complain of."""
    row = Comparison(
        prompt=prompt_of("when?"), chosen="At 8.", rejected="It is red.", origin=Origin("rows", 1),
        rejected_critiques=("It does not answer the question.", "Too short, give more detail."),
    )  # fmt: skip
    found, faults = fixed_faults([row, *pairs()])
    assert not any(one.response == "It is red." for one in found) and faults > 4


def test_an_edit_that_makes_it_worse_does_not_count() -> None:
    """To shorten a response is an edit of its length, but not what who calls it too short wants."""
    row = Comparison(
        prompt=prompt_of("when?"), chosen="At 8.", rejected="It is red. It is old. It is near.",
        origin=Origin("rows", 1), rejected_critiques=("Far too short.",),
    )  # fmt: skip
    found, faults = fixed_faults([row])
    assert not found and faults == 1


def test_what_would_be_truncated_is_left_out() -> None:
    scorer: Any = Scorer(lambda text: -len(text))
    scorer.fits = lambda prompt, text: len(text) < 40
    found = follow_through(scorer, pairs())
    assert found is not None and found.overall.n == 2  # not those of the long response


def test_the_share_of_rewards_that_rise() -> None:
    short = follow_through(Scorer(lambda text: -len(text)), pairs())
    assert short is not None
    assert short.by_aspect["length"].value == short.by_aspect["filler_opening"].value == 1.0
    assert short.by_aspect["close"].value == 0.0 and short.overall.value == pytest.approx(0.75)
    assert short.example is not None and short.example[:2] == ("There is no friendly close.", "At 8.")
    constant = follow_through(Scorer(lambda text: 1.0), pairs())
    assert constant is not None and constant.overall.value == 0.5 and constant.example is None
    assert constant.overall.n == 4 and constant.overall.clusters == 2


def test_without_rewards_or_faults_there_is_none() -> None:
    assert follow_through(Scorer(lambda text: math.nan), pairs()) is None
    silent = [Comparison(prompt=prompt_of("when?"), chosen="a", rejected="b", origin=Origin("rows", 1))]
    assert follow_through(Scorer(len), silent) is None
