"""The served models: adapters on one backbone where possible, each with its name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_lm.api.asks import check_scorer
from rrm_lm.api.policy.rewards import short_names
from rrm_lm.api.resuming import fingerprint
from rrm_lm.errors import ModelError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward
from rrm_lm.evaluation.preferences.scorers import RewardScorer, load_scorer, within_context
from rrm_lm.models.pretrained import resolve
from rrm_lm.models.reward import SETTINGS_FILE
from rrm_lm.models.reward_files import put_reward
from rrm_lm.models.saving.adapters import fetch_adapter
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.settings.serving import ServeArguments
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)


class Served:
    """A model that is served under a name. `location` is the folder or Hub id that it was loaded from."""

    def __init__(self, name: str, location: str, scorer: Any) -> None:
        check_scorer(scorer, location)
        self.name, self.location, self.scorer = name, location, scorer
        self.chat: ChatFormat = scorer.chat
        folder = Path(location)
        self.digest = fingerprint(folder) if folder.is_dir() else ""
        # Clients of other servers name a model by the path that they were given.
        whole = str(folder.resolve()) if folder.is_dir() else location
        self.names = {name, location.rstrip("/"), whole, *(f"{one.rstrip('/')}/merged" for one in (location, whole))}


def load_models(args: ServeArguments) -> dict[str, Served]:
    """Load all models, by their names. Raises ModelError, CheckpointError: as `rrm-lm score` does."""
    options = {
        "base_model": args.base_model, "micro_batch_tokens": args.micro_batch_tokens, "max_length": args.max_length,
        "ensemble": args.ensemble, "ensemble_k": args.ensemble_k, "revision": args.model_revision,
    }  # fmt: skip
    served: list[Served] = []
    for location, name in short_names(args.model).items():
        scorer = _on_backbone(args, served, location)
        if scorer is None:
            logger.info("%s gets a backbone of its own", location)
            scorer = load_scorer(location, title=name, **options, **args.tokenizing(), **args.loading())
        served.append(Served(name, location, scorer))
    return {one.name: one for one in served}


def _on_backbone(args: ServeArguments, served: Sequence[Served], location: str) -> RewardScorer | None:
    """A reward model on the backbone of a served one; None if another program saved it or its backbone differs."""
    folder = fetch_adapter(resolve(location, args.model_revision), args.model_revision)
    if folder is None or not (folder / SETTINGS_FILE).is_file():
        return None
    for other in served:
        if not isinstance(other.scorer, RewardScorer):
            continue
        adapter = f"reward{len(served)}"
        try:
            combining = {"ensemble": args.ensemble, "ensemble_k": args.ensemble_k}
            backbone = other.scorer.model.backbone
            model = put_reward(backbone, folder, adapter=adapter, adds_criteria=True, **combining)
        except ModelError as error:
            logger.debug("%s is not put on the backbone of %s: %s", location, other.name, error.what)
            continue
        settings, config = model.settings, model.backbone.config
        tokenizer = load_tokenizer(str(folder), chat_date=args.chat_date or settings.chat_date)
        chat = ChatFormat(tokenizer, settings.max_length or within_context(args.max_length, config))
        logger.info("%s: on the backbone of %s", location, other.name)
        criteria = CriteriaReward.load(folder, model.backbone, chat, allow_code=args.trust_remote_code)
        budget = args.micro_batch_tokens
        return RewardScorer(model.eval(), chat, location, micro_batch_tokens=budget, criteria=criteria)
    return None


def find(models: Mapping[str, Served], name: str | None, *, anything: Sequence[str] = ()) -> Served:
    """The model that a request names; without a name, or one of the placeholders `anything`, the only one.

    Raises:
        ModelError: There is no such model, or no name and several models.
    """
    if name is None or name in anything:
        if len(models) == 1:
            return next(iter(models.values()))
        raise ModelError(
            "The request names no model, and several are served",
            expected=f"one of {', '.join(models)}, also in the URL: ?model=NAME",
        )
    found = next((one for one in models.values() if name.rstrip("/") in one.names), None)
    if found is None:
        raise ModelError(f"There is no model {name!r}", where="model", expected=f"one of {', '.join(models)}")
    return found
