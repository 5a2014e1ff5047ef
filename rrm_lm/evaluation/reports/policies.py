"""The page about policies: rewards, distance from the reference, and sample answers.

Its sections are in `policy_sections.html.j2`, which the training page includes too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from rrm_lm.evaluation.policies.comparison import DRIFTS
from rrm_lm.evaluation.policies.monitors import OverOptimisation, best_of_n_track, over_optimisation
from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports import policy_figures
from rrm_lm.evaluation.reports.page import PageData, embed, render
from rrm_lm.evaluation.reports.plots import ForestRow, forest

ANSWERS = 8  # prompts with answers shown side by side

Tracks = Mapping[str, tuple[str, OverOptimisation]]  # by label: a color and a track


@dataclass(frozen=True, kw_only=True)
class StageView:
    """A stage of making the policies: name, outcome, time, and its page ("" for none)."""

    name: str
    outcome: str
    time: str
    page: str = ""


@dataclass(frozen=True, kw_only=True)
class PolicyReportData(PageData):
    """Data of the page; only the comparison is required."""

    title: str = "Is the policy better?"
    comparison: PolicyComparison  # the results
    # by policy, the over-optimization measured in training
    tracks: Mapping[str, OverOptimisation] = field(default_factory=dict)
    stages: Sequence[StageView] = ()  # how the policies were made; links are relative to this page


def render_policy_report(data: PolicyReportData) -> str:
    return render("policy.html.j2", data=data, policy=policy_view(data.comparison, data.tracks))


def policy_view(comparison: PolicyComparison, tracks: Mapping[str, OverOptimisation]) -> dict[str, Any]:
    measure = comparison.measure
    if measure not in comparison.reference.rewards:
        measure = None
    length = best_of_n = Markup()
    if measure is not None:
        length = embed(policy_figures.reward_by_length(comparison, measure), "length", "Reward against length")
    if any(result.best_of_n is not None for result in comparison.results):
        best_of_n = embed(policy_figures.best_of_n(comparison), "best-of-n", "Best-of-n curves")
    return {
        "comparison": comparison,
        "headline": _headline(comparison, measure),
        "best_of_n": best_of_n,
        "tracks": _track_views(comparison, tracks),
        "length": length,
        "drifts": DRIFTS,
        "answers": answers(comparison),
        "answers_by": measure,
    }


def _headline(comparison: PolicyComparison, measure: str | None) -> Markup:
    """A figure of mean rewards if there are any, else of win rates; empty without either."""
    if measure is not None:
        figure = policy_figures.headline(comparison, measure)
        return embed(figure, "headline", f"Mean {measure} reward of each policy")
    rows = [
        ForestRow(f"{result.name} by {judge}", judged.win_rate)
        for result in comparison.policies
        for judge, judged in result.judged.items()
        if judged.win_rate is not None
    ]
    return embed(forest(rows, 0.5, note="equal"), "headline", "Win rates against the reference") if rows else Markup()


def _track_views(comparison: PolicyComparison, found: Mapping[str, OverOptimisation]) -> list[dict[str, Any]]:
    """The track of each policy measured in training, with the reference's best-of-n for the same rewards."""
    places = {result.name: place for place, result in enumerate(comparison.results)}
    measures = (str(comparison.main), str(comparison.proxy))
    baseline: Tracks = {}
    curve = comparison.reference.best_of_n
    if curve is not None:
        best_of_n = over_optimisation(best_of_n_track(curve, measures))
        baseline = {f"{comparison.reference.name}, best of n": (policy_figures.REFERENCE, best_of_n)}
    shown: dict[str, Tracks] = {}
    for name, track in found.items():
        own = {name: (policy_figures.color_of(places.get(name, 1)), track)}
        shown[name] = own | (baseline if track.names == measures else {})
    if baseline and not any(len(tracks) > 1 for tracks in shown.values()):
        shown["Best of n"] = baseline
    return [
        {
            "name": name,
            "tracks": {label: track for label, (_, track) in tracks.items()},
            "picture": embed(policy_figures.over_optimisation(tracks), f"track-{k}", f"Rewards by distance: {name}"),
        }
        for k, (name, tracks) in enumerate(shown.items(), start=1)
    ]


def answers(comparison: PolicyComparison, number: int = ANSWERS) -> list[dict[str, Any]]:
    """Prompts drawn at random, the same ones at every call, with the first sample of each policy."""
    shown = [one for one in comparison.written if not one.trivial]
    drawn = random.Random(0).sample(range(len(comparison.prompts)), min(number, len(comparison.prompts)))
    return [
        {"prompt": comparison.prompts[i], "sides": [{"policy": one.name, "sample": one.samples[i][0]} for one in shown]}
        for i in drawn
    ]
