"""Extracts ratings from critiques: how satisfied is the person who wrote this?

A comparison says which response is better; a critique says how good each one is, on a scale that holds across prompts.
The reader learns that scale without extra labels: comparisons show which words go with the better response, and then
every response with critiques gets a rating. The reader sees only the critiques, never the response. The reward model,
which sees only the response, learns from its ratings: information that is available only in training teaches the model
that scores (Lopez-Paz et al. 2016, arXiv 1511.03643).

It is a linear model on a hidden state of the frozen backbone, at three fifths of its depth, at the token where the
language model is about to say how the person liked the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rrm_lm.feedback.records import Comparison
from rrm_lm.models.backbone import Backbone
from rrm_lm.text.batching import length_groups

_QUESTION = 'What someone wrote about an answer: "{}" All in all, this person found the answer'
_DEPTH = 0.6  # of the layers; deeper ones encode the next token, shallower ones single words
_PENALTY = 1e-3
_SPREAD = 1.5  # standard deviation of the ratings' logits: most ratings between 0.05 and 0.95
_BATCH_TOKENS = 4096


class CritiqueReader:
    """Rates responses by their critiques.

    Args:
        backbone: The frozen model; its adapters stay off.
        tokenizer: Its tokenizer.
        max_length: Maximum tokens of a critique; longer ones are truncated.
    """

    def __init__(self, backbone: Backbone, tokenizer: Any, max_length: int = 128) -> None:
        self.backbone, self.tokenizer, self.max_length = backbone, tokenizer, max_length
        self._mean, self._scale, self._weight = torch.zeros(0), torch.ones(0), torch.zeros(0)
        self._shift, self._spread = 0.0, 1.0

    def fit(self, comparisons: Sequence[Comparison]) -> CritiqueReader:
        """Fit on the comparisons whose responses both have critiques.

        Raises:
            ValueError: There are no such comparisons.
        """
        read = [pair for pair in comparisons if pair.chosen_critiques and pair.rejected_critiques]
        if not read:
            raise ValueError("no comparison has critiques of both responses")
        texts = [texts for pair in read for texts in (pair.chosen_critiques, pair.rejected_critiques)]
        states, self._mean, self._scale = self._states([text for group in texts for text in group])
        features = self._grouped(self._features(states), texts)
        self._weight = _bradley_terry_weights(features[0::2], features[1::2])
        found = features @ self._weight
        self._shift, self._spread = float(found.mean()), float(found.std().clamp_min(1e-6))
        return self

    def ratings(self, critiques: Sequence[Sequence[str]]) -> list[float]:
        """A rating in [0, 1] for each response, from one or more critiques of it."""
        states, _, _ = self._states([text for group in critiques for text in group])
        found = self._grouped(self._features(states), critiques) @ self._weight
        return torch.sigmoid(_SPREAD * (found - self._shift) / self._spread).tolist()

    def _features(self, states: Tensor) -> Tensor:
        return (states - self._mean) / self._scale / states.shape[1] ** 0.5

    @staticmethod
    def _grouped(features: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
        pieces = features.split([len(group) for group in texts])
        return torch.stack([piece.mean(0) for piece in pieces])

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(critiques, hidden) states at the end of each text; mean of them and spread of all tokens, by dimension."""
        before, after = _QUESTION.split("{}")
        frame = [self.tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
        rows = []
        for text in texts:
            words = self.tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True).input_ids
            rows.append([*frame[0], *words[: self.max_length], *frame[1]])
        layer = round(_DEPTH * self.backbone.config.num_hidden_layers)
        ends: dict[int, Tensor] = {}
        total = squares = torch.zeros(())
        count = 0
        with self.backbone.using(None):
            for group in length_groups([len(row) for row in rows], _BATCH_TOKENS):
                width = max(len(rows[i]) for i in group)
                ids = torch.full((len(group), width), self.backbone.pad_id)
                for place, i in enumerate(group):
                    ids[place, : len(rows[i])] = torch.tensor(
                        rows[i]
                    )  # causal attention never sees padding on the right
                output = self.backbone.decoder(
                    input_ids=ids.to(self.backbone.device), output_hidden_states=True, use_cache=False
                )
                states = output.hidden_states[layer].float().cpu()
                for place, i in enumerate(group):
                    seen = states[place, 1 : len(rows[i])]  # the first token's state is an outlier in most models
                    total, squares, count = total + seen.sum(0), squares + seen.square().sum(0), count + len(seen)
                    ends[i] = seen[-1]
        found = torch.stack([ends[i] for i in range(len(rows))])
        spread = (squares / count - (total / count).square()).clamp_min(1e-12).sqrt()
        return found, found.mean(0), spread


def _bradley_terry_weights(better: Tensor, worse: Tensor) -> Tensor:
    """(features,) weights of a penalised linear Bradley-Terry model."""
    weight = torch.zeros(better.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.softplus((worse - better) @ weight).mean() + _PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return weight.detach()
