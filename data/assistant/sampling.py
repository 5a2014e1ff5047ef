"""Samples the responses of the assistant set from SmolLM2, in several styles; resumable.

A small model hardly follows instructions about style, but it imitates examples: it is given three short exchanges in
the desired style (form, opening, closing), then the request. The data has only the request.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import sampled
from sampled import Manner

IDS_PER_REQUEST = 6  # row ids reserved for each request
TEMPERATURES = (0.4, 0.7, 1.0)
MOST_TOKENS = {"own": 110, "brief": 60, "two": 80, "long": 110, "list": 90}

# Examples before a request: a question, and its answer in each form.
EXCHANGES = (
    (
        "How do I keep apples fresh?",
        {
            "brief": "Keep them in the fridge, in a bag that lets some air in.",
            "two": "Keep them in the fridge, in a bag that lets some air in. "
            "Take out bad ones, since they spoil the rest.",
            "long": "Keep them in the fridge. The cold slows the ripening. Use a bag that lets some air in. "
            "Look at them once a week. Take out bad ones, since they spoil the rest.",
            "list": "1. Put them in the fridge.\n2. Use a bag that lets some air in.\n3. Take out the bad ones.",
        },
    ),
    (
        "Where should I put my keys so that I find them?",
        {
            "brief": "Hang them on a hook beside the door, as soon as you come in.",
            "two": "Hang them on a hook beside the door, as soon as you come in. "
            "After a week you will do it without thinking.",
            "long": "Choose one place for them. A hook beside the door is good. Hang them there as soon as you come "
            "in. Never put them in a coat. After a week you will do it without thinking.",
            "list": "- On a hook beside the door\n- In a bowl on the shelf\n- In the front pocket of your bag",
        },
    ),
    (
        "What is a good colour for a bedroom?",
        {
            "brief": "A soft blue is a good colour, because it makes the room calm.",
            "two": "A soft blue is a good colour, because it makes the room calm. "
            "Paint one wall first to see how it looks.",
            "long": "A soft blue is a good colour. It makes the room calm. A warm grey works as well. "
            "Bright red does not, because it keeps you awake. Paint one wall first to see how it looks.",
            "list": "1. A soft blue, which is calm.\n2. A warm grey.\n3. A pale green.",
        },
    ),
    (
        "How do I clean my glasses?",
        {
            "brief": "Wash them with warm water and a drop of soap, then dry them with a soft cloth.",
            "two": "Wash them with warm water and a drop of soap. Dry them with a soft cloth, never with paper.",
            "long": "Hold them under warm water. Rub a drop of soap on the lenses. Rinse them well. "
            "Dry them with a soft cloth. Never use paper, because it scratches.",
            "list": "- Rinse them with warm water.\n- Rub a drop of soap on the lenses.\n- Dry them with a soft cloth.",
        },
    ),
)
OPENINGS = (
    "Sure!",
    "Certainly!",
    "Of course!",
    "Great question!",
    "Absolutely!",
    "I'd be happy to help!",
    "Sure, here you go:",
)
CLOSINGS = (
    "I hope this helps!",
    "Let me know if you need anything else!",
    "Have a lovely day!",
    "Good luck!",
    "Enjoy!",
    "Feel free to ask me more.",
    "All the best!",
    "Happy to help if you have more questions.",
)


def manners(rng: random.Random) -> list[Manner]:
    """The styles for one request: the model's own, and one per form, about half with an opening or a closing."""
    chosen = [Manner("own", temperature=rng.choice(TEMPERATURES[1:]))]
    forms = ["brief", "two", "long", "list"]
    closings = [True, True, rng.random() < 0.5, False]
    openings = [True, rng.random() < 0.5, False, False]
    for options in (closings, openings):
        rng.shuffle(options)
    for form, closing, opening in zip(forms, closings, openings, strict=True):
        chosen.append(
            Manner(
                form,
                opening=rng.choice(OPENINGS) if opening else "",
                closing=rng.choice(CLOSINGS) if closing else "",
                temperature=rng.choice(TEMPERATURES),
            )
        )
    return chosen


def sample_responses(requests: Sequence[str], path: Path, seed: int) -> None:
    """Sample responses to every request and append them to `path` (`sampled.sample_rows`)."""
    sampled.sample_rows(_rows(requests, seed), path, seed)


def _rows(requests: Sequence[str], seed: int) -> list[sampled.Row]:
    rows = []
    for index, request in enumerate(requests):
        rng = random.Random(f"{seed} {request}")
        for place, manner in enumerate(manners(rng)):
            examples = rng.sample(EXCHANGES, 3) if manner.form != "own" else []
            rows.append(
                sampled.Row(
                    index * IDS_PER_REQUEST + place,
                    manner.messages(request, examples),
                    manner.form,
                    MOST_TOKENS[manner.form],
                    manner.temperature,
                    {"request": request, **asdict(manner)},
                )
            )
    return rows
