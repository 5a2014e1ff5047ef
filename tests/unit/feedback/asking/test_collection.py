"""New feedback on a policy's own samples: fair pairs, nothing lost, nothing asked twice, a file our readers read."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm import locks
from rrm_lm.errors import CheckpointError, ConfigError, DataError
from rrm_lm.feedback.asking.collection import ASKED, choose_pairs, collect
from rrm_lm.feedback.asking.overseers import NO_ANSWER, Verdict
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison, Message, Origin, Prompt
from rrm_lm.simulated.plain_user import PlainUser, Request


def asked(text: str) -> Prompt:
    return (Message("user", text),)


PROMPTS = [asked("one"), (Message("system", "Be brief."), *asked("two"), Message("assistant", "What?"), *asked("2"))]
RESPONSES = [["a", "a bb", "a bb ccc"], ["Human: x\n\nAssistant: y", "Human: x\n\nAssistant: y and z"]]


class Scripted:
    """Prefers the shorter response, cannot tell equal lengths apart, and abstains on "?"; may fail after some calls."""

    name, limit = "scripted", "counts letters"

    def __init__(self, calls: int = 10**9, *, lost: bool = False, strength: float | None = None) -> None:
        self.calls, self.lost, self.strength = calls, lost, strength
        self.compared: list[tuple[Prompt, tuple[str, ...]]] = []
        self.written: list[tuple[Prompt, str]] = []
        self.lock = threading.Lock()

    def _count(self) -> None:
        with self.lock:
            if self.calls <= 0:
                raise ConnectionError("gone")
            self.calls -= 1

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        self._count()
        self.compared.append((prompt, tuple(responses)))
        if any("?" in response for response in responses):
            return Verdict(None, abstained=NO_ANSWER if self.lost else "refused")
        lengths = [len(response) for response in responses]
        if lengths[0] == lengths[1]:
            return Verdict(None)
        return Verdict(lengths.index(min(lengths)), self.strength, "It is shorter.")

    def critique(self, prompt: Prompt, response: str) -> str:
        self._count()
        self.written.append((prompt, response))
        return "" if "silent" in response else f" {len(response)} letters.\nFine \ud83d. "


class Another(Scripted):
    name = "another"


def read_back(path: Path) -> tuple[Comparison, ...]:
    """What `load_feedback` makes of a file, as if collected by the scripted overseer in the round it says."""
    found = load_feedback(str(path))
    assert found.sizes() in ({}, {"comparisons": len(found)})
    assert all(record.origin == Origin(str(path), row) for row, record in enumerate(found.comparisons, 1))
    return tuple(
        replace(record, origin=Origin(f"{record.source}, {record.subset}", record.origin.row))
        for record in found.comparisons
    )


# ---- which pairs ----


@given(st.integers(0, 7), st.integers(1, 30), st.integers(0, 5))
def test_pairs_are_different_and_within_the_budget(count: int, budget: int, seed: int) -> None:
    chosen = choose_pairs(count, budget, random.Random(seed))
    assert len(chosen) == min(budget, count * (count - 1) // 2)
    assert len({frozenset(pair) for pair in chosen}) == len(chosen)
    assert all(first != second and {first, second} <= set(range(count)) for first, second in chosen)
    used = Counter(number for pair in chosen[: count // 2] for number in pair)
    assert all(times == 1 for times in used.values())  # every number is shown before any is shown twice
    assert chosen == choose_pairs(count, budget + 5, random.Random(seed))[: len(chosen)]


def test_every_pair_and_direction_is_as_likely() -> None:
    found = Counter(choose_pairs(4, 1, random.Random(seed))[0] for seed in range(6000))
    assert set(found) == {pair for one in combinations(range(4), 2) for pair in (one, one[::-1])}
    assert all(abs(count - 500) < 5 * 500**0.5 for count in found.values())


def test_a_prompt_has_the_same_pairs_in_any_company() -> None:
    prompts, responses = [asked(f"prompt {n}") for n in range(20)], [["a", "bb", "ccc", "dddd"]] * 20
    whole, half = Scripted(), Scripted()
    collect(whole, prompts, responses, comparisons_per_prompt=2, critiques=False)
    collect(half, prompts[:9:-1], responses[:10], comparisons_per_prompt=2, critiques=False)
    assert set(half.compared) == {question for question in whole.compared if question[0] in prompts[10:]}
    assert len({responses for _, responses in whole.compared}) > 5  # and not the same pair for all
    other = Scripted()
    collect(other, prompts, responses, comparisons_per_prompt=2, critiques=False, seed=1)
    assert other.compared != whole.compared


# ---- what comes of it ----


@pytest.mark.parametrize("critiques", [True, False])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_what_is_written_reads_back_as_the_same_records(
    tmp_path: Path, critiques: bool, strength: float | None
) -> None:
    overseer, path = Scripted(strength=strength), tmp_path / "new.jsonl"
    found = collect(
        overseer,
        PROMPTS,
        RESPONSES,
        comparisons_per_prompt=9,
        critiques=critiques,
        round_number=2,
        path=path,
    )
    assert read_back(path) == found.records and len(found.records) == 4
    record = found.records[0]
    assert (record.source, record.subset, record.origin) == ("scripted", "round 2", Origin("scripted, round 2", 1))
    assert len(record.chosen) < len(record.rejected) and record.margin == strength
    if critiques:
        assert record.chosen_critiques == (f"{len(record.chosen)} letters.\nFine ?.",)
        # Each response is written about once, in however many pairs it stands.
        assert Counter(overseer.written) == Counter(
            (p, r) for p, rs in zip(PROMPTS, RESPONSES, strict=True) for r in rs
        )
    else:
        assert record.chosen_critiques == () and not overseer.written
    assert found == collect(
        Scripted(strength=strength), PROMPTS, RESPONSES, comparisons_per_prompt=9, critiques=critiques, round_number=2
    )


def test_every_response_and_every_question_is_counted() -> None:
    prompts = [asked("p"), asked("q"), asked("r"), asked("s"), asked("p")]
    responses = [["a", " a ", "", "bb"], ["same", "same"], ["tie!", "Tie."], ["huh?", "x"], ["silent words"]]
    overseer = Scripted()
    found = collect(overseer, prompts, responses, comparisons_per_prompt=5)
    counts = found.counts
    assert (counts.prompts, counts.responses, counts.equal_responses, counts.empty_responses) == (4, 11, 2, 1)
    assert (counts.prompts_without_pair, counts.pairs, counts.comparisons, counts.ties) == (1, 5, 3, 1)
    assert counts.abstentions == {"refused": 1}
    assert (counts.critiques, counts.missing_critiques) == (2, 1)
    assert counts.to_dict()["abstentions"] == {"refused": 1}
    silent = next(record for record in found.records if record.rejected == "silent words")
    assert silent.rejected_critiques == () and silent.chosen_critiques
    assert counts.summary() == (
        "5 pairs on 4 prompts: 3 comparisons, 1 ties, 1 abstentions (1 refused); 2 critiques (1 missing); "
        "2 responses repeat another; 1 responses are empty; 1 prompts have no two different responses"
    )
    assert not any("?" in text for _, text in overseer.written) and not any(
        "ie" in text for _, text in overseer.written
    )


def test_the_simulated_user_as_overseer(tmp_path: Path) -> None:
    user = PlainUser([Request("How long should I boil an egg?", ("minutes", "8|9|10|nine"))])
    good, bad = "Boil it for nine minutes. Enjoy!", "Sure! It depends on many things. It is hard. Who knows. Maybe"
    prompts = [asked("How long should I boil an egg?")]
    found = collect(user, prompts, [[bad, good]], path=tmp_path / "new.jsonl")
    (record,) = found.records
    assert (record.chosen, record.rejected) == (good, bad)
    assert record.rejected_critiques == (user.critique(prompts[0], bad),)
    assert replace(read_back(tmp_path / "new.jsonl")[0], origin=record.origin) == record


def test_an_overseer_says_which_and_why_and_without_a_strength_not_how_much() -> None:
    prompts, responses = [asked("p"), asked("q"), asked("r")], [["a b c", "a"], ["a b", "c d"], ["a", "a"]]
    found = collect(Scripted(), prompts, responses)
    (record,) = found.records
    assert (record.prompt, record.chosen, record.rejected) == (asked("p"), "a", "a b c")
    assert (record.margin, record.source) == (None, "scripted")
    assert [one[0][:3] for one in (record.chosen_critiques, record.rejected_critiques)] == ["1 l", "5 l"]
    assert (found.counts.ties, found.counts.prompts_without_pair) == (1, 1)


def test_nothing_to_compare_gives_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = collect(Scripted(), PROMPTS, [["a", "a"], [""]], path=tmp_path / "new.jsonl")
    assert found.records == () and found.counts.pairs == 0 and "gave no comparison" in caplog.text
    with pytest.raises(DataError, match="no rows"):
        load_feedback(str(tmp_path / "new.jsonl"))


# ---- interruptions ----


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("calls", [0, 3, 10, 14, 27])
def test_an_interrupted_collection_goes_on_where_it_was(tmp_path: Path, calls: int, at_once: int) -> None:
    prompts = [asked(f"prompt {n}") for n in range(10)]
    responses = [["a" * (n + 1), "b" * (n + 2), "c" * (n + 3)] for n in range(10)]
    whole, path = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    full = Scripted()
    expected = collect(full, prompts, responses, path=whole)
    assert len(full.compared) + len(full.written) == 30

    first, second = Scripted(calls), Scripted()
    with pytest.raises(ConnectionError):
        collect(first, prompts, responses, path=path, at_once=at_once)
    assert not path.exists()  # a feedback file is whole or not there
    with (tmp_path / ("parts.jsonl" + ASKED)).open("a") as stream:
        stream.write('{"asked": "comparison", "prom')  # a line cut short
    done: list[tuple[str, int, int]] = []
    found = collect(second, prompts, responses, path=path, at_once=at_once, progress=lambda *step: done.append(step))
    assert found == expected and path.read_bytes() == whole.read_bytes()
    assert Counter(first.compared + second.compared) == Counter(full.compared)
    assert Counter(first.written + second.written) == Counter(full.written)
    assert len(first.compared) + len(first.written) == calls
    assert done[-1] == ("critiques", 20, 20) and len(done) == 30 - calls

    third = Scripted(0)
    assert collect(third, prompts, responses, path=path) == expected  # nothing is left to ask


def test_a_larger_budget_asks_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    less, more = Scripted(), Scripted()
    collect(less, PROMPTS, RESPONSES, path=path)
    found = collect(more, PROMPTS, RESPONSES, comparisons_per_prompt=3, path=path)
    assert len(less.compared) == 2 and len(more.compared) == 2 and len(found.records) == 4
    assert read_back(path) == found.records


def test_an_answer_that_did_not_come_is_asked_for_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    prompts, responses = [asked("p")], [["why?", "x"]]
    for lost, again in ((True, 1), (False, 0)):
        path = tmp_path / f"{lost}.jsonl"
        assert collect(Scripted(lost=lost), prompts, responses, path=path).counts.abstentions
        second = Scripted()
        found = collect(second, prompts, responses, path=path)
        assert len(second.compared) == again and found.counts.abstentions == {"refused": 1}


def test_a_critique_that_did_not_come_is_asked_for_again(tmp_path: Path) -> None:
    prompts, responses, path = [asked("p")], [["silent one", "words"]], tmp_path / "new.jsonl"
    collect(Scripted(), prompts, responses, path=path)
    second = Scripted()
    assert collect(second, prompts, responses, path=path).counts.missing_critiques == 1
    assert second.written == [(prompts[0], "silent one")] and not second.compared


def test_the_answers_say_what_was_asked_and_by_whom(tmp_path: Path) -> None:
    collect(Scripted(), PROMPTS[:1], [["a", "bb"]], path=tmp_path / "new.jsonl", round_number=3)
    lines = [json.loads(line) for line in (tmp_path / ("new.jsonl" + ASKED)).read_text().splitlines()]
    assert lines[0] == {"overseer": "scripted", "limit": "counts letters", "round": 3}
    assert [line["asked"] for line in lines[1:]] == ["comparison", "critique", "critique"]
    assert lines[1]["reason"] == "It is shorter." and sorted(lines[1]["responses"]) == ["a", "bb"]
    assert lines[1]["responses"][lines[1]["preferred"]] == "a"


# ---- misuse ----


def test_answers_of_another_overseer_or_round_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    collect(Scripted(), PROMPTS, RESPONSES, path=path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="round is 1 and not 2"):
        collect(Scripted(), PROMPTS, RESPONSES, path=path, round_number=2)
    with pytest.raises(CheckpointError, match="overseer is 'scripted' and not 'another'"):
        collect(Another(), PROMPTS, RESPONSES, path=path)
    assert path.read_bytes() == before


def test_a_file_that_no_collection_made_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="no collection made it"):
        collect(Scripted(), PROMPTS, RESPONSES, path=path)
    assert path.read_text() == "precious"


def test_two_collections_into_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    with (
        locks.lock(path.with_name(path.name + ".lock"), what="a test"),
        pytest.raises(CheckpointError, match="in use by another run"),
    ):
        collect(Scripted(), PROMPTS, RESPONSES, path=path)


@pytest.mark.parametrize("line", ["not json", "[1]"])
def test_a_broken_line_of_answers_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "new.jsonl"
    collect(Scripted(), PROMPTS, RESPONSES, path=path)
    answers = tmp_path / ("new.jsonl" + ASKED)
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(CheckpointError, match="row 3"):
        collect(Scripted(), PROMPTS, RESPONSES, path=path)


def test_a_folder_of_collected_files_is_read_as_feedback(tmp_path: Path) -> None:
    for number in (1, 2):
        collect(Scripted(), PROMPTS, RESPONSES, path=tmp_path / f"round_{number}.jsonl", round_number=number)
    assert [record.subset for record in load_feedback(str(tmp_path)).comparisons] == ["round 1"] * 2 + ["round 2"] * 2


def test_misuse_is_refused_before_anything_is_asked() -> None:
    overseer = Scripted(0)
    with pytest.raises(ConfigError, match="1 lists of responses to 2 prompts"):
        collect(overseer, PROMPTS, RESPONSES[:1])
    with pytest.raises(ConfigError, match="comparisons_per_prompt"):
        collect(overseer, PROMPTS, RESPONSES, comparisons_per_prompt=0)
    with pytest.raises(DataError, match="no user turn"):
        collect(overseer, [(Message("system", "x"),)], [["a", "b"]])
    with pytest.raises(DataError, match="half of a surrogate"):
        collect(overseer, [asked("x")], [["a\ud83d", "b"]])
