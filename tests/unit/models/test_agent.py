"""One root module for every role: what each computes, what is trained, and what stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForSequenceClassification, OPTConfig, OPTForCausalLM

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.agent import POLICY, REFERENCE, VALUE, AgentModel, PolicyOutput, disable_dropout
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings
from rrm_lm.text.batching import Batch, collate
from rrm_lm.text.chat import Line
from tests.precision import Precision
from tests.tiny import lora, tiny_config, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, tiny_agent

SAMPLING = Sampling(8, temperature=0.7)
RESPONSES = [[40, 41, 42, 2], [50, 51], [60, 61, 62, 63, 64], [2], [40, 41, 7, 2], [33]]


def lines_of(prompts: int = 2) -> list[list[Line]]:
    """Lines of prompts with three responses each."""
    made = []
    for number in range(prompts):
        ids = CHAT.prompt_ids(PROMPTS[number])
        made.append([CHAT.sampled_line(ids, response) for response in RESPONSES[3 * number : 3 * number + 3]])
    return made


def laid(agent: AgentModel, families: list[list[Line]]) -> tuple[Batch, list[Line]]:
    rows = [row for family in families for row in agent.rows(family)]
    return collate(rows, agent.backbone.pad_id), [line for family in families for line in family]


def output(agent: AgentModel, families: list[list[Line]] | None = None, sampling: Sampling = SAMPLING) -> PolicyOutput:
    found = agent("policy", *laid(agent, families or lines_of()), sampling)
    assert isinstance(found, PolicyOutput)
    return found


def plain_log_probs(agent: AgentModel, line: Line, adapter: str | None, sampling: Sampling) -> Tensor:
    """Of one line by itself, with the logits of all of it."""
    with agent.backbone.using(adapter):
        logits = agent.backbone.causal_lm(input_ids=torch.tensor([line.ids])).logits[0]
    tokens = torch.tensor(line.ids[line.response_start :])
    return sampling.log_probs(logits[line.response_start - 1 : -1], tokens)


@torch.no_grad()
@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(8, 1.3, top_p=0.7, top_k=40)], ids=str)
def test_the_policys_log_probabilities_are_of_what_was_sampled_from(sampling: Sampling, precision: Precision) -> None:
    agent = tiny_agent()
    found = output(agent, sampling=sampling)
    expected = [plain_log_probs(agent, line, POLICY, sampling) for family in lines_of() for line in family]
    precision.close(found.log_probs, torch.cat(expected))


@torch.no_grad()
def test_the_references_are_under_temperature_alone_and_without_the_adapter(precision: Precision) -> None:
    agent = tiny_agent()
    batch, lines = laid(agent, lines_of())
    found = agent("reference", batch, lines, Sampling(8, 0.7, top_p=0.5, top_k=3))
    expected = torch.cat([plain_log_probs(agent, line, None, SAMPLING) for line in lines])
    precision.close(found, expected)
    assert (output(agent).log_probs - expected).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("value", ["head", "adapter"])
def test_values_are_of_the_state_before_each_token_and_behind_the_last(value: str, precision: Precision) -> None:
    agent = tiny_agent(value=value)
    found = output(agent)
    values, ends = [], []
    for family in lines_of():
        for line in family:
            with agent.backbone.using(POLICY if value == "head" else VALUE):
                hidden = agent.backbone.decoder(input_ids=torch.tensor([line.ids])).last_hidden_state[0]
            each = agent.value_head(hidden.float()).squeeze(-1)
            values.append(each[line.response_start - 1 : -1])
            ends.append(each[-1])
    precision.close(found.values, torch.cat(values))
    precision.close(found.end_values, torch.stack(ends))


@torch.no_grad()
def test_a_separate_value_model(precision: Precision) -> None:
    config = tiny_config("llama")
    config.num_labels = 1
    torch.manual_seed(3)
    value_model: Any = LlamaForSequenceClassification(config).eval()
    agent = AgentModel.create(Backbone(tiny_model(), 0), lora(), value="model", value_model=Backbone(value_model, 0))
    found = output(agent)
    line = lines_of()[0][0]
    each = value_model.score(value_model.model(input_ids=torch.tensor([line.ids])).last_hidden_state[0]).squeeze(-1)
    precision.close(found.values[: len(RESPONSES[0])], each[line.response_start - 1 : -1])
    assert agent.value_model is value_model


@pytest.mark.parametrize("value", ["head", "adapter"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_sharing_a_prompt_changes_neither_values_nor_gradients(family: str, value: str, precision: Precision) -> None:
    """Three responses to one prompt, two of which begin alike."""
    found = []
    for sharing in (None, False):
        agent = tiny_agent(family, value=value, sharing=sharing)
        batch, lines = laid(agent, lines_of())
        assert len(batch.input_ids) == (6 if sharing is False else 2)
        result = agent("policy", batch, lines, SAMPLING)
        weights = torch.linspace(-1, 1, len(result.values))
        (result.log_probs @ weights + result.values @ weights.flip(0) + result.end_values.sum()).backward()
        gradients = {name: p.grad for name, p in agent.named_parameters() if p.requires_grad}
        found.append((result, gradients))
    (one, one_gradients), (other, other_gradients) = found
    for name in ("log_probs", "values", "entropy", "end_values"):
        precision.close(getattr(one, name), getattr(other, name))
    assert one_gradients.keys() == other_gradients.keys()
    for name, gradient in one_gradients.items():
        assert gradient is not None, name
        scale = float(other_gradients[name].abs().max())
        assert float((gradient - other_gradients[name]).abs().max()) <= precision.bound(1e-5) * max(scale, 1.0), name


@torch.no_grad()
def test_the_reward_is_read_at_the_last_token_by_its_own_adapter(precision: Precision) -> None:
    agent = tiny_agent(reward=True)
    batch, lines = laid(agent, lines_of())
    found = agent("reward", batch, lines)
    for number, line in enumerate(lines):
        with agent.backbone.using(ADAPTER):
            hidden = agent.backbone.decoder(input_ids=torch.tensor([line.ids])).last_hidden_state[0, -1]
        precision.close(found[[number]], agent.reward_head(hidden.float()))  # type: ignore[misc]


def test_what_is_trained() -> None:
    agent = tiny_agent(value="adapter", reward=True)
    trained = {name for name, p in agent.named_parameters() if p.requires_grad}
    own = set(adapter_parameters(agent, POLICY)) | set(adapter_parameters(agent, VALUE))
    assert trained == own | {"value_head.weight", "value_head.bias"}
    assert set(adapter_parameters(agent, ADAPTER)).isdisjoint(trained) and adapter_parameters(agent, ADAPTER)


def test_no_role_changes_what_is_trained_or_in_the_state_dict_twice() -> None:
    agent = tiny_agent(value="adapter", reward=True)
    before = {name: p.requires_grad for name, p in agent.named_parameters()}
    batch, lines = laid(agent, lines_of())
    for role in ("policy", "reference", "reward"):
        agent(role, batch, lines, SAMPLING)
    assert {name: p.requires_grad for name, p in agent.named_parameters()} == before
    pointers = [tensor.data_ptr() for name, tensor in agent.named_parameters(remove_duplicate=False)]
    tied = agent.backbone.causal_lm.config.tie_word_embeddings
    assert len(pointers) == len(set(pointers)) + int(tied)


def test_a_policy_with_a_past_has_itself_as_the_reference() -> None:
    backbone = tiny_agent().backbone
    agent = AgentModel.create(backbone, lora())
    assert agent.reference_adapter == REFERENCE
    assert not any(p.requires_grad for p in adapter_parameters(agent, REFERENCE).values())
    assert all(p.requires_grad for p in adapter_parameters(agent, POLICY).values())
    batch, lines = laid(agent, lines_of())
    with torch.no_grad():
        torch.testing.assert_close(agent("reference", batch, lines, SAMPLING), output(agent).log_probs)
        for parameter in adapter_parameters(agent, POLICY).values():
            parameter.add_(0.1)
        assert (agent("reference", batch, lines, SAMPLING) - output(agent).log_probs).abs().max() > 1e-3


def test_or_the_bare_backbone_where_that_is_asked_for() -> None:
    agent = AgentModel.create(tiny_agent().backbone, lora(), reference="base")
    assert agent.reference_adapter is None and not adapter_parameters(agent, REFERENCE)


def test_values_of_a_fresh_agent_are_zero_and_its_policy_is_the_reference() -> None:
    agent = AgentModel.create(Backbone(tiny_model(), 0), lora(random=False))
    batch, lines = laid(agent, lines_of())
    with torch.no_grad():
        found = output(agent)
        torch.testing.assert_close(found.log_probs, agent("reference", batch, lines, SAMPLING))
    assert not found.values.any() and not found.end_values.any()


def test_what_cannot_be() -> None:
    backbone = Backbone(tiny_model(), 0)
    with pytest.raises(ConfigError, match="value_model"):
        AgentModel(backbone, value="model")
    agent = tiny_agent()
    with pytest.raises(ModelError, match="has no reward"):
        agent("reward", *laid(agent, lines_of()))
    other = RewardModel.create(Backbone(tiny_model(), 0), lora(), RewardSettings("tiny"))
    with pytest.raises(ModelError, match="has its own backbone"):
        agent.add_reward(other)


def test_roll_out_is_the_policys() -> None:
    agent = tiny_agent()
    prompts = [CHAT.prompt_ids(prompt) for prompt in PROMPTS[:2]]
    found = agent.roll_out(prompts, Sampling(5, temperature=0.0), end_ids=[2])
    with torch.no_grad(), agent.backbone.using(POLICY):
        logits = agent.backbone.causal_lm(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    assert found[0][0][0] == int(logits.argmax())
    assert all(1 <= len(samples[0]) <= 5 for samples in found)


def test_dropout_is_disabled_where_it_is_a_number() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "ffn_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5)).train()
    disable_dropout(model)
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
