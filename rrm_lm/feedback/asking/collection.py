"""Ask an overseer about a policy's responses: choose pairs, ask, and write the feedback file.

Responses are texts; no model is needed. Each answer is written to a journal next to the feedback file when it
arrives, so that no question is paid for twice. The feedback file is written at the end, and `load_feedback` reads it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rrm_lm import locks, storage
from rrm_lm.errors import CheckpointError, ConfigError, DataError
from rrm_lm.feedback.asking.concurrently import ask_all
from rrm_lm.feedback.asking.journal import Entry, Journal
from rrm_lm.feedback.asking.overseers import NO_ANSWER, Overseer, Verdict
from rrm_lm.feedback.records import Comparison, Origin, Prompt, check_prompt, find_surrogate
from rrm_lm.feedback.store.records import comparison_row

logger = logging.getLogger(__name__)

ASKED = ".asked"  # suffix of the journal, after the feedback file's name
Subject = tuple[Prompt, str]  # what a critique is about: a response to a prompt
Pair = tuple[Prompt, tuple[str, str]]  # two different responses to a prompt, in the order in which they are shown
Progress = Callable[[str, int, int], None]  # "comparisons" or "critiques", how many are done, how many in all


@dataclass(frozen=True)
class CollectionCounts:
    """Counts of responses and questions."""

    prompts: int = 0  # distinct prompts
    responses: int = 0  # all responses to them
    # responses that repeat another one to the same prompt (leading and trailing whitespace aside)
    equal_responses: int = 0
    empty_responses: int = 0  # responses without text
    prompts_without_pair: int = 0  # prompts without two different responses
    pairs: int = 0  # Pairs asked about. Each became a comparison, a tie or an abstention.
    comparisons: int = 0
    ties: int = 0
    abstentions: Mapping[str, int] = field(default_factory=dict)  # pairs without a verdict, by cause
    critiques: int = 0  # compared responses with a critique
    missing_critiques: int = 0  # compared responses for which the overseer wrote nothing

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"abstentions": dict(self.abstentions)}

    def summary(self) -> str:
        """One line for a log."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.abstentions.items())
        summary = (
            f"{self.pairs} pairs on {self.prompts} prompts: {self.comparisons} comparisons, {self.ties} ties, "
            f"{sum(self.abstentions.values())} abstentions" + (f" ({causes})" if causes else "")
        )
        if self.critiques or self.missing_critiques:
            missing = f" ({self.missing_critiques} missing)" if self.missing_critiques else ""
            summary += f"; {self.critiques} critiques{missing}"
        for count, what in (
            (self.equal_responses, "responses repeat another"),
            (self.empty_responses, "responses are empty"),
            (self.prompts_without_pair, "prompts have no two different responses"),
        ):
            summary += f"; {count} {what}" if count else ""
        return summary


@dataclass(frozen=True)
class Collected:
    """Comparisons with their critiques, in the order of the prompts, and the counts."""

    records: tuple[Comparison, ...]
    counts: CollectionCounts


def collect(
    overseer: Overseer,
    prompts: Sequence[Prompt],
    responses_per_prompt: Sequence[Sequence[str]],
    *,
    comparisons_per_prompt: int = 1,
    edits: Sequence[Pair] = (),
    critiques: bool = True,
    round_number: int = 1,
    path: str | Path | None = None,
    seed: int = 0,
    at_once: int | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Ask an overseer about responses to prompts, and save its answers.

    Asks about `comparisons_per_prompt` pairs of each prompt (see `choose_pairs`) and then, with `critiques`, once about
    each response of the pairs with a preference. Equal calls give equal feedback if the overseer is consistent.

    Args:
        overseer: The overseer. If it has a number `at_once`, it may be called from that many threads.
        prompts: The prompts. Repeated prompts are merged, with all their responses.
        responses_per_prompt: The policy's responses to each prompt.
        comparisons_per_prompt: Maximum number of pairs per prompt.
        edits: More pairs to ask about: a response and an edit of it.
        round_number: The round of feedback; records carry it as their `subset` "round 2".
        path: The feedback file to write, as JSON Lines, with the journal of answers next to it (`ASKED` is added to the
            name). If the journal exists, only missing answers are asked for. None keeps everything in memory.
        seed: Seed for the choice of pairs.
        at_once: Maximum number of questions in flight; None takes the overseer's `at_once`, or 1.
        progress: Called after each answer.

    Raises:
        ConfigError: The numbers of prompts and lists of responses differ, or no pair is asked for.
        DataError: An invalid prompt.
        CheckpointError: The file is not a collection of this overseer and round, is in use, or cannot be written.
        Exception: Any error of the overseer. The answers so far are kept.
    """
    if at_once is None:
        at_once = int(getattr(overseer, "at_once", 1))
    label = f"{overseer.name}, round {round_number}"
    pairs, counts = _pairs(prompts, responses_per_prompt, comparisons_per_prompt, seed, label)
    pairs += edits
    header = {"overseer": overseer.name, "limit": overseer.limit, "round": round_number}
    with _journal(path, header) as journal:
        answers = _Answers(journal, at_once, progress)
        verdicts = answers.verdicts(overseer, pairs)
        decided = [one for one in zip(pairs, verdicts, strict=True) if one[1].preferred is not None]
        subjects = list(dict.fromkeys((prompt, text) for (prompt, texts), _ in decided for text in texts))
        words = answers.critiques(overseer, subjects if critiques else [])
        records = tuple(
            _comparison(*one, words, overseer.name, round_number, Origin(label, row))
            for row, one in enumerate(decided, start=1)
        )
        if path is not None:
            rows = (comparison_row(one) | {"source": one.source, "subset": one.subset} for one in records)
            storage.write_jsonl(path, rows)
    counts = replace(
        counts,
        pairs=len(verdicts),
        comparisons=len(decided),
        ties=sum(verdict.preferred is None and not verdict.abstained for verdict in verdicts),
        abstentions=dict(Counter(verdict.abstained for verdict in verdicts if verdict.abstained).most_common()),
        critiques=sum(map(bool, words.values())),
        missing_critiques=sum(not texts for texts in words.values()),
    )
    logger.info("%s: %s", label, counts.summary())
    if not records:
        logger.warning("%s gave no comparison for any of %d pairs", label, len(pairs))
    return Collected(records, counts)


def _comparison(
    pair: Pair, verdict: Verdict, words: Mapping[Subject, tuple[str, ...]], name: str, round_number: int, origin: Origin
) -> Comparison:
    prompt, responses = pair
    chosen, rejected = responses if verdict.preferred == 0 else responses[::-1]
    return Comparison(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=verdict.strength,
        chosen_critiques=words.get((prompt, chosen), ()),
        rejected_critiques=words.get((prompt, rejected), ()),
        source=name.strip(),
        subset=f"round {round_number}",
        origin=origin,
    )


def choose_pairs(count: int, budget: int, rng: random.Random) -> list[tuple[int, int]]:
    """Up to `budget` different pairs of numbers below `count`, in random order and each in a random direction.

    The pair whose numbers were used least comes next, so three pairs of four include all four.
    """
    left = list(combinations(range(count), 2))
    rng.shuffle(left)
    used: Counter[int] = Counter()
    chosen: list[tuple[int, int]] = []
    while left and len(chosen) < budget:
        first, second = min(left, key=lambda pair: used[pair[0]] + used[pair[1]])
        left.remove((first, second))
        used.update((first, second))
        chosen.append((first, second) if rng.random() < 0.5 else (second, first))
    return chosen


def responses_asked_about(
    prompts: Sequence[Prompt],
    responses_per_prompt: Sequence[Sequence[str]],
    *,
    comparisons_per_prompt: int = 1,
    seed: int = 0,
) -> list[Subject]:
    """The responses that `collect` would show to an overseer if called with the same arguments, each once. Raises
    ConfigError, DataError as `collect` does.
    """
    pairs, _ = _pairs(prompts, responses_per_prompt, comparisons_per_prompt, seed, "an overseer")
    return list(dict.fromkeys((prompt, text) for prompt, responses in pairs for text in responses))


def _pairs(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[str]], budget: int, seed: int, label: str
) -> tuple[list[Pair], CollectionCounts]:
    """The pairs to ask about, and the counts of prompts and responses. A prompt's pairs do not depend on others."""
    if len(prompts) != len(responses):
        raise ConfigError(
            f"{len(responses)} lists of responses to {len(prompts)} prompts", expected="one list for each prompt"
        )
    if budget < 1:
        raise ConfigError(f"{budget} comparisons per prompt", where="comparisons_per_prompt", expected="at least 1")
    groups: dict[Prompt, list[str]] = {}
    for row, (prompt, group) in enumerate(zip(prompts, responses, strict=True), start=1):
        origin = Origin(f"prompts for {label}", row)
        check_prompt(prompt, origin)
        for text in group:
            if surrogate := find_surrogate(text):
                what = f"a response contains {surrogate}"
                remedy = "decode the policy's tokens with errors='replace'"
                raise DataError(what, where=str(origin), expected="valid Unicode text", remedy=remedy)
        groups.setdefault(prompt, []).extend(group)
    counts: Any = Counter(prompts=len(groups))
    pairs: list[Pair] = []
    for prompt, group in groups.items():
        with_text = [text for text in group if text.strip()]
        different: dict[str, str] = {}
        for text in with_text:
            different.setdefault(text.strip(), text)
        texts = list(different.values())
        counts.update(
            responses=len(group),
            equal_responses=len(with_text) - len(texts),
            empty_responses=len(group) - len(with_text),
            prompts_without_pair=len(texts) < 2,
        )
        rng = random.Random(json.dumps([seed, [(message.role, message.content) for message in prompt]]))
        pairs += [(prompt, (texts[i], texts[j])) for i, j in choose_pairs(len(texts), budget, rng)]
    return pairs, CollectionCounts(**counts)


class _Answers:
    """Answers from the journal or else from the overseer."""

    def __init__(self, journal: Journal, at_once: int, progress: Progress | None) -> None:
        self.journal, self.at_once, self.progress = journal, at_once, progress
        # A later answer replaces an earlier one; a question without an answer is asked again.
        self.known = {
            _key(entry): entry
            for entry in journal.entries
            if entry.get("abstained") != NO_ANSWER and entry.get("critique") != ""
        }

    def verdicts(self, overseer: Overseer, pairs: Sequence[Pair]) -> list[Verdict]:
        entries = self._all("comparison", pairs, lambda pair: asdict(overseer.compare(*pair)))
        return [Verdict(e["preferred"], e["strength"], e["reason"], e["abstained"]) for e in entries]

    def critiques(self, overseer: Overseer, subjects: Sequence[Subject]) -> dict[Subject, tuple[str, ...]]:
        def ask(subject: Subject) -> Entry:
            return {"critique": overseer.critique(*subject).encode("utf-8", "replace").decode().strip()}

        texts = [entry["critique"] for entry in self._all("critique", subjects, ask)]
        return {subject: (text,) if text else () for subject, text in zip(subjects, texts, strict=True)}

    def _all(self, kind: str, subjects: Sequence[Any], ask: Callable[[Any], Entry]) -> list[Entry]:
        questions = [_question(kind, *subject) for subject in subjects]
        missing = [place for place, question in enumerate(questions) if _key(question) not in self.known]
        done = len(questions) - len(missing)
        if done:
            logger.info("%d of %d %ss were already answered", done, len(questions), kind)

        def keep(_place: int, entry: Entry) -> None:
            nonlocal done
            self.journal.add(entry)
            self.known[_key(entry)] = entry
            done += 1
            if self.progress is not None:
                self.progress(f"{kind}s", done, len(questions))

        ask_all(lambda place: questions[place] | ask(subjects[place]), missing, at_once=self.at_once, keep=keep)
        return [self.known[_key(question)] for question in questions]


def _question(kind: str, prompt: Prompt, responses: str | Sequence[str]) -> Entry:
    texts = [responses] if isinstance(responses, str) else list(responses)
    return {"asked": kind, "prompt": [message.to_dict() for message in prompt], "responses": texts}


def _key(entry: Entry) -> str:
    return json.dumps([entry.get("asked"), entry.get("prompt"), entry.get("responses")], sort_keys=True)


@contextlib.contextmanager
def _journal(path: str | Path | None, header: Entry) -> Iterator[Journal]:
    """The journal next to the feedback file, locked by this process."""
    if path is None:
        yield Journal(None, header)
        return
    path = Path(path)
    asked = path.with_name(path.name + ASKED)
    if path.exists() and not asked.exists():
        what = "The file exists, and no collection made it"
        expected = f"a new file, or one with {asked.name} next to it"
        raise CheckpointError(what, where=str(path), expected=expected, remedy="collect into another file")
    with locks.lock(path.with_name(path.name + ".lock"), what="The feedback file"), Journal(asked, header) as journal:
        yield journal
