"""What `rrm-lm collect` does: draw answers, ask an overseer about them, write feedback that training reads."""

from __future__ import annotations

import logging
import random
from pathlib import Path

from tqdm.auto import tqdm

from rrm_lm.cli.collect import CollectArguments
from rrm_lm.cli.parser import write_resolved
from rrm_lm.cli.progress import advance
from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.policy_samples import draw
from rrm_lm.feedback.collection import Collected, collect
from rrm_lm.feedback.llm_judge import SERVED, ServedJudge
from rrm_lm.feedback.overseers import Overseer
from rrm_lm.feedback.plain_user import PlainUser
from rrm_lm.feedback.prompts import load_prompts
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.policy_files import load_policy
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.sampling import Sampling
from rrm_lm.storage import write_json
from rrm_lm.training.output_folder import OutputFolder
from rrm_lm.training.reward_sources import load_function

logger = logging.getLogger(__name__)

FEEDBACK, COUNTS = "feedback.jsonl", "counts.json"


def collect_feedback(args: CollectArguments) -> Collected:
    """Collect and write; returns what was collected.

    Raises:
        RRMError: A policy, file, overseer or setting that cannot be used. Answers to questions so far are kept.
    """
    overseer = load_overseer(str(args.overseer), args.base_url)
    identity = {"policy": args.policy, "overseer": args.overseer, "round": args.round, "seed": args.seed}
    folder = OutputFolder(
        args.output_dir,
        command="rrm-lm collect",
        identity=identity,
        resume=not args.overwrite_output_dir,
        overwrite=args.overwrite_output_dir,
        deferred=True,
    )
    with folder as path:
        prompts = _prompts(args)
        answers = _answers(args, prompts)
        folder.begin()
        write_resolved(path / "config.yaml", args)
        with tqdm(unit="answer") as bar:

            def tick(what: str, done: int, total: int) -> None:
                bar.set_description(f"{what} by {overseer.name}", refresh=False)
                bar.total = total
                bar.update(done - bar.n)

            collected = collect(
                overseer,
                prompts,
                answers,
                comparisons_per_prompt=args.comparisons_per_prompt,
                critiques=args.critiques,
                round_number=args.round,
                path=path / FEEDBACK,
                seed=args.seed,
                progress=tick,
            )
        write_json(path / COUNTS, collected.counts.to_dict())
    logger.info("written to %s", path / FEEDBACK)
    return collected


def load_overseer(name: str, base_url: str) -> Overseer:
    """The overseer that a name stands for.

    Args:
        name: ``llm:MODEL``, a file of a simulated user's requests, or ``file.py:function`` (or ``module:function``), a
            function without arguments that returns an overseer.
        base_url: Where the model is served.

    Raises:
        ConfigError: None of these, or a function that returns something else.
    """
    if name.startswith(SERVED):
        return ServedJudge(name.removeprefix(SERVED), base_url)
    if Path(name).expanduser().is_file():
        return PlainUser.from_file(Path(name).expanduser())
    if ":" not in name:
        raise ConfigError(
            f"There is no overseer {name!r}",
            where="overseer",
            expected="llm:MODEL, a file of requests such as data/assistant/requests.jsonl, or file.py:function",
        )
    found = load_function(name)()
    if not isinstance(found, Overseer):
        raise ConfigError(
            f"{name} returned {type(found).__name__}, which is no overseer",
            where="overseer",
            expected="an object with name, limit, compare and critique (rrm_lm/feedback/overseers.py)",
        )
    return found


def _prompts(args: CollectArguments) -> list[Prompt]:
    prompts = list(dict.fromkeys(prompt for name in args.prompts for prompt in load_prompts(name, split="train")))
    if args.max_prompts is not None and args.max_prompts < len(prompts):
        prompts = random.Random(args.seed).sample(prompts, args.max_prompts)
    return prompts


def _answers(args: CollectArguments, prompts: list[Prompt]) -> list[list[str]]:
    policy = load_policy(str(args.policy))
    policy.backbone.to(process_state().device or "cpu")
    with tqdm(total=len(prompts) * args.samples, desc=f"answers of {args.policy}", unit="answer") as bar:
        drawn = draw(
            policy.backbone,
            policy.adapter,
            policy.chat,
            prompts,
            Sampling(args.max_new_tokens, args.temperature),
            samples=args.samples,
            seed=args.seed,
            batch_tokens=args.batch_tokens,
            progress=advance(bar),
        )
    return [[answer.text for answer in group] for group in drawn]
