"""The output of `rrm-lm compare`: results.json, samples.jsonl, greedy.jsonl, verdicts.jsonl, report.html, a table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rrm_lm.api.judging import environment
from rrm_lm.api.policy.results import print_comparison
from rrm_lm.evaluation.policies.monitors import OverOptimisation, over_optimisation, track_of
from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports.policies import PolicyReportData, render_policy_report
from rrm_lm.feedback.records import prompt_id
from rrm_lm.storage import write_json, write_jsonl, write_text
from rrm_lm.training.over_optimisation import FILE_NAME, read_measurements

logger = logging.getLogger(__name__)


def write_comparison(
    comparison: PolicyComparison, folder: Path, *, configuration: Mapping[str, object]
) -> PolicyReportData:
    """Write all numbers, samples and verdicts and the report, and print the numbers; returns the report's data."""
    tracks = training_tracks(comparison)
    monitored = {name: found.to_dict() for name, found in tracks.items()}
    write_json(folder / "results.json", {**comparison.to_dict(), "over_optimisation": monitored})
    write_jsonl(folder / "samples.jsonl", sample_rows(comparison))
    if comparison.written[0].greedy:
        write_jsonl(folder / "greedy.jsonl", sample_rows(comparison, greedy=True))
    if comparison.verdicts:
        write_jsonl(folder / "verdicts.jsonl", verdict_rows(comparison))
    report = PolicyReportData(
        comparison=comparison, tracks=tracks, configuration=configuration, environment=environment()
    )
    write_text(folder / "report.html", render_policy_report(report))
    print_comparison(comparison)
    logger.info("report: %s", folder / "report.html")
    return report


def training_tracks(comparison: PolicyComparison) -> dict[str, OverOptimisation]:
    """Over-optimization during training, for the policies whose folders have measurements of it."""
    files = {result.name: Path(result.name).expanduser() / FILE_NAME for result in comparison.policies}
    return {
        name: over_optimisation(track_of(measurements))
        for name, file in files.items()
        if file.is_file() and (measurements := read_measurements(file))
    }


def sample_rows(comparison: PolicyComparison, *, greedy: bool = False) -> Iterator[dict[str, Any]]:
    """One row per sample, or per answer at temperature 0, ordered by prompt; the reference comes first."""
    for number, prompt in enumerate(comparison.prompts):
        for one in comparison.written:
            for k, sample in enumerate(one.greedy[number : number + 1] if greedy else one.samples[number]):
                yield {
                    "prompt": [m.to_dict() for m in prompt],
                    "prompt_id": prompt_id(prompt),
                    "policy": one.name,
                    "sample": k,
                    "response": sample.response,
                    "tokens": sample.tokens,
                    "finished": sample.finished,
                    "rewards": dict(sample.rewards),
                    "log_ratio": sample.log_ratio,
                }


def verdict_rows(comparison: PolicyComparison) -> Iterator[dict[str, Any]]:
    """One row per judged pair: the probability that the policy's response is better, for each order."""
    for judge, by_policy in comparison.verdicts.items():
        for policy, verdicts in by_policy.items():
            for verdict in verdicts:
                yield {
                    "judge": judge,
                    "policy": policy,
                    "prompt_id": prompt_id(comparison.prompts[verdict.prompt]),
                    "shown_first": verdict.shown_first,
                    "shown_second": verdict.shown_second,
                }
