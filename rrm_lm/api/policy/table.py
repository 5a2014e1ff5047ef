"""A comparison of policies as a table in the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports.formats import decimal_cell, level_cell, percent_cell
from rrm_lm.evaluation.reports.page import sentence

_WIDTH = 120  # table width if stdout is not a terminal


def print_comparison(comparison: PolicyComparison) -> None:
    """Print the numbers as a table, then a one-sentence verdict per policy."""
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
    console.print(table)
    for result in comparison.policies:
        console.print(sentence("policy_verdict", comparison, result), soft_wrap=True)
        for doubt in comparison.doubts(result):
            console.print(f"  - {sentence('doubt', doubt)}", soft_wrap=True)
