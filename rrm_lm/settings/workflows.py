"""Settings of commands that run other steps, `rrm-lm run` and `recurse`, and of `rrm-lm push`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rrm_lm.errors import ConfigError
from rrm_lm.options import check_minimum, option
from rrm_lm.settings.permissions import CodeArguments


@dataclass
class PipelineArguments(CodeArguments):
    """The stages, and where everything goes."""

    output_dir: str = option("outputs/run", "Folder for everything: a folder per stage, and report.html.")
    rounds: int = option(1, "Each further round collects feedback on the policy's answers and trains both again.")
    reward_first: dict | None = option(
        None, "Settings of an earlier `rrm-lm reward`, on the clearest comparisons; `reward` continues its model."
    )
    reward: dict | None = option(None, "Settings of `rrm-lm reward` (a section of the file).")
    sft: dict | None = option(None, "Settings of `rrm-lm sft` (section); without it, this stage is left out.")
    policy: dict | None = option(None, "Settings of `rrm-lm policy` (section).")
    collect: dict | None = option(None, "Settings of `rrm-lm collect` (section); needed for more than one round.")
    compare: dict | None = option(None, "Settings of `rrm-lm compare` (section); without it, this stage is left out.")

    def __post_init__(self) -> None:
        check_minimum(self, rounds=1)
        if self.rounds > 1 and self.collect is None:
            raise ConfigError(
                f"{self.rounds} rounds need new feedback, and there is no section `collect`",
                where="rounds",
                remedy="add a section `collect` with an overseer; see rrm-lm collect --help",
            )


@dataclass
class RecurseArguments(CodeArguments):
    """The tree of tasks, and where everything goes."""

    domain: str = option("chip", "What the tasks are about: chip, messages, or your own as file.py:ClassName.")
    tree: dict | None = option(None, "The nodes (section of the file): by name, task, helpers and training settings.")
    root: str = option("", "Node to solve last. Unset: the node that helps no other.")
    output_dir: str = option("outputs/recurse", "Folder for everything: a folder per node, and report.html.")
    processes: int = option(1, "Independent helpers to solve at once, each in a process with its own backbone.")
    node: str = option("", "Solve only this node and its helpers, and write no report.")
    max_length: int = option(320, "Longest prompt plus response in tokens.")
    micro_batch_tokens: int = option(2048, "Most padded tokens per forward pass; bounds the memory.")
    seed: int = option(0, "Seed of initial weights, prompts, drafts and the overseer's noise.")
    show_progress: bool = option(True, "Show a progress bar for each training.")

    def __post_init__(self) -> None:
        check_minimum(self, processes=1, max_length=1, micro_batch_tokens=1, seed=0)


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
