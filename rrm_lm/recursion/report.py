"""The report of a solved tree: results.json for programs and report.html for people, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rrm_lm import __version__
from rrm_lm.evaluation.reports import page
from rrm_lm.evaluation.reports.plots import ForestRow, forest
from rrm_lm.evaluation.statistics.metrics import Estimate
from rrm_lm.recursion import quality
from rrm_lm.recursion.agents import total_costs
from rrm_lm.recursion.tree import Node
from rrm_lm.recursion.workspace import COSTS, NOTES, Workspace
from rrm_lm.storage import now, write_json, write_text

RESULTS, PAGE = "results.json", "report.html"


def write_report(tree: Node, workspace: Workspace, folder: Path, *, base_model: str) -> Path:
    """Write both files into a folder; return the path of the page."""
    found = results(tree, workspace, base_model=base_model)
    write_json(folder / RESULTS, found)
    write_text(folder / PAGE, render(found))
    return folder / PAGE


def results(tree: Node, workspace: Workspace, *, base_model: str) -> dict[str, Any]:
    """The results of every node and of the whole tree."""
    nodes = list(tree.walk())
    domain = tree.task.domain
    return {
        "program": f"rrm_lm {__version__}",
        "created": now(),
        "domain": domain.name,
        "overseer": domain.limit,
        "base_model": base_model,
        "root": tree.name,
        "nodes": [_node(node, workspace) for node in reversed(nodes)],
        "by_depth": by_depth([_node(node, workspace) for node in nodes]),
        "total": total_costs([workspace.costs(node) for node in nodes]),
    }


def by_depth(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Error rates of feedback and agents by the depth of helpers below a node; `nodes` as in `results`."""
    found = []
    for depth in sorted({node["depth"] for node in nodes}):
        here = [node for node in nodes if node["depth"] == depth]
        labels = [1 - node["quality"]["labels"]["value"] for node in here if node["quality"].get("labels")]
        agents = [1 - main_measure(node["quality"])[1]["value"] for node in here]
        found.append(
            {
                "depth": depth,
                "nodes": [node["name"] for node in here],
                "label_error": sum(labels) / len(labels) if labels else None,
                "agent_error": sum(agents) / len(agents),
            }
        )
    return found


def main_measure(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Label and value of an agent's main number: a helper's balanced accuracy, or the reward model's accuracy."""
    name = "balanced_accuracy" if found["kind"] == "helper" else "reward_accuracy"
    return name.replace("_", " "), found[name]


def render(found: dict[str, Any]) -> str:
    """The page as HTML."""
    found = json.loads(json.dumps(found, default=vars))
    measured = [(node, main_measure(node["quality"])) for node in found["nodes"]]
    rows = [ForestRow(f"{node['name']}: {label}", Estimate(**value)) for node, (label, value) in measured]
    root, (_, value) = next(pair for pair in measured if pair[0]["name"] == found["root"])
    return page.render(
        "recursion.html.j2",
        found=found,
        picture=page.embed(forest(rows, 0.5, note="chance"), "tree", "Quality of each agent"),
        measured=[(node, Estimate(**value)) for node, (_, value) in measured],
        root=root,
        root_value=Estimate(**value),
        estimate=lambda value: Estimate(**value),
    )


def _node(node: Node, workspace: Workspace) -> dict[str, Any]:
    folder = workspace.folder_of(node)
    return {
        "name": node.name,
        "task": node.task.name,
        "depth": node.depth,
        "helpers": [helper.name for helper in node.helpers],
        "policy": node.settings.policy,
        "costs": json.loads((folder / COSTS).read_text(encoding="utf-8")),
        "quality": json.loads((folder / quality.FILE).read_text(encoding="utf-8")),
        "notes": json.loads((folder / NOTES).read_text(encoding="utf-8")),
    }
