"""A model card with the results: a README.md with metadata for the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData

from rrm_lm import __version__
from rrm_lm.evaluation.preferences.results import Evaluation, SetResult
from rrm_lm.evaluation.reports.page import render, sentence
from rrm_lm.evaluation.reports.preferences import benchmark_rows
from rrm_lm.models.embedded import EMBEDDED

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Card:
    """Contents of a card in addition to the results."""

    # "adapter" (a PEFT folder), "merged" (a plain checkpoint), or "evaluated" (a third-party model)
    kind: Literal["adapter", "merged", "evaluated"]
    location: str = "."  # where to load it from: a Hub name or a folder name
    base_model: str = ""  # name of the backbone
    datasets: Sequence[str] = ()  # names of the training sets; Hub names go into the metadata
    training: Mapping[str, object] = field(default_factory=dict)  # settings to show
    leakage: str = ""  # one sentence on the leakage check
    # license, language: metadata, if known
    license: str | None = None
    language: str | None = None
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
    title = evaluation.model.split("/")[-1] or evaluation.model
    text = render(
        "model_card.md.j2",
        evaluation=evaluation,
        card=card,
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
        license=card.license,
        language=card.language,
        library_name="peft" if card.kind == "adapter" else "transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "preferences", "rrm_lm"],
        eval_results=[row for result in evaluation.sets for row in _eval_results(result)],
    )


def _on_hub(name: str) -> bool:
    """Whether a name has the form of a Hub repository and is not a local file or folder."""
    return _HUB_NAME.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _eval_results(result: SetResult) -> list[EvalResult]:
    m = result.measures
    about = {"n_scored": result.overall.n_scored, "n_given": result.overall.n_given, "ties": m.ties}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Held-out preferences",
            dataset_type=re.sub(r"[^\w./-]+", "-", result.name).strip("-"),
            dataset_name=result.name,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
            metric_args=extra,
        )
        for kind, name, value, extra in (
            ("accuracy", "Accuracy", m.accuracy.value, {"low": m.accuracy.low, "high": m.accuracy.high, **about}),
            ("longer_accuracy", "Accuracy of always picking the longer response", m.longer_accuracy.value, None),
            ("expected_calibration_error", "Expected calibration error", m.calibration.ece, None),
            ("brier_score", "Brier score", m.brier.value, None),
        )
    ]
