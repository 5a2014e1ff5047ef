"""The feedback sets and the scorer of `rrm-lm evaluate` and `rrm-lm score`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rrm_lm.api.rows import set_labels
from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.preferences.baselines import baselines, frozen_states
from rrm_lm.evaluation.preferences.results import Evaluation
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.models.pretrained import process_state
from rrm_lm.settings.scoring import EvaluateArguments, ScoringArguments


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


def with_baselines(evaluation: Evaluation, scorer: Any, args: EvaluateArguments) -> Evaluation:
    """The evaluation with the baselines of each set.

    Raises:
        ConfigError: There are several processes.
    """
    if process_state().num_processes > 1:
        raise ConfigError("baselines are computed in one process", where="baselines", remedy="leave out the launcher")
    train = [c for name in args.baselines_train for c in load_feedback(name, **args.reading("train")).comparisons]
    probe = frozen_states(scorer)
    sets = tuple(replace(result, baselines=baselines(result, train, probe)) for result in evaluation.sets)
    return replace(evaluation, sets=sets)
