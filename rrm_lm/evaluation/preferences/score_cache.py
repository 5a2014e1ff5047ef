"""Rewards that are kept on disk, so that a model is loaded only for responses that it has not scored yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.embedded import cache_home
from rrm_lm.models.ensemble import EnsembleReward
from rrm_lm.storage import write_text


class CachedScorer:
    """A `ResponseScorer` that loads its model when a response has no reward in the cache. For one process.

    `key` identifies the model's weights and all settings that rewards depend on.
    """

    def __init__(self, name: str, key: object, load: Callable[[], ResponseScorer]) -> None:
        self.name, self.load = name, load
        self.file = cache_home() / "scores" / f"{_digest(key)}.json"
        self.known: dict[str, list[float]] = {}
        with suppress(OSError, ValueError):  # there is none, or it is broken
            self.known = json.loads(self.file.read_text(encoding="utf-8"))

    @cached_property
    def scorer(self) -> Any:
        return self.load()

    @property
    def is_loaded(self) -> bool:
        return "scorer" in vars(self)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        keys = [[_digest((repr(p), r)) for r in group] for p, group in zip(prompts, responses, strict=True)]
        if any(key not in self.known for group in keys for key in group):
            for group, rewards in zip(keys, self.scorer.score(prompts, responses), strict=True):
                for key, reward in zip(group, rewards, strict=True):
                    self.known[key] = [reward, reward.std] if isinstance(reward, EnsembleReward) else [reward]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps(self.known))  # unlike JSON proper, this keeps NaN
        known = ([self.known[key] for key in group] for group in keys)
        return [[EnsembleReward(*one) if len(one) > 1 else one[0] for one in group] for group in known]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
