"""Sizes from a configuration alone: exact, for tiny models that are there and for large ones that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.key_values import KeyValues, cache_name
from rrm_lm.models.reward import ADAPTER
from rrm_lm.planning.footprint import footprint, read_config
from tests.published import CONFIGS, PARAMETERS, write_config
from tests.tiny import FAMILIES, lora, save_tiny_model, tiny_config, tiny_model, tiny_reward_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_model_itself(family: str, dtype: torch.dtype) -> None:
    sizes = footprint(tiny_config(family, layers=3), lora(family), dtype)
    model = tiny_model(family, dtype=dtype, layers=3)
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.weights == sum(p.nbytes for p in model.parameters()) == sizes.parameters * dtype.itemsize
    assert sizes.rest + 3 * sizes.block == sizes.weights
    backbone = Backbone(model, pad_id=0)
    backbone.add_adapter(ADAPTER, lora(family))
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert sizes.adapter_parameters == sum(p.numel() for p in trained)
    assert sizes.adapter == sum(p.nbytes for p in trained)  # float32 in both


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_token_in_the_cache(family: str) -> None:
    model, rows, columns = tiny_model(family, layers=3), 2, 7
    cache = KeyValues(3, rows, columns)
    cache.place(0, [0, 0])
    ids = torch.ones(rows, 5, dtype=torch.long)
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **{cache_name(model) or "": cache})
    taken = sum(whole.nbytes for layer in cache._layers for whole in layer.both())
    assert footprint(model.config, lora(family), torch.float32).cache_token * rows * columns == taken


@pytest.mark.parametrize("name", CONFIGS)
def test_published_models_have_their_published_size(name: str, tmp_path: Path) -> None:
    config, is_adapter = read_config(str(write_config(tmp_path, name)))
    sizes = footprint(config, lora(rank=16), torch.bfloat16)
    assert not is_adapter
    assert sizes.parameters == PARAMETERS[name]
    assert sizes.weights == 2 * PARAMETERS[name]
    assert sizes.head == 2 * config.vocab_size * config.hidden_size
    assert sizes.cache_token == 2 * config.num_hidden_layers * 8 * 128 * 2


def test_tied_weights_count_once() -> None:
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    tied = footprint(config, lora(), torch.float32)
    config.tie_word_embeddings = False
    assert footprint(config, lora(), torch.float32).weights - tied.weights == tied.head


def test_where_a_configuration_is_read_from(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    assert read_config(str(folder))[0].hidden_size == 32
    assert read_config(str(folder / "config.json"))[0].hidden_size == 32
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert read_config(str(folder))[0].hidden_size == 32  # weights are not looked for
    adapter = tmp_path / "adapter"
    model = tiny_reward_model()
    model.backbone.model.peft_config[ADAPTER].base_model_name_or_path = str(folder)
    model.backbone.model.save_pretrained(str(adapter), selected_adapters=[ADAPTER])
    config, is_adapter = read_config(str(adapter / ADAPTER))
    assert (config.hidden_size, is_adapter) == (32, True)


@pytest.mark.parametrize("text", ["{}", "not json", '{"model_type": "none such"}'])
def test_a_configuration_that_is_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="configuration could not be read"):
        read_config(str(file))


def test_a_model_that_writes_nothing() -> None:
    from transformers import ViTConfig

    config: Any = ViTConfig()
    with pytest.raises(ModelError, match="No language model"):
        footprint(config, lora(), torch.float32)
