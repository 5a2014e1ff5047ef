"""Sources of rewards: this package's reward models, any sequence classifier, a language model as a judge.

All batch by length under a token budget. Reward models compute a prompt once for all its responses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from rrm_lm.errors import ConfigError, DataError, ModelError
from rrm_lm.evaluation.preferences.criteria import CriteriaReward, CriteriaScorer
from rrm_lm.evaluation.preferences.judge import JudgeScorer
from rrm_lm.evaluation.preferences.own_forward import check_forward
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.ensemble import with_added
from rrm_lm.models.pretrained import load_sequence_classifier, model_file, process_state, resolve
from rrm_lm.models.reward import SETTINGS_FILE, RewardModel
from rrm_lm.models.reward_files import load_reward_model, read_settings
from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, fetch_adapter, is_classifier, read_json, refuse_outputs
from rrm_lm.models.saving.policies import load_policy
from rrm_lm.models.self_critique import with_own_critiques
from rrm_lm.models.sharding import is_sharded, max_over_processes, shard_for_use, with_full_params
from rrm_lm.models.together import loading_together
from rrm_lm.models.tokenizers import check_vocabulary, load_tokenizer, own_pad_id
from rrm_lm.text.batching import Batch, collate, context_length, length_groups, row_groups, share
from rrm_lm.text.chat import ChatFormat, Line

logger = logging.getLogger(__name__)

_DUMMY = Line((0,), 0, 0)  # dummy input while other processes have more batches
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")  # of LLaMA-Factory


def _fits(self: RewardScorer | ClassifierScorer, prompt: Prompt, response: str) -> bool:
    """Whether a prompt and its response fit without truncation."""
    try:
        encoded = self.chat.encode(prompt, [response])
    except DataError:  # no tokens, so nothing is truncated
        return True
    return not (encoded.dropped_turns or encoded.cut_tokens or encoded.cut_responses)


class RewardScorer:
    """Rewards of a model trained by `rrm-lm reward`. The model must be in evaluation mode. Rewards do not depend on
    `micro_batch_tokens`, the maximum of padded tokens at once, or on `padding_side`. A model that writes critiques
    first averages over `critique_samples` of them, sampled with `temperature` and `seed`. The reward of `criteria` is
    added.
    """

    def __init__(
        self,
        model: RewardModel,
        chat: ChatFormat,
        name: str = "reward model",
        *,
        micro_batch_tokens: int = 4096,
        critique_samples: int = 1,
        temperature: float = 0.7,
        seed: int = 0,
        padding_side: str = "right",
        criteria: CriteriaReward | None = None,
    ) -> None:
        self.criteria = criteria
        self.model, self.chat, self.name = model, chat, name
        self.micro_batch_tokens, self.padding_side = micro_batch_tokens, padding_side
        self.critique_samples, self.temperature, self.seed = critique_samples, temperature, seed

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt, the rewards of its responses; NaN for a response without tokens.

        Rewards of an ensemble carry its disagreement (:class:`rrm_lm.models.ensemble.EnsembleReward`).
        """
        rewards = self.score_lines(self._lines(prompts, responses))
        if self.criteria is None:
            return rewards
        added = self.criteria.rewards(prompts, responses)
        return [list(map(with_added, group, parts)) for group, parts in zip(rewards, added, strict=True)]

    def score_lines(self, lines: Sequence[Sequence[Sequence[Line]]]) -> list[list[float]]:
        """The same for encoded responses, without criteria: for each prompt and response, its lines, whose rewards are
        averaged.
        """
        rows = [self.model.backbone.rows([line.ids for per in group for line in per]) for group in lines]
        flat = [[line for per in group for line in per] for group in lines]
        members: dict[int, list[list[float]]] = {}  # for each prompt's lines, the rewards of the model's members
        self.model.eval()
        backbone = self.model.backbone
        groups = row_groups(rows, self.micro_batch_tokens)
        if is_sharded(self.model):  # all processes must run the same number of batches
            groups += [[]] * (max_over_processes(len(groups), _device()) - len(groups))
        for group in groups:
            together = [line for i in group for line in flat[i]] if group else [_DUMMY]
            laid = [row for i in group for row in rows[i]] if group else backbone.rows([_DUMMY.ids])
            batch = collate(laid, backbone.pad_id, self.padding_side).to(backbone.device)
            with torch.no_grad():  # inference mode would make a sharded model untrainable afterwards
                output = self.model(batch, together, with_critiques=False)
            found = iter(output.members.float().tolist())
            for i in group:
                members[i] = [next(found) for _ in flat[i]]
        return [self._combined(lines[i], members.get(i, [])) for i in range(len(lines))]

    fits = _fits

    def _combined(self, lines: Sequence[Sequence[Line]], members: Sequence[Sequence[float]]) -> list[float]:
        """One reward per response: average each member over the response's lines, then combine the members."""
        ensemble = self.model.settings.combination
        by_member = [_mean_per_response(lines, [row[head] for row in members]) for head in range(ensemble.heads)]
        return ensemble.rewards(list(zip(*by_member, strict=True)))

    def _lines(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[list[Line]]]:
        """The lines of each prompt and response: one, one per sampled critique, or none without tokens."""
        if self.model.settings.critique_first:
            return with_full_params(
                self.model,
                with_own_critiques,
                self.model,
                self.chat,
                prompts,
                responses,
                samples=self.critique_samples,
                temperature=self.temperature,
                seed=self.seed,
            )
        return [encode_all(self.chat, prompt, group) for prompt, group in zip(prompts, responses, strict=True)]


class ClassifierScorer:
    """Rewards of any sequence-classification model with one output; each response is a row.

    The conversation ends as the model's chat template renders it, as in these models' training. Only models merged by
    this package end at the end-of-turn token, as in their training. The model's own forward pass reads the reward, at
    the last token that is not its pad token.
    """

    def __init__(self, model: Any, chat: ChatFormat, name: str, *, micro_batch_tokens: int = 4096) -> None:
        refuse_outputs(model.config, name)
        self.model, self.chat, self.name = model.eval(), chat, name
        self.pad_id = own_pad_id(model.config, chat.tokenizer)
        model.config.get_text_config().pad_token_id = self.pad_id
        self.micro_batch_tokens, self.padded = micro_batch_tokens, True

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        return self.score_lines([encode_all(self.chat, p, group) for p, group in zip(prompts, responses, strict=True)])

    def score_lines(self, lines: Sequence[Sequence[Sequence[Line]]]) -> list[list[float]]:
        """The same for encoded responses: for each prompt and response, its lines, whose rewards are averaged."""
        flat = [line for group in lines for per in group for line in per]
        rewards = [math.nan] * len(flat)
        lengths = [len(line.ids) for line in flat]
        groups = length_groups(lengths, self.micro_batch_tokens)
        if not self.padded:
            groups = [[i for i in group if lengths[i] == length] for group in groups for length in {*lengths}]
        for group in filter(None, groups):
            batch = one_per_row([flat[i] for i in group], self.pad_id).to(self.model.device)
            with torch.inference_mode():
                output = self.model(batch.input_ids, attention_mask=batch.is_real.long())
            for i, reward in zip(group, output.logits.reshape(len(group)).float().tolist(), strict=True):
                rewards[i] = reward
        found = iter(rewards)
        return [_mean_per_response(group, [next(found) for per in group for _ in per]) for group in lines]

    fits = _fits


def load_scorer(
    name: str,
    *,
    title: str | None = None,
    base_model: str | None = None,
    micro_batch_tokens: int = 4096,
    critique_samples: int = 1,
    critique_temperature: float = 0.7,
    seed: int = 0,
    ensemble: str | None = None,
    ensemble_k: float | None = None,
    max_length: int | None = None,
    pad_token: str | None = None,
    chat_template: str | None = None,
    chat_date: str | None = None,
    fold_system: bool = False,
    shard: bool = False,
    judge_question: str = "",
    **loading: Any,
) -> ResponseScorer:
    """Load a model by name and log its kind.

    A PEFT ``SEQ_CLS`` adapter is a reward model; a sequence-classification checkpoint is a classifier; a causal
    language model is a judge; a file ``criteria.yaml`` is a reward by itself.

    Args:
        name: Folder, Hub id or alias.
        title: Its name in results; by default `name`.
        base_model: Backbone of an adapter, instead of the recorded one.
        micro_batch_tokens, critique_samples, critique_temperature, seed: See the scorers.
        ensemble, ensemble_k: How the members of a reward ensemble are combined, instead of the recorded way.
        max_length: Maximum conversation length in tokens, for models that do not record it.
        pad_token, chat_template: Replace those of the tokenizer, except for adapters of this project.
        chat_date, fold_system: See :func:`rrm_lm.text.templates.prepare_template`. An adapter records its date.
        shard: Shard a reward model if this launch shards models. All processes must then make the same calls.
        judge_question: The question to a judge, instead of `judge.JUDGE_QUESTION`.
        loading: dtype, attn_implementation, revision, trust_remote_code, quantization_config, device_map.

    Raises:
        ConfigError: Unknown way to combine members.
        ModelError: The model does not exist or cannot give rewards.
        CheckpointError: The weights of an adapter are broken or do not fit its backbone.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        logger.info("%s: criteria, without a trained model", name)
        return CriteriaScorer(name, title or name, allow_code=bool(loading.get("trust_remote_code")))
    path, revision = resolve(name, loading.get("revision")), loading.get("revision")
    texts: dict[str, Any] = {"pad_token": pad_token, "chat_template": chat_template}
    title = title or name
    adapter = fetch_adapter(path, revision)
    if adapter is not None and read_json(adapter / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS":
        if not Path(path).is_dir():
            loading["revision"] = None  # this is the adapter's revision; the adapter records the backbone's
        options = {"ensemble": ensemble, "ensemble_k": ensemble_k, "chat_date": chat_date, "fold_system": fold_system}
        with loading_together() if shard else nullcontext():
            model, chat = load_reward_model(adapter, base_model=base_model, tokenizing=texts, **options, **loading)
        chat.max_length = chat.max_length or within_context(max_length, model.backbone.config)
        criteria = CriteriaReward.load(adapter, model.backbone, chat, allow_code=bool(loading.get("trust_remote_code")))
        more = "" if criteria is None else f" and {len(criteria.criteria)} criteria"
        logger.info("%s: a reward model (LoRA adapter with a scalar head%s)", name, more)
        scorer = RewardScorer(
            model,
            chat,
            title,
            micro_batch_tokens=micro_batch_tokens,
            critique_samples=critique_samples,
            temperature=critique_temperature,
            seed=seed,
            criteria=criteria,
        )
        if shard:
            _ = model.backbone.can_share  # test it before the model is sharded
            shard_for_use(model)
        if is_sharded(model) and criteria is not None and criteria.asks:
            what = "A criterion asks the model a question, which a sharded model cannot answer"
            raise ConfigError(what, where=name, remedy="score on one process, or choose detectors as measures")
        if not is_sharded(model):
            _placed(model, model.backbone.causal_lm)
            check_forward(scorer)
        return scorer
    if adapter is None and base_model is not None:
        raise ModelError("Only an adapter has a base model", where=name, remedy="leave out --base_model")
    texts |= {"chat_date": chat_date, "fold_system": fold_system}
    if adapter is None and is_classifier(path, revision, bool(loading.get("trust_remote_code"))):
        tokenizing = texts | {key: loading[key] for key in ("revision", "trust_remote_code") if key in loading}
        classifier, chat = _load_classifier(name, path, max_length, tokenizing, loading)
        kind = f", problem_type {classifier.config.problem_type}" if classifier.config.problem_type else ""
        logger.info("%s: a sequence-classification model%s: the reward is its logit, without a sigmoid", name, kind)
        placed = _placed(classifier, classifier)
        scored = ClassifierScorer(placed, chat, title, micro_batch_tokens=micro_batch_tokens)
        check_forward(scored)
        return scored
    if any(model_file(path, file, revision) is not None for file in _VALUE_HEADS):
        raise ModelError(
            "This is a reward model whose head is in a file of its own, which is not read",
            where=name,
            remedy="save it as a sequence classifier whose score.weight is v_head.summary.weight",
        )
    policy = load_policy(name, base_model=base_model, **texts, **loading)
    backbone = _placed(policy.backbone, policy.backbone.causal_lm)
    chat = ChatFormat(policy.chat.tokenizer, within_context(max_length, backbone.config))
    logger.info("%s: a causal language model, used as a judge by the log-odds of Yes and No", name)
    judge = {"adapter": policy.adapter, "micro_batch_tokens": micro_batch_tokens, "question": judge_question}
    return JudgeScorer(backbone, chat, title, **judge)


def _load_classifier(
    name: str, path: str, max_length: int | None, tokenizing: dict[str, Any], loading: dict[str, Any]
) -> tuple[Any, ChatFormat]:
    file = model_file(path, SETTINGS_FILE, loading.get("revision"))
    settings = read_settings(file.parent) if file is not None else None
    if settings is not None and settings.critique_first:
        what = "The checkpoint was merged from a model that writes critiques first, and a classifier cannot write"
        raise ModelError(what, where=name, remedy="name the adapter that it was merged from")
    tokenizer = load_tokenizer(name, own_pad=True, **tokenizing)
    classifier: Any = load_sequence_classifier(name, **loading)
    check_vocabulary(tokenizer, classifier)
    longest = (settings.max_length if settings else None) or within_context(max_length, classifier.config)
    return classifier, ChatFormat(tokenizer, longest, trim=settings is not None)


def within_context(max_length: int | None, config: Any) -> int | None:
    """`max_length`, capped at the model's number of positions."""
    context = context_length(config.get_text_config())
    return min((length for length in (max_length, context) if length is not None), default=None)


def _placed(module: Any, loaded: Any) -> Any:
    """A module on this process's device, or, if the loaded model in it has a device map, its new parts there."""
    if getattr(loaded, "hf_device_map", None) is None:
        return module.to(_device())
    if isinstance(module, RewardModel):
        module.head.to(list(module.backbone.decoder.parameters())[-1].device)
    return module


def _device() -> torch.device:
    return torch.device(process_state().device or "cpu")


def encode_all(chat: ChatFormat, prompt: Prompt, responses: Sequence[str]) -> list[list[Line]]:
    """The lines of each response; none for a response without tokens.

    Each is encoded separately, because truncation of a long conversation must not depend on the other responses.
    """
    lines: list[list[Line]] = []
    for response in responses:
        try:
            lines.append(list(chat.encode(prompt, [response]).lines[0]))
        except DataError:
            lines.append([])
    return lines


def one_per_row(lines: Sequence[Line], pad_id: int) -> Batch:
    """Lines as rows of their own, padded on the right, for models that do not share prefixes."""
    return collate([share([line.ids]) for line in lines], pad_id)


def _mean_per_response(lines: Sequence[Sequence[Line]], rewards: Sequence[float]) -> list[float]:
    found = iter(rewards)
    means = []
    for per_response in lines:
        values = [next(found) for _ in per_response]
        means.append(sum(values) / len(values) if values else math.nan)
    return means
