"""Parse structure in text: message lists as JSON or Python, and conversations with turn marks of chat templates."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rrm_lm.feedback.records import Message, Prompt

LONGEST_LITERAL = 1_000_000  # characters of a Python literal that is parsed; JSON has no limit
ROLE_NAMES = {
    **dict.fromkeys(("user", "human", "User", "Human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "Assistant"), "assistant"),
    "tool": "tool",
    "observation": "tool",
    "system": "system",
}
_MESSAGE_KEY = re.compile(r"""^\s*(?:array\()?\s*[\[{].{0,400}?['"](?:role|from)['"]\s*:""", re.DOTALL)
_CONTENT_KEY = re.compile(r"""['"](?:content|value)['"]\s*:""")
# Traces of mistakes that were made before the file was written.
ODD = {
    "HTML entities such as &amp;": re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);"),
    "backslash and n in place of line ends": re.compile(r"\A[^\n]*\\n[^\n]*\Z"),
    "letters decoded with another encoding, such as Ã©": re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac"),
    "nan or None, which may stand for no text": re.compile(r"\A\s*(?:nan|none|null|<na>|n/a)\s*\Z", re.IGNORECASE),
    "characters that were lost in decoding (U+FFFD)": re.compile("\ufffd"),
}


@dataclass(frozen=True)
class Dialect:
    """How a chat template writes turns: a mark with the role as its group, and the ends of a turn."""

    name: str
    mark: re.Pattern[str]
    end: re.Pattern[str]
    last: re.Pattern[str]  # the end of a turn at the end of a text

    def without_end(self, text: str) -> str:
        """A text without the tokens that end its turn. All of them end with ">", which is much faster to check."""
        return self.last.sub("", text) if text.rstrip().endswith(">") else text


def _dialect(name: str, mark: str, end: str = "(?!)") -> Dialect:
    return Dialect(name, re.compile(mark), re.compile(end), re.compile(rf"(?:\s*(?:{end}))+\s*\Z"))


HH = _dialect("Anthropic HH", r"\n\n(Human|Assistant):")
HELPSTEER = _dialect("HelpSteer", r"\n?<extra_id_1>(User|Assistant)\n")
TEMPLATES = (
    _dialect("ChatML", r"<\|im_start\|>(system|user|assistant|tool)\n", r"<\|im_end\|>|<\|endoftext\|>"),
    _dialect(
        "Llama 3",
        r"<\|start_header_id\|>(system|user|assistant|tool)<\|end_header_id\|>\s*",
        r"<\|(?:eot_id|end_of_text)\|>",
    ),
    _dialect("Gemma", r"<start_of_turn>(user|model)\n", r"<end_of_turn>|<eos>"),
    _dialect("Zephyr or Phi", r"<\|(system|user|assistant)\|>\s*", r"</s>|<\|end\|>|<\|endoftext\|>"),
    _dialect("Mistral", r"\[(/?INST)\]", r"</s>(?:\s*<s>)?"),
    _dialect("DeepSeek", r"<\uff5c(User|Assistant)\uff5c>", r"<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
# Marks that ordinary text may contain, so they count only at the beginning.
WRITTEN = (
    _dialect("Human and Assistant", r"(?m)^(Human|Assistant):"),
    _dialect("Vicuna", r"\b(USER|ASSISTANT):", r"</s>"),
    _dialect("Guanaco", r"### (Human|Assistant):"),
    _dialect("Alpaca", r"### (Instruction|Response):"),
)
HUMAN, ASSISTANT = "Human:", "Assistant:"
SPEAKERS = _dialect("Human and Assistant in one line", r"(?:\A|\s)(Human|Assistant):")
_BEGIN = re.compile(r"\A\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)?\s*")
_ROLES = {
    **dict.fromkeys(("USER", "Instruction"), "user"),
    **dict.fromkeys(("ASSISTANT", "Response"), "assistant"),
    "Human": "user",
    "User": "user",
    "Assistant": "assistant",
    "model": "assistant",
    "INST": "user",
    "/INST": "assistant",
}
_LLAMA_SYSTEM = re.compile(r"\A\s*<<SYS>>(.*?)<</SYS>>\s*", re.DOTALL)


def dialect_of(text: str) -> Dialect | None:
    """The dialect of a text that begins with a turn mark; None for other texts."""
    if text.lstrip().startswith("Human:") and "\n\nAssistant:" in text:
        return HH
    for known in WRITTEN:
        first = known.mark.match(text.lstrip())
        if first and len(set(known.mark.findall(text.lstrip()))) == 2:
            return known
    begin = _BEGIN.match(text)
    return next((known for known in TEMPLATES if known.mark.match(text, begin.end() if begin else 0)), None)


def split_turns(text: str, dialect: Dialect) -> Prompt:
    """The turns of a text in a dialect, without marks and surrounding whitespace."""
    if dialect is HH:
        text = "\n\n" + text.lstrip()
    marks = list(dialect.mark.finditer(text))
    turns: list[Message] = []
    for mark, end in zip(marks, [mark.start() for mark in marks[1:]] + [len(text)], strict=True):
        content = dialect.without_end(text[mark.end() : end]).strip()
        system = _LLAMA_SYSTEM.match(content)
        if system:
            turns.append(Message("system", system[1].strip()))
            content = content[system.end() :]
        turns.append(Message(_ROLES.get(mark[1], mark[1]), content))
    return tuple(turns)


def strip_turn_end(text: str) -> str:
    """A response without the tokens that end its turn; unchanged if it has no others."""
    for known in TEMPLATES:
        stripped = known.without_end(text)
        if stripped != text and stripped.strip():
            return stripped.strip()
    return text


def has_turns_inside(text: str) -> bool:
    """Whether a text contains several turn marks of a template. A single mark may be a mere mention."""
    return ("<" in text or "[" in text) and any(
        len(marks := known.mark.findall(text)) > 1 or (marks and known.end.search(text)) for known in TEMPLATES
    )


def odd_texts(texts: Iterable[str]) -> list[str]:
    """A remark for each of `ODD` that is in at least 2% of the texts."""
    counts, total = dict.fromkeys(ODD, 0), 0
    for total, text in enumerate(texts, 1):  # noqa: B007
        for what, pattern in ODD.items():
            counts[what] += pattern.search(text) is not None
    return [f"{what}: in {100 * n / total:.0f}% of the texts" for what, n in counts.items() if n and n >= total / 50]


def split_name(name: str) -> list[str]:
    """The words of a column's name. In human_ref_A, responseA and response1 the suffix is a separate word."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and dialect_of(value) is not None


def parse_cell(value: Any) -> Any:
    """Parse a cell: a message list written as text, a single message, or lists of roles and contents (as `datasets`
    stores a `Sequence` of messages) becomes a list of messages."""
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        if lists and len(lists) == len(value) and len(set(map(len, lists))) == 1:
            turns = [dict(zip(value, turn, strict=True)) for turn in zip(*lists, strict=True)]
            return turns if turns and all(map(is_message, turns)) else value
        return [value] if is_message(value) else value
    if isinstance(value, str) and looks_like_messages(value):
        parsed = parse_literal(value)
        if isinstance(parsed, dict):  # a single message, or any other object
            parsed = [parsed] if role_of(parsed) in ROLE_NAMES else None
        if isinstance(parsed, list) and parsed and all(map(is_message, parsed)):
            return parsed
    return value


def role_of(message: dict[str, Any]) -> str:
    """The role of a message, however the column is called; "" without one."""
    return next((message[name] for name in ("role", "from") if isinstance(message.get(name), str)), "")


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and (
        (isinstance(value.get("role"), str) and ("content" in value or "tool_calls" in value))
        or (isinstance(value.get("from"), str) and "value" in value)
    )


def looks_like_messages(text: str) -> bool:
    """Whether a text looks like a message list, even if it cannot be parsed."""
    return bool(_MESSAGE_KEY.match(text) and _CONTENT_KEY.search(text))


def is_plain_object(text: str) -> bool:
    """Whether a text is a JSON or Python object without a list of messages in it, which may be an answer."""
    parsed = parse_literal(text)
    lists = [part for part in parsed.values() if isinstance(part, list)] if isinstance(parsed, dict) else []
    return isinstance(parsed, dict) and not any(part and all(map(is_message, part)) for part in lists)


def parse_texts(value: Any) -> list[str] | None:
    """The texts of a list, or of a list written as text; None for anything else."""
    parsed = parse_literal(value) if isinstance(value, str) else value
    if isinstance(parsed, list) and parsed and all(isinstance(item, str) or item is None for item in parsed):
        return [item or "" for item in parsed]
    return None


def parse_literal(text: str) -> Any:
    """The value of a JSON or Python list or object, also as numpy prints it; None if the text is not one."""
    stripped = text.strip()
    if stripped[:1] not in ("[", "{") or stripped[-1:] not in ("]", "}"):
        return None
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    if len(stripped) <= LONGEST_LITERAL:
        for candidate in (stripped, re.sub(r"\}\s*\n\s*\{", "}, {", stripped)):  # numpy prints no commas
            try:
                return ast.literal_eval(candidate)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return None
