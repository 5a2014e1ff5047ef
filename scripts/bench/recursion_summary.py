"""Summarizes the pieces of recursion.py: results/recursion.json, and the page with the computed verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recursion_rules import AIM, ARMS, BEST_OF, Crossed, Findings, Floats, Interval, conclude, over_seeds

from rrm_lm.evaluation.policies.best_of_n import expected_best
from rrm_lm.evaluation.reports import page
from rrm_lm.evaluation.reports.plots import ForestRow, forest
from rrm_lm.evaluation.statistics.metrics import Estimate, correctness
from rrm_lm.storage import now, write_json, write_text

_BY_SEED = {"reward_accuracy": "reward_accuracy", "best_of_16": "best_of_16", "policy_gold": "policy"}
DEPTHS = ("U", "A", "A2")  # by levels of helpers below the overseer
NOTES = "recursion_notes.txt"  # failed attempts, one per line; shown on the page


class Pieces:
    """The finished pieces of an experiment, as arrays (seeds, questions).

    Args:
        folder: The folder of the pieces.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.experiment, self.questions = _read(folder / "experiment.json"), _read(folder / "questions.json")
        self.arms: dict[str, dict[int, dict[str, Any]]] = {}
        self.policies: dict[str, dict[int, dict[str, Any]]] = {}
        self.helpers: dict[int, dict[str, Any]] = {}
        for file in sorted(folder.glob("seed*/*.json")):
            if file.stem in ("helpers", "deep"):
                self.helpers.setdefault(int(file.parent.name[4:]), {}).update(_read(file)["helpers"])
                continue
            if file.stem == "pairs":
                continue
            found = _read(file)
            kind = self.policies if file.stem.endswith("_policy") else self.arms
            kind.setdefault(found["arm"], {})[found["seed"]] = found

    def seeds(self, *arms: str, policies: bool = False) -> list[int]:
        """Seeds at which all of these arms are done."""
        found = [set((self.policies if policies else self.arms).get(arm, {})) for arm in arms]
        return sorted(set.intersection(*found)) if found else []

    def right(self, arm: str, seeds: Sequence[int], kind: str = "far") -> Floats:
        """Whether each fresh pair is ordered correctly."""
        return np.stack([correctness(self.arms[arm][seed][kind]) for seed in seeds])

    def best(self, arm: str, seeds: Sequence[int], n: int) -> Floats:
        """Gold of the best of n by the arm's reward, for each request; an unbiased estimate from all samples."""
        gold, place = self.questions["gold"], min(n, len(self.questions["gold"][0])) - 1
        return np.stack([expected_best(self.arms[arm][seed]["rewards"], gold)[:, place] for seed in seeds])

    def policy(self, arm: str, seeds: Sequence[int]) -> Floats:
        """Gold of the trained policy's response to each request."""
        return np.stack([np.asarray(self.policies[arm][seed]["gold"], dtype=float) for seed in seeds])


def results(pieces: Pieces) -> dict[str, Any]:
    """All results; exits with the missing pieces if there are any."""
    seeds, policy_seeds = pieces.seeds(*ARMS), pieces.seeds(*ARMS, policies=True)
    found: dict[str, Any] = {
        "created": now(), "seeds": seeds, "policy_seeds": policy_seeds, **pieces.experiment,
        "readable": pieces.questions.get("readable"), "helpers": _helpers(pieces),
    }  # fmt: skip
    if not seeds:
        return found | {"verdict": "not finished: no seed has all of " + ", ".join(ARMS)}
    pairs, requests = (Crossed(len(seeds), pieces.right("U", seeds).shape[1]),
                       Crossed(len(seeds), len(pieces.questions["requests"])))  # fmt: skip
    near = Crossed(len(seeds), pieces.right("U", seeds, "near").shape[1])
    right = {arm: pieces.right(arm, seeds) for arm in ARMS}
    best = {arm: {n: pieces.best(arm, seeds, n) for n in BEST_OF} for arm in ARMS}
    policy = {arm: pieces.policy(arm, policy_seeds) for arm in ARMS} if policy_seeds else {}
    by_policy = Crossed(len(policy_seeds), len(pieces.questions["requests"])) if policy_seeds else None
    found["arms"] = {
        arm: {
            "label_accuracy": _share([pieces.arms[arm][seed]["labels"] for seed in seeds]),
            "reward_accuracy": pairs.mean(right[arm]).to_dict(),
            "reward_accuracy_by_seed": [round(float(one.mean()), 4) for one in right[arm]],
            "near_accuracy": near.mean(pieces.right(arm, seeds, "near")).to_dict(),
            "best_of_n": {str(n): requests.mean(best[arm][n]).to_dict() for n in BEST_OF},
            "best_of_16_by_seed": [round(float(gold.mean()), 4) for gold in best[arm][BEST_OF[-1]]],
            "policy_gold": by_policy.mean(policy[arm]).to_dict() if by_policy else None,
            "policy_by_seed": [round(float(gold.mean()), 4) for gold in policy[arm]] if by_policy else [],
            "policy_unreadable": [_unreadable(pieces.policies[arm][seed]) for seed in policy_seeds],
            "cost": _cost(pieces, arm, seeds),
        }
        for arm in ARMS
    }
    top = {arm: best[arm][BEST_OF[-1]] for arm in ARMS}
    found |= {
        "pgr_reward_accuracy": pairs.ratio(right["A"] - right["U"], right["G"] - right["U"]).to_dict(),
        "pgr_best_of_16": requests.ratio(top["A"] - top["U"], top["G"] - top["U"]).to_dict(),
        "pgr_policy": by_policy.ratio(policy["A"] - policy["U"], policy["G"] - policy["U"]).to_dict()
        if by_policy else None,
        "differences": {
            f"{one} - {other}": {
                "reward_accuracy": pairs.mean(right[one] - right[other]).to_dict(),
                "best_of_16": requests.mean(top[one] - top[other]).to_dict(),
                "policy_gold": by_policy.mean(policy[one] - policy[other]).to_dict() if by_policy else None,
            }
            for one, other in (("A", "U"), ("G", "U"), ("A", "C"), ("Sh", "U"), ("A", "Sh"), ("C", "U"))
        },
        "ablations": _ablations(pieces),
        "depths": depths(pieces),
    }  # fmt: skip
    return judged(found)


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The results with intervals of differences over the means of seeds, and the verdict based on them."""
    found["over_seeds"] = {
        name: {
            measure: _over_seeds(*(found["arms"][arm].get(f"{key}_by_seed") for arm in name.split(" - ")))
            for measure, key in _BY_SEED.items()
        }
        for name in found["differences"]
    }
    by_seed: dict[str, Any] = {name: one["reward_accuracy"] for name, one in found["over_seeds"].items()}
    findings = Findings(
        gain=by_seed["A - U"], room=by_seed["G - U"], over_cost=by_seed["A - C"], sham=by_seed["Sh - U"],
        over_sham=by_seed["A - Sh"], best_gain=Interval(**found["differences"]["A - U"]["best_of_16"]),
        policy_gain=found["over_seeds"]["A - U"]["policy_gold"],
        curve=[found["arms"]["A"]["best_of_n"][str(n)]["value"] for n in BEST_OF],
        helpers={name: one["balanced_accuracy"] for name, one in found["helpers"].items() if one["helps_main"]},
    )  # fmt: skip
    conclusion = conclude(findings)
    found["aim_met"] = _aim(findings, found)
    found["over_seeds"] = {
        name: {measure: value and value.to_dict() for measure, value in one.items()}
        for name, one in found["over_seeds"].items()
    }
    return found | {"verdict": conclusion.verdict, "reasons": list(conclusion.reasons), "verdict_text": conclusion.text}


def _over_seeds(mine: Sequence[float] | None, theirs: Sequence[float] | None) -> Interval | None:
    """The difference of two arms by the means of their seeds; None if these were not saved."""
    return over_seeds(np.subtract(mine, theirs).tolist()) if mine and theirs else None


def _aim(findings: Findings, found: dict[str, Any]) -> dict[str, bool]:
    """The goals of the experiment, which are stricter than the rules."""
    return {
        "A - U at least 6 points": findings.gain.value >= AIM,
        "best-of-16 PGR at least 0.4": found["pgr_best_of_16"]["value"] >= 0.4,
        "A above C": findings.over_cost.value > 0,
        "Sh not above U": findings.sham.value <= 0,
    }


def _helpers(pieces: Pieces) -> dict[str, Any]:
    """By helper, its balanced accuracy: the mean over seeds, with the mean of its intervals' ends."""
    found: dict[str, Any] = {}
    for name in sorted({name for one in pieces.helpers.values() for name in one}):
        every = [one[name] for one in pieces.helpers.values() if name in one]
        parts = [one["quality"]["balanced_accuracy"] for one in every]
        found[name] = {
            "balanced_accuracy": _mean([part["value"] for part in parts]),
            "low": _mean([part["low"] for part in parts]),
            "high": _mean([part["high"] for part in parts]),
            "by_verdict": _mean([one["quality"]["by_verdict"]["value"] for one in every]),
            "by_seed": [round(part["value"], 4) for part in parts],
            "taken_for": [one["quality"]["taken_for"] for one in every],  # by seed: of each verdict, what was said
            "depth": every[0]["depth"],
            "checks": every[0]["costs"]["checks"],
            "seconds": _mean([sum(one["costs"]["seconds"].values()) for one in every]),
            # Those of the deeper tree help A2 alone, and its parts help only these.
            "helps_main": name in _main_helpers(pieces),
        }
    return found


def _main_helpers(pieces: Pieces) -> set[str]:
    return {name for file in pieces.folder.glob("seed*/helpers.json") for name in _read(file)["helpers"]}


def _ablations(pieces: Pieces) -> dict[str, Any]:
    """Each ablation minus A, at the seeds where both are done."""
    done = {arm: pieces.seeds("A", arm) for arm in sorted(set(pieces.arms) - set(ARMS))}
    return {arm: _against_a(pieces, arm, seeds) for arm, seeds in done.items() if seeds}


def depths(pieces: Pieces) -> dict[str, Any]:
    """Results by levels of helpers (none, one, two), at the seeds where all three are done."""
    seeds = pieces.seeds(*DEPTHS)
    return {str(depth): {"arm": arm, **_against_a(pieces, arm, seeds)} for depth, arm in enumerate(DEPTHS) if seeds}


def _against_a(pieces: Pieces, arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    pairs = Crossed(len(seeds), pieces.right("A", seeds).shape[1])
    requests = Crossed(len(seeds), len(pieces.questions["requests"]))
    mine, whole = pieces.right(arm, seeds), pieces.right("A", seeds)
    top, best = pieces.best(arm, seeds, BEST_OF[-1]), pieces.best("A", seeds, BEST_OF[-1])
    return {
        "seeds": list(seeds),
        "checks": pieces.arms[arm][seeds[0]]["checks"],
        "label_accuracy": _share([pieces.arms[arm][seed]["labels"] for seed in seeds]),
        "reward_accuracy": pairs.mean(mine).to_dict(),
        "less_A": pairs.mean(mine - whole).to_dict(),
        "best_of_16": requests.mean(top).to_dict(),
        "best_of_16_less_A": requests.mean(top - best).to_dict(),
    }


def _unreadable(policy: dict[str, Any]) -> float:
    """Fraction of a policy's responses that the domain cannot read; each gets the lowest gold."""
    return round(policy["unreadable"] / sum(len(group) for group in policy["responses"]), 4)


def _cost(pieces: Pieces, arm: str, seeds: Sequence[int]) -> dict[str, float]:
    """The cost of an arm at one seed, including its helpers."""
    found = [pieces.arms[arm][seed] for seed in seeds]
    helping = arm in ("A", "Sh")
    names = _main_helpers(pieces) if helping else set()
    helpers = [sum(sum(pieces.helpers[seed][name]["costs"]["seconds"].values()) for name in names) for seed in seeds]
    policies = [pieces.policies[arm][seed] for seed in seeds if seed in pieces.policies.get(arm, {})]
    return {
        "checks": found[0]["checks"],
        "comparisons": pieces.experiment["sizes"]["pairs"],
        "seconds": round(_mean([one["seconds"]["all"] for one in found]), 1),
        "helper_seconds": round(_mean(helpers), 1),
        "policy_seconds": round(_mean([one["seconds"] for one in policies]), 1) if policies else 0.0,
        "policy_tokens": round(_mean([one["tokens"] for one in policies])) if policies else 0,
    }


def _share(labels: Sequence[Sequence[int]]) -> float:
    return round(_mean([_mean(one) for one in labels]), 4)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# -- the page ---------------------------------------------------------------------------------------------------------


def render(found: dict[str, Any], notes: Sequence[str]) -> str:
    """The page as HTML."""
    rows = [ForestRow(f"{arm}: {_ARMS[arm]}", _estimate(one["reward_accuracy"])) for arm, one in found["arms"].items()]

    picture = page.embed(forest(rows, 0.5, note="chance"), "arms", "Reward accuracy of each arm")
    return page.render(
        "experiment.html.j2", found=found, notes=list(notes), picture=picture, arms=_ARMS, estimate=_estimate
    )


_ARMS = {
    "U": "nobody helps", "A": "helpers\N{RIGHT SINGLE QUOTATION MARK} notes", "Sh": "notes on another response",
    "C": "the checks spent without helpers", "G": "true labels",
}  # fmt: skip


def _estimate(value: dict[str, float] | Interval) -> Estimate:
    one = value.to_dict() if isinstance(value, Interval) else value
    return Estimate(one["value"], one["low"], one["high"], 0, 0)


def summarise(folder: Path, results_folder: Path, machine: dict[str, object]) -> str:
    """Write the JSON, and the page if at least one seed is complete; returns the verdict.

    Without a folder of pieces, the verdict is recomputed from the committed results.
    """
    if folder.is_dir():
        found = {"machine": machine, **results(Pieces(folder))}
    else:
        found = judged(_read(results_folder / "recursion.json"))
    write_json(results_folder / "recursion.json", found)
    if "arms" in found:
        notes = results_folder / NOTES
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
        write_text(results_folder / "recursion.html", render(found, [line for line in lines if line.strip()]))
    return str(found.get("verdict_text", found["verdict"]))
