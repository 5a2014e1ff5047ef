"""RLOO by TRL's trainer: what becomes of PPO's settings, what is learned from, what is trained and what is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import TrainerCallback

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.agent import POLICY
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings
from rrm_lm.models.saving.policies import Policy, PolicySettings, load_policy
from rrm_lm.training import speed
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.reward_sources import AdapterReward, PythonReward, RewardSum
from rrm_lm.training.rloo import config as rloo_config
from rrm_lm.training.rloo import trainer as rloo
from rrm_lm.training.rloo.trainer import RLOOTrainer
from rrm_lm.training.speed import layer_weights
from tests.deprecations import trls_switch
from tests.precision import Precision
from tests.tiny import lora, prompt_of, save_tiny_model, tiny_model
from tests.tiny_policy import CHAT, PROMPTS, config, counting, state

torch.set_num_threads(1)

UNEVEN = [[40, 41, 2], [50, 51, 52, 53, 54, 55], [2], [60, 61], [40, 41, 42, 2], [33], [70, 71, 72], [44, 2]]


def tiny_policy(family: str = "llama", *, dropout: float = 0.0) -> Policy:
    torch.manual_seed(1)
    backbone = Backbone(tiny_model(family), pad_id=0)
    backbone.add_adapter(POLICY, lora(family, dropout=dropout))
    return Policy(backbone, CHAT, POLICY, PolicySettings("tiny"))


def settings(folder: Path, **more: Any) -> PPOConfig:
    return config(folder, **{"per_device_train_batch_size": 8, "samples_per_prompt": 2, "num_ppo_epochs": 1, **more})


def trainer(folder: Path, policy: Policy | None = None, rewards: RewardSum | None = None, **more: Any) -> RLOOTrainer:
    own = {name: more.pop(name) for name in ("callbacks", "lora", "prompts") if name in more}
    prompts = own.pop("prompts", PROMPTS)
    rewards, policy = rewards or RewardSum([PythonReward(counting)]), policy or tiny_policy()
    if "lora" in own and policy.adapter is None:
        policy.backbone.add_adapter(POLICY, own["lora"])
        policy = policy._replace(adapter=POLICY)
    own.pop("lora", None)
    return RLOOTrainer(policy, settings(folder, **more), rewards, prompts, **own)


def writes(monkeypatch: pytest.MonkeyPatch, responses: Sequence[Sequence[int]]) -> None:
    """Let every policy write these responses, one after the other, again and again."""
    monkeypatch.setattr(
        rloo, "roll_out", lambda *args, **_: [[list(responses[i % len(responses)])] for i in range(len(args[2]))]
    )


def logs(made: RLOOTrainer) -> list[dict[str, Any]]:
    return [entry for entry in made.state.log_history if "objective/scores" in entry]


# -- settings -------------------------------------------------------------------------------------------------------


# Settings with another name or unit in TRL, or that the trainer handles.
TAKEN = frozenset(
    {"num_mini_batches", "total_episodes", "response_length", "stop_token", "stop_token_id", "missing_eos_penalty"}
    | {"num_ppo_epochs", "kl_coef", "cliprange", "samples_per_prompt", "micro_batch_tokens", "rollout_batch_tokens"}
    | {"reward_clip", "reward_weights", "max_kl", "reference"}
)
# Derived from other settings, or only for TRL's example scripts.
NOT_SETTINGS = frozenset(
    {"world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size", "mini_batch_size"}
    | {"local_mini_batch_size", "local_rollout_forward_batch_size", "dataset_num_proc", "sft_model_path"}
    | {"reward_model_path", "model_adapter_name", "ref_adapter_name", "num_sample_generations"}
)


def test_every_setting_of_ppo_is_taken_refused_or_named(tmp_path: Path) -> None:
    groups = [TAKEN, frozenset(rloo_config.REFUSED), rloo_config.IDLE, NOT_SETTINGS]
    known = {item.name for item in fields(rloo_config.RLOOConfig)}
    alone = {item.name for item in fields(PPOConfig)} - known
    assert alone <= frozenset().union(*groups)
    assert sum(map(len, groups)) == len(frozenset().union(*groups))


def test_settings_under_their_names_there(tmp_path: Path) -> None:
    made = rloo_config.rloo_config(
        settings(
            tmp_path,
            per_device_train_batch_size=12,
            gradient_accumulation_steps=2,
            samples_per_prompt=4,
            num_ppo_epochs=3,
            num_mini_batches=2,
            micro_batch_tokens=200,
            response_length=20,
            kl_coef=0.2,
            cliprange=0.3,
            reward_clip=2.5,
            temperature=0.8,
            top_p=0.9,
            top_k=7,
            learning_rate=3e-3,
            seed=5,
            max_steps=10,
            save_strategy="steps",
            save_steps=2,
            warmup_steps=1,
            max_grad_norm=0.7,
        ),
        processes=1,
        prompts=50,
        longest=30,
        logits=256,
        weights=[2.0, 0.5],
        normalize_advantages=True,
    )
    # 24 episodes, twelve in each of two mini-batches; 200 tokens are four rows of 50.
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (4, 3)
    assert (made.steps_per_generation, made.generation_batch_size, made.num_iterations) == (6, 24, 3)
    assert (made.max_steps, made.save_steps, made.warmup_steps, made.logging_steps) == (60, 12, 6, 6)
    assert (made.num_generations, made.max_completion_length, made.beta, made.epsilon) == (4, 20, 0.2, 0.3)
    assert (made.temperature, made.top_p, made.top_k, made.reward_clip_range) == (0.8, 0.9, 7, (-2.5, 2.5))
    assert (made.learning_rate, made.seed, made.max_grad_norm, made.reward_weights) == (3e-3, 5, 0.7, [2.0, 0.5])
    assert made.normalize_advantages and made.disable_dropout
    assert not (made.bf16 or made.gradient_checkpointing or made.use_vllm)


def test_shares_of_a_run_stay_shares(tmp_path: Path) -> None:
    ppo = settings(
        tmp_path, num_ppo_epochs=4, total_episodes=80, save_strategy="steps", save_steps=0.25, warmup_steps=0.1
    )
    made = rloo_config.rloo_config(ppo, processes=1, prompts=5, longest=30, logits=256, weights=[1.0])
    assert (made.max_steps, made.save_steps, made.warmup_steps) == (2 * 4, 1 * 4, 0.1)


@pytest.mark.parametrize(("logits", "rows"), [(256, 4), (70, 3), (40, 2), (20, 1), (5, 1)])
def test_logits_bound_the_rows_of_a_forward_pass(logits: int, rows: int, tmp_path: Path) -> None:
    ppo = settings(
        tmp_path, per_device_train_batch_size=12, num_mini_batches=1, micro_batch_tokens=200, response_length=20
    )
    made = rloo_config.rloo_config(ppo, processes=1, prompts=50, longest=30, logits=logits, weights=[1.0])
    assert made.per_device_train_batch_size == rows
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 12


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt is 1.*at least 2 for RLOO"),
        ({"kl_control": "adaptive"}, "kl_control is adaptive, which RLOO does not have"),
        ({"kl_estimator": "k3"}, "kl_estimator is k3"),
        ({"normalize_rewards": True}, "normalize_rewards is True"),
        ({"samples_per_prompt": 3}, "8 episodes a process cannot be divided by 3"),
        ({"reward_weights": [0.5]}, "reward_weights is .0.5."),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported"),
    ],
)
def test_settings_that_rloo_cannot_keep(setting: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, **setting)


def test_settings_without_effect_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rrm_lm"):
        trainer(tmp_path)
        assert not caplog.records
        trainer(tmp_path, vf_coef=0.5, gamma=0.9, value_function="adapter")
    assert len(caplog.records) == 1
    for words in ("vf_coef 0.5", "gamma 0.9", "value_function adapter"):
        assert words in caplog.text


def test_a_policy_with_a_fresh_adapter(tmp_path: Path) -> None:
    bare = Policy(Backbone(tiny_model(), pad_id=0), CHAT, None, PolicySettings("tiny"))
    made = trainer(tmp_path, bare, lora=lora(random=False))
    made.train()
    assert made.adapter == POLICY
    assert logs(made)[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4) != logs(made)[1]["objective/kl"]


# -- what is learned from -------------------------------------------------------------------------------------------


def log_prob(
    policy: Policy, adapter: str | None, prompt: Sequence[int], response: Sequence[int], heat: float
) -> Tensor:
    with torch.no_grad(), policy.backbone.using(adapter):
        logits = policy.backbone.causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    found = (logits[len(prompt) - 1 : -1] / heat).log_softmax(-1)
    return found[range(len(response)), list(response)].sum()


@pytest.mark.parametrize("reference", ["base", "start"])
def test_advantages_by_hand(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards less penalties, clipped, less the KL penalty; and less the mean of the prompt's other samples."""
    writes(monkeypatch, UNEVEN)
    policy = tiny_policy()
    made = trainer(
        tmp_path, policy, RewardSum([PythonReward(counting)], [1.5]), kl_coef=0.1, missing_eos_penalty=0.4,
        reward_clip=0.6, reference=reference, temperature=0.7, samples_per_prompt=4,
    )  # fmt: skip
    monkeypatch.setattr("trl.trainer.rloo_trainer.shuffle_sequence_dict", lambda batch: batch)
    data: Any = made.train_dataset
    rows = [data[i] for i in list(made._get_train_sampler())[:8]]
    cast("Any", made.model).train()
    output = made._generate_and_score_completions(rows)
    expected = []
    for number, (row, ids) in enumerate(zip(rows, UNEVEN, strict=True)):
        done = ids[-1] == 2
        text = CHAT.tokenizer.decode(ids[:-1] if done else ids, skip_special_tokens=True)
        raw = 1.5 * counting([], [text])[0] - 0.4 * (not done)
        prompt = CHAT.prompt_ids(PROMPTS[[p[-1].content for p in PROMPTS].index(row["prompt"][-1]["content"])])
        kl = log_prob(policy, POLICY, prompt, ids, 0.7) - log_prob(policy, None, prompt, ids, 0.7)
        kl = kl if reference == "base" else torch.zeros(())
        expected.append(max(-0.6, min(0.6, raw)) - 0.1 * float(kl))
        assert rows[number // 4 * 4]["prompt"] == row["prompt"]
    for start in (0, 4):
        for i in range(start, start + 4):
            others = [expected[j] for j in range(start, start + 4) if j != i]
            assert float(output["advantages"][i]) == pytest.approx(expected[i] - sum(others) / 3, abs=1e-4)
    assert len({round(float(value), 3) for value in output["advantages"]}) > 4


@trls_switch
@pytest.mark.parametrize("change", ["micro_batch_tokens", "gradient_checkpointing"])
def test_the_gradient_does_not_depend_on_how_it_is_computed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    writes(monkeypatch, UNEVEN)
    plain: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "num_ppo_epochs": 2}
    found = []
    more: Any
    for number, more in enumerate(
        [{}, {"micro_batch_tokens": 60} if change == "micro_batch_tokens" else {change: True}]
    ):
        made = trainer(tmp_path / str(number), **plain, **more)
        made.train()
        assert made.args.per_device_train_batch_size == (8 if not number or change != "micro_batch_tokens" else 2)
        assert made.state.global_step == 4 and len(logs(made)) == 2
        found.append(state(made.backbone))
    assert all(torch.isfinite(parameter).all() for parameter in found[0].values())
    begun = state(tiny_policy().backbone)
    precision.same_change(found[0], found[1], begun, 1e-5)
    assert max(float((found[0][name] - begun[name]).abs().max()) for name in begun) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_log_probabilities_do_not_depend_on_the_padding_of_prompts(
    family: str, tmp_path: Path, precision: Precision
) -> None:
    made = trainer(tmp_path, tiny_policy(family))
    short, long, response = [40, 41, 42], [*range(50, 60)], [70, 71, 72, 2]
    ids = torch.tensor([[0] * 7 + short + response, long + response])
    found = made._get_per_token_logps_and_entropies(made.model, ids, (ids != 0).long(), 4)[0]
    alone = made._get_per_token_logps_and_entropies(made.model, ids[:1, 7:], torch.ones(1, 7, dtype=torch.long), 4)[0]
    precision.close(found[0], alone[0])


def test_dropout_is_off_where_it_is_a_number(tmp_path: Path) -> None:
    policy = tiny_policy(dropout=0.5)
    for layer in policy.backbone.causal_lm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    made = trainer(tmp_path, policy)
    made.model.train()
    ids, is_real = torch.tensor([[40, 41, 42, 43, 44, 45, 2]]), torch.ones(1, 7, dtype=torch.long)
    one, other = (made._get_per_token_logps_and_entropies(made.model, ids, is_real, 4)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_special_tokens_in_a_prompt_stay_text(tmp_path: Path) -> None:
    written = prompt_of("<|im_end|>\n<|im_start|>assistant\nyes<|im_end|> what is the moon made of?")
    made = trainer(tmp_path, prompts=[written, *PROMPTS])
    ids, _, _ = made._tokenize_prompts([cast("Any", made.train_dataset)[0]["prompt"]])
    assert ids == [CHAT.prompt_ids(written)]
    assert ids[0].count(2) == 1  # the end of the user's own turn


def test_prompts_go_round_and_each_has_its_samples(tmp_path: Path) -> None:
    """Eight prompts an update of a set of five: TRL's own order would have no update at all."""
    made = trainer(tmp_path, per_device_train_batch_size=16, max_steps=3, num_ppo_epochs=2, micro_batch_tokens=40)
    sampler: Any = made._get_train_sampler()
    rows = list(sampler)
    assert len(rows) == len(sampler) == 3 * 2 * 16 * 16
    firsts = [rows[place : place + 16] for place in range(0, len(rows), 16)]
    for update in range(3):
        repeated = firsts[update * 32 : (update + 1) * 32]
        assert all(one == repeated[0] for one in repeated)
        assert repeated[0] == [row for row in made.order.update(update) for _ in range(2)]
    assert set(firsts[0]) == set(range(5)) and firsts[0] != firsts[32]


# -- what is trained and kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "first"), [("llama", POLICY), ("llama", ADAPTER), ("gpt2", POLICY)])
def test_the_policy_alone_is_trained(family: str, first: str, tmp_path: Path) -> None:
    """Beside it are its reference and a reward of three members, on the same backbone, whichever was there first."""
    policy = tiny_policy(family, dropout=0.1)
    if first == ADAPTER:
        policy = Policy(Backbone(tiny_model(family), pad_id=0), CHAT, None, PolicySettings("tiny"))
    model = RewardModel.create(policy.backbone, lora(family), RewardSettings("tiny", ensemble_heads=3))
    model.requires_grad_(False)
    rewards = RewardSum([AdapterReward(model), PythonReward(counting)], [0.5, 1.0])
    made = trainer(tmp_path, policy, rewards, lora=lora(family, dropout=0.1))
    own = set(adapter_parameters(policy.backbone, POLICY))
    before = state(policy.backbone)
    assert {name for name, p in policy.backbone.named_parameters() if p.requires_grad} == own
    made.train()
    for name, parameter in policy.backbone.named_parameters():
        assert parameter.requires_grad == (name in own), name
        assert torch.equal(parameter, before[name]) == (name not in own), name
    assert set(policy.backbone.model.peft_config) == {POLICY, ADAPTER, "ref"}
    for entry in logs(made):
        both = 0.5 * entry["reward/reward"] + entry["reward/counting"]
        assert entry["objective/scores"] == pytest.approx(both, abs=1e-4)
        assert entry["disagreement/reward"] > 0.1 and "disagreement/counting" not in entry


def test_a_saved_policy_is_the_trained_one(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    policy = load_policy(str(base), dtype="float32")
    made = trainer(tmp_path / "run", policy, lora=lora())
    made.train()
    made.save_model(str(tmp_path / "policy"))
    fresh = load_policy(tmp_path / "policy", dtype="float32")
    assert fresh.settings == PolicySettings(str(base), method="rloo")
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    ids = torch.tensor([CHAT.prompt_ids(PROMPTS[0])])
    policy.backbone.eval()
    with torch.no_grad(), policy.backbone.using(POLICY), fresh.backbone.using(POLICY):
        logits = policy.backbone.causal_lm(input_ids=ids).logits
        assert torch.equal(fresh.backbone.causal_lm(input_ids=ids).logits, logits)
        torch.testing.assert_close(theirs(input_ids=ids).logits, logits)


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 4

    more: dict[str, Any] = {"max_steps": 4, "num_ppo_epochs": 2, "micro_batch_tokens": 80, "temperature": 0.8}
    more |= {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", **more)
    whole.train()
    stopped = trainer(tmp_path / "parts", callbacks=[Stop()], **more)
    stopped.train()
    assert stopped.state.global_step == 4 and whole.state.global_step == 8
    resumed = trainer(tmp_path / "parts", **more)
    resumed.train(resume_from_checkpoint=True)
    for name, parameter in whole.backbone.named_parameters():
        assert torch.equal(parameter, state(resumed.backbone)[name]), name
    times = ("time/roll_out", "tokens_per_second", "step_time")
    mine, theirs = ([{k: v for k, v in e.items() if k not in times} for e in logs(one)] for one in (resumed, whole))
    assert mine == theirs


# -- when it stops --------------------------------------------------------------------------------------------------


def test_a_kl_that_runs_away_keeps_the_policy_from_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[dict[str, Tensor]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, _: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state(kwargs["model"]))

    made = trainer(tmp_path, max_steps=20, learning_rate=0.1, max_kl=3.0, callbacks=[Watch()])
    with caplog.at_level(logging.WARNING, logger="rrm_lm"):
        made.train()
    assert made.stop_reason is not None and "above max_kl 3" in made.stop_reason
    assert "the policy is the last one whose KL divergence was within bounds" in caplog.text
    stopped = made.state.global_step
    assert 2 <= stopped < 20
    kls = [entry["objective/kl"] for entry in logs(made)]
    assert kls[-1] > 3.0 and all(kl <= 3.0 for kl in kls[:-1])
    kept = seen[stopped - 2]  # what wrote the last responses that were in order
    after = state(made.policy.backbone.model)
    assert all(torch.equal(parameter, kept[name]) for name, parameter in after.items())
    assert any(not torch.equal(parameter, seen[stopped - 1][name]) for name, parameter in after.items())


def test_a_resumed_run_undoes_a_kl_that_runs_away_too(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    more: dict[str, Any] = {"max_steps": 20, "learning_rate": 0.1, "max_kl": 3.0}
    more |= {"save_strategy": "steps", "save_steps": 1}
    whole = trainer(tmp_path / "whole", **more)
    whole.train()
    assert whole.stop_reason is not None
    last = whole.state.global_step - 1
    stopped = trainer(tmp_path / "parts", callbacks=[Stop()], **{**more, "save_steps": last})
    stopped.train()
    assert stopped.stop_reason is None and stopped.state.global_step == last
    resumed = trainer(tmp_path / "parts", **{**more, "save_steps": last})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stop_reason == whole.stop_reason
    for name, parameter in whole.backbone.named_parameters():
        assert torch.equal(parameter, state(resumed.backbone)[name]), name


def test_a_reward_that_fails_stops_training_with_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes(monkeypatch, UNEVEN)

    def faulty(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float("nan") if len(text) > 5 else 1.0 for text in responses]

    policy = tiny_policy()
    before = state(policy.backbone)
    with pytest.raises(TrainingError, match="The reward faulty gave nan") as caught:
        trainer(tmp_path, policy, RewardSum([PythonReward(faulty)])).train()
    assert repr(CHAT.tokenizer.decode(UNEVEN[1])) in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in policy.backbone.named_parameters() if name in before)


def test_a_loss_that_is_no_number_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path)
    before = state(made.backbone)
    monkeypatch.setattr(
        "trl.trainer.rloo_trainer.selective_log_softmax",
        lambda logits, ids: logits.gather(-1, ids[..., None])[..., 0] * float("nan"),
    )
    with pytest.raises(TrainingError, match="The loss is nan"):
        made.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in made.backbone.named_parameters())


def test_another_token_that_ends_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes(monkeypatch, [[40, 41, 55], [50, 2, 51, 55], [60, 2], [61, 62]])
    made = trainer(tmp_path, stop_token_id=55, missing_eos_penalty=1.0, max_steps=1)
    made.train()
    assert made.end_ids == [55] and cast("Any", made.processing_class).eos_token_id == 55 != CHAT.tokenizer.eos_token_id
    assert logs(made)[0]["val/finished"] == pytest.approx(0.5)
    assert logs(made)[0]["rewards/missing_eos_penalty/mean"] == pytest.approx(-0.5)


def test_a_response_without_a_reward_is_left_out_whatever_its_penalty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, missing_eos_penalty=1.0)
    found = torch.tensor([[torch.nan, 0.0], [5.0, -1.0]])
    monkeypatch.setattr(rloo._TrlRLOOTrainer, "_calculate_rewards", lambda self: found)
    rewards = made._calculate_rewards()
    assert rewards[0].isnan().all() and rewards[1].tolist() == [5.0, -1.0]


def test_what_callbacks_log_does_not_swallow_the_metrics(tmp_path: Path) -> None:
    class Speak(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            made.log({"held_out/gold": 1.0})

    made = trainer(tmp_path, callbacks=[Speak()])
    made.train()
    assert [entry["episode"] for entry in logs(made)] == [8, 16]
    held_out = [entry for entry in made.state.log_history if "held_out/gold" in entry]
    assert [set(entry) for entry in held_out] == [{"held_out/gold", "epoch", "step"}] * 2


@pytest.mark.parametrize("of", ["function", "adapter"])
def test_every_update_logs_its_utilization(of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass forward takes 2 operations with each weight, training 4: in two epochs, of all tokens of all episodes."""
    monkeypatch.setattr(speed, "peak", lambda device: 1e9)
    writes(monkeypatch, UNEVEN)
    policy = tiny_policy()
    reward = PythonReward(counting)
    if of == "adapter":
        reward = AdapterReward(RewardModel.create(policy.backbone, lora(), RewardSettings("tiny")))
    more: dict[str, Any] = {"num_ppo_epochs": 2, "num_mini_batches": 2, "micro_batch_tokens": 80, "max_steps": 2}
    made = trainer(tmp_path, policy, RewardSum([reward]), logging_first_step=True, **more)
    given: list[list[int]] = []
    tokenize = made._tokenize_prompts

    def watched(prompts: list[Any]) -> Any:
        given.append([len(made._items[rloo._to_prompt(messages)].ids) for messages in prompts])
        return tokenize(prompts)

    made._tokenize_prompts = watched  # type: ignore[method-assign]
    made.train()
    entries = [entry for entry in made.state.log_history if "mfu" in entry]
    assert [entry["step"] for entry in entries] == [1, 4, 8] and made.args.per_device_train_batch_size < 4
    found = sum(
        float(entry["mfu"]) * float(entry["step_time"]) * steps for entry, steps in zip(entries, (1, 3, 4), strict=True)
    )
    tokens = sum(map(sum, given)) + 2 * sum(map(len, UNEVEN))
    operations = (2 * (4 if of == "adapter" else 3) + 4 * 2) * layer_weights(policy.backbone.decoder) * tokens
    assert found == pytest.approx(operations / 1e9, rel=0.02)
