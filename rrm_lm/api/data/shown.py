"""Print training examples and prompts as the model sees them, with the trained parts marked."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from rrm_lm.feedback.records import Prompt
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.reward.examples import RewardExample

READ = "▲"  # the reward is read here
WRITES = "▶"  # the response of a policy starts here
OPEN, CLOSE = "⟦", "⟧"  # around tokens that are learned
_STYLE = {"prompt": "dim", "response": "bold", "frame": "dim", "critique": "bold green"}


def show_example(chat: ChatFormat, example: RewardExample, *, rewarded: bool = True) -> None:
    """Print the lines of an example to stderr. Marks are characters in addition to colors, because a log file has no
    colors. Unless the example is `rewarded`, only tokens are learned.
    """
    console = _console()
    reward = f"The reward is read at {READ}; the" if rewarded else "The"
    console.print(f"One example as the model sees it ({example.origin}). {reward} words in {OPEN} {CLOSE} are learned.")
    for number, label in _labels(example).items():
        text = marked(chat, example.lines[number], READ if rewarded else "")
        console.print(Text(f"[{label}] ", "bold cyan").append_text(text))


def _labels(example: RewardExample) -> dict[int, str]:
    """The lines to show and the label of each. Only the first critique of each response is shown."""
    if example.pairs:
        return {example.pairs[0].chosen: "preferred", example.pairs[0].rejected: "rejected"}
    if example.ratings:
        return {line: f"rated {rating:.2f}" for line, rating in example.ratings[:1]}
    return {0: "critiqued"}


def marked(chat: ChatFormat, line: Line, mark: str) -> Text:
    """The text of a line, with `mark` where the reward is read."""
    text = Text()
    behind = line.reward_at >= line.critique.start if line.critique else False
    for piece, kind in chat.show(line):
        if kind == "critique":
            text.append(OPEN, "green").append(piece, _STYLE[kind]).append(CLOSE, "green")
        else:
            text.append(piece, _STYLE[kind])
        if kind == ("critique" if behind else "response"):
            text.append(mark, "bold red")
    return text


def show_learned(chat: ChatFormat, line: Line, origin: str) -> None:
    """Print a prompt and its learned response, including the token that ends it, to stderr."""
    console = _console()
    console.print(f"One example as the model sees it ({origin}). The words in {OPEN} {CLOSE} are learned.")
    words = {
        kind: chat.tokenizer.decode(list(ids))
        for kind, ids in (("prompt", line.ids[: line.response_start]), ("response", line.ids[line.response_start :]))
    }
    text = Text("[imitated] ", "bold cyan").append(words["prompt"], _STYLE["prompt"])
    console.print(text.append(OPEN, "green").append(words["response"], _STYLE["critique"]).append(CLOSE, "green"))


def show_prompt(chat: ChatFormat, prompt: Prompt) -> None:
    """Print a prompt as the model sees it to stderr."""
    console = _console()
    ids = chat.prompt_ids(prompt)
    console.print(f"One prompt as the model sees it ({len(ids)} tokens). The policy writes on from {WRITES}.")
    console.print(Text("[prompt] ", "bold cyan").append(chat.tokenizer.decode(ids), "dim").append(WRITES, "bold red"))


def _console() -> Console:
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
