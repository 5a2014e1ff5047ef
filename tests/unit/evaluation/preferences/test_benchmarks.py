"""Scores of published benchmarks against numbers worked by hand from their definitions."""

import math

import pytest

from rrm_lm.evaluation.preferences import benchmarks
from rrm_lm.evaluation.preferences.benchmarks import BestOfItem, TieItem


def test_sections_weigh_subsets_by_rewardbenchs_counts():
    # alpacaeval-easy: 3 of 4 right, counts 100; mt-bench-med: 1 of 2 right, counts 40.
    correct = [1, 1, 1, 0, 1, 0, 1]
    subsets = ["alpacaeval-easy"] * 4 + ["mt-bench-med"] * 2 + ["somewhere else"]
    scores = benchmarks.section_scores(correct, subsets, range(7))
    assert list(scores) == ["Chat"]
    assert scores["Chat"].value == pytest.approx((0.75 * 100 + 0.5 * 40) / 140)
    assert scores["Chat"].n == 6


def test_mathematics_weighs_as_much_as_all_code():
    code = [name for name in benchmarks.SECTIONS["Reasoning"] if name.startswith("hep-")]
    scores = benchmarks.section_scores([1, *[0] * 6], ["math-prm", *code], range(7))
    assert scores["Reasoning"].value == pytest.approx(0.5)


def test_total_is_the_mean_of_the_four_sections_and_needs_all_of_them():
    subsets = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm"]
    scores = benchmarks.section_scores([1, 0, 1, 1], subsets, range(4))
    assert scores["Score"].value == pytest.approx(0.75)
    assert "Score" not in benchmarks.section_scores([1, 0, 1], subsets[:3], range(3))
    assert benchmarks.section_scores([1], ["mine"], [0]) == {}


def test_best_of_four_shares_a_tie_for_the_first_place():
    choices = [
        BestOfItem(2.0, (1.0, 0.0, -1.0), "a"),  # right
        BestOfItem(2.0, (2.0, 0.0, 2.0), "b"),  # one of three that tie
        BestOfItem(0.5, (1.0, 0.0, 0.0), "c"),  # wrong
    ]
    found = benchmarks.best_of_n(choices)
    assert found.value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found.n == 3


def test_ties_score_of_a_perfect_model():
    # Right answers 0.1 apart and 1 above the wrong ones; the sibling's gap is 2, so the smaller gap is 1.
    items = [TieItem(1, True, (1.1, 1.0), (0.0, -1.0)), TieItem(1, False, (2.0,), (0.0,))]
    found = benchmarks.ties_score(items)
    assert found is not None
    assert found.value == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1.0 / 0.1 - 1))


def test_ties_score_by_hand():
    items = [
        # Every right answer wins by 1, but the right ones are 2 apart.
        TieItem(1, True, (3.0, 1.0), (0.0,)),
        TieItem(1, False, (5.0,), (4.5,)),
        # One right answer loses to a wrong one; all right ones alike, so the ratio is left out.
        TieItem(2, True, (0.0, 0.0), (0.5,)),
        TieItem(2, False, (1.0,), (2.0,)),
        # A sibling without a tied question counts for its own accuracy only.
        TieItem(3, False, (1.0,), (0.0,)),
    ]
    expected = 0.3 * (1 / 2) + 0.3 * (2 / 3) + 0.2 * 0 + 0.2 * 0 + 0.01 * math.tanh(0.5 / 2 - 1)
    found = benchmarks.ties_score(items)
    assert found is not None
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    assert (found.n, found.clusters) == (5, 3)


def test_ties_score_of_nothing_is_none():
    assert benchmarks.ties_score([]) is None


def test_style_matrix_splits_by_who_looks_fancier():
    styles = [(i, j) for i in range(3) for j in range(3)]
    # Right only if the chosen response is at least as fancy; the diagonal's last cell is a tie.
    margins = [1.0 if i >= j else -1.0 for i, j in styles]
    margins[-1] = 0.0
    found = benchmarks.style_matrix(margins, styles, ["p"] * 9)
    assert found.matrix == ((1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 0.5))
    assert found.hard is not None and found.hard.value == 0.0
    assert found.normal is not None and found.normal.value == pytest.approx(2.5 / 3)
    assert found.easy is not None and found.easy.value == 1.0


def test_style_matrix_weighs_cells_alike_and_shows_empty_ones():
    found = benchmarks.style_matrix([1, 1, 1, -1], [(0, 1), (0, 1), (0, 1), (0, 2)], "abcd")
    assert found.hard is not None and found.hard.value == pytest.approx(0.5)
    assert found.easy is None
    assert found.matrix[2][2] is None


def test_rm_bench_averages_domains_and_not_items():
    """RM-Bench: (Chat + Code + Math + Safety) / 4, with both kinds of safety as one domain."""
    styles = [(0, 1)] * 14
    margins = [1.0] + [-1.0] * 9 + [1.0, 1.0, -1.0, -1.0]
    domains = ["chat"] + ["math"] * 9 + ["safety-refuse"] * 3 + ["safety-response"]
    found = benchmarks.style_matrix(margins, styles, [str(i) for i in range(14)], domains)
    assert found.hard is not None and found.average is not None
    assert found.hard.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.matrix[0][1] == pytest.approx(0.5)
    assert found.average.value == pytest.approx(0.5)


def test_best_of_four_averages_subsets():
    right, wrong = (1.0, (0.0, 0.0, 0.0)), (0.0, (1.0, 0.0, 0.0))
    choices = [BestOfItem(*right, "a", "Math")]
    choices += [BestOfItem(*wrong, str(number), "Safety") for number in range(9)]
    assert benchmarks.best_of_n(choices).value == pytest.approx(0.5)
