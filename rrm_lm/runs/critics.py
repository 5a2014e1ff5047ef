"""`--critic` of several commands: find the critic, and write critiques of the responses to be judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.feedback.asking.collection import Subject
from rrm_lm.models.pretrained import process_state, resolve
from rrm_lm.models.reward_files import load_reward_model
from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, fetch_adapter, model_file, read_json
from rrm_lm.recursion.critics import AdapterCritic, Critic, Critiques, HelperCritic, write_critiques

logger = logging.getLogger(__name__)

CRITIQUES_FILE = "critiques.jsonl"
_EXPECTED = "a reward model that rrm-lm reward trained on critiques, or a solved helper of rrm-lm recurse"


@dataclass(frozen=True)
class CriticSource:
    """A critic that was found but is not loaded yet."""

    name: str  # its name in results: the name of its folder, or its Hub id
    path: str  # its folder, or its name on the Hub
    is_helper: bool  # whether it is a solved helper of a tree; otherwise it is a reward model
    allow_code: bool = False  # whether the settings saved with a helper may run code

    def load(self, **loading: Any) -> Critic:
        """Load the critic on its own backbone.

        `loading` has dtype, attn_implementation and trust_remote_code of a reward model's backbone; a helper's is as
        in its training. Raises ModelError: the backbone is not available; CheckpointError: the weights do not fit.
        """
        if self.is_helper:
            from rrm_lm.runs.recurse import load_helper  # imports all of recursion's training

            return HelperCritic(load_helper(Path(self.path), allow_code=self.allow_code), self.name)
        folder = fetch_adapter(self.path)
        assert folder is not None  # `find_critic` found an adapter
        model, chat = load_reward_model(folder, **loading)
        return AdapterCritic(model.to(process_state().device or "cpu"), chat, self.name)

    def write(self, subjects: Sequence[Subject], **loading: Any) -> Critiques:
        """Write critiques of responses. The critic is loaded and then freed, because judges need the memory."""
        critiques = write_critiques(self.load(**loading), subjects, progress=process_state().is_main_process)
        account = critiques.account()
        logger.info(
            "the critic %s: %d responses, %d different critiques, %d without one, %d cut",
            *(critiques.name, account["responses"], account["different"], account["empty"], account["cut"]),
        )
        return critiques


def find_critic(name: str, *, allow_code: bool = False) -> CriticSource:
    """Find the critic of that name and check its files, without loading weights.

    `allow_code`: whether the settings saved with a helper may run code, such as a custom domain. Raises ModelError:
    there is no such folder or model, or it is not a critic; CheckpointError: the helper is not solved, or its files are
    broken; ConfigError: the helper's tree cannot be read, or runs code that is not allowed.
    """
    path = resolve(name)
    title = Path(path).resolve().name if Path(path).is_dir() else name
    if Path(path, "node.json").is_file():
        from rrm_lm.runs.recurse import check_helper

        check_helper(Path(path), allow_code=allow_code)
        return CriticSource(title, path, is_helper=True, allow_code=allow_code)
    config = model_file(path, ADAPTER_CONFIG)
    task = None if config is None else read_json(config).get("task_type")
    if task != "SEQ_CLS":
        found = "it has no adapter" if config is None else f"its adapter is for the task {task}"
        raise ModelError(f"This is not a critic: {found}", where=f"critic: {name}", expected=_EXPECTED)
    if model_file(path, ADAPTER_WEIGHTS) is None:
        raise CheckpointError(
            "The critic has no weights", where=f"critic: {name}", expected=ADAPTER_WEIGHTS, remedy="copy it again"
        )
    _check_trained_on_critiques(name, model_file(path, "config.yaml"))
    return CriticSource(title, path, is_helper=False)


def _check_trained_on_critiques(name: str, file: Path | None) -> None:
    """Reject a reward model whose saved settings show that it was never trained to write critiques."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict) or "critique_weight" not in settings or settings.get("critique_first"):
        return  # from another program, or a bare checkpoint, or a model that writes critiques before it scores
    if not (settings["critique_weight"] or settings.get("critique_weight_end")):
        what = "The reward model was never trained to write critiques: its critique_weight was 0"
        remedy = "train it on feedback with critiques and --critique_weight 1 --critique_view all"
        raise ModelError(what, where=f"critic: {name}", expected=_EXPECTED, remedy=remedy)
    if settings.get("critique_view") == "reward":
        logger.warning(
            "%s was trained to write critiques from the reward token alone, but here it also sees the response; "
            "--critique_view all trains a better critic",
            name,
        )
