"""Exactness of prefix sharing, and the models that cannot share."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, DynamicCache, Lfm2Config, Llama4TextConfig, MptConfig, OPTConfig

from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.decoding.key_values import cache_name
from rrm_lm.text.batching import collate, share
from rrm_lm.text.chat import ChatFormat
from tests.exactness import EXACT, adapter_layers, alone, furthest, gradients, groups, largest, relative, run, together
from tests.precision import Precision
from tests.tiny import (
    FAMILIES,
    VOCABULARY,
    lora,
    merging_tokenizer,
    prompt_of,
    tiny_chat,
    tiny_model,
    tiny_reward_model,
)

torch.set_num_threads(1)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact(family: str, attention: str, side: str, shared: bool, precision: Precision) -> None:
    backbone = tiny_reward_model(family, attention=attention).backbone
    assert backbone.can_share
    backbone.can_share = shared
    rows = [row for lines in groups() for row in backbone.rows(lines)]
    lines = [line for group in groups() for line in group]
    assert len(rows) == (3 if shared else len(lines))
    truth = alone(backbone, lines, "reward")
    mine = together(backbone, rows, side, "reward")
    assert furthest(mine, truth) < precision.bound(EXACT, largest(truth))
    assert relative(gradients(backbone, mine), gradients(backbone, truth)) < precision.bound(EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lines_would_differ_if_they_saw_each_other(family: str) -> None:
    """What makes the tests above able to fail: a wrong mask, or wrong positions, changes every family's numbers."""
    backbone = tiny_reward_model(family).backbone
    lines = groups()[0]
    truth = alone(backbone, lines, "reward")
    batch = collate([share(lines)], 0)
    for change in ("mask", "positions"):
        wrong = collate([share(lines)], 0)
        if change == "mask":
            assert batch.sees is not None
            wrong.sees = torch.ones_like(batch.sees).tril()
        else:
            wrong.position_ids = torch.arange(batch.input_ids.shape[1])[None]
        hidden = backbone(wrong, "reward")
        mine = [hidden[row, list(indices)] for row, indices in wrong.where]
        assert furthest(mine, truth) > 1000 * EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_under_activation_checkpointing(family: str, precision: Precision) -> None:
    backbone = tiny_reward_model(family, sharing=True).backbone
    rows = [row for lines in groups() for row in backbone.rows(lines)]
    backbone.train()

    def kept_and_gradients() -> tuple[int, dict[str, Tensor]]:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            hidden = together(backbone, rows, "right", "reward")
        return len(kept), gradients(backbone, hidden)

    plain_kept, plain = kept_and_gradients()
    backbone.activation_checkpointing_enable()
    kept, recomputed = kept_and_gradients()
    assert kept < plain_kept / 4  # it was on
    assert relative(recomputed, plain) < EXACT  # in bfloat16, too: the same roundings


def test_recomputation_uses_the_adapter_of_the_forward_pass() -> None:
    """The backward pass runs when `using` is over; with another adapter active then, gradients would be another's."""
    backbone = tiny_reward_model(sharing=True).backbone
    torch.manual_seed(3)
    backbone.add_adapter("policy", lora())
    rows = backbone.rows(groups()[0])
    backbone.train()
    named = [p for name, p in backbone.named_parameters() if ".policy." in name]

    def policy_gradients() -> list[Tensor]:
        hidden = together(backbone, rows, "right", "policy")
        return list(torch.autograd.grad(torch.cat(hidden).square().sum(), named))

    plain = policy_gradients()
    backbone.activation_checkpointing_enable({"use_reentrant": True})  # adapters need the other variant: ignored
    again = policy_gradients()
    assert furthest(again, plain) < EXACT * max(float(g.abs().max()) for g in plain)
    active = {tuple(layer.active_adapters) for layer in adapter_layers(backbone)}
    assert active == {("reward",)}  # and afterwards everything is as it was


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_exact_with_a_tokenizer_that_merges_across_the_boundary(family: str, precision: Precision) -> None:
    chat = ChatFormat(merging_tokenizer())
    prompt = prompt_of("what is the moon made of?", "the sea", "who lives in the sea?")
    encoded = chat.encode(prompt, ["yes the moon", "no", "yes you"], [["good answer"], ["too long", "short"], []])
    lines = [line for group in encoded.lines for line in group]
    assert chat.prompt_ids(prompt) != list(lines[0].ids[: len(chat.prompt_ids(prompt))])  # it does merge
    model = tiny_reward_model(family)
    rewards, nlls, grads = [], [], []
    for sharing in (True, False):
        model.backbone.can_share = sharing
        for side in ("right", "left"):
            output = model(collate(model.backbone.rows([line.ids for line in lines]), 0, side), lines)
            rewards.append(output.rewards)
            nlls.append(output.critique_nll)
            named = {n: p for n, p in model.named_parameters() if p.requires_grad}
            loss = (output.rewards**2).sum() + output.critique_nll.sum()
            grads.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    assert len(rewards[0]) == 4 and len(nlls[0]) == sum(len(line.critique) for line in lines) > 6
    for other in range(3):
        precision.close(rewards[other], rewards[3])
        precision.close(nlls[other], nlls[3])
        assert relative(grads[other], grads[3]) < precision.bound(EXACT)


def test_many_responses_take_one_row(precision: Precision) -> None:
    model = tiny_reward_model("qwen3")
    chat = tiny_chat()
    responses = [f"answer {'sea ' * n}" for n in range(1, 9)]
    lines = [group[0] for group in chat.encode(prompt_of("tell me a short story about the sea"), responses).lines]
    rows = model.backbone.rows([line.ids for line in lines])
    assert len(rows) == 1 and len(rows[0]) < sum(len(line.ids) for line in lines) / 2
    with torch.no_grad():
        shared = model(collate(rows, 0), lines).rewards
        apart = [model(collate([share([line.ids])], 0), [line]).rewards for line in lines]
    precision.close(shared, torch.cat(apart))
    assert len(set(shared.tolist())) == len(responses)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_blind_ends_are_exact(family: str, attention: str, shared: bool) -> None:
    """Against a cache from which everything but the first and the one visible token was thrown away."""
    backbone = tiny_reward_model(family, attention=attention).backbone
    head, end = run(9, 1), run(5, 2)
    lines = [head + end, head + end, head + run(4, 3)]
    blind = [(9, 8), (0, 0), (0, 0)]
    backbone.can_share = shared
    rows = backbone.rows(lines, blind)
    assert len(rows) == (1 if shared else 3)
    with torch.no_grad(), backbone.using("reward"):
        cache: Any = DynamicCache()
        caching = {cache_name(backbone.decoder) or "": cache, "use_cache": True}
        backbone.decoder(input_ids=torch.tensor([head]), **caching)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, [0, -1]], layer.values[:, :, [0, -1]]
        places = torch.arange(9, 14)[None]
        truth = backbone.decoder(input_ids=torch.tensor([end]), position_ids=places, **caching).last_hidden_state[0]
    with torch.no_grad():
        mine = together(backbone, rows, "left", "reward")
        assert furthest([mine[0][9:]], [truth]) < EXACT
        assert furthest([mine[0][:9], *mine[1:]], [mine[1][:9], *alone(backbone, lines[1:], "reward")]) < EXACT
        assert furthest([mine[0][9:]], [mine[1][9:]]) > 0.1  # it does make a difference


def test_a_model_may_take_masks_and_yet_not_share() -> None:
    assert Backbone(tiny_model("llama"), pad_id=0, sharing=False).can_mask
    assert not Backbone(tiny_model(config=MptConfig(**common(d_model=32, n_heads=4, n_layers=2)), attention="eager"),
                        pad_id=0).can_mask  # fmt: skip


# -- families and attention that cannot share -----------------------------------------------------------------------


def common(**more: Any) -> dict[str, Any]:
    return {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, **more}


def assert_padded_and_exact(backbone: Backbone, caplog: pytest.LogCaptureFixture, said: str) -> None:
    with caplog.at_level(logging.WARNING, logger="rrm_lm.models.backbone"):
        assert not backbone.can_share
        assert not backbone.can_share
    messages = [record.getMessage() for record in caplog.records if record.name == "rrm_lm.models.backbone"]
    assert len(messages) == 1 and messages[0].startswith("Prefix sharing is off") and said in messages[0]
    lines = groups()[0]
    rows = backbone.rows(lines)
    assert [row.ids for row in rows] == lines
    with torch.no_grad():
        assert furthest(together(backbone, rows, "right", None), alone(backbone, lines, None)) < EXACT


@pytest.mark.parametrize(
    ("config", "attention", "said"),
    [
        # ALiBi is made from a mask of (batch, time): Bloom crashes on ours, MPT quietly counts places in the row.
        (BloomConfig(**common(hidden_size=32, n_layer=2, n_head=4)), "eager", "bloom cannot take its mask"),
        (MptConfig(**common(d_model=32, n_heads=4, n_layers=2)), "eager", "mpt gives other results"),
        (
            Lfm2Config(
                **common(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
                num_key_value_heads=2,
                full_attn_idxs=[1],
            ),
            "sdpa",
            "lfm2 has conv",
        ),
        (
            Llama4TextConfig(
                **common(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
                intermediate_size_mlp=48,
                num_key_value_heads=2,
                head_dim=8,
                attention_chunk_size=5,
                num_local_experts=2,
            ),
            "sdpa",
            "attention_chunk_size",
        ),
    ],
    ids=["bloom", "mpt", "lfm2", "llama4"],
)
def test_families_that_cannot_share(config: Any, attention: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    backbone = Backbone(tiny_model(config=config, attention=attention), pad_id=0)
    assert_padded_and_exact(backbone, caplog, said)


def test_a_family_that_drops_the_mask(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    forward = model.model.forward
    model.model.forward = lambda attention_mask=None, **kwargs: forward(**kwargs)
    assert_padded_and_exact(Backbone(model, pad_id=0), caplog, "llama gives other results")


def test_attention_without_a_mask_per_token_pair(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_model("llama"), pad_id=0)
    monkeypatch.setattr(type(backbone), "_attention", "flash_attention_2")
    assert_padded_and_exact(backbone, caplog, "flash_attention_2")


def test_a_broken_model_is_not_taken_for_one_that_cannot_share() -> None:
    model = tiny_model("llama")
    model.model.forward = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        _ = Backbone(model, pad_id=0).can_share


def test_sharing_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    backbone = Backbone(tiny_model("llama"), pad_id=0, sharing=False)
    assert len(backbone.rows(groups()[0])) == 6
    assert not caplog.records


def test_finding_out_leaves_modes_and_random_numbers_alone() -> None:
    config = OPTConfig(
        **common(hidden_size=32, num_hidden_layers=2, num_attention_heads=4), ffn_dim=48, word_embed_proj_dim=32
    )
    model = tiny_model(config=config)  # a family with dropout in it, in evaluation mode inside a wrapper that is not
    backbone = Backbone(model, pad_id=0)
    model.model.decoder.layers[1].train()
    modes = [module.training for module in backbone.modules()]
    state = torch.get_rng_state()
    assert backbone.can_share
    check_logits(backbone)
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
