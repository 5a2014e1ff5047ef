"""Rewards of `rrm-lm policy`: reward models, Python functions, and the gold reward."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_lm.errors import DataError, ModelError
from rrm_lm.evaluation.policies.gold import RewardFunction, rewards_by
from rrm_lm.evaluation.policies.results import GOLD
from rrm_lm.evaluation.preferences.criteria import CriteriaReward, saved_criteria
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import resolve
from rrm_lm.models.reward import SETTINGS_FILE, RewardModel
from rrm_lm.models.reward_files import put_reward
from rrm_lm.models.saving.adapters import fetch_adapter, has_template
from rrm_lm.models.together import loading_together
from rrm_lm.settings.training import MonitorArguments, RewardArguments
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward_sources import RewardSource, RewardSum, ScorerReward, WithCriteria

logger = logging.getLogger(__name__)

Load = Callable[..., Any]  # loads a scorer by name, with the options of `load_scorer`


class Rewards:
    """All rewards, in the order of the settings.

    Args:
        args: The settings.
        backbone: The policy's backbone. The first reward model that was trained on the same backbone shares it.
        chat: The chat format that responses are sampled in.
        load: Loads a reward model on its own backbone.
        functions: The functions of the settings, by name.
        more: Sources that are already loaded; they follow those of the settings.

    Attributes:
        own: The reward model on the policy's backbone, or None.
        criteria: What this model adds to the rewards that it reads from tokens, or None.
    """

    def __init__(
        self,
        args: RewardArguments,
        backbone: Backbone,
        chat: ChatFormat,
        load: Load,
        functions: Mapping[str, RewardSource],
        more: Sequence[RewardSource] = (),
    ) -> None:
        labels = short_names([*args.reward_model, *args.reward_function])
        self.own: RewardModel | None = None
        self.criteria: CriteriaReward | None = None
        self._loaded: list[ScorerReward] = []
        self._by_name: dict[str, RewardSource | None] = {}  # None for `own`
        for name in args.reward_model:
            own, criteria = _on_backbone(args, backbone, chat, name) if self.own is None else (None, None)
            if own is None:
                loaded = ScorerReward(load(name, ensemble=args.ensemble, ensemble_k=args.ensemble_k))
                self._by_name[labels[name]] = loaded
                self._loaded.append(loaded)
            else:
                self.own, self.criteria, self._by_name[labels[name]] = own, criteria, None
        self._by_name |= {labels[name]: functions[name] for name in args.reward_function}
        for source in more:
            free = (source.name, *(f"{source.name}_{number}" for number in range(2, len(more) + len(labels) + 2)))
            self._by_name[next(name for name in free if name not in self._by_name)] = source

    def shard(self, accelerator: Any) -> None:
        """Shard the reward models on backbones of their own as the policy's trainer shards. Called by all processes."""
        for source in self._loaded:
            source.shard(accelerator)

    def others(self) -> list[RewardSource]:
        """The sources without that of ``own``, with names that differ from its name."""
        found = [source for source in self._by_name.values() if source is not None]
        for number, source in enumerate(found):
            source.name = f"reward {number}"
        return found

    def sum(self, own: Any, weights: Sequence[float] | None) -> RewardSum:
        """The weighted sum of all rewards, by their names and in the order of the settings. `own` is the source of the
        reward on the policy's backbone. For `weights` see :class:`RewardSum`.
        """
        own = own if self.criteria is None else WithCriteria(own, self.criteria.rewards)
        sources: list[Any] = [source or own for source in self._by_name.values()]
        for name, source in zip(self._by_name, sources, strict=True):
            source.name = name
        return RewardSum(sources, weights)


def _on_backbone(
    args: RewardArguments, backbone: Backbone, chat: ChatFormat, name: str
) -> tuple[RewardModel | None, CriteriaReward | None]:
    """Load a reward model onto the policy's backbone, and its criteria; None if another program saved it, its backbone
    differs, or its criteria need more than the text. Raises CheckpointError if its weights are missing or broken.
    """
    folder = fetch_adapter(resolve(name))
    if folder is None or not (folder / SETTINGS_FILE).is_file():
        return None, None
    criteria = _of_text(folder)
    options = {"ensemble": args.ensemble, "ensemble_k": args.ensemble_k}
    try:
        reward = put_reward(backbone, folder, chat=chat, adds_criteria=criteria is not None, **options)
    except ModelError as error:
        logger.info("%s gets its own backbone: %s", name, error.what)
        return None, None
    logger.info("%s: a reward model, on the policy's own backbone", name)
    return reward, criteria


def _of_text(folder: Path) -> CriteriaReward | None:
    """The criteria of a reward model, if it has any and all are measured by detectors; the others need its own backbone
    or a permission.
    """
    criteria = saved_criteria(folder)
    if criteria is None or any(one.question or one.function for one in criteria):
        return None
    return CriteriaReward(criteria)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest unique ending of each name: the last part of a path, or the name of a function."""
    parts = {name: [part for part in name.replace(".py:", "/").replace(":", "/").split("/") if part] for name in names}
    found = {}
    for name, own in parts.items():
        others = [other for other in parts if other != name]
        count = next((n for n in range(1, len(own)) if all(parts[o][-n:] != own[-n:] for o in others)), len(own))
        found[name] = "/".join(own[-count:]) if count < len(own) else name
    return found


# -- the reward that is not optimized -------------------------------------------------------------------------------


def gold_reward(args: MonitorArguments, load: Load, gold: RewardFunction | None) -> tuple[str, RewardFunction]:
    """Name and function of the reward that monitors training; without one, the function returns NaN. Raises
    ConfigError, DataError or ModelError if the reward cannot be loaded.
    """
    if gold is not None:
        return GOLD, _never_silent(gold, f"gold: {args.gold}" if args.gold else "gold")
    if args.monitor_reward_model is not None:
        name = args.monitor_reward_model
        return short_names([name])[name], _never_silent(rewards_by(load(name)), f"monitor_reward_model: {name}")
    return GOLD, lambda prompts, responses: [math.nan] * len(responses)


def refuse_unscored(rewards: Iterable[float], where: str) -> None:
    """Raise a DataError if no response got a reward."""
    if not any(map(math.isfinite, rewards)):
        raise DataError(
            "No response got a reward",
            where=where,
            expected="finite rewards; a simulated user knows only its own requests",
            remedy="name the file of requests that the prompts were taken from, or leave this reward out",
        )


def _never_silent(function: RewardFunction, where: str) -> RewardFunction:
    """The same function; it raises an error if it scores none of the responses."""

    def rewards(prompts: Sequence[Prompt], responses: Sequence[str], *ids: Any) -> Sequence[float]:
        values = function(prompts, responses, *ids)
        refuse_unscored(values, where)
        return values

    rewards.__dict__["reads_ids"] = getattr(function, "reads_ids", False)
    return rewards


def scorer_loader(loading: dict[str, Any], *, micro_batch_tokens: int, seed: int, chat_template: str | None) -> Load:
    """A function that loads reward models on their own backbones. `seed` is for critiques that some models write before
    they score, and `chat_template` for tokenizers without one.
    """
    options = {key: loading[key] for key in ("dtype", "attn_implementation", "trust_remote_code")}

    @loading_together()
    def load(name: str, **more: Any) -> ResponseScorer:
        is_file = Path(name).is_file()  # of criteria, which read text
        own = chat_template is None or is_file or has_template(name, bool(loading["trust_remote_code"]))
        texts = {"chat_template": None if own else chat_template}
        return load_scorer(name, micro_batch_tokens=micro_batch_tokens, seed=seed, **texts, **options, **more)

    return load
