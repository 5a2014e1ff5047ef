"""Measures of a set: numbers worked by hand, groups put back together, models compared."""

from typing import Any

import pytest

from rrm_lm.errors import DataError
from rrm_lm.evaluation.preferences.results import Evaluation, best_of_choices, compare_all, tie_items
from tests.unit.evaluation.samples import compare, evaluate, hashed, many, rewards_of

REWARDS = {"right": 2.0, "wrong": 1.0, "same": 2.0, "a longer text": 0.0}


def test_accuracy_ties_and_the_length_rule_by_hand():
    result = evaluate(
        [
            compare("p", "right", "wrong"),  # right; as long as the other: a tie for the length rule
            compare("p", "right", "same"),  # a tie; longer
            compare("q", "wrong", "right"),  # wrong; a tie in length
            compare("r", "right", "a longer text"),  # right; shorter
        ],
        rewards_of(REWARDS),
    )
    m = result.measures
    assert m.accuracy.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert (m.accuracy.n, m.accuracy.clusters) == (4, 3)
    assert m.ties == 1
    assert m.longer_accuracy.value == pytest.approx((0.5 + 1 + 0.5 + 0) / 4)
    assert m.minus_longer.value == pytest.approx(0.125)
    assert m.minus_shorter.value == pytest.approx(0.125)
    assert m.length_rule[:2] == ("longer", 0.5)


def test_where_shorter_responses_win_the_rule_to_beat_is_the_shorter_one():
    comparisons = [compare(f"q{i}", "right", "a longer text", row=i) for i in range(1, 9)]
    rule, value, lead = evaluate(comparisons, rewards_of(REWARDS)).measures.length_rule
    assert (rule, value, lead.value) == ("shorter", 1.0, 0.0)


def test_one_prompt_only():
    result = evaluate([compare("p", "right", "wrong"), compare("p", "right", "a longer text")], rewards_of(REWARDS))
    m = result.measures
    assert result.overall.n_prompts == 1
    assert m.accuracy.value == 1.0
    assert 0 < m.accuracy.low < 0.3 and m.accuracy.high == 1.0
    assert (m.minus_longer.low, m.minus_longer.high) == (-1.0, 1.0)


def test_sources_and_subsets_are_measured_apart():
    comparisons = many(30)
    result = evaluate(comparisons)
    assert set(result.by_source) == {"forum", "desk"}
    assert sum(summary.n_scored for summary in result.by_source.values()) == 30
    # Several sources: a subset's name alone would mix them.
    assert set(result.by_subset) == {"forum/easy", "forum/hard", "desk/easy", "desk/hard"}
    forum = [c for c in comparisons if c.source == "forum"]
    assert result.by_source["forum"].to_dict() == evaluate(forum).overall.to_dict()
    assert set(evaluate(forum).by_subset) == {"easy", "hard"}


def test_a_set_without_names_of_sources_has_the_sets_own():
    assert list(evaluate([compare("p", "a", "b")]).by_source) == ["dev"]
    assert evaluate([compare("p", "a", "b")]).by_subset == {}


def test_a_source_with_nothing_scored_is_still_shown():
    comparisons = [compare("p", "a", "b", source="good"), compare("q", "a", "nan", source="broken", row=2)]
    result = evaluate(comparisons, rewards_of({"a": 1.0, "b": 0.0, "nan": float("nan")}))
    assert result.by_source["broken"].measures is None
    assert result.by_source["broken"].to_dict() == {
        "accuracy": None,
        "n_given": 1,
        "n_scored": 0,
        "n_prompts": 0,
        "not_scored": {"the reward is not a number": 1},
    }


def test_length_correlation_counts_each_response_once():
    comparisons = [compare("p", "aaaa", "b"), compare("p", "aaaa", "cc"), compare("q", "dd", "eee", row=2)]
    result = evaluate(comparisons, lambda _, response: float(len(response)))
    pearson = result.measures.length.pearson
    assert pearson is not None
    assert (pearson.n, pearson.value) == (5, pytest.approx(1.0))


def _best_of_four(item: int, *, drop: int = 0):
    return [
        compare(f"q{item}", "best", other, row=item, source="rewardbench-2", subset="Math", group=f"Math/{item}")
        for other in ("x", "y", "z")[drop:]
    ]


def test_best_of_four_puts_items_back_together():
    scores = {"best": 1.0, "x": 0.0, "y": 1.0, "z": 0.5}
    result = evaluate(_best_of_four(1) + _best_of_four(2), rewards_of(scores))
    best = result.measures.best_of_four
    assert best is not None
    assert (best.value, best.n) == (0.5, 2)


def test_incomplete_items_are_not_counted_as_best_of_four():
    scores = {"best": 1.0, "x": 0.0, "y": 0.0, "z": 0.5}
    result = evaluate(_best_of_four(1) + _best_of_four(2, drop=1), rewards_of(scores))
    assert len(best_of_choices(result.scored)) == 1
    plain_pairs = evaluate(many(12))
    assert plain_pairs.measures.best_of_four is None


def test_items_of_the_same_name_in_two_files_stay_apart():
    one = _best_of_four(1)
    other = [
        compare("q9", "right", wrong, file="more.jsonl", source="rewardbench-2", subset="Math", group="Math/1")
        for wrong in ("u", "v", "w")
    ]
    result = evaluate(one + other)
    assert len(best_of_choices(result.scored)) == 2


def test_ties_subset_is_recognised_and_not_counted_as_best_of_four():
    def item(name: str, right: list[str], wrong: list[str]):
        about: dict[str, Any] = {"source": "rewardbench-2", "subset": "Ties", "group": f"rewardbench-2/Ties/{name}"}
        return [compare(name, r, w, **about) for r in right for w in wrong]

    scores = {"red": 2.0, "blue": 1.9, "Paris": 3.0, "dog": 0.0, "cat": -1.0, "cow": 0.5}
    comparisons = item("tied:7", ["red", "blue"], ["dog", "cat"]) + item("ref:7", ["Paris"], ["dog", "cat", "cow"])
    result = evaluate(comparisons, rewards_of(scores))
    tied, single = tie_items(result.scored)
    assert (tied.number, tied.tied, tied.right, tied.wrong) == (7, True, (2.0, 1.9), (0.0, -1.0))
    assert (single.number, single.tied, single.right) == (7, False, (3.0,))
    ties = result.measures.ties_subset
    assert ties is not None and ties.value == pytest.approx(1.0, abs=0.011)
    assert result.measures.best_of_four is None


def test_styles_make_the_rm_bench_matrix():
    texts = {("chosen", i): 2.0 * i for i in range(3)} | {("rejected", j): 2.0 * j + 1 for j in range(3)}
    names = {key: f"{key[0]} {key[1]}" for key in texts}
    comparisons = [
        compare("p", names["chosen", i], names["rejected", j], group="chat/1", styles=(i, j), subset="chat")
        for i in range(3)
        for j in range(3)
    ]
    result = evaluate(comparisons, rewards_of({names[key]: value for key, value in texts.items()}))
    styles = result.measures.styles
    assert styles is not None
    assert styles.matrix == ((0, 0, 0), (1, 0, 0), (1, 1, 0))
    assert result.measures.best_of_four is None


def test_rewardbench_subsets_make_sections():
    subsets = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm"]
    comparisons = [compare(f"q{i}", "right", "wrong", subset=name, row=i) for i, name in enumerate(subsets, 1)]
    sections = evaluate(comparisons, rewards_of(REWARDS)).measures.sections
    assert list(sections) == ["Chat", "Chat Hard", "Safety", "Reasoning", "Score"]


def test_two_models_are_compared_on_what_both_scored():
    comparisons = many(40)
    right = {c.chosen: 1.0 for c in comparisons} | {c.rejected: 0.0 for c in comparisons}
    first = evaluate(comparisons, rewards_of(right))
    broken = {**right, comparisons[0].chosen: float("nan"), comparisons[1].chosen: -1.0}
    second = evaluate(comparisons, rewards_of(broken))
    one, other = Evaluation("one", (first,)), Evaluation("other", (second,))
    found = compare_all({"one": one, "other": other})[0].difference
    assert found.n == 39
    assert found.value == pytest.approx(1 / 39)
    with pytest.raises(DataError, match="not evaluated on the same comparisons"):
        compare_all({"one": one, "other": Evaluation("other", (evaluate(comparisons[1:], hashed),))})


def test_every_pair_of_models_is_compared_on_every_set():
    comparisons = many(40)
    named = {}
    for name, salt in (("a", 1.0), ("b", 71.0), ("c", 53.0)):
        sets = [evaluate(comparisons[:n], lambda p, r, s=salt: s * hashed(p, r) % 1, name=str(n)) for n in (40, 30)]
        named[name] = Evaluation(name, tuple(sets))
    found = compare_all(named)
    assert [(one.first, one.second, one.set) for one in found] == [
        (first, second, name) for first, second in ("ab", "ac", "bc") for name in ("40", "30")
    ]
    a, b = (named[name].sets[0].measures.accuracy.value for name in "ab")
    assert found[0].difference.value == pytest.approx(a - b)
    assert found[0].pairs_for_one_point and found[0].pairs_for_one_point > 5_000
    same = compare_all({"a": named["a"], "copy": named["a"]})
    assert same[0].difference.value == 0 and same[0].pairs_for_one_point is None
