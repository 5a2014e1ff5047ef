"""Rewards on disk: the same numbers, without the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.evaluation.preferences import score_cache
from rrm_lm.evaluation.preferences.score_cache import CachedScorer
from rrm_lm.evaluation.preferences.scoring import evaluate_preferences
from rrm_lm.models.ensemble import EnsembleReward
from tests.unit.evaluation.samples import FunctionScorer, hashed, many


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(score_cache, "cache_home", lambda: tmp_path)
    return tmp_path


def never() -> Any:
    raise AssertionError("the model was loaded")


def results(scorer: CachedScorer, count: int = 30) -> dict[str, object]:
    return evaluate_preferences(scorer, many(count), name="dev", progress=False).to_dict()


def test_a_second_run_has_the_same_results_and_does_not_load_the_model() -> None:
    first = CachedScorer("tiny", {"weights": "abc"}, lambda: FunctionScorer(hashed))
    expected = results(first)
    assert first.is_loaded
    again = CachedScorer("tiny", {"weights": "abc"}, never)
    assert results(again) == expected
    assert not again.is_loaded
    assert results(again, 10) != expected  # a part of the set


@pytest.mark.parametrize("key", [{"weights": "abd"}, {"weights": "abc", "dtype": "bfloat16"}])
def test_other_weights_or_settings_have_rewards_of_their_own(key: object) -> None:
    results(CachedScorer("tiny", {"weights": "abc"}, lambda: FunctionScorer(hashed)))
    with pytest.raises(AssertionError, match="was loaded"):
        results(CachedScorer("tiny", key, never))


def test_only_new_responses_are_scored() -> None:
    results(CachedScorer("tiny", "k", lambda: FunctionScorer(hashed)), 30)
    model = FunctionScorer(hashed)
    more = CachedScorer("tiny", "k", lambda: model)
    expected = evaluate_preferences(FunctionScorer(hashed), many(60), name="dev", progress=False).to_dict()
    assert results(more, 60) == expected
    assert 0 < sum(map(len, model.calls)) < 30  # of 30 prompts


def test_missing_and_infinite_rewards_and_disagreements_are_kept(home: Path) -> None:
    rewards = [math.nan, math.inf, EnsembleReward(1.5, 0.25), -0.1]
    prompt = many(1)[0].prompt

    class Model:
        name = "tiny"

        def score(self, prompts: Any, responses: Any) -> Any:
            return [rewards]

    CachedScorer("tiny", "k", Model).score([prompt], [list("abcd")])
    found = CachedScorer("tiny", "k", never).score([prompt], [list("abcd")])[0]
    assert math.isnan(found[0]) and found[1:] == rewards[1:]
    assert isinstance(found[2], EnsembleReward) and found[2].std == 0.25


def test_a_broken_cache_file_is_replaced() -> None:
    first = CachedScorer("tiny", "k", lambda: FunctionScorer(hashed))
    expected = results(first)
    first.file.write_text("{", encoding="utf-8")
    assert results(CachedScorer("tiny", "k", lambda: FunctionScorer(hashed))) == expected
