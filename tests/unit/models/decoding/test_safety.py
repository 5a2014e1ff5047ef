"""Rollouts leave nothing changed, take `.generate()` where nothing else is right, and refuse what makes no sense."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders
from tests.tiny import lora
from tests.tiny_decoding import PROMPTS, SHORT, drawn, generated, greedy, make


@pytest.fixture
def backbone() -> Backbone:
    return make()


# -- nothing is left changed ------------------------------------------------------------------------------------------


def state(backbone: Backbone) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        found[name] = (id(parameter), parameter.data_ptr(), parameter.requires_grad, parameter.detach().clone())
    for name, module in backbone.named_modules():
        adapters = getattr(module, "_active_adapter", None), getattr(module, "_disable_adapters", None)
        found[f"{name}."] = (module.training, module.__dict__.get("forward"), adapters)
    return found


def assert_equal(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name in theirs:
        for left, right in zip(mine[name], theirs[name], strict=True):
            assert torch.equal(left, right) if isinstance(left, Tensor) else left == right, name


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(family: str, fails: bool) -> None:
    backbone = make(family, adapter=lora(family, dropout=0.5))
    backbone.add_adapter("frozen", lora(family))
    for name, parameter in backbone.named_parameters():
        if "frozen" in name:
            parameter.requires_grad_(False)
    backbone.train()
    backbone.decoder.eval()
    before = state(backbone)

    def interrupt(*now: Any) -> None:
        raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            greedy(backbone, PROMPTS, progress=interrupt)
    else:
        greedy(backbone, PROMPTS)
    assert torch.is_grad_enabled()
    assert_equal(state(backbone), before)


def test_a_model_in_training_is_rolled_out_in_evaluation() -> None:
    backbone = make(adapter=lora(dropout=0.5))
    expected = generated(backbone, PROMPTS)
    backbone.train()
    backbone.activation_checkpointing_enable()
    assert greedy(backbone, PROMPTS) == expected
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_no_graph_is_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make(family)
    kept: list[bool] = []
    logits = Backbone.logits

    def spy(self: Backbone, hidden: Tensor, adapter: str | None = None) -> Tensor:
        found = logits(self, hidden, adapter)
        kept.append(hidden.requires_grad or found.requires_grad)
        return found

    monkeypatch.setattr(Backbone, "logits", spy)
    drawn(backbone, PROMPTS)
    assert len(kept) >= 6 and not any(kept)
    assert any(parameter.requires_grad for parameter in backbone.parameters())


def test_autocasting_does_not_reach_in(backbone: Backbone) -> None:
    expected = greedy(backbone, PROMPTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert greedy(backbone, PROMPTS) == expected


def test_training_goes_on_after_a_rollout(backbone: Backbone) -> None:
    greedy(backbone, PROMPTS)
    with backbone.using("policy"):
        backbone.causal_lm(torch.tensor(PROMPTS[:1])).logits.sum().backward()
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None and p.grad.any() for p in trained.values())


# -- models that no decoder serves, and what is refused ---------------------------------------------------------------


def test_other_models_take_generate_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder that computes something else is found out: here every model sees one token too few."""
    backbone = make()
    expected = generated(backbone, PROMPTS)
    monkeypatch.setattr(decoders.KeyValues, "place", _one_column_later)
    with caplog.at_level(logging.WARNING, logger="rrm_lm"):
        assert greedy(backbone, PROMPTS) == expected
        assert greedy(backbone, PROMPTS, end_ids=[expected[0][2]])[0] == expected[0][:3]
    assert [record.message for record in caplog.records] == ["Rollouts use .generate(): no decoder works for llama."]
    assert decoders._agreeing[backbone] == {"lean": False, "whole": False, "logged": True}
    first = drawn(backbone, PROMPTS, seed=1, num_return=2)
    assert drawn(backbone, PROMPTS, seed=1, num_return=2) == first
    assert [[len(ids) for ids in responses] for responses in first] == [[6, 6]] * len(PROMPTS)


def _one_column_later(self: Any, column: int, starts: list[int], first: int = 0) -> None:
    self.first, self.column, self.low, self.high = first, column, min(starts) + (column > 0), max(starts)


def test_sharded_weights_are_decoded_by_the_models_own_code(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing reads them; and a family that cannot be decoded so is told to gather."""
    expected = generated(backbone, PROMPTS)
    parameter = next(backbone.parameters())
    monkeypatch.setattr(parameter, "full_tensor", lambda: parameter, raising=False)
    assert greedy(backbone, PROMPTS) == expected
    assert decoders._agreeing[backbone] == {"whole": True}
    decoders._agreeing[backbone] = {"whole": False}
    with pytest.raises(ModelError, match="--ds3_gather_for_generation"):
        greedy(backbone, PROMPTS)


def test_a_prompt_without_tokens_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ModelError, match="prompt 2 of 2"):
        drawn(backbone, [[5], []])


def test_a_prompt_that_does_not_fit_the_context_is_refused(backbone: Backbone) -> None:
    assert len(greedy(backbone, [[5] * 508], SHORT)[0]) == SHORT
    with pytest.raises(ModelError, match="512"):
        greedy(backbone, [[5] * 509], SHORT)


def test_numbers_of_responses_without_sense_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="num_return"):
        drawn(backbone, PROMPTS, num_return=0)
    with pytest.raises(ConfigError, match="num_return"):
        greedy(backbone, PROMPTS, num_return=2)


def test_an_unknown_adapter_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ModelError, match="nobody"):
        greedy(backbone, PROMPTS, adapter="nobody")
