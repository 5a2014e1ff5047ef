"""`RewardModel`, which scores responses, also as an overseer, and `evaluate`, which measures how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rrm_lm.api.data.rows import Text, is_prompt, read_sets, to_prompt
from rrm_lm.api.judging import judge, with_comparisons, write_judgement
from rrm_lm.errors import DataError, ModelError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward, save_criteria
from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, RewardScorer, load_scorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, score_responses
from rrm_lm.feedback.asking.overseers import Verdict
from rrm_lm.feedback.records import Prompt

Rewards = NDArray[np.float64]


class RewardModel:
    """Scores responses; higher is better. The difference of two rewards of one prompt is a margin in nats.

    Args:
        scorer: Computes the rewards, as :meth:`from_pretrained` loads it.

    Example:
        >>> reward = RewardModel.from_pretrained("outputs/mine")
        >>> reward.score("How long does rice keep?", ["Four days.", "Rice is a grain."])
        array([ 1.93, -0.41])
    """

    def __init__(self, scorer: ResponseScorer) -> None:
        self.scorer = scorer

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> RewardModel:
        """Load a reward model onto this process's device (the GPU, if there is one).

        Args:
            name: A folder, a Hub id, or ``smollm2-135m``: the output of `rrm-lm reward` or `RewardTrainer`, its merged
                checkpoint, any PEFT ``SEQ_CLS`` adapter, any sequence classifier with one output, or a language model,
                which is used as a judge.
            options: ``dtype``, ``attn_implementation``, ``revision``, ``trust_remote_code``, ``base_model``,
                ``micro_batch_tokens``, ``max_length``, ``ensemble`` and others of
                :func:`rrm_lm.evaluation.preferences.scorers.load_scorer`.

        Raises:
            ModelError: No such model, or one that gives no rewards.
            CheckpointError: The adapter's weights are broken or do not fit its backbone.
        """
        return cls(load_scorer(str(name), **options))

    def score(
        self, prompts: Text | Sequence[Text], responses: Sequence[str] | Sequence[Sequence[str]]
    ) -> Rewards | list[Rewards]:
        """Score responses, in batches by length. Each prompt is computed once for all of its responses.

        Args:
            prompts: One prompt (text, or messages with ``role`` and ``content``), or a list of prompts.
            responses: The responses to one prompt; for a list of prompts, a list of responses per prompt.

        Returns:
            (responses,) float64 for one prompt; for a list, one array per prompt. NaN for a response without text.

        Raises:
            DataError: A prompt without a user turn, or not one list of responses per prompt.
        """
        one = is_prompt(prompts)
        asked = [to_prompt(p, f"prompt {n}") for n, p in enumerate([prompts] if one else prompts, 1)]  # type: ignore[arg-type]
        lists: Any = [responses] if one else responses
        if isinstance(responses, str) or any(isinstance(group, str) for group in lists) or len(lists) != len(asked):
            raise DataError(
                f"There are {len(asked)} prompts and {len(lists)} items of responses",
                where="responses",
                expected="a list of texts for one prompt; a list of such lists, as long as the list of prompts",
            )
        groups: dict[Prompt, dict[str, None]] = {}
        for prompt, group in zip(asked, lists, strict=True):
            groups.setdefault(prompt, {}).update(dict.fromkeys(group))
        found = score_responses(
            self.scorer,
            {p: list(texts) for p, texts in groups.items() if texts},
            across_processes=False,
            progress=False,
        )
        rewards = [
            np.array([found[prompt][text] for text in group], dtype=np.float64)
            for prompt, group in zip(asked, lists, strict=True)
        ]
        return rewards[0] if one else rewards

    def evaluate(self, data: Any, *, split: str = "test", columns: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The numbers of `results.json` on held-out comparisons; see :func:`rrm_lm.evaluate`."""
        return evaluate(self, data, split=split, columns=columns)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model in the form it was loaded from: an adapter folder or a sequence-classification checkpoint.

        Raises:
            ModelError: The model is a judge, which has no weights of its own.
        """
        folder = Path(folder)
        if isinstance(self.scorer, RewardScorer):
            self.scorer.model.save(folder, self.scorer.chat.tokenizer, trim=self.scorer.chat.trim)
            save_criteria(self.scorer.criteria, folder)
        elif isinstance(self.scorer, ClassifierScorer):
            self.scorer.model.save_pretrained(str(folder))
            self.scorer.chat.tokenizer.save_pretrained(str(folder))
        else:
            raise ModelError("A judge has no weights of its own", where=self.name, remedy="save the language model")

    @property
    def name(self) -> str:
        """The name in results."""
        return self.scorer.name

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        scorer: Any = self.scorer
        return (scorer.model if hasattr(scorer, "model") else scorer.backbone).device

    def to(self, device: str | torch.device) -> RewardModel:
        """Move the weights to a device; returns this model."""
        scorer: Any = self.scorer
        (scorer.model if hasattr(scorer, "model") else scorer.backbone).to(device)
        return self


def evaluate(
    reward: RewardModel | str | Path,
    data: Any,
    *,
    split: str = "test",
    columns: Mapping[str, str] | None = None,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a reward model on held-out comparisons: accuracy, calibration and length bias, with intervals.

    Args:
        reward: The model, or a name for :meth:`rrm_lm.RewardModel.from_pretrained`.
        data: A file, a folder or a Hub set, or a list of them; rows or records from memory; or a mapping of names to
            any of these.
        split: Which split of a Hub set, a folder or a `DatasetDict`.
        columns: Maps their column names to ours, for shapes that are not recognized.
        output_dir: Also write what `rrm-lm evaluate` writes: `results.json`, `scores.jsonl`, `report.html` ...

    Returns:
        As in `results.json`: ``{"model": name, "sets": {name: {"accuracy": {"value", "low", "high"}, ...}}}``.
        Proportions are in [0, 1]; intervals are 95% intervals.

    Raises:
        DataError: A set without comparisons, or without one that could be scored.
        ModelError: No such model.

    Example:
        >>> rrm_lm.evaluate("outputs/mine", "pairs.jsonl")["sets"]["pairs"]["accuracy"]["value"]
        0.74
    """
    model = reward if isinstance(reward, RewardModel) else RewardModel.from_pretrained(reward)
    sets = with_comparisons(read_sets(data, split=split, columns=columns))
    evaluation = judge(model.scorer, sets)
    if output_dir is not None:
        chat = getattr(model.scorer, "chat", None)
        write_judgement(evaluation, sets, Path(output_dir), chat=chat, location=model.name)
    return evaluation.to_dict()


class RewardOverseer:
    """A reward model as an overseer: what it says of unlabelled responses trains another one, which is distillation.

    It compares responses by their rewards. The strength of a verdict is the difference of the two best rewards in nats,
    so that `rrm-lm reward --grades target` learns the same probabilities. It writes no critiques.
    """

    limit = "knows what its reward model learned"

    def __init__(self, scorer: ResponseScorer, name: str) -> None:
        self.scorer, self.name = scorer, f"reward model {name}"

    @property
    def criteria(self) -> CriteriaReward | None:
        """The criteria in the reward; None for a reward model without them."""
        return getattr(self.scorer, "criteria", None)

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Prefer the response with the highest reward; equal rewards are a tie, and a response without one abstains."""
        (rewards,) = self.scorer.score([prompt], [list(responses)])
        if not all(map(math.isfinite, rewards)):
            return Verdict(None, abstained="no reward")
        best, second = sorted(map(float, rewards), reverse=True)[:2]
        return Verdict(rewards.index(best), best - second) if best > second else Verdict(None)

    def critique(self, prompt: Prompt, response: str) -> str:
        return ""
