"""Rewards that other libraries read the same way, and critiques whose likelihood is the model's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BloomConfig

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models import reward as reward_module
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings
from rrm_lm.models.reward_files import load_reward_model, merge_reward_model, put_reward, read_settings
from rrm_lm.models.saving import adapters
from rrm_lm.text.batching import collate, share
from rrm_lm.text.chat import Line
from rrm_lm.training.reward.examples import LinePair, RewardExample
from tests.precision import Precision
from tests.tiny import (
    FAMILIES,
    lora,
    prompt_of,
    save_tiny_model,
    tiny_chat,
    tiny_config,
    tiny_model,
    tiny_reward_model,
    tiny_tokenizer,
)

torch.set_num_threads(1)

RESPONSES = ["good short clear answer", "no", "the moon and the sea " * 3, "sorry i do not know the story"]
PROMPT = prompt_of("who lives in the sea?", "what sea", "tell me a story about the moon")


def lines_of(critiques: bool = False) -> list[Line]:
    texts = [["good answer", "too long"], [], ["short"], ["what was asked"]] if critiques else None
    return [line for group in tiny_chat().encode(PROMPT, RESPONSES, texts).lines for line in group]


def rewards_of(model: RewardModel, lines: list[Line]) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(collate(model.backbone.rows([line.ids for line in lines]), 0), lines).rewards


def padded(lines: list[Line]) -> tuple[Tensor, Tensor]:
    """Ids and mask (batch, time), padded on the right."""
    width = max(len(line.ids) for line in lines)
    ids = torch.tensor([[*line.ids, *[0] * (width - len(line.ids))] for line in lines])
    return ids, torch.tensor([[1] * len(line.ids) + [0] * (width - len(line.ids)) for line in lines])


def saved(family: str, tmp_path: Path) -> tuple[RewardModel, Path]:
    """A reward model on a backbone that is a folder, and the folder it was saved to."""
    base = save_tiny_model(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": 2}))  # the eos token, as in SmolLM2's own
    model = tiny_reward_model(family, base_model=str(base))
    model.save(tmp_path / "reward", tiny_tokenizer())
    return model, tmp_path / "reward"


# -- reading the reward ---------------------------------------------------------------------------------------------


def test_the_reward_is_the_head_on_the_last_hidden_state_of_the_response(precision: Precision) -> None:
    model = tiny_reward_model("llama")
    lines = lines_of(critiques=True)
    expected = []
    with torch.no_grad(), model.backbone.using(ADAPTER):
        for line in lines:
            ids = torch.tensor([line.ids[: line.reward_at + 1]])  # nothing behind it exists
            hidden = model.backbone.causal_lm(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            expected.append(float(hidden[0, -1].float() @ model.head.weight[0]))
    precision.close(rewards_of(model, lines), expected)
    assert expected[0] == pytest.approx(expected[1])  # two critiques of one response
    assert len({round(value, 3) for value in expected}) == 4


def test_the_head_starts_small_and_in_float32() -> None:
    torch.manual_seed(0)
    backbone = Backbone(tiny_model("llama", dtype=torch.bfloat16), pad_id=0)
    model = RewardModel.create(backbone, lora(), RewardSettings("tiny"))
    assert model.head.weight.dtype == torch.float32 and model.head.bias is None
    assert 0.1 < float(model.head.weight.detach().std()) < 0.25  # (32 + 1) ** -0.5 is 0.17
    lines = lines_of()
    output = model(collate(backbone.rows([line.ids for line in lines]), 0), lines)
    assert output.rewards.dtype == torch.float32


# -- critiques ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihood_of_critiques_and_responses_by_the_whole_model(family: str, precision: Precision) -> None:
    model = tiny_reward_model(family)
    lines = lines_of(critiques=True)
    expected: list[float] = []
    responses: list[float] = []
    written = [0, 2]
    with torch.no_grad(), model.backbone.using(ADAPTER):
        for number, line in enumerate(lines):
            logits = model.backbone.causal_lm(input_ids=torch.tensor([line.ids])).logits[0].float()
            nll = [0.0, *(-logits.log_softmax(-1)[range(len(line.ids) - 1), line.ids[1:]]).tolist()]
            expected += [nll[at] for at in line.critique]
            responses += nll[line.response_start : line.reward_at + 1] if number in written else []
    with torch.no_grad():
        batch = collate(model.backbone.rows([line.ids for line in lines]), 0, "left")
        output = model(batch, lines, written=written)
        alone = model(batch, lines, with_critiques=False, written=written)
    precision.close(output.critique_nll, expected)
    precision.close(output.response_nll, responses)
    precision.close(alone.response_nll, responses)
    assert len(responses) > 2 and len(alone.critique_nll) == 0
    assert len(expected) == 3 + 3 + 2 + 4


def test_no_token_is_predicted_where_the_prompt_was_cut_off(precision: Precision) -> None:
    model = tiny_reward_model()
    line = replace(lines_of()[0], response_start=0)
    with torch.no_grad(), model.backbone.using(ADAPTER):
        logits = model.backbone.causal_lm(input_ids=torch.tensor([line.ids])).logits[0]
        output = model(collate(model.backbone.rows([line.ids]), 0), [line], written=[0])
    expected = -logits.log_softmax(-1)[range(line.reward_at), line.ids[1 : line.reward_at + 1]]
    precision.close(output.response_nll, expected)
    example = RewardExample((), (line,), (LinePair(0, 0, None),))
    assert example.chosen_tokens == len(output.response_nll)


def test_without_critiques_the_language_model_head_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reward_model()
    lines = lines_of(critiques=True)
    batch = collate(model.backbone.rows([line.ids for line in lines]), 0)
    with_critiques = model(batch, lines)
    monkeypatch.setattr(Backbone, "logits", lambda *args: pytest.fail("logits were computed"))
    without = model(batch, lines, with_critiques=False)
    assert without.critique_nll.shape == (0,)
    assert torch.equal(without.rewards, with_critiques.rewards)
    assert model(collate([share([lines_of()[0].ids])], 0), lines_of()[:1]).critique_nll.shape == (0,)


def test_many_critique_tokens_go_in_chunks(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    lines = lines_of(critiques=True)
    results = []
    logits = Backbone.logits
    widest: list[int] = []

    def watched(self: Backbone, hidden: Tensor, adapter: str | None = None) -> Tensor:
        widest.append(len(hidden))
        return logits(self, hidden, adapter)

    monkeypatch.setattr(Backbone, "logits", watched)
    for chunk in (1000, 5):
        monkeypatch.setattr(reward_module, "_LOGIT_CHUNK", chunk)
        model = tiny_reward_model()
        widest.clear()
        output = model(collate(model.backbone.rows([line.ids for line in lines]), 0), lines)
        (output.critique_nll * torch.arange(12)).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None])
        assert max(widest) == (12 if chunk == 1000 else 5)
        results.append((output.critique_nll.detach(), grads / grads.norm()))
    for one, other in zip(*results, strict=True):
        precision.close(one, other)


# -- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_model_gives_identical_rewards(family: str, tmp_path: Path) -> None:
    model, folder = saved(family, tmp_path)
    fresh, chat = load_reward_model(folder)
    lines = lines_of()
    assert torch.equal(rewards_of(fresh, lines), rewards_of(model, lines))
    assert fresh.settings == model.settings
    assert not fresh.training and not any(p.requires_grad for p in fresh.parameters())
    assert chat.encode(PROMPT, RESPONSES).lines == tiny_chat().encode(PROMPT, RESPONSES).lines
    other = tiny_reward_model(family, seed=5, model=tiny_model(family))
    assert not torch.allclose(rewards_of(other, lines), rewards_of(model, lines), atol=1e-2)
    other.load_adapter_state(folder)
    assert torch.equal(rewards_of(other, lines), rewards_of(model, lines))


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_the_same_rewards(family: str, tmp_path: Path) -> None:
    model, folder = saved(family, tmp_path)
    lines = lines_of()
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    theirs.config.pad_token_id = 0
    ids, is_real = padded(lines)
    with torch.no_grad():
        rewards = theirs.eval()(input_ids=ids, attention_mask=is_real).logits[:, 0]
    torch.testing.assert_close(rewards, rewards_of(model, lines), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_checkpoint_gives_the_same_rewards(family: str, tmp_path: Path) -> None:
    from trl.experimental.utils import get_reward

    model, folder = saved(family, tmp_path)
    lines = lines_of()
    mine = rewards_of(model, lines)
    merge_reward_model(folder, tmp_path / "merged", tiny_tokenizer())
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    theirs = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "merged")).eval()
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == 0
    assert AutoTokenizer.from_pretrained(str(tmp_path / "merged")).chat_template
    ids, is_real = padded(lines)
    with torch.no_grad():
        rewards = theirs(input_ids=ids, attention_mask=is_real).logits[:, 0]
        _, final, _ = get_reward(theirs, ids, 0, min(line.response_start for line in lines))
    torch.testing.assert_close(rewards, mine, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(final, mine, atol=2e-5, rtol=1e-5)
    merge_reward_model(folder, tmp_path / "merged", tiny_tokenizer())  # and again, over the first


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["inference_mode"]
    state = load_file(folder / "adapter_model.safetensors")
    assert state["base_model.model.score.weight"].shape == (1, 32)
    assert all("lora_" in name or "score" in name for name in state) and len(state) == 2 * 14 + 1
    assert read_settings(folder) == RewardSettings(str(tmp_path / "base"))
    assert config["task_type"] == "SEQ_CLS"


def test_saving_looks_nothing_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkpoint must not fail because the Hub is away."""
    model = tiny_reward_model(base_model="somebody/some-model")
    monkeypatch.setattr(adapters, "resolve", lambda *args: pytest.fail("looked up"))
    model.save(tmp_path, tiny_tokenizer())
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/some-model"
    )


def test_settings_travel_with_the_model(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = tiny_reward_model(base_model=str(base))
    model.settings = RewardSettings(str(base), critique_first=True, max_length=33, max_critique_length=7)
    model.save(tmp_path / "reward", tiny_tokenizer())
    fresh, chat = load_reward_model(tmp_path / "reward")
    assert fresh.settings == model.settings
    assert (chat.max_length, chat.max_critique_length) == (33, 7)
    assert not any(parameter.requires_grad for parameter in fresh.parameters())


def test_another_place_for_the_backbone(tmp_path: Path) -> None:
    model, folder = saved("llama", tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError):
        load_reward_model(folder)
    fresh, _ = load_reward_model(folder, base_model=str(tmp_path / "moved"))
    assert torch.equal(rewards_of(fresh, lines_of()), rewards_of(model, lines_of()))
    assert fresh.settings.base_model == str(tmp_path / "moved")


def test_an_adapter_that_peft_made(tmp_path: Path) -> None:
    """Reward models that TRL trains are PEFT folders too; they have no settings of ours."""
    base = save_tiny_model(tmp_path / "base")
    plain = AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=1)
    torch.manual_seed(4)
    peft = get_peft_model(plain, LoraConfig(task_type=TaskType.SEQ_CLS, r=4, init_lora_weights=False))
    torch.nn.init.normal_(peft.base_model.model.score.modules_to_save.default.weight)  # type: ignore[union-attr]
    peft.config.pad_token_id = 0
    peft.save_pretrained(str(tmp_path / "peft"))
    model, _ = load_reward_model(tmp_path / "peft")
    lines = lines_of()
    ids, is_real = padded(lines)
    with torch.no_grad():
        theirs = peft.eval()(input_ids=ids, attention_mask=is_real).logits[:, 0]
    torch.testing.assert_close(rewards_of(model, lines), theirs, atol=1e-5, rtol=1e-5)
    assert model.settings == RewardSettings(str(base))


# -- what does not fit ----------------------------------------------------------------------------------------------


def test_a_backbone_of_another_width(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path)
    config = tiny_config("llama")
    config.hidden_size, config.head_dim = 16, 4
    other = tiny_reward_model(model=tiny_model(config=config))
    with pytest.raises(CheckpointError, match="no scalar head for this model") as caught:
        other.load_adapter_state(folder)
    assert str(folder) in str(caught.value)


def test_a_backbone_of_another_family(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path)
    with pytest.raises(CheckpointError, match="this model lacks"):
        tiny_reward_model("gpt_neox").load_adapter_state(folder)


def test_a_backbone_with_other_shapes(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path)
    config = tiny_config("llama")
    config.intermediate_size = 40
    with pytest.raises(CheckpointError, match="does not fit"):
        tiny_reward_model(model=tiny_model(config=config)).load_adapter_state(folder)


def test_a_backbone_with_more_layers(tmp_path: Path) -> None:
    """Its last layers would keep whatever their adapters began with."""
    _, folder = saved("llama", tmp_path)
    with pytest.raises(CheckpointError, match="lacks 14 weights"):
        tiny_reward_model(model=tiny_model(layers=3)).load_adapter_state(folder)


def test_an_adapter_without_a_head(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path)
    state = load_file(folder / "adapter_model.safetensors")
    del state["base_model.model.score.weight"]
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="no scalar head") as caught:
        load_reward_model(folder)
    assert "SEQ_CLS" in str(caught.value)


def test_a_family_without_a_sequence_classification_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved("llama", tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("Unrecognized configuration class")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="no sequence-classification model") as caught:
        merge_reward_model(folder, tmp_path / "merged", tiny_tokenizer())
    assert "--merge" in str(caught.value)


def test_adapters_of_other_programs_have_no_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path) is None
    get_peft_model(tiny_model(), lora()).save_pretrained(str(tmp_path))
    assert read_settings(tmp_path) is None


def test_an_adapter_that_would_change_the_shared_weights_is_not_put_on_them(tmp_path: Path) -> None:
    """PiSSA subtracts the adapter's first weights from the layer."""
    model = tiny_reward_model()
    model.save(tmp_path, tiny_tokenizer())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    with pytest.raises(ModelError, match=r"LoRA layers .*pissa"):
        put_reward(model.backbone, tmp_path, base_model="tiny", adapter="again")


def test_a_family_that_cannot_share_scores_alike(tmp_path: Path, precision: Precision) -> None:
    config = BloomConfig(vocab_size=416, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    model = tiny_reward_model(model=tiny_model(config=config, attention="eager"))
    lines = lines_of()
    assert not model.backbone.can_share
    apart = torch.cat([rewards_of(model, [line]) for line in lines])
    precision.close(rewards_of(model, lines), apart)


def test_several_reward_models_on_one_backbone(tmp_path: Path) -> None:
    """Names that hold each other, too: PEFT must not take the weights of one for those of the other."""
    model = tiny_reward_model()
    torch.manual_seed(5)
    other = RewardModel.create(model.backbone, lora(), RewardSettings("tiny"), "heat_reward")
    lines = lines_of()
    mine, theirs = rewards_of(model, lines), rewards_of(other, lines)
    assert float((mine - theirs).abs().max()) > 0.01
    other.save(tmp_path, tiny_tokenizer())
    expected = {*adapters.adapter_weights(model.backbone, model.adapter), "base_model.model.score.weight"}
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == expected
    again = put_reward(model.backbone, tmp_path, base_model="tiny", adapter="again")
    assert torch.equal(rewards_of(again, lines), theirs)
    assert torch.equal(rewards_of(model, lines), mine)


def test_mixed_precision_does_not_round_what_the_head_computes() -> None:
    model, lines = tiny_reward_model(), lines_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards = rewards_of(model, lines)
    assert rewards.dtype == torch.float32
    assert not torch.equal(rewards, rewards.bfloat16().float())  # more digits than bfloat16 has
