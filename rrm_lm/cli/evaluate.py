"""`rrm-lm evaluate`: how good a reward model is on held-out preferences, with error bars."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rrm_lm.cli.scoring import ScoringArguments, load_sets, make_scorer

if TYPE_CHECKING:
    from rrm_lm.feedback.datasets import Feedback

EXAMPLES = """\
examples:
  rrm-lm evaluate --model outputs/demo/reward --dataset my_pairs.jsonl
  rrm-lm evaluate --model Skywork/Skywork-Reward-V2-Qwen3-0.6B --dataset allenai/reward-bench --split filtered
  rrm-lm evaluate --model smollm2-135m --dataset my_pairs.jsonl other_pairs.csv     (a language model as a judge)
"""


@dataclass
class EvaluateArguments(ScoringArguments):
    """What `rrm-lm evaluate` needs."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where the results go; unset: outputs/evaluate/ and the model's name."}
    )
    overwrite_output_dir: bool = field(default=True, metadata={"help": "Replace earlier results in output_dir."})

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        return Path("outputs/evaluate") / (re.sub(r"[^\w.-]+", "-", str(self.model)).strip("-.") or "model")


def run(argv: list[str]) -> int:
    """Score held-out comparisons, write the results and print them."""
    from rrm_lm.cli.parser import parse

    (args,) = parse([EvaluateArguments], argv, command="rrm-lm evaluate", examples=EXAMPLES)
    args.require()
    from rrm_lm.cli.judged import judge, write_judgement
    from rrm_lm.models.pretrained import process_state
    from rrm_lm.training.output_folder import OutputFolder

    state = process_state()
    folder = OutputFolder(
        args.folder,
        command="rrm-lm evaluate",
        identity={"model": args.model, "dataset": args.dataset},
        overwrite=args.overwrite_output_dir,
        active=state.is_main_process,
        deferred=True,  # earlier results stay until there are new ones
    )
    with folder:
        state.wait_for_everyone()
        sets = _comparisons(load_sets(args))
        scorer = make_scorer(args)
        evaluation = judge(scorer, sets)
        folder.begin()
        if state.is_main_process:
            write_judgement(
                evaluation,
                sets,
                args.folder,
                chat=getattr(scorer, "chat", None),
                location=str(args.model),
                configuration=asdict(args),
            )
    return 0


def _comparisons(sets: dict[str, Feedback]) -> dict[str, Feedback]:
    """The sets as they are, if each has comparisons."""
    from rrm_lm.errors import DataError

    empty = [name for name, feedback in sets.items() if not feedback.comparisons]
    if empty:
        raise DataError(
            "There are no comparisons to judge a model by",
            where=", ".join(empty),
            expected="pairs of a chosen and a rejected response, or several ratings of one prompt",
            remedy="name another set, or say which column is which with --columns",
        )
    return sets
