"""The templates of pages and cards, and the filters they share."""

from __future__ import annotations

import functools

import jinja2

from rrm_lm.evaluation.reports.wording import count, interval, minus, percent, plain


@functools.lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Jinja with this package's templates. HTML is escaped; a name that is missing is an error, not an empty space."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rrm_lm.evaluation", "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters.update(pct=percent, interval=interval, signed=_signed, plain=plain, count=count, cell=_cell)
    return made


def _signed(value: float) -> str:
    return minus(f"{value:+.2f}")


def _cell(text: str) -> str:
    """Text inside a Markdown table: one line, and no bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
