"""Best-of-n, scoring in chunks, scoring with notes, and quality measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.feedback.records import Prompt
from rrm_lm.recursion.agents import Agent, BestOfN, ChunkedScorer, Costs, ScorerWithNotes, total_costs
from rrm_lm.recursion.assistance import HelperNotes
from rrm_lm.recursion.critics import HelperCritic, Remark
from rrm_lm.recursion.quality import fresh_pairs, labels, notes_quality
from rrm_lm.recursion.solve import solve
from rrm_lm.recursion.tasks import HelperTask, MainTask
from tests.tiny import comparison
from tests.unit.recursion.test_assistance import PROMPT, Fake, right
from tests.unit.recursion.toy import Letters
from tests.unit.recursion.trees import tree, workspace

DOMAIN = Letters()


@dataclass
class Lengths:
    """Scorer length, and remembers what it was asked."""

    asked: list[list[str]] = field(default_factory=list)
    name: str = "lengths"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        self.asked += [list(group) for group in responses]
        return [[float(len(text)) for text in group] for group in responses]


@dataclass
class Sampler:
    def sample(self, prompts: Sequence[Prompt], count: int = 1, **_: Any) -> list[list[str]]:
        return [["a" * (number + 1) for number in range(count)] for _ in prompts]


def test_best_of_n_chooses_among_candidates_or_samples() -> None:
    costs = Costs()
    policy = BestOfN(MainTask(DOMAIN), Lengths(), Sampler(), 4, costs=costs)  # type: ignore[arg-type]
    assert policy.respond(DOMAIN.prompts) == ["aaaa"] * 3
    assert costs.scored == 12
    task = HelperTask(DOMAIN, "letter_s")
    helper = BestOfN(task, Lengths(), None, 4)
    assert helper.respond([task.ask(PROMPT, "blue moon")]) == ['yes "blue"']  # the longer verdict
    nothing = HelperTask(DOMAIN, "small_s")
    assert BestOfN(nothing, Lengths(), None, 2).respond([]) == []


@dataclass
class Narrow(Lengths):
    """Reads prompts and responses of at most 120 characters."""

    def fits(self, prompt: Prompt, response: str) -> bool:
        return len(response) + sum(len(message.content) for message in prompt) <= 120


def test_a_helper_answers_nothing_if_the_prompt_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    task, inner = HelperTask(DOMAIN, "letter_s"), Narrow()
    agent = Agent("letter_s", task, ChunkedScorer(inner), BestOfN(task, ChunkedScorer(inner), None, 4), Costs())
    found = HelperNotes([agent])
    long = "blue " * 40
    found.prepare([(PROMPT, "blue moon"), (PROMPT, long)])
    assert found.notes(PROMPT, "blue moon") and found.notes(PROMPT, long) == ()
    assert len(inner.asked) == 1, "a response that does not fit was scored"
    assert found.account()["letter_s"]["unreadable"] == 1 and "1 of 2 prompts do not fit" in caplog.text
    assert HelperCritic(agent, "critic").critiques([PROMPT], [long]) == [Remark("")]


def test_a_loaded_policy_knows_which_prompts_fit(tmp_path: Path) -> None:
    shop = workspace(tmp_path)
    node = tree(top={"task": "main", "helpers": ["letter_b"]}, letter_b={}).helpers[0]
    agent = solve(node, shop)
    task = HelperTask(DOMAIN, "letter_b")
    fine, long = (task.ask(PROMPT, text) for text in ("blue moon", "blue moon " * 200))
    assert (agent.policy.fits(fine), agent.policy.fits(long)) == (True, False)
    assert agent.respond([long, fine])[0] == "" != agent.respond([long, fine])[1]


def test_many_responses_to_a_prompt_are_scored_a_few_at_a_time() -> None:
    inner = Lengths()
    many = ["b" * number for number in range(1, 20)]
    assert ChunkedScorer(inner).score([PROMPT, PROMPT], [many, ["x"]]) == [[float(n) for n in range(1, 20)], [1.0]]
    assert max(map(len, inner.asked)) == 8 and sum(map(len, inner.asked)) == 20


def test_a_scorer_with_notes_reads_them_after_the_response() -> None:
    inner, notes = Lengths(), HelperNotes([Fake(right)])
    ScorerWithNotes(inner, notes).score([PROMPT], [["blue sea", "moon"]])
    (shown,) = inner.asked
    assert shown[0].startswith("blue sea\n[notes") and 'letter_s: "yes" in "blue"' in shown[0]


def test_quality_of_notes_by_hand() -> None:
    task = HelperTask(DOMAIN, "letter_s")
    prompts = [task.ask(PROMPT, text) for text in ("sea", "moon", "blue", "story")]
    found = notes_quality(task, prompts, ['yes "sea"', 'no "moon"', 'yes "blue"', 'no "sea"'])
    assert found["balanced_accuracy"]["value"] == pytest.approx(0.5)
    assert found["taken_for"] == {"no": {"no": 1, "yes": 1}, "yes": {"no": 1, "yes": 1}}
    assert found["false_quotations"] == 1 and found["unreadable"] == 0
    silent = notes_quality(task, prompts, ["?"] * 4)
    assert silent["balanced_accuracy"]["value"] == 0 and silent["unreadable"] == 4


def test_fresh_pairs_have_the_better_response_first_and_labels_are_compared_with_gold() -> None:
    import random

    for near in (False, True):
        for prompt, better, worse in fresh_pairs(DOMAIN, 20, random.Random(0), near=near):
            assert DOMAIN.gold(prompt, better) > DOMAIN.gold(prompt, worse)
    records = [comparison(chosen="moon moon", rejected="moon"), comparison(chosen="moon", rejected="moon moon", row=2)]
    found = labels(MainTask(DOMAIN), records)
    assert found is not None and found["value"] == 0.5 and found["n"] == 2
    assert labels(MainTask(DOMAIN), []) is None


def test_costs_add_up() -> None:
    total = total_costs([Costs(1, 2, 3, 4, {"reward": 1.5}), Costs(1, 0, 0, 0, {"reward": 0.5, "policy": 2.0})])
    assert total == Costs(2, 2, 3, 4, {"reward": 2.0, "policy": 2.0})
