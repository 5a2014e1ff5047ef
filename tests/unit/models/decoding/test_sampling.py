"""One distribution for drawing and for log-probabilities: transformers' own, and exactly the one that is drawn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rrm_lm.errors import ConfigError
from rrm_lm.models.decoding.sampling import Sampling

SHAPES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 10**6},
    {"top_p": 0.1},
    {"top_p": 0.9},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 1, "top_p": 0.3},
]


def some_logits(rows: int = 4, vocabulary: int = 300, spread: float = 2.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def grid(count: int) -> Tensor:
    """Numbers in [0, 1), evenly spaced."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def transformers_log_probs(sampling: Sampling, logits: Tensor) -> Tensor:
    ids: Any = None
    scores: Any = TemperatureLogitsWarper(float(sampling.temperature))(ids, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores.log_softmax(-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("vocabulary", [5, 300, 3000])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_distribution_is_that_of_transformers(vocabulary: int, spread: float, shape: dict[str, Any]) -> None:
    sampling, logits = Sampling(1, **shape), some_logits(3, vocabulary, spread)
    expected = transformers_log_probs(sampling, logits)
    found = sampling.shape(logits).log_softmax(-1)
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_probs_are_those_of_the_shape(shape: dict[str, Any]) -> None:
    sampling, logits = Sampling(1, **shape), some_logits()
    whole = sampling.shape(logits).log_softmax(-1)
    tokens = sampling.draw(logits.clone(), torch.tensor([0.1, 0.5, 0.8, 0.99], dtype=torch.float64))
    torch.testing.assert_close(sampling.log_probs(logits, tokens), whole.gather(-1, tokens[:, None])[:, 0])


@pytest.mark.parametrize("shape", [{"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}], ids=str)
def test_a_token_that_would_be_left_out_counts_as_kept(shape: dict[str, Any]) -> None:
    """Sorted logits: top-k 2 keeps two tokens, top-p 0.5 and temperature 0 keep one."""
    logits = torch.tensor([[3.0, 1.0, 0.0, -2.0]])
    kept = 2 if "top_k" in shape else 1
    found = Sampling(1, **shape).log_probs(logits, torch.tensor([3]))
    expected = -2.0 - torch.logsumexp(torch.tensor([*logits[0, :kept].tolist(), -2.0]), 0)
    torch.testing.assert_close(found, expected[None])


def test_greedy_is_certain_of_the_most_likely_token() -> None:
    logits = some_logits()
    greedy = Sampling(1, temperature=0.0)
    assert torch.equal(greedy.draw(logits.clone(), torch.zeros(0)), logits.argmax(-1))
    assert torch.equal(greedy.log_probs(logits, logits.argmax(-1)), torch.zeros(4))


@pytest.mark.parametrize("shape", [*SHAPES, {"temperature": 0.0}], ids=str)
def test_the_gradient_of_log_probs(shape: dict[str, Any]) -> None:
    sampling, logits = Sampling(1, **shape), some_logits(3, 7).double().requires_grad_()
    tokens = torch.tensor([0, 3, 6])
    assert torch.autograd.gradcheck(lambda x: sampling.log_probs(x, tokens), logits)


def test_logits_in_half_precision_are_worked_on_in_single() -> None:
    logits = some_logits().bfloat16()
    sampling = Sampling(1, temperature=0.7, top_p=0.9)
    found = sampling.log_probs(logits, torch.tensor([1, 2, 3, 4]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sampling.log_probs(logits.float(), torch.tensor([1, 2, 3, 4])))


def test_equally_likely_tokens_at_the_border_are_all_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for sampling in (Sampling(1, top_k=2), Sampling(1, top_p=0.5)):
        assert sampling.shape(logits).isfinite().tolist() == [[True, True, True, True, False]]


# -- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("vocabulary", [5, 256, 300, 1500])
def test_evenly_spaced_numbers_give_the_probabilities(vocabulary: int, shape: dict[str, Any]) -> None:
    """Each token gets its share of a grid to within its two ends: no sampling error, so a bias of 1e-4 would show."""
    count = 20_000
    sampling, logits = Sampling(1, **shape), some_logits(1, vocabulary)
    tokens = sampling.draw(logits.expand(count, -1).clone(), grid(count))
    share = torch.bincount(tokens, minlength=vocabulary) / count
    expected = transformers_log_probs(sampling, logits)[0].exp()
    assert float((share - expected).abs().max()) <= 1.5 / count
    assert not share[expected == 0].any()


def test_random_numbers_give_the_distribution() -> None:
    sampling, logits = Sampling(1, temperature=0.8, top_k=12, top_p=0.95), some_logits(1, 16)
    uniform = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = sampling.draw(logits.expand(5000, -1).clone(), uniform)
    expected = transformers_log_probs(sampling, logits)[0].double().exp()
    kept = expected > 0
    counts = torch.bincount(tokens, minlength=16)
    assert not counts[~kept].any()
    assert chisquare(counts[kept], expected[kept] / expected.sum() * 5000).pvalue > 0.01


@pytest.mark.parametrize("number", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_range_draw_tokens_that_are_kept(number: float) -> None:
    logits = torch.full((1, 1000), -50.0)
    logits[0, 300:400] = some_logits(1, 100)[0]
    [token] = Sampling(1, top_k=50).draw(logits.clone(), torch.tensor([number], dtype=torch.float64)).tolist()
    kept = Sampling(1, top_k=50).shape(logits)[0].isfinite().nonzero()[:, 0].tolist()
    assert token == (kept[0] if number == 0 else kept[-1])


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    sampling, logits, uniform = Sampling(1, temperature=1.3, top_p=0.97), some_logits(64, 3000), grid(64)
    together = sampling.draw(logits.clone(), uniform).tolist()
    alone = [int(sampling.draw(logits[i : i + 1].clone(), uniform[i : i + 1])) for i in range(64)]
    assert together == alone
    assert len(set(together)) > 30


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
    ],
)
def test_settings_without_sense_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 1, name: value}
    with pytest.raises(ConfigError, match=name):
        Sampling(**settings)
