"""Tokenizer and configuration files that other programs, back to transformers 4.51, read the same way.

A client of a reward model renders a conversation with ``tokenizer.apply_chat_template``, tokenizes the text with or
without special tokens, and reads the last token that is not padding. With most unchanged tokenizers, this is not the
trained token: the template adds whitespace after the last turn, or the tokenizer adds a second beginning-of-sequence
token. Older transformers releases also need keys that transformers 5 no longer writes.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rrm_lm.errors import DataError, ModelError
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.storage import write_text
from rrm_lm.text.chat import ChatFormat

Conversation = tuple[Prompt, str]  # a prompt and one response to it

EXAMPLES: tuple[Conversation, ...] = (
    ((Message("user", "What is the capital of France?"),), "Paris."),
    ((Message("user", "Hello"), Message("assistant", "Hi!"), Message("user", "Two and two?")), "Four, I think"),
)
# What a saved reward model records its rewards of. It holds no feedback, which may be private.
RECORDED: tuple[Conversation, ...] = (
    *EXAMPLES,
    ((Message("user", "How long does cooked rice keep?"),), "Three or four days in the fridge, in a closed box."),
    ((Message("user", "How long does cooked rice keep?"),), "Rice is a grain."),
    ((Message("user", "Is the sea blue?\n"),), "yes"),
    ((Message("user", "café 漢字?"),), "é 漢字 🌊"),
    ((Message("user", "Write a list."),), "1. one\n2. two\n\n3. three"),
    ((Message("user", "A story, please. " * 10),), "Once there was a moon over the sea. " * 5 + "The end."),
)

# A rendered conversation that ends with a response does not end in whitespace; a prompt to be continued is unchanged.
# `+` keeps Jinja from removing whitespace next to the tags.
_HEAD = "{% set rrm_lm_text +%}"
_TAIL = (
    "{%+ endset %}{{ rrm_lm_text.rstrip() if messages and messages[-1]['role'] == 'assistant' "
    "and not add_generation_prompt else rrm_lm_text }}"
)
_ADDS_TOKENS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")  # post-processors of `tokenizers`
# Where and how the tokenizer was loaded, which is useless elsewhere.
_LOCAL = ("is_local", "local_files_only", "backend")


# -- tokenizers -----------------------------------------------------------------------------------------------------


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer that transformers 4.51 and later can load. The given one must be fast; it is not changed."""
    tokenizer.save_pretrained(str(folder))
    _edit(folder / "tokenizer_config.json", _old_tokenizer_names)


def save_reward_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a reward model's tokenizer so that clients read the reward at the trained token.

    The saved template ends a scored conversation at the end of its last turn. The saved tokenizer adds no special
    tokens, because the template contains all those used in training. The given tokenizer must be fast and have a chat
    template; it is not changed.
    """
    trimmed = copy.copy(tokenizer)
    trimmed.chat_template = _ending_at_turn(tokenizer)
    save_tokenizer(trimmed, folder)
    if (folder / "tokenizer.json").is_file():
        _edit(folder / "tokenizer.json", _adding_nothing)
        # The class of a family (LlamaTokenizerFast, GemmaTokenizerFast) would add the special tokens again.
        _edit(folder / "tokenizer_config.json", lambda config: {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def _ending_at_turn(tokenizer: Any) -> Any:
    """The chat template, or each named one, without whitespace after the last turn of a conversation."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return {name: _wrapped(text) for name, text in template.items()}
    try:
        text = tokenizer.apply_chat_template(messages_of(*EXAMPLES[0]), tokenize=False)
    except Exception:  # the template may need a system message; trimming never hurts
        return _wrapped(template)
    return template if text == text.rstrip() else _wrapped(template)


def is_template_of(template: str, tokenizer: Any) -> bool:
    """Whether a saved template is the tokenizer's, up to the changes of :func:`save_reward_tokenizer`."""
    return template in (tokenizer.chat_template, _ending_at_turn(tokenizer))


def _wrapped(template: str) -> str:
    if template.startswith(_HEAD):
        return template
    return f"{_HEAD}{template.removesuffix(chr(10))}{_TAIL}"  # Jinja drops a final newline


def _old_tokenizer_names(config: dict[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in config.items() if name not in _LOCAL}
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 expects a mapping there
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config


def _adding_nothing(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The content of tokenizer.json without the step that adds special tokens."""
    step = tokenizer.get("post_processor")
    if step and step["type"] == "Sequence":
        kept = [part for part in step["processors"] if part["type"] not in _ADDS_TOKENS]
        step = {**step, "processors": kept} if kept else None
    elif step and step["type"] in _ADDS_TOKENS:
        step = None
    return {**tokenizer, "post_processor": step}


# -- configurations -------------------------------------------------------------------------------------------------


def add_old_names(folder: Path) -> None:
    """Add the keys that transformers 4 expects to a saved config.json. Without them it silently uses defaults."""
    _edit(folder / "config.json", _with_old_rope)


def _with_old_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Copy the rotary settings from `rope_parameters` (transformers 5) to the keys of transformers 4."""
    config = {name: _with_old_rope(value) if name == "text_config" else value for name, value in config.items()}
    rope = config.get("rope_parameters") or {}
    old: dict[str, Any] = {}
    if "full_attention" in rope:  # Gemma 3 has one set of rotary settings for each kind of layer
        old["rope_local_base_freq"] = rope.get("sliding_attention", {}).get("rope_theta")
        rope = rope["full_attention"]
    theta, part = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    if config.get("model_type") == "gpt_neox":
        old |= {"rotary_emb_base": theta, "rotary_pct": part}
    else:
        old |= {"rope_theta": theta, "partial_rotary_factor": part}
    if rope.get("rope_type", "default") != "default":
        old["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {**{name: value for name, value in old.items() if value is not None}, **config}


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    before = json.loads(file.read_text(encoding="utf-8"))
    after = change(before)
    if after != before:
        write_text(file, json.dumps(after, indent=2, ensure_ascii=False) + "\n")


# -- the tokens that a client reads ----------------------------------------------------------------------------------


def messages_of(prompt: Prompt, response: str) -> list[dict[str, Any]]:
    """A conversation in the format of transformers."""
    turns = (*prompt, Message("assistant", response))
    return [turn.to_dict() for turn in turns]


def misread(tokenizer: Any, chat: ChatFormat, conversations: Sequence[Conversation]) -> str:
    """Describe the first difference between a client's tokens and those of training; empty if they are equal.
    `tokenizer` is loaded from a saved reward model, `chat` is the format of training, and the conversations fit
    `chat.max_length` and have no special tokens.
    """
    for prompt, response in conversations:
        [line] = chat.encode(prompt, [response]).lines[0]
        trained = list(line.ids[: line.reward_at + 1])
        text = tokenizer.apply_chat_template(messages_of(prompt, response), tokenize=False)
        for adding in (True, False):
            read = tokenizer(text, add_special_tokens=adding).input_ids
            if read != trained:
                return first_difference(tokenizer, read, trained)
    return ""


def first_difference(tokenizer: Any, found: Sequence[int], expected: Sequence[int]) -> str:
    """Describe the first token in which two different sequences differ."""
    least = min(len(found), len(expected))
    at = next((place for place in range(least) if found[place] != expected[place]), least)
    mine, theirs = (tokenizer.decode(list(ids[at : at + 1])) for ids in (found, expected))
    return f"token {at + 1} is {mine!r} in place of {theirs!r}"


def unreadable(chat: ChatFormat) -> str:
    """Why clients would misread rewards under this chat format, tested on examples; empty if they would not."""
    with tempfile.TemporaryDirectory() as folder:
        save_reward_tokenizer(chat.tokenizer, Path(folder))
        saved = AutoTokenizer.from_pretrained(folder)
        try:
            return misread(saved, chat.uncut, EXAMPLES)
        except (DataError, ModelError):  # the template cannot render the examples; it may render the feedback
            return ""
