"""The words of a policy report: sentences and tables that say no more than the intervals allow."""

from __future__ import annotations

import math

from rrm_lm.evaluation.policies.comparison import DRIFTS, SHARES
from rrm_lm.evaluation.policies.monitors import OverOptimisation
from rrm_lm.evaluation.policies.results import GOLD, Against, JudgeResult, PolicyComparison, PolicyResult
from rrm_lm.evaluation.reports.wording import interval, minus, percent
from rrm_lm.evaluation.statistics.metrics import Estimate

NONE = "\N{EN DASH}"


def decimal(value: float, *, sign: bool = False) -> str:
    """A reward or a KL: three decimals, two from 10 on, and a typographic minus sign."""
    if not math.isfinite(value):
        return "\N{INFINITY}" if value > 0 else minus("-\N{INFINITY}") if value < 0 else NONE
    places = 2 if abs(value) >= 10 else 3
    return minus(f"{value:{'+' if sign else ''}.{places}f}")


def between(estimate: Estimate, *, sign: bool = False) -> str:
    """The interval of a number; one prompt alone has none."""
    if estimate.clusters < 2:
        return "no interval from one prompt"
    return f"{decimal(estimate.low, sign=sign)} to {decimal(estimate.high, sign=sign)}"


Cell = tuple[str, str]  # of a table: a number, and its interval or whatever else stands below it


def with_interval(estimate: Estimate | None, *, sign: bool = False) -> Cell:
    return (NONE, "") if estimate is None else (decimal(estimate.value, sign=sign), between(estimate, sign=sign))


def share_with_interval(estimate: Estimate | None) -> Cell:
    return (NONE, "") if estimate is None else (percent(estimate.value), interval(estimate))


def reward_name(measure: str) -> str:
    """What to call a measure in a sentence."""
    return "gold reward" if measure == GOLD else f"reward by {measure}"


def main_measure(comparison: PolicyComparison) -> str | None:
    """The measure that the page is about: the main one, else the proxy, else none (there are only judges)."""
    return comparison.main or comparison.proxy


# ---- verdicts ----


def verdict(comparison: PolicyComparison, result: PolicyResult) -> str:
    """What is known of one policy against the reference."""
    measure, reference = main_measure(comparison), comparison.reference.name
    against = result.against.get(measure or "")
    if measure is None or against is None:
        return _judges_verdict(comparison, result)
    difference = against.difference
    start = (
        f"{result.name}: mean {reward_name(measure)} {decimal(result.rewards[measure].value)}, "
        f"{decimal(difference.value, sign=True)} against {reference} "
    )
    if difference.clusters < 2:
        return start + "on one prompt, which shows nothing."
    start += f"on {difference.clusters:,} held-out prompts (95% interval {between(difference, sign=True)}): "
    if difference.low > 0:
        found = "higher." if doubts(comparison, result) else "better."
    elif difference.high < 0:
        found = "worse."
    else:
        found = "not shown to be better or worse."
    return start + found + _proxy_note(comparison, result, measure) + _missing_note(comparison, result, measure)


def doubts(comparison: PolicyComparison, result: PolicyResult) -> list[str]:
    """Why a higher reward does not mean better answers: a part of it fell, or a trivial policy gets as much."""
    measure = main_measure(comparison)
    against = result.against.get(measure or "")
    if against is None or against.difference.low <= 0:
        return []
    before = {comparison.reference.name: {name: part.change for name, part in result.parts.items() if part.change}}
    fell = [
        f"{name} {_against(other, change)}"
        for other, changes in (before | {**result.parts_minus}).items()
        for name, change in changes.items()
        if change.high < 0
    ]
    trivial = {one.name: result.minus[one.name] for one in comparison.trivial if one.name in result.minus}
    below = [_against(name, minus) for name, minus in trivial.items() if minus.high < 0]
    even = [_against(name, minus) for name, minus in trivial.items() if minus.low <= 0 <= minus.high]
    found = {
        "The answers got worse in a part of it": fell if measure == GOLD else [],
        "Below a trivial policy": below,
        "Not shown to be above a trivial policy": even,
    }
    return [f"{doubt}: {'; '.join(cases)}." for doubt, cases in found.items() if cases]


def _against(name: str, difference: Estimate) -> str:
    return f"{decimal(difference.value, sign=True)} against {name} ({between(difference, sign=True)})"


def _missing_note(comparison: PolicyComparison, result: PolicyResult, measure: str) -> str:
    """What is left out of a difference; a policy that writes nothing where it is hard would gain by that."""
    parts = [
        f"{one.unscored[measure]:,} of {one.samples:,} answers of {one.name}"
        for one in (result, comparison.reference)
        if one.unscored.get(measure)
    ]
    return f" Left out, because they have no such reward: {' and '.join(parts)}." if parts else ""


def _proxy_note(comparison: PolicyComparison, result: PolicyResult, measure: str) -> str:
    if comparison.main is None:
        return (
            " This is the reward it was optimised for, which is no evidence by itself: name a gold reward or a judge."
        )
    proxy = result.against.get(comparison.proxy or "")
    if proxy is None or proxy.difference.low <= 0:
        return ""
    difference = result.against[measure].difference
    gained = f" The reward it was optimised for rose by {decimal(proxy.difference.value)}"
    if difference.high < 0:
        return f"{gained}: it is over-optimised."
    return f"{gained} all the same." if difference.low <= 0 else ""


def _judges_verdict(comparison: PolicyComparison, result: PolicyResult) -> str:
    reference = comparison.reference.name
    for judge, judged in result.judged.items():
        if judged.win_rate is not None:
            won = judged.win_rate
            known = "better" if won.low > 0.5 else "worse" if won.high < 0.5 else "not shown to be better or worse"
            return (
                f"{result.name}: {judge} prefers it to {reference} in {percent(won.value)} of {won.n:,} pairs, both "
                f"orders taken together (95% interval {interval(won)}): {known}."
            )
    return f"{result.name}: nothing says whether it is better than {reference}."


def over_optimisation_note(found: OverOptimisation) -> str:
    """What a track says, in words."""
    name = reward_name(found.names[0])
    where = f"{len(found.points)} measurements on {found.prompts:,} prompts"
    if found.fit is None:
        text = f"Too few points at different distances for a fit: {where}."
    else:
        text = (
            f"By the fit to {where}, {name} "
            + {
                "rising": "still rises at the last point.",
                "past the peak": "is past its peak: it falls at the last point.",
                "unclear": "may rise or fall at the last point: its slope there is not known well enough.",
                "not enough points": "is not known.",
            }[found.state]
        )
        peak = found.fit.peak
        if math.isfinite(peak.value):
            text += (
                f" Its peak is at a distance of {decimal(peak.value)} ({between(peak)}), KL {decimal(peak.value**2)}."
            )
    if found.fall is not None and found.fall.fallen:
        fall = found.fall.difference
        text += (
            f" The last point is {decimal(-fall.value)} below step {found.fall.best_step}, the best before it "
            f"({decimal(-fall.high)} to {decimal(-fall.low)})."
        )
    return text


def tone(found: OverOptimisation) -> str:
    """The class of the box that a note stands in."""
    fallen = found.fall is not None and found.fall.fallen
    return "bad" if fallen or found.state == "past the peak" else "good" if found.state == "rising" else ""


def formula(found: OverOptimisation) -> str:
    """The fitted curve with its numbers."""
    fit = found.fit
    if fit is None:
        return NONE
    shape = "{a} {b} d" if fit.kind == "best_of_n" else "{a} {b} ln d"
    inner = shape.format(a=decimal(fit.alpha.value), b=_minus_term(fit.beta.value))
    explained = "" if math.isnan(fit.r_squared) else f", R\N{SUPERSCRIPT TWO} {fit.r_squared:.2f}"
    return f"{decimal(fit.start.value)} + d ({inner}){explained}"


def _minus_term(value: float) -> str:
    return f"{'+' if value < 0 else minus('-')} {decimal(abs(value))}"


# ---- tiles and tables ----


def tiles(comparison: PolicyComparison, result: PolicyResult) -> list[dict[str, str]]:
    """The numbers of one policy that a reader wants first: three or six of them."""
    made = []
    measure = main_measure(comparison)
    against = result.against.get(measure or "")
    if measure is not None and against is not None:
        mean, before = result.rewards[measure], comparison.reference.rewards[measure]
        difference = (decimal(against.difference.value, sign=True), between(against.difference, sign=True))
        made = [
            _tile(f"Mean {reward_name(measure)}", decimal(mean.value), f"{between(mean)}; was {decimal(before.value)}"),
            _tile("Difference", difference[0], f"{difference[1]}, paired by prompt"),
            _tile("Wins", *_first(share_with_interval(against.win_rate), " of pairs of samples")),
        ]
    else:
        for judge, judged in result.judged.items():
            made.append(_tile(f"Preferred by {judge}", share_with_interval(judged.win_rate)[0], judged_note(judged)))
    if result.kl is not None:
        made.append(_tile("KL to the reference", decimal(result.kl.value), f"nats, {between(result.kl)}"))
    for name, label in (("tokens", "Length in tokens"), ("finished", "Ends by itself"), ("repeated", "Repeats itself")):
        found = result.drift.get(name)
        if found is not None:
            value, below = change(name, found.change)
            made.append(_tile(label, level(name, found.level)[0], f"{value} ({below})" if below else value))
    return made[:6] if len(made) >= 6 else made[:3]


def _first(cell: Cell, what: str) -> Cell:
    return cell[0], cell[1] + what


def _tile(label: str, value: str, detail: str) -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail}


def judged_note(judged: JudgeResult) -> str:
    """How far a judge's verdicts can be trusted."""
    parts = [] if judged.win_rate is None else [interval(judged.win_rate)]
    parts.append(f"{judged.pairs - judged.abstained:,} of {judged.pairs:,} pairs decided in both orders")
    return ", ".join(parts)


def level(name: str, estimate: Estimate) -> Cell:
    """A property of the texts (see `DRIFTS`) with its interval."""
    if name in SHARES:
        return share_with_interval(estimate)
    return f"{estimate.value:.1f}", _span(estimate, 1, "")


def change(name: str, estimate: Estimate | None) -> Cell:
    """How a property of the texts differs from the reference's, with its interval."""
    if estimate is None:
        return NONE, ""
    factor, unit = (100, " points") if name in SHARES else (1, "")
    return minus(f"{factor * estimate.value:+.1f}") + unit, _span(estimate, factor, "+")


def _span(estimate: Estimate, factor: float, sign: str) -> str:
    if estimate.clusters < 2:
        return ""
    return minus(f"{factor * estimate.low:{sign}.1f} to {factor * estimate.high:{sign}.1f}")


def measure_rows(comparison: PolicyComparison) -> list[dict[str, str | Cell]]:
    """Every reward of every policy, with its difference from the reference."""
    rows: list[dict[str, str | Cell]] = []
    for measure in comparison.measures:
        kind = " (optimised)" if measure == comparison.proxy else ""
        for result in comparison.results:
            if measure not in result.rewards:
                continue
            against: Against | None = result.against.get(measure)
            missing = result.unscored.get(measure, 0)
            ties = "" if against is None or not against.ties else f", {percent(against.ties / against.pairs)} ties"
            wins = share_with_interval(None if against is None else against.win_rate)
            rows.append(
                {
                    "measure": measure + kind,
                    "policy": result.name,
                    "mean": with_interval(result.rewards[measure]),
                    "difference": with_interval(None if against is None else against.difference, sign=True),
                    "wins": (wins[0], wins[1] + ties),
                    "scored": (f"{result.samples - missing:,}", f"of {result.samples:,}"),
                }
            )
    return rows


def judge_rows(comparison: PolicyComparison) -> list[dict[str, str | Cell]]:
    """Every judge's verdicts on every policy."""
    return [
        {
            "judge": judge,
            "policy": result.name,
            "wins": share_with_interval(judged.win_rate),
            "first": share_with_interval(judged.first_shown),
            "inconsistent": (f"{judged.inconsistent:,}", f"of {judged.pairs - judged.abstained:,}"),
            "abstained": (f"{judged.abstained:,}", f"of {judged.pairs:,}"),
        }
        for result in comparison.results
        for judge, judged in result.judged.items()
    ]


def part_rows(comparison: PolicyComparison) -> list[dict[str, str | Cell]]:
    """Each part of gold of every policy, with its change from the reference."""
    names = dict.fromkeys(name for result in comparison.results for name in result.parts)
    return [
        {
            "part": name,
            "policy": result.name,
            "mean": with_interval(result.parts[name].level),
            "change": with_interval(result.parts[name].change, sign=True),
        }
        for name in names
        for result in comparison.results
        if name in result.parts
    ]


def minus_rows(comparison: PolicyComparison) -> list[dict[str, str | Cell]]:
    """The main measure of each policy minus that of others than the reference, trivial ones among them."""
    return [
        {"policy": result.name, "other": other, "difference": with_interval(difference, sign=True)}
        for result in comparison.policies
        for other, difference in result.minus.items()
    ]


def drift_rows(comparison: PolicyComparison) -> list[dict[str, str | Cell]]:
    """Length, endings and repetition of every policy."""
    return [
        {
            "property": DRIFTS[name],
            "policy": result.name,
            "level": level(name, result.drift[name].level),
            "change": change(name, result.drift[name].change),
        }
        for name in DRIFTS
        for result in comparison.results
        if name in result.drift
    ]


GLOSSARY = {
    "policy": "A language model that answers. The reference is the one that the others are compared with, usually the "
    "model that training started from.",
    "gold reward": "The programmatic truth of a simulated person. Training never sees it.",
    "trivial policy": "No model: one text that answers every prompt. Its reward is what can be had without "
    "answering. [first sentence] stands for the first sentence of the reference's answer.",
    "part": "Gold rewards may be sums of parts. One part can rise while another falls.",
    "proxy": "The reward that a policy was optimised for. It rises whether or not the answers get better.",
    "difference": "Mean reward of the policy minus that of the reference on the same prompts, paired by prompt.",
    "wins": "Chance that one answer of the policy is worth more than one of the reference to the same prompt; a tie "
    "counts half.",
    "95% interval": "Made so that 95 of 100 such intervals hold the true value. Answers to one prompt are taken "
    "together, because they are not independent.",
    "KL": "How far a policy has moved from the reference: by how many nats (1.44 bits) its own answers are likelier "
    "under it than under the reference, on average.",
    "distance": "The square root of KL. The curves R0 + d (a - b d) for best of n and R0 + d (a - b ln d) for "
    "reinforcement learning are those of Gao et al. 2022 (arXiv 2210.10760).",
    "best of n": "Writing n answers and keeping the one with the highest proxy reward: what optimisation must beat, "
    "since it needs no training. KL is log n - (n - 1)/n.",
    "stock phrases": "Runs of four words that also stand in answers to other prompts.",
}
