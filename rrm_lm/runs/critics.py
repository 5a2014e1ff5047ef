"""`--critic` of several commands: what may be named there, and its critiques of everything that will be judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrm_lm.errors import CheckpointError, ModelError

if TYPE_CHECKING:  # importing these takes seconds, which --help need not wait for
    from rrm_lm.feedback.asking.collection import Subject
    from rrm_lm.recursion.critics import Critic, Critiques

logger = logging.getLogger(__name__)

FILE = "critiques.jsonl"
_EXPECTED = "a reward model of rrm-lm reward that learned from critiques, or a solved helper of rrm-lm recurse"


@dataclass(frozen=True)
class NamedCritic:
    """A critic that was found, and not loaded yet.

    Attributes:
        given: As it was named.
        path: Its folder, or its name on the Hub.
        is_helper: A solved helper of a tree, not a reward model.
        allow_code: Whether the settings beside a helper may run code.
    """

    given: str
    path: str
    is_helper: bool
    allow_code: bool = False

    @property
    def name(self) -> str:
        """What to call it in results: a folder's own name, or the Hub's as it is."""
        return Path(self.path).resolve().name if Path(self.path).is_dir() else self.given

    def load(self, **loading: Any) -> Critic:
        """The critic on its own backbone.

        Args:
            loading: dtype, attn_implementation, trust_remote_code: of a reward model's backbone. A helper's is loaded
                as it was solved.

        Raises:
            ModelError: Its backbone cannot be had.
            CheckpointError: Its weights are broken, or do not fit.
        """
        if self.is_helper:
            from rrm_lm.recursion.critics import HelperCritic
            from rrm_lm.runs.recurse.solved_helper import load_helper

            return HelperCritic(load_helper(Path(self.path), allow_code=self.allow_code), self.name)
        from rrm_lm.models.pretrained import process_state
        from rrm_lm.models.reward import load_reward_model
        from rrm_lm.models.saving.adapters import fetch_adapter
        from rrm_lm.recursion.critics import AdapterCritic

        folder = fetch_adapter(self.path)
        assert folder is not None  # it was looked at
        model, chat = load_reward_model(folder, **loading)
        return AdapterCritic(model.to(process_state().device or "cpu"), chat, self.name)

    def write(self, subjects: Sequence[Subject], **loading: Any) -> Critiques:
        """What it has to say about responses. It is loaded for that, and not kept: judges need the memory.

        Args:
            subjects: Prompts, each with a response. All processes of a launch give the same ones.
            loading: See `load`.
        """
        from rrm_lm.models.pretrained import process_state
        from rrm_lm.recursion.critics import write_critiques

        written = write_critiques(self.load(**loading), subjects, progress=process_state().is_main_process)
        found = written.account()
        logger.info(
            "the critic %s: %d responses, %d different critiques, %d without one, %d cut",
            *(written.name, found["responses"], found["different"], found["empty"], found["cut"]),
        )
        return written


def find_critic(name: str, *, allow_code: bool = False) -> NamedCritic:
    """The critic that a name stands for, looked at before anything is loaded.

    Args:
        name: A folder, or a name on the Hub.
        allow_code: Whether the settings beside a helper may run code, such as a domain of one's own.

    Raises:
        ModelError: There is no such folder or model, or it is no critic.
        CheckpointError: A helper that is not solved, or whose files are broken.
        ConfigError: A helper whose tree cannot be read, or runs code that is not allowed.
    """
    from rrm_lm.models.pretrained import resolve
    from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, model_file, read_json

    path = resolve(name)
    if Path(path, "node.json").is_file():
        from rrm_lm.runs.recurse.solved_helper import check_helper

        check_helper(Path(path), allow_code=allow_code)
        return NamedCritic(name, path, is_helper=True, allow_code=allow_code)
    file = model_file(path, ADAPTER_CONFIG)
    task = None if file is None else read_json(file).get("task_type")
    if task != "SEQ_CLS":
        found = "no adapter" if file is None else f"an adapter for the task {task}"
        raise ModelError(f"This is no critic, but {found}", where=f"critic: {name}", expected=_EXPECTED)
    if model_file(path, ADAPTER_WEIGHTS) is None:
        raise CheckpointError(
            "The critic has no weights", where=f"critic: {name}", expected=ADAPTER_WEIGHTS, remedy="copy it again"
        )
    _check_learned(name, model_file(path, "config.yaml"))
    return NamedCritic(name, path, is_helper=False)


def _check_learned(name: str, settings: Path | None) -> None:
    """Refuse a reward model that, by the settings beside it, never learned to write critiques."""
    import yaml

    try:
        found = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or "critique_weight" not in found or found.get("critique_first"):
        return  # made elsewhere, or a checkpoint; or one that writes before it scores
    if not (found["critique_weight"] or found.get("critique_weight_end")):
        raise ModelError(
            "The reward model never learned to write critiques: its critique_weight was 0",
            where=f"critic: {name}",
            expected=_EXPECTED,
            remedy="train it on feedback with critiques and --critique_weight 1 --critique_view all",
        )
    if found.get("critique_view") == "reward":
        logger.warning(
            "%s learned its critiques through the reward's token alone, and writes them here with the response in "
            "sight; --critique_view all trains a better critic",
            name,
        )
