"""The words of the plain user (`plain_user.py`): a judgement told in many ways.

Every fault and every good point has a bank of phrasings of three kinds: said of the response ("rambles on for five
sentences"), a sentence of its own, and advice. A critique names the faults that weigh most first, and mostly one good
point too.
"""

from __future__ import annotations

import random
import re

from rrm_lm.simulated.judgement import Judgement

MOST_WORDS = 40
LEAST_WORDS = 8
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

# Each bank: said of the response (a verb phrase); sentences; advice. What stands in braces is filled in.
_Bank = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

FAULTS: dict[str, _Bank] = {
    "off_point": (
        (
            "does not answer what I asked",
            "misses the question altogether",
            "talks past my question",
            "leaves me without an answer",
            "is beside the point",
            "never gets to {named}",
            "has not a word about {named}",
            "gets it wrong without {named}",
        ),
        (
            "I still do not know what I asked for.",
            "My question was not answered.",
            "That is not an answer to my question.",
            "I was looking for something like {named}, and there is nothing of the kind.",
            "Wrong or off the subject: I expected to read about {named}.",
            "This is of no use to me, because {named} is not in it.",
        ),
        (
            "Answer the question first, for example with {named}.",
            "Stick to what I asked; {named} would have been right.",
            "Say something about {named}.",
        ),
    ),
    "half_point": (
        (
            "answers only half of the question",
            "leaves out {named}",
            "is on the subject but forgets {named}",
            "gives me only part of the answer",
            "does not mention {named}",
            "is missing the part about {named}",
        ),
        (
            "Half of the answer is missing: nothing about {named}.",
            "I would have needed a word about {named} as well.",
            "It is on the right track, but {named} is missing.",
            "The answer is incomplete without {named}.",
        ),
        (
            "Add something about {named}.",
            "Mention {named} too.",
            "Give the whole answer, with {named}.",
        ),
    ),
    "long": (
        (
            "is too long at {count} sentences",
            "rambles on for {count} sentences",
            "takes {count} sentences where two would do",
            "goes on and on",
            "uses far too many words",
            "is longer than the two sentences I like",
        ),
        (
            "Far too long: I count {count} sentences.",
            "Two sentences are enough for me, and this has {count}.",
            "Too much text for a simple question.",
            "I stopped reading, since {count} sentences are too many.",
        ),
        (
            "Keep it to two sentences.",
            "Cut it down to two sentences at most.",
            "Say it in two sentences, not {count}.",
        ),
    ),
    "wordy": (
        (
            "packs too much into its sentences",
            "has endless sentences",
            "is wordy, with around {words} words",
            "needs around {words} words for a small matter",
        ),
        (
            "The sentences are far too long.",
            "Around {words} words is too much for this.",
            "Too wordy for me.",
        ),
        (
            "Use fewer words.",
            "Shorten the sentences.",
        ),
    ),
    "no_close": (
        (
            "ends without a friendly word",
            "just stops without a kind ending",
            "has no polite close",
            "does not wish me well or offer more help at the end",
            "sounds curt at the end",
            "leaves out a friendly goodbye",
        ),
        (
            "There is no friendly ending.",
            "I miss a kind word at the end.",
            "It breaks off coldly, without a good wish or an offer to help.",
            "No polite close.",
            "The ending is cold.",
        ),
        (
            "End with a kind word.",
            "Close politely, with a good wish or an offer to help.",
            "Add a friendly ending.",
        ),
    ),
    "filler": (
        (
            'opens with the filler "{opening}"',
            'wastes its first words on "{opening}"',
            'starts with an empty "{opening}"',
            "warms up before it answers",
            "begins with chatter instead of the answer",
        ),
        (
            'I do not need "{opening}" at the start.',
            'The opening "{opening}" is empty talk.',
            'No "{opening}", please.',
            "The first words are filler.",
        ),
        (
            'Drop the "{opening}" and start with the answer.',
            "Start with the answer, not with pleasantries.",
            'Leave out "{opening}".',
        ),
    ),
    "list": (
        (
            "is a list instead of plain sentences",
            "breaks into {items} list points",
            "uses numbered or dotted points",
            "is cut up into points",
            "answers as a list",
        ),
        (
            "I do not like lists.",
            "This is a list of {items} points and not a plain answer.",
            "Lists are hard to read for me.",
            "All these points instead of a normal sentence.",
        ),
        (
            "Write plain sentences, no list.",
            "No lists, please; just tell me.",
            "Put it in a sentence instead of points.",
        ),
    ),
    "bold": (
        ("uses bold text that I do not need", "has stars and bold words in it"),
        ("The bold text is distracting.", "No bold text, please."),
        ("Leave out the bold text.", "Write plain text without stars."),
    ),
    "unfinished": (
        (
            'breaks off at "{tail}"',
            "stops in the middle of a sentence",
            "is cut off before the end",
            'stops at "{tail}" without finishing',
        ),
        (
            "The last sentence is not finished.",
            'It breaks off at "{tail}".',
            "The end is missing.",
        ),
        (
            "Finish the last sentence.",
            "Do not stop in the middle.",
        ),
    ),
}

MERITS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # said of the response; sentences
    "answer": (
        ("answers my question", "tells me what I wanted to know", "gets to the point", "gives me a useful answer"),
        (
            "The answer itself is right.",
            "It says what I needed to know.",
            "My question is answered.",
            "Useful content.",
        ),
    ),
    "short": (
        ("is short", "keeps it brief", "stays within two sentences", "has just the right length"),
        ("Nice and short.", "Good length.", "Brief, as I like it.", "Two sentences at most, good."),
    ),
    "close": (
        (
            "ends kindly",
            "closes politely",
            'ends on a friendly "{close}"',
            "has a warm ending",
            "says a kind word at the end",
        ),
        (
            "The friendly ending is nice.",
            'I like the "{close}" at the end.',
            "A polite close, good.",
            "Kind last words.",
        ),
    ),
    "opening": (
        ("starts right with the answer", "wastes no words at the start", "has no filler at the start"),
        ("It starts straight away.", "No filler at the start, good.", "Direct from the first word."),
    ),
    "prose": (
        ("is written in plain sentences", "is plain text without a list", "reads like a normal reply"),
        ("Plain sentences, no list.", "Good that it is not a list.", "Easy to read, no bullet points."),
    ),
}


def critique(judgement: Judgement, seed: str) -> str:
    """Tell a judgement in 8 to 40 words; equal seeds give equal words."""
    rng = random.Random(seed)
    facts = _facts(judgement, rng)
    faults = _faults(judgement, rng)
    merits = _merits(judgement, rng)
    if not faults:
        pieces = _praise(merits, rng)
    else:
        merits = merits[: rng.choice((0, 1, 1))] if len(faults) > 1 else merits[:1]
        pieces = _mixed(faults, merits, rng)
    return _fit([_capital(_fill(piece, facts)) for piece in pieces], [_fill(p, facts) for p in _spare(faults, rng)])


def _faults(judgement: Judgement, rng: random.Random) -> list[str]:
    """Names of the faults, those that cost most first (with a little disorder, as people have)."""
    parts, found = judgement.parts, []
    if parts["answer"] < 1:
        found.append(("off_point", 0.35) if parts["answer"] == 0 else ("half_point", 0.35 * (1 - parts["answer"])))
    if parts["short"] < 0.9:
        found.append(("long" if judgement.sentences > 2 else "wordy", 0.20 * (1 - parts["short"])))
    if not parts["close"]:
        found.append(("no_close", 0.15))
    if not parts["opening"]:
        found.append(("filler", 0.13))
    if parts["prose"] < 1:
        found.append(("list", 0.12) if parts["prose"] == 0 else ("bold", 0.06))
    if not parts["whole"]:
        found.append(("unfinished", 0.05))
    found.sort(key=lambda fault: -fault[1] * rng.uniform(0.6, 1.4))
    return [name for name, _ in found]


def _merits(judgement: Judgement, rng: random.Random) -> list[str]:
    """Names of the good points, in any order, the answer and the close mostly first."""
    found = [part for part in MERITS if judgement.parts[part] >= 0.9]
    return sorted(found, key=lambda part: rng.random() - 0.4 * (part in ("answer", "close")))


def _praise(merits: list[str], rng: random.Random) -> list[str]:
    chosen = merits[: rng.choice((2, 3))]
    said = [rng.choice(MERITS[name][0]) for name in chosen]
    if rng.random() < 0.5:
        return [rng.choice(("It ", "This ", "The reply ")) + _join(said) + ".", *rng.sample(_APPROVAL, 1)]
    start = rng.choice(("Just what I wanted: it ", "Very good, it ", "I like this: it ", "Well done, it "))
    return [start + _join(said) + "."]


_APPROVAL = [
    "That is how I like it.",
    "Nothing to complain about.",
    "More like this, please.",
    "I am happy with it.",
    "Keep it so.",
]


def _mixed(faults: list[str], merits: list[str], rng: random.Random) -> list[str]:
    said = [rng.choice(FAULTS[name][0]) for name in faults]
    own = [rng.choice(FAULTS[name][1]) for name in faults]
    good = rng.choice(MERITS[merits[0]][0]) if merits else ""
    subject = rng.choice(("It ", "This ", "The reply ", "This answer "))
    style = rng.random()
    if style < 0.30:  # one sentence about all
        first = f"{subject}{good}, but it {_join(said[:3])}." if good else f"{subject}{_join(said[:3])}."
        return [first, *own[3:]]
    if style < 0.60:  # a sentence for each
        return [*own, *([rng.choice(MERITS[merits[0]][1])] if merits else [])]
    if style < 0.80:  # the worst in full, the rest in short
        first = f"{subject}{said[0]}."
        rest = [rng.choice(("It also ", "Also, it ", "And it ")) + _join(said[1:3]) + "."] if len(said) > 1 else []
        return [first, *rest, *own[3:], *([rng.choice(MERITS[merits[0]][1])] if merits else [])]
    advice = rng.choice(FAULTS[faults[0]][2])
    start = f"{subject}{good}, but it {said[0]}." if good else f"{subject}{said[0]}."
    return [start, *own[1:3], advice, *own[3:]]


def _spare(faults: list[str], rng: random.Random) -> list[str]:
    """What is added to a critique that came out too short."""
    return [rng.choice(FAULTS[faults[0]][2])] if faults else rng.sample(_APPROVAL, 2)


def _fit(pieces: list[str], spare: list[str]) -> str:
    """Join pieces while they fit `MOST_WORDS`; the first always stays, and spare ones fill up to `LEAST_WORDS`."""
    text = pieces[0]
    for piece in pieces[1:]:
        if len(f"{text} {piece}".split()) <= MOST_WORDS:
            text = f"{text} {piece}"
    for piece in spare:
        if len(text.split()) < LEAST_WORDS and piece not in text:
            text = f"{text} {piece}"
    return text


def _facts(judgement: Judgement, rng: random.Random) -> dict[str, str]:
    return {
        "named": _named(judgement.missing, rng),
        "count": _number(judgement.sentences),
        "words": str(max(10, round(judgement.words / 10) * 10)),
        "items": _number(judgement.items),
        "opening": judgement.opening,
        "close": judgement.close.rstrip("."),
        "tail": judgement.tail,
    }


def _named(missing: tuple[str, ...], rng: random.Random) -> str:
    """In plain words, what one of the missing groups is about."""
    if not missing:
        return "it"
    group = rng.choice(missing)
    words = [word for word in group.split("|") if re.fullmatch(r"[^\W\d][\w' /-]{2,}", word)]
    if not words:
        return "the right number"
    if len(words) == 1 or len(group.split("|")) <= 3:
        return f'"{words[0]}"'
    first, second = rng.sample(words[:4], 2)
    return f'"{first}" or "{second}"'


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _fill(phrase: str, facts: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: facts[match.group(1)], phrase)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
