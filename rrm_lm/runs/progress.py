"""Progress bars of commands, and durations as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def advance(bar: Any) -> Callable[[int, int, float], None]:
    """A callback (done, total, tokens per second) that updates a tqdm bar."""

    def progress(done: int, _total: int, rate: float) -> None:
        bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        bar.update(done - bar.n)

    return progress


def minutes(seconds: float) -> str:
    """Seconds as text, such as `75 s` or `12.5 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
