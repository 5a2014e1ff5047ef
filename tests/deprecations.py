"""What libraries only log about something deprecated, heard; `filterwarnings` in pyproject.toml is for warnings."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")
ROOT = str(Path(__file__).parents[1])

# For tests of TRL 1.12's own code. Its arguments set the earlier name of activation_checkpointing by default, and its
# RLOOTrainer switches that off and on by the earlier names while it looks at log-probabilities.
trls_arguments = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
trls_switch = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(dis|en)able` is deprecated:FutureWarning")


# What a person types after --fsdp is a string; transformers logs this and then refuses it on one process, as we test.
_TYPED = "Passing `fsdp` as a string is deprecated"


@contextmanager
def nothing_deprecated() -> Iterator[list[str]]:
    """Raises an AssertionError at the end if a library has logged that something we use is deprecated.

    Yields what was heard so far.

    Hugging Face's libraries announce many removals by `logger.warning_once`, which no warnings filter sees.
    """
    once = getattr(sys.modules.get("transformers.utils.logging"), "warning_once", None)
    if once is not None:
        once.cache_clear()  # else only the first test of a process would hear of it
    heard = _Heard()
    logs = [logging.getLogger(name) for name in LIBRARIES]
    for log in logs:
        log.addHandler(heard)
    try:
        yield heard.found
    finally:
        for log in logs:
            log.removeHandler(heard)
    assert not heard.found, "a library logs that something is deprecated\n" + "\n".join(heard.found)


class _Heard(logging.Handler):
    """Keeps what is logged about something deprecated, and from where it was called."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message, stack = record.getMessage(), traceback.extract_stack()[:-1]
        if "deprecated" in message.lower() and not message.startswith(_TYPED) and not _is_trls(stack):
            ours = [frame for frame in stack if frame.filename.startswith(ROOT) and _library(frame) is None]
            self.found.append(f"{record.name}: {message}\n{''.join(traceback.format_list(ours))}")


def _is_trls(stack: Sequence[traceback.FrameSummary]) -> bool:
    """Whether TRL's code called what is deprecated, not ours; all others hand our arguments on."""
    for frame in reversed(stack):
        library = _library(frame)
        if library == "trl" or (library is None and frame.filename.startswith(ROOT)):
            return library == "trl"
    return False


def _library(frame: traceback.FrameSummary) -> str | None:
    """The installed library that a frame is in."""
    inside = frame.filename.partition("site-packages/")[2]
    return inside.partition("/")[0] or None
