"""Processes that load one model to shard it share its weights, and do not each hold a copy."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from rrm_lm.api.policy.trainers import load_start as policy_start
from rrm_lm.api.reward.model import load_start as reward_start
from rrm_lm.errors import ModelError
from rrm_lm.models import together
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, load_sequence_classifier, process_state, set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.sharding import full_tensor, shard_for_use
from rrm_lm.settings.models import ModelArguments
from tests.distributed.processes import launch
from tests.tiny import lora, save_tiny_model

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300,
}  # fmt: skip


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts" / "bench"))
    return importlib.import_module("loading")


@pytest.mark.parametrize(("kind", "dtype", "layers"), [("llama", "float32", 10), ("mixtral", "bfloat16", 16)])
def test_two_processes_hold_one_model(loading: Any, tmp_path: Path, kind: str, dtype: str, layers: int) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 2048 // (8 if kind == "mixtral" else 1)}
    parameters = loading.save_random(str(tmp_path), kind, **shape, num_hidden_layers=layers, vocab_size=8000)
    found = loading.measure(str(tmp_path), dtype, parameters)
    assert found["model"] > 100e6
    assert found["private_over_model"] < 1.3
    assert found["after"]["private"] / found["model"] > 0.9  # the shards
    assert found["after"]["files"] / found["model"] < 0.1  # the file of converted weights is gone


# -- weights ----------------------------------------------------------------------------------------------------------


def saved(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(1)
    if kind == "mixtral":
        model: Any = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied"))
    model.to(dtype).save_pretrained(folder)


def state(model: Any) -> dict[str, Tensor]:
    """All parameters, under each of their names, and all buffers."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def copied(model: Any) -> bool:
    return together._is_converted(list(model.parameters()))


def assert_same(model: Any, other: Any) -> None:
    mine, theirs = state(model), state(other)
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
        assert type(tensor) is type(theirs[name]) and tensor.requires_grad == theirs[name].requires_grad
    assert len({id(one) for one in mine.values()}) == len({id(one) for one in theirs.values()})  # as many are tied
    assert type(model) is type(other) and model.name_or_path == other.name_or_path
    assert model.config.to_dict() == other.config.to_dict() and model.training == other.training
    kept = [one.generation_config.to_dict() if one.can_generate() else None for one in (model, other)]
    assert kept[0] == kept[1]


def test_shared_weights_equal_own_ones(tmp_path: Path) -> None:
    saved(tmp_path / "llama", "llama")
    saved(tmp_path / "half", "llama", torch.bfloat16)
    saved(tmp_path / "tied", "tied")
    saved(tmp_path / "mixtral", "mixtral")
    broken = tmp_path / "broken"
    saved(broken, "llama")
    (broken / "model.safetensors").write_bytes(b"broken")
    (tmp_path / "home").mkdir()
    save_tiny_model(tmp_path / "tiny")
    launch(__file__, tmp_path, config="fsdp2")
    for name in ("converted", "trainers", "alone", "broken", "sharded"):
        assert {(tmp_path / f"{name}-{rank}").exists() for rank in (0, 1)} == {True}, name
    assert list((tmp_path / "home").iterdir()) == []  # no file stays


def same_weights(folder: Path) -> None:
    for name, dtype, converts in [
        ("llama", "bfloat16", True), ("half", "float32", True), ("tied", "bfloat16", True),
        ("mixtral", "float32", True), ("mixtral", "bfloat16", True), ("llama", "float32", False),
    ]:  # fmt: skip
        own = load_causal_lm(str(folder / name), dtype=dtype)
        with together.loading_together():
            shared = load_causal_lm(str(folder / name), dtype=dtype)
        assert copied(own) == converts and not copied(shared), (name, dtype)
        assert_same(own, shared)
    load = partial(load_sequence_classifier, str(folder / "llama"), dtype="bfloat16", num_labels=1)
    set_seed(3)
    own, number = load(), torch.rand(1)
    set_seed(3)
    with together.loading_together():
        shared = load()
    assert_same(own, shared)  # with the new head
    assert torch.equal(number, torch.rand(1))
    weight = next(iter(shared.parameters()))
    with torch.no_grad():
        weight.zero_()  # only this process's
    process_state().wait_for_everyone()
    with torch.no_grad():
        weight.fill_(process_state().process_index)
    process_state().wait_for_everyone()
    assert weight.unique().tolist() == [process_state().process_index]


def in_trainers(folder: Path) -> None:
    args = ModelArguments(model_name_or_path=str(folder / "tiny"), dtype="bfloat16")
    start, policy = reward_start(str(args.model_name_or_path), args), policy_start(args, None)
    assert not copied(start.lm) and not copied(policy.backbone.causal_lm)
    (folder / f"trainers-{process_state().process_index}").touch()


def own_copies(folder: Path) -> None:
    """Quantized models, a file that one process cannot see, a home that is not a folder, and a broken checkpoint."""
    rank, name = process_state().process_index, str(folder / "llama")
    bits = BitsAndBytesConfig(load_in_4bit=True)
    with together.loading_together():
        quantized = load_causal_lm(name, dtype="float32", quantization_config=bits, device_map={"": "cpu"})
        assert type(quantized.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
        with pytest.MonkeyPatch.context() as patch:  # as in a container of its own
            patch.setattr(together.os, "access", lambda path, mode: rank == 0)
            assert copied(load_causal_lm(name, dtype="bfloat16"))
        os.environ["RRM_LM_HOME"] = str(folder / "llama" / "config.json")
        model = load_causal_lm(name, dtype="bfloat16")
        assert copied(model)
        assert_same(model, AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16))
        (folder / f"alone-{rank}").touch()
        try:
            load_causal_lm(str(folder / "broken"), dtype="bfloat16")
        except ModelError:
            (folder / f"broken-{rank}").touch()


def with_adapters(folder: Path) -> None:
    name = str(folder / "tied")
    own = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).state_dict()
    with together.loading_together():
        model = RewardModel.create(Backbone(load_causal_lm(name, dtype="bfloat16"), 0), lora(), RewardSettings(name))
    assert shard_for_use(model)
    found = {
        key.replace("base_layer.", ""): full_tensor(one) for key, one in model.backbone.causal_lm.state_dict().items()
    }
    assert own.keys() <= found.keys() and all(torch.equal(found[key], one) for key, one in own.items())
    assert AutoConfig.from_pretrained(name).tie_word_embeddings
    (folder / f"sharded-{process_state().process_index}").touch()


if __name__ == "__main__":
    work = Path(sys.argv[1])
    os.environ["RRM_LM_HOME"] = str(work / "home")
    same_weights(work)
    (work / f"converted-{process_state().process_index}").touch()
    with_adapters(work)
    in_trainers(work)
    own_copies(work)
