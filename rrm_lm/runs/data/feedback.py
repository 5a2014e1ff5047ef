"""`rrm-lm feedback`: export, import, merge, retract and count what a store of feedback holds."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from rrm_lm.evaluation.statistics.agreement import agreement, log_odds, reliabilities
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.store import transfer
from rrm_lm.feedback.store.events import RETRACT
from rrm_lm.feedback.store.files import Store
from rrm_lm.feedback.store.records import numbered_rows, read_store
from rrm_lm.settings.feedback import FeedbackArguments
from rrm_lm.storage import json_text

logger = logging.getLogger(__name__)


def _export(args: FeedbackArguments) -> None:
    state, strengths = read_store(args.store), None
    if args.reliability:
        found = reliabilities(state.verdicts())
        logger.info("how often each person is right: %s", ", ".join(f"{who} {p:.2f}" for who, p in found.items()))
        logger.info("train with --grades target, which takes an answer to be right that often")
        strengths = {person: log_odds(probability) for person, probability in found.items()}
    counts = transfer.export(state, Path(args.output), args.format, strengths)
    _print({"written": args.output, **counts})


def _import(args: FeedbackArguments) -> None:
    with Store(args.store, create=True) as store:
        total: Counter[str] = Counter()
        for name in args.others:
            if (records := _argilla(name)) is not None:
                items, given = transfer.read_argilla(records, name)
                total.update(transfer.add_answers(store, items, given))
                continue
            feedback = load_feedback(name, **args.reading(args.split))
            logger.info("read %s", feedback.counts.summary())
            derived = {id(record) for record in feedback.comparisons[-feedback.counts.derived_comparisons or None :]}
            derived = derived if feedback.counts.derived_comparisons else set()
            records = (record for record in feedback.records() if id(record) not in derived)
            total.update(transfer.import_records(store, records, args.person))
    _print(dict(total))


def _argilla(name: str) -> list[Any] | None:
    """The records of an export of Argilla; None for other files."""
    if Path(name).suffix == ".json" and Path(name).is_file():
        with contextlib.suppress(ValueError):
            records = json.loads(Path(name).read_text(encoding="utf-8"))
            if isinstance(records, list) and records and {"fields", "responses"} <= set(records[0]):
                return records
    return None


def _merge(args: FeedbackArguments) -> None:
    with Store(args.store, create=True) as store, contextlib.ExitStack() as opened:
        others = [opened.enter_context(Store(name, writable=False)) for name in args.others]
        _print(transfer.merge(store, others))


def _retract(args: FeedbackArguments) -> None:
    with Store(args.store) as store:
        before = len(store.state().answers())
        store.append(RETRACT, item=args.item, body={"person": args.person})
        _print({"retracted": before - len(store.state().answers())})


def _stats(args: FeedbackArguments) -> None:
    state = read_store(args.store)
    by_person = Counter(event.person for event, _ in state.answers())
    by_kind = Counter(kind for kind, _ in numbered_rows(state))
    _print({"items": len(state.items), "people": by_person, "rows": by_kind, "agreement": agreement(state.verdicts())})


def _print(counts: dict[str, Any]) -> None:
    print(json_text(counts, indent=None))


def manage(args: FeedbackArguments) -> None:
    """Do one of the actions, and print counts as one line of JSON."""
    actions = {"export": _export, "import": _import, "merge": _merge, "retract": _retract, "stats": _stats}
    actions[args.action](args)
