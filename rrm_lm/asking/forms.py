"""Answers from the fields of the page's form, and fields from answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rrm_lm.asking.text import clean
from rrm_lm.errors import DataError
from rrm_lm.feedback.store.events import BOTH_BAD, FIRST, SECOND, SKIP, TIE, About, Answer, Item

STARS = 5
STRENGTHS = {
    "1": ("left", 3),
    "2": ("left", 2),
    "3": ("left", 1),
    "5": ("right", 1),
    "6": ("right", 2),
    "7": ("right", 3),
}
OTHERS = {"4": TIE, "0": BOTH_BAD, "s": SKIP}


def shown_order(field: str, item: Item) -> tuple[int, ...]:
    """The order of responses in a page, from its field "shown", such as "1 0". Raises DataError: it is not one."""
    order = tuple(int(place) if place.isdecimal() else -1 for place in field.split())
    if sorted(order) != list(range(len(item.responses))):
        raise DataError("the form does not say in which order the answers were shown", where=f"item {item.id}")
    return order


def read_answer(fields: Mapping[str, str], item: Item, shown: Sequence[int]) -> Answer:
    """The answer in a form whose responses were shown in this order: `critique_0` is about the first one shown."""
    text = {name: value.replace("\r\n", "\n").strip() for name, value in fields.items()}
    about = [About()] * len(item.responses)
    for place, response in enumerate(shown):
        rating, corrected = text.get(f"rating_{place}", ""), text.get(f"corrected_{place}", "")
        critique = text.get(f"critique_{place}", "")
        about[response] = About(
            critiques=(critique,) if critique else (),
            quote=text.get(f"quote_{place}", "") if critique else "",
            rating=(int(rating) - 1) / (STARS - 1) if rating in map(str, range(1, STARS + 1)) else None,
            corrected="" if corrected == clean(item.responses[response]).strip() else corrected,
            goal=text.get(f"goal_{place}", ""),
        )
    choice = text.get("verdict", "")
    verdict, strength = OTHERS.get(choice, ""), None
    if choice in STRENGTHS and len(shown) == 2:
        side, strength = STRENGTHS[choice]
        verdict = (FIRST, SECOND)[shown[0] if side == "left" else shown[1]]
    return Answer(
        verdict=verdict,
        strength=strength,
        about=tuple(about) if any(one != About() for one in about) else (),
        demonstration=text.get("demonstration", ""),
        criteria=tuple(name.removeprefix("criterion ") for name in text if name.startswith("criterion ")),
        shown=tuple(shown),
    )


def fill_form(answer: Answer | None, shown: Sequence[int]) -> dict[str, str]:
    """The fields of the form that gives this answer."""
    if answer is None:
        return {}
    fields = {"demonstration": answer.demonstration, **{f"criterion {name}": "on" for name in answer.criteria}}
    for place, response in enumerate(shown if answer.about else ()):
        about = answer.about[response]
        fields |= {f"critique_{place}": "\n".join(about.critiques), f"quote_{place}": about.quote}
        fields |= {f"corrected_{place}": about.corrected, f"goal_{place}": about.goal}
        fields[f"rating_{place}"] = "" if about.rating is None else str(round(about.rating * (STARS - 1)) + 1)
    side = {FIRST: 0, SECOND: 1}.get(answer.verdict)
    for choice, (name, strength) in STRENGTHS.items():
        if side is not None and len(shown) == 2 and (shown[0] == side) == (name == "left"):
            fields.setdefault("verdict", choice)
            if strength == answer.strength:
                fields["verdict"] = choice
    for choice, verdict in OTHERS.items():
        if verdict == answer.verdict:
            fields["verdict"] = choice
    return {name: value for name, value in fields.items() if value}
