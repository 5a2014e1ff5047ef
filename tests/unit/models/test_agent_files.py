"""Agents saved and loaded, and rewards put on a backbone that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import Tensor

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models.agent import POLICY, AgentModel
from rrm_lm.models.agent_files import VALUE_FILE, load_agent, load_values, save_agent, trained
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings
from rrm_lm.models.reward_files import load_reward_model, put_reward
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.text.batching import collate
from rrm_lm.training.ppo.trl import agent_from_trl
from tests.tiny import MERGING, lora, save_tiny_model, tiny_chat, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, tiny_agent

LINE = CHAT.sampled_line(CHAT.prompt_ids(PROMPTS[0]), [40, 41, CHAT.end_id])


def save(agent: AgentModel, folder: Path, whole: bool = False) -> Path:
    save_agent(agent, folder, CHAT.tokenizer, PolicySettings("tiny", method="ppo"), whole=whole)
    return folder


@torch.no_grad()
def says(agent: AgentModel) -> tuple[Tensor, Tensor]:
    batch = collate(agent.rows([LINE]), agent.backbone.pad_id)
    found: Any = agent("policy", batch, [LINE], Sampling(4))
    return found.log_probs, found.values


def changed(agent: AgentModel) -> AgentModel:
    with torch.no_grad():
        for parameter in trained(agent).values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return agent


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_a_saved_agent_is_the_same_after_loading(value: str, tmp_path: Path) -> None:
    agent = tiny_agent(value=value)
    folder = save(agent, tmp_path / "agent")
    other = changed(tiny_agent(value=value))
    assert (says(other)[0] - says(agent)[0]).abs().max() > 1e-3
    load_agent(other, folder)
    for one, two in zip(says(agent), says(other), strict=True):
        assert torch.equal(one, two)


def test_peft_loads_the_policy(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    agent = tiny_agent()
    save_agent(agent, tmp_path / "agent", CHAT.tokenizer, PolicySettings(str(base)), whole=False)
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "agent")).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([LINE.ids])).logits[0, LINE.response_start - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(LINE.ids[LINE.response_start :])[:, None])[:, 0]
    torch.testing.assert_close(says(agent)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_value_function_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    head, adapter = save(tiny_agent(), tmp_path / "head"), save(tiny_agent(value="adapter"), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_values(tiny_agent(value="adapter"), head)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_values(tiny_agent(), adapter)
    other = tiny_agent()
    other.value_head = torch.nn.Linear(32, 2)
    with pytest.raises(CheckpointError, match=r"value_head.bias of shape \(1,\), not \(2,\)"):
        load_values(other, head)
    (head / VALUE_FILE).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_agent(tiny_agent(), head)


def test_a_policy_trained_without_an_adapter(tmp_path: Path) -> None:
    """As in TRL's trainer without PEFT: the model itself, and what a run needs to go on."""
    agent = agent_from_trl(config(tmp_path), tiny_model(), None, None, None)
    assert agent.policy_adapter is None and agent.reference_backbone is not None
    changed(agent)
    folder = save(agent, tmp_path / "whole", whole=True)
    assert (folder / "model.safetensors").is_file()
    other = agent_from_trl(config(tmp_path), tiny_model(seed=1), None, None, None)
    load_agent(other, folder)
    for one, two in zip(says(agent), says(other), strict=True):
        assert torch.equal(one, two)


# -- rewards --------------------------------------------------------------------------------------------------------


def saved_reward(folder: Path, base: Path, **more: Any) -> Path:
    model = RewardModel.create(Backbone(tiny_model(), 0), lora(), RewardSettings(str(base), **more))
    model.save(folder, CHAT.tokenizer)
    return folder


def on_backbone(base: Path) -> AgentModel:
    """An agent whose backbone knows where it is from."""
    from rrm_lm.models.pretrained import load_causal_lm

    torch.manual_seed(1)
    return AgentModel.create(Backbone(load_causal_lm(str(base), dtype="float32"), 0), lora())


def test_a_reward_on_the_agents_backbone_gives_its_own_rewards(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    folder = saved_reward(tmp_path / "reward", base)
    agent = on_backbone(base)
    before = {name: p.detach().clone() for name, p in adapter_parameters(agent, POLICY).items()}
    agent.add_reward(put_reward(agent.backbone, folder, chat=CHAT))
    alone, _ = load_reward_model(folder)
    batch = collate(agent.rows([LINE]), 0)
    with torch.no_grad():
        mine, theirs = agent("reward", batch, [LINE]), alone(batch, [LINE]).rewards
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    assert not any(p.requires_grad for p in adapter_parameters(agent, ADAPTER).values())
    for name, parameter in adapter_parameters(agent, POLICY).items():
        assert parameter.requires_grad and torch.equal(parameter, before[name])


def test_a_reward_of_another_backbone_is_refused(tmp_path: Path) -> None:
    base, other = save_tiny_model(tmp_path / "base"), save_tiny_model(tmp_path / "other", seed=1)
    folder = saved_reward(tmp_path / "reward", other)
    with pytest.raises(ModelError, match=r"another backbone, .*other"):
        put_reward(on_backbone(base).backbone, folder)
    put_reward(on_backbone(base).backbone, folder, base_model=str(base))  # who says they are the same is believed
    gone = saved_reward(tmp_path / "gone", tmp_path / "nowhere")
    with pytest.raises(ModelError, match="another backbone"):
        put_reward(on_backbone(base).backbone, gone)


def test_a_backbone_of_another_size_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    folder = saved_reward(tmp_path / "reward", base)
    with pytest.raises(CheckpointError, match=r"lacks|not fit"):
        put_reward(Backbone(tiny_model(layers=1), 0), folder)
    with pytest.raises((CheckpointError, ModelError)):
        put_reward(Backbone(tiny_model("gpt2"), 0), folder)


def test_a_reward_for_another_template_or_one_that_writes_first_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    folder = saved_reward(tmp_path / "reward", base)
    with pytest.raises(ModelError, match="another chat template"):
        put_reward(on_backbone(base).backbone, folder, chat=tiny_chat(template=MERGING))
    writes = saved_reward(tmp_path / "writes", base, critique_first=True)
    with pytest.raises(ModelError, match="writes a critique"):
        put_reward(on_backbone(base).backbone, writes)
