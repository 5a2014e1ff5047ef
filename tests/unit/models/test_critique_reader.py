"""Ratings that are read out of critiques."""

from __future__ import annotations

import random

import pytest
import torch

from rrm_lm.feedback.records import Comparison
from rrm_lm.models.critique_reader import CritiqueReader
from tests.tiny import comparison, tiny_reward_model, tiny_tokenizer

GOOD = ("good clear answer", "a short good answer", "thank you clear and good", "good and short thank you")
BAD = ("too long and not clear", "this does not say what was asked", "sorry too long", "not the answer too long")


def judged(count: int, seed: int = 0) -> list[Comparison]:
    """Comparisons whose critiques say which response is better."""
    rng = random.Random(seed)
    return [
        comparison(
            f"what is {n}", "yes", "no", chosen_critiques=(rng.choice(GOOD),), rejected_critiques=(rng.choice(BAD),)
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def reader() -> CritiqueReader:
    model = tiny_reward_model()
    return CritiqueReader(model.backbone, tiny_tokenizer()).fit(judged(12))


def test_new_critiques_are_read_as_the_comparisons_taught(reader: CritiqueReader) -> None:
    good = reader.ratings([("a clear and good answer",), ("good thank you", "short and clear")])
    bad = reader.ratings([("sorry not what was asked",), ("too long", "this does not say the answer")])
    assert min(good) > max(bad)
    assert all(0 < rating < 1 for rating in (*good, *bad))


def test_ratings_do_not_depend_on_the_critiques_beside_them(reader: CritiqueReader) -> None:
    several = reader.ratings([(text,) for text in (*GOOD, *BAD)])
    alone = [reader.ratings([(text,)])[0] for text in (*GOOD, *BAD)]
    assert several == pytest.approx(alone, abs=1e-5)


def test_several_critiques_of_a_response_count_alike(reader: CritiqueReader) -> None:
    both = torch.tensor(reader.ratings([(GOOD[0], BAD[0])])).logit()
    apart = torch.tensor(reader.ratings([(GOOD[0],), (BAD[0],)])).logit()
    assert float(both) == pytest.approx(float(apart.mean()), abs=1e-4)


def test_the_adapter_has_no_say_in_it() -> None:
    model = tiny_reward_model()
    before = CritiqueReader(model.backbone, tiny_tokenizer()).fit(judged(6)).ratings([GOOD, BAD])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    assert CritiqueReader(model.backbone, tiny_tokenizer()).fit(judged(6)).ratings([GOOD, BAD]) == before


def test_comparisons_without_critiques_of_both_responses_teach_nothing() -> None:
    model = tiny_reward_model()
    half = [comparison("what", "yes", "no", chosen_critiques=("good",))]
    with pytest.raises(ValueError, match="critiques of both"):
        CritiqueReader(model.backbone, tiny_tokenizer()).fit(half)
