"""One self-contained page about the training of a policy: how it went, what watched it, what it answers now and before.

The part about held-out prompts is that of `policy_report.py`: the policy before training is the reference there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rrm_lm import __version__
from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.monitors import over_optimisation, track_of
from rrm_lm.evaluation.policies.results import PolicyComparison, PolicySamples, Sample
from rrm_lm.evaluation.reports import figures, policy_wording
from rrm_lm.evaluation.reports.history import Update, duration
from rrm_lm.evaluation.reports.policies import PolicyReportData, policy_view
from rrm_lm.evaluation.reports.policy_wording import decimal
from rrm_lm.evaluation.reports.preferences import FOLD, PREVIEW
from rrm_lm.evaluation.reports.templating import environment
from rrm_lm.evaluation.reports.wording import percent
from rrm_lm.feedback.records import Prompt
from rrm_lm.storage import now, write_text
from rrm_lm.training.over_optimisation import Measurement, Probe

BEFORE, AFTER = "before training", "after training"
TRAINED, HELD_OUT = "training prompts", "held-out prompts"
Line = tuple[list[float], list[float]]


@dataclass(frozen=True, kw_only=True)
class TrainingReportData:
    """What a page is made from; only title and updates are needed.

    Attributes:
        title: The page's heading.
        updates: In order.
        planned: How many updates there should have been.
        episodes: In an update.
        ended: Why training ended early, or with an earlier policy; "" if it did neither.
        comparison: The policy after training against before, from `before_and_after`; None without held-out prompts.
        measurements: Of the over-optimisation monitor.
        configuration, environment: Tables of settings and of versions and hardware.
        created: When; now, in UTC, if empty.
    """

    title: str
    updates: Sequence[Update]
    planned: int
    episodes: int
    ended: str = ""
    comparison: PolicyComparison | None = None
    measurements: Sequence[Measurement] = ()
    configuration: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    created: str = field(default_factory=now)
    version: str = __version__


def before_and_after(
    prompts: Sequence[Prompt], before: Sequence[Probe], after: Sequence[Probe], names: tuple[str, str]
) -> PolicyComparison:
    """The policy after training against before, by what it answered to the held-out prompts.

    Args:
        prompts: The prompts that were measured, in their order.
        before, after: What was measured of it.
        names: What the gold and the proxy reward are called.
    """
    gold, proxy = names

    def sample(probe: Probe) -> Sample:
        rewards = {name: value for name, value in ((gold, probe.gold), (proxy, probe.proxy)) if math.isfinite(value)}
        return Sample(probe.response, probe.tokens, probe.finished, rewards, probe.kl)

    def written(name: str, probes: Sequence[Probe]) -> PolicySamples:
        by_prompt: list[list[Sample]] = [[] for _ in prompts]
        for probe in probes:
            by_prompt[probe.prompt].append(sample(probe))
        return PolicySamples(name, tuple(map(tuple, by_prompt)))

    return compare(prompts, [written(BEFORE, before), written(AFTER, after)], proxy=proxy)


def write_training_report(data: TrainingReportData, path: Path) -> None:
    """Write the page to `path` in one step."""
    write_text(path, render_training_report(data))


def render_training_report(data: TrainingReportData) -> str:
    """The page as HTML."""
    templates = environment()
    colors = {"light": figures.css_variables(dark=False), "dark": figures.css_variables(dark=True)}
    css = [templates.get_template(name).render(colors) for name in ("report.css", "policy.css")]
    policy = None if data.comparison is None else policy_view(_held_out(data, data.comparison))
    contents = [("training", "Training"), *([] if policy is None else policy["contents"])]
    if data.configuration or data.environment:
        contents.append(("settings", "Settings"))
    return templates.get_template("training.html.j2").render(
        data=data,
        css=Markup("\n".join(css)),
        sentences=[*([] if policy is None else map(_capital, policy["verdicts"])), course(data)],
        policy=policy,
        tiles=tiles(data),
        pictures=[_picture(number, panels) for number, panels in enumerate(main_panels(data)) if panels],
        more=_picture(9, more_panels(data.updates)) if more_panels(data.updates) else "",
        seconds=seconds(data.updates),
        contents=[*contents, ("glossary", "Glossary")],
        fold=FOLD,
        preview=PREVIEW,
        glossary={**GLOSSARY, **({} if policy is None else policy_wording.GLOSSARY)},
    )


def _held_out(data: TrainingReportData, comparison: PolicyComparison) -> PolicyReportData:
    """A track needs a reward that is not optimised, and more than a beginning and an end; the curves show the rest."""
    tracked = comparison.main is not None and len(data.measurements) > 2
    tracks = {AFTER: over_optimisation(track_of(data.measurements))} if tracked else {}
    return PolicyReportData(comparison=comparison, tracks=tracks)


# ---- words ----


def course(data: TrainingReportData) -> str:
    """How the training went, in a sentence or two."""
    made = sum(update.made for update in data.updates)
    text = f"{_count(made, 'update')} of {_count(data.episodes, 'episode')} each"
    total = sum(sum(update.seconds.values()) for update in data.updates)
    if total > 0:
        text += f", {duration(total)} in all"
    if data.ended and made < data.planned:
        return f"{text}. It ended early, {data.planned} were planned: {data.ended}."
    return f"{text}. {_capital(data.ended)}." if data.ended else text + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def tiles(data: TrainingReportData) -> list[dict[str, str]]:
    """First and last update side by side; nothing without any."""
    if not data.updates:
        return []
    first, last = data.updates[0], data.updates[-1]

    def tile(label: str, name: str, show: Any, detail: str) -> dict[str, str]:
        value = last.get(name)
        return {"label": label, "value": show(value), "detail": f"was {show(first.get(name))}{detail}"}

    return [
        tile("Reward", "reward", decimal, " in the first update"),
        tile("KL to the reference", "kl", decimal, ", nats a response"),
        tile("Ends by itself", "finished", percent, " of responses"),
        tile("Length in tokens", "length", lambda value: f"{value:.1f}", ", the mean of an update"),
        tile("Entropy", "entropy", decimal, ", nats a token"),
        tile("Price of KL", "kl_coef", lambda value: f"{value:.3g}", ", reward a nat"),
    ]


GLOSSARY = {
    "update": "One round of training: the policy answers prompts, the answers are rewarded, and it learns from them.",
    "episode": "One answer to one prompt, and its reward.",
    "reward": "What is optimised: the weighted sum of all rewards, less the penalty for answers that do not end.",
    "entropy": "How open the policy leaves what it writes next. Near zero it always writes the same.",
    "clipped": "Share of tokens whose probability moved further in an update than the clip range lets count.",
}


# ---- curves ----


def main_panels(data: TrainingReportData) -> list[list[tuple[str, dict[str, Line]]]]:
    """The curves that a reader wants first, two in a row."""
    held = _held_out_lines(data.measurements)
    rewards = {TRAINED: _line(data.updates, "reward"), **held.get("reward", {})}
    several = sorted({name for update in data.updates for name in update.rewards})
    rows = [
        [("Reward", rewards), ("KL to the reference, nats", _both(data.updates, "kl", held))],
        [("Length in tokens", _both(data.updates, "length", held)), (_ENDED, _both(data.updates, "finished", held))],
    ]
    if len(several) > 1:
        parts = {name: _points((u.number, u.rewards.get(name, math.nan)) for u in data.updates) for name in several}
        rows.insert(1, [("Each reward", parts)])
    return [[(title, kept) for title, lines in row if (kept := _known(lines))] for row in rows]


def more_panels(updates: Sequence[Update]) -> list[tuple[str, dict[str, Line]]]:
    """What shows whether the optimisation itself is in order."""
    losses = {"policy": _line(updates, "policy_loss"), "value": _line(updates, "value_loss")}
    panels = [
        ("Losses", losses),
        ("Entropy, nats a token", {"entropy": _line(updates, "entropy")}),
        (_CLIPPED, {"clipped": _line(updates, "clipped")}),
    ]
    return [(title, kept) for title, lines in panels if (kept := _known(lines))]


_ENDED, _CLIPPED = "Ended by themselves", "Clipped"


def _both(updates: Sequence[Update], name: str, held: Mapping[str, dict[str, Line]]) -> dict[str, Line]:
    return {TRAINED: _line(updates, name), **held.get(name, {})}


def _held_out_lines(measurements: Sequence[Measurement]) -> dict[str, dict[str, Line]]:
    """By measure, its mean over the held-out answers at each step that was measured."""
    parts: dict[str, Any] = {
        "reward": lambda probe: probe.proxy,
        "kl": lambda probe: probe.kl,
        "length": lambda probe: float(probe.tokens),
        "finished": lambda probe: float(probe.finished),
    }
    return {
        name: {HELD_OUT: _points((one.step, _mean(map(value, one.samples))) for one in measurements)}
        for name, value in parts.items()
    }


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _line(updates: Sequence[Update], name: str) -> Line:
    return _points((update.number, update.get(name)) for update in updates)


def _points(pairs: Iterable[tuple[float, float]]) -> Line:
    known = [(x, y) for x, y in pairs if math.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]


def _known(lines: Mapping[str, Line]) -> dict[str, Line]:
    return {name: line for name, line in lines.items() if line[0]}


def _picture(number: int, panels: Sequence[tuple[str, Mapping[str, Line]]]) -> Markup:
    titles = ", ".join(title for title, _ in panels)
    drawn = figures.curves(panels, share=[_ENDED, _CLIPPED], whole=[_ENDED], unit="update")
    return Markup(figures.inline_svg(drawn, f"curves-{number}", f"By update: {titles}"))


def seconds(updates: Sequence[Update]) -> dict[str, str]:
    """Where the time went: mean seconds of an update by what they were spent on, and their share."""
    parts: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.seconds.items():
            parts.setdefault(name.replace("_", " "), []).append(value)
    total = sum(map(sum, parts.values()))
    return {name: f"{sum(v) / len(v):.1f} s an update, {percent(sum(v) / total)}" for name, v in parts.items() if total}
