"""Sources of a policy's rewards: what they are, how they are called, and how their results are checked.

A source reads the text of a response, or its tokens exactly as sampled. Several sources are summed with weights, and
each is logged separately. If a source fails, training stops and the error quotes the text, because training on wrong
rewards is worse than not training. A new kind of source is connected in `api/policy/rewards.py` (commands) and
`api/policy/trainer.py` (Python).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from peft import PeftModel

from rrm_lm.errors import ConfigError, ModelError, RRMError, TrainingError
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import evaluating
from rrm_lm.models.ensemble import EnsembleReward, with_added
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.sharding import shard_for_use
from rrm_lm.text.batching import collate, length_groups, row_groups, share
from rrm_lm.text.chat import Line
from rrm_lm.training.reward_functions import FORM, PromptRows, UserFunction

logger = logging.getLogger(__name__)

_SHOWN = 200  # maximum characters of text in an error message
_RESUME = "fix the reward for this response, and resume with --resume_from_checkpoint true"


class RewardSource(Protocol):
    """Computes rewards from the text of responses."""

    name: str  # in logs

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        """(responses) rewards; there is one prompt per response."""
        ...


@runtime_checkable
class TokenRewardSource(Protocol):
    """Computes rewards from tokens as sampled."""

    name: str

    def score_lines(self, lines: Sequence[Line]) -> Sequence[float]:
        """(lines) rewards, each read at the line's ``reward_at``."""
        ...


# -- sources ----------------------------------------------------------------------------------------------------------


class PythonReward(UserFunction):
    """A Python function, which may be given by its location: ``module:function`` or ``path/to/file.py:function``.
    Raises ConfigError if the function does not exist, or it is not clear how to call it.
    """

    def __init__(
        self, function: str | Callable[..., Any], name: str | None = None, rows: PromptRows | None = None
    ) -> None:
        function = load_function(function) if isinstance(function, str) else function
        self.name = name or getattr(function, "__name__", "function")
        super().__init__(function, rows)

    def try_on(self, prompts: Sequence[Prompt]) -> None:
        """Call it with made-up responses to the first prompts. Raises ConfigError if the result cannot be used."""
        some, texts = [prompts[number % min(2, len(prompts))] for number in range(3)], ["Yes.", "No.", "Perhaps."]
        try:
            _checked(self.name, self(some, texts, [[0]] * 3), some, texts)
        except Exception as error:  # user code may raise anything
            what = error.what if isinstance(error, RRMError) else f"It raised {type(error).__name__}: {error}"
            what = f"The reward function {self.name} fails on a trial call before training. {what}"
            raise ConfigError(what, expected=FORM, remedy="correct the function") from error


class ScorerReward:
    """A scorer with its own chat format (:mod:`rrm_lm.evaluation.preferences.scorers`): a reward model on its own
    backbone, a sequence classifier, or a judge.

    A response without text has no tokens to score. It gets the lowest reward of its batch (0 if there is none).
    """

    def __init__(self, scorer: Any, name: str | None = None) -> None:
        self._scorer = scorer
        self.name = name or Path(scorer.name).name
        self._has_warned = False
        self.is_sharded = False

    def shard(self, accelerator: Any) -> None:
        """Shard a reward model on its own backbone, if this launch shards models; all processes then score together."""
        model, criteria = getattr(self._scorer, "model", None), getattr(self._scorer, "criteria", None)
        if isinstance(model, RewardModel) and not (criteria is not None and criteria.asks):
            _ = model.backbone.can_share  # test it before the model is sharded
            self.is_sharded = shard_for_use(model, accelerator)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        groups: dict[Prompt, list[int]] = {}  # grouped, so that each prompt is computed once
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if response.strip():
                groups.setdefault(prompt, []).append(number)
        asked = [[responses[i] for i in group] for group in groups.values()]
        scored = self._scorer.score(list(groups), asked) if groups or self.is_sharded else []
        found = [reward for rewards in scored for reward in rewards]
        rewards = dict(zip((i for group in groups.values() for i in group), found, strict=True))
        if len(rewards) < len(responses) and not self._has_warned:
            self._has_warned = True
            logger.warning("%s: a response without text gets the lowest reward of its batch", self.name)
        lowest = min((reward for reward in found if math.isfinite(reward)), default=0.0)
        return [rewards.get(number, lowest) for number in range(len(responses))]


class ClassifierOnTokens:
    """A sequence-classification model that reads the policy's tokens, like the reward model of TRL's PPO.
    `micro_batch_tokens` is the maximum of padded tokens at once; rewards do not depend on it. Raises ModelError if the
    model has no ``score`` head with one output.
    """

    def __init__(self, model: Any, name: str = "reward_model", micro_batch_tokens: int = 4096) -> None:
        model = model.get_base_model() if isinstance(model, PeftModel) else model  # its layers keep the adapters
        body = getattr(model, getattr(model, "base_model_prefix", ""), None)
        if body is None or getattr(model, "score", None) is None or model.config.num_labels != 1:
            raise ModelError(
                "The reward model is not a sequence classifier with a `score` head of one output",
                where=f"reward_model, a {type(model).__name__}",
                expected="AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)",
                remedy="pass such a model; other rewards go into `rewards`, as sources "
                "(rrm_lm.training.reward_sources)",
            )
        self.model, self.name, self.micro_batch_tokens = model.eval(), name, micro_batch_tokens

    @torch.no_grad()
    def score_lines(self, lines: Sequence[Line]) -> list[float]:
        rewards = [0.0] * len(lines)
        device = next(self.model.parameters()).device
        for group in length_groups([len(line.ids) for line in lines], self.micro_batch_tokens):
            batch = collate([share([lines[i].ids]) for i in group], pad_id=0).to(device)
            hidden = getattr(self.model, self.model.base_model_prefix)(
                input_ids=batch.input_ids,
                attention_mask=batch.is_real.long(),
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
            ends = torch.stack([hidden[row, lines[i].reward_at] for row, i in enumerate(group)])
            for i, reward in zip(group, self.model.score(ends).squeeze(-1).float().tolist(), strict=True):
                rewards[i] = reward
        return rewards


class AdapterReward:
    """A reward adapter on the policy's backbone that reads the policy's tokens.

    For trainers other than :class:`rrm_lm.training.ppo.trainer.PPOTrainer`, which calls an agent's own reward. The
    model comes from :func:`rrm_lm.models.reward_files.put_reward`. `micro_batch_tokens` is the maximum of padded tokens
    at once; rewards do not depend on it.
    """

    def __init__(self, model: RewardModel, name: str = "reward", micro_batch_tokens: int = 4096) -> None:
        self.model, self.name, self.micro_batch_tokens = model, name, micro_batch_tokens

    @torch.no_grad()
    def score_lines(self, lines: Sequence[Line]) -> list[float]:
        backbone = self.model.backbone
        by_prompt: dict[tuple[int, ...], list[int]] = {}  # responses to one prompt share its computation
        for number, line in enumerate(lines):
            by_prompt.setdefault(line.ids[: line.response_start], []).append(number)
        families = list(by_prompt.values())
        rows = [backbone.rows([lines[number].ids for number in family]) for family in families]
        found: dict[int, list[float]] = {}
        with evaluating(self.model):
            for group in row_groups(rows, self.micro_batch_tokens):
                numbers = [number for i in group for number in families[i]]
                batch = collate([row for i in group for row in rows[i]], backbone.pad_id).to(backbone.device)
                output = self.model(batch, [lines[number] for number in numbers], with_critiques=False)
                found |= zip(numbers, output.members.float().tolist(), strict=True)
        return self.model.settings.combination.rewards([found[number] for number in range(len(lines))])


class WithCriteria:
    """A reward that reads tokens, and the rewards of criteria of the same model, which read the text: for each prompt,
    those of its responses. A response without text gets the lowest reward of its batch.
    """

    def __init__(self, source: TokenRewardSource, criteria: Callable[..., Sequence[Sequence[float]]]) -> None:
        self.source, self.name, self._criteria = source, source.name, criteria

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], lines: Sequence[Line]) -> list[float]:
        """(responses) sums; there is one prompt and one line per response."""
        added = self._criteria(prompts, [[response] for response in responses])
        found = [
            with_added(reward, part) for reward, (part,) in zip(self.source.score_lines(lines), added, strict=True)
        ]
        lowest = min(found, default=0.0)
        return [reward if response.strip() else lowest for reward, response in zip(found, responses, strict=True)]


class RewardSum:
    """A weighted sum of sources. The sources have distinct names; the weights are 1 by default. With `is_part` there
    are more sources elsewhere, so none of these needs to apply to a response. Raises ConfigError for no source,
    duplicate names, or another number of weights.
    """

    def __init__(
        self,
        sources: Sequence[RewardSource | TokenRewardSource | WithCriteria],
        weights: Sequence[float] | None = None,
        is_part: bool = False,
    ) -> None:
        if not sources:
            expected = "a reward model, a sequence classifier or a Python function"
            raise ConfigError("There is no reward to train on", expected=expected, remedy="pass one or more rewards")
        names = [source.name for source in sources]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"Two rewards are called {twice[0]!r}", remedy="give them different names")
        self.weights = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(sources):
            what = f"There are {len(self.weights)} weights for {len(sources)} rewards"
            raise ConfigError(what, where="reward_weights", expected="one weight for each of " + ", ".join(names))
        self.sources, self._is_part = list(sources), is_part
        self._constant: set[str] = set()

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], lines: Sequence[Line]
    ) -> dict[str, list[float]]:
        """Compute the rewards of responses, by name of the source; NaN where a function returned None. Raises
        TrainingError if a source raised, or did not return one finite number or None per response, or all returned None
        for one. The message quotes the text.
        """
        found = {}
        for source in self.sources:
            values: Sequence[float]
            if isinstance(source, WithCriteria):
                values = source.score(prompts, responses, lines)
            elif isinstance(source, TokenRewardSource):
                values = source.score_lines(lines)
            else:
                values = _call(source, prompts, responses, [line.ids[line.response_start :] for line in lines])
            found[source.name] = _checked(source.name, values, prompts, responses)
            self._warn_constant(source.name, found[source.name])
        for prompt, response, *rewards in zip(prompts, responses, *found.values(), strict=True):
            if all(map(math.isnan, rewards)) and not self._is_part:
                what = f"The reward {' and '.join(found)} gave None, and no other reward applies"
                raise TrainingError(what, where=_quoted(prompt, response), expected="a finite number", remedy=_RESUME)
        return found

    def total(self, by_source: dict[str, list[float]]) -> list[float]:
        """The weighted sums of the rewards that apply."""
        columns = [by_source[source.name] for source in self.sources]
        return [
            sum(w * value for w, value in zip(self.weights, row, strict=True) if not math.isnan(value))
            for row in zip(*columns, strict=True)
        ]

    def _warn_constant(self, name: str, rewards: list[float]) -> None:
        if len(rewards) > 1 and len(set(rewards)) == 1 and name not in self._constant:
            self._constant.add(name)
            message = "the reward %s is %g for each of %d responses: nothing can be learned from a constant"
            logger.warning(message, name, rewards[0], len(rewards))


# -- loading and checking ---------------------------------------------------------------------------------------------


def load_function(spec: str) -> Callable[..., Any]:
    """Load the function ``module:function`` or ``path/to/file.py:function``. Raises ConfigError if the function cannot
    be found or loaded, or is not a function.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f"{spec!r} names no function", expected="module:function or path/to/file.py:function")
    try:
        if place.endswith(".py"):
            file = Path(place).expanduser().resolve()
            described = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
            assert described is not None and described.loader is not None
            module = importlib.util.module_from_spec(described)
            sys.modules[described.name] = module  # dataclasses look their module up there
            described.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:  # the module's code may raise anything
        raise ConfigError(
            f"The reward function cannot be loaded ({type(error).__name__}: {error})",
            where=spec,
            remedy="give the file's path, or a module that can be imported from here",
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"There is no function {name!r}", where=place, expected=FORM)
    return function


def _call(
    source: RewardSource, prompts: Sequence[Prompt], responses: Sequence[str], ids: Sequence[Sequence[int]]
) -> Sequence[float]:
    call: Any = source if isinstance(source, PythonReward) else lambda prompts, responses, _: source(prompts, responses)
    try:
        return call(prompts, responses, ids)
    except Exception as error:
        # Try each response alone to find the failing one; if none fails, report the first. Not with a sharded model,
        # which computes in all processes together.
        numbers = range(0 if getattr(source, "is_sharded", False) else len(responses))
        guilty = next((i for i in numbers if _raises(call, [prompts[i]], [responses[i]], [ids[i]])), 0)
        what = f"The reward {source.name} raised {type(error).__name__}: {error}"
        raise TrainingError(what, where=_quoted(prompts[guilty], responses[guilty]), remedy=_RESUME) from error


def _raises(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except Exception:
        return True
    return False


def _checked(name: str, values: Any, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    values = values.tolist() if hasattr(values, "tolist") else values
    count = len(values) if hasattr(values, "__len__") else -1
    if count != len(responses):
        found = f"{count} rewards" if count >= 0 else repr(values)[:_SHOWN]
        what = f"The reward {name} gave {found} for {len(responses)} responses"
        expected = "a list with one number for each response"
        raise TrainingError(what, where=_quoted(prompts[0], responses[0]), expected=expected)
    rewards = []
    for prompt, response, value in zip(prompts, responses, values, strict=True):
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError):
            number = math.inf
        if not math.isfinite(number) and value is not None:
            what, where = f"The reward {name} gave {value!r}", _quoted(prompt, response)
            raise TrainingError(what, where=where, expected="a finite number, or None", remedy=_RESUME)
        rewards.append(value if isinstance(value, EnsembleReward) else number)
    return rewards


def _quoted(prompt: Prompt, response: str) -> str:
    return f"response {_short(response)} to {_short(prompt[-1].content if prompt else '')}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
