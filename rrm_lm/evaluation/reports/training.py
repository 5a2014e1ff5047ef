"""The page about training a policy: its curves, and its answers to held-out prompts before and after.

The sections about held-out prompts come from `policies.py`, with the policy before training as the reference.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.monitors import over_optimisation, track_of
from rrm_lm.evaluation.policies.results import PolicyComparison, PolicySamples, Sample
from rrm_lm.evaluation.reports import figures
from rrm_lm.evaluation.reports.figures import Series
from rrm_lm.evaluation.reports.history import Update
from rrm_lm.evaluation.reports.page import PageData, embed, render
from rrm_lm.evaluation.reports.policies import policy_view
from rrm_lm.feedback.records import Prompt
from rrm_lm.training.over_optimisation import Measurement, Probe

BEFORE, AFTER = "before training", "after training"
TRAINED, HELD_OUT = "training prompts", "held-out prompts"
_ENDED, _CLIPPED = "Ended with an end token", "Clipped tokens"

Panel = tuple[str, dict[str, Series]]  # title, and curves by name


@dataclass(frozen=True, kw_only=True)
class TrainingReportData(PageData):
    """Data of the page; only updates, planned and episodes are required."""

    updates: Sequence[Update]  # in order
    planned: int  # planned number of updates
    episodes: int  # episodes per update
    ended: str = ""  # why training ended early or with an earlier policy; else ""
    # the policy before and after training, from `before_and_after`; None without held-out prompts
    comparison: PolicyComparison | None = None
    measurements: Sequence[Measurement] = ()  # measurements of the over-optimization monitor


def before_and_after(
    prompts: Sequence[Prompt], before: Sequence[Probe], after: Sequence[Probe], names: tuple[str, str]
) -> PolicyComparison:
    """Compare the policy before and after training by its answers to held-out prompts.

    `before` and `after` are the samples of the two measurements, `names` those of the gold and the proxy reward.
    """

    def written(name: str, probes: Sequence[Probe]) -> PolicySamples:
        by_prompt: list[list[Sample]] = [[] for _ in prompts]
        for one in probes:
            pairs = zip(names, (one.gold, one.proxy), strict=True)
            rewards = {name: value for name, value in pairs if math.isfinite(value)}
            by_prompt[one.prompt].append(Sample(one.response, one.tokens, one.finished, rewards, one.kl))
        return PolicySamples(name, tuple(map(tuple, by_prompt)))

    return compare(prompts, [written(BEFORE, before), written(AFTER, after)], proxy=names[1])


def render_training_report(data: TrainingReportData) -> str:
    policy = None
    if data.comparison is not None:
        # A track needs a reward that is not optimized, and more than two points.
        tracked = data.comparison.main is not None and len(data.measurements) > 2
        tracks = {AFTER: over_optimisation(track_of(data.measurements))} if tracked else {}
        policy = policy_view(data.comparison, tracks)
    rows, more = main_panels(data), more_panels(data.updates)
    return render(
        "training.html.j2",
        data=data,
        policy=policy,
        made=sum(update.made for update in data.updates),
        seconds=seconds(data.updates),
        pictures=[_picture(f"curves-{number}", panels) for number, panels in enumerate(rows) if panels],
        more=_picture("curves-9", more) if more else "",
    )


def _picture(name: str, panels: Sequence[Panel]) -> Markup:
    drawn = figures.curves(panels, share=[_ENDED, _CLIPPED], whole=[_ENDED], unit="update")
    return embed(drawn, name, f"By update: {', '.join(title for title, _ in panels)}")


def main_panels(data: TrainingReportData) -> list[list[Panel]]:
    """The most important curves, in rows of one or two."""
    several = sorted({name for update in data.updates for name in update.rewards})
    rows = [
        [("Reward", _both(data, "reward")), ("KL to the reference, nats", _both(data, "kl"))],
        [("Length in tokens", _both(data, "length")), (_ENDED, _both(data, "finished"))],
    ]
    if len(several) > 1:
        each = {name: _curve((u.number, u.rewards.get(name, math.nan)) for u in data.updates) for name in several}
        rows.insert(1, [("Each reward", each)])
    return [_known(row) for row in rows]


def more_panels(updates: Sequence[Update]) -> list[Panel]:
    """Curves for diagnosing the optimization."""
    losses = {"policy": _logged(updates, "policy_loss"), "value": _logged(updates, "value_loss")}
    entropy, clipped = (_logged(updates, name) for name in ("entropy", "clipped"))
    panels = [("Losses", losses), ("Entropy, nats a token", {"entropy": entropy}), (_CLIPPED, {"clipped": clipped})]
    return _known(panels)


def _both(data: TrainingReportData, name: str) -> dict[str, Series]:
    """A measure of the updates, and its mean over held-out answers at each measured step."""
    attribute = {"reward": "proxy", "length": "tokens"}.get(name, name)  # attribute of a probe
    held_out = ((one.step, _mean(getattr(probe, attribute) for probe in one.samples)) for one in data.measurements)
    return {TRAINED: _logged(data.updates, name), HELD_OUT: _curve(held_out)}


def _logged(updates: Sequence[Update], name: str) -> Series:
    return _curve((update.number, update.get(name)) for update in updates)


def _curve(pairs: Iterable[tuple[float, float]]) -> Series:
    known = [(x, y) for x, y in pairs if math.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def _known(panels: Sequence[Panel]) -> list[Panel]:
    """Drop curves without points, and panels without curves."""
    kept = [(title, {name: line for name, line in lines.items() if line[0]}) for title, lines in panels]
    return [(title, lines) for title, lines in kept if lines]


def seconds(updates: Sequence[Update]) -> dict[str, Any]:
    """`total` seconds, and `parts`: mean seconds and share of the total for each phase of an update."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for update in updates:
        for name, value in update.seconds.items():
            parts[name.replace("_", " ")].append(value)
    total = sum(map(sum, parts.values()))
    return {"total": total, "parts": {name: (fmean(v), sum(v) / total) for name, v in parts.items() if total}}
