"""Sampling seeded by prompts: the other prompts of a call do not change a response."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rrm_lm.models.decoding.generation import sample
from tests.precision import Precision
from tests.tiny import tiny_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [20, 21, 22], [30, 31, 32, 33, 34], [50, 51]]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def drawn(model: Any, prompts: list[list[int]], **options: Any) -> list[list[list[int]]]:
    settings = {"pad_id": 0, "eos_ids": [2], "max_new_tokens": 6, "seed_by_prompt": True, **options}
    return sample(model, prompts, **settings)


@pytest.mark.parametrize("shape", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}])
def test_batches_order_and_company_do_not_matter(shape: dict[str, float], model: Any) -> None:
    expected = drawn(model, PROMPTS, num_return=3, **shape)
    assert len({tuple(ids) for responses in expected for ids in responses}) > len(PROMPTS)  # they are samples
    assert drawn(model, PROMPTS, num_return=3, batch_tokens=1, **shape) == expected
    assert drawn(model, PROMPTS, num_return=3, batch_tokens=40, **shape) == expected
    assert drawn(model, PROMPTS[::-1], num_return=3, **shape) == expected[::-1]
    assert drawn(model, PROMPTS[2:3], num_return=3, **shape) == expected[2:3]
    # The first of several is the one that one alone would be.
    assert drawn(model, PROMPTS, **shape) == [responses[:1] for responses in expected]


def test_seeds_and_prompts_draw_other_numbers(model: Any) -> None:
    one = drawn(model, [PROMPTS[0]], num_return=8, eos_ids=[])
    assert drawn(model, [PROMPTS[0]], num_return=8, eos_ids=[]) == one
    assert drawn(model, [PROMPTS[0]], num_return=8, eos_ids=[], seed=1) != one
    assert len({tuple(ids) for ids in one[0]}) == 8


def test_samples_follow_the_models_distribution(precision: Precision) -> None:
    model = tiny_model()
    [responses] = drawn(model, [PROMPTS[0]], max_new_tokens=1, num_return=4000, temperature=2.0, batch_tokens=10**6)
    counts = torch.bincount(torch.tensor(responses).flatten(), minlength=model.config.vocab_size)
    expected = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach().float() / 2.0, dim=-1)
    assert float((counts / 4000 - expected).abs().max()) < 0.03
    assert int((counts > 0).sum()) > 60


def test_shapes_of_the_distribution_hold(model: Any) -> None:
    likely = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach(), dim=-1).sort(descending=True)
    words = {"max_new_tokens": 1, "num_return": 500, "batch_tokens": 10**6}
    [responses] = drawn(model, [PROMPTS[0]], top_k=3, **words)
    assert {ids[0] for ids in responses} == set(likely.indices[:3].tolist())
    [responses] = drawn(model, [PROMPTS[0]], top_p=0.5, **words)
    count = int((likely.values.cumsum(0) < 0.5).sum()) + 1
    assert {ids[0] for ids in responses} <= set(likely.indices[:count].tolist())


def test_greedy_stays_greedy_and_the_global_random_state_as_it_was(model: Any) -> None:
    assert drawn(model, PROMPTS, temperature=0) == drawn(model, PROMPTS, temperature=0, seed_by_prompt=False, seed=9)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    drawn(model, PROMPTS)
    assert torch.equal(torch.rand(4), expected)
