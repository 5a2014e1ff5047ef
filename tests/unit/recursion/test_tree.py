"""Trees are read, and invalid ones are refused."""

from __future__ import annotations

from typing import Any

import pytest

from rrm_lm.errors import ConfigError
from rrm_lm.recursion.tree import Node, read_tree
from tests.unit.recursion.toy import Letters


def tree(**nodes: Any) -> Node:
    return read_tree(Letters(), nodes, where="my.yaml, tree")


def test_a_tree_with_helpers_of_helpers() -> None:
    root = tree(
        top={"task": "main", "helpers": ["letter_s", "letter_b"], "questions": 20, "learning_rate": "2e-3"},
        letter_s={"helpers": ["small_s", "big"]},
        letter_b=None,
        small_s={},
        big={"task": "capital_s", "policy": "ppo"},
    )
    assert [node.name for node in root.walk()] == ["small_s", "big", "letter_s", "letter_b", "top"]
    assert [node.depth for node in root.walk()] == [0, 0, 1, 0, 2]
    assert root.settings.learning_rate == 2e-3 and root.settings.questions == 20
    assert root.helpers[0].helpers[1].settings.policy == "ppo"


def test_one_node_may_help_two() -> None:
    domain = Letters()
    nodes = {"one": {"task": "main", "helpers": ["letter_s"]}, "letter_s": {}}
    assert [node.name for node in read_tree(domain, nodes).walk()] == ["letter_s", "one"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({}, "no nodes"),
        ({"top": {"task": "main", "helpers": ["leter_s"]}, "letter_s": {}}, "did you mean `letter_s`"),
        ({"letter_s": {"helpers": ["small_s"]}, "small_s": {"helpers": ["letter_s"]}}, "no single root"),
        ({"top": {"task": "main"}, "letter_s": {}}, "no single root: top, letter_s"),
        (
            {
                "top": {"task": "main", "helpers": ["a"]},
                "a": {"task": "letter_s", "helpers": ["b"]},
                "b": {"task": "small_s", "helpers": ["a"]},
            },
            "in a circle: a > b > a",
        ),
        ({"top": {"task": "main", "helpers": ["again"]}, "again": {"task": "main"}}, "no easier than top"),
        ({"a": {"task": "letter_s", "helpers": ["b"]}, "b": {"task": "letter_s"}}, "no easier than a"),
        ({"top": {"task": "main", "helpers": ["small_s"]}, "small_s": {}}, "cannot help with top"),
        ({"letter_b": {"helpers": ["small_s"]}, "small_s": {}}, "letter_b has no parts"),
        ({"top": {"task": "main", "question": 3}}, "did you mean `questions`"),
        ({"top": {"task": "main", "questions": 0}}, "questions is 0"),
        ({"top": {"task": "main", "questions": 1.5}}, "cannot be 1.5"),
        ({"top": {"task": "main", "questions": True}}, "cannot be True"),
        ({"top": {"task": "main", "critiques": "maybe"}}, "true or false"),
        ({"top": {"task": "main", "planted": 2}}, "planted is 2"),
        ({"top": {"task": "main", "policy": "dpo"}}, "best_of_n, ppo"),
        ({"top": "main"}, "a mapping of settings"),
        ({"Top": {"task": "main"}}, "lower-case letters"),
        ({"top": {"task": "letter_z"}}, "no task 'letter_z'"),
        (
            {"top": {"task": "main", "helpers": ["letter_s"], "assistance": "worst_flaw"}, "letter_s": {}},
            "one helper, with the task point",
        ),
    ],
)
def test_an_invalid_tree_is_refused(nodes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tree(**nodes)


def test_a_named_root_must_reach_all_nodes() -> None:
    nodes = {"top": {"task": "main"}, "letter_s": {}}
    with pytest.raises(ConfigError, match=r"no node 'tpo' to be its root.*did you mean `top`"):
        read_tree(Letters(), nodes, "tpo")
    with pytest.raises(ConfigError, match="letter_s helps nobody"):
        read_tree(Letters(), nodes, "top")
