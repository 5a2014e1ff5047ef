"""Sample responses from a policy, and compute their log-probabilities under it and other policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm

from rrm_lm.evaluation.policies.gold import RewardFunction
from rrm_lm.feedback.records import Prompt, prompt_id
from rrm_lm.models.backbone import Backbone, evaluating
from rrm_lm.models.decoding.generation import Progress
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import token_log_probs
from rrm_lm.text.batching import collate, length_groups
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.over_optimisation import Measure, Probe

Within = Callable[[Callable[[], Any]], Any]  # calls a function that computes with a policy


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sampled response."""

    line: Line  # its token ids after those of its prompt
    text: str  # the response without its end token
    finished: bool  # whether it ends with an end token

    @property
    def tokens(self) -> int:
        """Number of sampled tokens, including the end token."""
        return len(self.line.ids) - self.line.response_start


@runtime_checkable
class DrawnReward(Protocol):
    """A reward that reads the tokens of responses. A `RewardFunction` reads their text."""

    def of_drawn(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]) -> list[list[float]]:
        """For each prompt, the reward of each response; NaN if it has none."""
        ...


def end_ids(chat: ChatFormat) -> list[int]:
    """The tokens that end a response: the end-of-turn token and the tokenizer's eos."""
    eos = chat.tokenizer.eos_token_id
    return sorted({chat.end_id, *([] if eos is None else [int(eos)])})


def draw(
    backbone: Backbone,
    adapter: str | None,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_tokens: int = 16384,
    progress: Progress | None = None,
    ends: Sequence[int] | None = None,
) -> list[list[Drawn]]:
    """Sample `samples` responses to each prompt from a policy. Equal calls give equal responses.

    Without an adapter, the bare backbone is the policy. A prompt longer than the chat format's `max_length` loses its
    beginning. `ends` are the tokens that end a response, by default :func:`end_ids`. `batch_tokens` is the maximum of
    tokens held at once; `progress` is called after each batch with the
    responses done, the total, and tokens per second. Raises ModelError: a prompt and its response do not fit the
    model's context; ConfigError: several samples at temperature 0.
    """
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    ends = end_ids(chat) if ends is None else list(ends)
    options: dict[str, Any] = {"seed": seed, "batch_tokens": batch_tokens, "progress": progress}
    sampled = roll_out(backbone, adapter, ids, sampling, end_ids=ends, num_return=samples, **options)

    def drawn(prompt: Sequence[int], response: Sequence[int]) -> Drawn:
        finished = bool(response) and response[-1] in ends
        words = list(response[:-1] if finished else response)
        text = chat.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Drawn(chat.sampled_line(prompt, response), text.strip(), finished)

    return [[drawn(prompt, response) for response in group] for prompt, group in zip(ids, sampled, strict=True)]


def drawn_text(chat: ChatFormat, prompt: Prompt, text: str) -> Drawn:
    """Treat a text that no model wrote as if a policy had sampled it with an end token."""
    ids = chat.tokenizer.encode(text, add_special_tokens=False)
    return Drawn(chat.sampled_line(chat.prompt_ids(prompt), [*ids, chat.end_id]), text, finished=True)


def log_probs(
    backbone: Backbone,
    adapter: str | None,
    groups: Sequence[Sequence[Drawn]],
    temperature: float = 1.0,
    *,
    micro_batch_tokens: int = 4096,
    label: str = "",
) -> list[list[float]]:
    """Log-probability of each response under a policy, summed over its tokens, in nats. The policy need not be the one
    that sampled the responses. `groups` holds the responses to each prompt, which share its computation if the model
    can. `temperature`, above 0, divides the logits; `micro_batch_tokens` is the maximum of padded tokens at once. A bar
    with the `label`, if there is one, shows progress.
    """
    whole = Sampling(max_new_tokens=1, temperature=temperature)
    lines = [[one.line for one in group] for group in groups]
    rows = [backbone.rows([line.ids for line in group]) for group in lines]
    found: list[list[float]] = [[] for _ in groups]
    sizes = [len(group) for group in rows]
    batches = length_groups([max(map(len, group)) for group in rows], micro_batch_tokens, sizes=sizes)
    for members in tqdm(batches, desc=label, unit="batch", disable=not label):
        batch = collate([row for i in members for row in rows[i]], backbone.pad_id).to(backbone.device)
        flat = [line for i in members for line in lines[i]]
        places = [
            batch.at(number, position - 1)
            for number, line in enumerate(flat)
            for position in range(line.response_start, len(line.ids))
        ]
        tokens = torch.tensor([token for line in flat for token in line.ids[line.response_start :]])
        with torch.no_grad(), evaluating(backbone):
            hidden = backbone(batch, adapter)
            rows_of, indices = (torch.tensor(part, device=hidden.device) for part in zip(*places, strict=True))
            each, _ = token_log_probs(backbone, hidden[rows_of, indices], tokens.to(hidden.device), whole, adapter)
        sums = iter(each.split([len(line.ids) - line.response_start for line in flat]))
        for i in members:
            found[i] = [float(next(sums).double().sum()) for _ in lines[i]]
    return found


def rewards_of_drawn(
    function: RewardFunction | DrawnReward, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]
) -> list[list[float]]:
    """The reward of each response, computed in one call."""
    if isinstance(function, DrawnReward):
        return function.of_drawn(prompts, drawn)
    pairs = [(prompt, one.text) for prompt, group in zip(prompts, drawn, strict=True) for one in group]
    ids = [one.line.ids[one.line.response_start :] for group in drawn for one in group]
    more = [ids] if getattr(function, "reads_ids", False) else []
    values = iter(function([prompt for prompt, _ in pairs], [text for _, text in pairs], *more))
    return [[float(next(values)) for _ in group] for group in drawn]


def held_out_probe(
    policy: Callable[[], tuple[Backbone, str | None]],
    reference: tuple[Backbone, str | None],
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    proxy: RewardFunction | DrawnReward,
    gold: RewardFunction | DrawnReward,
    samples: int = 1,
    seed: int = 0,
    batch_tokens: int = 16384,
    micro_batch_tokens: int = 4096,
    ends: Sequence[int] | None = None,
    within: Within = lambda function: function(),
) -> Measure:
    """Make the `measure` of `OverOptimisationCallback`: samples of the current policy, their rewards and KL divergence.

    The seed is the same at every step, to reduce the noise between steps. `policy` returns the policy's backbone and
    adapter (a trainer may wrap them when it starts); the KL divergence is measured from those of `reference`.
    `sampling` must not have top-k or top-p, because the KL divergence needs the whole distribution. `proxy` is the
    optimized reward and `gold` the one that the policy is judged by. `within` calls functions that run the policy; for
    a sharded model :func:`rrm_lm.models.sharding.with_full_params`. The other arguments are those of `draw` and
    `log_probs`. Raises ValueError if `sampling` excludes tokens.
    """
    if sampling.truncates:
        raise ValueError("top-p, top-k or temperature 0 leave tokens out, and the KL divergence needs all of them")

    def written() -> tuple[list[list[Drawn]], list[list[float]], list[list[float]]]:
        backbone, adapter = policy()
        drawing: dict[str, Any] = {"samples": samples, "seed": seed, "batch_tokens": batch_tokens, "ends": ends}
        drawn = draw(backbone, adapter, chat, prompts, sampling, **drawing)
        options: dict[str, Any] = {"micro_batch_tokens": micro_batch_tokens}
        own = log_probs(backbone, adapter, drawn, sampling.temperature, **options)
        return drawn, own, log_probs(*reference, drawn, sampling.temperature, **options)

    def measure(step: int) -> list[Probe]:
        drawn, own, theirs = within(written)
        proxies, golds = (rewards_of_drawn(function, prompts, drawn) for function in (proxy, gold))
        return [
            Probe(
                prompt=number,
                prompt_id=prompt_id(prompt),
                response=one.text,
                proxy=proxies[number][k] if math.isfinite(proxies[number][k]) else math.nan,
                gold=golds[number][k] if math.isfinite(golds[number][k]) else math.nan,
                kl=own[number][k] - theirs[number][k],
                tokens=one.tokens,
                finished=one.finished,
            )
            for number, prompt in enumerate(prompts)
            for k, one in enumerate(drawn[number])
        ]

    return measure
