"""Sampling: the same tokens whatever the batch, and the model's own distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.decoding.generation import sample
from tests.precision import Precision
from tests.tiny import lora, tiny_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [20, 21, 22], [30, 31, 32, 33, 34], [50, 51]]


def greedy(model: Any, prompts: list[list[int]], **options: Any) -> list[list[list[int]]]:
    settings: dict[str, Any] = {"pad_id": 0, "eos_ids": [2], "max_new_tokens": 6, "temperature": 0.0, **options}
    return sample(model, prompts, **settings)


def drawn(model: Any, prompts: list[list[int]], **options: Any) -> list[list[list[int]]]:
    return sample(model, prompts, **{"pad_id": 0, "eos_ids": [2], "max_new_tokens": 6, **options})


def by_hand(model: Any, prompt: list[int], steps: int) -> list[int]:
    """Greedy decoding without a cache, padding or `.generate()`."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gpt_neox"])
def test_uneven_prompts_in_one_batch_get_what_each_gets_alone(family: str, precision: Precision) -> None:
    model = tiny_model(family)
    found = greedy(model, PROMPTS, eos_ids=[])
    for prompt, [ids] in zip(PROMPTS, found, strict=True):
        assert len(ids) == 6
        precision.most_likely(model, prompt, ids)


def test_the_batches_do_not_matter_to_greedy_decoding(model: Any) -> None:
    expected = greedy(model, PROMPTS)
    assert greedy(model, PROMPTS, batch_tokens=1) == expected
    assert greedy(model, PROMPTS, batch_tokens=25) == expected


def test_a_response_ends_with_its_first_eos(model: Any) -> None:
    free = by_hand(model, PROMPTS[0], 6)
    eos = free[3]
    stop = free.index(eos) + 1
    [[ids], [other]] = greedy(model, [PROMPTS[0], PROMPTS[1]], eos_ids=[eos])
    assert ids == free[:stop]
    assert len(other) <= 6 and (eos in other) == (other[-1] == eos)


def test_any_of_several_eos_ids_ends_a_response(model: Any) -> None:
    free = by_hand(model, PROMPTS[0], 6)
    assert greedy(model, PROMPTS[:1], eos_ids=[383, free[1]]) == [[free[: free.index(free[1]) + 1]]]


def test_a_generated_pad_token_is_kept(model: Any) -> None:
    free = by_hand(model, PROMPTS[0], 6)
    assert greedy(model, PROMPTS[:1], pad_id=free[2], eos_ids=[]) == [[free]]


def test_pad_equal_to_eos_does_no_harm(model: Any) -> None:
    assert greedy(model, PROMPTS, pad_id=2) == greedy(model, PROMPTS, pad_id=0)


def test_equal_seeds_give_equal_samples(model: Any) -> None:
    first = drawn(model, PROMPTS, seed=1)
    assert drawn(model, PROMPTS, seed=1) == first
    assert drawn(model, PROMPTS, seed=2) != first


def test_equal_prompts_draw_different_numbers_and_batches_do_not_matter(model: Any) -> None:
    results = drawn(model, [[5, 6, 7]] * 4, batch_tokens=9, eos_ids=[])
    assert len({tuple(ids) for [ids] in results}) == 4
    assert drawn(model, [[5, 6, 7]] * 4, eos_ids=[]) == results


def test_the_global_random_state_is_left_alone(model: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    drawn(model, PROMPTS)
    torch.testing.assert_close(torch.rand(4), expected)


def test_several_responses_to_each_prompt(model: Any) -> None:
    results = drawn(model, PROMPTS, num_return=3, eos_ids=[])
    assert [len(responses) for responses in results] == [3] * len(PROMPTS)
    assert all(len(ids) == 6 for responses in results for ids in responses)
    assert len({tuple(ids) for ids in results[0]}) == 3


def test_several_responses_belong_to_their_own_prompt(precision: Precision) -> None:
    model = tiny_model()
    results = drawn(model, PROMPTS, num_return=2, top_k=1, eos_ids=[])
    for prompt, responses in zip(PROMPTS, results, strict=True):
        assert [len(ids) for ids in responses] == [6, 6]
        for ids in responses:
            precision.most_likely(model, prompt, ids)


def test_samples_follow_the_models_distribution(precision: Precision) -> None:
    model = tiny_model()
    [responses] = drawn(model, [PROMPTS[0]], max_new_tokens=1, num_return=4000, temperature=2.0, batch_tokens=10**6)
    counts = torch.bincount(torch.tensor(responses).flatten(), minlength=model.config.vocab_size)
    expected = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach().float() / 2.0, dim=-1)
    assert float((counts / 4000 - expected).abs().max()) < 0.03
    assert int((counts > 0).sum()) > 60  # no hidden top-k


def test_top_p_leaves_out_the_tail(model: Any) -> None:
    [responses] = drawn(model, [PROMPTS[0]], max_new_tokens=1, num_return=500, top_p=0.5, batch_tokens=10**6)
    likely = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1], dim=-1).sort(descending=True)
    count = int((likely.values.cumsum(0) < 0.5).sum()) + 1
    assert {ids[0] for ids in responses} <= set(likely.indices[:count].tolist())


def test_defaults_of_the_models_generation_config_do_not_apply(model: Any) -> None:
    expected = greedy(model, PROMPTS, eos_ids=[])
    free = drawn(model, PROMPTS, seed=4)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.top_k = 1
    own = model.generation_config
    assert greedy(model, PROMPTS, eos_ids=[]) == expected
    assert drawn(model, PROMPTS, seed=4) == free
    assert model.generation_config is own and own.repetition_penalty == 5.0


def test_a_model_in_training_is_sampled_in_evaluation_and_goes_back() -> None:
    model: Any = get_peft_model(tiny_model(), lora(dropout=0.5))
    expected = greedy(model.eval(), PROMPTS)
    model.train()
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    assert greedy(model, PROMPTS) == expected
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


@pytest.mark.parametrize("num_return", [1, 2])
def test_batches_stay_within_the_token_budget(model: Any, num_return: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    generate = model.generate

    def spy(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        shapes.append((input_ids.shape[0], input_ids.shape[1]))
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", spy)
    drawn(model, PROMPTS, num_return=num_return, batch_tokens=40)
    assert sum(rows for rows, _ in shapes) == len(PROMPTS) * num_return
    assert all(rows * (width + 6) <= 40 or rows == num_return for rows, width in shapes)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True) and len(widths) < len(PROMPTS)


def test_progress_is_told_after_every_batch(model: Any) -> None:
    told: list[tuple[int, int, float]] = []
    drawn(model, PROMPTS, batch_tokens=1, progress=lambda *now: told.append(now))
    assert [(done, total) for done, total, _ in told] == [(n, 5) for n in range(1, 6)]
    assert all(rate > 0 for _, _, rate in told)


def test_no_prompts_no_responses(model: Any) -> None:
    assert drawn(model, []) == []


def test_a_prompt_without_tokens_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="prompt 2 of 2"):
        drawn(model, [[5], []])


def test_a_prompt_that_does_not_fit_the_context_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="512"):
        drawn(model, [[5] * 510])


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("max_new_tokens", 0), ("num_return", 0)]
)
def test_settings_without_sense_are_refused(model: Any, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        drawn(model, PROMPTS, **{name: value})


def test_several_greedy_responses_are_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="num_return"):
        greedy(model, PROMPTS, num_return=2)
