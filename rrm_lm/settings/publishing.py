"""Settings of `rrm-lm push`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rrm_lm.errors import ConfigError
from rrm_lm.options import option


@dataclass
class PushArguments:
    """What is published, and where."""

    words: list[str] = option([], "The folder of the model, and the repository on the Hub, as OWNER/NAME.")
    dry_run: bool = option(False, "Check and list the files; send nothing.")
    private: bool = option(True, "Create a private repository. An existing one keeps its visibility.")
    commit_message: str = option("Upload with rrm_lm", "Message of the commit.")

    def require(self) -> None:
        """Raise a ConfigError without a folder and a valid name of a repository."""
        if len(self.words) != 2:
            expected = "rrm-lm push OUTPUT OWNER/NAME"
            raise ConfigError(f"{len(self.words)} names are given", where="the command line", expected=expected)
        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            raise ConfigError(str(error), where=self.repo, expected="the repository as OWNER/NAME") from error
        if "/" not in self.repo:
            raise ConfigError(f"{self.repo} names no owner", where="the repository", expected=f"OWNER/{self.repo}")

    @property
    def folder(self) -> Path:
        return Path(self.words[0])

    @property
    def repo(self) -> str:
        return self.words[1]
