"""Rollouts by a server: the same tokens, the current adapter, what is measured, and every way in which it can fail."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, variance
from typing import Any

import pytest
import torch

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.models.agent import POLICY
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward_sources import PythonReward
from tests.precision import Precision
from tests.rollout_server import RolloutServer, rollout_server
from tests.tiny import tiny_model
from tests.tiny_policy import CHAT, PROMPTS, logs, state, tiny_agent, trainer

torch.set_num_threads(1)

IDS = [CHAT.prompt_ids(prompt) for prompt in PROMPTS]
KEY = "sk-rollouts"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RolloutServer]:
    if "precision" in request.fixturenames:
        request.getfixturevalue("precision")  # before the model is made
    with rollout_server() as fake:
        yield fake


def served(folder: Path, server: RolloutServer, agent: Any = None, **more: Any) -> PPOTrainer:
    return trainer(folder, agent, rollouts="server", rollout_url=server.url, **more)


# -- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_tokens_are_those_of_the_own_loop(family: str, tmp_path: Path, precision: Precision) -> None:
    with rollout_server(family) as server:
        made = served(tmp_path, server, tiny_agent(family))
        greedy = Sampling(8, temperature=0.0)
        made.engine.refresh(0)
        found = made.engine.sample(IDS, greedy, end_ids=[2], num_return=1, seed=0, first=0)
        made.engine.release()
    own = made.agent.roll_out(IDS, greedy, end_ids=[2])
    with made.agent.backbone.using(POLICY):
        for prompt, both in zip(IDS, zip(found.ids, own, strict=True), strict=True):
            for (ids,) in both:
                precision.most_likely(made.agent.backbone.causal_lm, prompt, ids)
    assert found.ids == own or precision.dtype != torch.float32
    plain = Backbone(tiny_model(family), pad_id=0)
    assert own != roll_out(plain, None, IDS, greedy, end_ids=[2])  # the adapter matters


def test_samples_depend_on_the_seed_and_the_index_alone(
    tmp_path: Path, server: RolloutServer, precision: Precision
) -> None:
    """Two calls that split the prompts, as two processes do, give the samples of one."""
    engine = served(tmp_path, server).engine
    engine.refresh(0)
    options: dict[str, Any] = {"end_ids": [2], "num_return": 3, "seed": 5}
    whole = engine.sample(IDS, Sampling(6), first=0, **options)
    parts = [
        engine.sample(IDS[:2], Sampling(6), first=0, **options),
        engine.sample(IDS[2:], Sampling(6), first=2, **options),
    ]
    assert whole.ids == [*parts[0].ids, *parts[1].ids]
    other = engine.sample(IDS, Sampling(6), end_ids=[2], num_return=3, seed=6, first=0)
    assert whole.ids != other.ids
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == 2 * len(IDS) and all(0 <= seed < 2**62 for seed in seeds)
    assert all(body["ignore_eos"] and body["n"] == 3 and body["logprobs"] == 0 for body in server.asked)
    engine.release()


def test_every_update_samples_from_the_adapter_of_that_update(
    tmp_path: Path, server: RolloutServer, precision: Precision
) -> None:
    made = served(tmp_path, server, max_steps=3, samples_per_prompt=2, temperature=0.7, top_k=50)
    before = state(made.agent)
    made.train()
    assert [name.split("-update-")[1] for name in server.pushed] == ["0", "1", "2"]
    assert len({name.split("-update-")[0] for name in server.pushed}) == 1
    assert [body["model"] for body in server.asked] == [name for name in server.pushed for _ in range(2)]
    assert server.loaded == []  # each was unloaded
    assert not list(tmp_path.glob(".*"))  # and its folder removed
    for entry in logs(made):
        assert float(entry["rollout/kl"]) < precision.bound(1e-3) ** 2 / 2
        assert float(entry["rollout/ratio_mean"]) == pytest.approx(1.0, abs=precision.bound(1e-4))
        assert float(entry["rollout/ratio_max"]) == pytest.approx(1.0, abs=precision.bound(1e-3))
    changed = {name for name, parameter in made.agent.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in made.agent.named_parameters() if parameter.requires_grad}
    made.train()  # under other names
    assert len(set(server.pushed)) == 6


def test_a_policy_learns_as_much_as_with_the_own_loop(tmp_path: Path, server: RolloutServer) -> None:
    """The means over three seeds differ by less than two standard errors of the seeds."""

    def wanted(prompts: Any, texts: Any) -> list[float]:
        return [float("a" in text) - 0.05 * len(text) for text in texts]

    settings: dict[str, Any] = {
        "max_steps": 25, "per_device_train_batch_size": 32, "samples_per_prompt": 4, "learning_rate": 2e-2,
        "response_length": 4, "kl_coef": 0.0, "rewards": [PythonReward(wanted, "a")],
    }  # fmt: skip
    last: dict[str, list[float]] = {"own": [], "server": []}
    for seed in range(3):
        own = trainer(tmp_path / f"own {seed}", tiny_agent(random=False), seed=seed, **settings)
        other = served(tmp_path / f"server {seed}", server, tiny_agent(random=False), seed=seed, **settings)
        for name, made in (("own", own), ("server", other)):
            made.train()
            scores = [float(entry["reward/a"]) for entry in logs(made)]
            last[name].append(sum(scores[-5:]) / 5)
            assert last[name][-1] > sum(scores[:3]) / 3 + 0.2, scores
    error = (variance(last["own"]) / 3 + variance(last["server"]) / 3) ** 0.5
    assert abs(mean(last["own"]) - mean(last["server"])) <= min(2 * error + 0.01, 0.3), last


# -- the mismatch of engines ------------------------------------------------------------------------------------------


def test_a_server_that_samples_from_an_old_adapter_is_noticed(
    tmp_path: Path, server: RolloutServer, precision: Precision
) -> None:
    """Its answers carry the new name, so only the probabilities tell."""
    server.is_stale = True
    made = served(tmp_path, server, max_steps=4, learning_rate=5e-2, save_strategy="steps", save_steps=1)
    with pytest.raises(TrainingError, match="does not sample from the policy that is trained") as error:
        made.train()
    assert "above max_rollout_mismatch 0.05" in error.value.what and "processed_logprobs" in error.value.remedy
    assert made.state.global_step >= 1  # the first update is right
    newest = newest_verified(tmp_path)
    assert newest is not None and newest.name == f"checkpoint-{made.state.global_step}"


def test_importance_weights_are_capped(tmp_path: Path, server: RolloutServer, precision: Precision) -> None:
    """The server reports half the probability for each token, so every ratio is 2."""

    def halved(reply: dict[str, Any]) -> dict[str, Any]:
        for choice in reply["choices"]:
            numbers = choice["logprobs"]["token_logprobs"]
            choice["logprobs"]["token_logprobs"] = [number - math.log(2) for number in numbers]
        return reply

    server.change = halved
    losses = []
    for cap in (None, 0.5, 4.0):
        made = served(tmp_path / str(cap), server, max_steps=1, rollout_importance_cap=cap, max_rollout_mismatch=None)
        made.train()
        (entry,) = logs(made)
        assert float(entry["rollout/ratio_mean"]) == pytest.approx(2.0, rel=precision.bound(1e-4))
        assert float(entry["rollout/ratio_max"]) == pytest.approx(2.0, rel=precision.bound(1e-3))
        assert float(entry["rollout/kl"]) == pytest.approx(2 - 1 - math.log(2), rel=precision.bound(1e-3))
        losses.append(float(entry["policy/grad_norm"]))
    assert len(set(losses)) == 3
    with pytest.raises(TrainingError, match="max_rollout_mismatch"):
        served(tmp_path / "bound", server).train()


# -- failures ---------------------------------------------------------------------------------------------------------


def first_choice(**changes: Any) -> Any:
    def change(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0] |= changes
        return reply

    return change


def with_ids(*ids: Any) -> Any:
    return first_choice(token_ids=list(ids), logprobs={"token_logprobs": [-1.0] * len(ids)})


def die(reply: dict[str, Any]) -> None:
    raise ConnectionError


FAILURES = {
    "dies": (die, "does not answer"),
    "fewer samples": (lambda reply: reply | {"choices": reply["choices"][1:]}, "answered with 1 responses"),
    "an old adapter": (lambda reply: reply | {"model": "rrm-0-update-0"}, "answered from 'rrm-0-update-0'"),
    "no JSON": (lambda reply: "<html>busy</html>", "cannot be read .*<html>busy</html>"),
    "another object": (lambda reply: {"model": 3, "choices": "none"}, "cannot be read"),
    "no model": (lambda reply: {"choices": []}, "cannot be read"),
    "a foreign token": (with_ids(5, 416, 2), "token id 416"),
    "a negative token": (with_ids(-1, 2), "token id -1"),
    "a token that is text": (with_ids("a", 2), "has 2 token ids"),
    "no tokens": (first_choice(token_ids=None), "has 0 token ids"),
    "no log-probabilities": (first_choice(logprobs=None), "0 log-probabilities"),
    "log-probabilities that are none": (
        first_choice(token_ids=[5, 2], logprobs={"token_logprobs": [None, -1.0]}),
        "not numbers",
    ),
    "beyond the end": (with_ids(5, 2, 5), "3 tokens and does not end"),
    "too long": (with_ids(*[5] * 7), "7 tokens and does not end"),
    "cut short": (with_ids(5, 5), "2 tokens and does not end"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_in_mid_run_stops_it_with_everything_saved(name: str, tmp_path: Path, server: RolloutServer) -> None:
    change, message = FAILURES[name]
    server.change = lambda reply: change(reply) if len(server.pushed) == 3 else reply
    made = served(tmp_path, server, max_steps=4, samples_per_prompt=2, save_strategy="steps", save_steps=100)
    with pytest.raises(TrainingError, match=message) as error:
        made.train()
    assert error.value.where == f"{server.url}/completions" and error.value.expected and error.value.remedy
    newest = newest_verified(tmp_path)
    assert newest is not None and newest.name == "checkpoint-2"
    assert server.loaded == [] and not list(tmp_path.glob(".*"))
    if name != "dies":
        return
    server.change = lambda reply: reply
    resumed = served(tmp_path, server, max_steps=4, samples_per_prompt=2)
    resumed.train(resume_from_checkpoint=True)
    straight = served(tmp_path / "straight", server, max_steps=4, samples_per_prompt=2)
    straight.train()
    assert logs(resumed) == logs(straight)
    assert all(torch.equal(p, state(resumed.agent)[name]) for name, p in straight.agent.named_parameters())


def test_a_server_that_is_not_there_is_noticed_before_training(tmp_path: Path) -> None:
    with rollout_server() as gone:
        pass
    with pytest.raises(TrainingError, match="does not answer") as error:
        served(tmp_path, gone)
    assert error.value.where == f"{gone.url}/models" and "vllm serve MODEL" in error.value.remedy


def test_a_server_that_takes_no_adapters(tmp_path: Path, server: RolloutServer) -> None:
    server.takes_adapters = False
    with pytest.raises(TrainingError, match=r"status 404.*Not Found") as error:
        served(tmp_path, server).train()
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in error.value.remedy and "--enable-lora" in error.value.remedy


def test_an_adapter_that_cannot_be_unloaded_is_only_reported(
    tmp_path: Path, server: RolloutServer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = server.answer
    server.answer = lambda path, body: (500, "no") if "unload" in path else answer(path, body)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        served(tmp_path, server, max_steps=1).train()
    assert "may still hold the adapter rrm-" in caplog.text and "status 500" in caplog.text


def test_the_key_is_sent_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with rollout_server(key=KEY) as server:
        served(tmp_path / "right", server, max_steps=1, rollout_key_env="ROLLOUT_KEY").train()
        with pytest.raises(TrainingError, match=r"status 401.*not None") as error:
            served(tmp_path / "none", server)  # no other key is sent
        assert "--rollout_key_env" in error.value.remedy
        server.key = "another"
        with pytest.raises(TrainingError, match=r"status 401.*\[key\]") as error:
            served(tmp_path / "wrong", server, rollout_key_env="ROLLOUT_KEY")
        assert KEY not in str(error.value)
    with pytest.raises(ConfigError, match="rollout_key_env: UNSET_KEY"):
        served(tmp_path / "unset", server, rollout_key_env="UNSET_KEY")


def test_only_an_adapter_can_be_served(tmp_path: Path, server: RolloutServer) -> None:
    agent = tiny_agent()
    agent.policy_adapter = None
    with pytest.raises(ConfigError, match="no LoRA adapter"):
        served(tmp_path, server, agent)


def test_settings_that_do_not_fit_together(tmp_path: Path) -> None:
    wrong: tuple[dict[str, Any], ...] = ({"rollouts": "server"}, {"rollout_url": "http://127.0.0.1:8000/v1"})
    for more in wrong:
        with pytest.raises(ConfigError, match="rollout_url"):
            trainer(tmp_path, **more)
    with pytest.raises(ConfigError, match=r"is not the address of a server.*rollout_url"):
        trainer(tmp_path, rollouts="server", rollout_url="127.0.0.1")
