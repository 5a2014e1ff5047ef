"""The styles in which SmolLM2 responds to the questions of the notes set, as it is and tuned.

A small model hardly follows instructions about style, but it imitates an example: it is given an exchange or two about
other notes in the desired style, then the question. The data has only the question. Some responses are by SmolLM2
after a little supervised fine-tuning on what the plain user demonstrated: what a policy writes when reinforcement
learning starts.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import sampled
from sampled import Manner

SAMPLES = 2  # responses in each manner, which therefore often share their form
ROWS_PER_QUESTION = 3
TEMPERATURES = (0.4, 0.7, 0.2)  # above, much of what this model writes makes no sense
EXAMPLES = {0.2: 2}  # exchanges before a question; one at the other temperatures
TUNED_TEMPERATURES = (0.7, 1.0)
MOST_TOKENS = {"own": 60, "brief": 40, "two": 60, "sourced": 100, "list": 80, "tuned": 100}

# Examples before a question: a note with its question, and an answer in each form.
EXCHANGES = (
    (
        "The bakers' stall opens at 6:20 on 5 May, and Yvonne sells rye bread. The fish stall opens at 6:50, where "
        "Quentin sells smoked trout.\n\nWho sells the trout?",
        {
            "brief": "Quentin sells the trout.",
            "two": "Quentin sells the trout. You find him at the fish stall.",
            "sourced": "Quentin sells the trout. The last sentence of the note is about the fish stall. It says that "
            '"Quentin sells smoked trout".',
            "list": "- Quentin sells the trout.\n- He is at the fish stall.\n- It opens at 6:50.",
        },
    ),
    (
        "Dear neighbours, the gutters are cleaned on 29 February. Please move your cars to the lower street. The trees "
        "are cut on 31 March, so keep the windows closed.\n\nOn which date are the gutters cleaned?",
        {
            "brief": "The gutters are cleaned on 29 February.",
            "two": "The gutters are cleaned on 29 February. Cars should stand in the lower street then.",
            "sourced": "The gutters are cleaned on 29 February. The first sentence of the note says so. It also asks "
            "you to move your cars.",
            "list": "- The gutters are cleaned on 29 February.\n- Move your car to the lower street.",
        },
    ),
    (
        "Swimming lessons: beginners pay 13 euros and meet Yusuf at the small pool. Divers pay 28 euros and meet Zelda "
        "at the deep end.\n\nHow much do divers pay?",
        {
            "brief": "Divers pay 28 euros.",
            "two": "Divers pay 28 euros. They meet Zelda at the deep end.",
            "sourced": 'Divers pay 28 euros. The second sentence of the note says "Divers pay 28 euros". Beginners pay '
            "something else.",
            "list": "- Divers pay 28 euros.\n- They meet Zelda.\n- The place is the deep end.",
        },
    ),
)
OPENINGS = ("Sure!", "Certainly!", "Of course!", "Great question!", "Absolutely!", "I'd be happy to help!")
CLOSINGS = (
    "I hope this helps!",
    "Have a lovely day!",
    "Good luck!",
    "Enjoy!",
    "All the best!",
    "See you there!",
    "Let me know if you need anything else!",
)


def manners(rng: random.Random) -> list[Manner]:
    """The styles for one question: the model's own, a short one and a long one."""
    chosen = [Manner("own", temperature=rng.choice(TEMPERATURES))]
    for forms, closes in ((("brief", "brief", "two"), 0.6), (("two", "sourced", "list"), 0.3)):
        opening = rng.choice(OPENINGS) if rng.random() < 0.3 else ""
        closing = rng.choice(CLOSINGS) if rng.random() < closes else ""
        chosen.append(Manner(rng.choice(forms), opening, closing, rng.choice(TEMPERATURES)))
    return chosen


def tune(demonstrations: Path, out: Path) -> Path:
    """Fine-tune SmolLM2 on 100 demonstrations; the folder of its adapter, which is kept."""
    if not (out / "adapter_config.json").exists():
        flags = {
            "dataset_name": demonstrations, "eval_fraction": 0, "max_steps": 25, "per_device_train_batch_size": 4,
            "learning_rate": 5e-4, "max_length": 384, "save_strategy": "no", "output_dir": out,
        }  # fmt: skip
        words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        subprocess.run(
            [sys.executable, "-m", "rrm_lm", "sft", "--model_name_or_path", "smollm2-135m", *words], check=True
        )
    return out


def sample_tuned(
    prompts: Sequence[tuple[str, str]], adapter: Path, first: int, path: Path, seed: int, threads: int = 2
) -> None:
    """Sample responses of a tuned model to `(part, prompt)`, like :func:`sample_responses`; `first` is the first id."""
    rows = []
    for index, (part, prompt) in enumerate(prompts):
        temperature = random.Random(f"{seed} plain {prompt}").choice(TUNED_TEMPERATURES)
        form = Manner("tuned", temperature=temperature)
        group, fields = f"{part} {form.form}", {"part": part, "prompt": prompt, **asdict(form)}
        rows.append(
            sampled.Row(first + index, form.messages(prompt, ()), group, MOST_TOKENS["tuned"], temperature, fields)
        )
    sampled.sample_rows(rows, path, seed, SAMPLES, threads, adapter)


def copies_example(response: str) -> bool:
    """Whether a response repeats the answer of an example instead of answering the question."""
    return any(answers["brief"] in response for _, answers in EXCHANGES)


def sample_responses(prompts: Sequence[tuple[str, str]], path: Path, seed: int, threads: int = 2) -> None:
    """Sample responses to `(part, prompt)` and append them to `path`, part by part (`sampled.sample_rows`)."""
    rows = []
    for index, (part, prompt) in enumerate(prompts):
        rng = random.Random(f"{seed} {prompt}")
        for place, manner in enumerate(manners(rng)):
            examples = rng.sample(EXCHANGES, EXAMPLES.get(manner.temperature, 1)) if manner.form != "own" else []
            rows.append(
                sampled.Row(
                    index * ROWS_PER_QUESTION + place,
                    manner.messages(prompt, examples),
                    f"{part} {manner.form}",
                    MOST_TOKENS[manner.form],
                    manner.temperature,
                    {"part": part, "prompt": prompt, **asdict(manner)},
                )
            )
    sampled.sample_rows(rows, path, seed, SAMPLES, threads)
