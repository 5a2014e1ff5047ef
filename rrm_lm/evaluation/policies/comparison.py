"""Compare policies with a reference on the same prompts, from samples and their rewards.

This module neither samples nor scores. Every number has a 95% interval over prompts, clustered by the prompt's original
request. Differences are paired: each side is first averaged over its samples of a prompt, which removes the variance in
prompt difficulty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rrm_lm.evaluation.policies.best_of_n import BestOfNCurve, best_of_n
from rrm_lm.evaluation.policies.results import (
    GOLD,
    PART,
    Against,
    Drift,
    JudgeResult,
    PairVerdict,
    PolicyComparison,
    PolicyResult,
    PolicySamples,
    Sample,
)
from rrm_lm.evaluation.statistics.metrics import Estimate, Floats, mean_estimate, share
from rrm_lm.feedback.records import Prompt, prompt_id


def compare(
    prompts: Sequence[Prompt],
    written: Sequence[PolicySamples],
    *,
    proxy: str | None = None,
    verdicts: Mapping[str, Mapping[str, Sequence[PairVerdict]]] | None = None,
    details: Mapping[str, object] | None = None,
) -> PolicyComparison:
    """Compute all measures of some policies.

    `written` holds the samples of each policy, in the order of the prompts; the first policy is the reference.
    `verdicts` are, by judge and policy, on pairs of a response of the policy and one of the reference; `details` are
    settings and versions for results.json. Raises ValueError for no prompt or policy, a prompt without samples, or two
    policies with the same name.
    """
    if not prompts or not written:
        raise ValueError("a comparison needs at least one prompt and one policy")
    for one in written:
        if len(one.samples) != len(prompts) or not all(one.samples):
            raise ValueError(f"{one.name} needs at least one sample for each of the {len(prompts)} prompts")
    if len({one.name for one in written}) < len(written):
        raise ValueError("two policies share a name")
    clusters = [prompt_id(prompt) for prompt in prompts]
    present = {measure for one in written for group in one.samples for sample in group for measure in sample.rewards}
    measures = tuple(
        sorted((m for m in present if not m.startswith(PART)), key=lambda name: (name != GOLD, name == proxy, name))
    )
    main = next((name for name in measures if name != proxy), None)
    results = []
    for place, one in enumerate(written):
        result = _measure(one, written[0] if place else None, measures, clusters)
        judged = {
            judge: judge_pairs(by_policy[one.name], clusters)
            for judge, by_policy in (verdicts or {}).items()
            if one.name in by_policy
        }
        result = replace(result, judged=judged, best_of_n=best_of_n_of(one, proxy, main, clusters))
        if place and not one.trivial:
            others = [*written[1:place], *(other for other in written[place + 1 :] if other.trivial)]
            result = replace(
                result,
                minus=_minus(one, others, main, clusters) if main else {},
                parts_minus={
                    other.name: {
                        name: part.change for name, part in _parts(one, other, clusters).items() if part.change
                    }
                    for other in written[1:place]
                },
            )
        results.append(result)
    return PolicyComparison(
        prompts=tuple(prompts),
        written=tuple(written),
        results=tuple(results),
        measures=measures,
        proxy=proxy,
        main=main,
        verdicts=dict(verdicts or {}),
        details=dict(details or {}),
    )


def _measure(
    one: PolicySamples, reference: PolicySamples | None, measures: Sequence[str], clusters: Sequence[str]
) -> PolicyResult:
    """The measures of one policy that only need the reference (None for the reference itself)."""
    rewards = {name: rewards_of(one, name) for name in measures}
    unscored = {name: sum(int(np.isnan(row).sum()) for row in rows) for name, rows in rewards.items()}
    means = {name: mean_over_prompts(rows, clusters) for name, rows in rewards.items()}
    against = {}
    if reference is not None:
        against = {name: versus(rows, rewards_of(reference, name), clusters) for name, rows in rewards.items()}
    ratios = [np.array([sample.log_ratio for sample in group], dtype=float) for group in one.samples]  # None is NaN
    return PolicyResult(
        name=one.name,
        samples=one.count,
        rewards={name: mean for name, mean in means.items() if mean is not None},
        unscored={name: count for name, count in unscored.items() if count},
        against={name: found for name, found in against.items() if found is not None},
        judged={},
        kl=None if reference is None else mean_over_prompts(ratios, clusters),
        drift=drifts(one, reference, clusters),
        best_of_n=None,
        trivial=one.trivial,
        parts=_parts(one, reference, clusters),
        greedy=_at_zero(one, reference, clusters),
    )


def _minus(
    one: PolicySamples, others: Sequence[PolicySamples], measure: str, clusters: Sequence[str]
) -> dict[str, Estimate]:
    mine = rewards_of(one, measure)
    differences = {other.name: paired_means(mine, rewards_of(other, measure), clusters) for other in others}
    return {name: difference for name, difference in differences.items() if difference is not None}


def _parts(one: PolicySamples, reference: PolicySamples | None, clusters: Sequence[str]) -> dict[str, Drift]:
    """Each part of the gold reward in a policy's samples, in their order, and its change from the reference."""
    names = dict.fromkeys(m for group in one.samples for s in group for m in s.rewards if m.startswith(PART))
    mine, theirs = (
        side and {name.removeprefix(PART): rewards_of(side, name) for name in names} for side in (one, reference)
    )
    return _changes(mine or {}, theirs, clusters)


def _at_zero(one: PolicySamples, reference: PolicySamples | None, clusters: Sequence[str]) -> dict[str, Drift]:
    """At temperature 0, each measure and each part of gold, and its change from the reference."""
    names = dict.fromkeys(measure for sample in one.greedy for measure in sample.rewards)

    def rows(side: PolicySamples | None) -> dict[str, list[Floats]] | None:
        if side is None or not side.greedy:
            return None
        single = PolicySamples(side.name, tuple((sample,) for sample in side.greedy))
        return {name: rewards_of(single, name) for name in names}

    return _changes(rows(one) or {}, rows(reference), clusters)


def _changes(
    mine: Mapping[str, list[Floats]],
    theirs: Mapping[str, list[Floats]] | None,
    clusters: Sequence[str],
    shares: Collection[str] = (),
) -> dict[str, Drift]:
    """The mean of each property, and its change from the reference, paired by prompt; `shares` are those in [0, 1]."""
    found = {}
    for name, rows in mine.items():
        level = (share_over_prompts if name in shares else mean_over_prompts)(rows, clusters)
        if level is not None:  # None without values, for example if every response is too short
            found[name] = Drift(level, None if theirs is None else paired_means(rows, theirs[name], clusters))
    return found


# ---- one measure ----


def rewards_of(written: PolicySamples, measure: str) -> list[Floats]:
    """For each prompt, the rewards of its samples by one measure; NaN where missing."""
    values = [np.array([sample.reward(measure) for sample in group], dtype=float) for group in written.samples]
    return [np.where(np.isfinite(row), row, math.nan) for row in values]


def prompt_means(rows: Sequence[Floats]) -> Floats:
    """The mean of each prompt's values, `(prompts,)`, ignoring NaN; NaN for a prompt without values."""
    return np.array([row[~np.isnan(row)].mean() if (~np.isnan(row)).any() else math.nan for row in rows])


def mean_over_prompts(rows: Sequence[Floats], clusters: Sequence[str]) -> Estimate | None:
    """The mean over prompts of the means over samples, with its interval; None without values."""
    means = prompt_means(rows)
    known = ~np.isnan(means)
    if not known.any():
        return None
    labels = [label for label, there in zip(clusters, known, strict=True) if there]
    found = mean_estimate(means[known], labels, bounds=(-math.inf, math.inf))
    if found.clusters > 1 and not (math.isfinite(found.low) and math.isfinite(found.high)):
        found = replace(found, low=found.value, high=found.value)  # no variation between prompts
    return replace(found, n=sum(int((~np.isnan(row)).sum()) for row in rows))


def share_over_prompts(rows: Sequence[Floats], clusters: Sequence[str]) -> Estimate | None:
    """Like `mean_over_prompts`, for values in [0, 1]; the interval stays in this range (see `metrics.share`)."""
    values, weights, labels = [], [], []
    for row, label in zip(rows, clusters, strict=True):
        known = row[~np.isnan(row)]
        values += known.tolist()
        weights += [1 / max(known.size, 1)] * known.size  # every prompt has the same weight
        labels += [label] * known.size
    return share(values, labels, weights=weights) if values else None


def paired_means(mine: Sequence[Floats], theirs: Sequence[Floats], clusters: Sequence[str]) -> Estimate | None:
    """Mean of one policy minus that of another, paired by prompt, on the prompts where both have values."""
    difference = prompt_means(mine) - prompt_means(theirs)
    return mean_over_prompts([np.array([value]) for value in difference], clusters)


def versus(mine: Sequence[Floats], theirs: Sequence[Floats], clusters: Sequence[str]) -> Against | None:
    """Compare a policy with the reference by the rewards of each prompt's samples; None if no prompt has both.

    The win rate of a prompt is the mean over all pairs of samples.
    """
    difference = paired_means(mine, theirs, clusters)
    if difference is None:
        return None
    margins = [(own[:, None] - other[None, :]).reshape(-1) for own, other in zip(mine, theirs, strict=True)]
    win_rate = share_over_prompts([(np.sign(row) + 1) / 2 for row in margins], clusters)
    assert win_rate is not None  # a prompt with a difference has pairs
    return Against(difference, win_rate, sum(int((row == 0).sum()) for row in margins), win_rate.n)


def judge_pairs(verdicts: Sequence[PairVerdict], clusters: Sequence[str]) -> JudgeResult:
    labels = [clusters[verdict.prompt] for verdict in verdicts if verdict.decisions]
    decided = np.array([verdict.decisions for verdict in verdicts if verdict.decisions]).reshape(-1, 2)
    first, second = decided.T
    return JudgeResult(
        win_rate=share((first + second) / 2, labels) if labels else None,
        first_shown=share((first + 1 - second) / 2, labels) if labels else None,
        pairs=len(verdicts),
        abstained=len(verdicts) - len(labels),
        inconsistent=int((first != second).sum()),
    )


def best_of_n_of(
    written: PolicySamples, proxy: str | None, main: str | None, clusters: Sequence[str]
) -> BestOfNCurve | None:
    """The best-of-n curve on prompts whose samples all have both rewards; None without two samples or a measure."""
    size = min(map(len, written.samples))
    if proxy is None or main is None or size < 2:
        return None
    chosen, worth = (np.array([row[:size] for row in rewards_of(written, name)]) for name in (proxy, main))
    whole = np.flatnonzero(np.isfinite(chosen + worth).all(axis=1)).tolist()  # of (prompts, size)
    return best_of_n(chosen[whole], worth[whole], [clusters[i] for i in whole]) if whole else None


# ---- the texts ----
# Over-optimization shows here first: the policy writes longer texts, repeats itself, or ends every answer alike. Words
# are lower-cased runs of characters between whitespace.

RUN = 4  # words, as in "seq-rep-4" (Welleck et al. 2020, arXiv 1908.04319)


def word_runs(text: str, length: int) -> list[tuple[str, ...]]:
    """Every run of `length` words of a text, in order."""
    words = text.lower().split()
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def distinct(text: str, length: int = 2) -> float:
    """Share of a text's word runs that are distinct: distinct-n of Li et al. 2016 (arXiv 1510.03055).

    1 without repetition; NaN for a text shorter than a run.
    """
    runs = word_runs(text, length)
    return len(set(runs)) / len(runs) if runs else math.nan


def repeated(text: str) -> float:
    """Share of a text's word runs that occurred earlier in it: 0 without repetition, NaN for too short a text."""
    return 1 - distinct(text, RUN)


def stock_phrases(texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """For each prompt and text, the share of its word runs that also occur in a response to another prompt.

    It rises if a policy writes the same text for every prompt. It also rises with the number of texts, so only compare
    equal numbers of texts on the same prompts. NaN for a text shorter than a run.
    """
    runs = [[word_runs(text, RUN) for text in group] for group in texts]
    prompts_with = Counter(run for group in runs for run in {run for text in group for run in text})
    return [
        [sum(prompts_with[run] > 1 for run in text) / len(text) if text else math.nan for text in group]
        for group in runs
    ]


# Properties of one text; `stock` needs all texts at once.
_OF_ONE: Mapping[str, Callable[[Sample], float]] = {
    "tokens": lambda sample: sample.tokens,
    "finished": lambda sample: float(sample.finished),
    "repeated": lambda sample: repeated(sample.response),
    "distinct": lambda sample: distinct(sample.response),
}
DRIFTS = {
    "tokens": "tokens of a response",
    "finished": "responses that ended with an end token",
    "repeated": f"{RUN}-word runs repeated in a response",
    "distinct": "different word pairs in a response (distinct-2)",
    "stock": f"{RUN}-word runs that also occur in other answers",
}
SHARES = frozenset(DRIFTS) - {"tokens"}  # those in [0, 1]


def drifts(one: PolicySamples, reference: PolicySamples | None, clusters: Sequence[str]) -> dict[str, Drift]:
    """Length, endings and repetition of a policy's texts, and the change from the reference, paired by prompt."""
    return _changes(_text_rows(one), reference and _text_rows(reference), clusters, SHARES)


def _text_rows(written: PolicySamples) -> dict[str, list[Floats]]:
    groups = written.samples
    rows = {
        name: [np.array([value(sample) for sample in group]) for group in groups] for name, value in _OF_ONE.items()
    }
    stock = stock_phrases([[sample.response for sample in group] for group in groups])
    return {**rows, "stock": [np.array(row) for row in stock]}
