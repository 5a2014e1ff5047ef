"""Does recursion help? The chip domain with an unassisted overseer, an assisted one, and controls.

    python scripts/bench/recursion.py --minutes 110                (repeat until it is finished)
    python scripts/bench/recursion.py --seeds 1 --only ablations
    python scripts/bench/recursion.py --summarise                  (writes results/recursion.json and .html)

Arms at every seed: U (no help), A (helpers' notes), C (no notes; A's checks spent on fully measured pairs) and G (true
labels). At the control seeds also Sh (the notes on another response: a sham), C0 (C's measured pairs alone), C+ (C with
measured pairs counted three times) and A0 (helpers that saw no planted designs). Each trains the same reward model,
with the same first weights, on the same pairs. An overseer's own tie is left out; nothing else is. B are responses
without a reward model: the best constant ones and random ones. Ablations: A without one helper, and notes as the
reward's input (N). Depths: A with helpers that have helpers (A2).

Every piece (helpers, an arm, a policy) is saved when it is done and not repeated; a stopped piece resumes from its
newest checkpoint. After `--minutes`, no further piece is started. Seed 0 was a pilot, on which settings were chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from common import commit, machine
from recursion_controls import MeasuredNotes, ShamNotes, trivial_gold
from recursion_rules import CONTROLS, CORE
from recursion_summary import summarise

from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.records import Comparison, Demonstration, Message, Origin, Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, process_state
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.recursion import quality
from rrm_lm.recursion.agents import (
    Costs,
    ScorerWithNotes,
    Shared,
    drop_adapters,
    load_reward,
    load_sampler,
    reward_adapter,
)
from rrm_lm.recursion.assistance import Assistance, Assisted, HelperNotes
from rrm_lm.recursion.domains import load_domain
from rrm_lm.recursion.oversight import LimitedOverseer
from rrm_lm.recursion.solve import solve_all
from rrm_lm.recursion.tasks import POINT, MainTask
from rrm_lm.recursion.training import NodeTrainer, TrainingOptions, read_with_notes
from rrm_lm.recursion.tree import NodeSettings, read_tree
from rrm_lm.recursion.workspace import Workspace
from rrm_lm.settings.models import ModelArguments
from rrm_lm.storage import write_json
from rrm_lm.text.chat import ChatFormat

MAIN = "main"
DEEP = "A2"  # helpers that have helpers
UNPLANTED = "A0"  # helpers that saw no planted designs
MEASURED = ("C", "C0", "C+")  # arms that spend the checks on measured pairs
MEASURED_COUNT = 3  # how often C+ counts a measured pair
CONTROL_SEEDS = (1, 2, 3)  # seeds of the controls, the policies and the depths
GROUPS = ("core", "controls", "policies", "depths")
INPUT = "N"  # the reward model reads the notes, too
START_WRITER = "start_policy"


@dataclass(frozen=True)
class Sizes:
    """How large everything is; part of what makes a piece that piece.

    Attributes:
        pairs: Comparisons that every arm learns from.
        checks, planted: M, checks for each helper; the share of them that is of planted bad responses.
        far, near, requests, samples: Fresh pairs, pairs that differ in one thing, requests and responses to each.
        epochs, learning_rate, batch: Of the arms' reward models.
        helper_epochs, helper_learning_rate, critique_weight: Of the helpers'; what the overseer says of a check ("It is
            over.") trains them as words do.
        updates, episodes, policy_samples: Of the policies that PPO trains; responses to each request by which one is
            judged.
        drafts, draft_epochs: Of the policy that all start from.
    """

    pairs: int = 300
    checks: int = 160
    planted: float = 0.4
    far: int = 300
    near: int = 120
    requests: int = 48
    samples: int = 16
    epochs: float = 3.0
    learning_rate: float = 1e-3
    helper_epochs: float = 5.0
    helper_learning_rate: float = 1e-3
    critique_weight: float = 0.0
    batch: int = 8
    updates: int = 8
    episodes: int = 32
    policy_samples: int = 4
    drafts: int = 192
    draft_epochs: float = 3.0
    max_new_tokens: int = 48


class Experiment:
    """The pieces, each of which is run where its file is not there yet.

    Args:
        folder: Where they are kept.
        sizes: See above.
        model: The backbone.
        domain: By its name.
    """

    def __init__(self, folder: Path, sizes: Sizes, model: str, domain: str) -> None:
        self.folder, self.sizes, self.model, self.domain = folder, sizes, model, load_domain(domain)
        self.task = MainTask(self.domain)
        self.helpers = [name for name in self.task.helpers if name != POINT]
        self.settings = NodeSettings(
            task=MAIN, num_train_epochs=sizes.epochs, learning_rate=sizes.learning_rate, max_steps=sizes.updates,
            per_device_train_batch_size=sizes.batch, episodes=sizes.episodes, drafts=sizes.drafts,
            draft_epochs=sizes.draft_epochs, max_new_tokens=sizes.max_new_tokens,
        )  # fmt: skip
        self._shared: Shared | None = None
        self._writes(folder / "experiment.json", {"model": model, "domain": domain, "sizes": asdict(sizes)})

    def _writes(self, file: Path, made: dict[str, Any]) -> None:
        """Write down what the pieces are of; refuse a folder with pieces of something else."""
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != made:
            raise SystemExit(f"{file} is of another experiment: choose another --folder")
        write_json(file, made)

    @property
    def shared(self) -> Shared:
        """The backbone that everything is on, loaded when it is first needed."""
        if self._shared is None:
            tokenizer: Any = load_tokenizer(self.model)
            backbone = Backbone(load_causal_lm(self.model, dtype="float32"), int(tokenizer.pad_token_id))
            backbone.to(process_state().device or "cpu").eval()
            self._shared = Shared(backbone, ChatFormat(tokenizer, 448), self.model, ModelArguments().lora())
        return self._shared

    # -- pieces -------------------------------------------------------------------------------------------------------

    def pieces(self, seeds: Sequence[int], groups: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
        """Names of the pieces that are not done, with what does them, in an order in which each finds what it needs."""
        if not (self.folder / "questions.json").is_file():
            yield "questions", self.make_questions
        for group in groups:
            for seed in seeds if group in ("core", "ablations") else [one for one in seeds if one in CONTROL_SEEDS]:
                if group == "policies":
                    for arm in (*CORE, "Sh"):
                        yield from self._arm(arm, seed)
                        file = self.place(seed) / f"{arm}_policy.json"
                        yield from self._if_missing(file, lambda a=arm, s=seed: self.run_policy(a, s))
                else:
                    for arm in self._arms(group):
                        yield from self._arm(arm, seed)

    def _arm(self, arm: str, seed: int) -> Iterator[tuple[str, Callable[[], None]]]:
        """An arm, after its helpers."""
        if arm not in ("U", "G", *MEASURED):
            name = _helpers_of(arm)
            file = self.place(seed) / f"helpers_{name}.json"
            yield from self._if_missing(file, lambda: self.solve_helpers(seed, name))
        yield from self._if_missing(self.place(seed) / f"{arm}.json", lambda: self.run_arm(arm, seed))

    def _arms(self, group: str) -> Sequence[str]:
        if group == "depths":
            return [DEEP] if any(self.domain.aspects[name].parts for name in self.helpers) else []
        return {"core": CORE, "controls": CONTROLS, "ablations": [*(f"A-{name}" for name in self.helpers), INPUT]}[
            group
        ]

    def _if_missing(self, file: Path, run: Callable[[], None]) -> Iterator[tuple[str, Callable[[], None]]]:
        if not file.is_file():
            yield str(file.relative_to(self.folder)), run

    def place(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def make_questions(self) -> None:
        """What every arm of every seed is judged by: fresh pairs, and responses of the start policy to choose from."""
        rng, sizes = random.Random("questions"), self.sizes
        prompts = self.task.prompts(sizes.drafts, rng)
        drafts = [
            Demonstration(prompt=prompt, response=self.domain.draft(prompt, rng), origin=Origin("drafts", row))
            for row, prompt in enumerate(prompts, start=1)
        ]
        start = self.folder / "start"
        NodeTrainer(self.shared, "start", self.settings).train_start(drafts, start)
        requests = [self.domain.prompts[i % len(self.domain.prompts)] for i in range(sizes.requests)]
        sampler = load_sampler(self.shared, start, START_WRITER, sizes.max_new_tokens, Costs())
        written = sampler.sample(requests, sizes.samples, seed=12345)
        drop_adapters(self.shared, START_WRITER)
        found = {
            name: [[_plain(prompt), better, worse] for prompt, better, worse in
                   quality.fresh_pairs(self.domain, getattr(sizes, name), rng, near=name == "near")]
            for name in ("far", "near")
        }  # fmt: skip
        gold = [[self.domain.gold(p, text) for text in group] for p, group in zip(requests, written, strict=True)]
        readable = sum(self.domain.parse(text) is not None for group in written for text in group)
        found |= {"requests": [_plain(prompt) for prompt in requests], "responses": written, "gold": gold}
        found |= {
            "readable": readable / (len(requests) * sizes.samples),
            "trivial": trivial_gold(self.domain, requests),
        }
        write_json(self.folder / "questions.json", found)

    def solve_helpers(self, seed: int, kind: str) -> None:
        """Train the helpers of a seed, which the arms with the same kind of helpers share (`_helpers_of`)."""
        began = time.perf_counter()
        workspace, tree = self._helper_tree(seed, kind)
        solve_all(tree.helpers, workspace)
        below = [node for helper in tree.helpers for node in helper.walk()]
        found = {
            node.name: {
                "quality": json.loads((workspace.folder_of(node) / quality.FILE).read_text(encoding="utf-8")),
                "costs": workspace.costs(node),
                "depth": node.depth,
            }
            for node in below
        }
        seconds = round(time.perf_counter() - began, 1)
        write_json(self.place(seed) / f"helpers_{kind}.json", {"helpers": found, "seconds": seconds})

    def run_arm(self, arm: str, seed: int) -> None:
        """Label the pairs, train the reward model, and score what it is judged by."""
        began, pairs = time.perf_counter(), self.pairs(seed)
        assistance = self.assistance(arm, seed, pairs)
        records, right = self.label(arm, seed, pairs, assistance)
        labelled = time.perf_counter() - began
        if arm == INPUT:
            records = read_with_notes(records, assistance)
        name, folder = _identifier(f"{arm}_{seed}"), self.place(seed) / _identifier(arm)
        settings = self.settings
        if arm in ("C0", "C+"):  # as many updates as the other arms, from fewer or more comparisons
            settings = replace(settings, num_train_epochs=self.sizes.epochs * len(pairs) / len(records))
        NodeTrainer(self.shared, name, settings, TrainingOptions(seed)).train_reward(records, folder)
        trained = time.perf_counter() - began - labelled
        scorer: ResponseScorer = load_reward(self.shared, folder, name)
        if arm == INPUT:
            scorer = ScorerWithNotes(scorer, self.assistance(arm, seed, pairs))
        found = self.scored(scorer)
        drop_adapters(self.shared, reward_adapter(name))
        found |= {
            "arm": arm, "seed": seed, "labels": right, "comparisons": len(records), "checks": self.checks(arm, seed),
            "notes": assistance.account(), "commit": commit(),
            "seconds": {"labels": round(labelled, 1), "training": round(trained, 1),
                        "all": round(time.perf_counter() - began, 1)},
        }  # fmt: skip
        write_json(self.place(seed) / f"{arm}.json", found)

    def run_policy(self, arm: str, seed: int) -> None:
        """Train a policy with PPO against an arm's reward, and see what its responses are worth."""
        began, questions = time.perf_counter(), self.questions()
        name = _identifier(f"{arm}_{seed}")
        scorer = load_reward(self.shared, self.place(seed) / _identifier(arm), name)
        folder = self.place(seed) / f"{_identifier(arm)}_policy"
        prompts = self.task.prompts(max(64, self.sizes.episodes), random.Random(seed))
        trainer = NodeTrainer(self.shared, name, self.settings, TrainingOptions(seed))
        tokens = trainer.train_policy(prompts, scorer, self.folder / "start", folder)
        sampler = load_sampler(self.shared, folder, f"{name}_policy", self.sizes.max_new_tokens, Costs())
        requests = [_prompt(one) for one in questions["requests"]]
        written = sampler.sample(requests, self.sizes.policy_samples, seed=777)
        drop_adapters(self.shared, reward_adapter(name), f"{name}_policy")
        gold = [[self.domain.gold(p, text) for text in group] for p, group in zip(requests, written, strict=True)]
        found = {
            "arm": arm, "seed": seed, "tokens": tokens, "responses": written,
            "gold": [sum(group) / len(group) for group in gold],
            "unreadable": sum(self.domain.parse(text) is None for group in written for text in group),
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        write_json(self.place(seed) / f"{arm}_policy.json", found)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _helper_tree(self, seed: int, kind: str) -> tuple[Workspace, Any]:
        each = {
            "questions": self.sizes.checks, "num_train_epochs": self.sizes.helper_epochs,
            "learning_rate": self.sizes.helper_learning_rate, "per_device_train_batch_size": self.sizes.batch,
            "critique_weight": self.sizes.critique_weight, "critique_view": "reward",
            "planted": 0.0 if kind == UNPLANTED else self.sizes.planted, "tested": self.sizes.far,
        }  # fmt: skip
        deep = kind == DEEP
        parts = {name: self.domain.aspects[name].parts for name in self.helpers}
        names = [f"deep_{name}" if deep and parts[name] else name for name in self.helpers]
        nodes: dict[str, Any] = {MAIN: {"helpers": names}}
        for name, node in zip(self.helpers, names, strict=True):
            nodes[node] = each | {"task": name, "helpers": list(parts[name]) if node != name else []}
            nodes |= {part: each for part in nodes[node]["helpers"]}
        tree = read_tree(self.domain, nodes)
        # The deeper tree shares the helpers that have no parts with A's.
        folder = self.place(seed) / ("nodes_A0" if kind == UNPLANTED else "nodes")
        return Workspace(folder, self.shared, TrainingOptions(seed), {"name": self.model}), tree

    def pairs(self, seed: int) -> list[tuple[Prompt, str, str]]:
        """What the overseer of a seed compares, the same for every arm: responses of the policy that all start from."""
        file = self.place(seed) / "pairs.json"
        if not file.is_file():
            sampler = load_sampler(self.shared, self.folder / "start", START_WRITER, self.sizes.max_new_tokens, Costs())
            prompts = self.task.prompts(self.sizes.pairs + self.sizes.pairs // 8 + 4, random.Random(f"pairs {seed}"))
            written = sampler.sample(prompts, 2, seed=1000 + seed)
            drop_adapters(self.shared, START_WRITER)
            whole = [(_plain(p), *both) for p, both in zip(prompts, written, strict=True) if _differ(*both)]
            write_json(file, whole[: self.sizes.pairs])
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [(_prompt(prompt), one, other) for prompt, one, other in rows]

    def assistance(self, arm: str, seed: int, pairs: Sequence[tuple[Prompt, str, str]]) -> Assistance:
        """The notes that an arm's overseer gets, ready."""
        subjects = [(prompt, text) for prompt, *both in pairs for text in both]
        if arm in ("U", "G"):
            return HelperNotes(())
        if arm in MEASURED:
            return MeasuredNotes(self.domain, frozenset(subjects[: 2 * self._measured]))
        kind = _helpers_of(arm)
        workspace, tree = self._helper_tree(seed, kind)
        agents = solve_all(tree.helpers, workspace)
        every = HelperNotes(agents, self.place(seed) / f"notes_{kind}.jsonl")
        every.prepare(subjects)
        if arm == "Sh":
            return ShamNotes(every, subjects, seed)
        if arm.startswith("A-"):
            left = HelperNotes([agent for agent in agents if agent.task.name != arm[2:]])
            left.answers = {agent.name: every.answers[agent.name] for agent in left.helpers}
            return left
        return every

    def label(
        self, arm: str, seed: int, pairs: Sequence[tuple[Prompt, str, str]], assistance: Assistance
    ) -> tuple[list[Comparison], list[int]]:
        """Comparisons as an arm's overseer makes them, and whether each is as the truth has it, where it has one."""
        overseer = Assisted(LimitedOverseer(self.domain, seed), assistance)
        records, right = [], []
        for row, (prompt, *both) in enumerate(pairs[: self._measured] if arm == "C0" else pairs, start=1):
            gap = self.domain.gold(prompt, both[0]) - self.domain.gold(prompt, both[1])
            by_gold = None if gap == 0 else int(gap < 0)
            preferred = by_gold if arm == "G" else overseer.compare(prompt, both).preferred
            if preferred is None:
                continue
            if by_gold is not None:
                right.append(int(preferred == by_gold))
            chosen, rejected = both if preferred == 0 else reversed(both)
            record = Comparison(prompt=prompt, chosen=chosen, rejected=rejected, origin=Origin(f"arm {arm}", row))
            records += [record] * (MEASURED_COUNT if arm == "C+" and row <= self._measured else 1)
        return records, right

    @property
    def _measured(self) -> int:
        """Pairs that A's checks buy: a pair takes a check for each aspect of each response, M for each helper M / 2."""
        return self.sizes.checks // 2

    def checks(self, arm: str, seed: int) -> int:
        """What an arm asks of the bench."""
        if arm in ("U", "G"):
            return 0
        if arm == DEEP:
            deep = json.loads((self.place(seed) / f"helpers_{DEEP}.json").read_text(encoding="utf-8"))
            return sum(one["costs"]["checks"] for one in deep["helpers"].values())
        return (len(self.helpers) - arm.startswith("A-")) * self.sizes.checks

    def questions(self) -> dict[str, Any]:
        return json.loads((self.folder / "questions.json").read_text(encoding="utf-8"))

    def scored(self, scorer: ResponseScorer) -> dict[str, Any]:
        """Margins of the fresh pairs, and rewards of the responses to choose from."""
        questions = self.questions()
        found: dict[str, Any] = {
            name: quality.margins(scorer, [(_prompt(p), better, worse) for p, better, worse in questions[name]])
            for name in ("far", "near")
        }
        requests = [_prompt(one) for one in questions["requests"]]
        return found | {"rewards": scorer.score(requests, questions["responses"])}


def _helpers_of(arm: str) -> str:
    """The arm that names the helpers of an arm with notes."""
    return arm if arm in (DEEP, UNPLANTED) else "A"


def _differ(one: str, other: str) -> bool:
    return bool(one.strip() and other.strip()) and one.strip() != other.strip()


def _identifier(name: str) -> str:
    return name.replace("-", "_no_").replace("+", "_weighted").lower()


def _plain(prompt: Prompt) -> list[list[str]]:
    return [[message.role, message.content] for message in prompt]


def _prompt(plain: Sequence[Sequence[str]]) -> Prompt:
    return tuple(Message(role, content) for role, content in plain)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 9)))
    parser.add_argument("--only", nargs="+", choices=[*GROUPS, "ablations"], default=GROUPS)
    parser.add_argument("--folder", type=Path, default=Path("outputs/recursion_bench"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--domain", default="chip")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further piece after this time")
    parser.add_argument("--summarise", action="store_true", help="only write the summary of what is done")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args(argv)
    sizes = replace(Sizes(), **{name: getattr(args, name) for name in asdict(Sizes())})
    began = time.perf_counter()
    if not args.summarise:
        experiment = Experiment(args.folder, sizes, args.model, args.domain)
        for name, run in experiment.pieces(args.seeds, args.only):
            if time.perf_counter() - began > 60 * args.minutes:
                print(f"{args.minutes:g} minutes are over; {name} is next", flush=True)
                break
            print(f"{name} ...", flush=True)
            started = time.perf_counter()
            run()
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(summarise(args.folder, args.results, machine()), flush=True)


if __name__ == "__main__":
    main()
