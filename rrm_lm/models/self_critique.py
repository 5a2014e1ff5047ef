"""Critique, then score: the model writes critiques of a response, and the reward is read after each critique.

Rewards are averaged over sampled critiques, which share the computation of prompt and response, as in critique-out-loud
reward models (Ankner et al. 2024, arXiv 2408.11791).
"""

from __future__ import annotations

from collections.abc import Sequence

from rrm_lm.feedback.records import Prompt
from rrm_lm.models.decoding.generation import Progress, sample
from rrm_lm.models.reward import RewardModel
from rrm_lm.text.chat import ChatFormat, Line


def with_own_critiques(
    model: RewardModel,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    *,
    samples: int = 1,
    temperature: float = 0.7,
    seed: int = 0,
    batch_tokens: int = 16384,
    progress: Progress | None = None,
) -> list[list[list[Line]]]:
    """For each prompt and response, sample ``samples`` lines that end in a critique by the model.

    `responses` holds the responses to each prompt; empty ones get no lines. One sample with temperature 0 is greedy. A
    response's critiques depend on the seed, not on the other responses. `batch_tokens` is the maximum of tokens held
    while sampling; for `progress` see :func:`rrm_lm.models.decoding.generation.sample`.
    """
    places = [(i, j) for i, group in enumerate(responses) for j, response in enumerate(group) if response.strip()]
    starts = [chat.critique_prompt_ids(prompts[i], responses[i][j]) for i, j in places]
    with model.backbone.using(model.adapter):
        critiques = sample(
            model.backbone.model,
            starts,
            pad_id=model.backbone.pad_id,
            eos_ids=[chat.end_id],
            max_new_tokens=chat.max_critique_length,
            temperature=temperature,
            seed=seed,
            num_return=samples,
            batch_tokens=batch_tokens,
            seed_by_prompt=True,
            progress=progress,
        )
    lines: list[list[list[Line]]] = [[[] for _ in group] for group in responses]
    for (i, j), texts in zip(places, critiques, strict=True):
        lines[i][j] = chat.with_critique_ids(prompts[i], responses[i][j], texts)
    return lines
