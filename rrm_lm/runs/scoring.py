"""`rrm-lm evaluate` and `rrm-lm score`: load feedback sets and a scorer, and write rewards and how good they are."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rrm_lm.api.data.rows import set_labels
from rrm_lm.api.judging import environment, judge, with_comparisons, write_judgement
from rrm_lm.api.resuming import fingerprint
from rrm_lm.errors import ConfigError, DataError, RRMError
from rrm_lm.evaluation.preferences.baselines import baselines, frozen_states
from rrm_lm.evaluation.preferences.criteria import CriteriaScorer
from rrm_lm.evaluation.preferences.follow_through import follow_through
from rrm_lm.evaluation.preferences.judge import NOTES_QUESTION
from rrm_lm.evaluation.preferences.results import Evaluation, compare_all, grouped
from rrm_lm.evaluation.preferences.score_cache import CachedScorer
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, group_by_prompt, score_responses
from rrm_lm.evaluation.reports.page import PageData, render, sentence
from rrm_lm.feedback.criteria.records import CRITERIA_FILE
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Prompt
from rrm_lm.feedback.splits import responses_of
from rrm_lm.models.ensemble import EnsembleReward
from rrm_lm.models.pretrained import model_file, process_state, resolve
from rrm_lm.models.reward_files import read_settings
from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, read_json, recorded_date
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.recursion.critics import AssistedScorer
from rrm_lm.runs.critics import CRITIQUES_FILE, CriticSource, find_critic
from rrm_lm.runs.gold import load_gold
from rrm_lm.settings.scoring import EvaluateArguments, ScoreArguments, ScoringArguments
from rrm_lm.storage import json_text, write_json, write_jsonl, write_text
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.templates import date_of
from rrm_lm.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)


def load_sets(args: ScoringArguments) -> dict[str, Feedback]:
    """Load each named set; the keys are the shortest unique names."""
    return {label: load_feedback(name, **args.reading(args.split)) for name, label in set_labels(args.dataset).items()}


def model_name(model: str) -> str:
    """A model's name in results: the name of its folder, its Hub id or its alias."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def make_scorer(args: ScoringArguments, model: str, judge_question: str = "") -> ResponseScorer:
    """Load a scorer. `judge_question` is the question to a language model that is used as a judge."""
    return load_scorer(
        model,
        title=model_name(model),
        revision=args.model_revision,
        **{name: getattr(args, name) for name in _SCORING},
        **args.tokenizing(),
        **args.loading(),
        shard=True,
        judge_question=judge_question,
    )


_SCORING = (
    *("base_model", "micro_batch_tokens", "critique_samples", "critique_temperature", "seed", "ensemble", "ensemble_k"),
    "max_length",
)
_LOADING = ("dtype", "attn_implementation", "load_in_4bit", "load_in_8bit")


def cached_scorer(args: EvaluateArguments, model: str) -> ResponseScorer:
    """A scorer whose rewards are kept in the cache folder, in a file for this model and these settings."""
    if process_state().num_processes > 1 or not args.cache_scores:
        return make_scorer(args, model)
    key = {name: getattr(args, name) for name in _SCORING + _LOADING} | args.tokenizing()
    key |= {name: version(name) for name in ("rrm_lm", "torch", "transformers", "peft")}
    try:
        if model_file(resolve(model, args.model_revision), CRITERIA_FILE, args.model_revision) is not None:
            return make_scorer(args, model)  # criteria are measured again: their code may have changed
        key["chat_date"] = date_of(_tokenizer(args, model))  # today's, if the template writes one and none is recorded
        key |= {"weights": _digest(model, args.model_revision, args.base_model), "device": str(process_state().device)}
    except RRMError:
        return make_scorer(args, model)  # which says what is wrong with the model
    return CachedScorer(model_name(model), key, lambda: make_scorer(args, model))


def _digest(model: str, revision: str | None, base_model: str | None = None) -> list[str]:
    """Identifies a model's files: hashes and times of a folder, the commit on the Hub; also those of a backbone."""
    path = resolve(model, revision)
    adapter = model_file(path, ADAPTER_CONFIG, revision)
    config = adapter or model_file(path, "config.json", revision)
    folder = Path(path) if config is None else config.parent
    weights = [f"{file.name} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.safetensors"))]
    own = [fingerprint(folder), *weights] if Path(path).exists() else [folder.name]
    if adapter is None:
        return own
    settings = read_settings(adapter.parent)
    base = base_model or (settings.base_model if settings else read_json(adapter)["base_model_name_or_path"])
    return own + _digest(str(base), settings.revision if settings and base_model is None else None)


def chat_of(args: ScoringArguments, model: str, scorer: Any) -> ChatFormat | None:
    """The chat format of a scorer, without loading a model whose rewards were all in the cache."""
    if not isinstance(scorer, CachedScorer) or scorer.is_loaded:
        return getattr(getattr(scorer, "scorer", scorer), "chat", None)
    return ChatFormat(_tokenizer(args, model))


def _tokenizer(args: ScoringArguments, model: str) -> Any:
    adapter = model_file(resolve(model, args.model_revision), ADAPTER_CONFIG, args.model_revision)
    name, texts = model, args.tokenizing()
    if adapter is not None and not (adapter.parent / "tokenizer_config.json").is_file():
        name = str(args.base_model or read_json(adapter)["base_model_name_or_path"])
    texts["chat_date"] = args.chat_date or recorded_date(resolve(model, args.model_revision), args.model_revision)
    return load_tokenizer(name, own_pad=True, trust_remote_code=args.trust_remote_code, **texts)


def with_baselines(evaluation: Evaluation, scorer: Any, args: EvaluateArguments) -> Evaluation:
    """The evaluation with the baselines of each set."""
    train = [c for name in args.baselines_train for c in load_feedback(name, **args.reading("train")).comparisons]
    scorer = scorer.scorer if isinstance(scorer, CachedScorer) else scorer
    probe = None if isinstance(scorer, CriteriaScorer) else frozen_states(scorer)
    sets = tuple(replace(result, baselines=baselines(result, train, probe)) for result in evaluation.sets)
    return replace(evaluation, sets=sets)


def with_follow_through(evaluation: Evaluation, scorer: ResponseScorer) -> Evaluation:
    """The evaluation with how often the reward rises once a fault is fixed that the critiques of a set find."""
    found = {}
    for result in evaluation.sets:
        measured = follow_through(scorer, [one.comparison for one in result.examples])
        if measured is None:
            logger.warning(
                "%s: no critique finds a fault that an edit fixes, so there is no follow-through", result.name
            )
        else:
            found[result.name] = measured
    return replace(evaluation, details={**evaluation.details, **({"follow_through": found} if found else {})})


def by_part(evaluation: Evaluation, name: str, limits: ReadLimits) -> Evaluation:
    """The evaluation with the accuracy by the part of a gold reward that decides each comparison.

    Raises ConfigError: the gold reward has no parts; DataError: none of them decides a comparison of a set.
    """
    gold = load_gold(name, limits)
    if not gold.parts:
        raise ConfigError("The gold reward has no parts", where=f"gold: {name}", remedy="leave out --gold")
    sets = []
    for result in evaluation.sets:
        pairs = [one.comparison for one in result.examples]
        parts = gold.deciding([c.prompt for c in pairs], [c.chosen for c in pairs], [c.rejected for c in pairs])
        if not any(parts):
            raise DataError(
                f"No part of {name} decides a comparison", where=result.name, remedy="name its own requests"
            )
        sets.append(replace(result, by_part=grouped(result.examples, lambda one, parts=parts: parts[one.index])))
    return replace(evaluation, sets=tuple(sets))


def write_differences(evaluations: Mapping[str, Evaluation], args: EvaluateArguments) -> None:
    """Write results.json and report.html of several models, and print their differences."""
    found = compare_all(evaluations)
    accuracy = {
        name: {result.name: result.measures.accuracy for result in one.sets} for name, one in evaluations.items()
    }
    write_json(args.folder / "results.json", {"models": accuracy, "differences": found})
    page = PageData(title="Reward models compared", configuration=asdict(args), environment=environment())
    html = render("reward_models.html.j2", data=page, accuracy=accuracy, differences=found)
    write_text(args.folder / "report.html", html)
    for one in found:
        print(sentence("models_verdict", one, len(next(iter(accuracy.values()))) > 1))
    logger.info("report: %s", args.folder / "report.html")


def evaluate(args: EvaluateArguments) -> None:
    """Score held-out comparisons, write the results and print them."""
    state = process_state()
    critic = None if args.critic is None else find_critic(args.critic, allow_code=args.allow_code)
    folder = OutputFolder(
        args.folder,
        command="rrm-lm evaluate",
        identity={"model": args.model, "dataset": args.dataset, "critic": args.critic},
        overwrite=args.overwrite_output_dir,
        active=state.is_main_process,
        deferred=True,  # keep earlier results until there are new ones
    )
    for name in ("baselines", "follow_through"):
        if getattr(args, name) and state.num_processes > 1:
            raise ConfigError(f"{name} is computed in one process", where=name, remedy="leave out the launcher")
    with folder:
        state.wait_for_everyone()
        sets = with_comparisons(load_sets(args))
        found = []
        for model in args.model:
            scorer: Any = cached_scorer(args, model) if critic is None else _assisted(args, model, critic, sets)
            critiques = getattr(scorer, "critiques", None)
            evaluation = judge(scorer, sets, critiques and {"critic": critiques.account()})
            evaluation = evaluation if args.gold is None else by_part(evaluation, args.gold, args)
            if args.baselines:
                evaluation = with_baselines(evaluation, scorer, args)
            if args.follow_through:
                evaluation = with_follow_through(evaluation, scorer)
            found.append((model, evaluation, chat_of(args, model, scorer), critiques))
            del scorer  # hold one model at a time
        folder.begin()
        names = {model: label.replace("/", "-") for model, label in set_labels(args.model).items()}
        for model, evaluation, chat, critiques in found if state.is_main_process else ():
            place = args.folder / names[model] if len(found) > 1 else args.folder
            if critiques is not None:
                write_jsonl(place / CRITIQUES_FILE, critiques.rows())
            settings = asdict(replace(args, model=[model]))
            write_judgement(evaluation, sets, place, chat=chat, location=model, configuration=settings)
        if len(found) > 1 and state.is_main_process:
            write_differences({names[model]: evaluation for model, evaluation, *_ in found}, args)


def _assisted(args: EvaluateArguments, model: str, critic: CriticSource, sets: dict[str, Feedback]) -> ResponseScorer:
    """The scorer, which sees the critic's notes on every response."""
    groups = [group_by_prompt(feedback.comparisons) for feedback in sets.values()]
    subjects = [(prompt, text) for group in groups for prompt, texts in group.items() for text in texts]
    critiques = critic.write(subjects, **args.loading())
    return AssistedScorer(make_scorer(args, model, judge_question=NOTES_QUESTION), critiques)


def score(args: ScoreArguments) -> None:
    """Write a line per distinct response: its prompt, text, reward and origin.

    For a reward ensemble also ``std``, the standard deviation over its members; for a model with criteria, the part of
    the reward that each contributes.
    """
    origins = _origins(load_sets(args))
    scorer = make_scorer(args, str(args.model))
    groups = {prompt: list(found) for prompt, found in origins.items()}
    rewards = score_responses(scorer, groups)
    if not process_state().is_main_process:
        return
    parts = _parts(scorer, groups)
    rows = [
        {
            "prompt": [m.to_dict() for m in prompt],
            "response": response,
            "reward": reward,
            **({"std": reward.std} if isinstance(reward, EnsembleReward) else {}),
            **({"criteria": parts[prompt, response]} if parts else {}),
            "origin": origin,
        }
        for prompt, found in origins.items()
        for response, origin in found.items()
        for reward in [rewards[prompt][response]]
    ]
    missing = [row["origin"] for row in rows if not math.isfinite(row["reward"])]
    if missing:
        logger.warning("%d of %d responses got no reward (null), the first in %s", len(missing), len(rows), missing[0])
    if args.output_file:
        write_jsonl(args.output_file, rows)
        logger.info("%d rewards in %s", len(rows), args.output_file)
    else:
        for row in rows:
            print(json_text(row, indent=None))


def _parts(scorer: Any, groups: dict[Prompt, list[str]]) -> dict[tuple[Prompt, str], dict[str, float]]:
    """The contribution of each criterion to the reward of each response, in nats; empty for models without criteria."""
    criteria = getattr(scorer, "criteria", None)
    if criteria is None:
        return {}
    found = zip(groups.items(), criteria.parts(list(groups), list(groups.values())), strict=True)
    return {
        (prompt, response): part
        for (prompt, responses), parts in found
        for response, part in zip(responses, parts, strict=True)
    }


def _origins(sets: dict[str, Feedback]) -> dict[Prompt, dict[str, str]]:
    """Every distinct response of every prompt, and its first origin. Raises DataError: no set has a response."""
    origins: dict[Prompt, dict[str, str]] = {}
    for feedback in sets.values():
        for record in feedback.records():
            for response in responses_of(record) if record.prompt else ():
                origins.setdefault(record.prompt, {}).setdefault(response, str(record.origin))
    if not origins:
        raise DataError(
            "There are no responses to score",
            where=", ".join(sets),
            expected='rows with a prompt and a response, such as {"prompt": ..., "completion": ...}',
        )
    return origins
