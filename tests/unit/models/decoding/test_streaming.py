"""Responses token by token: the model's own distribution, and text that never ends inside a character."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from transformers import BloomConfig, MambaConfig, OpenAIGPTConfig

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.generation import sample
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.streaming import Words, stream
from tests.precision import Precision
from tests.tiny import FAMILIES, lora, tiny_model, tiny_tokenizer

torch.set_num_threads(1)

PROMPT = list(range(20, 31))
END = 2


def most_likely(logits: torch.Tensor) -> int:
    return int(logits.argmax())


def spoken(backbone: Backbone, adapter: str | None = None, **more: Any) -> list[int]:
    settings = {"draw": most_likely, "end_ids": (END,), "max_new_tokens": 12, **more}
    return list(stream(backbone, adapter, PROMPT, **settings))


def generated(backbone: Backbone, count: int = 12) -> list[int]:
    [[ids]] = sample(backbone.causal_lm, [PROMPT], pad_id=0, eos_ids=[END], max_new_tokens=count, temperature=0)
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_what_generate_gives(family: str, precision: Precision) -> None:
    backbone = Backbone(tiny_model(family), pad_id=0)
    assert spoken(backbone) == generated(backbone) != []
    precision.most_likely(backbone.causal_lm, PROMPT, spoken(backbone))


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=416, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0),
        MambaConfig(vocab_size=416, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0),
        OpenAIGPTConfig(vocab_size=416, n_embd=32, n_layer=2, n_head=4),
    ],
    ids=["bloom", "mamba", "gpt"],
)
def test_families_with_other_caches(config: Any, monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    backbone = Backbone(tiny_model(config=config, attention="eager"), pad_id=0)
    expected = generated(backbone, 6)
    model, widths = backbone.causal_lm, []
    own = model.forward

    @functools.wraps(own)
    def watched(**given: Any) -> Any:
        widths.append(given["input_ids"].shape[1])
        return own(**given)

    monkeypatch.setattr(model, "forward", watched)
    assert spoken(backbone, max_new_tokens=6) == expected
    count = len(PROMPT)  # what is cached is not computed again; GPT has no cache
    assert widths == ([count + done for done in range(6)] if config.model_type == "openai-gpt" else [count, *[1] * 5])


def test_the_adapter_speaks_and_leaves_no_trace(precision: Precision) -> None:
    torch.manual_seed(1)
    backbone = Backbone(tiny_model(), pad_id=0)
    backbone.add_adapter("policy", lora())
    backbone.eval()
    own, bare = spoken(backbone, "policy"), spoken(backbone, None)
    assert own != bare
    backbone.model.set_adapter("policy")
    assert own == generated(backbone)
    part: Any = stream(backbone, "policy", PROMPT, most_likely, end_ids=(END,), max_new_tokens=12)
    assert torch.is_grad_enabled() and next(part) == own[0]
    assert torch.is_grad_enabled()  # also while somebody reads
    with backbone.using(None):
        assert next(part) == own[1]
    part.close()
    assert spoken(backbone, None) == bare


def test_the_end_comes_and_nothing_behind_it() -> None:
    backbone = Backbone(tiny_model(), pad_id=0)
    whole = spoken(backbone)
    third = whole[2]
    assert third not in whole[:2]
    assert spoken(backbone, end_ids=(END, third)) == whole[:3]
    assert len(spoken(backbone, max_new_tokens=5)) == 5


def test_the_distribution_is_the_one_that_was_asked_for(precision: Precision) -> None:
    """Each first token as often as the model says, within five standard errors."""
    backbone = Backbone(tiny_model(), pad_id=0)
    sampling = Sampling(1, temperature=1.5, top_k=4)
    with torch.no_grad():
        logits = backbone.causal_lm(input_ids=torch.tensor([PROMPT])).logits[:, -1].float()
    expected = sampling.shape(logits).softmax(-1)[0]
    random, count = torch.Generator().manual_seed(0), 400

    def draw(row: torch.Tensor) -> int:
        assert row.dtype == torch.float32
        precision.close(row, logits[0])
        return int(sampling.draw(row[None], torch.rand(1, dtype=torch.float64, generator=random)))

    found = torch.zeros(len(expected))
    for _ in range(count):
        found[spoken(backbone, draw=draw, max_new_tokens=1)[0]] += 1
    assert int((expected > 0).sum()) == 4 and not found[expected == 0].any()
    error = (expected * (1 - expected) / count).sqrt()
    assert bool(((found / count - expected).abs() <= 5 * error + 1e-9).all())


def test_only_the_last_logits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(tiny_model(), pad_id=0)
    head = backbone.causal_lm.lm_head
    widths = []
    own = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: widths.append(hidden.shape[1]) or own(hidden))
    spoken(backbone, max_new_tokens=3)
    assert widths == [1, 1, 1]
    assert "logits_to_keep" in inspect.signature(backbone.causal_lm.forward).parameters


# -- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["the sea is blue", "é 漢字 🌊!", "  two spaces\n", "<|im_start|> said", ""])
def test_pieces_make_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    words = Words(tokenizer)
    pieces = [words.add(token) for token in tokenizer(text, add_special_tokens=False).input_ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert words.rest() == ""
    assert "".join(pieces) == words.text == text


def test_a_character_that_never_ends() -> None:
    tokenizer = tiny_tokenizer()
    words = Words(tokenizer)
    ids = tokenizer("a🌊", add_special_tokens=False).input_ids[:-1]
    assert "".join(words.add(token) for token in ids) == "a"
    assert words.rest() == "\ufffd" and words.text == "a\ufffd"
