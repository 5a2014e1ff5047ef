"""Settings of `rrm_lm.RewardTrainer`: those of `rrm-lm reward`, in one dataclass."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.settings.data import FeedbackSplit
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardRunArguments
from rrm_lm.training.reward.config import RewardConfig as _TrainingConfig

# TRL's names in `model_init_kwargs` to the names of our settings.
_INIT_KWARGS = {
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "revision": "model_revision",
    "trust_remote_code": "trust_remote_code",
}


@dataclass
class RewardConfig(FeedbackSplit, ModelArguments, RewardRunArguments, _TrainingConfig):
    """How a reward model is trained: every setting of `rrm-lm reward`, and all of Hugging Face's `TrainingArguments`.

    ``rrm-lm reward --help_all`` describes each. Lengths are in tokens. A value outside its range is a ConfigError.

    Example:
        >>> RewardConfig(output_dir="outputs/rm", learning_rate=5e-4, max_length=384, eval_fraction=0.2)
    """

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "TRL's name for dtype, attn_implementation, revision and trust_remote_code together."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        RewardRunArguments.__post_init__(self)
        _TrainingConfig.__post_init__(self)
        given = self.model_init_kwargs or {}
        for name, value in (json.loads(given) if isinstance(given, str) else given).items():
            if name not in _INIT_KWARGS:
                raise ConfigError(
                    f"{name!r} cannot be set here",
                    where="model_init_kwargs",
                    expected="one of " + ", ".join(_INIT_KWARGS),
                    remedy="load the model yourself, and pass it as `model`",
                )
            setattr(self, _INIT_KWARGS[name], str(value).removeprefix("torch.") if "dtype" in name else value)
        self.model_init_kwargs = None
