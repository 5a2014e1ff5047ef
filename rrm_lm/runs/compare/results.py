"""What `rrm-lm compare` leaves behind: results.json, samples.jsonl, verdicts.jsonl, report.html, and a table."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rrm_lm.api.judging import environment
from rrm_lm.evaluation.policies.monitors import OverOptimisation, over_optimisation, track_of
from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports import policy_wording
from rrm_lm.evaluation.reports.policies import PolicyReportData, write_policy_report
from rrm_lm.feedback.records import prompt_id
from rrm_lm.storage import write_json, write_jsonl
from rrm_lm.training.over_optimisation import FILE_NAME, read_measurements

logger = logging.getLogger(__name__)

_WIDTH = 120  # of the table where no terminal has one of its own


def write_comparison(
    comparison: PolicyComparison, folder: Path, *, configuration: Mapping[str, object]
) -> PolicyReportData:
    """Write every number, every sample, every verdict and the page, and print the numbers; returns the page's data.

    Args:
        comparison: What was found.
        folder: Where the files go.
        configuration: Settings for the page.
    """
    tracks = training_tracks(comparison)
    monitored = {name: found.to_dict() for name, found in tracks.items()}
    write_json(folder / "results.json", {**comparison.to_dict(), "over_optimisation": monitored})
    write_jsonl(folder / "samples.jsonl", sample_rows(comparison))
    if comparison.verdicts:
        write_jsonl(folder / "verdicts.jsonl", verdict_rows(comparison))
    report = PolicyReportData(
        comparison=comparison, tracks=tracks, configuration=configuration, environment=environment()
    )
    write_policy_report(report, folder / "report.html")
    show(comparison)
    logger.info("report: %s", folder / "report.html")
    return report


def training_tracks(comparison: PolicyComparison) -> dict[str, OverOptimisation]:
    """What the measurements during training say of the policies in whose folders there are any."""
    files = {result.name: Path(result.name).expanduser() / FILE_NAME for result in comparison.policies}
    return {
        name: over_optimisation(track_of(measurements))
        for name, file in files.items()
        if file.is_file() and (measurements := read_measurements(file))
    }


def sample_rows(comparison: PolicyComparison) -> Iterator[dict[str, Any]]:
    """One row for each sample: prompt by prompt, the reference first."""
    for number, prompt in enumerate(comparison.prompts):
        for one in comparison.written:
            for k, sample in enumerate(one.samples[number]):
                yield {
                    "prompt": [{"role": m.role, "content": m.content} for m in prompt],
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
    """One row for each pair a judge saw: its probability that the policy's response is the better one, by order."""
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


def show(comparison: PolicyComparison) -> None:
    """Print the numbers as a table, and what they say in a sentence for each policy."""
    measure = policy_wording.main_measure(comparison)
    table = Table(title=f"{len(comparison.prompts)} held-out prompts", title_justify="left")
    columns = [
        "policy",
        *([] if measure is None else [f"mean {measure}", "difference", "wins"]),
        "KL",
        "tokens",
        "ended",
    ]
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for result in comparison.results:
        cells = [result.name]
        if measure is not None:
            against = result.against.get(measure)
            cells += [
                _cell(policy_wording.with_interval(result.rewards.get(measure))),
                _cell(policy_wording.with_interval(against and against.difference, sign=True)),
                _cell(policy_wording.share_with_interval(against and against.win_rate)),
            ]
        cells.append(_cell(policy_wording.with_interval(result.kl)))
        cells += [
            _cell((policy_wording.level(name, result.drift[name].level)[0], "")) for name in ("tokens", "finished")
        ]
        table.add_row(*cells)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    for result in comparison.policies:
        console.print(policy_wording.verdict(comparison, result), soft_wrap=True)
        for doubt in policy_wording.doubts(comparison, result):
            console.print(f"  - {doubt}", soft_wrap=True)


def _cell(cell: policy_wording.Cell) -> str:
    value, below = cell
    return f"{value}\n{below}" if below else value
