"""Our trainer made and run as TRL's own tests make and run theirs: separate models, token ids, TRL's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from trl.experimental.ppo import PPOConfig as TrlConfig
from trl.experimental.ppo import PPOTrainer as TrlTrainer

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.ppo.trainer import PPOTrainer
from tests.deprecations import trls_arguments
from tests.tiny import VOCABULARY, tiny_tokenizer
from tests.tiny_policy import counting

torch.set_num_threads(1)


def tokenizer() -> Any:
    made = tiny_tokenizer()
    made.padding_side = "left"
    made.add_special_tokens({"pad_token": "[PAD]"})  # as TRL's tests do: an id that the model has no embedding for
    return made


def model(kind: Any, seed: int, **more: Any) -> Any:
    torch.manual_seed(seed)
    return kind(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            **more,
        )
    )


def arguments(folder: Path, config: Any = PPOConfig, **more: Any) -> dict[str, Any]:
    """What TRL's tests pass, with a shorter response."""
    rows = [[*tokenizer()(text).input_ids, 2] for text in ("the sea", "who lives in the moon", "tell me") * 4]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        num_ppo_epochs=2,
        response_length=8,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        **more,
    )
    return {
        "args": args,
        "processing_class": tokenizer(),
        "model": model(Qwen2ForCausalLM, 0),
        "ref_model": model(Qwen2ForCausalLM, 0),
        "reward_model": model(Qwen2ForSequenceClassification, 1, num_labels=1),
        "value_model": model(Qwen2ForSequenceClassification, 2, num_labels=1),
        "train_dataset": data,
        "eval_dataset": data.select(range(4)),
    }


def weights(module: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(module: Any, before: dict[str, Tensor]) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


@trls_arguments
@pytest.mark.parametrize("config", [PPOConfig, TrlConfig])
def test_basic_training(config: Any, tmp_path: Path) -> None:
    more = {"learning_rate": 1e-3}
    given = arguments(tmp_path, config, **({**more, "bf16": False} if config is TrlConfig else more))
    policy, critic = weights(given["model"]), weights(given["value_model"])
    fixed = weights(given["ref_model"]), weights(given["reward_model"])
    trainer = PPOTrainer(**given)
    assert isinstance(trainer, TrlTrainer)
    trainer.train()
    assert changed(trainer.model.policy, policy) == set(policy)  # type: ignore[union-attr]
    assert changed(trainer.model.value_model, critic) == set(critic)  # type: ignore[union-attr]
    assert not changed(trainer.ref_model, fixed[0]) and not changed(trainer.reward_model, fixed[1])
    assert trainer.args.trl_compatible == (config is TrlConfig)
    assert trainer.state.global_step == 9  # 3 epochs of 12 prompts
    logged = trainer.state.log_history[-1]
    assert {"objective/kl", "objective/rlhf_reward", "loss/policy_avg", "val/ratio_var", "episode"} <= logged.keys()


def test_peft_training(tmp_path: Path) -> None:
    given = arguments(tmp_path, learning_rate=1e-3)
    given["ref_model"] = None
    policy, critic = weights(given["model"]), weights(given["value_model"])
    lora = LoraConfig(r=32, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    trainer = PPOTrainer(**given, peft_config=lora)
    trainer.train()
    named = dict(trainer.model.policy.named_parameters())  # type: ignore[union-attr]
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    assert trained and all("lora" in name and bool(named[name].any()) for name in trained)
    for name, before in policy.items():
        assert torch.equal(trainer.agent.backbone.causal_lm.get_parameter(plain(name, named)), before), name
    assert changed(trainer.model.value_model, critic) == set(critic)  # type: ignore[union-attr]


def plain(name: str, named: dict[str, Any]) -> str:
    """A parameter's name once LoRA layers stand around some of them."""
    layer, _, last = name.rpartition(".")
    inner = f"{layer}.base_layer.{last}"
    return inner if any(other.endswith(inner) for other in named) else name


def test_positional_arguments_are_trls(tmp_path: Path) -> None:
    given = arguments(tmp_path, total_episodes=4)
    order = ("args", "processing_class", "model", "ref_model", "reward_model", "train_dataset", "value_model")
    trainer = PPOTrainer(*(given[name] for name in order))
    trainer.train()
    assert trainer.state.episode == 4


def test_a_peft_model_with_a_reference_adapter(tmp_path: Path) -> None:
    given = arguments(tmp_path, total_episodes=8, model_adapter_name="mine", ref_adapter_name="old", learning_rate=1e-3)
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False)
    given["model"] = get_peft_model(given["model"], lora, adapter_name="mine")
    given["model"].add_adapter("old", lora)
    given["ref_model"] = None
    before = weights(given["model"])
    trainer = PPOTrainer(**given)
    trainer.train()
    moved = changed(trainer.model.policy, before)  # type: ignore[union-attr]
    assert moved and all(".mine." in name for name in moved)
    assert float(trainer.state.log_history[0]["objective/kl"]) != 0.0
    assert trainer.model_adapter_name == "mine" and trainer.ref_adapter_name == "old"


def test_without_a_value_model_there_is_a_head(tmp_path: Path) -> None:
    given = arguments(tmp_path, total_episodes=8)
    given["value_model"] = None
    trainer = PPOTrainer(**given)
    trainer.train()
    assert trainer.agent.value_kind == "head" and bool(trainer.agent.value_head.weight.any())


def test_a_pad_token_that_is_eos_ends_nothing_too_early(tmp_path: Path) -> None:
    """TRL takes every eos for padding then."""
    given = arguments(tmp_path, total_episodes=4)
    given["processing_class"].pad_token = given["processing_class"].eos_token
    trainer = PPOTrainer(**given)
    responses, device = [[5, 2, 7, 8], [2, 2]], trainer.accelerator.device
    rollouts = Rollouts.of(trainer.prompts[:2], responses, given["processing_class"], trainer.end_ids, device)
    assert rollouts.lengths.tolist() == [4, 2]
    trainer.train()


def test_whole_models_are_saved_and_go_on(tmp_path: Path) -> None:
    settings = {"total_episodes": 16, "learning_rate": 1e-3}
    straight = PPOTrainer(**arguments(tmp_path / "straight", **settings))
    straight.args.save_strategy, straight.args.save_steps = "steps", 2  # type: ignore[assignment]
    straight.train()
    resumed = PPOTrainer(**arguments(tmp_path / "resumed", **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert not changed(resumed.agent, weights(straight.agent))
    straight.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    assert not changed(loaded, weights(straight.model.policy))  # type: ignore[union-attr]


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    lora = LoraConfig(task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="same object"):
        PPOTrainer(**{**given, "ref_model": given["model"]})
    with pytest.raises(ConfigError, match="peft_config is a dict"):
        PPOTrainer(**given, peft_config={"r": 4})
    with pytest.raises(ConfigError, match="adapter already"):
        PPOTrainer(**{**given, "model": get_peft_model(model(Qwen2ForCausalLM, 0), lora)}, peft_config=lora)
    with pytest.raises(ModelError, match="head of one output"):
        PPOTrainer(**{**given, "value_model": model(Qwen2ForSequenceClassification, 0, num_labels=2)})
    with pytest.raises(ConfigError, match="no reward"):
        PPOTrainer(**{**given, "reward_model": None})


@pytest.mark.parametrize("kind", ["nothing", "a language model", "two outputs", "a function"])
def test_what_is_no_reward_model_is_refused_before_training(kind: str, tmp_path: Path) -> None:
    wrong = {
        "nothing": nn.Module,
        "a language model": lambda: model(Qwen2ForCausalLM, 0),
        "two outputs": lambda: model(Qwen2ForSequenceClassification, 1, num_labels=2),
        "a function": lambda: counting,
    }[kind]()
    with pytest.raises(ModelError, match="not a sequence classifier with a `score` head of one output") as error:
        PPOTrainer(**{**arguments(tmp_path), "reward_model": wrong})
    assert type(wrong).__name__ in str(error.value) and "`rewards`" in str(error.value.remedy)


def test_the_value_model_is_one_that_transformers_makes(tmp_path: Path) -> None:
    folder = tmp_path / "value"
    model(Qwen2ForSequenceClassification, 3, num_labels=1).save_pretrained(str(folder))
    given = arguments(tmp_path, total_episodes=4)
    given["value_model"] = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    PPOTrainer(**given).train()
