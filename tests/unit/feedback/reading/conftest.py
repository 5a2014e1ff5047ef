"""What the tests of reading share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.feedback.reading.datasets import Feedback, load_feedback


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Feedback]:
    """Write rows as JSON Lines, or the text of a file, and load it."""

    def loader(*rows: dict[str, Any] | str, name: str = "mine.jsonl", **options: Any) -> Feedback:
        lines = (row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_bytes("".join(lines).encode())
        return load_feedback(str(tmp_path / name), **options)

    return loader
