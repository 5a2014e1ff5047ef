"""LoRA on every family: default targets train, save, reload, merge and share prefixes; other targets may be refused.

Public reports of these situations: adapters of fused experts that cannot be loaded (huggingface/transformers#43319,
unslothai/unsloth-zoo#812, NVIDIA-NeMo/Automodel#1151), routers among "all linear layers"
(foundation-model-stack/fms-hf-tuning#545, ModelCloud/GPTQModel#2744), a load-balancing loss that is on unasked
(huggingface/trl#6085), scaled logits (vllm-project/vllm#52158), merges into tied embeddings (huggingface/peft#2018 and
#2777), target modules that match nothing (NVIDIA-NeMo/Megatron-Bridge#1738, dllm-reasoning/d1#6).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rrm_lm
from rrm_lm.api.start import lora_settings, put_fresh_adapter
from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.backbone import Backbone, adapter_parameters, check_logits
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.reward_files import load_reward_model, merge_reward_model, put_reward
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings, merge_policy, save_policy
from rrm_lm.settings.models import ModelArguments
from rrm_lm.text.batching import collate, share
from rrm_lm.training.sft.trainer import SFTTrainer, response_nll
from tests.families import DENSE, EXPERTS, WITHOUT_CLASSIFIER, WITHOUT_SHARING, attention_of
from tests.tiny import prompt_of, tiny_chat, tiny_model, tiny_tokenizer
from tests.unit.api.test_trl_reward_trainer import zen
from tests.unit.training.sft.test_trainer import config as sft_settings
from tests.unit.training.sft.test_trainer import some_imitations

FAMILIES = {**EXPERTS, **DENSE}
CLOSE = 2e-5
FUSED = ["experts.gate_up_proj", "experts.down_proj"]
PROMPTS = [f"what is the {word} made of?" for word in ("moon", "sea")]
LINES = [group[0] for group in tiny_chat().encode(prompt_of(PROMPTS[0]), ["good short answer", "no", "a sea"]).lines]

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a family's tiny model and its tokenizer."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        if not (root / family).is_dir():
            model = tiny_model(config=FAMILIES[family](), attention=attention_of(family))
            model.save_pretrained(str(root / family))
            tiny_tokenizer().save_pretrained(str(root / family))
        return root / family

    return folder


def backbone_of(folder: Path) -> Backbone:
    model: Any = load_causal_lm(str(folder), dtype="float32")
    torch.manual_seed(3)
    return Backbone(model, pad_id=0)


def random_lora(**settings: Any) -> LoraConfig:
    """The command line's LoRA, with random factors."""
    lora = ModelArguments(**settings).lora()
    lora.init_lora_weights = False
    return lora


def reward_of(folder: Path, **settings: Any) -> RewardModel:
    backbone, lora = backbone_of(folder), random_lora(**settings)
    with lora_settings(backbone, lora):
        return RewardModel.create(backbone, lora, RewardSettings(str(folder)))


def rewards_of(model: RewardModel, shared: bool) -> Tensor:
    model.backbone.can_share = shared and model.backbone.can_share
    rows = model.backbone.rows([line.ids for line in LINES])
    return model(collate(rows, 0), LINES).rewards


def their_rewards(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(input_ids=torch.tensor([line.ids])).logits[0] for line in LINES])


def their_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([LINES[0].ids])).logits[0]


def our_logits(backbone: Backbone, adapter: str | None) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.eval()(collate([share([LINES[0].ids])], 0), adapter)[0], adapter)


def gap(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / (1 + theirs.abs().max()))


def check_reward(model: RewardModel, folder: Path, has_class: bool = True) -> None:
    """Train a step; save, load and merge; the rewards stay the same everywhere."""
    base = Path(model.settings.base_model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {*adapter_parameters(model, "reward"), "head.weight"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    rewards = rewards_of(model.train(), shared=True)
    assert torch.equal(rewards, rewards_of(model, shared=True))  # no noise of routers
    (rewards[1] - rewards[0]).backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trained
    with torch.no_grad():
        shared, after = rewards_of(model.eval(), shared=True), rewards_of(model, shared=False)
    assert gap(shared, after) < CLOSE
    model.save(folder, tiny_tokenizer())
    again, _ = load_reward_model(folder, dtype="float32")
    with torch.no_grad():
        assert torch.equal(rewards_of(again, shared=False), after)
    if not has_class:
        with pytest.raises(ModelError, match="no sequence-classification model"):
            merge_reward_model(folder, base.parent / "merged", tiny_tokenizer())
        return
    plain = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1, pad_token_id=0)
    assert gap(their_rewards(plain), after) < CLOSE
    merge_reward_model(folder, folder / "merged", tiny_tokenizer())
    merged = AutoModelForSequenceClassification.from_pretrained(str(folder / "merged"))
    assert gap(their_rewards(merged), after) < CLOSE


def check_policy(backbone: Backbone, adapter: str, folder: Path) -> None:
    """A saved policy has the same logits with PEFT, and merged."""
    mine = our_logits(backbone, adapter)
    assert gap(our_logits(backbone, None), mine) > 1e-3
    assert gap(their_logits(AutoPeftModelForCausalLM.from_pretrained(str(folder))), mine) < CLOSE
    merge_policy(folder, folder / "merged", tiny_tokenizer())
    assert gap(their_logits(AutoModelForCausalLM.from_pretrained(str(folder / "merged"))), mine) < CLOSE


# -- default targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_model_trains_reloads_merges_and_shares(family: str, folder_of: Folder, tmp_path: Path) -> None:
    model = reward_of(folder_of(family))
    assert model.backbone.can_share == (family not in WITHOUT_SHARING)
    check_reward(model, tmp_path / "reward", family not in WITHOUT_CLASSIFIER)
    names = " ".join(adapter_parameters(model, "reward"))
    assert ".experts." not in names and ".router." not in names and ".gate." not in names


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_trains_the_adapter_alone(family: str, folder_of: Folder, tmp_path: Path) -> None:
    backbone = backbone_of(folder_of(family))
    check_logits(backbone)
    put_fresh_adapter(backbone, ModelArguments())
    policy = Policy(backbone, tiny_chat(), POLICY)
    settings = PolicySettings(str(folder_of(family)))
    args = sft_settings(tmp_path / "out", learning_rate=0.3)
    trainer = SFTTrainer(policy, args, some_imitations(4), settings=settings)
    before = {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}
    expected = float(torch.cat(response_nll(backbone, POLICY, [one.line for one in some_imitations(4)])).mean())
    trainer.train()
    first = trainer.state.log_history[0]["loss"]
    assert abs(first - expected) < 1e-3 * expected  # nothing is added to it
    changed = {name for name, parameter in backbone.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapter_parameters(backbone, POLICY))
    save_policy(backbone, tmp_path / "policy", tiny_tokenizer(), settings)
    check_policy(backbone, POLICY, tmp_path / "policy")


@pytest.mark.parametrize("family", [*EXPERTS, "granite", "falcon_alibi"])
def test_ppo_on_a_shared_backbone(family: str, folder_of: Folder, tmp_path: Path) -> None:
    base = folder_of(family)
    reward_of(base).save(tmp_path / "reward", tiny_tokenizer())
    args = rrm_lm.PPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, response_length=4, lora_r=4,
        num_ppo_epochs=1, num_mini_batches=1, learning_rate=0.3, dtype="float32", use_cpu=True, report_to="none",
        monitor_prompts=0,
    )  # fmt: skip
    trainer = rrm_lm.PPOTrainer(str(base), str(tmp_path / "reward"), PROMPTS, args)
    assert trainer.train().global_step == 1
    log = trainer.trainer.state.log_history[0]
    assert abs(log["val/ratio"] - 1) < 1e-3  # sampled and trained with the same routes
    check_policy(trainer.trainer.model.backbone, POLICY, tmp_path / "out")


@pytest.mark.parametrize("family", EXPERTS)
def test_what_is_adapted_is_logged_once(family: str, folder_of: Folder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rrm_lm.api.start"):
        reward_of(folder_of(family))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("mixture of experts: LoRA adapts self_attn.") and "no load-balancing loss" in said
    assert "--lora_target_parameters experts.gate_up_proj experts.down_proj" in said


def test_nothing_is_logged_of_other_models(folder_of: Folder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rrm_lm.api.start"):
        reward_of(folder_of("granite"))
    assert not caplog.records


def test_shared_experts_are_adapted_where_peft_can(folder_of: Folder) -> None:
    targets = reward_of(folder_of("qwen2_moe")).backbone.model.peft_config["reward"].target_modules
    assert {name.rpartition(".")[2] for name in targets if ".shared_expert." in name} == {
        "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert not any(name.endswith("shared_expert_gate") for name in targets)


# -- experts on request, and refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_on_request(family: str, folder_of: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rrm_lm.api.start"):
        model = reward_of(folder_of(family), lora_target_parameters=FUSED)
    assert "experts.gate_up_proj" in caplog.messages[0] and "--lora_target_parameters" not in caplog.messages[0]
    assert sum(".experts." in name for name in adapter_parameters(model, "reward")) >= 4
    check_reward(model, tmp_path / "reward", family not in WITHOUT_CLASSIFIER)


def test_names_of_experts_in_older_checkpoints(folder_of: Folder, tmp_path: Path) -> None:
    """PEFT translates them to the fused parameters, with a larger rank."""
    model = reward_of(folder_of("qwen3_moe"), lora_target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    check_reward(model, tmp_path / "reward")


def test_two_adapters_on_the_same_experts(folder_of: Folder, tmp_path: Path) -> None:
    base = folder_of("mixtral")
    reward_of(base, lora_target_parameters=FUSED).save(tmp_path / "reward", tiny_tokenizer())
    backbone = backbone_of(base)
    backbone.add_adapter(POLICY, random_lora(lora_target_parameters=FUSED))
    alone = our_logits(backbone, POLICY)
    reward, (own, _) = put_reward(backbone, tmp_path / "reward"), load_reward_model(tmp_path / "reward")
    with torch.no_grad():
        assert gap(rewards_of(reward.eval(), True), rewards_of(own, True)) < CLOSE
    assert torch.equal(our_logits(backbone, POLICY), alone)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("phimoe", {"lora_target_modules": ["q_proj", "router"]}, "cannot be put on this model"),
        ("qwen3_moe", {"lora_target_modules": ["q_proj", "gate_proj"]}, "without also targeting up_proj"),
        ("mixtral", {"lora_target_parameters": FUSED, "lora_dropout": 0.1}, "lora_dropout"),
        ("mixtral", {"lora_target_parameters": ["experts.gate_proj"]}, "no layer named experts.gate_proj"),
        ("gpt2", {"lora_target_modules": ["c_attn", "q_proj", "v_proj"]}, "no layer named q_proj, v_proj"),
        ("gpt2", {"lora_target_modules": ["c_attn", "wte"]}, "embeddings are tied"),
        ("gpt2", {"lora_target_modules": ["c_attn", "lm_head"]}, "embeddings are tied"),
    ],
)
def test_refused_before_training(family: str, settings: dict[str, Any], said: str, folder_of: Folder) -> None:
    with pytest.raises(ConfigError, match=said):
        reward_of(folder_of(family), **settings)


@pytest.mark.parametrize(
    "more", [{"modules_to_save": ["embed_tokens"]}, {"bias": "lora_only"}, {"init_lora_weights": "pissa_niter_4"}]
)
def test_more_than_lora_is_refused(more: dict[str, Any], folder_of: Folder, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj"], **more)
    args = rrm_lm.RewardConfig(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True)
    with pytest.raises(ConfigError, match="more than LoRA layers would change"):
        rrm_lm.RewardTrainer(str(folder_of("olmo2")), args, train_dataset=zen(), peft_config=lora)
