"""Split by prompt, and check that nothing held out is in the training set, word for word or nearly so."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Comparison, Correction, Critique, Demonstration, Origin, Prompt, Rating, Record

SHINGLE_WORDS = 3
MIN_WORDS = 10  # a text of fewer words is not compared for near-duplicates: see `leakage`
PERMUTATIONS = 128
EXAMPLES = 5
# Words of letters and digits, apostrophes inside them included. Chinese and Japanese write no spaces: there, and in
# Thai, each character counts as a word.
UNSPACED = "\\u0e00-\\u0e7f\\u3040-\\u30ff\\u3400-\\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+(?:'(?:(?![{UNSPACED}])\w)+)*")


def split_by_prompt(feedback: Feedback, fraction: float, seed: int = 0) -> tuple[Feedback, Feedback]:
    """Split into (training, held-out) so that no prompt (see `records.prompt_id`) is on both sides.

    `fraction` of the prompts, at least one, is held out. Which ones depends on the seed and the prompts alone, not on
    the order or number of rows. Goal examples without a prompt stay in training.

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
        DataError: Fewer than two prompts.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the held-out fraction is {fraction}", expected="a number between 0 and 1")
    prompts = {record.prompt_id for record in feedback.records()} - {""}
    if len(prompts) < 2:
        raise DataError(
            f"{len(prompts)} prompt cannot be split into training and held-out ones",
            expected="feedback on at least two prompts",
            remedy="add feedback, name an evaluation set, or hold nothing out (--eval_fraction 0)",
        )
    ordered = sorted(prompts, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    count = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
    held_out = set(ordered[:count])
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in feedback.records():
        sides[record.prompt_id in held_out].append(record)
    return Feedback.of(sides[0], feedback.counts), Feedback.of(sides[1], feedback.counts)


@dataclass(frozen=True)
class Match:
    """A held-out text and the training text it repeats. `similarity` is the Jaccard index of their shingles."""

    heldout: Origin
    train: Origin
    similarity: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "heldout": str(self.heldout),
            "train": str(self.train),
            "similarity": round(self.similarity, 4),
            "text": self.text,
        }


@dataclass(frozen=True)
class Overlap:
    """How many of the held-out set's distinct texts are in the training set, with the first few."""

    count: int = 0
    of: int = 0
    examples: tuple[Match, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        share = self.count / self.of if self.of else 0.0
        examples = [match.to_dict() for match in self.examples]
        return {"count": self.count, "of": self.of, "share": share, "examples": examples}


@dataclass(frozen=True)
class LeakageReport:
    """What the held-out set shares with the training set. Counts are of distinct held-out texts.

    Attributes:
        threshold: Jaccard index of word shingles from which two texts are near-duplicates.
        openings: First user turns (`prompt_id`) on both sides: the split was not by prompt.
        prompts_exact, prompts_near: Whole prompts that are the same (case and white space aside), or nearly.
        responses_exact, responses_near: The same of responses.
        heldout_records, heldout_touched: Held-out records, and those of them with any such prompt or response.
    """

    threshold: float
    openings: Overlap
    prompts_exact: Overlap
    prompts_near: Overlap
    responses_exact: Overlap
    responses_near: Overlap
    heldout_records: int
    heldout_touched: int

    @property
    def found(self) -> bool:
        """Whether the held-out set overlaps the training set at all."""
        return self.heldout_touched > 0

    def to_dict(self) -> dict[str, Any]:
        overlaps = ("openings", "prompts_exact", "prompts_near", "responses_exact", "responses_near")
        return {
            "found": self.found,
            "threshold": self.threshold,
            "shingle_words": SHINGLE_WORDS,
            "min_words": MIN_WORDS,
            "heldout_records": self.heldout_records,
            "heldout_touched": self.heldout_touched,
            **{name: getattr(self, name).to_dict() for name in overlaps},
        }

    def summary(self) -> str:
        """One line for a log."""
        if not self.found:
            return f"leakage check: none of {self.heldout_records} held-out records overlaps the training set"
        prompts = (
            f"{self.prompts_exact.count} prompts exact, {self.prompts_near.count} near (of {self.prompts_exact.of})"
        )
        responses = f"{self.responses_exact.count} responses exact, {self.responses_near.count} near"
        return (
            f"leakage check: {self.heldout_touched} of {self.heldout_records} held-out records overlap the training "
            f"set: {self.openings.count} first turns shared, {prompts}, {responses} (of {self.responses_exact.of})"
        )


def leakage(train: Feedback, heldout: Feedback, threshold: float = 0.8) -> LeakageReport:
    """Look for prompts and responses of the held-out set in the training set.

    Two texts are the same if their words are, case, punctuation and white space aside. They are near-duplicates if the
    Jaccard index of their sets of three-word shingles is at least `threshold`: candidates come from MinHash with
    locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3) and each is then
    checked exactly, so nothing is reported that is not so; of pairs right at the threshold a few may be missed.

    Texts of fewer than ten words are left out of the near-duplicate check, and of the exact check of responses: in so
    few words a near match ("What is the capital of France/Spain?") or the same answer ("I don't know.") says nothing.
    Short prompts that are the same are reported.

    Raises:
        ConfigError: `threshold` is not in (0, 1].
    """
    if not 0.0 < threshold <= 1.0:
        raise ConfigError(f"the leakage threshold is {threshold}", expected="a number above 0 and at most 1")
    train_texts, heldout_texts = _Texts(train), _Texts(heldout)
    openings = _overlap(_same(heldout_texts.openings, train_texts.openings), len(heldout_texts.openings))
    prompts = _compare(heldout_texts.prompts, train_texts.prompts, threshold, short_exact=True)
    responses = _compare(heldout_texts.responses, train_texts.responses, threshold, short_exact=False)
    leaked_openings = heldout_texts.openings.keys() & train_texts.openings.keys()
    touched = sum(
        record.prompt_id in leaked_openings
        or _words(_prompt_text(record.prompt)) in prompts.leaked
        or any(_words(response) in responses.leaked for response in _responses(record))
        for record in heldout.records()
    )
    return LeakageReport(
        threshold=threshold,
        openings=openings,
        prompts_exact=prompts.exact,
        prompts_near=prompts.near,
        responses_exact=responses.exact,
        responses_near=responses.near,
        heldout_records=len(heldout),
        heldout_touched=touched,
    )


class _Texts:
    """The distinct prompts and responses of a feedback set: normalised words to (origin, text as written)."""

    def __init__(self, feedback: Feedback) -> None:
        self.openings: dict[str, tuple[Origin, str]] = {}
        self.prompts: dict[str, tuple[Origin, str]] = {}
        self.responses: dict[str, tuple[Origin, str]] = {}
        for record in feedback.records():
            if record.prompt:
                text = _prompt_text(record.prompt)
                self.openings.setdefault(record.prompt_id, (record.origin, text))
                self.prompts.setdefault(_words(text), (record.origin, text))
            for response in _responses(record):
                self.responses.setdefault(_words(response), (record.origin, response))


@dataclass(frozen=True)
class _Found:
    exact: Overlap
    near: Overlap
    leaked: frozenset[str] = field(default_factory=frozenset)


Texts = Mapping[str, tuple[Origin, str]]


def _compare(heldout: Texts, train: Texts, threshold: float, *, short_exact: bool) -> _Found:
    exact = _same(heldout, train)
    if not short_exact:
        exact = {words: match for words, match in exact.items() if _long(words)}
    rest = [words for words in heldout if words not in train and _long(words)]
    near = _near(rest, [words for words in train if _long(words)], threshold)
    matches = {
        words: Match(heldout[words][0], train[other][0], similarity, _excerpt(heldout[words][1]))
        for words, (other, similarity) in near.items()
    }
    return _Found(_overlap(exact, len(heldout)), _overlap(matches, len(heldout)), frozenset(exact) | frozenset(matches))


def _same(heldout: Texts, train: Texts) -> dict[str, Match]:
    return {
        words: Match(origin, train[words][0], 1.0, _excerpt(text))
        for words, (origin, text) in heldout.items()
        if words in train
    }


def _near(heldout: Sequence[str], train: Iterable[str], threshold: float) -> dict[str, tuple[str, float]]:
    """For each held-out text with a near-duplicate among the training texts: the nearest one found, and how near."""
    from datasketch import MinHash, MinHashLSH

    empty = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)  # copied, as drawing its permutations anew takes half the time

    def sketch(shingles: set[bytes]) -> MinHash:
        minhash = empty.copy()
        minhash.update_batch(shingles)
        return minhash

    # False candidates cost only an exact check, so the index is tuned to miss few.
    index = MinHashLSH(threshold=min(threshold, 0.9), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    shingles_of = {words: _shingles(words) for words in heldout}
    for words, shingles in shingles_of.items():
        index.insert(words, sketch(shingles))
    best: dict[str, tuple[str, float]] = {}
    for other in train if shingles_of else ():
        shingles = _shingles(other)
        for candidate in index.query(sketch(shingles)):
            words = str(candidate)
            union = len(shingles | shingles_of[words])
            similarity = len(shingles & shingles_of[words]) / union
            if similarity >= threshold and similarity > best.get(words, ("", 0.0))[1]:
                best[words] = (other, similarity)
    return {words: best[words] for words in heldout if words in best}


def _shingles(words: str) -> set[bytes]:
    parts = words.split(" ")
    return {" ".join(parts[i : i + SHINGLE_WORDS]).encode() for i in range(len(parts) - SHINGLE_WORDS + 1)}


def _long(words: str) -> bool:
    return words.count(" ") + 1 >= MIN_WORDS


def _words(text: str) -> str:
    """The words of a text, in lower case with single spaces; a text without words (":-)") stays as it is."""
    return " ".join(WORD.findall(text.lower().replace("\u2019", "'"))) or text.strip()


def _prompt_text(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)


def _responses(record: Record) -> tuple[str, ...]:
    if isinstance(record, Comparison):
        return record.chosen, record.rejected
    if isinstance(record, Correction):
        return record.response, record.corrected
    if isinstance(record, Critique | Rating | Demonstration):
        return (record.response,)
    return (record.example,)


def _overlap(matches: Mapping[str, Match], of: int) -> Overlap:
    return Overlap(len(matches), of, tuple(matches.values())[:EXAMPLES])


def _excerpt(text: str, width: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
