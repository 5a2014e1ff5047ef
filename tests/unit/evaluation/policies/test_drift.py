"""Repetition, counted by hand."""

import math

import pytest

from rrm_lm.evaluation.policies.comparison import distinct, repeated, stock_phrases, word_runs


def test_runs_are_of_words_whatever_their_case():
    assert word_runs("The sea  is\nblue", 2) == [("the", "sea"), ("sea", "is"), ("is", "blue")]
    assert word_runs("one two", 3) == []


def test_distinct_by_hand():
    assert distinct("a b a b", 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct("a b c d", 2) == 1
    assert math.isnan(distinct("word", 2))


def test_repeated_by_hand():
    assert repeated("yes " * 8) == pytest.approx(4 / 5)  # five runs of four, all the same
    assert repeated("a b c d e f") == 0
    assert math.isnan(repeated("too short here"))


def test_stock_phrases_stand_in_answers_to_other_prompts():
    close = "have a nice day"
    shares = stock_phrases([[f"eggs {close}", f"boil {close}"], [f"rice {close}"], ["no such words in it"]])
    assert shares[0] == pytest.approx([1 / 2, 1 / 2])  # "eggs have a nice", "have a nice day"
    assert shares[1] == pytest.approx([1 / 2])
    assert shares[2] == [
        0.0,
    ] and math.isnan(stock_phrases([["two words"]])[0][0])


def test_the_same_words_in_answers_to_one_prompt_are_no_stock_phrase():
    assert stock_phrases([["one two three four", "one two three four"], ["five six seven eight"]]) == [[0, 0], [0]]
