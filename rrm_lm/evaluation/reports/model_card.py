"""A model card with the results: a README.md with metadata for the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from rrm_lm import __version__
from rrm_lm.evaluation.preferences.results import Evaluation, SetResult
from rrm_lm.evaluation.reports.page import render, sentence
from rrm_lm.evaluation.reports.preferences import benchmark_rows
from rrm_lm.evaluation.statistics.metrics import Estimate
from rrm_lm.models.embedded import EMBEDDED

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_POLICY = ("policy", 'Policy.from_pretrained("{}").respond("Hello!")')
_REWARD_MODEL = ("reward model", 'RewardModel.from_pretrained("{}").score("Hello!", ["Hi!", "What?"])')


@dataclass(frozen=True, kw_only=True)
class Card:
    """Contents of a card in addition to the results."""

    # "adapter" (a PEFT folder), "merged" (a plain checkpoint), or "evaluated" (a third-party model)
    kind: Literal["adapter", "merged", "evaluated"]
    location: str = "."  # where to load it from: a Hub name or a folder name
    base_model: str = ""  # name of the backbone
    datasets: Sequence[str] = ()  # names of the training sets; Hub names go into the metadata
    training: Mapping[str, object] = field(default_factory=dict)  # settings to show
    # name and commit on the Hub of the data of each evaluated set, by name of the set, if known
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    leakage: str = ""  # one sentence on the leakage check
    version: str = __version__

    @property
    def embedded(self) -> bool:
        """Whether the backbone is embedded, so that PEFT cannot find it on the Hub by name."""
        return self.base_model in EMBEDDED

    @property
    def heads(self) -> int:
        """Number of outputs: one per ensemble member, unless merged."""
        return int(str(self.training.get("ensemble_heads", 1))) if self.kind == "adapter" else 1


def model_card(evaluation: Evaluation, card: Card) -> str:
    """The card as Markdown, preceded by the Hub's metadata (with its `model-index`) as YAML."""
    several = len(evaluation.sets) > 1
    explained: Any = evaluation.details.get("criteria") if card.kind == "adapter" else None
    criteria = explained[evaluation.sets[0].name] if explained else []
    title = evaluation.model.split("/")[-1] or evaluation.model
    text = render(
        "model_card.md.j2",
        evaluation=evaluation,
        card=card,
        criteria=criteria,  # each, and then the LoRA reward
        lora=Estimate(**criteria[-1]["accuracy"]) if criteria else None,
        title=title if card.kind != "evaluated" else f"Evaluation of {title}",
        verdicts=[sentence("accuracy_verdict", result, several) for result in evaluation.sets],
        benchmarks=[
            (r.name, label, estimate) for r in evaluation.sets for label, estimate in benchmark_rows(r.measures)
        ],
    )
    return f"---\n{metadata(evaluation, card).to_yaml(line_break=chr(10))}\n---\n\n{text.strip()}\n"


def metadata(evaluation: Evaluation, card: Card) -> ModelCardData:
    """The metadata of the card, without names that cannot be on the Hub (folders, files)."""
    hub_sets = [name for name in card.datasets if _on_hub(name)]
    return ModelCardData(
        model_name=evaluation.model.split("/")[-1] or evaluation.model,
        base_model=card.base_model if _on_hub(card.base_model) else None,
        datasets=hub_sets or None,
        library_name="peft" if card.kind == "adapter" else "transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "preferences", "rrm_lm"],
        eval_results=[row for result in evaluation.sets for row in _eval_results(result, card)],
    )


def plain_card(repo: str, *, is_policy: bool, is_adapter: bool, base_model: str = "", method: str = "") -> str:
    """The card of a model without an evaluation, to be loaded from `repo`."""
    data = ModelCardData(
        base_model=base_model if _on_hub(base_model) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation" if is_policy else "text-classification",
        tags=["rrm_lm", *filter(None, [method])],
    )
    kind, use = _POLICY if is_policy else _REWARD_MODEL
    base, by = (f" for `{base_model}`" if base_model else "", f" ({method})" if method else "")
    text = f"A {kind}{base}, trained with rrm_lm {__version__}{by}. No evaluation is recorded."
    code = f"```python\nimport rrm_lm\n\nrrm_lm.{use.format(repo)}\n```"
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n# {repo.split('/')[-1]}\n\n{text}\n\n{code}\n"


def _on_hub(name: str) -> bool:
    """Whether a name has the form of a Hub repository and is not a local file or folder."""
    return _HUB_NAME.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _eval_results(result: SetResult, card: Card) -> list[EvalResult]:
    m, calibration = result.measures, result.measures.calibration
    source, revision = card.sources.get(result.name, (re.sub(r"[^\w./-]+", "-", result.name).strip("-"), None))
    about = {"n_scored": result.overall.n_scored, "n_given": result.overall.n_given, "ties": m.ties}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Held-out preferences",
            dataset_type=source,
            dataset_name=result.name,
            dataset_revision=revision,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value.value if isinstance(value, Estimate) else value, 6),
            metric_args=(_interval(value) | extra if isinstance(value, Estimate) else extra) or None,
        )
        for kind, name, value, extra in (
            ("accuracy", "Accuracy", m.accuracy, about),
            ("longer_accuracy", "Accuracy of always picking the longer response", m.longer_accuracy, {}),
            ("expected_calibration_error", "Expected calibration error", calibration.ece, {}),
            ("brier_score", "Brier score", m.brier, {}),
        )
    ]


def _interval(found: Estimate) -> dict[str, object]:
    notes = f"95% interval {found.low:.3f} to {found.high:.3f}, clustered by prompt; n = {found.n}"
    return {"low": found.low, "high": found.high, "notes": notes}
