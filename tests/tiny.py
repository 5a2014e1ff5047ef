"""Tiny random models, a tiny tokenizer and a few records, all created in memory, without files or network access.

Weights, including those of norms, have a much larger variance than usual, so that a token attended to by mistake
changes every number. The sliding windows of Gemma 3 and Mistral are shorter than the sequences in the tests.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from rrm_lm.feedback.records import Comparison, Critique, Message, Origin, Prompt, Rating
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.text.chat import ChatFormat

FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gpt_neox", "gpt2")
WINDOW = 5  # tokens, for the families with sliding windows
VOCABULARY = 416

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No special token between prompt and response: "A: " is "A", ":", " ", and "A: yes" is "A", ":", " yes".
MERGING = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' A: ' + message['content'] + '<|im_end|>' }}"
    "{% else %}{{ 'Q: ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' A: ' }}{% endif %}"
)

_SENTENCES = (
    "user assistant system tool yes\n",
    "please tell me a short story about the sea and the moon",
    "the answer is yes because the sea is blue",
    "no i do not know the answer sorry",
    "this answer is too long and does not say what was asked",
    "good short clear answer, thank you",
    "what is the moon made of? who lives in the sea?",
)


# -- tokenizer ------------------------------------------------------------------------------------------------------


@cache
def tiny_bpe(special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> str:
    """A byte-level BPE tokenizer with `VOCABULARY` tokens as JSON, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = " ".join(_SENTENCES).replace(",", "").replace("?", "").split()
    # Every word is one token, with and without a space before it.
    tokenizer.train_from_iterator([*_SENTENCES, *words, *(f" {word}" for word in words)] * 4, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens: <|endoftext|> (0) pads, <|im_end|> (2) ends turns."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_bpe()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def merging_tokenizer() -> Any:
    """The same tokenizer with a template whose last prompt token merges with the first word of a response."""
    return tiny_tokenizer(MERGING)


# -- models ---------------------------------------------------------------------------------------------------------


BACKBONE_DTYPE = torch.float32


def tiny_config(family: str, layers: int = 2) -> Any:
    """Configuration of a tiny model of one of `FAMILIES`."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    grouped = {**common, "num_key_value_heads": 2, "head_dim": 8}
    if family == "llama":
        return LlamaConfig(**grouped)
    if family == "qwen3":
        return Qwen3Config(**grouped)
    if family == "mistral":
        return MistralConfig(**grouped, sliding_window=WINDOW)
    if family == "gemma":
        return GemmaConfig(**grouped)
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * layers
        return Gemma3TextConfig(**grouped, sliding_window=WINDOW, layer_types=kinds[:layers], query_pre_attn_scalar=8)
    if family == "gpt_neox":
        return GPTNeoXConfig(**common, hidden_dropout=0.0, attention_dropout=0.0)
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_inner=48,
            n_layer=layers,
            n_head=4,
            n_positions=512,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    raise ValueError(family)


def tiny_model(
    family: str = "llama",
    *,
    attention: str = "sdpa",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    layers: int = 2,
    config: Any = None,
) -> Any:
    """A tiny causal language model with random weights, in evaluation mode and by default in `BACKBONE_DTYPE`."""
    config = config if config is not None else tiny_config(family, layers)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norms and biases: close to their initial values
                parameter.add_(0.2 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model.to(dtype or BACKBONE_DTYPE).eval()


def lora(family: str = "llama", *, dropout: float = 0.0, rank: int = 4, random: bool = True) -> LoraConfig:
    """LoRA on all linear layers. With `random` both factors are random; otherwise the adapter starts as zero."""
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
        fan_in_fan_out=family == "gpt2",
        init_lora_weights=not random,
        task_type=TaskType.CAUSAL_LM,
    )


def tiny_reward_model(
    family: str = "llama",
    *,
    attention: str = "sdpa",
    dropout: float = 0.0,
    seed: int = 0,
    sharing: bool | None = None,
    base_model: str = "tiny",
    random: bool = True,
    model: Any = None,
    max_length: int | None = None,
) -> RewardModel:
    """A reward model on a tiny backbone; the same arguments give the same weights."""
    model = model if model is not None else tiny_model(family, attention=attention, seed=seed)
    torch.manual_seed(seed + 1)
    backbone = Backbone(model, pad_id=0, sharing=sharing)
    settings = RewardSettings(base_model, max_length=max_length)
    return RewardModel.create(backbone, lora(family, dropout=dropout, random=random), settings)


def tiny_chat(
    max_length: int | None = None, max_critique_length: int = 128, template: str | None = CHATML
) -> ChatFormat:
    return ChatFormat(tiny_tokenizer(template), max_length, max_critique_length)


def save_tiny_model(
    folder: Path, family: str = "llama", *, seed: int = 0, tokenizer: Any = None, layers: int = 2
) -> Path:
    """Write a folder with a tiny model and its tokenizer, which every command accepts as a model."""
    tiny_model(family, seed=seed, layers=layers).save_pretrained(str(folder))
    (tokenizer if tokenizer is not None else tiny_tokenizer()).save_pretrained(str(folder))
    AutoConfig.from_pretrained(str(folder))
    return folder


# -- records --------------------------------------------------------------------------------------------------------


def prompt_of(*turns: str, system: str | None = None) -> Prompt:
    """Alternating turns of user and assistant, starting with the user."""
    head = () if system is None else (Message("system", system),)
    return head + tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns))


def origin(row: int = 1) -> Origin:
    return Origin("tiny.jsonl", row)


def comparison(
    prompt: str | Prompt = "what is the moon made of?",
    chosen: str = "the answer is yes",
    rejected: str = "no i do not know",
    *,
    row: int = 1,
    **fields: Any,
) -> Comparison:
    messages = prompt_of(prompt) if isinstance(prompt, str) else prompt
    return Comparison(prompt=messages, chosen=chosen, rejected=rejected, origin=origin(row), **fields)


def critique(prompt: str, response: str, text: str, *, row: int = 1, **fields: Any) -> Critique:
    return Critique(prompt=prompt_of(prompt), response=response, critique=text, origin=origin(row), **fields)


def rating(prompt: str, response: str, value: float, *, row: int = 1, **fields: Any) -> Rating:
    return Rating(prompt=prompt_of(prompt), response=response, rating=value, origin=origin(row), **fields)


def some_comparisons(count: int, *, critiques: bool = True, seed: int = 0) -> list[Comparison]:
    """Comparisons with prompts, responses and critiques of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    words = " ".join(_SENTENCES).split()

    def text(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return " ".join(words[int(i)] for i in torch.randint(len(words), (length,), generator=generator))

    def notes() -> tuple[str, ...]:
        count = int(torch.randint(0, 3, (), generator=generator)) if critiques else 0
        return tuple(text(2, 6) for _ in range(count))

    made = []
    for row in range(1, count + 1):
        chosen, rejected = f"good {text(1, 10)}", f"no {text(1, 10)}"
        made.append(
            comparison(
                f"{text(3, 14)} {row}?", chosen, rejected, row=row,
                chosen_critiques=notes(), rejected_critiques=notes(),
            )
        )  # fmt: skip
    return made
