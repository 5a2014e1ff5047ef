"""Adapters that are chosen without side effects, and logits that are the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Gemma3Config

from rrm_lm.errors import ModelError
from rrm_lm.models.agent import POLICY
from rrm_lm.models.backbone import Backbone, adapter_parameters, check_logits
from rrm_lm.text.batching import collate, share
from tests.exactness import EXACT, adapter_layers, alone, furthest, groups, run, together
from tests.tiny import (
    FAMILIES,
    lora,
    tiny_config,
    tiny_model,
    tiny_reward_model,
)

torch.set_num_threads(1)


def two_adapters() -> Backbone:
    backbone = tiny_reward_model(sharing=True).backbone
    torch.manual_seed(3)
    backbone.add_adapter("policy", lora(rank=2))
    return backbone


def trainable(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_only_adapters_train() -> None:
    backbone = two_adapters()
    assert trainable(backbone) == {name for name, _ in backbone.named_parameters() if "lora_" in name}
    assert any(".reward." in name for name in trainable(backbone))
    assert any(".policy." in name for name in trainable(backbone))


@pytest.mark.parametrize("frozen", [True, False])
def test_adding_an_adapter_leaves_the_others_as_they_were(frozen: bool) -> None:
    backbone = tiny_reward_model().backbone
    if frozen:
        backbone.requires_grad_(False)
    before = trainable(backbone)
    backbone.add_adapter("policy", lora())
    assert {name for name in trainable(backbone) if ".policy." not in name} == before
    assert any(".policy." in name for name in trainable(backbone))


def test_two_adapters_do_not_mix() -> None:
    backbone, rows = two_adapters(), [share(groups()[0])]
    with torch.no_grad():
        reward, policy = (together(backbone, rows, "right", name) for name in ("reward", "policy"))
    assert furthest(reward, policy) > 0.1
    hidden = together(backbone, rows, "right", "policy")
    torch.cat(hidden).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.abs().sum())
        assert touched == (".policy." in name), name
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".policy." in name:
                parameter.add_(1.0)
        assert furthest(together(backbone, rows, "right", "reward"), reward) == 0
        assert furthest(together(backbone, rows, "right", "policy"), policy) > 0.1


def test_no_adapter_is_the_bare_model() -> None:
    lines = groups()[0]
    bare = Backbone(tiny_model("llama"), pad_id=0)
    backbone = two_adapters()
    with torch.no_grad():
        truth = alone(bare, lines, None)
        assert furthest(together(backbone, [share(lines)], "right", None), truth) < EXACT
        assert furthest(together(backbone, [share(lines)], "right", "reward"), truth) > 0.1


def test_using_restores_everything_also_after_an_error() -> None:
    backbone = two_adapters()
    backbone.requires_grad_(False)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(".policy." in name and "lora_A" in name)
    layers = adapter_layers(backbone)

    def state() -> Any:
        return trainable(backbone), [(list(m.active_adapters), m.disable_adapters) for m in layers]

    before = state()
    with backbone.using("policy"):
        assert state() == (before[0], [(["policy"], False)] * len(layers))
        with backbone.using(None):
            assert state() == (before[0], [(["policy"], True)] * len(layers))
            with backbone.using("reward"):
                assert state() == (before[0], [(["reward"], False)] * len(layers))
        assert state() == (before[0], [(["policy"], False)] * len(layers))
    assert state() == before
    with pytest.raises(ZeroDivisionError), backbone.using("policy"):
        _ = 1 / 0
    assert state() == before


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(ModelError, match="no adapter 'polcy'"), two_adapters().using("polcy"):
        pass
    with pytest.raises(ModelError, match="no adapter 'reward'"):
        Backbone(tiny_model(), pad_id=0)(collate([share([(3, 4)])], 0), "reward")


# -- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family: str) -> None:
    backbone = tiny_reward_model(family).backbone
    check_logits(backbone)
    line = groups()[0][0]
    with torch.no_grad(), backbone.using("reward"):
        theirs = backbone.causal_lm(input_ids=torch.tensor([line])).logits[0]
        mine = backbone.logits(together(backbone, [share([line])], "right", "reward")[0], "reward")
    assert furthest([mine], [theirs]) < EXACT


def test_soft_capped_logits() -> None:
    config = tiny_config("gemma3")
    config.final_logit_softcapping = 1.5
    backbone = Backbone(tiny_model(config=config), pad_id=0)
    check_logits(backbone)
    hidden = together(backbone, [share([run(8, 1)])], "right", None)[0]
    logits = backbone.logits(hidden)
    assert 1.0 < float(logits.detach().abs().max()) <= 1.5


def test_scaled_logits_are_refused() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def scaled(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        output.logits = output.logits * 0.9
        return output

    model.forward = scaled
    with pytest.raises(ModelError, match="scales its logits in an unknown way"):
        check_logits(Backbone(model, pad_id=0))


def test_taking_an_adapter_off_leaves_the_others_as_they_were() -> None:
    backbone, rows = two_adapters(), [share(groups()[0])]
    for name, parameter in backbone.named_parameters():
        if ".policy." in name:
            parameter.requires_grad_(False)
    with torch.no_grad():
        before = together(backbone, rows, "right", "policy")
        backbone.remove_adapter("reward")
        assert furthest(together(backbone, rows, "right", "policy"), before) == 0
    assert set(backbone.model.peft_config) == {"policy"}
    assert not trainable(backbone)  # PEFT would have switched the other one on
    with pytest.raises(ModelError, match="no adapter 'reward'"):
        backbone.using("reward")
    backbone.remove_adapter("policy")  # the last one: the bare model is left, and can have others
    with torch.no_grad():
        bare = together(backbone, rows, "right", None)
        backbone.add_adapter("reward", lora())
        assert furthest(together(backbone, rows, "right", None), bare) < EXACT
        assert furthest(together(backbone, rows, "right", "reward"), bare) > 0.01
    assert {name for name in trainable(backbone) if ".reward." in name} == trainable(backbone) != set()


def test_no_adapter_on_what_text_does_not_reach() -> None:
    """The vision tower of a multimodal model."""
    text = tiny_config("gemma3").to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        image_token_index=3, boi_token_index=4, eoi_token_index=5,
    )  # fmt: skip
    backbone = Backbone(AutoModelForCausalLM.from_config(config).eval(), pad_id=0)
    assert any("vision" in name for name, _ in backbone.named_parameters())
    backbone.add_adapter(POLICY, LoraConfig(r=2, target_modules="all-linear"))
    batch = collate(backbone.rows([(7, 8, 9, 10)]), 0)
    backbone(batch, POLICY).sum().backward()
    found = adapter_parameters(backbone, POLICY)
    assert len(found) == 2 * 7 * int(backbone.config.num_hidden_layers)
    assert all(parameter.grad is not None for parameter in found.values())
