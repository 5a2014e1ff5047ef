"""What policies write, and how likely it is: responses drawn from a policy, their log-probabilities under others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from rrm_lm.evaluation.policies.gold import RewardFunction
from rrm_lm.feedback.records import Prompt, prompt_id
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.generation import Progress
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import token_log_probs
from rrm_lm.text.batching import collate, length_groups
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.over_optimisation import Measure, Probe

T = TypeVar("T")


class Within(Protocol):
    """Calls a function that computes with a policy."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response as it was drawn.

    Attributes:
        line: Its token ids behind those of its prompt.
        text: The response as people read it, without the token that ends it.
        finished: Whether it ends in such a token.
    """

    line: Line
    text: str
    finished: bool

    @property
    def tokens(self) -> int:
        """Tokens drawn, the one that ends it included."""
        return len(self.line.ids) - self.line.response_start


@runtime_checkable
class DrawnReward(Protocol):
    """A reward that reads responses as they were drawn, tokens and all; a `RewardFunction` reads their text."""

    def of_drawn(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]) -> list[list[float]]:
        """For each prompt, a number for each of its responses; NaN where there is none."""
        ...


def end_ids(chat: ChatFormat) -> list[int]:
    """The tokens that end a response: the one that ends a turn, and the tokenizer's eos where it is another."""
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
) -> list[list[Drawn]]:
    """For each prompt, `samples` responses drawn from a policy.

    Args:
        backbone, adapter: The policy; the bare backbone where `adapter` is None.
        chat: How its prompts are written. A prompt longer than its `max_length` loses its beginning.
        prompts: What it responds to.
        sampling: The distribution, and the most tokens of a response.
        samples: Responses for each prompt.
        seed: Equal calls give equal responses.
        batch_tokens: Most tokens held at once.
        progress: Called after each batch with responses done, responses in all, and tokens a second.

    Raises:
        ModelError: A prompt that does not fit the model's context together with its response.
        ConfigError: Several samples at temperature 0.
    """
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    ends = end_ids(chat)
    drawn = roll_out(
        backbone,
        adapter,
        ids,
        sampling,
        end_ids=ends,
        num_return=samples,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    return [
        [_drawn(chat, prompt, response, ends) for response in group] for prompt, group in zip(ids, drawn, strict=True)
    ]


def _drawn(chat: ChatFormat, prompt: Sequence[int], response: Sequence[int], ends: Sequence[int]) -> Drawn:
    finished = bool(response) and response[-1] in ends
    words = response[:-1] if finished else response
    text = chat.tokenizer.decode(list(words), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Drawn(chat.sampled_line(prompt, response), text.strip(), finished)


def drawn_text(chat: ChatFormat, prompt: Prompt, text: str) -> Drawn:
    """A text that no model wrote, as if a policy had drawn it and ended by itself."""
    ids = chat.tokenizer.encode(text, add_special_tokens=False)
    return Drawn(chat.sampled_line(chat.prompt_ids(prompt), [*ids, chat.end_id]), text, finished=True)


def log_probs(
    backbone: Backbone,
    adapter: str | None,
    groups: Sequence[Sequence[Drawn]],
    temperature: float = 1.0,
    *,
    micro_batch_tokens: int = 4096,
) -> list[list[float]]:
    """Log-probability of each response under a policy, summed over its tokens, in nats.

    Args:
        backbone, adapter: The policy that is asked, which need not be the one that wrote them.
        groups: For each prompt, its responses; the prompt's computation is shared where the model allows it.
        temperature: What logits are divided by; above 0.
        micro_batch_tokens: Most padded tokens at once.
    """
    whole = Sampling(max_new_tokens=1, temperature=temperature)
    lines = [[one.line for one in group] for group in groups]
    rows = [backbone.rows([line.ids for line in group]) for group in lines]
    found: list[list[float]] = [[] for _ in groups]
    sizes = [len(group) for group in rows]
    for members in length_groups([max(map(len, group)) for group in rows], micro_batch_tokens, sizes=sizes):
        batch = collate([row for i in members for row in rows[i]], backbone.pad_id).to(backbone.device)
        flat = [line for i in members for line in lines[i]]
        places = [
            batch.at(number, position - 1)
            for number, line in enumerate(flat)
            for position in range(line.response_start, len(line.ids))
        ]
        tokens = torch.tensor([token for line in flat for token in line.ids[line.response_start :]])
        with torch.no_grad(), _evaluating(backbone):
            hidden = backbone(batch, adapter)
            rows_of, indices = (torch.tensor(part, device=hidden.device) for part in zip(*places, strict=True))
            each, _ = token_log_probs(backbone, hidden[rows_of, indices], tokens.to(hidden.device), whole, adapter)
        sums = iter(each.split([len(line.ids) - line.response_start for line in flat]))
        for i in members:
            found[i] = [float(next(sums).double().sum()) for _ in lines[i]]
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module is put back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def rewards_of_drawn(
    function: RewardFunction | DrawnReward, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Drawn]]
) -> list[list[float]]:
    """What a reward gives each response, asked about all of them at once."""
    if isinstance(function, DrawnReward):
        return function.of_drawn(prompts, drawn)
    pairs = [(prompt, one.text) for prompt, group in zip(prompts, drawn, strict=True) for one in group]
    values = iter(function([prompt for prompt, _ in pairs], [text for _, text in pairs]))
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
    within: Within = lambda function: function(),
) -> Measure:
    """The `measure` of `OverOptimisationCallback`: what a policy writes now, its rewards, and how far it has moved.

    The same seed at every step: steps then differ by what the policy learned, and less by chance.

    Args:
        policy: Gives the policy's backbone and adapter (a trainer may wrap them only when it starts).
        reference: The backbone and adapter that the distance is measured from.
        chat, prompts, sampling, samples, seed, batch_tokens: See `draw`. The KL divergence is that of whole
            distributions, so `sampling` may have a temperature but may not leave tokens out.
        proxy, gold: The reward that is optimised, and the one that it is judged by.
        micro_batch_tokens: See `log_probs`.
        within: Calls what computes with the policy; for a sharded model
            :func:`rrm_lm.models.sharding.with_full_params`.

    Raises:
        ValueError: `sampling` leaves tokens out.
    """
    if sampling.truncates:
        raise ValueError("top-p, top-k or temperature 0 leave tokens out, and the KL divergence needs all of them")

    def written() -> tuple[list[list[Drawn]], list[list[float]], list[list[float]]]:
        backbone, adapter = policy()
        drawn = draw(backbone, adapter, chat, prompts, sampling, samples=samples, seed=seed, batch_tokens=batch_tokens)
        options = {"micro_batch_tokens": micro_batch_tokens}
        own = log_probs(backbone, adapter, drawn, sampling.temperature, **options)
        return drawn, own, log_probs(*reference, drawn, sampling.temperature, **options)

    def measure(step: int) -> list[Probe]:
        drawn, own, theirs = within(written)
        rewards = [rewards_of_drawn(function, prompts, drawn) for function in (proxy, gold)]
        return [
            Probe(
                prompt=number,
                prompt_id=prompt_id(prompt),
                response=one.text,
                proxy=_known(rewards[0][number][k]),
                gold=_known(rewards[1][number][k]),
                kl=own[number][k] - theirs[number][k],
                tokens=one.tokens,
                finished=one.finished,
            )
            for number, prompt in enumerate(prompts)
            for k, one in enumerate(drawn[number])
        ]

    return measure


def _known(value: float) -> float:
    return value if math.isfinite(value) else math.nan
