"""One self-contained page about policies: are they better, how far have they moved, and what do they write now.

As in `report.py`, nothing is loaded from elsewhere, and every text that a person or a model wrote is escaped. The
sections are a template of their own, so that another page can hold them: see `policy_view`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from rrm_lm import __version__
from rrm_lm.evaluation.policies.monitors import OverOptimisation, best_of_n_track, over_optimisation
from rrm_lm.evaluation.policies.results import PolicyComparison, Sample
from rrm_lm.evaluation.reports import figures, policy_figures, policy_wording
from rrm_lm.evaluation.reports.figures import ForestRow
from rrm_lm.evaluation.reports.preferences import FOLD, PREVIEW
from rrm_lm.evaluation.reports.templating import environment
from rrm_lm.storage import now, write_text

ANSWERS = 8  # prompts whose answers are shown side by side


@dataclass(frozen=True, kw_only=True)
class StageView:
    """A stage that led to the policies: its name, what came of it, how long it took, and its own page (may be "")."""

    name: str
    outcome: str
    time: str
    page: str = ""


@dataclass(frozen=True, kw_only=True)
class PolicyReportData:
    """What a page is made from; only the comparison is needed.

    Attributes:
        comparison: What was found.
        title: The page's heading.
        tracks: By policy, what the measurements during its training say.
        stages: How the policies were made; pages are relative to this one.
        configuration, environment: Tables of settings and of versions and hardware.
        created: When; now, in UTC, if empty.
    """

    comparison: PolicyComparison
    title: str = "Is the policy better?"
    tracks: Mapping[str, OverOptimisation] = field(default_factory=dict)
    stages: Sequence[StageView] = ()
    configuration: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    created: str = field(default_factory=now)
    version: str = __version__


def write_policy_report(data: PolicyReportData, path: Path) -> None:
    """Write the page to `path` in one step."""
    write_text(path, render_policy_report(data))


def render_policy_report(data: PolicyReportData) -> str:
    """The page as HTML."""
    templates = environment()
    colors = {"light": figures.css_variables(dark=False), "dark": figures.css_variables(dark=True)}
    css = [templates.get_template(name).render(colors) for name in ("report.css", "policy.css")]
    view = policy_view(data)
    contents = list(view["contents"])
    if data.stages:
        contents.append(("stages", "How it was made"))
    if data.configuration or data.environment:
        contents.append(("settings", "Settings"))
    return templates.get_template("policy.html.j2").render(
        data=data,
        css=Markup("\n".join(css)),
        policy=view,
        contents=[*contents, ("glossary", "Glossary")],
        fold=FOLD,
        preview=PREVIEW,
        glossary=policy_wording.GLOSSARY,
    )


def policy_view(data: PolicyReportData) -> dict[str, Any]:
    """Everything that `policy_parts.html.j2` shows; a page that includes it needs `fold` and `preview` besides."""
    comparison = data.comparison
    measure = policy_wording.main_measure(comparison)
    scored = measure is not None and measure in comparison.reference.rewards
    curve = any(result.best_of_n is not None for result in comparison.results)
    tracks = _track_views(data)
    view: dict[str, Any] = {
        "comparison": comparison,
        "measure": measure,
        "verdicts": [policy_wording.verdict(comparison, result) for result in comparison.policies],
        "doubts": [policy_wording.doubts(comparison, result) for result in comparison.policies],
        "headline": _headline(comparison, measure if scored else None),
        "policies": [
            {"name": result.name, "anchor": f"policy-{i}", "tiles": policy_wording.tiles(comparison, result)}
            for i, result in enumerate(comparison.policies, start=1)
        ],
        "measure_rows": policy_wording.measure_rows(comparison),
        "part_rows": policy_wording.part_rows(comparison),
        "minus_rows": policy_wording.minus_rows(comparison),
        "judge_rows": policy_wording.judge_rows(comparison),
        "critic": comparison.details.get("critic"),
        "best_of_n": _svg(policy_figures.best_of_n(comparison), "best-of-n", "Best-of-n curves") if curve else "",
        "tracks": tracks,
        "length": _svg(policy_figures.reward_by_length(comparison, str(measure)), "length", "Reward against length")
        if scored
        else "",
        "drift_rows": policy_wording.drift_rows(comparison),
        "answers": answers(comparison, measure if scored else None),
        "answer_order": scored,
    }
    view["contents"] = _contents(view)
    return view


def _svg(figure: Any, name: str, description: str) -> Markup:
    return Markup(figures.inline_svg(figure, name, description))


def _headline(comparison: PolicyComparison, measure: str | None) -> Markup:
    """Mean rewards where there are any, else the judges' win rates; nothing without either."""
    if measure is not None:
        return _svg(policy_figures.headline(comparison, measure), "headline", f"Mean {measure} reward of each policy")
    rows = [
        ForestRow(f"{result.name} by {judge}", judged.win_rate)
        for result in comparison.policies
        for judge, judged in result.judged.items()
        if judged.win_rate is not None
    ]
    return _svg(policy_figures.win_rates(rows), "headline", "Win rates against the reference") if rows else Markup()


def _track_views(data: PolicyReportData) -> list[dict[str, Any]]:
    """For each policy that was measured in training: its track, beside the best of n of the reference where both are of
    the same rewards."""
    comparison = data.comparison
    places = {result.name: place for place, result in enumerate(comparison.results)}
    measures = (str(comparison.main), str(comparison.proxy))
    baseline: dict[str, tuple[str, OverOptimisation]] = {}
    curve = comparison.reference.best_of_n
    if curve is not None:
        found = over_optimisation(best_of_n_track(curve, measures))
        baseline[f"{comparison.reference.name}, best of n"] = (policy_figures.REFERENCE, found)
    shown = {
        name: {name: (policy_figures.color_of(places.get(name, 1)), found)}
        | (baseline if found.names == measures else {})
        for name, found in data.tracks.items()
    }
    if baseline and not any(len(tracks) > 1 for tracks in shown.values()):
        shown["Best of n"] = baseline
    return [_track_view(number, name, tracks) for number, (name, tracks) in enumerate(shown.items(), start=1)]


def _track_view(number: int, name: str, tracks: Mapping[str, tuple[str, OverOptimisation]]) -> dict[str, Any]:
    notes = [
        {
            "name": label,
            "note": policy_wording.over_optimisation_note(found),
            "formula": policy_wording.formula(found),
            "tone": policy_wording.tone(found),
        }
        for label, (_, found) in tracks.items()
    ]
    picture = _svg(policy_figures.over_optimisation(tracks), f"track-{number}", f"Rewards by distance: {name}")
    return {"name": name, "notes": notes, "picture": picture}


def answers(comparison: PolicyComparison, measure: str | None) -> list[dict[str, Any]]:
    """Prompts with one answer of each policy, spread evenly from where the first policy lost most to where it gained
    most; without a measure, evenly over the prompts."""
    shown = [one for one in comparison.written if not one.trivial]
    firsts = [[group[0] for group in one.samples] for one in shown]
    order = list(range(len(comparison.prompts)))
    if measure is not None and len(firsts) > 1:
        gains = [new.reward(measure) - old.reward(measure) for old, new in zip(firsts[0], firsts[1], strict=True)]
        order = sorted((i for i in order if math.isfinite(gains[i])), key=lambda i: (gains[i], i)) or order
    places = np.unique(np.linspace(0, len(order) - 1, min(len(order), ANSWERS)).round().astype(int))
    return [
        {
            "prompt": comparison.prompts[order[place]],
            "sides": [
                _side(one.name, own[order[place]], measure, "reference" if number == 0 else "policy")
                for number, (one, own) in enumerate(zip(shown, firsts, strict=True))
            ],
        }
        for place in places
    ]


def _side(name: str, sample: Sample, measure: str | None, kind: str) -> dict[str, str]:
    reward = "" if measure is None else policy_wording.decimal(sample.reward(measure))
    return {
        "name": name,
        "kind": kind,
        "response": sample.response,
        "reward": f"{measure} {reward}" if reward else "",
        "length": f"{sample.tokens} tokens" + ("" if sample.finished else ", cut off"),
    }


def _contents(view: Mapping[str, Any]) -> list[tuple[str, str]]:
    several = len(view["policies"]) > 1
    entries = [(one["anchor"], one["name"] if several else "The policy") for one in view["policies"]]
    entries.append(("rewards", "Rewards"))
    if view["critic"]:
        entries.append(("critic", "The critic"))
    if view["best_of_n"]:
        entries.append(("best-of-n", "Best of n"))
    if view["tracks"]:
        entries.append(("over-optimisation", "Over-optimisation"))
    return [*entries, ("texts", "Length and repetition"), ("answers", "Answers before and after")]
