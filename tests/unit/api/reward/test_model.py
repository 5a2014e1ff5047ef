"""What reward training starts from: language models, classifiers, and the adapters of policies and reward models.

The kinds come from public reports: hiyouga/LLaMA-Factory#2477 and huggingface/trl#250 (an SFT adapter was ignored).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

import rrm_lm
from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.reward_files import put_reward
from rrm_lm.models.saving.policies import load_policy, merge_policy
from rrm_lm.text.batching import collate
from tests.tiny import lora, prompt_of, save_tiny_model, tiny_chat, tiny_tokenizer

ROWS = [{"prompt": f"what is it {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(6)]
PROMPT, RESPONSES = "what is the moon made of?", ["the answer is yes", "no i do not know", "yes"]


def trainer(start: Any, output: Path, **settings: Any) -> rrm_lm.RewardTrainer:
    args = rrm_lm.RewardConfig(
        output_dir=str(output), use_cpu=True, report_to="none", max_steps=3, learning_rate=1e-2, **settings
    )
    return rrm_lm.RewardTrainer(str(start), args, train_dataset=ROWS, eval_dataset=None)


def states(model: Any, adapter: str | None) -> torch.Tensor:
    backbone = model if isinstance(model, Backbone) else model.backbone
    ids = torch.tensor(tiny_tokenizer()("what is the moon made of? yes").input_ids)
    batch = collate(backbone.rows([tuple(ids.tolist())]), 0)
    with torch.no_grad():
        return backbone(batch, adapter)


def plain_rewards(folder: Path) -> list[float]:
    """As PEFT alone reads a saved adapter."""
    made: Any = AutoTokenizer.from_pretrained(str(folder))
    model: Any = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    rewards = []
    for response in RESPONSES:
        turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]
        ids = made(made.apply_chat_template(turns, tokenize=False), return_tensors="pt").input_ids
        with torch.no_grad():
            rewards.append(model(ids).logits.item())
    return rewards


@pytest.mark.parametrize("ours", [True, False])
def test_training_starts_from_a_policys_adapter(
    ours: bool, tiny: Path, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = policy_folder
    if not ours:  # as TRL and PEFT save it
        folder = tmp_path / "sft"
        policy = load_policy(policy_folder, dtype="float32")
        policy.backbone.model.save_pretrained(str(folder), selected_adapters=["policy"])
        (folder / "policy").rename(tmp_path / "peft")
        folder = tmp_path / "peft"
    with caplog.at_level(logging.INFO):
        made = trainer(folder, tmp_path / "out")
    assert "is an adapter, which is trained on" in caplog.text
    merge_policy(policy_folder, tmp_path / "merged", tiny_tokenizer())
    merged = Backbone(load_causal_lm(str(tmp_path / "merged"), dtype="float32"), 0)
    start: Any = made.model
    torch.testing.assert_close(states(start, start.adapter), states(merged, None), atol=1e-4, rtol=1e-4)
    assert (states(start, start.adapter) - states(start, None)).abs().max() > 0.1
    before = {name: value.detach().clone() for name, value in start.named_parameters()}
    made.train()
    changed = {name for name, value in start.named_parameters() if not torch.equal(before[name], value)}
    assert changed == {name for name, value in start.named_parameters() if value.requires_grad}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["task_type"]) == (str(tiny), 4, "SEQ_CLS")
    found: Any = rrm_lm.RewardModel.from_pretrained(tmp_path / "out", dtype="float32").score(PROMPT, RESPONSES)
    np.testing.assert_allclose(found, plain_rewards(tmp_path / "out"), atol=1e-4)


def test_the_reward_model_shares_the_policys_backbone(policy_folder: Path, tmp_path: Path) -> None:
    trainer(policy_folder, tmp_path / "out").train()
    policy = load_policy(policy_folder, dtype="float32")
    shared = put_reward(policy.backbone, tmp_path / "out", chat=policy.chat)
    alone: Any = rrm_lm.RewardModel.from_pretrained(tmp_path / "out", dtype="float32").scorer
    torch.testing.assert_close(states(shared, shared.adapter), states(alone.model, alone.model.adapter))


def test_training_starts_from_a_reward_models_adapter_and_head(reward_folder: Path, tmp_path: Path) -> None:
    expected: Any = rrm_lm.RewardModel.from_pretrained(reward_folder, dtype="float32").score(PROMPT, RESPONSES)
    made = trainer(reward_folder, tmp_path / "out")
    np.testing.assert_allclose(made.reward_model.score(PROMPT, RESPONSES), expected, atol=1e-5)
    made.train()
    again: Any = rrm_lm.RewardModel.from_pretrained(tmp_path / "out", dtype="float32").score(PROMPT, RESPONSES)
    assert np.abs(again - expected).max() > 1e-3


def test_a_head_of_another_size_is_refused(reward_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--ensemble_heads 1, because a trained head is trained on"):
        trainer(reward_folder, tmp_path / "out", ensemble_heads=3)


def test_a_start_that_writes_critiques_first_keeps_doing_so(tiny: Path, tmp_path: Path) -> None:
    settings = RewardSettings(str(tiny), critique_first=True)
    backbone = Backbone(load_causal_lm(str(tiny), dtype="float32"), 0)
    RewardModel.create(backbone, lora(), settings).save(tmp_path / "critic", tiny_tokenizer())
    with pytest.raises(ConfigError, match="--critique_first true"):
        trainer(tmp_path / "critic", tmp_path / "out")


def test_an_adapter_takes_no_peft_config(policy_folder: Path, tmp_path: Path) -> None:
    args = rrm_lm.RewardConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigError, match="there is a peft_config"):
        rrm_lm.RewardTrainer(
            str(policy_folder), args, train_dataset=ROWS, eval_dataset=None, peft_config=LoraConfig(r=2)
        )


def classifier(folder: Path, labels: int = 1) -> Path:
    save_tiny_model(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=labels)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(str(folder))
    return folder


def test_training_starts_from_a_classifiers_head_and_its_adapter_reloads(tmp_path: Path) -> None:
    start = classifier(tmp_path / "classifier")
    made = trainer(start, tmp_path / "out")
    chat = tiny_chat()
    model = AutoModelForSequenceClassification.from_pretrained(str(start)).eval()
    ids = [list(chat.encode(prompt_of(PROMPT), [response]).lines[0][0].ids) for response in RESPONSES]
    with torch.no_grad():
        expected = [model(torch.tensor([one])).logits.item() for one in ids]
    np.testing.assert_allclose(made.reward_model.score(PROMPT, RESPONSES), expected, atol=1e-4)
    made.train()
    found: Any = rrm_lm.RewardModel.from_pretrained(tmp_path / "out", dtype="float32").score(PROMPT, RESPONSES)
    np.testing.assert_allclose(found, plain_rewards(tmp_path / "out"), atol=1e-4)


def test_other_classifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"The classifier has 3 outputs"):
        trainer(classifier(tmp_path / "many", labels=3), tmp_path / "out")
    sizes: dict[str, Any] = {"vocab_size": 416, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "num_labels": 1}
    config = BertConfig(**sizes)
    BertForSequenceClassification(config).save_pretrained(str(tmp_path / "bert"))
    tiny_tokenizer().save_pretrained(str(tmp_path / "bert"))
    with pytest.raises(ModelError, match="The head of a BertForSequenceClassification is not one linear layer"):
        trainer(tmp_path / "bert", tmp_path / "out")
