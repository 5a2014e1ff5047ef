"""Does a critic trained on people's critiques help a language model to judge? FeedbackQA, held-out pairs.

    python scripts/bench/critic.py --data path/to/feedbackqa
    python scripts/bench/critic.py --data path/to/feedbackqa --minutes 20   (again, until nothing is left to do)

A reward model learns to prefer and to write critiques (the critic). A language model then judges every response of the
held-out pairs by itself, as `rrm-lm evaluate` does: alone; shown the critic's critique; shown a critique of an answer
to another question (a sham); and shown what people wrote about that very response, which no critic can beat. Each with
the usual question, and with the one that speaks of notes.

What is done is kept in `--folder` and not done again. Nothing of the data is written into the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from common import RESULTS, SHARED, machine

from rrm_lm.evaluation.preferences.judge import JUDGE_QUESTION, NOTES_QUESTION, JudgeScorer
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, group_by_prompt, score_responses
from rrm_lm.evaluation.statistics.metrics import correctness, length_correlation, paired_difference, share
from rrm_lm.feedback.asking.collection import Subject
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.feedback.records import Comparison
from rrm_lm.feedback.splits import LeakageReport, leakage
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, process_state
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.reward_files import put_reward
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.recursion.agents import Shared
from rrm_lm.recursion.critics import AdapterCritic, AssistedScorer, Critiques, Remark, write_critiques
from rrm_lm.recursion.training import NodeTrainer, TrainingOptions
from rrm_lm.recursion.tree import NodeSettings
from rrm_lm.settings.models import ModelArguments
from rrm_lm.storage import write_json
from rrm_lm.text.chat import ChatFormat

QUESTIONS = {"plain": JUDGE_QUESTION, "notes": NOTES_QUESTION}
ALONE = "none"
HELP = ("critic", "sham", "human")
MAIN = "notes"  # the question that `rrm-lm evaluate --critic` asks


@dataclass(frozen=True)
class Sizes:
    """How large everything is; part of what makes a bench that bench."""

    train: int = 150
    pairs: int = 160
    epochs: float = 2.0
    learning_rate: float = 5e-4
    batch: int = 8
    critique_weight: float = 2.0
    max_length: int = 384
    max_critique_length: int = 64
    seed: int = 0


class Bench:
    """The pieces, each of which is run where its file is not there yet."""

    def __init__(self, folder: Path, data: Path, model: str, sizes: Sizes) -> None:
        self.folder, self.model, self.sizes = folder, model, sizes
        self._refuse_other()
        self.train, self.heldout, self.leak = split(data, sizes)
        self.groups = group_by_prompt(self.heldout)
        self.subjects: list[Subject] = [(prompt, text) for prompt, texts in self.groups.items() for text in texts]
        tokenizer: Any = load_tokenizer(model)
        backbone = Backbone(load_causal_lm(model), int(tokenizer.pad_token_id))
        backbone.to(process_state().device or "cpu").eval()
        chat = ChatFormat(tokenizer, sizes.max_length, sizes.max_critique_length)
        self.shared = Shared(backbone, chat, model, ModelArguments().lora())
        self._critic: RewardModel | None = None

    def train_critic(self) -> dict[str, Any]:
        """The critic's folder, made or gone on with."""
        began, sizes = time.perf_counter(), self.sizes
        settings = NodeSettings(
            num_train_epochs=sizes.epochs, learning_rate=sizes.learning_rate, critique_view="all",
            per_device_train_batch_size=sizes.batch, critique_weight=sizes.critique_weight,
        )  # fmt: skip
        trainer = NodeTrainer(self.shared, "critic", settings, TrainingOptions(sizes.seed))
        trainer.train_reward(self.train, self.folder / "critic")
        log = json.loads((self.folder / "critic" / "log_history.json").read_text())
        logged = [entry for entry in log if "loss" in entry]
        return {"seconds": round(time.perf_counter() - began, 1), "log": [logged[0], logged[-1]] if logged else []}

    def write(self) -> dict[str, Any]:
        """What the critic says about every held-out response."""
        began = time.perf_counter()
        critiques = write_critiques(AdapterCritic(self.critic, self.shared.chat, "critic"), self.subjects)
        remarks = [asdict(critiques.remarks[subject]) for subject in self.subjects]
        return {"seconds": round(time.perf_counter() - began, 1), "remarks": remarks}

    def own_rewards(self) -> dict[str, Any]:
        """The critic's own rewards: what it knows, however it says it."""
        return self._rewards(RewardScorer(self.critic.eval(), self.shared.chat))

    def judge(self, help_: str, question: str) -> dict[str, Any]:
        """The judge's rewards with some help."""
        chat = ChatFormat(self.shared.chat.tokenizer)
        scorer: ResponseScorer = JudgeScorer(self.shared.backbone, chat, "judge", question=QUESTIONS[question])
        return self._rewards(scorer if help_ == ALONE else AssistedScorer(scorer, self.critiques(help_)))

    def critiques(self, help_: str) -> Critiques:
        """What the judge is shown."""
        if help_ == "human":
            said = people(self.heldout)
            remarks = {subject: Remark(" ".join(said[subject])) for subject in self.subjects}
        else:
            kept = [Remark(**one) for one in self._kept("critiques")["remarks"]]
            remarks = dict(zip(self.subjects, kept, strict=True))
            if help_ == "sham":
                others = elsewhere(self.subjects, self.sizes.seed)
                remarks = {subject: remarks[others[subject]] for subject in self.subjects}
        return Critiques(help_, "critic", remarks)

    @property
    def critic(self) -> RewardModel:
        """The trained critic on the shared backbone."""
        if self._critic is None:
            folder = self.folder / "critic"
            self._critic = put_reward(self.shared.backbone, folder, base_model=self.model, adapter="bench_critic")
        return self._critic

    def pieces(self) -> dict[str, Any]:
        """Everything there is to do, in order."""
        alone = [(ALONE, question) for question in QUESTIONS]
        judged = [*alone, *((help_, question) for question in reversed(QUESTIONS) for help_ in HELP)]
        return {
            "trained": self.train_critic,
            "critiques": self.write,
            "own": self.own_rewards,
            **{f"{help_}-{question}": lambda h=help_, q=question: self.judge(h, q) for help_, question in judged},
        }

    def run(self, minutes: float) -> bool:
        """Do what is left, and begin nothing further after some time; whether everything is done."""
        began = time.perf_counter()
        for name, piece in self.pieces().items():
            if self._file(name).is_file():
                continue
            if time.perf_counter() - began > 60 * minutes:
                print(f"{minutes:g} minutes are over; {name} is next", flush=True)
                return False
            print(f"{name} ...", flush=True)
            write_json(self._file(name), piece())
        return True

    def results(self) -> dict[str, Any]:
        """Accuracies with intervals over prompts, and paired differences."""
        clusters = [pair.prompt_id for pair in self.heldout]
        names = [name for name in self.pieces() if name not in ("trained", "critiques")]
        right = {name: self._right(self._kept(name)["rewards"]) for name in names}
        alone = f"{ALONE}-plain"  # what `rrm-lm evaluate` asks without a critic
        pairs = [
            (f"{one}-{question}", other)
            for question in QUESTIONS
            for one, other in (
                *((help_, alone) for help_ in HELP),
                *((help_, f"{ALONE}-{question}") for help_ in HELP if question == MAIN),
                ("critic", f"sham-{question}"),
                ("human", f"critic-{question}"),
            )
        ]
        differences = {
            f"{one} minus {other}": paired_difference(right[one], right[other], clusters).to_dict()
            for one, other in pairs
        }
        critiques = self.critiques("critic")
        said = people(self.heldout)
        found = {
            "sizes": asdict(self.sizes) | {"model": self.model},
            "heldout": {"pairs": len(self.heldout), "prompts": len(self.groups), "responses": len(self.subjects)},
            "leakage": {"found": self.leak.found, "summary": self.leak.summary()},
            "trained": self._kept("trained"),
            "critiques": {key: value for key, value in critiques.account().items() if key != "samples"}
            | {
                "seconds": self._kept("critiques")["seconds"],
                "words": _words([one.text for one in critiques.remarks.values()]),
                "words_by_people": _words([" ".join(texts) for texts in said.values()]),
            },
            "accuracy": {name: share(values, clusters).to_dict() for name, values in right.items()},
            "differences": differences,
            "length": self._length(names),
            "seconds": {name: self._kept(name)["seconds"] for name in names},
        }
        return found | {"verdict": verdict(differences)}

    def _length(self, names: Sequence[str]) -> dict[str, Any]:
        """How often the longer response is the better one, and how rewards go with length."""
        lengths, prompts = [len(text) for _, text in self.subjects], [prompt for prompt, _ in self.subjects]
        found = {name: asdict(length_correlation(self._kept(name)["rewards"], lengths, prompts)) for name in names}
        longer = share(self._right(lengths), [pair.prompt_id for pair in self.heldout])
        return {"longer_is_right": longer.to_dict(), "correlation": found}

    def _rewards(self, scorer: ResponseScorer) -> dict[str, Any]:
        began = time.perf_counter()
        found = score_responses(scorer, self.groups)
        rewards = [found[prompt][text] for prompt, text in self.subjects]
        return {"seconds": round(time.perf_counter() - began, 1), "rewards": rewards}

    def _right(self, rewards: Sequence[float]) -> list[float]:
        by_subject = dict(zip(self.subjects, rewards, strict=True))
        margins = [by_subject[one.prompt, one.chosen] - by_subject[one.prompt, one.rejected] for one in self.heldout]
        return correctness(margins).tolist()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _kept(self, name: str) -> Any:
        return json.loads(self._file(name).read_text(encoding="utf-8"))

    def _refuse_other(self) -> None:
        file, mine = self._file("sizes"), asdict(self.sizes) | {"model": self.model}
        if file.is_file() and json.loads(file.read_text()) != mine:
            raise SystemExit(f"{self.folder} holds another bench; name another --folder")
        write_json(file, mine)


def split(data: Path, sizes: Sizes) -> tuple[list[Comparison], list[Comparison], LeakageReport]:
    """Pairs to learn from and held-out ones, all with critiques, and what they share.

    Held out are all pairs of some prompts of the held-out file. No prompt and no answer of them is learned from.
    """
    rng = random.Random(sizes.seed)
    pool, others = (_with_critiques(data, name) for name in ("train", "dev"))
    prompts = sorted({pair.prompt_id for pair in others})
    rng.shuffle(prompts)
    heldout: list[Comparison] = []
    for prompt in prompts:
        if len(heldout) < sizes.pairs:
            heldout += [pair for pair in others if pair.prompt_id == prompt]
    taken = {_plain(text) for pair in heldout for text in (pair.chosen, pair.rejected)}
    closed = {pair.prompt_id for pair in heldout}
    free = [
        pair
        for pair in pool
        if pair.prompt_id not in closed and not taken & {_plain(pair.chosen), _plain(pair.rejected)}
    ]
    train = rng.sample(free, min(sizes.train, len(free)))
    return train, heldout, leakage(Feedback.of(train), Feedback.of(heldout))


def _with_critiques(data: Path, name: str) -> list[Comparison]:
    (file,) = sorted(data.glob(f"{name}.jsonl*"))
    return [one for one in load_feedback(str(file)).comparisons if one.chosen_critiques and one.rejected_critiques]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def people(pairs: Sequence[Comparison]) -> Mapping[Subject, tuple[str, ...]]:
    """What people wrote about each response."""
    said: dict[Subject, tuple[str, ...]] = {}
    for pair in pairs:
        for response, texts in ((pair.chosen, pair.chosen_critiques), (pair.rejected, pair.rejected_critiques)):
            said.setdefault((pair.prompt, response), texts)
    return said


def elsewhere(subjects: Sequence[Subject], seed: int) -> dict[Subject, Subject]:
    """For each response one to another prompt, each used once."""
    rng, groups = random.Random(f"sham {seed}"), dict[Any, list[Subject]]()
    for subject in subjects:
        groups.setdefault(subject[0], []).append(subject)
    order = sorted(groups.values(), key=lambda group: (-len(group), rng.random()))
    line = [subject for group in order for subject in group]
    step = len(order[0])  # the largest group: further than any group reaches
    return dict(zip(line, line[step:] + line[:step], strict=True))


def _words(texts: Sequence[str]) -> float:
    return round(sum(len(text.split()) for text in texts) / len(texts), 1)


def verdict(differences: Mapping[str, Mapping[str, float]]) -> str:
    """What the intervals allow to be said, by the question that the command asks."""
    alone, sham, human = (
        differences[f"{one}-{MAIN} minus {other}"]
        for one, other in (("critic", f"{ALONE}-plain"), ("critic", f"sham-{MAIN}"), ("human", f"{ALONE}-plain"))
    )
    if alone["low"] > 0 and sham["low"] > 0:
        return "helped"
    if alone["high"] < 0:
        return "harmed"
    if alone["low"] > 0:
        return "no more help than a sham"
    return "did not help" if human["low"] > 0 else "did not help, and people's own critiques did not either"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "feedbackqa", help="folder with train and dev files")
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench_critic"), help="where pieces are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where critic.json goes")
    parser.add_argument("--model", default="smollm2-135m", help="backbone of the critic, and the judge")
    parser.add_argument("--minutes", type=float, default=600, help="begin no further piece after this time")
    for one in fields(Sizes):
        parser.add_argument(f"--{one.name}", type=type(one.default), default=one.default)
    args = parser.parse_args(words)
    sizes = Sizes(**{one.name: getattr(args, one.name) for one in fields(Sizes)})
    bench = Bench(args.folder, args.data, args.model, sizes)
    print(bench.leak.summary(), flush=True)
    if not bench.run(args.minutes):
        return
    found = {"machine": machine(), **bench.results()}
    write_json(args.results / "critic.json", found)
    for name, one in {**found["accuracy"], **found["differences"]}.items():
        print(f"{name}: {100 * one['value']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})")
    print(f"verdict: {found['verdict']}\n{args.results / 'critic.json'}")


if __name__ == "__main__":
    main()
