"""The outcome of each stage of a pipeline in a sentence, from its files."""

from __future__ import annotations

from pathlib import Path

from rrm_lm.cli.pipeline.stages import Stage
from rrm_lm.evaluation.reports.formats import duration
from rrm_lm.evaluation.reports.policies import StageView
from rrm_lm.storage import read_object


def stage_view(stage: Stage, root: Path) -> StageView:
    """A finished stage as a row of the report in `root`."""
    page = stage.folder / "report.html"
    return StageView(
        name=stage.name,
        outcome=_OUTCOMES[stage.command](stage.folder),
        time=duration(float(read_object(stage.record_file).get("seconds") or 0)),
        page=page.relative_to(root).as_posix() if page.is_file() else "",
    )


def _reward(folder: Path) -> str:
    sets = read_object(folder / "results.json").get("sets", {})
    parts = [
        f"{100 * one['accuracy']['value']:.1f}% of {one['n_scored']} held-out comparisons right "
        f"({100 * one['accuracy']['low']:.1f} to {100 * one['accuracy']['high']:.1f}%)"
        for one in sets.values()
        if one.get("accuracy")
    ]
    return "reward model: " + ("; ".join(parts) or "not judged on held-out comparisons")


def _sft(folder: Path) -> str:
    count = read_object(folder / "examples.json").get("learned_responses")
    if not count:
        return "imitates responses"
    passes = read_object(folder / "trainer_state.json").get("epoch") or 1.0
    return f"imitates {round(count * passes)} of {count} responses" if passes < 1 else f"imitates {count} responses"


def _policy(folder: Path) -> str:
    log = [row for row in read_object(folder / "trainer_state.json").get("log_history", []) if "objective/kl" in row]
    if not log:
        return "trained against the reward"
    first, last = (row["objective/scores"] for row in (log[0], log[-1]))
    return f"{len(log)} updates; reward {first:.2f}, then {last:.2f}; {log[-1]['objective/kl']:.1f} nats from the start"


def _collect(folder: Path) -> str:
    counts = read_object(folder / "counts.json")
    helped = f", judged with the critic {counts['critic']['name']}" if counts.get("critic") else ""
    return f"{counts.get('comparisons', 0)} comparisons of the policy's own answers{helped}"


def _compare(folder: Path) -> str:
    policies = read_object(folder / "results.json").get("policies", {}).values()
    return f"{sum(not one.get('trivial') for one in policies)} policies on held-out prompts: this page"


_OUTCOMES = {"reward": _reward, "sft": _sft, "policy": _policy, "collect": _collect, "compare": _compare}
