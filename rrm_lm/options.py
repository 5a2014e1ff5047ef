"""Settings as dataclass fields, and checks of their values."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from copy import copy
from dataclasses import field
from functools import partial
from typing import Any

from rrm_lm.errors import ConfigError


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and its text in `--help`. Each instance gets its own copy of a list or dict.

    Example:
        >>> samples: int = option(4, "Answers per prompt.")
    """
    metadata = {"help": help}
    if isinstance(default, list | dict):
        return field(default_factory=partial(copy, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_minimum(settings: object, **minimums: float) -> None:
    """Raise a ConfigError if a setting is below its minimum. None is allowed."""
    for name, minimum in minimums.items():
        value = getattr(settings, name)
        check(settings, (name, value is None or value >= minimum, f"at least {minimum}"))


def check(settings: object, *rules: tuple[str, bool, str]) -> None:
    """Raise a ConfigError for the first setting that breaks a rule: (its name, whether its value is valid, what is
    valid).
    """
    for name, is_valid, expected in rules:
        if not is_valid:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}", where=name, expected=expected)


def refuse_repeats(where: str, names: Iterable[str]) -> None:
    """Raise a ConfigError if a name occurs twice."""
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise ConfigError(f"{min(repeated)} is given twice", where=where, expected="each once")


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return False


def require(settings: object, **remedies: str) -> None:
    """Raise a ConfigError if a setting is empty; its remedy is the text, such as `pass --model outputs/reward`."""
    for name, remedy in remedies.items():
        if not getattr(settings, name):
            raise ConfigError(f"`{name}` is not given", where="the command line", remedy=remedy)
