"""Checks of feedback against a chat template, before training: rows that it refuses, and words that it leaves out."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import DataError, TemplateError
from rrm_lm.feedback.counts import Tally
from rrm_lm.feedback.records import Origin, Record
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.template_words import Lost

logger = logging.getLogger(__name__)

_RESPONSES = ("chosen", "rejected", "response", "corrected", "example")  # fields of records


@dataclass(slots=True)
class TemplateChecks:
    """Rows that a chat template does not render faithfully, with counts and the first rows."""

    checked: int = 0  # records
    # Rows that must not be trained on, by reason: the template raises an error for them, or leaves out words that
    # were judged (a system message, a user turn, the response or its reasoning).
    refused: dict[str, Tally] = field(default_factory=dict)
    # Rows that lose a part by design, such as the reasoning of earlier assistant turns.
    noted: dict[str, Tally] = field(default_factory=dict)
    twice: Tally = field(default_factory=Tally)  # rows with the template's own marks in a text
    origins: set[Origin] = field(default_factory=set)  # all refused rows

    def add(self, lost: Lost, origin: Origin) -> None:
        self.checked += 1
        if lost.refused and origin not in self.origins:  # a row may give several records
            self.origins.add(origin)
            self.refused.setdefault(lost.refused, Tally()).add(origin)
        if lost.noted:
            self.noted.setdefault(lost.noted, Tally()).add(origin)
        if lost.is_twice:
            self.twice.add(origin)

    def refuse(self, error: TemplateError, origin: Origin) -> None:
        """Count a record that the template cannot render."""
        self.add(Lost(error.what.removeprefix("The chat template ")), origin)

    def problems(self) -> list[str]:
        """One sentence per reason to refuse rows, with their number and the first rows."""
        found = [f"the chat template {reason}: {rows}" for reason, rows in self.refused.items()]
        return found + ([_TWICE.format(self.twice)] if self._is_rendered else [])

    def remarks(self) -> list[str]:
        """One sentence per part that is left out by design."""
        found = [f"the chat template {what}: {rows}" for what, rows in self.noted.items()]
        return found + ([_TWICE.format(self.twice)] if self.twice.count and not self._is_rendered else [])

    @property
    def _is_rendered(self) -> bool:
        """A text may mention a mark, but half of all texts are not about chat templates."""
        return self.twice.count > 0 and 2 * self.twice.count >= self.checked

    def to_dict(self) -> dict[str, Any]:
        """Counts and first rows by reason, for JSON."""
        kinds = {"refused": self.refused, "noted": self.noted}
        return {kind: {what: rows.to_dict() for what, rows in found.items()} for kind, found in kinds.items()}

    def settle(self, skip_bad_rows: bool) -> None:
        """Log the remarks, and raise an error for refused rows, or log that they are left out. Raises DataError if rows
        are refused and not skipped, or at least half of the rows were rendered before.
        """
        for remark in self.remarks():
            logger.warning("%s", remark)
        reasons = "; ".join(self.problems())
        if reasons and skip_bad_rows and not self._is_rendered:
            logger.warning("left out: %s", reasons)
        elif reasons:
            fold = "pass --fold_system true to put system messages into the first user turn, "
            first = next(rows.origins[0] for rows in (*self.refused.values(), self.twice) if rows.count)
            raise DataError(
                f"{reasons[0].upper()}{reasons[1:]}",
                where=str(first),
                expected="messages or plain text, and a template that renders all words of them",
                remedy=(fold if "system" in reasons.lower() else "")
                + "pass another template with --chat_template_path, or leave these rows out with --skip_bad_rows true",
            )


_TWICE = "texts contain marks of this chat template, and would be rendered twice: {}"


def check_template(chat: ChatFormat, records: Iterable[Record]) -> TemplateChecks:
    """Render records with a chat template, and count what it refuses or leaves out. Nothing is tokenized.

    Example::

        checks = check_template(chat, feedback.records())
        checks.problems()  # ["the chat template leaves out system messages: 4 (row 1, 2, 3, 4)"]
        checks.remarks()  # ["the chat template leaves out the reasoning of earlier assistant turns: 1 (row 7)"]
        checks.to_dict()  # the same for JSON, with files
        checks.settle(skip_bad_rows=False)  # logs the remarks, raises a DataError for the problems

    A prompt is rendered with each response to it.
    """
    checks = TemplateChecks()
    for record in records:
        responses = [text for name in _RESPONSES if isinstance(text := getattr(record, name, None), str)]
        if record.prompt:
            try:
                checks.add(Lost.of([chat.lost(record.prompt, response) for response in responses]), record.origin)
            except TemplateError as error:
                checks.refuse(error, record.origin)
    return checks
