"""Rollouts: token for token what `.generate()` gives, and drawn from the stated distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig
from scipy.stats import chisquare

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders
from rrm_lm.models.decoding import rollouts as decoding
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import rounding
from tests.tiny import FAMILIES, VOCABULARY, lora, tiny_config, tiny_model
from tests.tiny_decoding import LONG, PROMPTS, SHORT, drawn, generated, greedy, make, tokens_seen

LEAN = ("llama", "qwen3", "mistral")


@pytest.fixture
def backbone() -> Backbone:
    return make()


# -- the same as generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, "policy"])
@pytest.mark.parametrize("new_tokens", [SHORT, LONG])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_token_for_token(
    family: str, attention: str, new_tokens: int, adapter: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make(family, attention=attention)
    expected = generated(backbone, PROMPTS, new_tokens, adapter)
    monkeypatch.setattr(decoding, "sample", None)  # no way around the decoders
    assert greedy(backbone, PROMPTS, new_tokens, adapter=adapter) == expected
    assert decoders._agreeing[backbone] == ({"lean": True} if family in LEAN else {"whole": True})


@pytest.mark.parametrize("family", [*LEAN, "gpt_neox"])
def test_prompts_of_very_different_lengths(family: str) -> None:
    backbone = make(family)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (1, 200, 2, 90, 31, 199)]
    assert greedy(backbone, prompts) == generated(backbone, prompts)


def test_models_of_the_lean_kind_with_other_settings() -> None:
    """Windows in some layers only, no windows, biases, as many heads of keys as of queries, heads of another size."""
    mixed: Any = tiny_config("qwen3")
    mixed.use_sliding_window, mixed.sliding_window = True, 5
    mixed.layer_types = ["sliding_attention", "full_attention"]
    wide: Any = tiny_config("mistral")
    wide.sliding_window = None
    biased: Any = tiny_config("llama")
    biased.attention_bias, biased.mlp_bias, biased.num_key_value_heads = True, True, 4
    large: Any = tiny_config("llama")
    large.head_dim, large.tie_word_embeddings = 16, True
    for config in (mixed, wide, biased, large):
        backbone = make(config=config)
        assert greedy(backbone, PROMPTS) == generated(backbone, PROMPTS)
        assert decoders._agreeing[backbone] == {"lean": True}


def test_what_prompts_begin_with_alike_is_computed_once(backbone: Backbone) -> None:
    begin = list(range(100, 140))
    prompts = [begin + rest for rest in ([5, 6, 7, 8], [5], [9, 10], list(range(200, 250)), [5, 6, 7, 9])]
    with tokens_seen(backbone) as seen:
        assert greedy(backbone, prompts, SHORT) == generated(make(), prompts, SHORT)
    probe, seen = seen[:5], seen[5:]  # two uncached prompts, and three cached passes
    assert len(probe) == 5 and seen[0] == (1, 40)
    assert sum(rows * tokens for rows, tokens in seen[:-3]) <= 40 + 50 + 4 * 4
    assert seen[-3:] == [(5, 1)] * 3


def test_equal_prompts_are_computed_once(backbone: Backbone) -> None:
    greedy(backbone, PROMPTS[:1], SHORT)
    with tokens_seen(backbone) as seen:
        results = drawn(backbone, [PROMPTS[0], PROMPTS[2], PROMPTS[0]], num_return=3)
    assert [len(responses) for responses in results] == [3, 3, 3]
    assert sum(rows * tokens for rows, tokens in seen[:-5]) <= 2 * 7
    assert seen[-5:] == [(9, 1)] * 5
    assert len({tuple(ids) for responses in results for ids in responses}) == 9


@pytest.mark.parametrize("family", FAMILIES)
def test_several_responses_belong_to_their_own_prompt(family: str) -> None:
    backbone = make(family)
    prompts = [*PROMPTS, PROMPTS[1]]
    results = roll_out(backbone, "policy", prompts, Sampling(LONG, top_k=1), end_ids=[], num_return=2)
    assert results == [[ids, ids] for ids in generated(backbone, prompts)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_that_ended_leave(family: str) -> None:
    backbone = make(family)
    free = generated(backbone, PROMPTS)
    ends = [free[0][3], free[2][5], free[4][9]]
    stops = [next((i + 1 for i, token in enumerate(ids) if token in ends), LONG) for ids in free]
    assert len(set(stops)) > 2
    with tokens_seen(backbone) as seen:
        assert greedy(backbone, PROMPTS, end_ids=ends) == [ids[:n] for ids, n in zip(free, stops, strict=True)]
    steps = [sum(stop > step for stop in stops) for step in range(1, max(stops))]
    assert [rows for rows, _ in seen[-len(steps) :]] == steps


def test_max_new_tokens_of_one(backbone: Backbone) -> None:
    assert greedy(backbone, PROMPTS, 1) == generated(backbone, PROMPTS, 1)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_batches_do_not_matter(family: str) -> None:
    backbone = make(family)
    expected, responses = greedy(backbone, PROMPTS), drawn(backbone, PROMPTS, num_return=3)
    for batch_tokens in (1, 60, 100):
        assert greedy(backbone, PROMPTS, batch_tokens=batch_tokens) == expected
        assert drawn(backbone, PROMPTS, num_return=3, batch_tokens=batch_tokens) == responses
    assert [greedy(backbone, [prompt])[0] for prompt in PROMPTS] == expected
    assert greedy(backbone, PROMPTS[::-1]) == expected[::-1]


def test_batches_stay_within_the_token_budget(backbone: Backbone) -> None:
    drawn(backbone, PROMPTS)
    with tokens_seen(backbone) as seen:
        told: list[tuple[int, int, float]] = []
        drawn(backbone, PROMPTS, num_return=2, batch_tokens=40, progress=lambda *now: told.append(now))
    widest = max(len(prompt) for prompt in PROMPTS) + 6
    assert max(rows for rows, _ in seen) <= 40 // min(len(prompt) + 6 for prompt in PROMPTS)
    assert told[0][0] == 40 // widest
    assert [total for _, total, _ in told] == [10] * len(told) and told[-1][0] == 10
    assert all(rate > 0 for _, _, rate in told)


def test_no_prompts_no_responses(backbone: Backbone) -> None:
    assert drawn(backbone, []) == []


# -- other adapters and numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "decoder"),
    [
        ({"use_rslora": True}, "lean"),
        ({"target_modules": ["q_proj", "down_proj", "lm_head"]}, "lean"),
        ({"target_modules": ["embed_tokens", "v_proj"]}, "lean"),
        ({"use_dora": True}, "whole"),
        ({"lora_bias": True}, "whole"),
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True])
def test_adapters_of_other_kinds(options: dict[str, Any], decoder: str, tied: bool) -> None:
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    model_config: Any = tiny_config("llama")
    model_config.tie_word_embeddings = tied
    adapter = LoraConfig(**{**settings, **options, "task_type": "CAUSAL_LM"})
    backbone = make(adapter=adapter, config=model_config)
    assert greedy(backbone, PROMPTS) == generated(backbone, PROMPTS)
    assert decoders._agreeing[backbone] == {decoder: True}
    assert greedy(backbone, PROMPTS, adapter=None) == generated(backbone, PROMPTS, adapter=None)


def test_each_of_several_adapters(backbone: Backbone) -> None:
    torch.manual_seed(2)
    backbone.add_adapter("other", lora(rank=2))
    both = [greedy(backbone, PROMPTS, adapter=name) for name in ("policy", "other", None)]
    assert both == [generated(backbone, PROMPTS, adapter=name) for name in ("policy", "other", None)]
    assert both[0] != both[1] != both[2]


@pytest.mark.parametrize("family", LEAN)
def test_adapters_that_would_lose_bits_are_not_added_to_the_weights(family: str) -> None:
    """On a bfloat16 backbone they are computed apart, and each token is the most likely one, up to rounding."""
    backbone = make(family, dtype=torch.bfloat16)
    for adapter in ("policy", None):
        for prompt, ids in zip(PROMPTS, greedy(backbone, PROMPTS, SHORT, adapter=adapter), strict=True):
            with torch.no_grad(), backbone.using(adapter):
                logits = backbone.causal_lm(input_ids=torch.tensor([prompt + ids])).logits[0].float()
            before = logits[len(prompt) - 1 : -1]
            short_of = before.amax(-1) - before.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            assert float(short_of.max()) <= rounding(torch.bfloat16, before.device) * float(before.abs().max())
    assert decoders._agreeing[backbone] == {"lean": True}


def test_modules_get_their_own_forward_methods_back() -> None:
    backbone = make()
    expected = generated(backbone, PROMPTS)
    forwards = {module: module.__dict__.get("forward") for module in backbone.modules()}
    assert greedy(backbone, PROMPTS) == expected
    assert {module: module.__dict__.get("forward") for module in backbone.modules()} == forwards


# -- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [{}, {"temperature": 0.7}, {"top_k": 5, "top_p": 0.9}, {"temperature": 2.0, "top_k": 9}], ids=str
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_responses_follow_the_exact_distribution(family: str, shape: dict[str, Any]) -> None:
    """All responses of up to two tokens over eleven, with their probabilities from uncached forward passes."""
    config: Any = tiny_config(family)
    config.vocab_size, config.eos_token_id = 11, 3
    model = tiny_model(config=config, seed=3)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.15)  # so that many tokens are likely
    backbone = Backbone(model, pad_id=0)
    prompt, count, sampling = [4, 9, 1], 3000, Sampling(2, **shape)
    [responses] = roll_out(backbone, None, [prompt], sampling, end_ids=[3, 7], num_return=count)
    expected: dict[tuple[int, ...], float] = {}

    def follow(response: tuple[int, ...], log_prob: float) -> None:
        if len(response) == 2 or (response and response[-1] in (3, 7)):
            expected[response] = float(torch.tensor(log_prob).exp())
            return
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[:, -1]
        kept = sampling.shape(logits)[0].isfinite()
        for token in kept.nonzero()[:, 0].tolist():
            follow((*response, token), log_prob + float(sampling.log_probs(logits, torch.tensor([token]))))

    follow((), 0.0)
    counts = Counter(map(tuple, responses))
    assert abs(sum(expected.values()) - 1) < 1e-5 and len(expected) > 20
    assert counts.keys() <= expected.keys()
    large = [response for response, share in expected.items() if share * count >= 5]
    rest = count - sum(counts[response] for response in large)
    found = [*(counts[response] for response in large), rest]
    wanted = [*(expected[response] * count for response in large)]
    wanted.append(max(count - sum(wanted), 1e-3))
    if wanted[-1] < 5:
        found[-2:], wanted[-2:] = [sum(found[-2:])], [sum(wanted[-2:])]
    assert chisquare(found, torch.tensor(wanted).double() * (count / sum(wanted))).pvalue > 0.01


@pytest.mark.parametrize("shape", [{"temperature": 1.5}, {"top_k": 7}, {"top_p": 0.6, "temperature": 2.0}], ids=str)
def test_what_was_drawn_has_a_finite_log_probability(shape: dict[str, Any], backbone: Backbone) -> None:
    sampling = Sampling(LONG, **shape)
    results = roll_out(backbone, "policy", PROMPTS, sampling, end_ids=[2], num_return=2)
    for prompt, responses in zip(PROMPTS, results, strict=True):
        for ids in responses:
            with torch.no_grad(), backbone.using("policy"):
                logits = backbone.causal_lm(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            assert sampling.shape(logits).gather(-1, torch.tensor(ids)[:, None]).isfinite().all()
            assert sampling.log_probs(logits, torch.tensor(ids)).isfinite().all()


def test_equal_seeds_give_equal_responses(backbone: Backbone) -> None:
    first = drawn(backbone, PROMPTS, seed=1, num_return=2)
    assert drawn(backbone, PROMPTS, seed=1, num_return=2) == first
    assert drawn(backbone, PROMPTS, seed=2, num_return=2) != first
    assert drawn(backbone, PROMPTS, seed=-3) == drawn(backbone, PROMPTS, seed=-3)


def test_the_global_random_state_is_left_alone(backbone: Backbone) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    drawn(backbone, PROMPTS)
    assert torch.equal(torch.rand(4), expected)
