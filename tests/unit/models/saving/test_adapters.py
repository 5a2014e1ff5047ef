"""The check before training that an untrained adapter loads with the class that the model card names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GraniteConfig, LlamaConfig

import rrm_lm
from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.adapters import ADAPTER_WEIGHTS, check_reloads
from rrm_lm.models.saving.policies import PolicySettings, save_policy
from tests.tiny import (
    lora,
    save_tiny_model,
    some_comparisons,
    tiny_chat,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)


def save_as(base: str, folder: Path, rename: tuple[str, str] = ("", "")) -> None:
    backbone = Backbone(tiny_model("llama"), 0)
    backbone.causal_lm.name_or_path = base
    backbone.add_adapter("policy", lora())
    save_policy(backbone, folder, tiny_chat().tokenizer, PolicySettings(base))
    file = folder / ADAPTER_WEIGHTS
    save_file({key.replace(*rename): tensor for key, tensor in load_file(file).items()}, file)


def test_an_adapter_that_loads_passes_and_draws_no_random_numbers(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "llama", "llama")
    state = torch.get_rng_state()
    check_reloads(lambda folder: save_as(str(base), folder), AutoModelForCausalLM, False)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_whose_layers_have_other_names_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "llama", "llama")
    with pytest.raises(
        ModelError, match=r"AutoModelForCausalLM: .*layers that this model lacks, such as .*language_model"
    ):
        check_reloads(
            lambda folder: save_as(str(base), folder, ("model.layers", "model.language_model.layers")),
            AutoModelForCausalLM,
            False,
        )


def test_a_family_without_the_class_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "granite"
    GraniteConfig(**{**tiny_config("llama").to_dict(), "architectures": None, "model_type": "granite"}).save_pretrained(
        base
    )
    with pytest.raises(ModelError, match=r"cannot load the adapter with AutoModelForSequenceClassification: Unrec"):
        check_reloads(
            lambda folder: save_as(str(base), folder), AutoModelForSequenceClassification, False, num_labels=1
        )


def test_a_base_model_that_is_nowhere_is_left_out(tmp_path: Path) -> None:
    check_reloads(lambda folder: save_as(str(tmp_path / "gone"), folder), AutoModelForCausalLM, False)


def test_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    """The base model has 8 billion parameters."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    LlamaConfig(vocab_size=128256, **sizes).save_pretrained(tmp_path)  # type: ignore[arg-type]
    started = time.perf_counter()
    with pytest.raises(ModelError, match="The adapter does not fit this model"):
        check_reloads(lambda folder: save_as(str(tmp_path), folder), AutoModelForCausalLM, False)
    assert time.perf_counter() - started < 30


def test_a_reward_model_is_refused_before_training_only_if_it_is_to_be_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers has no sequence classifier for Granite."""
    torch.manual_seed(0)
    config = GraniteConfig(**{**tiny_config("llama").to_dict(), "architectures": None, "model_type": "granite"})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "granite")
    tiny_tokenizer().save_pretrained(tmp_path / "granite")

    def start(merge: bool) -> None:
        args = rrm_lm.RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, dtype="float32", merge=merge)
        rrm_lm.RewardTrainer(str(tmp_path / "granite"), args, train_dataset=some_comparisons(4), eval_dataset=None)

    with pytest.raises(ModelError, match="cannot load the adapter with AutoModelForSequenceClassification"):
        start(True)
    start(False)
    assert "only rrm_lm will read this reward model" in caplog.text
