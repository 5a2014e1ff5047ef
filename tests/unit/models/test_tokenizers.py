"""Tokenizers: pad tokens that are picked or refused, and vocabularies that fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from rrm_lm.errors import ModelError
from rrm_lm.models.tokenizers import align_pad, check_vocabulary, load_tokenizer, own_pad_id
from tests.tiny import CHATML, tiny_config, tiny_model, tiny_tokenizer


def saved_tokenizer(folder: Path, template: str | None = CHATML, **special: str) -> str:
    tokenizer = tiny_tokenizer(template)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(str(folder))
    return str(folder)


class TestTokenizer:
    def test_a_good_pad_token_stays(self, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(saved_tokenizer(tmp_path))
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")

    def test_a_pad_token_that_ends_turns_is_replaced(self, tmp_path: Path) -> None:
        path = saved_tokenizer(tmp_path, pad_token="<|im_end|>", unk_token="<|endoftext|>")
        tokenizer = load_tokenizer(path)
        assert tokenizer.pad_token == "<|endoftext|>"
        assert tokenizer.eos_token == "<|im_end|>"

    def test_a_pad_token_that_the_template_writes_is_replaced(self, tmp_path: Path) -> None:
        path = saved_tokenizer(tmp_path, pad_token="<|im_start|>", unk_token="<|endoftext|>")
        assert load_tokenizer(path).pad_token == "<|endoftext|>"

    def test_the_vocabulary_never_grows(self, tmp_path: Path) -> None:
        path = saved_tokenizer(tmp_path, pad_token="<|im_end|>", unk_token="<|endoftext|>")
        assert len(load_tokenizer(path)) == len(tiny_tokenizer())

    def test_the_pad_token_of_another_programs_reward_model_stays(self, tmp_path: Path) -> None:
        path = saved_tokenizer(tmp_path, pad_token="<|im_end|>", unk_token="<|endoftext|>")
        tokenizer = load_tokenizer(path, own_pad=True)
        assert tokenizer.pad_token == "<|im_end|>"
        config = tiny_config("llama")
        assert own_pad_id(config, tokenizer) == 0  # the model's own comes first
        for none in (None, -1):
            config.pad_token_id = none
            assert own_pad_id(config, tokenizer) == 2

    def test_a_tokenizer_with_nothing_to_pad_with_is_refused(self, tmp_path: Path) -> None:
        template = CHATML.replace("assistant\n' }}", "assistant\n<|endoftext|>' }}")
        path = saved_tokenizer(tmp_path, template, pad_token="<|im_end|>")
        with pytest.raises(ModelError, match="pad_token"):
            load_tokenizer(path)
        assert load_tokenizer(path, pad_token="<|endoftext|>").pad_token_id == 0

    def test_a_pad_token_that_was_named_is_checked(self, tmp_path: Path) -> None:
        path = saved_tokenizer(tmp_path)
        with pytest.raises(ModelError, match="not in the vocabulary"):
            load_tokenizer(path, pad_token="<nothing>")
        with pytest.raises(ModelError, match="eos"):
            load_tokenizer(path, pad_token="<|im_end|>")

    def test_no_chat_template_is_refused_unless_one_is_given(self, tmp_path: Path) -> None:
        path = saved_tokenizer(tmp_path, None)
        with pytest.raises(ModelError, match="chat template"):
            load_tokenizer(path)
        assert load_tokenizer(path, chat_template=CHATML).chat_template == CHATML

    def test_align_pad(self) -> None:
        model = tiny_model()
        model.config.pad_token_id = model.generation_config.pad_token_id = 2
        align_pad(model, tiny_tokenizer())
        assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (0, 0)


class TestVocabulary:
    """https://github.com/huggingface/transformers/issues/28393: tokens were added, and the embeddings not resized."""

    def added(self, special: bool, template: str = CHATML) -> Any:
        tokenizer = tiny_tokenizer(template)
        size = max(tokenizer.get_vocab().values()) + 1
        tokenizer.add_tokens(["<extra>"], special_tokens=special)
        config = tiny_config("llama")
        config.vocab_size = size
        return tokenizer, LlamaForCausalLM(config)

    @pytest.mark.parametrize(("special", "template"), [(False, CHATML), (True, "<extra>" + CHATML)])
    def test_a_token_of_text_or_template_without_embedding_is_refused(self, special: bool, template: str) -> None:
        tokenizer, model = self.added(special, template)
        with pytest.raises(ModelError, match=r"1 tokens .*'<extra>'.*resize_token_embeddings"):
            check_vocabulary(tokenizer, model)
        model.resize_token_embeddings(len(tokenizer))
        check_vocabulary(tokenizer, model)

    def test_a_pad_token_without_embedding_is_refused(self) -> None:
        tokenizer, model = self.added(special=True)
        tokenizer.pad_token = "<extra>"
        with pytest.raises(ModelError, match="<extra>"):
            check_vocabulary(tokenizer, model)

    def test_a_special_token_that_no_text_has_is_allowed(self) -> None:
        """As in Gemma 3's text models, whose tokenizer has a token for images."""
        check_vocabulary(*self.added(special=True))
