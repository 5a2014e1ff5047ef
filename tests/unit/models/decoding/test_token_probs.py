"""Log-probabilities computed in chunks are those of the whole, and so are their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import token_probs
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import token_log_probs
from tests.tiny import VOCABULARY, tiny_config, tiny_model

WAYS = [
    Sampling(1),
    Sampling(1, temperature=0.7),
    Sampling(1, temperature=1.3, top_p=0.8),
    Sampling(1, top_k=5),
    Sampling(1, temperature=0.5, top_p=0.9, top_k=20),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_probs, "CHUNK", 4)


def capped_model() -> Any:
    model = tiny_model("gemma3", config=tiny_config("gemma3"))
    model.config.final_logit_softcapping = 5.0
    return model


def backbone(kind: str) -> Backbone:
    """A backbone with a plain head, a soft-capped one, or one that is trained."""
    made = Backbone(capped_model() if kind == "capped" else tiny_model(), 0, sharing=False)
    if kind == "trained":
        made.causal_lm.get_output_embeddings().requires_grad_(True)
    return made


def some(count: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 32, generator=generator)
    return hidden, torch.randint(0, VOCABULARY, (count,), generator=generator)


@pytest.mark.parametrize("sampling", WAYS, ids=str)
@pytest.mark.parametrize("kind", ["plain", "capped", "trained"])
def test_values_and_gradients_are_those_of_the_plain_computation(kind: str, sampling: Sampling) -> None:
    made, (hidden, tokens) = backbone(kind), some()
    head = made.causal_lm.get_output_embeddings()
    weights = torch.linspace(-1, 2, len(tokens))

    mine = hidden.clone().requires_grad_()
    log_probs, entropy = token_log_probs(made, mine, tokens, sampling)
    (log_probs * weights).sum().backward()
    mine_head = None if head.weight.grad is None else head.weight.grad.clone()
    head.weight.grad = None

    plain = hidden.clone().requires_grad_()
    logits = made.logits(plain)
    expected = sampling.log_probs(logits, tokens)
    (expected * weights).sum().backward()

    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.grad, plain.grad, atol=1e-5, rtol=1e-5)
    distribution = torch.distributions.Categorical(logits=sampling.shape(logits).detach().clamp_min(-1e9))
    torch.testing.assert_close(entropy, distribution.entropy(), atol=1e-4, rtol=1e-4)
    assert not entropy.requires_grad
    assert (mine_head is not None) == (kind == "trained")
    if mine_head is not None:
        torch.testing.assert_close(mine_head, head.weight.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "trained"])
def test_without_gradients_the_numbers_are_the_same(kind: str) -> None:
    made, (hidden, tokens) = backbone(kind), some()
    with_graph = token_log_probs(made, hidden.clone().requires_grad_(), tokens, Sampling(1, 0.7))
    with torch.no_grad():
        without = token_log_probs(made, hidden, tokens, Sampling(1, 0.7))
    for one, other in zip(with_graph, without, strict=True):
        torch.testing.assert_close(one.detach(), other, atol=1e-6, rtol=1e-6)
        assert not other.requires_grad


def test_logits_of_a_chunk_only_are_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (hidden, tokens) = backbone("plain"), some()
    widths = []
    logits = made.logits
    monkeypatch.setattr(made, "logits", lambda states, adapter=None: widths.append(len(states)) or logits(states))
    token_log_probs(made, hidden.requires_grad_(), tokens, Sampling(1))[0].sum().backward()
    assert widths == [4, 4, 3]  # and none again in the backward pass


def test_no_tokens() -> None:
    made = backbone("plain")
    hidden = torch.zeros(0, 32, requires_grad=True)
    log_probs, entropy = token_log_probs(made, hidden, torch.zeros(0, dtype=torch.long), Sampling(1))
    log_probs.sum().backward()
    assert log_probs.shape == entropy.shape == (0,)
