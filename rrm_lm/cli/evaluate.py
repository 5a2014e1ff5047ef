"""`rrm-lm evaluate`: evaluate a reward model on held-out preferences, with error bars."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rrm_lm.settings.scoring import EvaluateArguments

if TYPE_CHECKING:
    from rrm_lm.evaluation.preferences.scoring import ResponseScorer
    from rrm_lm.feedback.reading.datasets import Feedback
    from rrm_lm.runs.critics import CriticSource

EXAMPLES = """\
rrm-lm evaluate --model smollm2-135m --dataset data/assistant/heldout.jsonl.gz
rrm-lm evaluate --model outputs/reward --dataset my_pairs.jsonl others.csv
rrm-lm evaluate --model Skywork/Skywork-Reward-V2-Qwen3-0.6B \\
    --dataset allenai/reward-bench --split filtered
rrm-lm evaluate --model smollm2-135m --dataset my_pairs.jsonl \\
    --critic outputs/mine
rrm-lm evaluate --model outputs/mine outputs/other --dataset my_pairs.csv
rrm-lm evaluate --model outputs/mine --dataset my_pairs.csv --baselines true
"""
COMMON = (
    "model dataset split columns output_dir critic baselines max_length micro_batch_tokens dtype base_model ensemble "
    "chat_template_path"
)


def run(argv: list[str]) -> int:
    """Score held-out comparisons, write the results and print them."""
    from rrm_lm.settings.parser import parse

    (args,) = parse([EvaluateArguments], argv, command="rrm-lm evaluate", examples=EXAMPLES, common=COMMON)
    args.require()
    from rrm_lm.api.judging import judge, with_comparisons, write_judgement
    from rrm_lm.api.rows import set_labels
    from rrm_lm.models.pretrained import process_state
    from rrm_lm.runs.critics import CRITIQUES_FILE, find_critic
    from rrm_lm.runs.scoring import by_part, cached_scorer, chat_of, load_sets, with_baselines, write_differences
    from rrm_lm.storage import write_jsonl
    from rrm_lm.training.output_folder import OutputFolder

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
    return 0


def _assisted(args: EvaluateArguments, model: str, critic: CriticSource, sets: dict[str, Feedback]) -> ResponseScorer:
    """The scorer, which sees the critic's notes on every response."""
    from rrm_lm.evaluation.preferences.judge import NOTES_QUESTION
    from rrm_lm.evaluation.preferences.scoring import group_by_prompt
    from rrm_lm.recursion.critics import AssistedScorer
    from rrm_lm.runs.scoring import make_scorer

    groups = [group_by_prompt(feedback.comparisons) for feedback in sets.values()]
    subjects = [(prompt, text) for group in groups for prompt, texts in group.items() for text in texts]
    critiques = critic.write(subjects, **args.loading())
    return AssistedScorer(make_scorer(args, model, judge_question=NOTES_QUESTION), critiques)
