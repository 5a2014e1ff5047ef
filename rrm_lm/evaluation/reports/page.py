"""Render a page or a card from a template, results and figures.

Templates contain the text; `formats.py` formats numbers. A page is one self-contained file: styles and figures are
embedded, nothing is loaded from elsewhere, and all text by people or models is escaped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from rrm_lm import __version__
from rrm_lm.evaluation.reports import formats
from rrm_lm.evaluation.reports.plots import css_variables, inline_svg
from rrm_lm.evaluation.statistics.metrics import verdict
from rrm_lm.storage import now

_FILTERS = (
    *(formats.fixed, formats.fixed_interval, formats.decimal, formats.decimal_interval, formats.decimal_cell),
    *(formats.percent, formats.percent_interval, formats.percent_cell, formats.points, formats.points_interval),
    *(formats.count, formats.plain, formats.minus, formats.duration, formats.markdown_cell, verdict),
)


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Data that every page shows."""

    title: str = ""  # the heading
    # configuration, environment: tables of settings, and of versions and hardware
    configuration: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    created: str = field(default_factory=now)  # UTC time; now if not given
    version: str = __version__


def render(template: str, **values: object) -> str:
    """Render a page or card: a template in `rrm_lm/evaluation/templates`, with values by name."""
    return _environment().get_template(template).render(values)


def embed(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an element of a page. `name` must be unique on the page; `description` is the alternative text."""
    return Markup(inline_svg(figure, name, description))


def sentence(name: str, *values: object) -> str:
    """Render a macro of `sentences.j2` as plain text on one line."""
    macro = getattr(_environment().get_template("sentences.j2").module, name)
    return " ".join(macro(*values).split())


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """HTML templates escape values; an undefined name is an error rather than empty text."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rrm_lm.evaluation", "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        keep_trailing_newline=True,
    )
    made.filters.update({function.__name__: function for function in _FILTERS}, is_finite=math.isfinite)
    made.globals.update(sentence=sentence, counted=formats.counted, baseline_names=formats.BASELINE_NAMES)
    made.globals.update(level_cell=formats.level_cell, change_cell=formats.change_cell)
    made.globals.update(greedy_cells=formats.greedy_cells, infinity=math.inf)
    made.globals.update(light=css_variables(dark=False), dark=css_variables(dark=True))
    return made
