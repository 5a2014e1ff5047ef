"""The domains that come with the project, and how one is found by its name."""

from __future__ import annotations

import importlib
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.recursion.tasks import Aspect, Domain
from rrm_lm.training.reward_sources import load_function

DOMAINS = {"chip": "Chip", "messages": "Messages"}
_NEEDED = (
    "name",
    "kind",
    "limit",
    "noise",
    "prompts",
    "aspects",
    "draft",
    "vary",
    "parse",
    "gold",
    "impression",
    "weight",
)


def load_domain(name: str) -> Domain:
    """The domain that a name stands for.

    Args:
        name: One of `DOMAINS`; or one's own, as ``path/to/file.py:ClassName`` or ``module:ClassName``.

    Raises:
        ConfigError: There is none, or it lacks something.
    """
    if name in DOMAINS:
        made: Any = getattr(importlib.import_module(f"rrm_lm.recursion.domains.{name}"), DOMAINS[name])()
    elif ":" in name:
        made = load_function(name)()
    else:
        raise ConfigError(
            f"There is no domain {name!r}",
            where="domain",
            expected=", ".join(DOMAINS) + ", or one's own as file.py:ClassName",
        )
    _check(made, name)
    return made


def _check(domain: Any, name: str) -> None:
    missing = [part for part in _NEEDED if not hasattr(domain, part)]
    if missing:
        raise ConfigError(
            f"The domain has no {', '.join(missing)}", where=name, expected="what rrm_lm.recursion.tasks.Domain lists"
        )
    for aspect, one in domain.aspects.items():
        fault = _fault(one, domain)
        if fault:
            raise ConfigError(
                f"The aspect {aspect!r} {fault}", where=name, expected="see rrm_lm.recursion.tasks.Aspect"
            )


def _fault(aspect: Aspect, domain: Domain) -> str:
    if len(aspect.verdicts) < 2:
        return "has fewer than two verdicts"
    if unknown := [part for part in aspect.parts if part not in domain.aspects]:
        return f"has a part {unknown[0]!r} that the domain does not have"
    return "has parts and does not say what follows from them" if aspect.parts and aspect.conclude is None else ""
