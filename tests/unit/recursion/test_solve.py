"""A tree is solved from the helpers up, saved, resumed, and not started above a helper that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rrm_lm.errors import DataError, TrainingError
from rrm_lm.recursion import agents
from rrm_lm.recursion.assistance import Assisted, WorstFlaw
from rrm_lm.recursion.report import write_report
from rrm_lm.recursion.solve import solve, solve_all
from rrm_lm.recursion.training import NodeTrainer
from rrm_lm.recursion.workspace import Workspace
from rrm_lm.storage import verify
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.unit.recursion.trees import three_levels, tree, workspace

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the nodes whose reward is trained, in order."""
    names: list[str] = []
    real = NodeTrainer.train_reward

    def noting(trainer: NodeTrainer, *rest: Any) -> None:
        names.append(trainer.name)
        real(trainer, *rest)

    monkeypatch.setattr(NodeTrainer, "train_reward", noting)
    return names


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "reward" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_tree_of_three_levels(tmp_path: Path, trained: list[str]) -> None:
    root, shop = three_levels(), workspace(tmp_path)
    agent = solve(root, shop)
    assert trained == ["small_s", "capital_s", "letter_s", "letter_b", "top"]
    # One backbone with an adapter for each agent, none of which is trained any more.
    backbone = shop.shared.backbone
    assert set(backbone.model.peft_config) == {f"{name}_reward" for name in trained} | {"top_policy"}
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert len(agent.respond(root.task.domain.prompts)) == 3
    for node in root.walk():
        assert verify(tmp_path / node.name) == []
    checks = {name: shop.costs(node).checks for node in root.walk() for name in [node.name]}
    assert checks["top"] == checks["letter_s"] == 0  # helped, it concludes and does not measure
    assert 0 < checks["small_s"] <= 12 and 0 < checks["letter_b"] <= 12
    assert shop.costs(root).comparisons > 0 and shop.costs(root).tokens > 0
    page = write_report(root, shop, tmp_path, base_model="tiny").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["depth"] for row in found["by_depth"]] == [0, 1, 2]
    assert found["total"]["checks"] == sum(checks.values())
    assert "3 fresh" not in page and "<h2>Costs</h2>" in page and "{{" not in page
    # Solved again from its folder alone: nothing is trained, and the answers are the same.
    trained.clear()
    kept = solve(root, workspace(tmp_path))
    prompts = list(root.task.domain.prompts)
    assert not trained
    assert kept.scorer.score(prompts, [["sea", "moon"]] * 3) == agent.scorer.score(prompts, [["sea", "moon"]] * 3)


def test_only_nodes_whose_inputs_changed_are_solved_again(tmp_path: Path, trained: list[str]) -> None:
    def two(**more: Any) -> Any:
        return tree(top={"task": "main", "helpers": ["letter_s", "letter_b"]}, letter_s={}, letter_b=more)

    solve(two(), workspace(tmp_path))
    trained.clear()
    solve(two(questions=13), workspace(tmp_path))
    assert trained == ["letter_b", "top"]
    trained.clear()
    (tmp_path / "letter_s" / "feedback.jsonl").write_text("broken", encoding="utf-8")
    solve(two(questions=13), workspace(tmp_path))
    assert trained == ["letter_s", "top"]
    assert verify(tmp_path / "letter_s") == []
    other_seed = workspace(tmp_path, seed=1)
    assert not any(other_seed.is_solved(node) for node in two(questions=13).walk())


def test_a_helper_that_fails_stops_its_parent_and_not_its_siblings(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = NodeTrainer.train_reward

    def failing(trainer: NodeTrainer, *rest: Any) -> None:
        if trainer.name == "small_s":
            raise DataError("nothing to learn from")
        noting(trainer, *rest)

    monkeypatch.setattr(NodeTrainer, "train_reward", failing)
    with pytest.raises(TrainingError, match=r"letter_s.*small_s.*nothing to learn from"):
        solve(three_levels(), workspace(tmp_path))
    assert trained == ["capital_s", "letter_b"]
    assert not (tmp_path / "top").exists() and not (tmp_path / "letter_s").exists()
    trained.clear()
    monkeypatch.setattr(NodeTrainer, "train_reward", noting)
    solve(three_levels(), workspace(tmp_path))
    assert trained == ["small_s", "letter_s", "top"]


def test_a_killed_run_resumes_inside_the_node(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(top={"task": "main", "helpers": ["letter_b"], "num_train_epochs": 4}, letter_b={"num_train_epochs": 4})
    solve(root, workspace(tmp_path / "whole"))
    step, seen = RewardTrainer.training_step, [0]

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        if seen[0] in (8, 20):
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "training_step", dying)
    asked: list[Any] = []
    compare = Assisted.compare
    monkeypatch.setattr(Assisted, "compare", lambda self, *pair: asked.append(pair) or compare(self, *pair))
    for _ in range(3):
        try:
            solve(root, workspace(tmp_path / "killed"))
            break
        except KeyboardInterrupt:
            continue
    assert verify(tmp_path / "killed" / "top") == []
    assert len(asked) == len(set(asked)), "a question was asked twice"
    for name in ("letter_b", "top"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "killed", name)), name
        assert not list((tmp_path / "killed" / name).glob("*_training"))
    steps = read(tmp_path / "killed" / "top", "costs.json")["seconds"]
    assert set(steps) == {"start", "notes", "feedback", "reward", "quality"}
    assert seen[0] < 8 + 2 * 20 + 30, "it started again from the first step"


def test_other_settings_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO, notes as input, the worst flaw, both orders and critiques, each once."""
    root = tree(
        top={
            "task": "main", "helpers": ["point"], "assistance": "worst_flaw", "notes_as_input": True, "policy": "ppo",
            "both_orders": True,
        },
        point={"policy": "ppo", "critique_weight": 0.5, "critique_view": "reward"},
    )  # fmt: skip
    looked, verified, respond = set[str](), WorstFlaw.notes, agents.Agent.respond

    def looking(found: WorstFlaw, prompt: Any, response: str) -> Any:
        looked.add(response)
        return verified(found, prompt, response)

    def pointing(agent: agents.Agent, prompts: Any) -> list[str]:
        return ['letter_b yes "sea"' if agent.name == "point" else text for text in respond(agent, prompts)]

    monkeypatch.setattr(WorstFlaw, "notes", looking)
    monkeypatch.setattr(agents.Agent, "respond", pointing)
    shop = workspace(tmp_path)
    agent = solve(root, shop)
    assert len(agent.respond(root.task.domain.prompts)) == 3
    for one in (agent, solve(root, workspace(tmp_path))):  # the second from its folder
        one.scorer.score(root.task.domain.prompts, [["blue sea, seen", "moon"]] * 3)
    judged = [json.loads(line) for line in (tmp_path / "top" / "responses.jsonl").read_text().splitlines()]
    assert looked == {text for row in judged for text in row["responses"]}, (
        "the overseer looked at a response that is only scored"
    )
    assert set(shop.shared.backbone.model.peft_config) == {"top_reward", "top_policy", "point_reward", "point_policy"}
    assert shop.costs(root).checks == read(tmp_path / "top", "notes.json")["helpers"]["looks"]
    rows = [json.loads(line) for line in (tmp_path / "point" / "feedback.jsonl").read_text().splitlines()]
    assert any(row["chosen_critiques"] for row in rows)


def test_independent_nodes_can_be_solved_in_other_processes(tmp_path: Path, trained: list[str]) -> None:
    root = three_levels()
    shop = workspace(tmp_path)

    def elsewhere(nodes: Any) -> None:
        for node in nodes:
            solve(node, Workspace(tmp_path, shop.shared, shop.options, shop.backbone))

    shop.solve_elsewhere = elsewhere
    solve_all(root.helpers, shop)
    assert sorted(trained) == ["capital_s", "letter_b", "letter_s", "small_s"]


def test_shared_helpers_are_solved_before_the_nodes_that_need_them(tmp_path: Path) -> None:
    root = tree(
        top={"task": "main", "helpers": ["one", "two", "letter_b"]},
        one={"task": "letter_s", "helpers": ["small_s"]},
        two={"task": "letter_s", "helpers": ["small_s", "capital_s"]},
        letter_b={}, small_s={}, capital_s={},
    )  # fmt: skip
    shop, asked = workspace(tmp_path), list[list[str]]()

    def elsewhere(nodes: Any) -> None:
        asked.append([node.name for node in nodes])
        if len(nodes) == 1:
            raise TrainingError("it failed there")

    shop.solve_elsewhere = elsewhere
    shop.solve_in_parallel(root.helpers)
    assert asked == [["small_s"], ["one", "two", "letter_b"]]
    solve_all([next(node for node in root.walk() if node.name == "small_s")], shop)
    asked.clear()
    shop.solve_in_parallel(root.helpers)
    assert asked == [["one", "two", "letter_b"]]  # what is solved takes no process


def test_best_of_n_is_not_sampled_with_the_seed_of_the_training_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    real = agents.Sampler.sample

    def write(self: Any, *args: Any, seed: int = 0, **more: Any) -> Any:
        seeds.append(seed)
        return real(self, *args, seed=seed, **more)

    monkeypatch.setattr(agents.Sampler, "sample", write)
    solve(tree(top={"task": "main"}), workspace(tmp_path))
    assert len(seeds) == 3 and len(set(seeds)) == 3  # to learn from, to choose from, and of the start


def test_responses_may_contain_any_line_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["sea\u2028moon", "blue\x85sea"]
    monkeypatch.setattr(agents.Sampler, "sample", lambda self, prompts, count=1, **_: [texts[:count]] * len(prompts))
    agent = solve(tree(top={"task": "main"}), workspace(tmp_path))
    assert agent.respond(list(agent.task.domain.prompts))[0] in texts
