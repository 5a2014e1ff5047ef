"""The tree of tasks: read from the `tree` section of a YAML file and validated."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError, did_you_mean
from rrm_lm.recursion.tasks import POINT, Domain, Task, make_task

_CHOICES = {"assistance": ("notes", "worst_flaw"), "policy": ("best_of_n", "ppo"), "critique_view": ("reward", "all")}
_ABOVE_0 = ["questions", "num_train_epochs", "learning_rate", "n", "max_steps", "episodes", "tested", "ensemble_heads"]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class NodeSettings:
    """Settings of one node. Each field is a key of the node in the tree's file."""

    task: str = ""  # `main`, `point` or an aspect of the domain; by default the node's name
    helpers: tuple[str, ...] = ()  # nodes whose agents help the overseer
    assistance: str = "notes"  # or `worst_flaw`: one helper points, and the overseer only checks that
    # Whether the reward model also reads the notes after each response. It reads what a pointing helper says, not
    # whether the overseer found the flaw real.
    notes_as_input: bool = False
    questions: int = 150  # to the overseer: pairs of responses, or a helper task's checks on the bench
    planted: float = 0.4  # share of checked responses that are made to have a problem
    both_orders: bool = False  # ask about every pair in both orders; contradictory answers give no verdict
    critiques: bool = True  # whether the overseer also writes critiques
    # The reward model, as in `rrm-lm reward`:
    num_train_epochs: float = 4.0
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 8
    critique_weight: float = 0.0
    critique_view: str = "all"
    ensemble_heads: int = 1
    policy: str = "best_of_n"  # the best of n responses by reward; or `ppo`
    n: int = 16  # samples for best-of-n
    # PPO:
    max_steps: int = 10  # updates
    episodes: int = 32  # per update
    kl_coef: float = 0.05
    policy_learning_rate: float = 3e-4
    drafts: int = 192  # well-formed responses to train the start policy on
    draft_epochs: float = 2.0
    max_new_tokens: int = 48  # longest response
    tested: int = 200  # fresh questions for measuring the agent


@dataclass(frozen=True)
class Node:
    """A node of the tree, with the nodes that help its overseer."""

    name: str
    settings: NodeSettings
    task: Task
    helpers: tuple[Node, ...] = field(default=())

    def walk(self) -> Iterator[Node]:
        """Iterate over this node and all nodes below it, helpers first, each once."""
        seen: set[str] = set()
        for node in (*(below for helper in self.helpers for below in helper.walk()), self):
            if node.name not in seen:
                seen.add(node.name)
                yield node

    @property
    def depth(self) -> int:
        """Levels of helpers below this node; 0 without helpers."""
        return 1 + max((helper.depth for helper in self.helpers), default=-1)


def read_tree(domain: Domain, nodes: Mapping[str, Any], root: str = "", where: str = "tree") -> Node:
    """Build a tree and return its root.

    `root`: the final node to solve; by default the only node that helps no other. Raises ConfigError: there are no
    nodes, no single root, an unknown setting or node, an unused helper, a cycle of helpers, or a helper whose task is
    not easier than the one it helps with.
    """
    if not nodes:
        raise ConfigError("The tree has no nodes", where=where, expected="a mapping of names to settings")
    settings = {name: _settings(name, values, where) for name, values in nodes.items()}
    helping = {helper: name for name, one in settings.items() for helper in one.helpers}
    found = [
        f"The node {name} has a helper {helper!r} that is not in the tree{did_you_mean(helper, settings)}"
        for helper, name in helping.items()
        if helper not in settings
    ]
    if root and root not in settings:
        found.append(f"The tree has no node {root!r} to be its root{did_you_mean(root, settings)}")
    if found:
        raise ConfigError(found[0], where=where, expected="one of " + ", ".join(settings))
    tops = [root] if root else [name for name in settings if name not in helping]
    if len(tops) != 1:
        raise ConfigError(
            f"The tree has no single root: {', '.join(tops) or 'every node helps another'}",
            where=where,
            expected="one node that helps no other",
            remedy="add the other nodes to the helpers of a node, or remove them",
        )
    tree = _build(domain, settings, tops[0], (), where)
    used = {node.name for node in tree.walk()}
    if unused := next((name for name in settings if name not in used), None):
        remedy = f"add it to the helpers of {tree.name} or of a node below it, or remove it"
        raise ConfigError(f"The node {unused} helps nobody", where=where, remedy=remedy)
    return tree


def _build(domain: Domain, settings: Mapping[str, NodeSettings], name: str, above: tuple[str, ...], where: str) -> Node:
    if name in above:
        raise ConfigError(
            f"The helpers go round in a circle: {' > '.join([*above[above.index(name) :], name])}",
            where=where,
            remedy="remove one of them: a helper must be solved before the node that it helps",
        )
    one = settings[name]
    task = make_task(domain, one.task or name)
    helpers = tuple(_build(domain, settings, helper, (*above, name), where) for helper in one.helpers)
    for helper in helpers:
        _check_helper(name, task, helper, where)
    if one.assistance == "worst_flaw" and [helper.task.name for helper in helpers] != [POINT]:
        what = f"The node {name} has assistance worst_flaw, but not exactly one pointing helper"
        raise ConfigError(what, where=where, expected=f"one helper, with the task {POINT}")
    return Node(name, one, task, helpers)


def _check_helper(name: str, task: Task, helper: Node, where: str) -> None:
    if helper.task.kind == task.kind:
        what = f"The helper {helper.name} is no easier than {name}: both answer {task.kind[0]} with a {task.kind[1]}"
        raise ConfigError(what, where=where, expected="a helper whose task is a part of the task that it helps with")
    if helper.task.name not in task.helpers:
        raise ConfigError(
            f"The helper {helper.name} cannot help with {name}: its task is {helper.task.name}",
            where=where,
            expected="one of " + ", ".join(task.helpers) if task.helpers else f"no helpers: {task.name} has no parts",
        )


def _settings(name: str, values: Any, where: str) -> NodeSettings:
    place = f"{where}, node {name}"
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"A node has the name {name!r}", where=where, expected="lower-case letters, digits and _")
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"The node {name} is {values!r}", where=where, expected="a mapping of settings")
    known = {one.name: one for one in dataclasses.fields(NodeSettings)}
    given: dict[str, Any] = {}
    for key, value in (values or {}).items():
        if key not in known:
            raise ConfigError(f"There is no setting {key!r}{did_you_mean(key, known)}", where=place)
        given[key] = _converted(key, value, known[key].default, place)
    settings = NodeSettings(**given)
    rules = [(key, getattr(settings, key) in of, "one of " + ", ".join(of)) for key, of in _CHOICES.items()]
    rules += [(key, getattr(settings, key) > 0, "above 0") for key in _ABOVE_0]
    for key, is_valid, expected in [*rules, ("planted", 0 <= settings.planted <= 1, "from 0 to 1")]:
        if not is_valid:
            raise ConfigError(f"{key} is {getattr(settings, key)!r}", where=place, expected=expected)
    return settings


def _converted(key: str, value: Any, default: Any, place: str) -> Any:
    """Convert a value to the type of its default. YAML reads `5e-4` as text."""
    kind = type(default)
    if kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, str) for item in items):
            return tuple(items)
    elif kind is bool or isinstance(value, bool):
        if kind is type(value):
            return value
    else:
        with contextlib.suppress(TypeError, ValueError):
            if kind is not int or float(value) == int(value):
                return kind(value)
    expected = {tuple: "a list of names", bool: "true or false", int: "a whole number", float: "a number"}
    raise ConfigError(f"The setting {key} cannot be {value!r}", where=place, expected=expected.get(kind, "text"))
