"""The feedback sets and the scorer of `rrm-lm evaluate` and `rrm-lm score`."""

from __future__ import annotations

from rrm_lm.api.rows import set_labels
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.settings.scoring import ScoringArguments


def load_sets(args: ScoringArguments) -> dict[str, Feedback]:
    """Load each named set; the keys are the shortest unique names."""
    return {label: load_feedback(name, **args.reading(args.split)) for name, label in set_labels(args.dataset).items()}


def make_scorer(args: ScoringArguments, judge_question: str = "") -> ResponseScorer:
    """Load the scorer. `judge_question` is the question to a language model that is used as a judge."""
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
        revision=args.model_revision,
        **args.tokenizing(),
        **args.loading(),
        shard=True,
        judge_question=judge_question,
    )
