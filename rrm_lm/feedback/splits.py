"""Split by prompt, sample in proportion to the sources, and find held-out texts in the training set."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import KINDS, Comparison, Correction, GoalExample, Origin, Prompt, Rating, Record

Unit = TypeVar("Unit", bound=Hashable)
Stratum = tuple[str, str]  # source and subset
SHOWN_PARTS = 8  # sources and subsets named in a log line

SHINGLE_WORDS = 3
MIN_WORDS = 10  # shorter texts are not checked for near-duplicates: see `leakage`
PERMUTATIONS = 128
EXAMPLES, EXCERPT = 5, 160  # matches shown in a report, and characters of each
# Words are letters and digits, with apostrophes inside. Chinese, Japanese and Thai are written without spaces, so each
# character counts as a word.
UNSPACED = "\\u0e00-\\u0e7f\\u3040-\\u30ff\\u3400-\\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+(?:'(?:(?![{UNSPACED}])\w)+)*")


def split_by_prompt(feedback: Feedback, fraction: float, seed: int = 0) -> tuple[Feedback, Feedback]:
    """Split into (training, held-out) so that no prompt (see `records.prompt_id`) is on both sides.

    Holds out `fraction` of the prompts, at least one, in proportion to sources and subsets. The choice depends only on
    the seed and the prompts, not on the order or number of rows. Goal examples without a prompt stay in training.
    Raises ConfigError: `fraction` is not between 0 and 1; DataError: fewer than two prompts.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the held-out fraction is {fraction}", expected="a number between 0 and 1")
    strata: dict[str, Stratum] = {}
    for record in feedback.records():
        stratum = record.source, record.subset
        if record.prompt_id:
            strata[record.prompt_id] = min(stratum, strata.get(record.prompt_id, stratum))
    if len(strata) < 2:
        raise DataError(
            f"{len(strata)} prompt cannot be split into training and held-out ones",
            expected="feedback on at least two prompts",
            remedy="add feedback, name an evaluation set, or hold nothing out (--eval_fraction 0)",
        )
    held_out = _draw(strata, min(max(1, round(fraction * len(strata))), len(strata) - 1), seed)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in feedback.records():
        sides[record.prompt_id in held_out].append(record)
    return Feedback.of(sides[0], feedback.counts), Feedback.of(sides[1], feedback.counts)


def _draw(strata: Mapping[Unit, Stratum], count: int, seed: int) -> set[Unit]:
    """Draw up to `count` units at random, in proportion to the sizes of their strata.

    The choice depends only on the seed and the units (their `str`), not on their order.
    """
    quotas = _apportion(Counter(strata.values()), count, seed)
    drawn: set[Unit] = set()
    for unit in sorted(strata, key=lambda unit: _rank(seed, unit)):
        if quotas[strata[unit]]:
            quotas[strata[unit]] -= 1
            drawn.add(unit)
    return drawn


def limit_prompts(prompts: Mapping[Prompt, Stratum], most: int | None, seed: int = 0) -> list[Prompt]:
    """Draw up to `most` prompts (None: all) in proportion to sources and subsets; keeps their order."""
    drawn = prompts if most is None else _draw(prompts, most, seed)
    return [prompt for prompt in prompts if prompt in drawn]


def limit_comparisons(feedback: Feedback, most: int, seed: int = 0) -> Feedback:
    """Keep at most `most` comparisons of random prompts, in proportion to sources and subsets; keeps their order.

    All comparisons of a drawn prompt are kept, except for the last prompt of each stratum.
    """
    strata = [(record.source, record.subset) for record in feedback.comparisons]
    quotas = _apportion(Counter(strata), most, seed)
    ranks = {name: _rank(f"limit {seed}", name) for name in {record.prompt_id for record in feedback.comparisons}}
    kept: set[int] = set()
    for place in sorted(range(len(strata)), key=lambda place: ranks[feedback.comparisons[place].prompt_id]):
        if quotas[strata[place]]:
            quotas[strata[place]] -= 1
            kept.add(place)
    return replace(feedback, comparisons=tuple(c for place, c in enumerate(feedback.comparisons) if place in kept))


def composition(feedback: Feedback) -> dict[str, Counter[str]]:
    """Counts of records by kind and "source / subset"; ratings also by label ("good" is above 0.5)."""
    found: dict[str, Counter[str]] = {}
    for record in feedback.records():
        label = ("good" if record.rating > 0.5 else "bad") if isinstance(record, Rating) else ""
        name = " / ".join(filter(None, (record.source, record.subset, label)))
        found.setdefault(KINDS[type(record)].replace("_", " "), Counter())[name] += 1
    return found


def composition_text(found: Mapping[str, Counter[str]]) -> str:
    """A composition on one line, with the largest parts of each kind."""
    parts = []
    for kind, counts in found.items():
        shown = [f"{count} {name}".rstrip() for name, count in counts.most_common(SHOWN_PARTS)]
        if len(counts) > SHOWN_PARTS:
            shown.append(f"{counts.total() - sum(dict(counts.most_common(SHOWN_PARTS)).values())} others")
        parts.append(f"{kind}: {', '.join(shown)}")
    return "; ".join(parts)


def _apportion(sizes: Mapping[Stratum, int], count: int, seed: int) -> dict[Stratum, int]:
    """Divide `count` in proportion to `sizes` by largest remainder; equal remainders are ordered at random."""
    total = max(1, sum(sizes.values()))
    shares = {stratum: divmod(min(count, total) * size, total) for stratum, size in sizes.items()}
    rest = min(count, total) - sum(whole for whole, _ in shares.values())
    order = sorted(shares, key=lambda stratum: (-shares[stratum][1], _rank(seed, stratum)))
    return {stratum: shares[stratum][0] + (stratum in order[: max(0, rest)]) for stratum in shares}


def _rank(seed: int | str, unit: Hashable) -> bytes:
    return hashlib.sha256(f"{seed}:{unit}".encode("utf-8", "replace")).digest()


@dataclass(frozen=True)
class Match:
    """A held-out text and the training text it repeats. `similarity` is the Jaccard index of their shingles."""

    heldout: str  # where they are from
    train: str
    similarity: float
    text: str


@dataclass(frozen=True)
class Overlap:
    """The number of distinct held-out texts that are in the training set, their share, and the first few of them."""

    count: int
    of: int
    share: float
    examples: tuple[Match, ...]


@dataclass(frozen=True)
class LeakageReport:
    """Overlap of the held-out set with the training set. Counts are of distinct held-out texts."""

    threshold: float  # Jaccard index of word shingles from which two texts are near-duplicates
    # first user turns (`prompt_id`) that are on both sides; any means that the split was not by prompt
    openings: Overlap
    # prompts_exact, prompts_near: whole prompts that are equal (ignoring case and whitespace), or nearly equal
    prompts_exact: Overlap
    prompts_near: Overlap
    # responses_exact, responses_near: the same for responses
    responses_exact: Overlap
    responses_near: Overlap
    # heldout_records, heldout_touched: held-out records, and how many of them have an overlapping prompt or response
    heldout_records: int
    heldout_touched: int

    @property
    def found(self) -> bool:
        """Whether the held-out set overlaps the training set at all."""
        return self.heldout_touched > 0

    def to_dict(self) -> dict[str, Any]:
        return {"found": self.found, "shingle_words": SHINGLE_WORDS, "min_words": MIN_WORDS, **asdict(self)}

    def summary(self) -> str:
        """One line for a log."""
        if not self.found:
            return f"leakage check: none of {self.heldout_records} held-out records overlaps the training set"
        return (
            f"leakage check: {self.heldout_touched} of {self.heldout_records} held-out records overlap the training "
            f"set: {self.openings.count} first turns shared, "
            f"{self.prompts_exact.count} prompts exact, {self.prompts_near.count} near (of {self.prompts_exact.of}), "
            f"{self.responses_exact.count} responses exact, {self.responses_near.count} near "
            f"(of {self.responses_exact.of})"
        )


def leakage(train: Feedback, heldout: Feedback, threshold: float = 0.8) -> LeakageReport:
    """Find prompts and responses of the held-out set in the training set.

    Two texts are equal if their words are, ignoring case, punctuation and whitespace. They are near-duplicates if the
    Jaccard index of their sets of three-word shingles is at least `threshold`. Candidates come from MinHash with
    locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3), and each is then
    checked exactly: there are no false positives, and a few pairs close to the threshold may be missed.

    Texts of fewer than ten words are too short for the near-duplicate check ("What is the capital of France/Spain?")
    and, as responses, for the exact check ("I don't know."). Equal short prompts are reported. Raises ConfigError if
    `threshold` is not in (0, 1].
    """
    if not 0.0 < threshold <= 1.0:
        raise ConfigError(f"the leakage threshold is {threshold}", expected="a number above 0 and at most 1")
    known, new = _Texts(train), _Texts(heldout)
    openings = _equal(new.openings, known.openings)
    prompts = _equal(new.prompts, known.prompts)
    prompts_near = _near(new.prompts, known.prompts, threshold)
    responses = {words: match for words, match in _equal(new.responses, known.responses).items() if _is_long(words)}
    responses_near = _near(new.responses, known.responses, threshold)
    touched = sum(
        record.prompt_id in openings
        or (words := _words(_prompt_text(record.prompt))) in prompts
        or words in prompts_near
        or any((words := _words(text)) in responses or words in responses_near for text in responses_of(record))
        for record in heldout.records()
    )
    return LeakageReport(
        threshold=threshold,
        openings=_overlap(openings, new.openings),
        prompts_exact=_overlap(prompts, new.prompts),
        prompts_near=_overlap(prompts_near, new.prompts),
        responses_exact=_overlap(responses, new.responses),
        responses_near=_overlap(responses_near, new.responses),
        heldout_records=len(heldout),
        heldout_touched=touched,
    )


Texts = dict[str, tuple[Origin, str]]  # normalized words to the first origin and the text as written
Matches = dict[str, Match]


class _Texts:
    """The distinct prompts and responses of a feedback set. `openings` is by `prompt_id`."""

    def __init__(self, feedback: Feedback) -> None:
        self.openings: Texts = {}
        self.prompts: Texts = {}
        self.responses: Texts = {}
        for record in feedback.records():
            if record.prompt:
                text = _prompt_text(record.prompt)
                self.openings.setdefault(record.prompt_id, (record.origin, text))
                self.prompts.setdefault(_words(text), (record.origin, text))
            for response in responses_of(record):
                self.responses.setdefault(_words(response), (record.origin, response))


def _equal(heldout: Texts, train: Texts) -> Matches:
    return {words: _match(heldout[words], train[words], 1.0) for words in heldout if words in train}


def _near(heldout: Texts, train: Texts, threshold: float) -> Matches:
    """For each held-out text with a near-duplicate in the training texts, the nearest one; equal texts aside."""
    from datasketch import MinHash, MinHashLSH

    empty = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)  # copied for each text, because creating one takes half the time

    def sketch(shingles: set[bytes]) -> MinHash:
        minhash = empty.copy()
        minhash.update_batch(shingles)
        return minhash

    # False candidates only cost an exact check, so the index is tuned for recall.
    index = MinHashLSH(threshold=min(threshold, 0.9), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    shingles_of = {words: _shingles(words) for words in heldout if words not in train and _is_long(words)}
    for words, shingles in shingles_of.items():
        index.insert(words, sketch(shingles))
    best: dict[str, tuple[str, float]] = {}
    for other in filter(_is_long, train if shingles_of else ()):
        shingles = _shingles(other)
        for words in map(str, index.query(sketch(shingles))):
            similarity = len(shingles & shingles_of[words]) / len(shingles | shingles_of[words])
            if similarity >= threshold and similarity > best.get(words, ("", 0.0))[1]:
                best[words] = (other, similarity)
    return {words: _match(heldout[words], train[best[words][0]], best[words][1]) for words in heldout if words in best}


def _shingles(words: str) -> set[bytes]:
    parts = words.split(" ")
    return {" ".join(parts[i : i + SHINGLE_WORDS]).encode() for i in range(len(parts) - SHINGLE_WORDS + 1)}


def _is_long(words: str) -> bool:
    return words.count(" ") + 1 >= MIN_WORDS


def _words(text: str) -> str:
    """The words of a text, in lower case with single spaces; a text without words (":-)") is unchanged."""
    return " ".join(WORD.findall(text.lower().replace("\u2019", "'"))) or text.strip()


def _prompt_text(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt)


def responses_of(record: Record) -> tuple[str, ...]:
    """All responses in a record, or its goal example."""
    if isinstance(record, Comparison):
        return record.chosen, record.rejected
    if isinstance(record, Correction):
        return record.response, record.corrected
    return (record.example if isinstance(record, GoalExample) else record.response,)


def _match(heldout: tuple[Origin, str], train: tuple[Origin, str], similarity: float) -> Match:
    text = " ".join(heldout[1].split())
    excerpt = text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
    return Match(str(heldout[0]), str(train[0]), round(similarity, 4), excerpt)


def _overlap(matches: Matches, heldout: Texts) -> Overlap:
    share = len(matches) / max(len(heldout), 1)
    return Overlap(len(matches), len(heldout), share, tuple(matches.values())[:EXAMPLES])
