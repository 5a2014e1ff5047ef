"""A comparison of policies as a table in the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from rrm_lm.evaluation.policies.results import PolicyComparison
from rrm_lm.evaluation.reports import policy_wording

_WIDTH = 120  # of the table if stdout is not a terminal


def print_comparison(comparison: PolicyComparison) -> None:
    """Print the numbers as a table, and a one-sentence verdict for each policy."""
    measure = policy_wording.main_measure(comparison)
    table = Table(title=f"{len(comparison.prompts)} held-out prompts", title_justify="left")
    rewards = [] if measure is None else [f"mean {measure}", "difference", "wins"]
    for column in ("policy", *rewards, "KL", "tokens", "ended"):
        table.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for result in comparison.results:
        cells = []
        if measure is not None:
            against = result.against.get(measure)
            cells = [
                policy_wording.with_interval(result.rewards.get(measure)),
                policy_wording.with_interval(against and against.difference, sign=True),
                policy_wording.share_with_interval(against and against.win_rate),
            ]
        cells.append(policy_wording.with_interval(result.kl))
        cells += [(policy_wording.level(name, result.drift[name].level)[0], "") for name in ("tokens", "finished")]
        table.add_row(result.name, *("\n".join(filter(None, cell)) for cell in cells))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    for result in comparison.policies:
        console.print(policy_wording.verdict(comparison, result), soft_wrap=True)
        for doubt in policy_wording.doubts(comparison, result):
            console.print(f"  - {doubt}", soft_wrap=True)
