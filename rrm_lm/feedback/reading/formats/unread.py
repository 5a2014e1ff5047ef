"""Columns that no format reads: each is named with its likely meaning, or the file is refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats.columns import ALIASES, IGNORE, SAMPLE, Columns, texts_in, words_of
from rrm_lm.feedback.reading.formats.responses import read_demonstration, read_response
from rrm_lm.feedback.reading.formats.row import is_nothing
from rrm_lm.feedback.reading.formats.shapes import PROMPTS, Format

LONG = 20  # words on average, from which a text that differs from row to row is probably a part of the prompt
# Words of columns with texts about a response or a row, which are not a part of the prompt however long they are.
ABOUT = (
    "explanation explanations rationale reason reasons justification critique critiques feedback comment comments note "
    "notes reference ground gold truth original raw labelling labeling judge model generated generation generations "
    "metadata meta review analysis solution proof code summary translation "
    "response responses answer answers completion output"
)

SINGLE = (read_demonstration, read_response)  # a row has one response


class Meaning(NamedTuple):
    """The meaning of an unread column with one of these words in its name. `refused`: names that make it an error."""

    words: str
    what: str
    target: str
    refused: str = ""


SYSTEM = Meaning("system persona role", "a system message", "system", "system " + " ".join(ALIASES["system"]))
JUDGMENT = Meaning(
    "label labels score scores rating ratings reward quality grade stars preference preferred winner verdict vote "
    "votes thumb thumbs like liked correct helpful approved accepted good bad safe harmful toxic judgment",
    "a judgment of the response",
    "rating",
    "label labels score rating stars reward quality grade preference winner verdict",
)
PROMPT = Meaning(
    "question instruction input query request conversation conversations messages history context document passage",
    "a part of the prompt",
    "prompt",
    "prompt question instruction input conversations conversation messages history context",
)
RESPONSE = Meaning("response completion output answer reply", "a response", "completion", "response completion")
# Next to a single response, texts under these names are responses to compare it with.
OTHERS = tuple(
    Meaning(words, "another response", target)
    for words, target in (
        ("corrected correction edited revised improved refined", "corrected"),
        ("rejected worse bad wrong negative", "rejected"),
        ("chosen preferred better positive response responses completion alternative", ""),
    )
)
SWAPPED = Meaning(
    "swapped flipped reversed inverted", "whether chosen and rejected are swapped", "", "swapped is_swapped flipped"
)
MEANINGS = (
    SYSTEM,
    Meaning("tools tool functions function", "the tools of the prompt", "tools", "tools " + " ".join(ALIASES["tools"])),
    SWAPPED,
    JUDGMENT,
    PROMPT,
    Meaning(
        "reasoning thinking thoughts thought rationale cot", "the reasoning of the response", "", "reasoning thinking"
    ),
    Meaning("image images video audio", "pictures or sound, which no text shows", "", "image images video audio"),
    RESPONSE,
)


def name_unread(columns: Columns, read: Collection[str], chosen: Format, file: str) -> list[str]:
    """Report each unread column and its likely meaning. Raises DataError if unread columns would change what is
    learned.
    """
    unread: list[str] = []
    refused: list[tuple[str, str, str]] = []
    for name in columns.kinds:
        if name in read or columns.kinds[name] == "nothing":
            continue
        if name == "" or re.fullmatch(r"Unnamed: \d+|index|__index_level_\d+__", name):
            unread.append(f"{name!r} (an index)")
            continue
        meaning, fatal = _meaning_of(columns, name, read, chosen)
        if not fatal and (meaning is None or meaning is RESPONSE) and not columns.is_prose(name):
            unread.append(repr(name))
            continue
        if _repeats(columns, name, read):
            unread.append(f"{name!r} (repeats columns that are read)")
            continue
        what = meaning.what if meaning is not None else "text"
        target = meaning.target if meaning is not None else "prompt"
        readable = target in read or (chosen.read in SINGLE and target in ("rating", "rejected", "corrected"))
        if columns.share(target) or not readable:
            target = ""  # --columns would read it in place of another column, or not at all
        share = f"in {100 * columns.share(name):.0f}% of rows"
        if fatal:
            refused.append((name, f"{what} ({share})", target))
            continue
        advice = f"; if it matters, name it: {_option(name, target)}" if target else ""
        if not target and meaning in (None, PROMPT) and not words_of(name) & set(ABOUT.split()):
            advice = "; if it matters, add it to the prompt"
        unread.append(f"{name!r} ({what}, {share}{advice})")
    if refused:
        raise _refusal(refused, columns, read, file)
    return unread


def _meaning_of(columns: Columns, name: str, read: Collection[str], chosen: Format) -> tuple[Meaning | None, bool]:
    """The likely meaning of a column by its name and contents, and whether it must not be left unread."""
    words, prose, filled = words_of(name), columns.is_prose(name), columns.share(name) >= 0.9
    if prose and filled and columns.is_system(name):
        return SYSTEM, True
    other = next((known for known in OTHERS if words & set(known.words.split())), None)
    if prose and chosen.read in SINGLE and other is not None and "original" not in words:
        return other, True
    imitates = chosen.read is read_demonstration
    pair = {"chosen", "rejected"} <= set(read) & columns.kinds.keys()
    if (pair and columns.names_sides(name)) or (imitates and columns.judges(name)):
        return JUDGMENT, True
    first = next(iter(columns.values(name)), None)
    nested = set(map(str, first)) if isinstance(first, dict) else set()
    meaning = next((known for known in MEANINGS if name.lower() in known.refused.split()), None)
    fatal = meaning is not None
    meaning = meaning or next((known for known in MEANINGS if (words | nested) & set(known.words.split())), None)
    if meaning is JUDGMENT:
        return meaning, columns.varies(name) and (fatal or imitates)
    text = meaning in (None, PROMPT) and not words & set(ABOUT.split()) and not chosen.source and chosen is not PROMPTS
    return (PROMPT, True) if text and filled and columns.is_long(name, LONG) else (meaning, fatal)


def _refusal(refused: list[tuple[str, str, str]], columns: Columns, read: Collection[str], file: str) -> DataError:
    named = (f"the column {name!r} is not read with these columns and seems to be {what}" for name, what, _ in refused)
    ways = [f"say what it is ({_option(name, target)})" for name, _, target in refused if target]
    if not ways and any(PROMPT.what in what for _, what, _ in refused):
        ways = ["add it to the prompt in the file"]
    ignore = " ".join(shlex.quote(f"{name}={IGNORE}") for name, *_ in refused)
    return DataError(
        " and ".join(named),
        where=file,
        expected="columns that are read: " + ", ".join(sorted(map(repr, set(read) & set(columns.kinds)))),
        remedy=", or ".join([*ways, f"leave it aside (--columns {ignore})", "remove it"]),
    )


def _option(name: str, target: str) -> str:
    return f"--columns {shlex.quote(f'{name}={target}')}"


def refuse_other_text(columns: Columns, read: Collection[str], file: str) -> None:
    """Raise a DataError if a file without a prompt has another text column, which is probably part of the prompt."""
    others = [
        name
        for name in columns.kinds
        if name not in read
        and (name.lower() == "prompt" or columns.is_prose(name) or columns.is_short_text(name))
        and not _repeats(columns, name, read)
    ]
    if others:
        nearest = next((name for name in others if name.lower() == "prompt"), others[0])
        raise DataError(
            f"there is no prompt column, and other columns hold text: {', '.join(map(repr, others))}",
            where=file,
            expected="the prompt in a column named prompt, or no text but the responses, which begin with it",
            remedy=f"did you mean {_option(nearest, 'prompt')}? To ignore the column: {_option(nearest, IGNORE)}",
        )


def _repeats(columns: Columns, name: str, read: Collection[str]) -> bool:
    """Whether the columns that are read contain all texts of a column. A text of one or two words must be a cell."""
    checked = 0
    for row in islice((row for row in columns.rows if not is_nothing(row.get(name))), SAMPLE):
        known = [text.strip() for other in read for text in texts_in(row.get(other))]
        texts = [text.strip() for text in texts_in(row[name]) if text.strip()]
        if not texts or any(
            text not in known and (len(text.split()) < 3 or not any(text in other for other in known)) for text in texts
        ):
            return False
        checked += 1
    return checked > 0
