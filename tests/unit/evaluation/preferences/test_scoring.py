"""Scoring comparisons: once per response, together per prompt, and the same however the work is cut up."""

import json
import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rrm_lm.errors import DataError, ModelError
from rrm_lm.evaluation.preferences import scoring as preferences
from rrm_lm.evaluation.preferences.results import summarise_set
from rrm_lm.evaluation.preferences.scoring import (
    evaluate_preferences,
    group_by_prompt,
    make_examples,
    merge_shards,
    reader_drops,
    score_shard,
)
from rrm_lm.feedback.counts import FileCounts, ReadCounts
from rrm_lm.feedback.records import Origin
from tests.unit.evaluation.samples import FunctionScorer, compare, evaluate, hashed, many


def test_a_prompts_responses_are_scored_together_and_each_once():
    comparisons = [compare("q", "a", "b"), compare("q", "a", "c"), compare("q", "c", "b"), compare("other", "a", "b")]
    scorer = FunctionScorer(hashed)
    evaluate_preferences(scorer, comparisons, name="dev", progress=False)
    assert len(scorer.calls) == 1
    assert sorted(scorer.calls[0]) == [("other", ("a", "b")), ("q", ("a", "b", "c"))]


def test_rewards_reach_their_own_comparison():
    comparisons = many(40)
    for example in evaluate(comparisons).examples:
        c = example.comparison
        assert example.reward_chosen == hashed(c.prompt[0].content, c.chosen)
        assert example.reward_rejected == hashed(c.prompt[0].content, c.rejected)
        assert example.margin == example.reward_chosen - example.reward_rejected
    assert [e.comparison for e in evaluate(comparisons).examples] == comparisons


@pytest.mark.parametrize("world", [2, 3, 7, 50])
def test_any_number_of_processes_gives_the_identical_result(world):
    comparisons = many(60, per_prompt=3)
    groups = group_by_prompt(comparisons)
    shards = [score_shard(FunctionScorer(hashed), groups, rank, world) for rank in range(world)]
    assert sum(map(len, shards)) == len(groups)
    rows = [row for part in reversed(shards) for row in part]  # whatever order they arrive in
    result = summarise_set("dev", make_examples(comparisons, merge_shards(groups, rows)))
    assert result.to_dict() == evaluate(comparisons).to_dict()


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_any_chunk_size_gives_the_identical_result(chunk, monkeypatch):
    comparisons = many(60)
    expected = evaluate(comparisons).to_dict()
    monkeypatch.setattr(preferences, "CHUNK", chunk)
    assert evaluate(comparisons).to_dict() == expected


def test_the_order_of_the_comparisons_changes_nothing_but_rounding():
    comparisons = many(80, per_prompt=4)
    shuffled = random.Random(0).sample(comparisons, len(comparisons))
    one, other = evaluate(comparisons).to_dict(), evaluate(shuffled).to_dict()
    assert _rounded(other) == _rounded(one)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 9) + 0.0 if isinstance(value, float) else value


def test_long_prompts_come_first():
    scorer = FunctionScorer(hashed)
    evaluate_preferences(
        scorer, [compare("short", "a", "b"), compare("a much longer question", "a", "b")], name="dev", progress=False
    )
    assert [prompt for prompt, _ in scorer.calls[0]] == ["a much longer question", "short"]


def test_rewards_that_are_not_finite_leave_their_comparison_out_and_are_counted():
    comparisons = [compare(f"q{i}", "good", bad, row=i) for i, bad in enumerate(["worse", "nan", "inf", "worst"], 1)]
    values = {"good": 1.0, "worse": 0.0, "worst": 2.0, "nan": math.nan, "inf": -math.inf}
    result = evaluate(comparisons, lambda _, response: values[response])
    assert result.overall.n_given == 4
    assert result.overall.n_scored == 2
    assert result.overall.not_scored == {"the reward is not a number": 1, "the reward is infinite": 1}
    assert result.measures.accuracy.value == 0.5
    assert [e.comparison.origin.row for e in result.scored] == [1, 4]


def test_what_the_reader_dropped_is_part_of_what_was_given():
    file = FileCounts("pairs.jsonl", "plain")
    file.drop("chosen and rejected are the same", Origin("pairs.jsonl", 7))
    file.drop("chosen and rejected are the same", Origin("pairs.jsonl", 9))
    drops = reader_drops(ReadCounts((file, file)))
    assert drops == {"chosen and rejected are the same": 4}
    result = evaluate(many(10), dropped=drops)
    assert (result.overall.n_given, result.overall.n_scored) == (14, 10)
    assert result.overall.not_scored == drops


def test_an_empty_set_is_an_error_that_says_what_became_of_the_rows():
    with pytest.raises(DataError, match=r"no comparisons .*the response is empty: 3.*--columns"):
        evaluate([], dropped={"the response is empty": 3})


def test_a_set_with_no_finite_reward_is_an_error():
    with pytest.raises(DataError, match=r"none of the 6 .*not a number: 6"):
        evaluate(many(6), lambda *_: math.nan)


def test_a_scorer_that_forgets_a_response_is_an_error():
    class Forgetful(FunctionScorer):
        def score(self, prompts, responses):
            return [rewards[:1] for rewards in super().score(prompts, responses)]

    with pytest.raises(ModelError, match="one reward for each response"):
        evaluate_preferences(Forgetful(hashed), many(4), name="dev", progress=False)


WORKER = """
import json, os, sys
from accelerate import PartialState
from rrm_lm.launch.signals import exit_process
from rrm_lm.evaluation.preferences.scoring import evaluate_preferences
from tests.unit.evaluation.samples import FunctionScorer, hashed, many

state = PartialState(cpu=True)
scorer = FunctionScorer(hashed)
result = evaluate_preferences(scorer, many(50), name="dev", progress=False)
asked = sum(len(call) for call in scorer.calls)
out = {"world": state.num_processes, "asked": asked, "result": result.to_dict()}
with open(os.path.join(sys.argv[1], f"{state.process_index}.json"), "w") as file:
    json.dump(out, file)
exit_process(0)
"""


@pytest.mark.slow
def test_two_real_processes_share_the_work_and_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            cwd=Path(__file__).parents[4],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
        )
        for rank in range(2)
    ]
    try:
        codes = [worker.wait(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    expected = json.loads(json.dumps(evaluate(many(50)).to_dict()))
    assert [entry["world"] for entry in found] == [2, 2]
    assert [entry["asked"] for entry in found] == [13, 12]  # of 25 prompts
    assert found[0]["result"] == found[1]["result"] == expected
