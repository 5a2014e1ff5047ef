"""`rrm-lm recurse` on a tiny model: the tree is solved, reported and resumed; errors are reported."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rrm_lm.recursion.agents import Costs
from rrm_lm.runs.recurse import seconds_left
from rrm_lm.storage import verify
from tests.smoke.commands import Result, read, run
from tests.unit.recursion.trees import tree

TOY = Path(__file__).parents[1] / "unit" / "recursion" / "toy.py"
TREE = """\
domain: {toy}:Letters
model_name_or_path: {model}
output_dir: {root}/out
max_length: 300
lora_r: 4
dtype: float32
show_progress: false
tree:
  top: &small
    task: main
    helpers: [letter_s, letter_b]
    questions: 12
    num_train_epochs: 1
    per_device_train_batch_size: 4
    learning_rate: 1e-2
    drafts: 8
    draft_epochs: 1
    max_new_tokens: 6
    tested: 12
    n: 2
  letter_s: {{<<: *small, task: letter_s, helpers: []}}
  letter_b: {{<<: *small, task: letter_b, helpers: []}}
"""

# A domain whose bench is out of order while a file is there.
BROKEN = """\
from dataclasses import replace
from pathlib import Path
from tests.unit.recursion.toy import Letters

def measure(prompt, response):
    if Path("{flag}").exists():
        raise OSError("the bench is out of order")
    return Letters.aspects["letter_b"].measure(prompt, response)

class World(Letters):
    aspects = {{**Letters.aspects, "letter_b": replace(Letters.aspects["letter_b"], measure=measure)}}
"""


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Path:
    file = tmp_path / "tree.yaml"
    file.write_text(TREE.format(toy=TOY, model=tiny, root=tmp_path), encoding="utf-8")
    return file


def recurse(capture: Any, config: Path, *more: object) -> Result:
    return run(capture, "recurse", "--allow_code", "--config", config, *more)


def test_a_tree_is_solved_once_and_reported(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = recurse(capsys, config)
    assert first.code == 0, first.err
    assert "[1/3] letter_s: training the reward model" in first.err
    assert "[3/3] top: training the reward model; about" in first.err  # an estimate, once something is solved
    found = read(tmp_path / "out" / "results.json")
    assert [node["name"] for node in found["nodes"]] == ["top", "letter_b", "letter_s"]
    assert found["total"]["checks"] == sum(node["costs"]["checks"] for node in found["nodes"]) > 0
    assert 0 <= found["nodes"][1]["quality"]["balanced_accuracy"]["low"] <= 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "sees how long it is" in page and "http" not in page.replace("http://www.w3.org", "")
    again = recurse(capsys, config)
    assert again.code == 0 and "training" not in again.err
    other = recurse(capsys, config, "--use_rslora", "true")  # what was solved before would be read otherwise
    assert other.code == 0 and "[1/3] letter_s: training the reward model" in other.err
    kept = tmp_path / "out" / "nodes" / ".replaced"  # what took a while is not lost to a flag
    assert str(kept / "letter_s-1") in other.err and verify(kept / "letter_s-1") == []
    head, tree = config.read_text(encoding="utf-8").split("tree:\n")
    small = tree.replace("task: main\n    helpers: [letter_s, letter_b]", "task: letter_s").split("  letter_s:")[0]
    config.write_text(f"{head}tree:\n{small}", encoding="utf-8")
    alone = recurse(capsys, config)
    assert alone.code == 0, alone.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The helper tells whether something is wrong" in page and "letters: top</h1>" in page


def test_errors_in_a_tree_are_reported_before_anything_is_loaded(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("helpers: [letter_s, letter_b]", "helpers: [letter_s, letter_c]"), encoding="utf-8")
    assert "did you mean `letter_" in recurse(capsys, config).error["error"]
    config.write_text(text.replace("max_length: 300", "max_length: 40"), encoding="utf-8")
    found = recurse(capsys, config)
    assert found.code == 2 and "tokens for a prompt and a response" in found.error["error"]
    # What the node takes that needs most, with nothing cut.
    needed = re.search(r"--max_length (\d+)", found.error["what to do"])
    assert needed and needed[1] in found.error["error"] and int(needed[1]) > 80
    found = recurse(capsys, config, "--max_length", str(int(needed[1]) - 1))
    assert f"needs {needed[1]} tokens" in found.error["error"]
    config.write_text(text, encoding="utf-8")
    assert "no node 'up'" in recurse(capsys, config, "--node", "up").error["error"]
    assert not (tmp_path / "out" / "nodes").exists()


@pytest.mark.slow
def test_helpers_in_separate_processes_one_of_which_fails(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = tmp_path / "broken"
    (tmp_path / "world.py").write_text(BROKEN.format(flag=flag), encoding="utf-8")
    config.write_text(
        config.read_text(encoding="utf-8").replace(f"{TOY}:Letters", f"{tmp_path}/world.py:World"), encoding="utf-8"
    )
    flag.touch()
    found = recurse(capsys, config, "--processes", 2)
    nodes = tmp_path / "out" / "nodes"
    assert found.code == 2 and "Not every helper could be solved: letter_b" in found.error["error"]
    assert (nodes / "letter_s" / "manifest.json").is_file() and not (nodes / "top").exists()
    kept = (nodes / "letter_s" / "manifest.json").stat().st_mtime_ns
    flag.unlink()
    again = recurse(capsys, config)
    assert again.code == 0, again.err
    assert (nodes / "letter_s" / "manifest.json").stat().st_mtime_ns == kept
    assert (tmp_path / "out" / "report.html").is_file()


def test_remaining_time_decreases_while_a_node_is_solved() -> None:
    root = tree(top={"task": "main", "helpers": ["letter_s"], "questions": 40}, letter_s={"questions": 40})
    took = {"letter_s": {"reward": 60.0}, "top": {}}
    workspace: Any = SimpleNamespace(
        is_solved=lambda node: node.name == "letter_s", costs=lambda node: Costs(seconds=took[node.name])
    )
    nodes = list(root.walk())
    whole = seconds_left(nodes, workspace)
    took["top"] = {"reward": 20.0}
    assert seconds_left(nodes, workspace) == pytest.approx(whole - 20.0)
    took["top"] = {"reward": whole + 5.0}
    assert seconds_left(nodes, workspace) == 0.0
