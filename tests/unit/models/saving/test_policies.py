"""Policies that other libraries read the same way, and folders that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving import adapters as adapter_files
from rrm_lm.models.saving.adapters import adapter_weights, read_weights
from rrm_lm.models.saving.policies import (
    POLICY,
    Policy,
    PolicySettings,
    load_policy,
    merge_policy,
    put_policy,
    read_policy_settings,
    save_policy,
)
from rrm_lm.text.batching import collate, share
from tests.tiny import (
    FAMILIES,
    lora,
    prompt_of,
    save_tiny_model,
    tiny_chat,
    tiny_config,
    tiny_model,
    tiny_reward_model,
    tiny_tokenizer,
)

torch.set_num_threads(1)

PROMPT = prompt_of("who lives in the sea?", "what sea", "tell me a story about the moon")
RESPONSES = ["good short clear answer", "no", "the moon and the sea " * 3]
LINES = [group[0] for group in tiny_chat().encode(PROMPT, RESPONSES).lines]


def tiny_policy(model: Any = None, family: str = "llama", seed: int = 0) -> Backbone:
    """A backbone with a random policy adapter on it."""
    torch.manual_seed(seed + 1)
    backbone = Backbone(model if model is not None else tiny_model(family, seed=0), pad_id=0)
    backbone.add_adapter(POLICY, lora(family))
    return backbone.eval()


def saved(tmp_path: Path, family: str = "llama", **settings: Any) -> tuple[Backbone, Path]:
    """A policy on a backbone that is a folder, and the folder it was saved to."""
    base = save_tiny_model(tmp_path / "base", family)
    backbone = tiny_policy(family=family)
    save_policy(backbone, tmp_path / "policy", tiny_tokenizer(), PolicySettings(str(base), **settings))
    return backbone, tmp_path / "policy"


@torch.no_grad()
def logits_of(backbone: Backbone, adapter: str | None = POLICY) -> list[Tensor]:
    """(time, vocabulary) for each line."""
    return [
        backbone.logits(backbone(collate([share([line.ids])], 0), adapter)[0, : len(line.ids)], adapter)
        for line in LINES
    ]


@torch.no_grad()
def their_logits(model: Any) -> list[Tensor]:
    return [model.eval()(input_ids=torch.tensor([line.ids])).logits[0] for line in LINES]


def same(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


# -- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_policy_gives_identical_logits(family: str, tmp_path: Path) -> None:
    backbone, folder = saved(tmp_path, family)
    fresh = load_policy(folder)
    assert fresh.adapter == POLICY and not fresh.backbone.training
    assert same(logits_of(fresh.backbone), logits_of(backbone))
    assert not any(parameter.requires_grad for parameter in fresh.backbone.parameters())
    assert not torch.allclose(logits_of(backbone)[0], logits_of(backbone, None)[0], atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_the_merged_checkpoint_give_the_same_logits(family: str, tmp_path: Path) -> None:
    backbone, folder = saved(tmp_path, family)
    mine = logits_of(backbone)
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(folder))
    torch.testing.assert_close(their_logits(theirs), mine, atol=2e-4, rtol=1e-4)
    merge_policy(folder, tmp_path / "merged", tiny_tokenizer())
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    torch.testing.assert_close(their_logits(merged), mine, atol=2e-4, rtol=1e-4)
    assert merged.config.pad_token_id == 0 and AutoTokenizer.from_pretrained(str(tmp_path / "merged")).chat_template
    loaded = load_policy(tmp_path / "merged")
    assert loaded.adapter is None
    torch.testing.assert_close(logits_of(loaded.backbone, None), mine, atol=2e-4, rtol=1e-4)
    merge_policy(folder, tmp_path / "merged", tiny_tokenizer(), dtype=torch.bfloat16)  # over the first
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged")).dtype == torch.bfloat16


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, max_length=77, method="sft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["modules_to_save"] is None and config["inference_mode"]
    state = load_file(folder / "adapter_model.safetensors")
    assert len(state) == 2 * 14 and all("lora_" in name and POLICY not in name for name in state)
    settings = read_policy_settings(str(folder))
    assert settings == PolicySettings(str(tmp_path / "base"), max_length=77, method="sft")
    loaded = load_policy(folder)
    assert loaded.chat.max_length == 77 and loaded.settings == settings
    assert not any(path.suffix in (".bin", ".pt") for path in folder.iterdir())


def test_settings_of_a_later_version_are_read(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    (folder / "policy.json").write_text(json.dumps({"base_model": "x", "from_the_future": 1}))
    assert read_policy_settings(str(folder)) == PolicySettings("x")


def test_saving_looks_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint must not fail because the Hub is away."""
    from huggingface_hub import HfApi

    for name in ("model_info", "file_exists", "repo_info"):
        monkeypatch.setattr(HfApi, name, lambda *_, **__: pytest.fail("looked up"))
    save_policy(tiny_policy(), tmp_path, tiny_tokenizer(), PolicySettings("somebody/some-model", revision="v2"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("somebody/some-model", "v2")


def test_a_trainable_one(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    policy = load_policy(folder, trainable=True)
    trained = {name for name, parameter in policy.backbone.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 14 and all("lora_" in name for name in trained)


def test_a_second_policy_on_one_backbone(tmp_path: Path) -> None:
    """The reference of PPO is the policy that it starts from, frozen beside it."""
    other, folder = saved(tmp_path)
    backbone = tiny_policy(seed=9)
    before = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    own = logits_of(backbone)
    put_policy(backbone, folder, "reference")
    assert same(logits_of(backbone, "reference"), logits_of(other))
    assert same(logits_of(backbone), own) and not torch.equal(own[0], logits_of(other)[0])
    after = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    assert {name: value for name, value in after.items() if ".reference." not in name} == before
    assert not any(value for name, value in after.items() if ".reference." in name)


def test_another_place_for_the_backbone(tmp_path: Path) -> None:
    backbone, folder = saved(tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="--base_model"):
        load_policy(folder)
    assert same(logits_of(load_policy(folder, base_model=str(tmp_path / "moved")).backbone), logits_of(backbone))
    with pytest.raises(ModelError, match="--base_model is for adapters"):
        load_policy(tmp_path / "moved", base_model=str(tmp_path / "moved"))


def test_an_adapter_that_peft_made(tmp_path: Path) -> None:
    """TRL's trainers leave such folders: no settings of ours, and a tokenizer whose pad token ends turns."""
    base = save_tiny_model(tmp_path / "base")
    torch.manual_seed(4)
    peft: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(base)),
        LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, init_lora_weights=False),
    )
    peft.save_pretrained(str(tmp_path / "peft"))
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(str(tmp_path / "peft"))
    policy = load_policy(tmp_path / "peft")
    torch.testing.assert_close(logits_of(policy.backbone), their_logits(peft), atol=1e-4, rtol=1e-4)
    assert policy.chat.max_length is None and policy.backbone.pad_id == 0


def test_a_base_model(tmp_path: Path) -> None:
    policy = load_policy(save_tiny_model(tmp_path / "base"))
    assert isinstance(policy, Policy) and policy.adapter is None
    assert policy.settings == PolicySettings(str(tmp_path / "base"))  # of an adapter that is trained on it
    assert not any(parameter.requires_grad for parameter in policy.backbone.parameters())
    torch.testing.assert_close(logits_of(policy.backbone, None), their_logits(tiny_model()), atol=1e-4, rtol=1e-4)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_pickled_weights(tmp_path: Path) -> None:
    """They would run whatever they hold; neither loading nor merging may touch them."""
    _, folder = saved(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04 a pickle")
    for attempt in (lambda: load_policy(folder), lambda: merge_policy(folder, tmp_path / "merged", tiny_tokenizer())):
        with pytest.raises(ModelError, match="pickle"):
            attempt()
    assert not (tmp_path / "merged").exists()


def test_remote_code(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    foreign = {
        **config,
        "model_type": "of_their_own",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (tmp_path / "base" / "config.json").write_text(json.dumps(foreign))
    mark = tmp_path / "ran"
    (tmp_path / "base" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(ModelError, match="Python code from its own repository"):
        load_policy(folder)
    assert not mark.exists()


def test_reward_models(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    tiny_reward_model(base_model=str(base)).save(tmp_path / "reward", tiny_tokenizer())
    with pytest.raises(ModelError, match="This is a reward model"):
        load_policy(tmp_path / "reward")
    AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=1).save_pretrained(str(tmp_path / "plain"))
    tiny_tokenizer().save_pretrained(str(tmp_path / "plain"))
    with pytest.raises(ModelError, match="sequence-classification model"):
        load_policy(tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias all"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task SEQ_2_SEQ_LM"),
    ],
)
def test_adapters_that_are_more_than_lora_layers(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=match):
        load_policy(folder)


def test_an_adapter_of_another_kind(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(str(base))
    prefix = get_peft_model(plain, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))
    prefix.save_pretrained(str(tmp_path / "prefix"))
    with pytest.raises(ModelError, match="type PREFIX_TUNING"):
        load_policy(tmp_path / "prefix")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """PEFT itself would leave what is missing as it began, without a word."""
    _, folder = saved(tmp_path)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())  # as it is for real models: PEFT shortens long lists of layers to this
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in config["target_modules"]})
    file.write_text(json.dumps(config))
    narrow = tiny_config("llama")
    narrow.intermediate_size = 40
    for model, match in (
        (tiny_model(layers=3), "lacks 14 weights of this model"),
        (tiny_model(config=narrow), "does not fit"),
    ):
        with pytest.raises(CheckpointError, match=match):
            put_policy(Backbone(model, pad_id=0), folder)
    with pytest.raises(ModelError, match="cannot be put on this model"):
        put_policy(Backbone(tiny_model("gpt_neox"), pad_id=0), folder)
    state = load_file(folder / "adapter_model.safetensors")
    save_file({**state, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"this model lacks, such as base_model\.model\.lm_head"):
        load_policy(folder)


def test_broken_files(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    for name, text, match in (
        ("adapter_model.safetensors", "half of", "weights cannot be read"),
        ("adapter_config.json", "{", "not valid JSON"),
        ("policy.json", "[]", "holds a list"),
        ("policy.json", "{}", "do not name the policy's base model"),
    ):
        broken = shutil.copytree(folder, tmp_path / "broken", dirs_exist_ok=True)
        (broken / name).write_text(text)
        with pytest.raises((CheckpointError, ModelError), match=match) as caught:
            load_policy(broken)
        assert str(broken / name) in str(caught.value)


def test_a_folder_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_policy(tmp_path)


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights_go_back_into_the_adapter_they_came_from(tmp_path: Path) -> None:
    backbone, folder = saved(tmp_path)
    other = tiny_policy(seed=5)
    assert not same(logits_of(other), logits_of(backbone))
    read_weights(other, POLICY, folder)
    assert same(logits_of(other), logits_of(backbone))
    names = adapter_weights(other, POLICY)
    assert names.keys() == load_file(folder / adapter_files.ADAPTER_WEIGHTS).keys()
    assert isinstance(other.model, PeftModel)
