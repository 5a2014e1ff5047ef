"""A simulated user who wants plain answers: the overseer of this project's assistant set.

Responses are judged on six parts, each scored from 0 to 1 and weighted (`WEIGHTS`):

- **answer** (0.35): the response mentions the expected content. Each request lists groups of words; the score is the
  share of groups that occur.
- **short** (0.20): 1.0 for at most two sentences, not counting a friendly close; three 0.6, four 0.35, five 0.15, more
  0. Beyond 50 words, the score shrinks in proportion, so one endless sentence does not count as short.
- **close** (0.15): it ends with a friendly phrase: a good wish or an offer to help.
- **opening** (0.13): it starts with the answer, not with filler ("Sure!", "Great question!", "As an AI ...").
- **prose** (0.12): no list, heading or bold text (0.5 for bold text alone).
- **whole** (0.05): it does not end mid-sentence.

`gold` is the weighted sum. It labels `data/assistant` and measures policies; training never sees it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.records import Prompt
from rrm_lm.simulated import plain_words
from rrm_lm.simulated.plain_words import WEIGHTS, Judgement
from rrm_lm.simulated.requester import Requester

_BY_SENTENCES = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.6, 4: 0.35, 5: 0.15}
_MOST_WORDS = 50

_CLOSING_WORDS = (
    r"(i |we )?hope (this|that|it|you|your|to help)\b",
    r"(and |just |please )?let (me|us) know\b",
    r"(i hope you )?(have|wish(ing)? you|i wish you) (an? |some |the )?(\w+ ){0,3}"
    r"(day|night|evening|morning|afternoon|week|weekend|time|trip|journey|flight|meal|party|birthday|year|holiday|rest|fun)\b",
    r"(good|best of) luck\b",
    r"enjoy\b",
    r"(please )?feel free\b",
    r"(i'm |i am |i'd be |always |and )*(happy|glad|here) to (help|assist|answer)\b",
    r"(if you .*, )?(just |please )?ask (me )?(more|any|again|for more)\b",
    r"(if you .*, )?just ask\b",
    r"(all the best|best wishes|kind regards|warm wishes|cheers)\b",
    r"(take care|sleep well|safe travels|sweet dreams|get well)\b",
    r"stay (safe|warm|well|healthy)\b",
    r"happy (\w+ing|travels|birthday|eating|holidays)\b",
)
# A close begins the last sentence or follows a comma in it: "a place where you enjoy the sun" is not a close.
_CLOSE = re.compile(rf"(?:^|[,;:–—-] ?)\W*((?:and |but |so )?(?:{'|'.join(_CLOSING_WORDS)}))", re.IGNORECASE)  # noqa: RUF001
_FILLER_WORDS = (
    r"(sure|certainly|of course|absolutely|no problem|okay|alright|hello|hi|hey|i (completely )?understand)\b",
    r"(definitely|ok|well|so|wow|oh|ah)[,!. ]",
    r"(what )?(a )?(great|good|excellent|wonderful|interesting|fantastic) (question|idea)",
    r"(it's|what) (a |an |such )+(\w+ )?(great|good|wonderful|fantastic|excellent|lovely|nice)\b",
    r"that('s| is) (a |an |such )*(\w+ )?(great|good|wonderful|fantastic|excellent|lovely|nice)\b",
    r"as an? (ai|helpful|language|large language|assistant)\b",
    r"(i'm|i am|i'd be|i would be) (so |very |really )?(an ai|a helpful|here to|happy|glad|delighted|sorry|excited)",
    r"(happy to|thanks for|thank you for|dear user|you're welcome|you're a helpful|here you go|here('s| is| are))\b",
    r"let's (dive|get started|explore)",
)
_FILLER = re.compile("|".join(_FILLER_WORDS), re.IGNORECASE)
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]\s+\S|\d{1,2}[.)]\s+\S|#{1,4}\s+\S)", re.MULTILINE)
_INLINE_ITEMS = re.compile(r"(?:^|\s)1[.)]\s+\S.*\s2[.)]\s+\S", re.DOTALL)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*?|__[^_\n]+__")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'\u201d\u2019)]*\s+|\n+")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|approx|dr|mr|mrs|ms|st|a\.m|p\.m)\.\s", re.IGNORECASE)
_NO_END = "\ue000"  # replaces a space that does not end a sentence
_FINISHED = re.compile(r"[.!?…)\]\"'\u201d\u2019]$|[\U0001f300-\U0001faff\u2600-\u27bf]\ufe0f?$")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and the content that a good answer mentions."""

    text: str  # the user turn
    # Groups of alternatives separated by `|`. One alternative is enough: a word also matches its longer forms (boil,
    # boiled, boiling), `stem~` matches any ending, a number matches only exactly.
    mentions: tuple[str, ...]
    topic: str = ""  # for example "cooking"


class PlainUser(Requester[Request]):
    """An overseer (`overseers.Overseer`) of responses to known requests. If the gold rewards of two responses differ by
    less than `tie`, neither is preferred.
    """

    name = "plain user"
    limit = "knows a good answer only by the words that it mentions"
    parts = tuple(WEIGHTS)
    weights = WEIGHTS

    @classmethod
    def from_file(cls, path: str | Path, limits: ReadLimits | None = None) -> PlainUser:
        """Read requests from JSON lines with `request`, `mentions` and `topic` (as `data/assistant/requests.jsonl`).
        Raises DataError if a row is not such an object, or the file exceeds the limits (None: the defaults).
        """
        requests = []
        for row, entry in read_rows(Path(path), limits):
            try:
                requests.append(Request(str(entry["request"]), tuple(entry["mentions"]), str(entry.get("topic", ""))))
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"A request cannot be read ({error})",
                    where=f"{path}, row {row}",
                    expected='{"topic": ..., "request": ..., "mentions": [...]}',
                ) from error
        return cls(requests)

    def judge(self, prompt: Prompt | str, response: str) -> Judgement:
        return judge(self.request(prompt), response)

    def critique(self, prompt: Prompt | str, response: str, seed: int = 0) -> str:
        """A critique in 8 to 40 plain words, with faults and merits. The seed selects the words."""
        return plain_words.critique(self.judge(prompt, response), f"{seed}|{self.request(prompt).text}|{response}")


def judge(request: Request, response: str) -> Judgement:
    """Judge a response to a request part by part, as the module's docstring describes."""
    text = response.strip()
    sentences = split_sentences(text)
    close = _close(sentences)
    # "That is all you need, good luck!" is an answer and a close; "Good luck!" is only a close.
    content = sentences[:-1] if close and close == sentences[-1] else sentences
    opening = _FILLER.match(text.lstrip("\"'*# "))
    if opening and content and _is_only_filler(content[0]):
        content = content[1:]
    items = len(_LIST_ITEM.findall(text)) or 2 * bool(_INLINE_ITEMS.search(text))
    words = len(text.split())
    missing = tuple(group for group in request.mentions if not _pattern(group).search(text))
    # A short list item or an answer of up to four words needs no period.
    loose_end = words <= 4 or (items and len(text.splitlines()[-1].split()) <= 8)
    finished = _FINISHED.search(text) is not None or bool(loose_end and text[-1:] not in ",;")
    short = _BY_SENTENCES.get(len(content), 0.0) * min(1.0, _MOST_WORDS / max(words, 1))
    parts = {
        "answer": 1.0 - len(missing) / max(len(request.mentions), 1) if text else 0.0,
        "short": short if text else 0.0,
        "close": float(bool(close)),
        "opening": float(opening is None),
        "prose": 0.0 if items else 0.5 if _BOLD.search(text) else 1.0,
        "whole": float(finished),
    }
    return Judgement(
        parts=parts,
        missing=missing,
        sentences=len(content),
        words=words,
        items=items,
        opening=_quoted_opening(sentences[0]) if opening and sentences else "",
        close=close,
        tail="" if finished else " ".join(text.split()[-3:]),
    )


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences and lines. Abbreviations, decimal points and list numbers do not end a sentence."""
    guarded = _ABBREVIATION.sub(lambda match: match.group()[:-1] + _NO_END, text)
    guarded = re.sub(r"(^|\s)(\d{1,2}[.)]) ", rf"\1\2{_NO_END}", guarded)
    pieces = (piece.replace(_NO_END, " ").strip() for piece in _SENTENCE_END.split(guarded) if piece)
    return [piece for piece in pieces if re.search(r"\w", piece)]


def _close(sentences: list[str]) -> str:
    """The friendly close in the last sentence, if text precedes it; else ""."""
    if not sentences:
        return ""
    match = _CLOSE.search(sentences[-1])
    if match is None or (len(sentences) == 1 and match.start(1) < 3):
        return ""
    return sentences[-1][match.start(1) :] if match.start(1) > 3 else sentences[-1]


def _is_only_filler(sentence: str) -> bool:
    """Whether a sentence is only filler, like "Sure!". It counts against the opening, not against the length."""
    match = _FILLER.match(sentence)
    return match is not None and len(sentence[match.end() :].split()) <= 3


def _quoted_opening(sentence: str) -> str:
    """The opening as quoted in critiques: up to the punctuation within five words, else four words."""
    match = re.match(r"(?:\S+ ){0,4}?\S+?[,:!.?](?=\s|$)", sentence)
    return (match.group() if match else " ".join(sentence.split()[:4])).rstrip(",:.")


@cache
def _pattern(group: str) -> re.Pattern[str]:
    return re.compile("|".join(_alternative(alternative) for alternative in group.split("|")), re.IGNORECASE)


def _alternative(word: str) -> str:
    if word.endswith("~"):
        return rf"\b{re.escape(word[:-1])}"
    if not word[-1].isalpha() or word[0].isdigit():
        return rf"(?<![\w.,]){re.escape(word)}(?!\d|[.,]\d)" if word[0].isalnum() else re.escape(word)
    ending = r"\w{0,3}" if len(word) > 3 else r"(?:s|es|y|[a-z]?ed|[a-z]?ing)?" if len(word) > 1 else ""
    return rf"\b{re.escape(word)}{ending}\b"
