"""Saved reward models, read as clients read them: the saved chat template, the saved tokenizer, plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    LlamaConfig,
    pipeline,
)

from rrm_lm.errors import ModelError
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.models.embedded import EMBEDDED, backbone_name
from rrm_lm.models.portable import (
    EXAMPLES,
    add_old_names,
    is_template_of,
    messages_of,
    misread,
    save_reward_tokenizer,
    save_tokenizer,
    unreadable,
)
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.reward_files import load_classifier, load_reward_model, merge_reward_model
from rrm_lm.text.chat import ChatFormat
from tests.templates import TEMPLATES, family_tokenizer
from tests.tiny import prompt_of, save_tiny_model, tiny_config, tiny_model, tiny_reward_model

torch.set_num_threads(1)

TALKS = [
    *EXAMPLES,
    (prompt_of("who lives in the sea?", "what sea", "tell me a story"), "the moon and the sea\nand the answer"),
    (prompt_of("short"), "yes"),
]


def saved(name: str, folder: Path) -> tuple[RewardModel, ChatFormat]:
    """A reward model of a family, saved, on a backbone whose config pads with the token that ends a turn."""
    tokenizer = family_tokenizer(name)
    base = save_tiny_model(folder / "base", TEMPLATES[name].architecture, tokenizer=tokenizer)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": 2}))
    model = tiny_reward_model(TEMPLATES[name].architecture, base_model=str(base))
    model.save(folder / "reward", tokenizer)
    return model, ChatFormat(tokenizer)


def ours(model: RewardModel, chat: ChatFormat) -> torch.Tensor:
    rewards = RewardScorer(model, chat).score([prompt for prompt, _ in TALKS], [[response] for _, response in TALKS])
    return torch.tensor(rewards)[:, 0]


def texts_of(tokenizer: Any) -> list[str]:
    return [tokenizer.apply_chat_template(messages_of(*talk), tokenize=False) for talk in TALKS]


# -- clients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds", [True, False], ids=["with special tokens", "without"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_client_reads_the_same_rewards(name: str, kind: str, side: str, adds: bool, tmp_path: Path) -> None:
    """As RewardBench (special tokens, left), TRL's GRPO (no special tokens, right) and pipelines tokenize."""
    model, chat = saved(name, tmp_path)
    folder = tmp_path / "reward"
    if kind == "merged":
        merge_reward_model(folder, tmp_path / "merged", chat.tokenizer)
        folder = tmp_path / "merged"
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), padding_side=side)
    if kind == "merged":
        theirs: Any = AutoModelForSequenceClassification.from_pretrained(str(folder))
    else:
        pad = tokenizer.pad_token_id
        theirs = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1, pad_token_id=pad)
    inputs = tokenizer(texts_of(tokenizer), padding=True, add_special_tokens=adds, return_tensors="pt")
    with torch.no_grad():
        read = theirs.eval()(**inputs).logits[:, 0]
    torch.testing.assert_close(read, ours(model, chat), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_pipeline_gives_the_rewards_and_no_probabilities(name: str, tmp_path: Path) -> None:
    model, chat = saved(name, tmp_path)
    merge_reward_model(tmp_path / "reward", tmp_path / "merged", chat.tokenizer)
    pipe: Any = pipeline("text-classification", str(tmp_path / "merged"), device="cpu")
    found = torch.tensor([result["score"] for result in pipe(texts_of(pipe.tokenizer), batch_size=2)])
    torch.testing.assert_close(found, ours(model, chat), atol=1e-5, rtol=1e-5)


def test_without_the_saved_template_the_rewards_are_others(tmp_path: Path) -> None:
    """What the saved template is for: read at the newline that ChatML puts after a turn, rewards are others."""
    model, chat = saved("chatml", tmp_path)
    ids = [chat.tokenizer(text).input_ids for text in texts_of(chat.tokenizer)]
    plain = load_classifier(tmp_path / "reward", 0)
    with torch.no_grad():
        read = torch.tensor([float(plain(torch.tensor([one])).logits) for one in ids])
    assert float((read - ours(model, chat)).abs().min()) > 1e-3


# -- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_end_of_a_scored_conversation_is_trimmed(name: str, tmp_path: Path) -> None:
    tokenizer = family_tokenizer(name)
    before = tokenizer.chat_template
    save_reward_tokenizer(tokenizer, tmp_path)
    assert tokenizer.chat_template == before
    fresh: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    for prompt, response in TALKS:
        whole = messages_of(prompt, response)
        assert fresh.apply_chat_template(whole, tokenize=False) == tokenizer.apply_chat_template(
            whole, tokenize=False
        ).removesuffix("\n")
        for generation in (True, False):
            given = {"tokenize": False, "add_generation_prompt": generation}
            assert fresh.apply_chat_template(whole[:-1], **given) == tokenizer.apply_chat_template(whole[:-1], **given)
    assert is_template_of(fresh.chat_template, tokenizer) and not is_template_of("{{ messages }}", tokenizer)
    if name in ("llama3", "mistral"):  # these end at the end of the turn already
        assert fresh.chat_template == tokenizer.chat_template
    again = tmp_path / "again"
    again.mkdir()
    save_reward_tokenizer(fresh, again)
    assert (again / "chat_template.jinja").read_text() == fresh.chat_template


def test_a_template_that_begins_with_a_new_line_and_several_by_name(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("chatml")
    plain = tokenizer.chat_template
    tokenizer.chat_template = "\n\n" + plain + "\n"
    text = tokenizer.apply_chat_template(messages_of(*TALKS[0]), tokenize=False)
    save_reward_tokenizer(tokenizer, tmp_path)
    fresh: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    assert fresh.apply_chat_template(messages_of(*TALKS[0]), tokenize=False) == text.rstrip() and text[0] == "\n"
    several = tmp_path / "several"
    several.mkdir()
    tokenizer.chat_template = {"default": plain, "tool_use": plain}
    save_reward_tokenizer(tokenizer, several)
    fresh = AutoTokenizer.from_pretrained(str(several))
    assert fresh.apply_chat_template(messages_of(*TALKS[0]), tokenize=False).endswith("<|im_end|>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_4_knows_the_names_in_the_files(name: str, tmp_path: Path) -> None:
    save_reward_tokenizer(family_tokenizer(name), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert not isinstance(config.get("extra_special_tokens"), list) and "is_local" not in config
    fresh: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    assert set(fresh.all_special_tokens) == set(family_tokenizer(name).all_special_tokens)


def test_a_policy_keeps_its_template_and_what_its_tokenizer_adds(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("gemma")
    save_tokenizer(tokenizer, tmp_path)
    fresh: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    assert fresh.chat_template == tokenizer.chat_template
    assert fresh("yes").input_ids == tokenizer("yes").input_ids == [tokenizer.bos_token_id, *fresh.encode(
        "yes", add_special_tokens=False
    )]  # fmt: skip


def test_a_tokenizer_that_cannot_be_saved_so_is_named() -> None:
    """ByT5's adds an end-of-sequence token in Python code, which no file can turn off."""
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    assert "</s>" in unreadable(ChatFormat(tokenizer))
    assert all(unreadable(ChatFormat(family_tokenizer(name))) == "" for name in TEMPLATES)


def test_the_first_token_that_differs_is_named() -> None:
    tokenizer = family_tokenizer("chatml")
    assert misread(tokenizer, ChatFormat(tokenizer), TALKS[-1:]) == "token 12 is '\\n' in place of ''"


# -- configurations -------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("config", "old"),
    [
        (tiny_config("llama"), {"rope_theta": 10000.0}),
        (LlamaConfig(**{**tiny_config("llama").to_dict(), "rope_parameters": YARN}), {"rope_theta": 5e5}),
        (tiny_config("gemma3"), {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
        (tiny_config("gpt_neox"), {"rotary_emb_base": 10000, "rotary_pct": 0.25}),
        (tiny_config("gpt2"), {}),
    ],
    ids=["llama", "yarn", "gemma3", "gpt_neox", "gpt2"],
)
def test_rotary_settings_have_their_old_names_too(config: Any, old: dict[str, float], tmp_path: Path) -> None:
    config.save_pretrained(str(tmp_path))
    before = json.loads((tmp_path / "config.json").read_text())
    add_old_names(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert {name: after[name] for name in old} == old
    assert {name: value for name, value in after.items() if name in before} == before
    if config.to_dict().get("rope_parameters", {}).get("rope_type") == "yarn":
        assert after["rope_scaling"] == {name: value for name, value in YARN.items() if name != "rope_theta"}
    fresh = AutoConfig.from_pretrained(str(tmp_path))
    assert fresh.to_dict().get("rope_parameters") == config.to_dict().get("rope_parameters")


# -- backbones and foreign adapters ---------------------------------------------------------------------------------


def test_adapters_name_the_embedded_model_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    model = tiny_model()
    model.name_or_path = "/somebody/cache/smollm2-135m"
    [alias] = EMBEDDED
    assert backbone_name(model, alias) == alias
    assert backbone_name(model, "somebody/model") == "/somebody/cache/smollm2-135m"
    reward = tiny_reward_model(model=model, base_model=alias)
    reward.save(tmp_path, family_tokenizer("chatml"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == alias


def test_an_adapter_of_somebody_else_is_read_to_its_very_end(tmp_path: Path) -> None:
    """It was trained on what its template gives, the new line after the turn included (huggingface/trl#5813)."""
    _, chat = saved("chatml", tmp_path)
    (tmp_path / "reward" / "reward_model.json").unlink()
    chat.tokenizer.save_pretrained(str(tmp_path / "reward"))
    model, theirs = load_reward_model(tmp_path / "reward")
    plain = load_classifier(tmp_path / "reward", 0)
    with torch.no_grad():
        ids = [chat.tokenizer(text).input_ids for text in texts_of(chat.tokenizer)]
        read = torch.tensor([float(plain(torch.tensor([one])).logits) for one in ids])
    torch.testing.assert_close(ours(model, theirs), read, atol=1e-5, rtol=1e-5)


def test_a_family_without_a_classifier_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("chatml", tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("Unrecognized configuration class")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="no sequence-classification model"):
        load_classifier(tmp_path / "reward", 0)
