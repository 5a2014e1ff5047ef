"""The words of a report: numbers as people write them, and sentences that say no more than the intervals allow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rrm_lm.evaluation.preferences.results import Evaluation, Measures, SetResult
from rrm_lm.evaluation.statistics.metrics import Estimate


def minus(text: str) -> str:
    """The same number with a typographic minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}%"


def points(estimate: Estimate) -> str:
    return minus(f"{100 * estimate.value:+.1f}")


def count(value: object) -> str:
    """A number of things, with separators; anything else as `plain` has it."""
    return f"{value:,}" if isinstance(value, int) else plain(value)


def plain(value: object) -> str:
    """A setting as a person writes it, so that it can be copied back into a configuration."""
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or "\N{EN DASH}"
    if isinstance(value, Sequence) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(plain(item) for item in value) or "\N{EN DASH}"
    return json.dumps(value, ensure_ascii=False, default=str)


def verdict(result: SetResult, *, several: bool = False) -> str:
    """One or two sentences that say no more than the intervals allow."""
    measures = result.measures
    accuracy, (rule, value, lead) = measures.accuracy, measures.length_rule
    where = f" of {result.name}" if several else ""
    start = (
        f"Right on {percent(accuracy.value)} of {result.overall.n_scored:,} held-out comparisons{where} "
        f"(95% interval {interval(accuracy)}): "
    )
    baseline = f"always picking the {rule} response ({percent(value)})"
    if accuracy.high < 0.5:
        return start + "worse than a coin flip. Check the direction of the preferences."
    if accuracy.low <= 0.5:
        return start + "not shown to be better than a coin flip."
    if lead.low > 0:
        return start + f"better than a coin flip, and better than {baseline} by {100 * lead.value:.1f} points."
    if lead.high < 0:
        return start + f"better than a coin flip, but worse than {baseline}."
    return start + f"better than a coin flip, but not shown to be better than {baseline}."


def tiles(result: SetResult) -> list[dict[str, str]]:
    m, overall = result.measures, result.overall
    rule, value, lead = m.length_rule
    within = m.length.within_spearman or m.length.spearman
    share = "within prompts" if m.length.within_spearman else "over all responses"
    ties = "1 tie, counted half" if m.ties == 1 else f"{m.ties} ties, counted half" if m.ties else "no ties"
    return [
        {"label": "Accuracy", "value": percent(m.accuracy.value), "detail": interval(m.accuracy)},
        {
            "label": f"Lead over always the {rule}",
            "value": f"{points(lead)} points",
            "detail": f"{minus(f'{100 * lead.low:+.1f}')} to {minus(f'{100 * lead.high:+.1f}')}; "
            f"the {rule} one wins {percent(value)}",
        },
        {
            "label": "Scored",
            "value": f"{overall.n_scored:,} of {overall.n_given:,}",
            "detail": f"{overall.n_prompts:,} prompts, {ties}",
        },
        {
            "label": "Calibration error (ECE)",
            "value": f"{m.calibration.ece:.3f}",
            "detail": f"up to {m.calibration.by_chance:.3f} would be chance",
        },
        {"label": "Brier score", "value": f"{m.brier.value:.3f}", "detail": "0.250 is always saying 50%"},
        {
            "label": "Reward and length",
            "value": minus(f"{within.value:+.2f}") if within else "\N{EN DASH}",
            "detail": f"rank correlation {share}, "
            + (f"{minus(f'{within.low:+.2f}')} to {minus(f'{within.high:+.2f}')}" if within else "not defined here"),
        },
    ]


def calibration_note(measures: Measures) -> str:
    """What the reliability plot shows, in words."""
    found = measures.calibration
    start = f"Each dot is one of {len(found.bins)} equal groups of comparisons, with its 95% interval. "
    lead = found.modesty
    if found.ece <= found.by_chance:
        return start + "Its confidence is as close to its accuracy as chance allows on this many comparisons."
    if lead.high < 0:
        return start + f"It is too sure of itself, by {100 * abs(lead.value):.1f} points on average."
    if lead.low > 0:
        return start + f"It is too modest, by {100 * lead.value:.1f} points on average."
    return start + "Its confidence is off in places, though neither too high nor too low on the whole."


def length_note(measures: Measures) -> str:
    """What the plot of reward by length shows, in words."""
    parts = []
    for label, estimate in (("over all responses", measures.length.spearman),
                            ("among responses to one prompt", measures.length.within_spearman)):  # fmt: skip
        if estimate is not None:
            low, value, high = (minus(f"{x:+.2f}") for x in (estimate.low, estimate.value, estimate.high))
            parts.append(f"{value} ({low} to {high}) {label}")
    start = "Every response once. "
    ranks = f"Rank correlation of reward with length: {', '.join(parts)}. " if parts else ""
    longer = f"The longer response is the better one in {percent(measures.longer_accuracy.value)} of pairs."
    return start + ranks + longer


GLOSSARY = {
    "reward": "The number the model gives a response. Only differences between responses to one prompt mean anything.",
    "margin": "Reward of the chosen response minus reward of the rejected one. Positive: the model agrees.",
    "accuracy": "Share of comparisons with a positive margin; a tie (margin exactly 0) counts half.",
    "95% interval": "Made so that 95 of 100 such intervals hold the true value. Comparisons about one prompt are taken "
    "together, because they are not independent.",
    "length rule": "Ignoring what the texts say and always picking the longer one (or the shorter, where that is the "
    "better rule). A model that does not beat it may have learned nothing but length.",
    "lead": "Accuracy of the model minus accuracy of the length rule on the same comparisons, in percentage points.",
    "confidence": "Sigmoid of the size of the margin: how sure the model is of its own pick, from 50% to 100%.",
    "calibration error": "ECE, the average distance between confidence and accuracy over groups of similar confidence. "
    "0 is perfect, but chance alone makes it larger; how much larger is stated beside it.",
    "Brier score": "Mean squared error of the predicted probability that the chosen response wins. 0 is perfect, 0.25 "
    "is always saying 50%.",
    "rank correlation": "Spearman's: +1 if longer responses always get more reward, 0 if length tells nothing.",
}


def glossary(evaluation: Evaluation) -> dict[str, str]:
    """A line for each word on the page; a benchmark's words only where the benchmark is."""
    measures = [result.measures for result in evaluation.sets]
    words = dict(GLOSSARY)
    if any(m.sections for m in measures):
        words["RewardBench sections"] = "Accuracies of RewardBench's subsets, weighted by its example counts."
    if any(m.best_of_four for m in measures):
        words["best of four"] = "How often the best of four responses gets the highest reward. Chance is 25%."
    if any(m.ties_subset for m in measures):
        words["Ties"] = "RewardBench 2: are all right answers above all wrong ones, and close to each other?"
    if any(m.styles for m in measures):
        words["easy, normal, hard"] = (
            "RM-Bench: the chosen response looks fancier than the rejected one, the same, or plainer."
        )
    return words
