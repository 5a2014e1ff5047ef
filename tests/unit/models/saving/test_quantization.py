"""QLoRA: adapters on a backbone in 4 bit are trained, saved, loaded and merged on the same rounded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rrm_lm.errors import ModelError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import load_causal_lm, load_sequence_classifier
from rrm_lm.models.reward import SETTINGS_FILE, RewardModel, RewardSettings
from rrm_lm.models.reward_files import load_classifier, load_reward_model, merge_reward_model, put_reward
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings, load_policy, merge_policy, save_policy
from rrm_lm.models.saving.quantization import keeping_weights, numbers_in, quantization_of
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.examples import FitCounts
from rrm_lm.training.reward_sources import PythonReward, RewardSum
from rrm_lm.training.rloo.trainer import RLOOTrainer
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.sft.trainer import SFTTrainer, imitations, to_imitate
from tests.tiny import lora, save_tiny_model, some_comparisons, tiny_chat
from tests.tiny_policy import CHAT, PROMPTS, config, counting

pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes, which `make test` installs")
FOUR_BIT: dict[str, Any] = {
    "quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "device_map": {"": "cpu"},
    "dtype": "float32",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


def backbone_on(base: Path, **loading: Any) -> Backbone:
    return Backbone(load_causal_lm(str(base), **(loading or FOUR_BIT)), 0)


def rewards(model: RewardModel) -> list[float]:
    chat = tiny_chat()
    lines = [chat.encode(c.prompt, [c.chosen]).lines[0][0] for c in some_comparisons(4)]
    with torch.no_grad():
        rows = [row for line in lines for row in model.backbone.rows([line.ids])]
        return model.eval()(collate(rows, model.backbone.pad_id), lines, with_critiques=False).rewards.tolist()


def trained_reward(base: Path, folder: Path) -> RewardModel:
    model = RewardModel.create(backbone_on(base), lora(), RewardSettings(str(base)))
    model.save(folder, tiny_chat().tokenizer)
    return model


# -- reward models ----------------------------------------------------------------------------------------------------


def test_a_reward_model_is_loaded_with_the_backbone_that_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    model = trained_reward(base, tmp_path / "reward")
    again, _ = load_reward_model(tmp_path / "reward", dtype="float32")
    full, _ = load_reward_model(tmp_path / "reward", base_model=str(base), dtype="float32")
    assert rewards(again) == rewards(model)
    assert quantization_of(again.backbone.causal_lm) == quantization_of(model.backbone.causal_lm) is not None
    assert quantization_of(full.backbone.causal_lm) is None and rewards(full) != rewards(model)
    assert json.loads((tmp_path / "reward" / SETTINGS_FILE).read_text())["quantization"]["load_in_4bit"]


def test_a_merged_reward_model_has_the_rounded_weights_in_full_precision(base: Path, tmp_path: Path) -> None:
    model = trained_reward(base, tmp_path / "reward")
    merge_reward_model(tmp_path / "reward", tmp_path / "merged", tiny_chat().tokenizer)
    merged = load_sequence_classifier(str(tmp_path / "merged"), dtype="float32")
    plain: Any = load_classifier(tmp_path / "reward", 0)
    assert {p.dtype for p in merged.parameters()} == {torch.float32} and not hasattr(merged, "hf_quantizer")
    assert "quantization" not in json.loads((tmp_path / "merged" / SETTINGS_FILE).read_text())
    chat = tiny_chat()
    for c, reward in zip(some_comparisons(4), rewards(model), strict=True):
        line = chat.encode(c.prompt, [c.chosen]).lines[0][0]
        ids = torch.tensor([line.ids[: line.reward_at + 1]])
        assert float(merged(ids).logits) == pytest.approx(reward, abs=2e-5)
        assert float(plain(ids).logits) == pytest.approx(reward, abs=1e-6)


def test_no_reward_is_read_on_a_backbone_that_is_quantized_otherwise(base: Path, tmp_path: Path) -> None:
    model = trained_reward(base, tmp_path / "reward")
    placed = put_reward(backbone_on(base), tmp_path / "reward")
    assert rewards(placed) == rewards(model)
    with pytest.raises(ModelError, match="another quantization"):
        put_reward(backbone_on(base, dtype="float32"), tmp_path / "reward")


def test_weights_are_counted_and_not_what_holds_them(base: Path) -> None:
    rounded, full = (backbone_on(base, **loading).model for loading in (FOUR_BIT, {"dtype": "float32"}))
    assert sum(numbers_in(rounded).values()) == sum(p.numel() for p in full.parameters())
    assert sum(p.numel() for p in rounded.parameters()) < sum(p.numel() for p in full.parameters())


def test_evaluation_does_not_repack_the_weights(base: Path) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes would; rewards and gradients would then be others."""
    backbone = backbone_on(base)
    backbone.add_adapter("reward", lora())
    layers = [part for part in backbone.model.modules() if hasattr(part, "support_avx512bf16_for_cpu")]
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad():
        backbone.model.eval()(input_ids=torch.tensor([[4, 5, 6, 7]]))
    assert len(layers) == 14 and all(torch.equal(b, layer.weight.data) for b, layer in zip(before, layers, strict=True))


def test_rollouts_on_rounded_weights_take_the_fast_decoder(base: Path) -> None:
    backbone = backbone_on(base)
    backbone.add_adapter(POLICY, lora())
    prompt = [4, 5, 6, 7]
    [[ids]] = roll_out(backbone, POLICY, [prompt], Sampling(8, temperature=0.0), end_ids=[])
    with torch.no_grad(), backbone.using(POLICY):
        logits = backbone.causal_lm(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == ids and decoders._agreeing[backbone] == {"lean": True}


# -- policies ---------------------------------------------------------------------------------------------------------


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[4, 5, 6, 7, 8]])).logits.log_softmax(-1)


def test_a_policy_is_loaded_and_merged_with_the_backbone_that_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    backbone, chat = backbone_on(base), ChatFormat(CHAT.tokenizer, None)
    backbone.add_adapter(POLICY, lora())
    save_policy(backbone, tmp_path / "policy", chat.tokenizer, PolicySettings(str(base)))
    again = load_policy(tmp_path / "policy", dtype="float32")
    expected = log_probs(backbone.model.eval())
    assert torch.equal(log_probs(again.backbone.model), expected)
    merge_policy(tmp_path / "policy", tmp_path / "merged", chat.tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    torch.testing.assert_close(log_probs(merged), expected, atol=2e-5, rtol=0)
    assert load_policy(tmp_path / "merged").settings.quantization is None  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["sft", "rloo"])
def test_trl_does_not_round_the_trained_weights(method: str, base: Path, tmp_path: Path) -> None:
    """Its trainers cast the weights of an adapter on a quantized model to bfloat16."""
    backbone = backbone_on(base)
    backbone.add_adapter(POLICY, lora())
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters() if p.requires_grad}
    policy = Policy(backbone, CHAT, POLICY)
    if method == "sft":
        learned = imitations(CHAT, to_imitate(Feedback.of(some_comparisons(4)), ["chosen"]), FitCounts())
        args = SFTConfig(output_dir=str(tmp_path), use_cpu=True)
        SFTTrainer(policy, args, learned, settings=PolicySettings(str(base)))
    else:
        args = config(tmp_path, per_device_train_batch_size=8, samples_per_prompt=2, num_ppo_epochs=1)
        RLOOTrainer(policy, args, RewardSum([PythonReward(counting)]), PROMPTS)
    after = dict(backbone.model.named_parameters())
    assert before and all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_weights_are_restored() -> None:
    layer = torch.nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    with keeping_weights(layer):
        layer.weight.data = layer.weight.data.bfloat16()
    assert torch.equal(layer.weight, before)
