"""The tree of tasks: read from a mapping as a YAML file holds it, and refused where it makes no sense."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.recursion.tasks import POINT, Domain, Task, make_task

ASSISTANCES = ("notes", "worst_flaw")
POLICIES = ("best_of_n", "ppo")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class NodeSettings:
    """How one task of a tree is solved. Each field is a key of the node in the tree's file.

    Attributes:
        task: `main`, `point` or an aspect of the domain; by default what the node is called.
        helpers: Nodes whose agents help the overseer.
        assistance: `notes` (each helper writes one) or `worst_flaw` (one helper points, the overseer only looks there).
        notes_as_input: Whether the reward model reads the notes behind each response, too: what helpers say (of a flaw
            that one points at, not whether the overseer found it real).
        questions: How much is asked of the overseer: pairs of responses; of a helper's task, checks on the bench.
        planted: Share of the checked responses that are made to have something wrong.
        both_orders: Ask about every pair in both orders; contradictions are no verdict.
        critiques: Whether the overseer also says what is wrong, in words.
        num_train_epochs, learning_rate, per_device_train_batch_size, critique_weight, critique_view, ensemble_heads: Of
            the reward model, as `rrm-lm reward` has them.
        policy: `best_of_n` (the best of n by the reward) or `ppo`.
        n: Of best-of-n, where responses are drawn.
        max_steps, episodes, kl_coef, policy_learning_rate: Of PPO: updates, episodes each, price of KL.
        drafts, draft_epochs: Well-formed responses that a policy learns the form from, before anything else.
        max_new_tokens: Longest response.
        tested: Fresh questions by which the agent is judged in the report.
    """

    task: str = ""
    helpers: tuple[str, ...] = ()
    assistance: str = "notes"
    notes_as_input: bool = False
    questions: int = 150
    planted: float = 0.4
    both_orders: bool = False
    critiques: bool = True
    num_train_epochs: float = 4.0
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 8
    critique_weight: float = 0.0
    critique_view: str = "all"
    ensemble_heads: int = 1
    policy: str = "best_of_n"
    n: int = 16
    max_steps: int = 10
    episodes: int = 32
    kl_coef: float = 0.05
    policy_learning_rate: float = 3e-4
    drafts: int = 192
    draft_epochs: float = 2.0
    max_new_tokens: int = 48
    tested: int = 200


@dataclass(frozen=True)
class Node:
    """A task in its place: with the nodes that help."""

    name: str
    settings: NodeSettings
    task: Task
    helpers: tuple[Node, ...] = field(default=())

    def walk(self) -> Iterator[Node]:
        """This node and everything below it, helpers first, each once."""
        seen: set[str] = set()
        for node in (*(below for helper in self.helpers for below in helper.walk()), self):
            if node.name not in seen:
                seen.add(node.name)
                yield node

    @property
    def depth(self) -> int:
        """0 without helpers."""
        return 1 + max((helper.depth for helper in self.helpers), default=-1)


def read_tree(domain: Domain, nodes: Mapping[str, Any], root: str = "", where: str = "tree") -> Node:
    """The tree under its root.

    Args:
        domain: Where the tasks are from.
        nodes: By name, the settings of each node.
        root: The node to solve in the end; by default the one that helps no other.
        where: What the tree was read from, for messages.

    Raises:
        ConfigError: No nodes, no single root, an unknown setting or node, a node that helps nobody, helpers in a
            circle, or a helper whose task is no easier than the one it helps with.
    """
    if not nodes:
        raise ConfigError("The tree has no nodes", where=where, expected="a mapping of names to settings")
    settings = {name: _settings(name, values, where) for name, values in nodes.items()}
    helping = {helper for one in settings.values() for helper in one.helpers}
    for name, one in settings.items():
        for helper in one.helpers:
            if helper not in settings:
                raise ConfigError(
                    f"The node {name} has a helper {helper!r} that is not in the tree{_near(helper, settings)}",
                    where=where,
                    expected="one of " + ", ".join(settings),
                )
    if root and root not in settings:
        raise ConfigError(
            f"The tree has no node {root!r} to be its root{_near(root, settings)}",
            where=where,
            expected="one of " + ", ".join(settings),
        )
    tops = [root] if root else [name for name in settings if name not in helping]
    if len(tops) != 1:
        raise ConfigError(
            f"The tree has no single root: {', '.join(tops) or 'every node helps another'}",
            where=where,
            expected="one node that helps no other",
            remedy="name the others among the helpers of a node, or take them out",
        )
    tree = _grow(domain, settings, tops[0], (), where)
    if left := [name for name in settings if name not in {node.name for node in tree.walk()}]:
        raise ConfigError(
            f"The node {left[0]} helps nobody",
            where=where,
            remedy=f"name it among the helpers of a node below {tree.name}",
        )
    return tree


def _grow(domain: Domain, settings: Mapping[str, NodeSettings], name: str, above: tuple[str, ...], where: str) -> Node:
    if name in above:
        circle = " > ".join([*above[above.index(name) :], name])
        raise ConfigError(
            f"The helpers go round in a circle: {circle}",
            where=where,
            remedy="take one of them out: a helper must be solved before what it helps with",
        )
    task = make_task(domain, settings[name].task or name)
    helpers = tuple(_grow(domain, settings, helper, (*above, name), where) for helper in settings[name].helpers)
    for helper in helpers:
        _refuse_no_easier(name, task, helper, where)
    one = settings[name]
    if one.assistance == "worst_flaw" and [helper.task.name for helper in helpers] != [POINT]:
        raise ConfigError(
            f"The node {name} wants the worst flaw pointed out, and has not one helper for that",
            where=where,
            expected=f"one helper, with the task {POINT}",
        )
    return Node(name, one, task, helpers)


def _refuse_no_easier(name: str, task: Task, helper: Node, where: str) -> None:
    if helper.task.kind == task.kind:
        raise ConfigError(
            f"The helper {helper.name} is no easier than {name}: both answer {task.kind[0]} with a {task.kind[1]}",
            where=where,
            expected="a helper with another task, on a part of what it helps with",
        )
    if helper.task.name not in task.helpers:
        raise ConfigError(
            f"The helper {helper.name} cannot help with {name}: its task is {helper.task.name}",
            where=where,
            expected="one of " + ", ".join(task.helpers) if task.helpers else f"no helpers: {task.name} has no parts",
        )


def _settings(name: str, values: Any, where: str) -> NodeSettings:
    """The settings of a node, each checked."""
    place = f"{where}, node {name}"
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"A node is called {name!r}", where=where, expected="small letters, digits and _")
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"The node {name} is {values!r}", where=where, expected="a mapping of settings")
    known = {one.name: one for one in dataclasses.fields(NodeSettings)}
    given: dict[str, Any] = {}
    for key, value in (values or {}).items():
        if key not in known:
            raise ConfigError(f"There is no setting {key!r}{_near(key, known)}", where=place)
        given[key] = _converted(key, value, known[key].default, place)
    settings = NodeSettings(**given)
    for key, choices in (("assistance", ASSISTANCES), ("policy", POLICIES), ("critique_view", ("reward", "all"))):
        if getattr(settings, key) not in choices:
            expected = "one of " + ", ".join(choices)
            raise ConfigError(f"{key} is {getattr(settings, key)!r}", where=place, expected=expected)
    for key in (
        "questions",
        "num_train_epochs",
        "learning_rate",
        "n",
        "max_steps",
        "episodes",
        "tested",
        "ensemble_heads",
    ):
        if getattr(settings, key) <= 0:
            raise ConfigError(f"{key} is {getattr(settings, key)}", where=place, expected="above 0")
    if not 0 <= settings.planted <= 1:
        raise ConfigError(f"planted is {settings.planted}", where=place, expected="from 0 to 1")
    return settings


def _converted(key: str, value: Any, default: Any, place: str) -> Any:
    """A value as the type of its default. YAML reads `5e-4` as text."""
    kind = type(default)
    if kind is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, str) for item in items):
            return tuple(items)
    elif kind is bool or isinstance(value, bool):
        if kind is type(value):
            return value
    else:
        try:
            converted = kind(value)
        except (TypeError, ValueError):
            converted = None
        if converted is not None and (kind is not int or float(value) == converted):
            return converted
    expected = {tuple: "a list of names", bool: "true or false", int: "a whole number", float: "a number"}
    raise ConfigError(f"The setting {key} cannot be {value!r}", where=place, expected=expected.get(kind, "text"))


def _near(name: str, known: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
