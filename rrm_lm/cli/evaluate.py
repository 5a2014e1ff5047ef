"""`rrm-lm evaluate`: evaluate a reward model on held-out preferences, with error bars."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

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
    from rrm_lm.models.pretrained import process_state
    from rrm_lm.runs.critics import CRITIQUES_FILE, find_critic
    from rrm_lm.runs.scoring import load_sets, make_scorer, with_baselines
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
        scorer = make_scorer(args) if critic is None else _assisted(args, critic, sets)
        critiques = getattr(scorer, "critiques", None)
        evaluation = judge(scorer, sets, critiques and {"critic": critiques.account()})
        if args.baselines:
            evaluation = with_baselines(evaluation, scorer, args)
        folder.begin()
        if state.is_main_process:
            if critiques is not None:
                write_jsonl(args.folder / CRITIQUES_FILE, critiques.rows())
            write_judgement(
                evaluation,
                sets,
                args.folder,
                chat=getattr(scorer, "chat", None),
                location=str(args.model),
                configuration=asdict(args),
            )
    return 0


def _assisted(args: EvaluateArguments, critic: CriticSource, sets: dict[str, Feedback]) -> ResponseScorer:
    """The scorer, which sees the critic's notes on every response."""
    from rrm_lm.evaluation.preferences.judge import NOTES_QUESTION
    from rrm_lm.evaluation.preferences.scoring import group_by_prompt
    from rrm_lm.recursion.critics import AssistedScorer
    from rrm_lm.runs.scoring import make_scorer

    groups = [group_by_prompt(feedback.comparisons) for feedback in sets.values()]
    subjects = [(prompt, text) for group in groups for prompt, texts in group.items() for text in texts]
    critiques = critic.write(subjects, **args.loading())
    return AssistedScorer(make_scorer(args, judge_question=NOTES_QUESTION), critiques)
