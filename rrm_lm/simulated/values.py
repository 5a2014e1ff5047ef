"""Detect whether a text states a value: a date, time, price, number, name, place or thing, in any usual spelling."""

from __future__ import annotations

import re
from functools import cache

# What makes a number in digits a date, a time or a price instead of a count.
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_OTHER_UNIT = rf"\s*(?:euros?|[ap]\.?m|o'clock|(?:st|nd|rd|th)?(?: of)? (?:{_MONTHS}))\b"
KINDS = ("date", "time", "price", "count", "person", "place", "item")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy")
_NUMBERS = {word: number for number, word in enumerate(f"{_ONES} eighteen nineteen".split())}
_NUMBERS |= {word: 10 * number for number, word in enumerate(_TENS, 2)}
_WORDS = {number: word for word, number in _NUMBERS.items()}
# Words that negate a statement if they come shortly before the value in the same clause.
_DENIAL = re.compile(
    r"\b(?:not|never|no|neither|nor|instead of|rather than|other than|except|isn't|wasn't|won't|doesn't|don't|can't)"
    r"(?:\s+[\w']+){0,4}\s*$",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[.!?;,](?=\s|$)|\n|\bbut\b", re.IGNORECASE)


def states(text: str, kind: str, value: str) -> bool:
    """Whether a text states the value somewhere without denying it ("not on 3 May" denies it). `kind` is one of
    `KINDS`. The value is as in a note: "3 May", "17:30", "5 euros", "six" or "6", "Anna", "the gym", "fresh mint".
    """
    return any(not _denied(text[: match.start()]) for match in _pattern(kind, value).finditer(text))


def mentions(text: str, kind: str, value: str) -> bool:
    """Whether the value occurs in a text at all, even if denied."""
    return _pattern(kind, value).search(text) is not None


def counts(text: str) -> set[int]:
    """The numbers of things in a text: no dates, times, prices, numbers of list items, nor the pronoun "one"."""
    text = re.sub(r"(?m)^\s*\d{1,2}[.)]\s", "", text)
    digits = re.findall(rf"(?<![\d.,:€/-])(\d+)(?![\d:%€/-]|[.,]\d|{_OTHER_UNIT})", text, re.IGNORECASE)
    words = re.findall(rf"\b([a-z]+)\b(?!{_OTHER_UNIT})", text.lower())
    return {int(number) for number in digits} | {_NUMBERS[word] for word in words if _NUMBERS.get(word, 1) != 1}


def exchange(text: str, kind: str, value: str, other: str) -> str:
    """The text with every mention of a value, and its article, replaced by another value of its type."""

    def replaced(match: re.Match[str]) -> str:
        return other[:1].upper() + other[1:] if match[0][:1].isupper() else other

    article = r"(?:\b(?:the|an?)\s+)?" if kind in ("person", "place", "item") else ""
    return re.sub(f"{article}(?:{_pattern(kind, value).pattern})", replaced, text, flags=re.IGNORECASE)


def _denied(before: str) -> bool:
    ends = [match.end() for match in _CLAUSE_END.finditer(before)]
    return _DENIAL.search(before[ends[-1] if ends else 0 :]) is not None


@cache
def _pattern(kind: str, value: str) -> re.Pattern[str]:
    spelled = {"date": _date, "time": _time, "price": _price, "count": _count}.get(kind, _words)(value)
    return re.compile(spelled, re.IGNORECASE)


def _words(value: str) -> str:
    """A pattern for a name, place or thing, with or without its article."""
    bare = re.sub(r"^(?:the|a|an) ", "", value)
    return rf"\b{re.escape(bare)}\b".replace(r"\ ", r"\s+")


def _date(value: str) -> str:
    day, month = value.split()
    name = rf"(?:{month}|{month[:3]}\b\.?)" if len(month) > 3 else month
    number = rf"0?{day}(?:st|nd|rd|th)?"
    return rf"(?<![\d.,:/]){number}(?: of)? {name}(?!\w)|\b{name} (?:the )?{number}(?![\d:]|[.,]\d)"


def _time(value: str) -> str:
    hour, minute = (int(part) for part in value.split(":"))
    minutes = rf"[:.]{minute:02d}" if minute else r"(?:[:.]00)?"
    clock = rf"0?{hour}[:.]{minute:02d}(?!\d)(?:\s*(?:h|hours|o'clock)\b)?"
    half = "pm" if hour >= 12 else "am"
    twelve = (hour - 1) % 12 + 1
    spoken = rf"0?{twelve}{minutes}\s*{half[0]}\.?m\b\.?"
    # "7:30 pm" is not 7:30 in the morning.
    other = r"(?!\s*p\.?m\b)" if half == "am" else r"(?!\s*a\.?m\b)"
    whole = rf"|(?<![\d:.]){hour} (?:o'clock|hours|h)\b{other}" if not minute else ""
    return rf"(?<![\d:.]){clock}{other}|(?<![\d:.]){spoken}{whole}"


def _price(value: str) -> str:
    amount = int(value.split()[0])
    number = rf"{amount}(?:[.,]00)?"
    in_words = rf"|\b{_WORDS[amount]} euros?\b" if amount in _WORDS else ""
    return rf"(?<![\d.,]){number}\s?(?:euros?\b|eur\b|€)|(?:€|\beur)\s?{number}(?!\d|[.,]\d){in_words}"


def _count(value: str) -> str:
    number = _NUMBERS[value] if value in _NUMBERS else int(value)
    digits = rf"(?<![\d.,:€]){number}(?![\d:%€]|[.,]\d|{_OTHER_UNIT})"
    return rf"{digits}|\b{_WORDS[number]}\b" if number in _WORDS else digits
