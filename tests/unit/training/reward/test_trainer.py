"""What a step changes, what it must not depend on, and what is logged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.errors import ConfigError
from rrm_lm.models.reward import RewardModel, RewardOutput
from rrm_lm.text.batching import collate, share
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, LinePair, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.precision import Precision
from tests.tiny import comparison, critique, rating, some_comparisons, tiny_reward_model
from tests.tiny_training import (
    CHAT,
    MIXED,
    config,
    examples,
    furthest,
    log_sigmoid,
    logs,
    mixed,
    plain_steps,
    state,
    trained,
)

torch.set_num_threads(1)

# -- what a step changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "gpt2"])
def test_adapter_and_head_change_and_nothing_else(family: str, tmp_path: Path, precision: Precision) -> None:
    model = tiny_reward_model(family, random=False)  # as real training starts: B is zero, so A moves from step 2
    before = state(model)
    trained(config(tmp_path), model=model)
    learned = {name for name in before if "lora_" in name or name == "head.weight"}
    assert len(learned) > 10
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in learned)
        assert torch.equal(parameter, before[name]) != (name in learned), name


def test_one_step_by_the_definition(tmp_path: Path, precision: Precision) -> None:
    """One step of gradient descent against the losses written out, line by line and without any batching."""
    model = tiny_reward_model()
    before = state(model)
    settings = {
        "critique_weight": 0.7,
        "sft_weight": 0.4,
        "rating_weight": 0.3,
        "center_rewards_coefficient": 0.05,
        "label_smoothing_factor": 0.1,
    }
    data = mixed(model)
    pairs, ratings, nlls, written = [], [], [], []
    for example in data:
        outputs = [model(collate([share([line.ids])], 0), [line], written=[0]) for line in example.lines]
        rewards = torch.cat([output.rewards for output in outputs])
        nlls += [output.critique_nll for output in outputs]
        written += [outputs[number].response_nll for number in {pair.chosen for pair in example.pairs}]
        for pair in example.pairs:
            win = torch.sigmoid(rewards[pair.chosen] - rewards[pair.rejected])
            centre = (rewards[pair.chosen] + rewards[pair.rejected]) ** 2
            pairs.append(-0.9 * win.log() - 0.1 * (1 - win).log() + 0.05 * centre)
        for line, value in example.ratings:
            good = torch.sigmoid(rewards[line])
            ratings.append(-value * good.log() - (1 - value) * (1 - good).log())
    assert (len(pairs), len(ratings)) == (10, 4)
    loss = torch.stack(pairs).mean() + 0.3 * torch.stack(ratings).mean() + 0.7 * torch.cat(nlls).mean()
    loss = loss + 0.4 * torch.cat(written).mean()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    expected = before | {name: before[name] - 0.02 * g for name, g in zip(names, gradients, strict=True)}

    trainer = trained(
        plain_steps(tmp_path, max_steps=1, per_device_train_batch_size=MIXED, **settings),
        make=lambda _: data,
        model=model,
    )
    assert furthest(state(model), before) > 1e-2
    precision.same_change(state(model), expected, before, 1e-6)
    precision.close([logs(trainer)[0]["loss"]], [float(loss.detach())])


# -- what must not matter -------------------------------------------------------------------------------------------


def test_a_batch_is_the_sum_of_its_accumulated_parts(tmp_path: Path, precision: Precision) -> None:
    """Items (pairs, ratings, critique tokens) are unevenly spread, so averages of averages would differ."""
    one = trained(plain_steps(tmp_path / "8", per_device_train_batch_size=8, max_steps=3))
    many = trained(
        plain_steps(tmp_path / "1", per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=3)
    )
    assert one.state.max_steps == many.state.max_steps == 3
    assert furthest(state(one.model), state(tiny_reward_model())) > 1e-2
    precision.same_change(state(one.model), state(many.model), state(tiny_reward_model()), 2e-6)
    for mine, theirs in zip(logs(one), logs(many), strict=True):
        for name in ("loss", "loss_pairs", "loss_ratings", "loss_critiques", "accuracy", "margin"):
            bound = precision.bound(1e-4)
            assert mine.get(name) == pytest.approx(theirs.get(name), rel=bound, abs=2 * bound), name
        assert mine["tokens"] == theirs["tokens"]


@pytest.mark.parametrize("change", ["budget", "sharing", "activation_checkpointing"])
def test_the_result_does_not_depend_on_how_it_is_computed(change: str, tmp_path: Path, precision: Precision) -> None:
    usual = trained(plain_steps(tmp_path / "a", micro_batch_tokens=2048))
    other, more = tiny_reward_model(sharing=False if change == "sharing" else None), {}
    if change == "budget":
        more = {"micro_batch_tokens": 1}
    elif change == "activation_checkpointing":
        more = {"activation_checkpointing": True}
    changed = trained(plain_steps(tmp_path / "b", **{"micro_batch_tokens": 2048, **more}), model=other)
    assert furthest(state(usual.model), state(tiny_reward_model())) > 1e-2
    names = dict(zip(state(usual.model), state(other).values(), strict=True))
    precision.same_change(state(usual.model), names, state(tiny_reward_model()), 2e-6)
    if change == "sharing":
        assert logs(changed)[0]["tokens"] > logs(usual)[0]["tokens"]  # it was off, and took longer


def test_micro_batches_keep_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    forward = RewardModel.forward

    def watched(self: RewardModel, batch: Any, *args: Any, **kwargs: Any) -> RewardOutput:
        shapes.append(batch.input_ids.shape)
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "forward", watched)
    trained(plain_steps(tmp_path, per_device_train_batch_size=MIXED, max_steps=1, micro_batch_tokens=200))
    assert len(shapes) > 2
    assert all(rows * width <= 200 for rows, width in shapes)
    assert any(rows > 1 for rows, _ in shapes)


# -- kinds of feedback ----------------------------------------------------------------------------------------------


def test_ratings_only(tmp_path: Path) -> None:
    def make(model: RewardModel) -> list[RewardExample]:
        good = [rating(f"the sea {n}?", "yes the moon", 0.9, row=n) for n in range(4)]
        bad = [rating(f"the sea {n}?", "no", 0.2, row=n + 4) for n in range(4)]
        return ExampleBuilder(CHAT, model.backbone).responses((), good + bad)

    trainer = trained(config(tmp_path, max_steps=30, per_device_train_batch_size=8), make=make)
    first, last = logs(trainer)[0], logs(trainer)[-1]
    entropy = -sum(p * math.log(p) for p in (0.9, 0.1, 0.2, 0.8)) / 2
    assert entropy <= last["loss_ratings"] < entropy + 0.02 < first["loss_ratings"]
    assert "loss_pairs" not in last and "loss_critiques" not in last and "accuracy" not in last


def test_critiques_only(tmp_path: Path) -> None:
    def make(model: RewardModel) -> list[RewardExample]:
        said = [critique(f"the sea {n}?", "the moon", "too long and not clear", row=n) for n in range(4)]
        return ExampleBuilder(CHAT, model.backbone).responses(said, ())

    model = tiny_reward_model()
    head = model.head.weight.detach().clone()
    trainer = trained(config(tmp_path, max_steps=15), make=make, model=model)
    assert logs(trainer)[-1]["loss_critiques"] < 0.5 * logs(trainer)[0]["loss_critiques"]
    assert "loss_pairs" not in logs(trainer)[0]
    assert torch.equal(model.head.weight, head)  # a critique by itself says nothing about how rewards are read


def test_critique_weight_schedule(tmp_path: Path) -> None:
    trainer = trained(
        config(tmp_path, max_steps=4, critique_weight=0.0, critique_weight_end=0.8, per_device_train_batch_size=MIXED,
               rating_weight=0.0)
    )  # fmt: skip
    # At weight 0 it is not even computed.
    assert ["loss_critiques" in entry for entry in logs(trainer)] == [False, True, True, True]
    for step, entry in enumerate(logs(trainer)):
        expected = entry["loss_pairs"] + 0.2 * step * entry.get("loss_critiques", 0.0)
        assert entry["loss"] == pytest.approx(expected, abs=2e-4)
    trainer.state.global_step = 400
    assert trainer.critique_weight == 0.8
    assert RewardTrainer(
        tiny_reward_model(), config(tmp_path, critique_weight=0.3), mixed(trainer.model)
    ).critique_weight == 0.3  # fmt: skip


def test_critiques_only_at_weight_zero_does_nothing(tmp_path: Path) -> None:
    """A micro-batch without anything to learn from must not break the step."""

    def make(model: RewardModel) -> list[RewardExample]:
        return ExampleBuilder(CHAT, model.backbone).responses([critique("the sea?", "the moon", "too long")], ())

    trainer = trained(plain_steps(tmp_path, critique_weight=0.0, critique_weight_end=0.5, max_steps=1), make=make)
    assert furthest(state(trainer.model), state(tiny_reward_model())) == 0
    assert logs(trainer)[0]["loss"] == 0.0


# -- logging and held-out metrics -----------------------------------------------------------------------------------


def test_what_is_logged(tmp_path: Path) -> None:
    model = tiny_reward_model()
    data = mixed(model)
    settings = {"critique_weight": 0.5, "rating_weight": 2.0, "per_device_train_batch_size": len(data)}
    trainer = trained(config(tmp_path, **settings, max_steps=2, logging_steps=2), make=lambda _: data, model=model)
    (entry,) = logs(trainer)
    assert {"loss", "loss_pairs", "loss_ratings", "loss_critiques", "accuracy", "margin", "tokens", "grad_norm",
            "learning_rate", "epoch", "step"} <= entry.keys()  # fmt: skip
    parts = entry["loss_pairs"] + 2.0 * entry["loss_ratings"] + 0.5 * entry["loss_critiques"]
    assert entry["loss"] == pytest.approx(parts, abs=3e-4)
    assert entry["tokens"] == 2 * sum(len(row) for example in data for row in example.rows)
    assert 0.0 <= entry["accuracy"] <= 1.0
    assert logs(trainer, "train_loss")[0]["train_loss"] == pytest.approx(entry["loss"])


def test_each_entry_is_about_its_own_steps(tmp_path: Path) -> None:
    trainer = trained(config(tmp_path, max_steps=3, per_device_train_batch_size=MIXED))
    tokens = [entry["tokens"] for entry in logs(trainer)]
    assert len(set(tokens)) == 1 and tokens[0] > 0


def test_held_out_metrics(tmp_path: Path) -> None:
    model = tiny_reward_model()
    builder = ExampleBuilder(CHAT, model.backbone)
    data = builder.comparisons(some_comparisons(9))
    data[:3] = [replace(e, pairs=(LinePair(e.pairs[0].rejected, e.pairs[0].chosen),)) for e in data[:3]]
    tie = examples(model, [comparison("the sea?", "yes", "no", row=50)])[0]
    tie = replace(tie, rows=(share([tie.lines[0].ids] * 2),), lines=(tie.lines[0],) * 2)
    unpaired = builder.responses((), [rating("the sea?", "yes", 0.5)])
    trainer = trained(config(tmp_path), model=model, eval_dataset=[*data, tie, *unpaired])
    metrics = trainer.evaluate()
    model.eval()
    margins, losses = [], []
    with torch.no_grad():
        for example in [*data, tie]:
            chosen, rejected = (
                float(model(collate([share([line.ids])], 0), [line]).rewards)
                for line in (example.lines[example.pairs[0].chosen], example.lines[example.pairs[0].rejected])
            )
            margins.append(chosen - rejected)
            losses.append(-log_sigmoid(chosen - rejected) + 0.01 * (chosen + rejected) ** 2)
    assert margins[-1] == 0 and len({margin > 0 for margin in margins[:-1]}) == 2
    expected = {
        "eval_loss": sum(losses) / 10,
        "eval_accuracy": (sum(margin > 0 for margin in margins) + 0.5) / 10,
        "eval_margin": sum(margins) / 10,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert logs(trainer, "eval_loss")[-1]["eval_loss"] == metrics["eval_loss"]
    assert trainer.evaluate(data[:2], metric_key_prefix="other").keys() >= {"other_loss", "other_accuracy"}
    assert trainer.evaluate(unpaired) == {}


def test_held_out_metrics_leave_training_as_it_was(tmp_path: Path) -> None:
    """Evaluation draws no random numbers, and dropout is on again afterwards."""
    results = []
    for strategy in ("no", "steps"):
        model = tiny_reward_model(dropout=0.3)
        data = examples(model, some_comparisons(8))
        args = config(tmp_path / strategy, eval_strategy=strategy, eval_steps=1, max_steps=3)
        trained(args, make=lambda _, data=data: data, model=model, eval_dataset=data[:3])
        results.append(state(model))
    assert furthest(*results) == 0


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("grades", "sometimes"),
        ("critique_weight", -0.1),
        ("rating_weight", -1.0),
        ("critique_weight_end", -1.0),
        ("center_rewards_coefficient", -0.5),
        ("micro_batch_tokens", 0),
        ("critique_samples", 0),
        ("max_critique_length", 0),
        ("max_length", 0),
        ("grade_scale", 0.0),
        ("label_smoothing_factor", 0.5),
        ("label_smoothing_factor", -0.1),
    ],
)
def test_settings_that_make_no_sense(setting: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **{setting: value})
    assert setting in str(caught.value) and "Expected" in str(caught.value)


def test_defaults() -> None:
    args = RewardConfig(use_cpu=True)
    assert not args.bf16 and not args.logging_nan_inf_filter and not args.remove_unused_columns
    assert args.report_to == [] and args.learns_critiques
    assert not RewardConfig(use_cpu=True, critique_weight=0.0).learns_critiques
    assert RewardConfig(use_cpu=True, critique_weight=0.0, critique_weight_end=0.1).learns_critiques
