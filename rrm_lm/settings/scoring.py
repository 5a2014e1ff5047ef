"""Settings of `rrm-lm evaluate` and `rrm-lm score`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.settings.judges import CriticArguments
from rrm_lm.settings.permissions import CodeArguments

if TYPE_CHECKING:  # importing these takes seconds, which --help need not wait for
    pass


@dataclass
class ScoringArguments(ReadLimits):
    """The model, and how it is run. Rewards do not depend on batch size, padding or the number of processes."""

    model: str | None = field(default=None, metadata={"help": "Reward model: a folder, a Hub id or an alias."})
    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Feedback to score: files, folders or Hub sets, one or more."}
    )
    split: str = field(default="test", metadata={"help": "Split of a Hub set or of a folder of files named by split."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub set."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Column names, as theirs=ours, for shapes that are not recognised."}
    )
    skip_bad_rows: bool | None = field(
        default=None,
        metadata={"help": "Count faulty rows and go on; unset: only in Hub sets, and a local file's stop the command."},
    )
    base_model: str | None = field(default=None, metadata={"help": "Backbone of an adapter, if not the recorded one."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 ...; unset: bfloat16 on GPUs."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2 ..."})
    pad_token: str | None = field(
        default=None, metadata={"help": "Token to pad with, for tokenizers where none can be found."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "File with a Jinja chat template, for tokenizers without one."}
    )
    max_length: int | None = field(
        default=2048, metadata={"help": "Longest conversation in tokens, for models that do not record it."}
    )
    micro_batch_tokens: int = field(default=4096, metadata={"help": "Most padded tokens at once; bounds the memory."})
    critique_samples: int = field(
        default=1, metadata={"help": "For models that write critiques first: how many to average over."}
    )
    critique_temperature: float = field(default=0.7, metadata={"help": "Sampling temperature of those critiques."})
    seed: int = field(default=0, metadata={"help": "Seed of those critiques."})

    ensemble: str | None = field(
        default=None,
        metadata={"help": "Reward ensembles: mean, min or mean_minus_std of the members; unset: as trained."},
    )
    ensemble_k: float | None = field(
        default=None,
        metadata={"help": "With mean_minus_std: standard deviations that are taken off; unset: as trained."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_length", "micro_batch_tokens", "critique_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", where=name, expected="at least 1")
        if self.critique_temperature < 0:
            raise ConfigError(
                f"critique_temperature is {self.critique_temperature}",
                where="critique_temperature",
                expected="0 or more",
            )

    def require(self) -> None:
        """Raise a ConfigError if there is no model, or nothing to score."""
        for name, example in (("model", "outputs/demo/reward"), ("dataset", "my_pairs.jsonl")):
            if not getattr(self, name):
                raise ConfigError(f"`{name}` is not given", where="the command line", remedy=f"pass --{name} {example}")

    @property
    def model_name(self) -> str:
        """What to call the model in results: a folder's own name, or the Hub's or the alias as it is."""
        path = Path(str(self.model)).expanduser()
        return path.resolve().name if path.is_dir() else str(self.model)


@dataclass
class EvaluateArguments(ScoringArguments, CodeArguments, CriticArguments):
    """What `rrm-lm evaluate` needs."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where the results go; unset: outputs/evaluate/ and the model's name."}
    )
    overwrite_output_dir: bool = field(default=True, metadata={"help": "Replace earlier results in output_dir."})

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        names = [str(self.model), *filter(None, [self.critic])]
        parts = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model" for name in names]
        return Path("outputs/evaluate") / "_with_".join(parts)


@dataclass
class ScoreArguments(ScoringArguments):
    """What `rrm-lm score` needs."""

    output_file: str | None = field(default=None, metadata={"help": "File for the rewards; unset: the terminal."})
