"""Progress bars of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def advance(bar: Any) -> Callable[[int, int, float], None]:
    """What tells a tqdm bar how many of how many are done, and at how many tokens per second."""

    def progress(done: int, _total: int, rate: float) -> None:
        bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        bar.update(done - bar.n)

    return progress
