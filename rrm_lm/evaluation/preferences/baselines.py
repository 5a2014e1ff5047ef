"""Baselines for a reward model on the same comparisons: what length, style, words or frozen hidden states decide alone.

A reward model that is not better than these has learned nothing that needs it. The trained ones are logistic
regressions on the features of the chosen response minus those of the rejected one (Bradley and Terry 1952), without an
intercept, because the order of the two carries no information. Their L2 penalty is chosen inside the training part. A
comparison is never judged by a fit on its own prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import scipy
import torch
from tqdm.auto import tqdm

from rrm_lm.evaluation.preferences.criteria import most_probable
from rrm_lm.evaluation.preferences.judge import JudgeScorer
from rrm_lm.evaluation.preferences.results import Baseline, SetResult
from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, RewardScorer, encode_all, one_per_row
from rrm_lm.evaluation.preferences.scoring import group_by_prompt
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.evaluation.statistics.metrics import Floats, Ints
from rrm_lm.feedback.records import Comparison
from rrm_lm.feedback.splits import WORD
from rrm_lm.text.batching import length_groups

FOLDS, _INNER_FOLDS = 5, 3
PROBED = (0.6, 0.87)  # depths of the probed hidden states, as shares of the layers
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # per squared weight, for features of mean squared norm 1
_COUNTED = [
    *(r"\S", r"\S+", r"[.!?](?:\s|$)", r"\n", r"(?m)^\s*(?:[-*•]|\d+[.)])\s", r"(?m)^#{1,4} ", r"\*\*", "`", ","),
    *(r"\?", "!", ":", r"\d", r"[\"“”]", r"[()]", r"[^\x00-\x7f]", r"\b[A-Z]", r"\bI\b", r"[.!?…]\s*$"),
]

Features = Callable[[Sequence[Comparison]], Any]  # (n, features), dense or sparse: chosen minus rejected


def baselines(
    result: SetResult, train: Sequence[Comparison] = (), probe: Features | None = None
) -> dict[str, Baseline]:
    """The accuracy of each baseline on a set's scored comparisons, and the model's lead over it.

    The trained ones are fitted on `train`, without comparisons of the set's prompts. If there are none, each fifth of
    the set's prompts is judged by a fit on the others. `probe` gives the features of the linear probe.
    """
    comparisons = [one.comparison for one in result.scored]
    right = np.array([one.correct for one in result.scored])
    prompts = [c.prompt_id for c in comparisons]
    train = [c for c in train if c.prompt_id not in set(prompts)]
    longer = metrics.correctness([len(c.chosen) - len(c.rejected) for c in comparisons])
    decisions = {"longer": longer, "shorter": 1 - longer}
    kinds: dict[str, Features | None] = {"style": style, "words": words, "probe": probe}
    fitted = f"{len(train)} other comparisons" if train else f"{FOLDS}-fold cross-validation by prompt"
    index, count = metrics.cluster_index([c.prompt_id for c in train] or prompts)
    for name, features in kinds.items():
        if features is not None and count > 1:
            x = features([*train, *comparisons])
            margins = x[len(train) :] @ fit(x[: len(train)], index) if train else cross_fitted(x, index)
            decisions[name] = metrics.correctness(margins)
    return {
        name: Baseline(
            accuracy=metrics.share(decided, prompts),
            lead=metrics.paired_difference(right, decided, prompts),
            fitted=fitted if name in kinds else "",
        )
        for name, decided in decisions.items()
    }


# ---- logistic regression ----


def fit(x: Any, clusters: Ints) -> Floats:
    """Weights `(features,)`; the penalty is chosen by cross-validation over clusters."""
    scale = 1.0 if scipy.sparse.issparse(x) else np.maximum(np.sqrt((x**2).mean(axis=0)), 1e-9)
    scaled = x if scipy.sparse.issparse(x) else x / scale
    norm = max(float(np.sqrt((scaled**2).sum(axis=1).mean())), 1e-9)
    scaled = scaled / norm
    losses = [
        np.logaddexp(0, -cross_fitted(scaled, clusters, _INNER_FOLDS, lambda part, _, p=p: _weights(part, p))).mean()
        for p in _PENALTIES
    ]
    return _weights(scaled, _PENALTIES[int(np.argmin(losses))]) / (scale * norm)


def cross_fitted(
    x: Any, clusters: Ints, folds: int = FOLDS, fitted: Callable[[Any, Ints], Floats] | None = None
) -> Floats:
    """Margins `(n,)`, each from a fit without the comparison's own cluster."""
    order = np.random.default_rng(0).permutation(int(clusters.max()) + 1)
    fold = order[clusters] % min(folds, len(order))
    margins = np.zeros(len(clusters))
    for held in range(int(fold.max()) + 1):
        rest = np.flatnonzero(fold != held)
        if rest.size:
            margins[fold == held] = x[fold == held] @ (fitted or fit)(x[rest], clusters[rest])
    return margins


def _weights(x: Any, penalty: float) -> Floats:
    return most_probable(x, np.zeros(x.shape[1]), penalty * x.shape[0])


# ---- features ----


def style(comparisons: Sequence[Comparison]) -> Floats:
    """Log counts of letters, words, sentences, lines, list items, punctuation ..., and the means of word lengths."""

    def of(text: str) -> list[float]:
        split = text.split()
        counts = [float(np.log1p(len(re.findall(pattern, text)))) for pattern in _COUNTED]
        return [*counts, sum(map(len, split)) / len(split), len({word.lower() for word in split}) / len(split)]

    return np.array([np.subtract(of(c.chosen), of(c.rejected)) for c in comparisons])


def words(comparisons: Sequence[Comparison]) -> Any:
    """Which words occur, as a sparse matrix."""
    known: dict[str, int] = {}
    entries = [
        (row, known.setdefault(word, len(known)), sign)
        for row, c in enumerate(comparisons)
        for text, sign in ((c.chosen, 1.0), (c.rejected, -1.0))
        for word in sorted(set(WORD.findall(text.lower())))
    ]
    rows, columns, signs = zip(*entries, strict=True) if entries else ((), (), ())
    return scipy.sparse.csr_array((signs, (rows, columns)), shape=(len(comparisons), max(1, len(known))))


def frozen_states(scorer: RewardScorer | ClassifierScorer | JudgeScorer) -> Features:
    """Features of a scorer's backbone without adapters: hidden states of a response, its last and their mean.

    They are read at the depths `PROBED`: layers 18 and 26 of 30.
    """
    if isinstance(scorer, ClassifierScorer):
        decoder, config, pad_id, off = scorer.model.base_model, scorer.model.config, scorer.pad_id, nullcontext
    else:
        backbone = scorer.backbone if isinstance(scorer, JudgeScorer) else scorer.model.backbone
        decoder, config, pad_id = backbone.decoder, backbone.config, backbone.pad_id
        off = lambda: backbone.using(None)  # noqa: E731
    layers = [round(depth * config.get_text_config().num_hidden_layers) for depth in PROBED]

    def features(comparisons: Sequence[Comparison]) -> Floats:
        lines = {
            (prompt, text): found[0]
            for prompt, texts in group_by_prompt(comparisons).items()
            for text, found in zip(texts, encode_all(scorer.chat, prompt, texts), strict=True)
            if found
        }
        keys, states = list(lines), {}
        groups = length_groups([len(line.ids) for line in lines.values()], scorer.micro_batch_tokens)
        for group in tqdm(groups, desc="hidden states for the probe", unit="batch"):
            batch = one_per_row([lines[keys[i]] for i in group], pad_id).to(decoder.device)
            with torch.inference_mode(), off():
                output = decoder(batch.input_ids, attention_mask=batch.is_real.long(), output_hidden_states=True)
            for row, i in enumerate(group):
                line = lines[keys[i]]
                own = [output.hidden_states[n][row, line.response_start : line.reward_at + 1].float() for n in layers]
                read = torch.cat([part for states_ in own for part in (states_[-1], states_.mean(0))])
                states[keys[i]] = read.cpu().numpy().astype(float)
        zero = np.zeros(2 * len(layers) * int(config.get_text_config().hidden_size))
        read = [(states.get((c.prompt, c.chosen), zero), states.get((c.prompt, c.rejected), zero)) for c in comparisons]
        return np.array([chosen - rejected for chosen, rejected in read])

    return features
