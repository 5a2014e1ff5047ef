"""A comparison of policies as a table in the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from rrm_lm.evaluation.policies.results import PART, PolicyComparison
from rrm_lm.evaluation.reports.formats import decimal, decimal_cell, decimal_interval, level_cell, percent_cell
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.reports.policies import answers

_WIDTH = 120  # table width if stdout is not a terminal


_ANSWERS = 3  # prompts whose answers are printed


def print_comparison(comparison: PolicyComparison) -> None:
    """Print some answers, the numbers as tables, and a one-sentence verdict per policy."""
    measure = comparison.measure
    table = Table(title=f"{len(comparison.prompts)} held-out prompts", title_justify="left")
    rewards = [] if measure is None else [f"mean {measure}", "difference", "wins"]
    for column in ("policy", *rewards, "KL", "tokens", "ended"):
        table.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for result in comparison.results:
        cells = []
        if measure is not None:
            against = result.against.get(measure)
            cells = [
                decimal_cell(result.rewards.get(measure)),
                decimal_cell(against and against.difference, sign=True),
                percent_cell(against and against.win_rate),
            ]
        cells.append(decimal_cell(result.kl))
        cells += [(level_cell(name, result.drift[name].level)[0], "") for name in ("tokens", "finished")]
        table.add_row(result.name, *("\n".join(filter(None, cell)) for cell in cells))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    for shown in answers(comparison, _ANSWERS):
        console.print(f"\n{shown['prompt'][-1].content}", soft_wrap=True)
        for side in shown["sides"]:
            console.print(f"  {side['policy']}: {' '.join(side['sample'].response.split())}", soft_wrap=True)
    console.print()
    console.print(table)
    if comparison.reference.parts:
        console.print(_parts(comparison))
    for result in comparison.policies:
        console.print(sentence("policy_verdict", comparison, result), soft_wrap=True)
        for doubt in comparison.doubts(result):
            console.print(f"  - {sentence('doubt', doubt)}", soft_wrap=True)


def _parts(comparison: PolicyComparison) -> Table:
    """Each part of the gold reward by policy, at temperature 0 in brackets; below, its change from the reference."""
    brackets = "; in brackets: at temperature 0" if comparison.reference.greedy else ""
    table = Table(title=f"the parts of gold, and their change{brackets}", title_justify="left")
    table.add_column("policy", overflow="fold")
    for part in comparison.reference.parts:
        table.add_column(part, justify="right")
    for result in comparison.results:
        cells = []
        for name, part in result.parts.items():
            greedy = result.greedy.get(PART + name)
            brackets = f" [{decimal(greedy.level.value)}]" if greedy else ""
            change = (
                f"\n{decimal(part.change.value, sign=True)} ({decimal_interval(part.change, sign=True)})"
                if part.change
                else ""
            )
            cells.append(f"{decimal(part.level.value)}{brackets}{change}")
        table.add_row(result.name, *cells)
    return table
