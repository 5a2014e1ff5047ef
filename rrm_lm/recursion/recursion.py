"""Recursive reward modeling (Leike et al. 2018, arXiv 1811.07871, section 2.2): the one function that it is.

Solving a task solves its helpers first, lets them assist the overseer, collects comparisons and critiques, trains the
reward model, trains the policy. What each of these steps does and keeps is in `work.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rrm_lm.errors import RRMError, TrainingError
from rrm_lm.recursion.agents import Agent
from rrm_lm.recursion.tree import Node
from rrm_lm.recursion.work import Workshop

logger = logging.getLogger(__name__)


def solve(node: Node, workshop: Workshop) -> Agent:
    """The agent that solves a task, after its helpers. What was solved before is taken from its folder.

    Args:
        node: The task, and the tasks of its helpers.
        workshop: The backbone that all agents are on, and where their work is kept.

    Raises:
        TrainingError: A helper failed. The others are solved and kept; this task is not begun.
        RRMError: What a step raises; what is finished of it is kept, and the next call goes on from there.
    """
    if workshop.has(node):
        return workshop.agent(node)
    helpers = solve_all(node.helpers, workshop)
    with workshop.work_on(node) as work:
        assistance = work.assist(helpers)
        feedback = work.collect(assistance)
        rewards = work.train_reward(feedback, assistance)
        policy = work.train_policy(rewards)
        work.keep(policy, rewards)
    return workshop.agent(node)


def solve_all(nodes: Sequence[Node], workshop: Workshop) -> list[Agent]:
    """Agents for several tasks. They do not depend on each other, and one that fails does not stop the others.

    Raises:
        TrainingError: Some could not be solved.
    """
    workshop.solve_elsewhere(nodes)
    agents, failed = [], {}
    for node in nodes:
        try:
            agents.append(solve(node, workshop))
        except Exception as error:  # whatever it is, the others' work is worth having
            if not isinstance(error, RRMError):  # a fault of the program, whose traceback tells where
                logger.exception("the helper %s failed", node.name)
            failed[node.name] = error
    if failed:
        name, error = next(iter(failed.items()))
        raise TrainingError(
            f"Not every helper could be solved: {', '.join(failed)}. {name}: {error}",
            where=", ".join(failed),
            expected="every helper, before the task that they help with is begun",
            remedy="mend what is wrong, and start again: what is finished is kept and not done again",
        ) from error
    return agents
