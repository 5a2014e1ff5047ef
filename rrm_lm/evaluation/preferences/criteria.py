"""Criteria in a reward: their measures, weights fitted to comparisons, and their sum, which is added to the LoRA part.

With z the measures in the wanted direction, standardized over the training responses, the reward of the criteria is
``sum(weight * z)`` in nats. The weights are the maximum a posteriori of a logistic model of comparisons, with a normal
prior around the weights that the words gave; intervals are from the Hessian there (Laplace's approximation). The LoRA
part is trained as if there were no criteria. Trained on what the criteria leave to explain, it learns less from few
comparisons, and the sum is worse (scripts/bench/results/words_lora.json).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.preferences.judge import CRITERION_QUESTION, JudgeScorer
from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.feedback.criteria.records import CRITERIA_FILE, Criterion, read_criteria, write_criteria
from rrm_lm.feedback.records import Comparison, Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.losses import Grades
from rrm_lm.training.reward_functions import UserFunction
from rrm_lm.training.reward_sources import load_function

logger = logging.getLogger(__name__)

PRIOR_STD = 0.5  # of a weight around what the words gave
_SAME = 0.95  # correlation above which two criteria are reported to measure the same
_COMMENT = (
    "The criteria of this reward model, with fitted weights: the reward of each is weight * (value - mean) / scale."
)

Measured = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], list[list[float]]]
Floats = NDArray[np.float64]


class CriteriaReward:
    """The reward of criteria. `backbone` and `chat` answer the criteria that are questions. Raises ConfigError for a
    Python function without `allow_code`, or a question without a backbone.
    """

    def __init__(
        self,
        criteria: Sequence[Criterion],
        backbone: Backbone | None = None,
        chat: ChatFormat | None = None,
        *,
        allow_code: bool = False,
        permission: str = "--allow_code",
    ) -> None:
        self.criteria = list(criteria)
        self._measures: list[Measured] = []
        self._failures: dict[str, int] = {}
        for one in criteria:
            if one.function:
                if not allow_code:
                    raise ConfigError(
                        f"The criterion {one.name} runs the Python function {one.function}",
                        where=one.where or "criteria",
                        expected=f"{permission}, since a file of criteria may not run code without permission",
                        remedy=f"read the code; if you trust it, pass {permission}",
                    )
                self._measures.append(_called(UserFunction(load_function(one.function))))
            elif one.question:
                if backbone is None or chat is None:
                    raise ConfigError(
                        f"The criterion {one.name} is a question, and there is no model to ask",
                        where=one.where or "criteria",
                        remedy="choose a detector as its measure",
                    )
                asked = CRITERION_QUESTION.replace("{criterion}", one.question.replace("{", "{{").replace("}", "}}"))
                self._measures.append(JudgeScorer(backbone, chat, one.name, question=asked).score)
            else:
                self._measures.append(_detected(one.measure))

    @classmethod
    def load(cls, folder: Path, backbone: Backbone, chat: ChatFormat, *, allow_code: bool) -> CriteriaReward | None:
        """The criteria of a saved reward model; None if it has none."""
        criteria = saved_criteria(folder)
        if criteria is None:
            return None
        return cls(criteria, backbone, chat, allow_code=allow_code, permission="--trust_remote_code true")

    @property
    def asks(self) -> bool:
        return any(one.question for one in self.criteria)

    def values(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[Floats]:
        """For each prompt, (responses, criteria) values in the wanted direction; NaN where a measure failed."""
        columns = [self._column(number, prompts, responses) for number in range(len(self.criteria))]
        return [
            np.array([column[number] for column in columns], dtype=np.float64).reshape(len(columns), -1).T
            for number in range(len(prompts))
        ]

    def contributions(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[Floats]:
        """For each prompt, (responses, criteria) parts of the reward in nats. A value that is missing contributes 0."""
        weights = np.array([one.weight if one.scale else 0.0 for one in self.criteria])  # none: not fitted yet
        found = [self._standardized(values) * weights for values in self.values(prompts, responses)]
        self._report_failures()
        return found

    def parts(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[dict[str, float]]]:
        """The same by name: for each prompt and response, what each criterion adds to the reward, in nats."""
        names = [one.name for one in self.criteria]
        found = self.contributions(prompts, responses)
        return [[dict(zip(names, row, strict=True)) for row in table.tolist()] for table in found]

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt, the criteria's reward of each response."""
        return [parts.sum(1).tolist() for parts in self.contributions(prompts, responses)]

    def explain(self, comparisons: Sequence[Comparison]) -> tuple[list[dict[str, Any]], Floats]:
        """For each criterion, its weight with its interval, and by how many nats it raises the reward of the chosen
        response over that of the rejected one, on average (`lead`); and (comparisons,) margins of all criteria.
        """
        parts = self.contributions([one.prompt for one in comparisons], [[c.chosen, c.rejected] for c in comparisons])
        margins = np.array([pair[0] - pair[1] for pair in parts]).reshape(len(parts), -1)
        explained = [
            {"statement": one.statement, "weight": one.weight, "low": one.low, "high": one.high, "lead": float(lead)}
            for one, lead in zip(self.criteria, margins.mean(0), strict=True)
        ]
        return explained, margins.sum(1)

    def fit(self, comparisons: Sequence[Comparison], grades: Grades | None = None, smoothing: float = 0.0) -> None:
        """Fit means, scales, weights and their intervals to comparisons, with the loss of the LoRA part (`grades` and
        `smoothing`, see `training.reward.losses`). A criterion in which the responses do not vary is named and left
        out; two that measure the same are named. Without comparisons, the weights stay as they are.
        """
        if not comparisons:
            logger.info("there are no comparisons to fit the weights of the criteria to, which stay as they are")
            self.criteria = scaled(self.criteria)
            return
        found = self.values([one.prompt for one in comparisons], [[one.chosen, one.rejected] for one in comparisons])
        self._report_failures()
        pairs = np.stack(found)
        flat = pairs.reshape(-1, len(self.criteria))
        known = np.isfinite(flat)
        count = np.maximum(known.sum(0), 1)
        means = np.where(known, flat, 0.0).sum(0) / count
        scales = np.sqrt((np.where(known, flat - means, 0.0) ** 2).sum(0) / count)
        varies = scales > 1e-9 * np.maximum(1.0, abs(means))
        for number in np.flatnonzero(~varies):
            what = "criterion %s is left out: no two responses of the comparisons differ in it"
            logger.warning(what, self.criteria[number].name)
        kept = np.flatnonzero(varies).tolist()
        self._measures = [self._measures[number] for number in kept]
        self.criteria = [_fitted(self.criteria[number], means[number], scales[number]) for number in kept]
        if not kept:
            return
        z = np.stack([self._standardized(pair) for pair in pairs[:, :, kept]])
        self._report_same(z.reshape(-1, len(kept)))
        prior = np.array([one.weight for one in self.criteria])
        weights, deviations = fit_weights(z[:, 0] - z[:, 1], prior, labels=_labels(grades, smoothing))
        for number, (weight, deviation) in enumerate(zip(weights.tolist(), deviations.tolist(), strict=True)):
            low, high = weight - 1.96 * deviation, weight + 1.96 * deviation
            one = self.criteria[number] = replace(self.criteria[number], weight=weight, low=low, high=high)
            logger.info("  %+.2f (%+.2f to %+.2f)  %s", weight, low, high, one.statement)

    def _column(self, number: int, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """One criterion's values; a measure that raises gives NaN and is counted."""
        measure, criterion = self._measures[number], self.criteria[number]
        try:
            found = measure(prompts, responses)
        except Exception as error:  # a user's function may raise anything
            if not criterion.function:
                raise
            logger.warning("criterion %s raised %s: %s", criterion.name, type(error).__name__, error)
            found = [[math.nan] * len(group) for group in responses]
        values = [[criterion.value(float(one)) if math.isfinite(one) else math.nan for one in group] for group in found]
        failed = sum(map(math.isnan, (one for group in values for one in group)))
        if failed:
            self._failures[criterion.name] = self._failures.get(criterion.name, 0) + failed
        return values

    def _standardized(self, values: Floats) -> Floats:
        means = np.array([one.mean or 0.0 for one in self.criteria])
        scales = np.array([one.scale or math.inf for one in self.criteria])
        return np.nan_to_num((values - means) / scales, nan=0.0)

    def _report_failures(self) -> None:
        for name, count in self._failures.items():
            logger.warning("criterion %s has no value for %d responses and is left out there", name, count)
        self._failures.clear()

    def _report_same(self, z: Floats) -> None:
        for second in range(z.shape[1]):
            for first in range(second):
                if len(z) > 2 and z[:, first].std() and z[:, second].std():
                    correlation = np.corrcoef(z[:, first], z[:, second])[0, 1]
                    if abs(correlation) > _SAME:
                        names = (self.criteria[first].name, self.criteria[second].name)
                        logger.warning("criteria %s and %s measure the same (correlation %.2f)", *names, correlation)


class CriteriaScorer:
    """The rewards of a file of criteria alone, without a trained model: detectors and Python functions with the weights
    of the file. Criteria that were not fitted are scaled by typical standard deviations.
    """

    def __init__(self, path: str | Path, name: str, *, allow_code: bool = False) -> None:
        self.name = name
        self.criteria = CriteriaReward(
            scaled(read_criteria(path)), allow_code=allow_code, permission="--trust_remote_code true"
        )

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt, the rewards of its responses in nats; NaN for a response without text."""
        rewards = self.criteria.rewards(prompts, responses)
        return [
            [one if text.strip() else math.nan for one, text in zip(group, texts, strict=True)]
            for group, texts in zip(rewards, responses, strict=True)
        ]


def _fitted(criterion: Criterion, mean: float, scale: float) -> Criterion:
    try:
        return replace(criterion, mean=float(mean), scale=float(scale))
    except ConfigError as error:
        what = f"The values of {criterion.name} are too large or too small: mean {mean:g}, scale {scale:g}"
        raise ConfigError(what, where=criterion.measure, remedy="rescale what the function returns") from error


def scaled(criteria: Sequence[Criterion]) -> list[Criterion]:
    """The criteria, with a typical standard deviation as the scale of each that has not been fitted."""
    typical = {name: one.scale for name, one in DETECTORS.items()}
    if any(one.scale for one in criteria):
        for one in criteria:
            if not one.scale:
                what = "criterion %s was not fitted: its weight, %g, is for a typical standard deviation of its measure"
                logger.warning(what, one.name, one.weight)
    return [replace(one, scale=one.scale or typical.get(one.measure, 1.0)) for one in criteria]


def saved_criteria(folder: Path) -> list[Criterion] | None:
    """The criteria in the folder of a reward model, None without any; one that was added by hand has a typical scale.
    Raises ConfigError or DataError if the file is invalid.
    """
    return scaled(read_criteria(folder / CRITERIA_FILE)) if (folder / CRITERIA_FILE).is_file() else None


def save_criteria(reward: CriteriaReward | None, folder: Path) -> None:
    """Write the criteria of a reward model to its folder; without any, remove those of an earlier model."""
    if reward is None:
        (folder / CRITERIA_FILE).unlink(missing_ok=True)
    else:
        write_criteria(folder / CRITERIA_FILE, reward.criteria, _COMMENT)


class Labels(NamedTuple):
    """What is known of (pairs,) comparisons: the margin to reach, the probability that the chosen response is better,
    and a weight.
    """

    shift: Floats | float = 0.0
    target: Floats | float = 1.0
    weight: Floats | float = 1.0


_CERTAIN = Labels()


def _labels(grades: Grades | None, smoothing: float) -> Labels:
    """Graded preferences as the Bradley-Terry loss takes them (`training.reward.losses.bradley_terry`)."""
    used = grades or Grades()
    target = np.float64(1.0) if used.logit is None else expit(np.array(used.logit))
    return Labels(
        0.0 if used.shift is None else np.array(used.shift),
        target * (1 - smoothing) + (1 - target) * smoothing,
        1.0 if used.weight is None else np.array(used.weight),
    )


def fit_weights(
    differences: Floats, prior: Floats, prior_std: float = PRIOR_STD, labels: Labels = _CERTAIN
) -> tuple[Floats, Floats]:
    """The most probable weights of a logistic model of comparisons, and their standard deviations. `differences`
    (pairs, criteria): chosen minus rejected; `prior` (criteria,): the prior's means.
    """
    if not len(prior):
        return prior, prior
    precision = prior_std**-2
    weights = most_probable(differences, prior, precision, labels)
    right = expit(differences @ weights - labels.shift)
    curvature = labels.weight * right * (1 - right)
    hessian = (differences * curvature[:, None]).T @ differences + precision * np.eye(len(prior))
    return weights, np.sqrt(np.diag(np.linalg.inv(hessian)))


def most_probable(differences: Any, prior: Floats, precision: float, labels: Labels = _CERTAIN) -> Floats:
    """The weights of the largest posterior of a logistic model of comparisons; `differences` may be sparse."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins, away = differences @ weights - labels.shift, weights - prior
        losses = labels.target * np.logaddexp(0.0, -margins) + (1 - labels.target) * np.logaddexp(0.0, margins)
        slopes = labels.weight * (labels.target - expit(margins))
        value = (labels.weight * losses).sum() + 0.5 * precision * away @ away
        return float(value), precision * away - differences.T @ slopes

    return minimize(loss, prior, jac=True, method="L-BFGS-B").x


def _detected(name: str) -> Measured:
    measure = DETECTORS[name].measure

    def values(prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        asked = [next((turn.content for turn in reversed(prompt) if turn.role == "user"), "") for prompt in prompts]
        return [[measure(one, text) for one in group] for text, group in zip(asked, responses, strict=True)]

    return values


def _called(function: UserFunction) -> Measured:
    def values(prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        flat = [(prompt, one) for prompt, group in zip(prompts, responses, strict=True) for one in group]
        if not flat:
            return [[] for _ in responses]
        found = function([prompt for prompt, _ in flat], [one for _, one in flat], [[]] * len(flat))
        numbers = iter([math.nan if one is None else float(one) for one in found])
        return [[next(numbers) for _ in group] for group in responses]

    return values
