"""Changes of chat templates: a fixed date, folded system messages, and responses that keep their reasoning.

They are written into the template itself. A saved tokenizer carries them, so that training, scoring, sampling and
other programs read the same text.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Callable
from datetime import date
from typing import Any

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.text.batching import common_beginning

logger = logging.getLogger(__name__)

# Each change is one line, whose newline Jinja drops, so that whitespace of the original is read as before.
_DATE = re.compile(r"\{# rrm_lm: the date is (\d{4}-\d\d-\d\d) #\}[^\n]*\n")
_CODES = ("%-d", "%-m", "%d", "%e", "%b", "%h", "%B", "%m", "%y", "%Y", "%a", "%A", "%j", "%F", "%D", "%x", "%H", "%I",
          "%M", "%S", "%p", "%T", "%R", "%X", "%c", "%Z", "%z", "%%")  # fmt: skip
_MACRO = (
    "{%% macro strftime_now(format) %%}{%% set text = namespace(of=format) %%}{%% for code, value in %r.items() %%}"
    "{%% set text.of = text.of.replace(code, value) %%}{%% endfor %%}{{ text.of }}{%% endmacro %%}\n"
)
_FOLD = (
    "{# rrm_lm: system messages are folded into the first user turn #}{% if messages | length > 1 and "
    "messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}{% set messages = [dict(messages[1], "
    "content=messages[0]['content'] ~ '\\n\\n' ~ messages[1]['content'])] + messages[2:] %}{% endif %}\n"
)
_ALIGNED = "{# rrm_lm: a response follows the generation prompt #}"
_BEGIN = _ALIGNED + "{% macro rrm_lm_chat(messages, add_generation_prompt) %}\n"
_END = (
    "{{%+ endmacro %}}{{% if messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt{only} %}}"
    "{{% set text = messages[-1]['content'] | trim %}}{{{{ rrm_lm_chat(messages[:-1], true) }}}}"
    "{text}{{{{ {end!r} }}}}"
    "{{% else %}}{{{{ rrm_lm_chat(messages, add_generation_prompt | default(false)) }}}}{{% endif %}}"
)
# After a generation prompt that opens a thought, a response without reasoning closes it.
_AFTER_OPENING = (
    "{% if text.startswith('<think>') %}{{ text[7:].lstrip('\n') }}"
    "{% else %}{{ text if '</think>' in text else '</think>\n\n' ~ text }}{% endif %}"
)


def require_template(tokenizer: Any, where: str) -> None:
    """Raise a ModelError if a tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        remedy = "use an instruction-tuned model (often named ...-Instruct or ...-it), or pass a Jinja file with "
        raise ModelError("The tokenizer has no chat template", where=where, remedy=f"{remedy}--chat_template_path")


def prepare_template(tokenizer: Any, chat_date: str | None = None, fold_system: bool = False) -> None:
    """Change the template of a tokenizer, so that its text does not depend on the clock.

    `chat_date` is the date that the template writes, if it writes one, such as 2026-11-29; None keeps a date that is
    fixed already, and otherwise fixes today's. `fold_system` puts a first system message into the user turn after it.
    Raises ConfigError if it is not a date.
    """
    given = _parsed(chat_date)

    def change(template: str) -> str:
        if "strftime_now" in template and (given is not None or not _DATE.search(template)):
            fixed = _fixed(given or _today(tokenizer))
            template = _DATE.sub(lambda _: fixed, template) if _DATE.search(template) else fixed + template
        return _FOLD + template if fold_system and _FOLD not in template else template

    _change(tokenizer, change)


def date_of(tokenizer: Any) -> str | None:
    """The date that a tokenizer's chat template writes, such as 2026-11-29; None if it writes none."""
    template = tokenizer.chat_template
    found = _DATE.search("".join(template.values()) if isinstance(template, dict) else str(template))
    return found[1] if found else None


def without_date(tokenizer: Any) -> Any:
    """A copy of a tokenizer whose chat template writes the current date again, for a policy that people talk to."""
    changed = copy.copy(tokenizer)
    _change(changed, lambda template: _DATE.sub("", template))
    return changed


def align_responses(tokenizer: Any) -> None:
    """Change a tokenizer's template to render a last response as the model samples it, after the generation prompt.

    Phi-3's ends a conversation with the eos token, after the token that ends every turn; a response ends with the
    latter. Templates of some reasoning models (DeepSeek R1, QwQ) cut the text up to ``</think>`` out of every response,
    and end the generation prompt with ``<think>``, which training text lacks. Mistral Nemo's writes the system message
    only if the last turn is the user's, so the text with a response lacks it. Other templates do not change.
    """
    _change(tokenizer, lambda template: _aligned(tokenizer, template))


def _aligned(tokenizer: Any, template: str) -> str:
    def rendered(*turns: tuple[str, str], generation: bool = False) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        options = {"tokenize": False, "add_generation_prompt": generation, "chat_template": template}
        return str(tokenizer.apply_chat_template(messages, **options))

    user, answer = ("user", "?"), ("assistant", "rrm answer")
    try:
        start, text = rendered(user, generation=True), rendered(user, answer)
        is_cut = "rrm thought" not in rendered(user, ("assistant", "<think>\nrrm thought\n</think>\n\nrrm answer"))
    except Exception:  # a template that cannot render this may render the feedback
        return template
    follows = text.startswith(start)
    with contextlib.suppress(Exception):  # some templates refuse system messages
        both = (("system", "rrm system"), user)
        follows &= rendered(*both, answer).startswith(rendered(*both, generation=True))
    after = text.rpartition("rrm answer")[2]
    end = _end_of_turn(tokenizer, after)
    if _ALIGNED in template or "rrm answer" not in text or (follows and not is_cut and end == after):
        return template
    reason = "writes generation prompts in another way"
    if follows:
        reason = (
            "cuts the text up to </think> out of responses" if is_cut else "writes the eos token after the last turn"
        )
    what = "the chat template %s; responses are rendered as they are sampled, after the generation prompt"
    logger.info(what, reason)
    opens = start[common_beginning([start, text]) :].strip() == "<think>"
    end = _END.format(
        only=" and '</think>' in messages[-1]['content']" if follows and end == after else "",
        text=_AFTER_OPENING if opens else "{{ text }}",
        end=end,
    )
    return _BEGIN + template.removesuffix("\n") + end


def _end_of_turn(tokenizer: Any, after: str) -> str:
    """The text after a last answer, without an eos token that follows another token that ends the turn."""
    eos = tokenizer.eos_token
    ends = [str(token) for token in tokenizer.added_tokens_decoder.values() if after.startswith(str(token))]
    end = max(ends, key=len, default="")
    return end if end not in ("", eos) and after.removeprefix(end).strip() == eos else after


def _change(tokenizer: Any, change: Callable[[str], str]) -> None:
    template = tokenizer.chat_template
    several = isinstance(template, dict)
    tokenizer.chat_template = {n: change(text) for n, text in template.items()} if several else change(template)


def _parsed(day: str | None) -> date | None:
    try:
        return None if day is None else date.fromisoformat(day)
    except ValueError as error:
        raise ConfigError(f"{day!r} is not a date", where="chat_date", expected="a date such as 2026-11-29") from error


def _today(tokenizer: Any) -> date:
    """The current date, by the clock that templates read."""
    turns = [{"role": "user", "content": "?"}]
    now = tokenizer.apply_chat_template(turns, chat_template="{{ strftime_now('%Y-%m-%d') }}", tokenize=False)
    return date.fromisoformat(str(now))


def _fixed(day: date) -> str:
    logger.info("the chat template writes the date, which is fixed at %s", day)
    return f"{{# rrm_lm: the date is {day} #}}" + _MACRO % {code: day.strftime(code) for code in _CODES}
