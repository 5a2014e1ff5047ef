"""`rrm-lm collect`: sample responses, ask an overseer about them, and write feedback for training."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from rrm_lm.api.policy_model import Policy
from rrm_lm.api.reward_model import RewardOverseer
from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.policies.samples import draw
from rrm_lm.evaluation.preferences.criteria import CriteriaReward
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.feedback.asking import judge_questions
from rrm_lm.feedback.asking.collection import Pair, collect, responses_asked_about
from rrm_lm.feedback.asking.concurrently import ask_all
from rrm_lm.feedback.asking.judge_questions import VERDICT_QUESTION
from rrm_lm.feedback.asking.llm_judge import SERVED, ServedJudge
from rrm_lm.feedback.asking.overseers import Overseer
from rrm_lm.feedback.criteria.edits import edited
from rrm_lm.feedback.criteria.records import Criterion
from rrm_lm.feedback.reading.prompts import prompt_sources
from rrm_lm.feedback.records import Prompt
from rrm_lm.feedback.splits import limit_prompts
from rrm_lm.models.decoding.generation import sampling_bar
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.recursion.assistance import Assisted
from rrm_lm.runs.critics import find_critic
from rrm_lm.settings.parsing.parser import write_resolved
from rrm_lm.settings.policies import CollectArguments
from rrm_lm.simulated.note_users import load_user
from rrm_lm.storage import write_json, write_jsonl
from rrm_lm.training.output_folder import OutputFolder
from rrm_lm.training.reward_sources import load_function

logger = logging.getLogger(__name__)

FEEDBACK, COUNTS = "feedback.jsonl", "counts.json"
# Critiques shown to the overseer are not feedback, so the suffix is one that readers of a folder ignore.
SHOWN_CRITIQUES = f"{FEEDBACK}.critiques"


def collect_feedback(args: CollectArguments) -> None:
    """Sample responses, collect feedback on them and write it. Raises RRMError: an unusable
    policy, file, overseer, critic or setting. Answers collected so far are kept.
    """
    overseer = load_overseer(args)
    reward, editor = _editing(args, overseer)
    critic = None if args.critic is None else find_critic(args.critic, allow_code=args.allow_code)
    folder = OutputFolder(
        args.output_dir,
        command="rrm-lm collect",
        identity={name: getattr(args, name) for name in ("policy", "overseer", "critic", "round", "seed")},
        resume=not args.overwrite_output_dir,
        overwrite=args.overwrite_output_dir,
        deferred=True,
    )
    with folder as path:
        prompts = _choose_prompts(args)
        responses = _draw_responses(args, prompts)
        choice = {"comparisons_per_prompt": args.comparisons_per_prompt, "seed": args.seed}
        critiques = None if critic is None else critic.write(responses_asked_about(prompts, responses, **choice))
        folder.begin()
        write_resolved(path / "config.yaml", args)
        if critiques is not None:
            write_jsonl(path / SHOWN_CRITIQUES, critiques.rows())
        with tqdm(unit="answer") as bar:

            def progress(what: str, done: int, total: int) -> None:
                bar.set_description(f"{what} by {overseer.name}", refresh=False)
                bar.total = total
                bar.update(done - bar.n)

            collected = collect(
                overseer if critiques is None else Assisted(overseer, critiques),
                prompts,
                responses,
                **choice,
                edits=_edited_pairs(args, reward, editor, prompts, responses),
                critiques=args.critiques and not isinstance(overseer, RewardOverseer),
                round_number=args.round,
                path=path / FEEDBACK,
                at_once=int(getattr(overseer, "at_once", 1)),
                progress=progress,
            )
        critic_account = {} if critiques is None else {"critic": critiques.account()}
        write_json(path / COUNTS, collected.counts.to_dict() | critic_account)
    logger.info("written to %s", path / FEEDBACK)


def load_overseer(args: CollectArguments) -> Overseer:
    """The overseer that the settings name: ``llm:MODEL``, the folder of a reward model, a file of a simulated user's
    requests, or ``file.py:function`` (or ``module:function``), a function without arguments that returns an overseer.
    Raises ConfigError: none of these, a function that returns something else, or an overseer that reads no critiques.
    """
    name, with_critic = str(args.overseer), args.critic is not None
    if name.startswith(SERVED):
        question = judge_questions.noted(VERDICT_QUESTION) if with_critic else VERDICT_QUESTION
        return ServedJudge(name.removeprefix(SERVED), args.base_url, question=question, key_variable=args.judge_key_env)
    if Path(name).expanduser().is_dir():
        found: Overseer | None = RewardOverseer(load_scorer(name, trust_remote_code=args.allow_code), Path(name).name)
    else:
        found = load_user(name, args)
    if found is not None:
        if with_critic:
            raise ConfigError(
                f"The {found.name} would mistake a critique for part of the response",
                where="critic",
                expected="an overseer that reads critiques: llm:MODEL, or your own as file.py:function",
            )
        return found
    if ":" not in name:
        expected = "llm:MODEL, a reward model's folder, a file of requests, or file.py:function"
        raise ConfigError(f"There is no overseer {name!r}", where="overseer", expected=expected)
    overseer = load_function(name)()
    if not isinstance(overseer, Overseer):
        raise ConfigError(
            f"{name} returned {type(overseer).__name__}, which is not an overseer",
            where="overseer",
            expected="an object with name, limit, compare and critique (rrm_lm/feedback/asking/overseers.py)",
        )
    return overseer


def _choose_prompts(args: CollectArguments) -> list[Prompt]:
    return limit_prompts(prompt_sources(args.prompts, split="train", limits=args), args.max_prompts, args.seed)


def _draw_responses(args: CollectArguments, prompts: list[Prompt]) -> list[list[str]]:
    policy = Policy.from_pretrained(str(args.policy)).loaded
    with sampling_bar(f"responses of {args.policy}", "response") as progress:
        drawn = draw(
            policy.backbone,
            policy.adapter,
            policy.chat,
            prompts,
            Sampling(args.max_new_tokens, args.temperature),
            samples=args.samples,
            seed=args.seed,
            batch_tokens=args.batch_tokens,
            progress=progress,
        )
    return [[response.text for response in group] for group in drawn]


class _Edit(NamedTuple):
    """A response, and its edit by a rule for a criterion; "" if an editor is to write it."""

    prompt: Prompt
    response: str
    criterion: Criterion
    text: str


def _editing(args: CollectArguments, overseer: Overseer) -> tuple[CriteriaReward | None, ServedJudge | None]:
    """The criteria that say what is edited, if edits are asked for, and the editor, if there is one."""
    if not args.edits:
        return None, None
    reward = overseer.criteria if isinstance(overseer, RewardOverseer) else None
    if reward is None:
        raise ConfigError(
            f"The overseer {args.overseer} has no criteria, which say what is edited",
            where="edits",
            expected="a reward model that was trained with --criteria",
        )
    if args.editor is None:
        return reward, None
    name, tokens = args.editor.removeprefix(SERVED), 4 * args.max_new_tokens  # of other tokenizers
    return reward, ServedJudge(name, args.base_url, key_variable=args.judge_key_env, max_tokens=tokens)


def _edited_pairs(
    args: CollectArguments,
    reward: CriteriaReward | None,
    editor: ServedJudge | None,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
) -> list[Pair]:
    """Up to `args.edits` pairs per prompt of a response and an edit of it that moves a criterion."""
    if reward is None:
        return []
    chosen: list[_Edit] = []
    for place, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        other = next((text for text in responses[place - 1] if text.strip()), "")
        options: list[_Edit] = []
        for text in dict.fromkeys(text for text in group if text.strip()):
            by_rule = edited(reward.criteria, prompt[-1].content, text, other)
            options += [
                _Edit(prompt, text, one, by_rule.get(one.name, ""))
                for one in reward.criteria
                if one.name in by_rule or editor is not None
            ]
        rng = random.Random(f"{args.seed}/{prompt[-1].content}")
        chosen += rng.sample(options, min(args.edits, len(options)))
    pairs = [(one.prompt, (one.response, one.text)) for one in chosen if one.text]
    if editor is not None:
        pairs += _written_pairs(editor, reward, [one for one in chosen if not one.text])
    return list(dict.fromkeys(pairs))


def _written_pairs(editor: ServedJudge, reward: CriteriaReward, asked: Sequence[_Edit]) -> list[Pair]:
    """The edits that the editor writes, kept if they move the measure of their criterion. A later run of the same
    collection asks for them again.
    """
    logger.info("asking %s for %d edits", editor.name, len(asked))
    texts = ask_all(
        lambda one: editor.edit(one.prompt, one.response, one.criterion.statement), asked, at_once=editor.at_once
    )
    written = [(one, text) for one, text in zip(asked, texts, strict=True) if text]
    values = reward.values([one.prompt for one, _ in written], [[one.response, text] for one, text in written])
    pairs: list[Pair] = []
    for (one, text), (before, after) in zip(written, values, strict=True):
        place = reward.criteria.index(one.criterion)
        if math.isfinite(before[place]) and math.isfinite(after[place]) and before[place] != after[place]:
            pairs.append((one.prompt, (one.response, text)))
    logger.info("%s wrote %d edits; %d of them move what they are to move", editor.name, len(written), len(pairs))
    if editor.abstentions:
        causes = ", ".join(f"{count} {cause}" for cause, count in editor.abstentions.most_common())
        logger.warning("%s wrote no edit for some responses: %s", editor.name, causes)
    return pairs
