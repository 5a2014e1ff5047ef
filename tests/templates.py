"""Chat templates of well-known families, after their published formats, each with a tiny tokenizer that has its tokens.

The tokenizers add a beginning-of-sequence token if those of the family do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, tiny_bpe

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Thoughts are shown after the last user turn only; an answer without any gets empty ones there.
QWEN3 = """\
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last_user and (loop.last or message.reasoning_content) %}
        {{- '<think>\\n' + (message.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """A family's template and special tokens, and the architecture of `tests.tiny` that goes with it.

    Attributes:
        template: The chat template.
        architecture: What `tiny_config` calls it.
        end: The token that ends a turn.
        pad: The token that pads; it is the first in the vocabulary.
        bos: The token that begins a text, if the tokenizer adds one.
        others: Further special tokens.
    """

    template: str
    architecture: str
    end: str
    pad: str
    bos: str | None = None
    others: tuple[str, ...] = ()

    @property
    def specials(self) -> tuple[str, ...]:
        """All special tokens in the order of their ids."""
        return (self.pad, *self.others[:1], self.end, *self.others[1:], *([self.bos] if self.bos else []))


TEMPLATES = {
    "chatml": Family(CHATML, "llama", "<|im_end|>", "<|endoftext|>", None, ("<|im_start|>",)),
    "llama3": Family(
        LLAMA3,
        "llama",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "gemma": Family(GEMMA, "gemma", "<end_of_turn>", "<pad>", "<bos>", ("<start_of_turn>",)),
    "qwen3": Family(QWEN3, "qwen3", "<|im_end|>", "<|endoftext|>", None, ("<|im_start|>",)),
    "mistral": Family(MISTRAL, "mistral", "</s>", "<unk>", "<s>", ("[INST]", "[/INST]")),
}


def family_tokenizer(name: str) -> Any:
    """The tiny tokenizer of one of `TEMPLATES`."""
    return make_tokenizer(TEMPLATES[name])


def make_tokenizer(family: Family) -> Any:
    """A tiny tokenizer with a family's special tokens; its vocabulary is as large as `tests.tiny`'s."""
    backend = Tokenizer.from_str(tiny_bpe(family.specials))
    if family.bos is not None:
        pair = (family.bos, backend.token_to_id(family.bos))
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{family.bos} $A", pair=f"{family.bos} $A {family.bos} $B", special_tokens=[pair]
                ),
            ]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.end,
        pad_token=family.pad,
        additional_special_tokens=list(family.others),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = family.template
    return tokenizer
