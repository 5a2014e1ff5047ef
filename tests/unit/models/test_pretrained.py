"""Loading models: what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.pretrained import (
    default_dtype,
    load_causal_lm,
    load_sequence_classifier,
    refuse_pickles,
    resolve,
    rounding,
    set_seed,
    to_dtype,
)
from tests.tiny import lora, save_tiny_model, tiny_config, tiny_model


class TestWeights:
    def test_loaded_as_saved_and_ready_to_evaluate(self, tmp_path: Path) -> None:
        model = load_causal_lm(str(save_tiny_model(tmp_path)), dtype="float32", attn_implementation="eager")
        assert not model.training
        assert model.config._attn_implementation == "eager"
        ids = torch.tensor([[4, 5, 6]])
        torch.testing.assert_close(model(ids).logits, tiny_model(attention="eager")(ids).logits)

    def test_dtype(self, tmp_path: Path) -> None:
        path = str(save_tiny_model(tmp_path))
        assert load_causal_lm(path, dtype="bfloat16").dtype == torch.bfloat16
        assert load_causal_lm(path, dtype="auto").dtype == torch.float32

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(tiny_model().state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
            load_causal_lm(str(tmp_path))
        with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
            load_sequence_classifier(str(tmp_path))

    @pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model-00001-of-00002.bin"])
    def test_other_pickles_are_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ModelError, match="pickle"):
            refuse_pickles(tmp_path)

    def test_a_pickle_beside_safetensors_is_left_alone(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path)
        (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
        assert load_causal_lm(str(tmp_path), dtype="float32").config.model_type == "llama"

    def test_broken_weights_are_a_model_error(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"{}")
        with pytest.raises(ModelError, match="could not be loaded"):
            load_causal_lm(str(tmp_path))

    def test_remote_code_is_off(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "novel", "auto_map": auto_map}))
        (tmp_path / "code.py").write_text("raise SystemExit('this code ran')")
        with pytest.raises(ModelError, match="trust_remote_code"):
            load_causal_lm(str(tmp_path))

    def test_a_sequence_classifier_keeps_its_head(self, tmp_path: Path) -> None:
        config = tiny_config("llama")
        config.num_labels = 1
        torch.manual_seed(0)
        saved: Any = AutoModelForSequenceClassification.from_config(config)
        saved.save_pretrained(str(tmp_path))
        loaded: Any = load_sequence_classifier(str(tmp_path), dtype="float32")
        assert isinstance(loaded, LlamaForSequenceClassification)
        torch.testing.assert_close(loaded.score.weight, saved.score.weight)

    @pytest.mark.parametrize(
        ("lost", "added", "message"),
        [
            ("norm.weight", {}, r"lacks 1 weights of a LlamaForCausalLM: model\.norm\.weight"),
            (
                "",
                {"v_head.summary.weight": torch.ones(1, 32)},
                r"has 1 weights that are not in a LlamaForCausalLM: v_head\.summary\.weight",
            ),
            ("", {"model.embed_tokens.weight": torch.ones(8, 32)}, "could not be loaded .*mismatch"),
        ],
    )
    def test_a_checkpoint_of_another_class_is_refused(
        self, lost: str, added: dict[str, torch.Tensor], message: str, tmp_path: Path
    ) -> None:
        """transformers would warn and make up what is missing, or leave out what is unknown."""
        file = save_tiny_model(tmp_path) / "model.safetensors"
        weights = {name: value for name, value in load_file(file).items() if not (lost and name.endswith(f".{lost}"))}
        save_file({**weights, **added}, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            load_causal_lm(str(tmp_path))

    def test_a_classifier_is_no_language_model_and_the_reverse(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path / "lm")
        made: Any = load_sequence_classifier(str(tmp_path / "lm"), num_labels=1)  # a new head was asked for
        made.save_pretrained(str(tmp_path / "classifier"))
        with pytest.raises(ModelError, match=r"lacks 1 weights .* score\.weight"):
            load_sequence_classifier(str(tmp_path / "lm"))
        with pytest.raises(ModelError, match=r"lacks 1 weights .* lm_head\.weight"):
            load_causal_lm(str(tmp_path / "classifier"))
        load_causal_lm(str(tmp_path / "classifier"), new_head=True)

    def test_tied_weights_are_not_missing(self, tmp_path: Path) -> None:
        config = tiny_config("llama")
        config.tie_word_embeddings = True
        tiny_model(config=config).save_pretrained(str(tmp_path))
        load_causal_lm(str(tmp_path))

    def test_an_adapter_is_no_whole_model(self, tmp_path: Path) -> None:
        """transformers would load its base and add the adapter, which commands with adapters of their own turn off."""
        get_peft_model(tiny_model(), lora()).save_pretrained(str(tmp_path))
        for load in (load_causal_lm, load_sequence_classifier):
            with pytest.raises(ModelError, match=r"This is an adapter.*merge it first"):
                load(str(tmp_path))


class TestNames:
    def test_a_folder_stays(self, tmp_path: Path) -> None:
        assert resolve(str(tmp_path)) == str(tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no such folder"):
            resolve(str(tmp_path / "missing"))

    def test_a_hub_model_without_a_network(self) -> None:
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
            load_causal_lm("some-people/some-model-that-is-not-cached")

    def test_the_embedded_model_has_no_revisions(self) -> None:
        with pytest.raises(ModelError, match="revision"):
            resolve("smollm2-135m", revision="main")


class TestSettings:
    def test_dtypes(self) -> None:
        assert to_dtype("bfloat16") is torch.bfloat16
        assert to_dtype(torch.float16) is torch.float16
        assert to_dtype("auto") == "auto"
        assert to_dtype(None) is default_dtype()

    @pytest.mark.parametrize("name", ["float31", "int8", "Tensor"])
    def test_what_is_no_dtype_for_weights(self, name: str) -> None:
        with pytest.raises(ConfigError, match="float32"):
            to_dtype(name)

    def test_one_seed_for_all(self) -> None:
        draws = []
        for _ in range(2):
            set_seed(5)
            draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        assert draws[0] == draws[1]

    def test_what_rounding_explains(self) -> None:
        cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
        assert rounding(torch.float32, cpu) == rounding(torch.float32, gpu) == rounding(torch.float64, gpu) == 1e-4
        assert rounding(torch.bfloat16, cpu) == rounding(torch.bfloat16, gpu) == 0.05
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")  # as --tf32 true has it
            assert rounding(torch.float32, gpu) == 0.01
            assert rounding(torch.float32, cpu) == rounding(torch.float64, gpu) == 1e-4
        finally:
            torch.set_float32_matmul_precision(before)
