"""Recursive reward modeling (Leike et al. 2018, arXiv 1811.07871, section 2.2) as one function.

To solve a task, first solve its helpers. They assist the overseer, whose comparisons and critiques train the reward
model, against which the policy is trained. `steps.py` implements these steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rrm_lm.errors import RRMError, TrainingError
from rrm_lm.recursion.agents import Agent
from rrm_lm.recursion.steps import NodeRun
from rrm_lm.recursion.tree import Node
from rrm_lm.recursion.workspace import Workspace

logger = logging.getLogger(__name__)


def solve(node: Node, workspace: Workspace) -> Agent:
    """Train the agent for a task after those of its helpers. Solved nodes are loaded from disk.

    Raises TrainingError if a helper failed: the others are solved and saved, and this task is not started; RRMError if
    a step failed: finished steps are saved, and the next call resumes after them.
    """
    if workspace.is_solved(node):
        return workspace.agent(node)
    helpers = solve_all(node.helpers, workspace)
    with workspace.open_node(node) as folder:
        run = NodeRun(node, workspace, folder)
        assistance = run.assist(helpers)
        feedback = run.collect(assistance)
        scorer = run.train_reward(feedback, assistance)
        policy = run.train_policy(scorer)
        run.finish(policy, scorer)
    return workspace.agent(node)


def solve_all(nodes: Sequence[Node], workspace: Workspace) -> list[Agent]:
    """Solve several independent tasks. A failed task does not stop the others. Raises TrainingError: some tasks could
    not be solved.
    """
    workspace.solve_in_parallel(nodes)
    agents, failed = [], {}
    for node in nodes:
        try:
            agents.append(solve(node, workspace))
        except Exception as error:  # any error: still solve the other helpers
            if not isinstance(error, RRMError):  # a bug, so the traceback is needed
                logger.exception("the helper %s failed", node.name)
            failed[node.name] = error
    if failed:
        name, error = next(iter(failed.items()))
        raise TrainingError(
            f"Not every helper could be solved: {', '.join(failed)}. {name}: {error}",
            where=", ".join(failed),
            expected="every helper solved before the task it helps with is started",
            remedy="fix the cause and run the same command again: finished work is saved and not repeated",
        ) from error
    return agents
