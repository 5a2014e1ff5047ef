"""What `rrm-lm criteria` prints and writes."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_lm.feedback.criteria.finding import Findings, Found, find_criteria
from rrm_lm.feedback.criteria.reader import MOST_CHARACTERS
from rrm_lm.feedback.criteria.records import Criterion, write_criteria
from rrm_lm.feedback.reading.datasets import load_feedback, merge_feedback
from rrm_lm.settings.feedback import CriteriaArguments
from rrm_lm.storage import json_text

_SHOWN = 140  # characters of a clause
_WIDTH = 110  # most columns
_COMMENT = """\
Criteria that rrm-lm criteria found in the critiques of {names}. A good response does what each statement says.
Edit, add or remove any; rrm-lm reward --criteria starts from these weights and fits them to the comparisons."""


def list_criteria(args: CriteriaArguments) -> int:
    """Read the critiques, print the criteria and what none covers, and write the file."""
    feedback = merge_feedback(*(load_feedback(name, **args.reading(args.split)) for name in args.dataset))
    findings = find_criteria(feedback.records())
    if args.output and findings.criteria:
        write_criteria(args.output, findings.criteria, _COMMENT.format(names=", ".join(args.dataset)))
    if args.json:
        print(json_text(_as_json(findings)))
    else:
        _print(findings, args)
    return int(not findings.found)


def _as_json(findings: Findings) -> dict[str, object]:
    names = ("merits", "contradicted", "agreement", "compared")
    found = [one.criterion.to_dict() | {name: getattr(one, name) for name in names} for one in findings.found]
    counts = {name: getattr(findings, name) for name in ("critiques", "cut", "clauses", "read")}
    return {**counts, "criteria": found, "uncovered": dict(findings.uncovered.most_common())}


def _print(findings: Findings, args: CriteriaArguments) -> None:
    console = Console(highlight=False, width=min(Console().width, _WIDTH) if sys.stdout.isatty() else _WIDTH)
    if not findings.critiques:
        console.print("There are no critiques in the feedback. rrm-lm inspect shows how it is read.", style="bold")
        return
    shown = [one for one in findings.found if one not in findings.rare]
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("a good response ...", min_width=20)
    for heading in ("named", "faults", "against"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("measure", min_width=12, overflow="fold")
    table.add_column("fires", no_wrap=True)
    for one in shown:
        criterion = one.criterion
        counts = (str(criterion.named), str(criterion.faults), str(criterion.against or ""))
        table.add_row(Text(criterion.statement, "bold"), *counts, _measure(criterion), _fires(one))
    console.print(table)
    console.print(
        "faults: criticizes its response; against: wants the opposite; fires: share of pairs in which", style="dim"
    )
    console.print("a response with the fault measures worse than one without (50% is chance; n with it)", style="dim")
    for one in shown:
        console.print(Text(f"\n{one.criterion.statement}", "bold"))
        for quotation in one.criterion.quotations:
            where = Text("  " + Path(quotation.where).name, "dim")
            console.print(Text(f'  "{quotation.text[:_SHOWN]}"', "italic") + where, soft_wrap=True)
        if one.contradicted:
            console.print(Text(f"  responses criticized both ways: {one.contradicted}", "yellow"))
    share = findings.read / max(findings.clauses, 1)
    counts = f"{findings.critiques:,} critiques, {findings.clauses:,} clauses"
    console.print(f"\n{counts}; {findings.read:,} ({share:.0%}) name a criterion.")
    if findings.cut:
        console.print(
            f"Of {findings.cut} critiques only the first {MOST_CHARACTERS:,} characters are read.", style="yellow"
        )
    if rare := findings.rare:
        console.print(Text("Named rarely, and not written: " + "; ".join(_rare(one) for one in rare), "dim"))
    if args.uncovered and findings.uncovered:
        console.print(f"\nCovered by no criterion ({findings.uncovered.total():,} clauses), for example:", style="bold")
        for clause, count in findings.uncovered.most_common(args.uncovered):
            console.print(Text(f"  {count:>4} x  {clause[:_SHOWN]}"), soft_wrap=True)
    if args.output:
        console.print(
            f"\n{len(findings.criteria)} criteria in {args.output}" if findings.criteria else "\nNothing written"
        )


def _measure(criterion: Criterion) -> Text:
    if criterion.question:
        return Text("asks the model")
    if criterion.target is not None:
        return Text(f"{criterion.measure}, {criterion.target[0]:g} to {criterion.target[1]:g}")
    return Text(f"{criterion.direction} {criterion.measure}")


def _fires(one: Found) -> Text:
    if one.agreement is None:
        return Text("not checked", "dim")
    style = "red" if one.agreement < 0.55 else "yellow" if one.agreement < 0.65 else "green"
    return Text(f"{one.agreement:.0%} (n = {one.compared})", style)


def _rare(one: Found) -> str:
    first = one.criterion.quotations[:1]
    return f"{one.criterion.statement} ({one.criterion.named}" + (f': "{first[0].text[:60]}")' if first else ")")
