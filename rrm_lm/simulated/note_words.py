"""Critiques by the two note users: one or two faults, often a merit, in 8 to 40 words."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True)
class NoteJudgement:
    """A note user's judgment of one response."""

    parts: Mapping[str, float]  # `answer` and the parts of `note_users.WEIGHTS`, from 0 to 1
    gold: float  # 0 to 1
    sentences: int  # number of sentences, not counting a friendly close
    given: str  # the wrong value that it states, or ""
    opening: str  # the filler at the start, or ""
    close: str  # the friendly close, or ""


_WRONG = (
    "That is the wrong value: {given} belongs to something else in the note.",
    "It mixes things up, {given} is not what I asked about.",
    "Read the note again, {given} is about the other thing.",
    "Wrong, I did not ask about {given}.",
)
_MISSING = (
    "My question is not answered, though the note says it.",
    "It talks around the question and never gives me the answer.",
    "I still do not know what I asked; it is in the note.",
    "There is no clear answer in there.",
)
_RIGHT = (
    "The answer is right.",
    "It gives me exactly what I asked for.",
    "Correct, that is what the note says.",
    "It picked the right one out of the note.",
)
_FILLER = (
    'Leave out "{opening}" and begin with the answer.',
    'It opens with "{opening}", which tells me nothing.',
    'No need for "{opening}" at the start.',
)
FAULTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "plain": {
        "length": (
            "It is too long at {count}; two are enough.",
            "Far too much text for such a small question.",
            "Keep it to two sentences at most.",
            "I do not want to read {count} for one fact.",
        ),
        "opening": _FILLER,
        "form": (
            "I do not need a list or bold text for one answer.",
            "Please write plain sentences and no list.",
            "The bullet points are overdone here.",
        ),
        "close": (
            "It ends abruptly, a friendly word at the end would be nice.",
            "There is no friendly close.",
            "I miss a kind word at the end.",
            "Wish me something nice at the end.",
        ),
    },
    "thorough": {
        "length": (
            "I do not like a length of {count}; three to five would be right.",
            "Explain it in three to five sentences.",
            "I would like a bit of context, three sentences at least and no more than five.",
        ),
        "opening": _FILLER,
        "form": (
            "Several things deserve a list, one on each line.",
            "Put the items into a list, please.",
        ),
        "close": (
            'The small talk at the end ("{close}") is not needed.',
            "Leave the pleasantries at the end out.",
            'No need for "{close}".',
        ),
        "source": (
            "It does not say where in the note this stands.",
            "Tell me which sentence of the note says so.",
            "I cannot check it, since the place in the note is missing.",
            "Quote the words of the note, so that I can check it.",
        ),
    },
}
PRAISE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "plain": {
        "length": ("It is nice and short.", "The length is just right.", "I like that it is brief."),
        "opening": ("It gets to the point at once.", "It starts with the answer, good."),
        "form": ("Plain sentences, as I like it.", "No list, that is good."),
        "close": ("The friendly close is kind.", "I like the kind word at the end."),
    },
    "thorough": {
        "length": ("It has the length I like.", "It explains enough without rambling."),
        "opening": ("It gets to the point at once.", "It starts with the matter, good."),
        "form": ("The form suits it.",),
        "close": ("No small talk at the end, good.", "It stops when it is done."),
        "source": ("It says where in the note it stands.", "I can check it in the note, very good."),
    },
}


def critique(judged: NoteJudgement, manner: str, key: str) -> str:
    """Write a critique for one judgment: the answer or the worst fault first, then another fault or a merit. `manner`
    is "plain" or "thorough". `key` selects the words; equal keys give equal words.
    """
    rng = random.Random(key)
    number = _NUMBERS[judged.sentences] if judged.sentences < len(_NUMBERS) else str(judged.sentences)
    facts = {
        "count": f"{number} sentence{'s' * (judged.sentences != 1)}",
        "given": judged.given,
        "opening": judged.opening,
        "close": " ".join(judged.close.split()[:6]),
    }
    faults = [part for part in FAULTS[manner] if judged.parts.get(part, 1.0) < 0.75]
    praised = [part for part in PRAISE[manner] if judged.parts.get(part, 0.0) >= 0.95]
    rng.shuffle(faults)
    rng.shuffle(praised)
    said: list[str] = []
    if not judged.parts["answer"]:
        said.append(rng.choice(_WRONG if judged.given else _MISSING))
    elif rng.random() < 0.6 or not faults:
        said.append(rng.choice(_RIGHT))
    said += [rng.choice(FAULTS[manner][part]) for part in faults[: 1 if said else 2]]
    if praised and (len(said) < 2 or rng.random() < 0.3):
        said.append(rng.choice(PRAISE[manner][praised[0]]))
    if judged.parts["answer"]:
        rng.shuffle(said)
    words = " ".join(said).format(**facts)
    return words[:1].upper() + words[1:]
