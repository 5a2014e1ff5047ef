"""The built-in domains, and loading a domain by name.

A node records the hash of the file of its domain: after an edit of that file, its nodes are solved again.
"""

from __future__ import annotations

import importlib
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.recursion.tasks import Aspect, Domain
from rrm_lm.training.reward_sources import load_function

DOMAINS = {"chip": "Chip", "messages": "Messages"}


def load_domain(name: str) -> Domain:
    """Load one of `DOMAINS`, or your own as ``path/to/file.py:ClassName`` or ``module:ClassName``. Raises ConfigError:
    there is no such domain, or it lacks an attribute or has a faulty aspect.
    """
    if name in DOMAINS:
        domain: Any = getattr(importlib.import_module(f"rrm_lm.recursion.domains.{name}"), DOMAINS[name])()
    elif ":" in name:
        domain = load_function(name)()
    else:
        expected = ", ".join(DOMAINS) + ", or your own as file.py:ClassName"
        raise ConfigError(f"There is no domain {name!r}", where="domain", expected=expected)
    if missing := [name for name in vars(Domain) if not name.startswith("_") and not hasattr(domain, name)]:
        expected = "the attributes of rrm_lm.recursion.tasks.Domain"
        raise ConfigError(f"The domain has no {', '.join(missing)}", where=name, expected=expected)
    for aspect, one in domain.aspects.items():
        if fault := _fault(one, domain):
            expected = "see rrm_lm.recursion.tasks.Aspect"
            raise ConfigError(f"The aspect {aspect!r} {fault}", where=name, expected=expected)
    return domain


def _fault(aspect: Aspect, domain: Domain) -> str:
    if len(aspect.verdicts) < 2:
        return "has fewer than two verdicts"
    if unknown := [part for part in aspect.parts if part not in domain.aspects]:
        return f"has a part {unknown[0]!r} that is not an aspect of the domain"
    return "has parts, but no function `conclude`" if aspect.parts and aspect.conclude is None else ""
