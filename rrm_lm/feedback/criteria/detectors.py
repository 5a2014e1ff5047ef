"""Detectors: pure functions of a response (and, for some, its prompt) that return a number. English only.

Each is registered with :func:`detector`. `scale` is a typical standard deviation over responses, in the detector's own
unit; it serves where there are no responses to estimate one from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class Detector:
    """A measure of one response: `measure(response, prompt)`, where the prompt is the text of its last user turn."""

    name: str
    measure: Callable[[str, str], float]
    scale: float


DETECTORS: dict[str, Detector] = {}
Measure = Callable[[str, str], float]


def detector(scale: float) -> Callable[[Measure], Measure]:
    """Register a function under its name."""

    def register(function: Measure) -> Measure:
        DETECTORS[function.__name__] = Detector(function.__name__, function, scale)
        return function

    return register


_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_BREAK = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)*]*\s+|\n+")
_DOTTED = re.compile(r"\b(?:e\.g|i\.e|a\.m|p\.m|etc|vs|dr|mr|mrs|ms|prof|no|approx)\.", re.IGNORECASE)
_TEXTS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("detectors.yaml").read_text(encoding="utf-8"))
_PATTERNS = {name: re.compile(text.replace("\n", ""), re.IGNORECASE | re.MULTILINE) for name, text in _TEXTS.items()}
_STOP_WORDS = frozenset(_TEXTS["stop_words"].split())
_ENDED = re.compile(r"(?:[.!?\u2026:)\]\"'\u201d\u2019*`]|[\U0001f300-\U0001faff\u2600-\u27bf]\ufe0f?)$")
_QUOTED = re.compile(r"[\"\u201c\u00ab]([^\"\u201d\u00bb\n]{8,})[\"\u201d\u00bb]")
_NUMBER = re.compile(
    r"\d[\d.,:/]*|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|fifty|hundred|thousand)\b",
    re.I,
)


def split_words(text: str) -> list[str]:
    """The words of a text, lower-cased."""
    return [word.lower() for word in _WORD.findall(text)]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; the lines of a list count as sentences."""
    text = _DOTTED.sub(lambda match: match.group().replace(".", "\u2024"), text)
    return [sentence.strip().replace("\u2024", ".") for sentence in _BREAK.split(text) if _WORD.search(sentence)]


def content_words(text: str) -> set[str]:
    """The words of a text that carry meaning, without plural and verb endings."""
    return {re.sub(r"(?:ing|ed|es|s)$", "", word) for word in split_words(text) if word not in _STOP_WORDS}


def _per_100_words(pattern: re.Pattern[str], text: str) -> float:
    return 100.0 * len(pattern.findall(text)) / max(len(text.split()), 10)


def _count(name: str, scale: float, pattern: re.Pattern[str], what: str) -> None:
    def measure(response: str, prompt: str) -> float:
        is_rate = what.endswith("per 100 words.")
        return _per_100_words(pattern, response) if is_rate else float(len(pattern.findall(response)))

    measure.__name__, measure.__doc__ = name, what
    detector(scale)(measure)


# -- length -----------------------------------------------------------------------------------------------------------


@detector(60.0)
def words(response: str, prompt: str) -> float:
    """Number of words."""
    return float(len(response.split()))


@detector(3.0)
def sentences(response: str, prompt: str) -> float:
    """Number of sentences."""
    return float(len(split_sentences(response)))


@detector(8.0)
def words_per_sentence(response: str, prompt: str) -> float:
    """Mean number of words in a sentence."""
    return len(response.split()) / max(len(split_sentences(response)), 1)


@detector(30.0)
def distinct_words(response: str, prompt: str) -> float:
    """Number of distinct content words that the prompt does not have: how much the response adds."""
    return float(len(content_words(response) - content_words(prompt)))


@detector(0.2)
def repetition(response: str, prompt: str) -> float:
    """Share of word triples that occurred before in the response, 0 to 1."""
    tokens = split_words(response)
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1.0 - len(set(triples)) / len(triples) if triples else 0.0


# -- form -------------------------------------------------------------------------------------------------------------


@detector(2.0)
def paragraphs(response: str, prompt: str) -> float:
    """Number of paragraphs."""
    return float(len([part for part in re.split(r"\n[ \t]*\n", response) if part.strip()]))


# -- beginning and end ------------------------------------------------------------------------------------------------


@detector(0.4)
def filler_opening(response: str, prompt: str) -> float:
    """1 if it opens with a phrase that says nothing ("Sure!", "Great question!"), else 0."""
    return float(_PATTERNS["openers"].match(response.lstrip(" \n\"'*#")) is not None)


@detector(0.45)
def friendly_close(response: str, prompt: str) -> float:
    """1 if the last sentence is a good wish or an offer of help, else 0."""
    last = split_sentences(response)[-1:]
    return float(bool(last) and _PATTERNS["closes"].search(last[0]) is not None)


@detector(0.4)
def finished(response: str, prompt: str) -> float:
    """1 if it ends at the end of a sentence, 0 if it stops in the middle of one."""
    last = response.rstrip().rpartition("\n")[2]
    is_fragment = len(last.split()) > 4 or last.endswith((",", ";", "-"))  # "Four days" needs no period
    return float(bool(_ENDED.search(response.rstrip())) or not is_fragment)


# -- content and the prompt -------------------------------------------------------------------------------------------


@detector(0.25)
def prompt_overlap(response: str, prompt: str) -> float:
    """Share of the prompt's content words that occur in the response, 0 to 1. Of a long prompt, its last sentence."""
    asked = split_sentences(prompt)[-1:]
    wanted = content_words(asked[0] if asked and len(prompt.split()) > 40 else prompt)
    return len(wanted & content_words(response)) / max(len(wanted), 1)


@detector(0.25)
def on_topic(response: str, prompt: str) -> float:
    """Share of the response's content words that occur in the prompt, 0 to 1."""
    said = content_words(response)
    return len(said & content_words(prompt)) / max(len(said), 1)


@detector(0.4)
def fits_question(response: str, prompt: str) -> float:
    """1 if it has what the question word asks for (when: a time; how many: a number; can, is ...: yes or no), 0 if not,
    0.5 for other questions.
    """
    asked = " ".join(split_words((split_sentences(prompt) or [""])[-1]))
    if re.search(
        r"\b(?:when|what (?:time|day|date|year)|(?:which|what|on which) (?:day|date)|how (?:long|soon|often))\b", asked
    ):
        return float(_PATTERNS["when"].search(response) is not None)
    if re.search(r"\bhow (?:many|much|old|far|tall|high|big)\b|\bwhat (?:number|amount|price|percent\w*)\b", asked):
        return float(_NUMBER.search(response) is not None)
    if re.match(r"(?:is|are|was|were|can|could|do|does|did|will|would|should|has|have|may|am) ", asked):
        return float(re.search(r"\b(?:yes|no|not|can|cannot|may|is|are|should)\b", response[:200], re.I) is not None)
    return 0.5


@detector(0.2)
def quotation(response: str, prompt: str) -> float:
    """Share of its words that are in quotation marks and occur in the prompt in the same order, 0 to 1."""
    where = " ".join(split_words(prompt))
    quoted = [" ".join(split_words(text)) for text in _QUOTED.findall(response)]
    return sum(len(text.split()) for text in quoted if text in where) / max(len(response.split()), 1)


@detector(0.25)
def copied(response: str, prompt: str) -> float:
    """Share of its runs of five words that occur in the prompt, 0 to 1."""
    said, where = split_words(response), f" {' '.join(split_words(prompt))} "
    runs = [" ".join(said[i : i + 5]) for i in range(len(said) - 4)]
    return sum(f" {run} " in where for run in runs) / max(len(runs), 1)


# -- tone and style ---------------------------------------------------------------------------------------------------


@detector(3.0)
def warmth(response: str, prompt: str) -> float:
    """Positive minus negative words per 100 words."""
    return _per_100_words(_PATTERNS["good_words"], response) - _per_100_words(_PATTERNS["bad_words"], response)


@detector(0.5)
def long_words(response: str, prompt: str) -> float:
    """Mean number of letters in a word."""
    found = split_words(response)
    return sum(map(len, found)) / max(len(found), 1)


@detector(0.3)
def refusal(response: str, prompt: str) -> float:
    """1 if it declines to answer, else 0."""
    return float(_PATTERNS["refusals"].search(response[:400]) is not None)


# -- counts of a pattern ----------------------------------------------------------------------------------------------

_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022\u2013]|\(?\d{1,2}[.)]|\(?[a-h]\))[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^(?:#{1,6} +\S.*|[^\n]{3,60}:)$", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_EMPHASIS = re.compile(r"!|[\U0001f300-\U0001faff\u2600-\u27bf]|\b[A-Z]{4,}\b")
_QUESTION = re.compile(r"\w[\"')*]*\?")
_FIRST_PERSON = re.compile(r"\b(?:I|I'm|I'd|I've|I'll|me|my|mine|myself)\b")
# Name, scale, pattern, and what is counted: in the whole response, or per 100 words.
for _row in (
    ("list_items", 2.5, _ITEM, "Number of list items."),
    ("headings", 1.0, _HEADING, "Number of Markdown headings, or of lines that end in a colon."),
    ("bold", 2.0, _BOLD, "Number of pieces of bold text."),
    ("emphasis", 1.0, _EMPHASIS, "Number of exclamation marks, emoji and words in capitals."),
    ("numbers", 4.0, re.compile(r"\d[\d.,:/]*"), "Number of figures, dates and times in digits."),
    ("sources", 1.5, _PATTERNS["sources"], "Number of links and references to sources."),
    ("examples", 1.0, _PATTERNS["examples"], "Number of phrases that introduce examples."),
    ("steps", 3.0, _PATTERNS["steps"], "Number of ordinals, and of sentences that begin with a common verb of action."),
    ("questions_back", 0.7, _QUESTION, "Number of questions that it asks."),
    ("hedges", 2.0, _PATTERNS["hedges"], 'Hedges ("might", "it depends") per 100 words.'),
    ("first_person", 3.0, _FIRST_PERSON, "First-person words per 100 words."),
    ("politeness", 1.5, _PATTERNS["polite"], "Polite words per 100 words."),
):
    _count(*_row)
