"""Two real processes (gloo, on the CPU) with a sharded model give the same results as one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rrm_lm.evaluation.policies.samples import held_out_probe
from rrm_lm.evaluation.preferences.scorers import RewardScorer, load_scorer
from rrm_lm.evaluation.preferences.scoring import score_responses
from rrm_lm.feedback.records import Prompt
from rrm_lm.launch.signals import exit_process
from rrm_lm.models.agent import POLICY, AgentModel
from rrm_lm.models.agent_files import load_agent, trained
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.reward_files import load_reward_model
from rrm_lm.models.saving.adapters import read_weights
from rrm_lm.models.sharding import gather, is_sharded, with_full_params
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer
from rrm_lm.training.reward_sources import PythonReward
from tests.distributed.processes import launch, shard_on_cpu, share_held
from tests.distributed.trl_runs import RUNS, policy
from tests.distributed.trl_runs import learned as of_policy
from tests.tiny import (
    critique,
    prompt_of,
    rating,
    save_tiny_model,
    some_comparisons,
    tiny_chat,
    tiny_model,
    tiny_reward_model,
)
from tests.tiny_policy import CHAT, PROMPTS, counting, logs, tiny_agent, trainer

torch.set_num_threads(1)

LAYERS = 4  # so that what cannot be halved, such as a head of one row, is little
MOST = 0.55  # of a model's bytes on one of two processes


# -- reward models ----------------------------------------------------------------------------------------------------


def reward_examples(model: RewardModel) -> list[RewardExample]:
    """21 pieces of feedback, so that the last batch of an epoch is incomplete."""
    builder = ExampleBuilder(tiny_chat(), model.backbone)
    return builder.comparisons(some_comparisons(15)) + builder.responses(
        [critique(f"sea {n}?", "yes " * n, "too long", row=n) for n in range(1, 4)],
        [rating(f"moon {n}?", "no " * n, 0.3, row=n) for n in range(1, 4)],
    )


def reward_trainer(folder: Path, base: Path, processes: int, **more: Any) -> RewardTrainer:
    model = tiny_reward_model(model=tiny_model(layers=LAYERS), base_model=str(base))
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        "micro_batch_tokens": 100,
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = RewardConfig(**{**settings, **more})
    return RewardTrainer(model, args, reward_examples(model), processing_class=tiny_chat().tokenizer)


def losses(made: RewardTrainer) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "loss_pairs", "loss_ratings", "loss_critiques", "accuracy", "margin", "tokens")
    return [{n: float(e[n]) for n in names if n in e} for e in made.state.log_history if "loss" in e]


def learned(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in gather(trained(model)).items()}


def to_score() -> dict[Prompt, list[str]]:
    """Responses to prompts; their number is odd, so one process has more than the other."""
    return {prompt_of(f"what is the {'sea ' * n}?"): ["yes", "no " * (n + 1)] for n in range(7)}


def scores(scorer: Any) -> list[float]:
    found = score_responses(scorer, to_score(), progress=False)
    return [value for group in found.values() for value in group.values()]


def reward_on_two(folder: Path, base: Path) -> dict[str, Any]:
    """The results of one of the two processes."""
    made = reward_trainer(folder / "reward", base, 2)
    before = gather(dict(made.model.named_parameters()))
    frozen = {name for name, parameter in made.model.named_parameters() if not parameter.requires_grad}
    made.train()
    model = made.accelerator.unwrap_model(made.model)
    found: dict[str, Any] = {"losses": losses(made), "learned": learned(model), "share": share_held(model)}
    found["frozen changed"] = [
        name for name, tensor in gather(dict(model.named_parameters())).items()
        if name in frozen and not torch.equal(tensor, before[name])
    ]  # fmt: skip
    made.save_model(str(folder / "reward"))
    found["scores"] = scores(RewardScorer(model, tiny_chat(), micro_batch_tokens=1))
    fresh: Any = load_scorer(str(folder / "reward"), micro_batch_tokens=1, dtype="float32", shard=True)
    found |= {"fresh scores": scores(fresh), "fresh share": share_held(fresh.model)}
    found["again"] = resumed_rewards(folder / "again", base, 2)
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "true"  # which this project does in a way of its own
    found |= {"mixed": mixed_precision(folder / "mixed", base, 2)}
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "false"
    return found


def mixed_precision(folder: Path, base: Path, processes: int) -> dict[str, Any]:
    """Two steps on a bfloat16 backbone, with activation checkpointing if the launch sets it."""
    made = reward_trainer(folder, base, processes, max_steps=2, bf16=True)
    backbone = made.model.backbone.causal_lm
    for parameter in backbone.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    made.train()
    found: dict[str, Any] = {"losses": [entry["loss"] for entry in losses(made)]}
    found["recomputes"] = any(getattr(module, "gradient_checkpointing", False) for module in made.model.modules())
    for name, chosen in (("trained", True), ("frozen", False)):
        found[name] = {str(p.dtype) for p in made.model.parameters() if p.requires_grad == chosen}
    return found


BREAK = (None, "checkpoint-2")  # without a break, and from where the same run could have been broken off


def resumed_rewards(
    folder: Path, base: Path, processes: int, starts: Sequence[str | None] = BREAK, **more: Any
) -> list[dict[str, Tensor]]:
    """Adapters after four steps, resumed from each of some checkpoints in the folder. Adam's state must be restored."""
    settings: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    found = []
    for start in starts:
        made = reward_trainer(folder, base, processes, **settings, **more)
        made.train(resume_from_checkpoint=start and str(folder / start))
        found.append(learned(made.accelerator.unwrap_model(made.model)))
    return found


# -- policies ---------------------------------------------------------------------------------------------------------


def policy_trainer(folder: Path, processes: int, *, agent: AgentModel | None = None, **more: Any) -> PPOTrainer:
    agent = agent or tiny_agent(value="adapter", reward=True, layers=LAYERS)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8 // processes,
        "samples_per_prompt": 2,
        "num_mini_batches": 2,
        "micro_batch_tokens": 60,
        "rollout_batch_tokens": 40,
        "max_steps": 3,
        "temperature": 0.5,
        "stop_token_id": 352,  # which this model often writes: responses end early, and not in step
        "optim": "sgd",
        "learning_rate": 0.02,
        "max_grad_norm": 0.1,
        "whiten_rewards": True,
        "normalize_rewards": True,
        "kl_control": "adaptive",
        "kl_target": 0.1,
        "missing_eos_penalty": 0.5,
        "rewards": [PythonReward(counting)],
    }
    return trainer(folder, agent, **{**settings, **more})


def watched(made: PPOTrainer) -> list[dict[str, Any]]:
    """Keeps the rollouts, scores and advantages of every update."""
    kept: list[dict[str, Any]] = []
    own = made.estimate

    def estimate(rollouts: Any, scores: Any) -> Any:
        estimates, first = own(rollouts, scores)
        kept.append(
            {
                "responses": list(rollouts.responses),
                "raw": scores.raw.clone(),
                "used": scores.used.clone(),
                "advantages": [a[mask] for a, mask in zip(estimates.advantages, estimates.is_response, strict=True)],
            }
        )
        return estimates, first

    made.estimate = estimate  # type: ignore[method-assign]
    return kept


def probed(made: PPOTrainer) -> list[tuple[str, float, float]]:
    """The policy's responses to held-out prompts, their rewards, and its KL divergence."""
    backbone = made.agent.backbone
    measure = held_out_probe(
        lambda: (backbone, made.agent.policy_adapter), (backbone, made.agent.reference_adapter), CHAT, PROMPTS[:3],
        Sampling(6, 1.0), proxy=counting, gold=counting, within=lambda function: with_full_params(made.model, function),
    )  # fmt: skip
    return [(probe.response, probe.proxy, probe.kl) for probe in measure(0)]


def policy_on(folder: Path, processes: int, **more: Any) -> dict[str, Any]:
    made = policy_trainer(folder, processes, **more)
    kept = watched(made)
    made.train()
    found = {"kept": kept, "logs": logs(made), "learned": learned(made.agent), "share": share_held(made.agent)}
    found |= {"probe": probed(made), "steering": made.steering.kl.coefficient}
    made.save_model(str(folder / "saved"))
    return found


def mixed_policy(folder: Path, processes: int) -> dict[str, Any]:
    """Two updates on a bfloat16 backbone with autocasting. The responses are given: rounding would change samples."""
    agent = tiny_agent(value="adapter", reward=True, layers=LAYERS)
    for parameter in agent.backbone.causal_lm.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    answers = [[40, 41, 42, 352], [50, 352], [60, 61, 62, 63, 64, 65], [70, 71, 352]]

    def given(prompts: Any, sampling: Any, *, num_return: int = 1, **_: Any) -> list[list[list[int]]]:
        return [[answers[(sum(ids) + k) % len(answers)] for k in range(num_return)] for ids in prompts]

    agent.roll_out = given  # type: ignore[method-assign]
    made = policy_trainer(folder, processes, agent=agent, max_steps=2, bf16=True)
    begun = learned(agent)
    made.train()
    found: dict[str, Any] = {"share": share_held(agent), "learned": learned(agent), "begun": begun}
    names = ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "policy/grad_norm", "val/ratio")
    found["logs"] = [{name: float(entry[name]) for name in names} for entry in logs(made)]
    for name, chosen in (("trained", True), ("frozen", False)):
        found[name] = {str(p.dtype) for p in agent.backbone.parameters() if p.requires_grad == chosen}
    return found


def policy_on_two(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"gathered": policy_on(folder / "gathered", 2)}
    found["layers"] = policy_on(folder / "layers", 2, ds3_gather_for_generation=False)  # one after the other
    found["mixed"] = mixed_policy(folder / "policy mixed", 2)
    found["early"] = stopped(folder / "early", 2)
    found["again"] = resumed_policies(folder / "policy again", 2)
    return found


def stopped(folder: Path, processes: int) -> dict[str, Any]:
    """A run that is stopped by its KL divergence, and the restored policy."""
    agent = tiny_agent(value="adapter", reward=True, layers=LAYERS, random=False)  # it starts as the reference
    made = policy_trainer(folder, processes, agent=agent, max_kl=0.02, learning_rate=0.3)
    made.train()
    return {"step": made.state.global_step, "reason": made.stop_reason, "learned": learned(made.agent)}


def resumed_policies(
    folder: Path, processes: int, starts: Sequence[str | None] = BREAK, **more: Any
) -> list[dict[str, Tensor]]:
    settings: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    found = []
    for start in starts:
        made = policy_trainer(folder, processes, **settings, **more)
        made.train(resume_from_checkpoint=start and str(folder / start))
        found.append(learned(made.agent))
    return found


# -- the comparison ---------------------------------------------------------------------------------------------------


def close(mine: Any, theirs: Any, tolerance: float) -> None:
    """The same names and numbers, within a tolerance."""
    assert type(mine) is type(theirs)
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for name in theirs:
            close(mine[name], theirs[name], tolerance)
    elif isinstance(theirs, list | tuple):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            close(a, b, tolerance)
    elif isinstance(theirs, Tensor):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, abs=tolerance, rel=tolerance)
    else:
        assert mine == theirs


def together(parts: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The concatenated episodes of two processes, by update."""
    return [
        {
            name: torch.cat([one[name], two[name]]) if isinstance(one[name], Tensor) else one[name] + two[name]
            for name in one
        }
        for one, two in zip(*parts, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", layers=LAYERS)
    launch(__file__, tmp_path, timeout=380)
    both = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    check_rewards([one["reward"] for one in both], tmp_path, base)
    check_policies([one["policy"] for one in both], tmp_path)
    check_trl([one["trl"] for one in both], tmp_path, base)


def check_rewards(both: list[dict[str, Any]], folder: Path, base: Path) -> None:
    one = reward_trainer(folder / "one", base, 1)
    begun = learned(one.model)
    one.train()
    for found in both:
        assert found["share"] <= MOST and found["fresh share"] <= MOST
        assert found["frozen changed"] == []
        close(found["losses"], losses(one), 1e-5)
        close(found["learned"], learned(one.model), 1e-4)
        assert all((found["learned"][name] - begun[name]).abs().max() > 1e-5 for name in begun)
    mixed = mixed_precision(folder / "one mixed", base, 1)
    # On one process, sharded as it was trained, and sharded after it was loaded: the same rewards, prompt by prompt.
    model, chat = load_reward_model(folder / "reward", dtype="float32")
    plain = scores(RewardScorer(model, chat, micro_batch_tokens=1))
    for found in both:
        assert found["scores"] == found["fresh scores"] == plain
        close(found["again"][1], found["again"][0], 0.0)
        assert (found["mixed"]["trained"], found["mixed"]["frozen"]) == ({"torch.float32"}, {"torch.bfloat16"})
        assert found["mixed"]["recomputes"] and not mixed["recomputes"]
        close(found["mixed"]["losses"], mixed["losses"], 2e-2)
    # One process goes on from a checkpoint of two.
    alone = resumed_rewards(folder / "again", base, 1, BREAK[1:], allow_world_size_change=True)
    close(alone[0], both[0]["again"][0], 1e-4)


def check_policies(both: list[dict[str, Any]], folder: Path) -> None:
    one = policy_on(folder / "one policy", 1)
    assert len({len(ids) for update in one["kept"] for ids in update["responses"]}) > 2
    for way in ("gathered", "layers"):
        close(together([found[way]["kept"] for found in both]), one["kept"], 1e-4)
        for found in both:
            assert found[way]["share"] <= MOST
            close(found[way]["learned"], one["learned"], 1e-4)
            close(found[way]["probe"], one["probe"], 1e-4)
            close(found[way]["steering"], one["steering"], 1e-6)
        close(both[0][way]["logs"], one["logs"], 1e-4)
        agent = tiny_agent(value="adapter", reward=True, layers=LAYERS)
        load_agent(agent, folder / way / "saved")
        close(learned(agent), both[0][way]["learned"], 0.0)
    mixed = mixed_policy(folder / "one policy mixed", 1)
    for found in [one["mixed"] for one in both]:
        assert found["share"] <= MOST
        assert found["trained"] == {"torch.float32"} and "torch.bfloat16" in found["frozen"]
        close(found["learned"], mixed["learned"], 2e-3)
        assert all((found["learned"][name] - mixed["begun"][name]).abs().max() > 1e-6 for name in mixed["begun"])
    for mine, theirs in zip(both[0]["mixed"]["logs"], mixed["logs"], strict=True):
        for name in ("objective/kl", "objective/scores", "loss/value_avg"):
            close(mine[name], theirs[name], 3e-2)
        # These have the ratio of two probabilities, which rows of other lengths round differently.
        close(mine["policy/grad_norm"], theirs["policy/grad_norm"], 0.15)
        assert abs(mine["loss/policy_avg"] - theirs["loss/policy_avg"]) < 0.05
        assert abs(mine["val/ratio"] - theirs["val/ratio"]) < 0.08
    alone = stopped(folder / "one early", 1)
    for found in both:
        close(found["early"], alone, 1e-4)
        close(found["again"][1], found["again"][0], 0.0)
    assert 0 < alone["step"] < 3
    gone_on = resumed_policies(folder / "policy again", 1, BREAK[1:], allow_world_size_change=True)
    close(gone_on[0], both[0]["again"][0], 1e-4)


def check_trl(both: list[dict[str, Any]], folder: Path, base: Path) -> None:
    for name, run in RUNS.items():
        one = run(folder / f"one {name}", base, LAYERS, 1)
        begun = of_policy(policy(LAYERS, str(base)).backbone)
        for found in [one_of_two[name] for one_of_two in both]:
            assert found["share"] <= MOST
            close(found["learned"], one["learned"], 1e-4)
            close(found.get("nll"), one.get("nll"), 1e-4)
            assert all((found["learned"][key] - begun[key]).abs().max() > 1e-6 for key in begun)
        close(both[0][name]["logs"], one["logs"], 1e-3)
        fresh = policy(LAYERS, str(base)).backbone
        read_weights(fresh, POLICY, folder / name / "saved")
        close(of_policy(fresh), both[0][name]["learned"], 0.0)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    shard_on_cpu()
    result = {"reward": reward_on_two(out, out / "base"), "policy": policy_on_two(out)}
    result["trl"] = {name: run(out / name, out / "base", LAYERS, 2) for name, run in RUNS.items()}
    assert is_sharded(policy_trainer(out / "last", 2).agent)
    torch.save(result, out / f"rank{torch.distributed.get_rank()}.pt")
    exit_process(0)
