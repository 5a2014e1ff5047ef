"""Responses drawn from policies, their log-probabilities, and the probe that measures a policy in training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rrm_lm.evaluation.policies.samples import Drawn, draw, end_ids, held_out_probe, log_probs, rewards_of_drawn
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.text.chat import ChatFormat
from tests.tiny import lora, prompt_of, tiny_chat, tiny_model

torch.set_num_threads(1)

CHAT = tiny_chat()
PROMPTS = [prompt_of("what is blue?"), prompt_of("who lives in the sea?", "no", "and in the moon?"), prompt_of("why?")]
SAMPLING = Sampling(6)


def policy(family: str = "llama", sharing: bool | None = None) -> Backbone:
    torch.manual_seed(1)
    backbone = Backbone(tiny_model(family), pad_id=0, sharing=sharing)
    backbone.add_adapter("policy", lora(family))
    return backbone


def drawn_line(text_ids: list[int], finished: bool) -> Drawn:
    return Drawn(CHAT.sampled_line(CHAT.prompt_ids(PROMPTS[0]), text_ids), "", finished)


def test_what_is_drawn_is_what_people_read() -> None:
    backbone = policy()
    drawn = draw(backbone, "policy", CHAT, PROMPTS, SAMPLING, samples=3)
    assert [len(group) for group in drawn] == [3, 3, 3]
    for prompt, group in zip(PROMPTS, drawn, strict=True):
        start = CHAT.prompt_ids(prompt)
        for one in group:
            response = list(one.line.ids[len(start) :])
            assert list(one.line.ids[: len(start)]) == start
            assert one.tokens == len(response) and 1 <= one.tokens <= 6
            assert one.finished == (response[-1] == CHAT.end_id) and (one.finished or one.tokens == 6)
            assert "<|im_end|>" not in one.text and one.text == one.text.strip()
            words = response[:-1] if one.finished else response
            assert one.text == CHAT.tokenizer.decode(words, skip_special_tokens=True).strip()
    again = draw(backbone, "policy", CHAT, PROMPTS, SAMPLING, samples=3)
    other = draw(backbone, "policy", CHAT, PROMPTS, SAMPLING, samples=3, seed=1)
    assert again == drawn != other


def test_the_tokens_that_end_a_response_can_be_given() -> None:
    backbone = policy()
    ids = CHAT.prompt_ids(PROMPTS[0])
    [[one]] = draw(backbone, "policy", CHAT, PROMPTS[:1], SAMPLING)
    first = one.line.ids[len(ids)]
    [[ended]] = draw(backbone, "policy", CHAT, PROMPTS[:1], SAMPLING, ends=[first])
    assert ended.line.ids == (*ids, first) and ended.finished and ended.text == ""
    [[endless]] = draw(backbone, "policy", CHAT, PROMPTS[:1], SAMPLING, ends=[])
    assert endless.tokens == 6 and not endless.finished


def test_both_tokens_that_end_a_response_are_known() -> None:
    assert end_ids(CHAT) == [2]
    tokenizer = tiny_chat().tokenizer
    tokenizer.eos_token = "<|endoftext|>"
    assert end_ids(ChatFormat(tokenizer)) == [0, 2]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("sharing", [None, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_plain_model(family: str, sharing: bool | None, temperature: float) -> None:
    backbone = policy(family, sharing)
    drawn = draw(backbone, "policy", CHAT, PROMPTS, SAMPLING, samples=2)
    for adapter in ("policy", None):
        found = log_probs(backbone, adapter, drawn, temperature, micro_batch_tokens=60)
        for group, values in zip(drawn, found, strict=True):
            for one, value in zip(group, values, strict=True):
                ids = torch.tensor([one.line.ids])
                with torch.no_grad(), backbone.using(adapter):
                    logits = backbone.causal_lm(input_ids=ids, use_cache=False).logits[0].float() / temperature
                each = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
                assert value == pytest.approx(float(each[one.line.response_start - 1 :].sum()), abs=2e-4)


def test_log_probs_leave_the_model_as_it_was() -> None:
    backbone = policy()
    backbone.train()
    before = {name: module.training for name, module in backbone.named_modules()}
    log_probs(backbone, "policy", [[drawn_line([5, 6, 2], True)]])
    assert {name: module.training for name, module in backbone.named_modules()} == before
    assert all(p.requires_grad == ("lora" in name) for name, p in backbone.named_parameters())


def test_equal_responses_have_equal_log_probs() -> None:
    one, longer = drawn_line([5, 6, 2], True), drawn_line([5, 6, 2, 7], False)
    ((first, second, third),) = log_probs(policy(), "policy", [[one, one, longer]])
    assert first == second > third


def test_the_mean_log_ratio_is_the_kl_divergence() -> None:
    """Against the exact divergence over all responses of one token."""
    backbone = policy()
    prompt = PROMPTS[:1]
    drawn = draw(backbone, "policy", CHAT, prompt, Sampling(1), samples=3000)
    own, theirs = (log_probs(backbone, adapter, drawn)[0] for adapter in ("policy", None))
    ratios = torch.tensor(own) - torch.tensor(theirs)
    ids = torch.tensor([CHAT.prompt_ids(prompt[0])])
    each = {}
    for adapter in ("policy", None):
        with torch.no_grad(), backbone.using(adapter):
            each[adapter] = backbone.causal_lm(input_ids=ids, use_cache=False).logits[0, -1].log_softmax(-1)
    exact = float((each["policy"].exp() * (each["policy"] - each[None])).sum())
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert abs(float(ratios.mean()) - exact) < 4 * error < exact


def test_rewards_are_asked_for_at_once_and_put_back() -> None:
    backbone = policy()
    drawn = draw(backbone, None, CHAT, PROMPTS, SAMPLING, samples=2)
    calls = []

    def reward(prompts, responses):
        calls.append(list(zip(prompts, responses, strict=True)))
        return [float(i) for i in range(len(responses))]

    assert rewards_of_drawn(reward, PROMPTS, drawn) == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert calls == [[(p, one.text) for p, group in zip(PROMPTS, drawn, strict=True) for one in group]]


# ---- the probe ----


def probe(backbone: Backbone, **more):
    settings = {"proxy": lambda _, texts: [float(len(text)) for text in texts],
                "gold": lambda _, texts: [-float(len(text)) for text in texts], "samples": 2, **more}  # fmt: skip
    return held_out_probe(lambda: (backbone, "policy"), (backbone, None), CHAT, PROMPTS, SAMPLING, **settings)


def test_a_probe_measures_rewards_and_distance() -> None:
    backbone = policy()
    samples = probe(backbone)(10)
    assert [one.prompt for one in samples] == [0, 0, 1, 1, 2, 2]
    assert len({one.prompt_id for one in samples}) == 3
    assert all(one.proxy == len(one.response) == -one.gold for one in samples)
    assert any(abs(one.kl) > 0.1 for one in samples)
    assert samples == probe(backbone)(20)


def test_a_fresh_policy_is_at_no_distance() -> None:
    torch.manual_seed(0)
    backbone = Backbone(tiny_model(), pad_id=0)
    backbone.add_adapter("policy", lora(random=False))
    assert all(abs(one.kl) < 1e-4 for one in probe(backbone)(0))


def test_a_probe_disturbs_no_random_numbers() -> None:
    """Or a run that resumes between two measurements would be another one."""
    backbone, measure = policy(), None
    measure = probe(backbone)
    state = torch.random.get_rng_state()
    measure(0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rewards_that_are_no_numbers_are_missing() -> None:
    samples = probe(policy(), gold=lambda _, texts: [math.inf] * len(texts))(0)
    assert all(math.isnan(one.gold) for one in samples)


@pytest.mark.parametrize("more", [{"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0}])
def test_a_distribution_that_leaves_tokens_out_has_no_divergence(more) -> None:
    with pytest.raises(ValueError, match="leave tokens out"):
        held_out_probe(lambda: (policy(), None), (policy(), None), CHAT, PROMPTS, replace(SAMPLING, **more),
                       proxy=lambda *_: [], gold=lambda *_: [])  # fmt: skip
