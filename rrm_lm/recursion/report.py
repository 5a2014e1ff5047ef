"""The report of a solved tree: results.json for programs and report.html for people, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
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
    """Write the results of every node and of the whole tree; return the path of the page."""
    nodes, domain = list(tree.walk()), tree.task.domain
    described = [_node(node, workspace) for node in nodes]
    found = {
        "program": f"rrm_lm {__version__}",
        "created": now(),
        "domain": domain.name,
        "overseer": domain.limit,
        "base_model": base_model,
        "root": tree.name,
        "nodes": described[::-1],
        "by_depth": by_depth(described),
        "total": total_costs([workspace.costs(node) for node in nodes]),
    }
    write_json(folder / RESULTS, found)
    write_text(folder / PAGE, render(found))
    return folder / PAGE


def by_depth(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Error rates of feedback and agents by the depth of helpers below a node; `nodes` as in `results`."""

    def errors(depth: int) -> dict[str, Any]:
        here = [node for node in nodes if node["depth"] == depth]
        labels = [1 - node["quality"]["labels"]["value"] for node in here if node["quality"].get("labels")]
        return {
            "depth": depth,
            "nodes": [node["name"] for node in here],
            "label_error": fmean(labels) if labels else None,
            "agent_error": fmean(1 - main_measure(node["quality"])[1]["value"] for node in here),
        }

    return [errors(depth) for depth in sorted({node["depth"] for node in nodes})]


def main_measure(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Label and value of an agent's main number: a helper's balanced accuracy, or the reward model's accuracy."""
    name = "balanced_accuracy" if found["kind"] == "helper" else "reward_accuracy"
    return name.replace("_", " "), found[name]


def render(found: dict[str, Any]) -> str:
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
        **{
            name: json.loads((folder / file).read_text(encoding="utf-8"))
            for name, file in (("costs", COSTS), ("quality", quality.FILE), ("notes", NOTES))
        },
    }
