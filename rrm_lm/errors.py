"""What can go wrong, each error saying what was found, where, what was expected and what to do."""

from __future__ import annotations


class RRMError(Exception):
    """An error a user can act on.

    Args:
        what: What was found, in one sentence.
        where: File, row, column, flag or folder it was found in.
        expected: What would have been right.
        remedy: What to do about it.
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


class DataError(RRMError):
    """Feedback that cannot be read, or that says something impossible."""


class ConfigError(RRMError):
    """A setting that does not exist or does not fit with the others."""


class ModelError(RRMError):
    """A model or tokenizer that cannot be loaded or used as asked."""


class CheckpointError(RRMError):
    """An output folder or checkpoint that is in use, foreign or broken."""


class TrainingError(RRMError):
    """Training that had to stop, for example at a loss that is not a number."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by a signal. No fault: what libraries do on Ctrl-C is right for it.

    Args:
        signum: The signal.
        checkpoint: What was saved before stopping; "" where nothing was.
    """

    def __init__(self, signum: int, checkpoint: str = "") -> None:
        super().__init__(signum, checkpoint)
        self.signum, self.checkpoint = signum, checkpoint
