"""Errors that a user can fix. Each says what was found, where, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LOOK = "; rrm-lm inspect "  # in a remedy, before the name of a file to look at


def did_you_mean(name: object, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean `learning_rate`?)` for the known name nearest to `name`, or nothing if none is near."""
    names = sorted(known)
    # Other programs accept abbreviations such as `--learn`, which are not close matches by their letters.
    nearest = difflib.get_close_matches(str(name), names, n=1) or [
        one for one in names if name and one.startswith(str(name))
    ]
    return f" (did you mean `{prefix}{nearest[0]}`?)" if nearest else ""


class RRMError(Exception):
    """An error that a user can fix.

    Args:
        what: What was found, in one sentence.
        where: The file, row, column, flag or folder.
        expected: What would be valid.
        remedy: What to do.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", remedy: str = "") -> None:
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        parts = [what.rstrip(".") + "."]
        if where:
            parts.append(f"Where: {where}.")
        if expected:
            parts.append(f"Expected: {expected.rstrip('.')}.")
        if remedy:
            parts.append(f"What to do: {remedy.rstrip('.')}.")
        super().__init__(" ".join(parts))

    def sentence(self) -> str:
        """What is wrong, where, and what to do."""
        where = f" ({self.where})" if self.where else ""
        remedy = f"; {self.remedy.partition(LOOK)[0]}" if self.remedy else ""
        return f"{self.what.rstrip('.')}{where}{remedy}"


class DataError(RRMError):
    """Feedback that cannot be read, or is invalid."""


class ConfigError(RRMError):
    """A setting that does not exist, is invalid, or contradicts another."""


class ModelError(RRMError):
    """A model or tokenizer that cannot be loaded or cannot be used in this way."""


class TemplateError(ModelError, DataError):
    """A conversation that the model's chat template does not render."""


class CheckpointError(RRMError):
    """An output folder or checkpoint that is in use, broken, or from another run."""


class TrainingError(RRMError):
    """Training that had to stop, for example because the loss is NaN."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run. It is a KeyboardInterrupt, so that libraries treat it as Ctrl-C.

    Args:
        signum: The signal.
        checkpoint: The checkpoint that was saved before stopping, if any.
    """

    def __init__(self, signum: int, checkpoint: str = "") -> None:
        super().__init__(signum, checkpoint)
        self.signum, self.checkpoint = signum, checkpoint
