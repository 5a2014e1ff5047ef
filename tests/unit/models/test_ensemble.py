"""Reward ensembles: members on one adapter, combined as worked by hand, saved, merged, and scored in one pass."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rrm_lm.errors import CheckpointError, ConfigError
from rrm_lm.evaluation.preferences.scorers import RewardScorer, load_scorer
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.ensemble import Ensemble, EnsembleReward, disagreement
from rrm_lm.models.reward import RewardModel, RewardOutput, RewardSettings
from rrm_lm.models.reward_files import load_reward_model, merge_reward_model, put_reward, read_settings
from rrm_lm.storage import json_text
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import Line
from rrm_lm.training.reward_sources import AdapterReward, RewardSum, ScorerReward
from tests.precision import Precision
from tests.tiny import lora, prompt_of, save_tiny_model, tiny_chat, tiny_model, tiny_reward_model, tiny_tokenizer

torch.set_num_threads(1)

RESPONSES = ["good short clear answer", "no", "the moon and the sea " * 3, "sorry i do not know the story"]
PROMPT = prompt_of("tell me a story about the moon")
MEMBERS = [[1.0, 2.0, 3.0, 6.0], [0.5, 0.5, 0.5, 0.5], [-3.0, 1.0, 1.0, 1.0]]
# Means 3, 0.5, 0. Squared distances from them: 4+1+0+9 = 14, 0, 9+1+1+1 = 12; over 4 members 3.5, 0, 3.
STDS = [math.sqrt(3.5), 0.0, math.sqrt(3.0)]


def lines_of() -> list[Line]:
    return [line for group in tiny_chat().encode(PROMPT, RESPONSES).lines for line in group]


def ensemble_of(heads: int = 4, base_model: str = "tiny", **how: Any) -> RewardModel:
    backbone = Backbone(tiny_model(), pad_id=0)
    torch.manual_seed(1)
    return RewardModel.create(backbone, lora(), RewardSettings(base_model, ensemble_heads=heads, **how))


def output_of(model: RewardModel) -> RewardOutput:
    lines = lines_of()
    model.eval()
    with torch.no_grad():
        return model(collate(model.backbone.rows([line.ids for line in lines]), 0), lines)


def saved(tmp_path: Path, **how: Any) -> tuple[RewardModel, Path]:
    model = ensemble_of(base_model=str(save_tiny_model(tmp_path / "base")), **how)
    model.save(tmp_path / "reward", tiny_tokenizer())
    return model, tmp_path / "reward"


# -- combining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combine", "k", "expected"),
    [
        ("mean", 1.0, [3.0, 0.5, 0.0]),
        ("min", 1.0, [1.0, 0.5, -3.0]),
        ("mean_minus_std", 0.5, [3.0 - 0.5 * STDS[0], 0.5, -0.5 * STDS[2]]),
        ("mean_minus_std", 2.0, [3.0 - 2.0 * STDS[0], 0.5, -2.0 * STDS[2]]),
        ("mean_minus_std", 0.0, [3.0, 0.5, 0.0]),
    ],
)
def test_members_are_combined(combine: str, k: float, expected: list[float]) -> None:
    ensemble = Ensemble(4, combine, k)
    assert ensemble(torch.tensor(MEMBERS)).tolist() == pytest.approx(expected)
    rewards = ensemble.rewards(MEMBERS)
    assert rewards == pytest.approx(expected)
    assert [reward.std for reward in rewards if isinstance(reward, EnsembleReward)] == pytest.approx(STDS)
    assert disagreement(rewards) == pytest.approx(sum(STDS) / 3)
    assert ensemble.rewards([]) == []


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_a_single_member_is_no_ensemble(combine: str) -> None:
    alone = Ensemble(1, combine, 3.0)
    assert torch.equal(alone(torch.tensor([[0.1], [0.7]])), torch.tensor([0.1, 0.7]))
    rewards = alone.rewards([[0.1], [0.7]])
    assert rewards == [0.1, 0.7] and not any(isinstance(reward, EnsembleReward) for reward in rewards)
    assert disagreement(rewards) is None and disagreement([]) is None


def test_a_reward_that_knows_its_disagreement_is_a_number() -> None:
    reward = EnsembleReward(1.5, 0.25)
    assert reward == 1.5 and reward + 1 == 2.5 and json_text([reward]) == json_text([1.5])
    again = pickle.loads(pickle.dumps(reward))
    assert (again, again.std) == (1.5, 0.25)
    assert np.asarray([reward, EnsembleReward(0.5, 1.0)]).tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"ensemble_heads": 0}, "ensemble_heads is 0"),
        ({"ensemble": "median"}, "ensemble is 'median'.*mean, min, mean_minus_std"),
        ({"ensemble_k": -1.0}, "ensemble_k is -1"),
        ({"ensemble_k": math.nan}, "ensemble_k is nan"),
    ],
)
def test_what_is_no_ensemble(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RewardSettings("tiny", **how)


# -- one model ------------------------------------------------------------------------------------------------------


def test_members_differ_and_share_one_pass(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    """Four members cost one pass of the trunk, in scoring as in a single call."""
    passes: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, batch: Any, adapter: str | None) -> Tensor:
        passes.append(batch.input_ids.numel())
        return forward(self, batch, adapter)

    counts = []
    for heads in (1, 4):
        model = ensemble_of(heads)
        assert model.backbone.can_share
        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "forward", counted)
            output = output_of(model)
            RewardScorer(model, tiny_chat()).score([PROMPT], [RESPONSES])
        counts.append(list(passes))
        passes.clear()
        assert output.members.shape == (4, heads)
        assert len({round(float(value), 4) for value in output.members.flatten()}) == 4 * heads
        torch.testing.assert_close(output.rewards, output.members.mean(-1))
    assert counts[0] == counts[1] and len(counts[0]) == 2


def test_one_head_is_what_it_was(tmp_path: Path) -> None:
    model, alone = ensemble_of(1), tiny_reward_model()
    assert torch.equal(model.head.weight, alone.head.weight)
    assert torch.equal(output_of(model).rewards, output_of(alone).rewards)
    model.save(tmp_path, tiny_tokenizer())
    assert load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"].shape == (1, 32)
    written = json.loads((tmp_path / "reward_model.json").read_text())
    assert set(written) == {"base_model", "critique_first", "max_length", "max_critique_length", "revision"}


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_a_reloaded_ensemble_gives_identical_rewards(combine: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, ensemble=combine, ensemble_k=0.7)
    fresh, _ = load_reward_model(folder)
    assert fresh.settings == model.settings == read_settings(folder)
    mine, theirs = output_of(model), output_of(fresh)
    assert torch.equal(mine.members, theirs.members) and torch.equal(mine.rewards, theirs.rewards)
    torch.testing.assert_close(mine.rewards, Ensemble(4, combine, 0.7)(mine.members))


def test_another_combination_when_it_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, folder = saved(tmp_path, ensemble="min")
    members = output_of(model).members
    fresh, _ = load_reward_model(folder, ensemble="mean_minus_std", ensemble_k=2.0)
    torch.testing.assert_close(output_of(fresh).rewards, members.mean(-1) - 2.0 * members.std(-1, correction=0))
    put = put_reward(Backbone(load_tiny(tmp_path), pad_id=0), folder, ensemble="mean")
    torch.testing.assert_close(output_of(put).rewards, members.mean(-1))
    assert read_settings(folder) == model.settings and not caplog.text
    with pytest.raises(ConfigError, match="ensemble is 'worst'"):
        load_reward_model(folder, ensemble="worst")
    alone = ensemble_of(1, str(tmp_path / "base"))
    alone.save(tmp_path / "alone", tiny_tokenizer())
    load_reward_model(tmp_path / "alone", ensemble="min")
    assert "ensemble has no effect: the reward model has one member" in caplog.text


def load_tiny(tmp_path: Path) -> Any:
    from rrm_lm.models.pretrained import load_causal_lm

    return load_causal_lm(str(tmp_path / "base"))


def test_peft_reads_the_members(tmp_path: Path) -> None:
    model, folder = saved(tmp_path)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=4).eval()
    members = output_of(model).members
    for line, own in zip(lines_of(), members, strict=True):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([line.ids[: line.reward_at + 1]])).logits[0]
        torch.testing.assert_close(logits, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_the_merged_checkpoint_is_the_mean(combine: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, ensemble=combine)
    merge_reward_model(folder, tmp_path / "merged", tiny_tokenizer())
    theirs = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "merged")).eval()
    assert theirs.config.num_labels == 1 and theirs.score.weight.shape == (1, 32)
    assert load_file(tmp_path / "merged" / "model.safetensors")["score.weight"].shape == (1, 32)
    for line, own in zip(lines_of(), output_of(model).members.mean(-1), strict=True):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([line.ids[: line.reward_at + 1]])).logits[0]
        torch.testing.assert_close(logits, own[None], atol=2e-5, rtol=1e-5)
    settings = read_settings(tmp_path / "merged")
    assert settings is not None and settings.ensemble_heads == 1
    scorer = load_scorer(str(tmp_path / "merged"))
    assert len(scorer.score([PROMPT], [RESPONSES])[0]) == 4


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    with pytest.raises(CheckpointError, match="no scalar head for this model") as caught:
        ensemble_of(3).load_adapter_state(folder)
    assert "(3, 32)" in str(caught.value)


# -- where rewards are used -----------------------------------------------------------------------------------------


def test_a_scorer_tells_the_disagreement(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, ensemble="min")
    output = output_of(model)
    scorer = load_scorer(str(folder))
    (rewards,) = scorer.score([PROMPT], [[*RESPONSES, ""]])
    assert rewards[:4] == pytest.approx(output.rewards.tolist(), abs=1e-5)
    stds = [reward.std for reward in rewards if isinstance(reward, EnsembleReward)]
    assert stds[:4] == pytest.approx(output.members.std(-1, correction=0).tolist(), abs=1e-5)
    assert math.isnan(rewards[4])
    (others,) = load_scorer(str(folder), ensemble="mean").score([PROMPT], [RESPONSES])
    assert others == pytest.approx(output.members.mean(-1).tolist(), abs=1e-5)
    found = RewardSum([ScorerReward(scorer, "mine")])([PROMPT] * 4, RESPONSES, lines_of())["mine"]
    assert disagreement(found) == pytest.approx(sum(stds[:4]) / 4)


def test_a_members_critiques_are_averaged_before_members_are_combined() -> None:
    """Two critiques of one response, read by two members: 1 and 3 (mean 2), 4 and 0 (mean 2). The minimum is 2."""
    scorer = RewardScorer(ensemble_of(2, ensemble="min"), tiny_chat())
    lines = lines_of()
    assert scorer._combined([lines[:2], [], lines[2:3]], [[1.0, 4.0], [3.0, 0.0], [5.0, 6.0]]) == [
        2.0,
        pytest.approx(math.nan, nan_ok=True),
        5.0,
    ]


@pytest.mark.parametrize("heads", [1, 4])
def test_the_reward_on_the_policys_backbone(heads: int, precision: Precision) -> None:
    """It reads lines in any order and company, and leaves the mode as it was."""
    model = ensemble_of(heads, ensemble="min")
    output = output_of(model)
    model.train()
    lines = lines_of()
    order = [2, 0, 3, 1]
    for tokens in (4096, 10):
        found = AdapterReward(model, micro_batch_tokens=tokens).score_lines([lines[i] for i in order])
        precision.close(found, output.rewards[order])
        assert (disagreement(found) is not None) == (heads > 1)
    assert model.training and model.backbone.training
