"""A model card with the numbers: a README.md that the Hugging Face Hub understands, and that a person can read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData

from rrm_lm import __version__
from rrm_lm.evaluation.preferences.results import Evaluation
from rrm_lm.evaluation.reports.page import render, sentence
from rrm_lm.evaluation.reports.preferences import benchmark_rows
from rrm_lm.models.embedded import EMBEDDED

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says in addition to the numbers.

    Attributes:
        kind: A PEFT "adapter" folder, a "merged" plain checkpoint, or someone else's model that was only "evaluated".
        location: Where it is loaded from: a Hub name, or the name of the folder.
        base_model: Name of the backbone.
        datasets: Names of the training sets; Hub names go into the metadata.
        training: Settings to show.
        leakage: One sentence on the leakage check.
        license, language: For the metadata, if known.
    """

    kind: Literal["adapter", "merged", "evaluated"]
    location: str = "."
    base_model: str = ""
    datasets: Sequence[str] = ()
    training: Mapping[str, object] = field(default_factory=dict)
    leakage: str = ""
    license: str | None = None
    language: str | None = None
    version: str = __version__

    @property
    def embedded(self) -> bool:
        """Whether PEFT cannot find the backbone by its name because it is not on the Hub."""
        return self.base_model in EMBEDDED

    @property
    def heads(self) -> int:
        """Number of outputs: one for each member of an ensemble, unless it is merged."""
        return int(str(self.training.get("ensemble_heads", 1))) if self.kind == "adapter" else 1


def model_card(evaluation: Evaluation, card: Card) -> str:
    """The card as Markdown, with the Hub's metadata (and its `model-index`) as YAML in front."""
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
        eval_results=_eval_results(evaluation),
    )


def _on_hub(name: str) -> bool:
    """Whether a name can be a repository on the Hub: of that form, and not a file or folder here."""
    return _HUB_NAME.fullmatch(name) is not None and not name.startswith(".") and not Path(name).exists()


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    rows = []
    for result in evaluation.sets:
        m = result.measures
        about = {"n_scored": result.overall.n_scored, "n_given": result.overall.n_given, "ties": m.ties}
        for kind, name, value, extra in (
            ("accuracy", "Accuracy", m.accuracy.value, {"low": m.accuracy.low, "high": m.accuracy.high, **about}),
            ("longer_accuracy", "Accuracy of always picking the longer response", m.longer_accuracy.value, None),
            ("expected_calibration_error", "Expected calibration error", m.calibration.ece, None),
            ("brier_score", "Brier score", m.brier.value, None),
        ):
            rows.append(
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
            )
    return rows
