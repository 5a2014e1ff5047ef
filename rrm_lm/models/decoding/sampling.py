"""The distribution that responses are sampled from, used for sampling and for log-probabilities.

The order is that of transformers: temperature, then the most likely `top_k` tokens, then the smallest set of those with
probability `top_p` (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751). All tokens tied at a cutoff are kept, so
samples do not depend on how a sort breaks ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rrm_lm.options import check

_CANDIDATES = (64, 1024)  # numbers of most likely tokens to search for a nucleus first, since a full sort is slow
_BLOCK = 256  # tokens whose weights are summed together in sampling


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled. Raises ConfigError: a setting outside its range."""

    max_new_tokens: int  # maximum tokens of a response
    # Divides the logits. 0 takes the most likely token (temperature 1, truncated to that token).
    temperature: float = 1.0
    top_p: float = 1.0  # sample from the smallest set of tokens with at least this probability; 1 for all
    top_k: int = 0  # sample from this many most likely tokens; 0 for all

    def __post_init__(self) -> None:
        check(
            self,
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (most likely token) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
        )

    @property
    def truncates(self) -> bool:
        return self.temperature == 0 or self.top_p < 1 or self.top_k > 0

    def log_probs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(n,) log-probability of each of (n,) tokens under (n, vocabulary) next-token logits, in float32 or better.

        Differentiable in the logits. A token that truncation now excludes, because the policy has changed, counts as
        kept: the result stays finite.
        """
        scaled, own = self._scale(logits), tokens[:, None]
        least = torch.finfo(scaled.dtype).min  # minus infinity gives NaN gradients if all other tokens are excluded
        chosen = scaled.gather(-1, own)
        if self.truncates:
            scaled = scaled.masked_fill(scaled < self._threshold(scaled.detach()), least)
        # Computed from the odds: chosen - logsumexp would lose the digits of 1 - p and of a log p near 0.
        others = scaled.scatter(-1, own, least).logsumexp(-1, keepdim=True)
        return nn.functional.logsigmoid(chosen - others).squeeze(-1)

    def shape(self, logits: Tensor) -> Tensor:
        """(n, vocabulary) logits after temperature and truncation; minus infinity for excluded tokens."""
        scaled = self._scale(logits)
        if not self.truncates:
            return scaled
        return scaled.masked_fill(scaled < self._threshold(scaled.detach()), float("-inf"))

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Sample (n,) token ids. Rows do not depend on each other.

        Args:
            logits: (n, vocabulary) the model's next-token logits; overwritten, because a copy costs more than sampling.
            uniform: (n,) numbers in [0, 1); float64, because float32 has too few steps for a large vocabulary.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        weights = logits if logits.dtype == torch.float64 else logits.float()
        weights = weights if self.temperature == 1 else weights.div_(self.temperature)
        if self.truncates:
            weights.masked_fill_(weights < self._threshold(weights), float("-inf"))
        return _invert(weights.sub_(weights.amax(-1, keepdim=True)).exp_(), uniform)

    def _scale(self, logits: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if self.temperature in (0, 1) else logits / self.temperature

    @torch.no_grad()
    def _threshold(self, scaled: Tensor) -> Tensor:
        """(n, 1) the smallest kept logit."""
        vocabulary = scaled.shape[-1]
        if self.temperature == 0:
            return scaled.amax(-1, keepdim=True)
        kept = min(self.top_k, vocabulary) if self.top_k > 0 else vocabulary
        if self.top_p == 1:
            return scaled.topk(kept, dim=-1).values[:, -1:]
        total = scaled.logsumexp(-1, keepdim=True)
        if kept < vocabulary:
            least = scaled.topk(kept, dim=-1).values[:, -1:]
            total = scaled.masked_fill(scaled < least, float("-inf")).logsumexp(-1, keepdim=True)
        first = () if stalls(scaled.device) else _CANDIDATES  # whether there are rows left is a question of the host
        return self._nucleus(scaled, total, [*(count for count in first if count < kept), kept])

    def _nucleus(self, scaled: Tensor, total: Tensor, candidates: list[int]) -> Tensor:
        """(n, 1) the smallest logit of the nucleus, searched in growing sets of candidates."""
        likely = scaled.topk(candidates[0], dim=-1).values
        # The nucleus ends with the token that reaches top_p; `count` tokens precede it.
        count = ((likely - total).exp().cumsum(-1) < self.top_p).sum(-1, keepdim=True)
        threshold = likely.gather(-1, count.clamp_max(candidates[0] - 1))
        rows = (count[:, 0] == candidates[0]).nonzero()[:, 0] if len(candidates) > 1 else ()
        if len(rows):
            threshold[rows] = self._nucleus(scaled[rows], total[rows], candidates[1:])
        return threshold


def stalls(device: torch.device) -> bool:
    """Whether reading a result on the host makes the device wait."""
    return device.type != "cpu"


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum of each row's weights exceeds its uniform number times their sum.

    The sum runs over blocks of tokens and then inside one block, in float64. A float32 running sum over the vocabulary
    costs more and would never choose unlikely tokens after likely ones.
    """
    rows, vocabulary = weights.shape
    if vocabulary % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    sums = _double(blocks.sum(-1))
    until = sums.cumsum(-1)
    goal = uniform.to(until)[:, None] * until[:, -1:]
    block = _first_above(until, goal)
    own = sums.gather(-1, block)
    rest = ((goal - (until.gather(-1, block) - own)) / own).clamp_min(0.0)
    inside = _double(blocks[torch.arange(rows, device=block.device), block[:, 0]]).cumsum(-1)
    token = _first_above(inside, rest * inside[:, -1:])
    return (block * _BLOCK + token)[:, 0]


def _first_above(until: Tensor, goal: Tensor) -> Tensor:
    """(n, 1) the first index at which a running sum exceeds its goal, capped at the index of its last increase."""
    total = until[:, -1:]
    place = (until <= goal).sum(-1, keepdim=True)
    last = (until < total).sum(-1, keepdim=True)  # the first index with the full sum
    return torch.minimum(place, last)


def _double(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()
