"""Progress of commands: bars, and times in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def advance(bar: Any) -> Callable[[int, int, float], None]:
    """What tells a tqdm bar how many of how many are done, and at how many tokens per second."""

    def progress(done: int, _total: int, rate: float) -> None:
        bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        bar.update(done - bar.n)

    return progress


def minutes(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
