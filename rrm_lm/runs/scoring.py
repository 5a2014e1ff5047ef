"""What `rrm-lm evaluate` and `rrm-lm score` share: their settings, the sets they read, and the model they load."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.limits import ReadLimits

if TYPE_CHECKING:  # importing these takes seconds, which --help need not wait for
    from rrm_lm.evaluation.preferences.scoring import Scorer
    from rrm_lm.feedback.reading.datasets import Feedback


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


def load_sets(args: ScoringArguments) -> dict[str, Feedback]:
    """Each named set, under the shortest name that tells it from the others."""
    from rrm_lm.feedback.reading.datasets import load_feedback
    from rrm_lm.settings.shared import column_map

    columns = column_map(args.columns)
    short = {name: Path(name).name.split(".")[0] if Path(name).exists() else name for name in args.dataset}
    repeated = {name for name, count in Counter(short.values()).items() if count > 1}
    return {
        (name if label in repeated or not label else label): load_feedback(
            name,
            columns=columns,
            split=args.split,
            config=args.dataset_config,
            skip_bad_rows=args.skip_bad_rows,
            limits=args,
        )
        for name, label in short.items()
    }


def make_scorer(args: ScoringArguments, judge_question: str = "") -> Scorer:
    """The model that the settings name, ready to score; a language model as a judge is asked `judge_question`."""
    from rrm_lm.evaluation.preferences.scorers import load_scorer
    from rrm_lm.settings.shared import read_template

    return load_scorer(
        str(args.model),
        title=args.model_name,
        base_model=args.base_model,
        micro_batch_tokens=args.micro_batch_tokens,
        critique_samples=args.critique_samples,
        critique_temperature=args.critique_temperature,
        seed=args.seed,
        ensemble=args.ensemble,
        ensemble_k=args.ensemble_k,
        max_length=args.max_length,
        pad_token=args.pad_token,
        chat_template=read_template(args.chat_template_path),
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.model_revision,
        trust_remote_code=args.trust_remote_code,
        shard=True,
        judge_question=judge_question,
    )
