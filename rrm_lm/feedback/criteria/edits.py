"""Edits of a response that move the measure of a criterion: the response, and how it would be with or without a fault.

An edit is a pure function of a response, its prompt and a response to another prompt; it returns None where it does not
apply. Each belongs to the detectors that it moves, in either direction: whoever compares the two versions says which is
better. An edit counts only if the criterion's value really changes. English only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from rrm_lm.feedback.criteria.detectors import DETECTORS, content_words, split_sentences
from rrm_lm.feedback.criteria.records import Criterion

Edit = Callable[[str, str, str], str | None]

_OPENERS = ("Sure!", "Great question!", "Of course!", "I am glad that you ask.")
_CLOSES = ("I hope this helps!", "Have a lovely day!", "Let me know if you need more.", "Good luck!")


def _one_of(options: Sequence[str], response: str) -> str:
    """One of the options, which depends on the response alone."""
    return options[sum(response.encode()) % len(options)]


def toggle_opening(response: str, prompt: str, other: str) -> str | None:
    """Without its filler at the start, or with one."""
    first, *rest = split_sentences(response) or [""]
    if DETECTORS["filler_opening"].measure(response, prompt):
        return response[response.index(rest[0], len(first)) :] if rest else None
    return f"{_one_of(_OPENERS, response)} {response}" if first else None


def toggle_close(response: str, prompt: str, other: str) -> str | None:
    """Without its good wish at the end, or with one."""
    if not DETECTORS["friendly_close"].measure(response, prompt):
        return f"{response.rstrip()} {_one_of(_CLOSES, response)}"
    kept = split_sentences(response)[:-1]
    return response[: response.rindex(kept[-1]) + len(kept[-1])] if kept else None


def shorten(response: str, prompt: str, other: str) -> str | None:
    """Its first sentence; of a long response, the first half of its sentences."""
    sentences = split_sentences(response)
    kept = sentences[: max(1, len(sentences) // 2)]
    return response[: response.index(kept[-1]) + len(kept[-1])] if len(sentences) > 1 else None


def lengthen(response: str, prompt: str, other: str) -> str | None:
    """With the first sentences of another response."""
    return f"{response.rstrip()} {' '.join(split_sentences(other)[:2])}" if split_sentences(other) else None


def toggle_list(response: str, prompt: str, other: str) -> str | None:
    """Its list items as sentences, or its sentences as list items."""
    if DETECTORS["list_items"].measure(response, prompt):
        lines = [re.sub(r"^[ \t]*(?:[-*+\u2022\u2013]|\(?\w{1,2}[.)])[ \t]+", "", one) for one in response.splitlines()]
        return " ".join(line.strip() for line in lines if line.strip())
    sentences = split_sentences(response)
    return "\n".join(f"- {one}" for one in sentences) if len(sentences) > 1 else None


def cut_off(response: str, prompt: str, other: str) -> str | None:
    """Without the last third of its last sentence."""
    words = response.split(" ")
    last = len((split_sentences(response) or [""])[-1].split())
    return " ".join(words[: len(words) - last // 3]).rstrip(" .!?,") if last >= 6 else None


def quote(response: str, prompt: str, other: str) -> str | None:
    """With a quotation of the sentence of the prompt that shares most words with it."""
    sentences = [one for one in split_sentences(prompt) if not one.endswith("?")]
    said = content_words(response)
    best = max(sentences, key=lambda one: len(said & content_words(one)), default="")
    return f'{response.rstrip()} The text says: "{best}"' if said & content_words(best) else None


def answer_another(response: str, prompt: str, other: str) -> str | None:
    """The other response."""
    return other or None


# Detectors and the edits that move them. `answer_another` and `lengthen` need another response.
EDITS: Mapping[str, tuple[Edit, ...]] = {
    "filler_opening": (toggle_opening,),
    "friendly_close": (toggle_close,),
    "warmth": (toggle_close,),
    "sentences": (shorten, lengthen),
    "words": (shorten, lengthen),
    "distinct_words": (shorten, lengthen),
    "list_items": (toggle_list,),
    "finished": (cut_off,),
    "quotation": (quote,),
    "copied": (quote,),
    "prompt_overlap": (answer_another,),
    "on_topic": (answer_another,),
    "fits_question": (answer_another,),
}


def edited(
    criteria: Iterable[Criterion], prompt: str, response: str, other: str, *, only_better: bool = False
) -> dict[str, str]:
    """The edits of a response that move the value of a criterion.

    Args:
        criteria: What people want; those whose measure no edit moves give none.
        prompt: The text of the last user turn.
        response: The response, with text in it.
        other: A response to another prompt, or "".
        only_better: Leave out edits after which the criterion is met less.

    Returns:
        Different texts by the name of their criterion, at most one for each.
    """
    found: dict[str, str] = {}
    for one in criteria:
        detector = DETECTORS.get(one.measure)
        if detector is None:
            continue
        for edit in EDITS.get(one.measure, ()):
            text = edit(response, prompt, other)
            if not text or not text.strip() or text.strip() in (response.strip(), *found.values()):
                continue
            gain = one.value(detector.measure(text, prompt)) - one.value(detector.measure(response, prompt))
            if gain > 0 or (gain < 0 and not only_better):
                found[one.name] = text
                break
    return found
