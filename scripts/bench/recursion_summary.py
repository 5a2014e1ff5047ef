"""Summarizes the pieces of recursion.py: results/recursion.json, and the page with the computed verdict.

`by_seed` holds what was measured; everything else is computed from it. Seeds that the committed file holds and the
folder of pieces does not are kept, so that an experiment may go on on another machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recursion_rules import AIM, BEST_OF, CONTROLS, CORE, Findings, Interval, conclude, over_seeds, share

from rrm_lm.evaluation.policies.best_of_n import expected_best
from rrm_lm.evaluation.reports import page
from rrm_lm.evaluation.reports.plots import ForestRow, forest
from rrm_lm.evaluation.statistics.metrics import FEWEST_RUNS, Estimate, correctness, over_runs
from rrm_lm.storage import now, sha256, write_json, write_text

BEST = f"best_of_{BEST_OF[-1]}"
DEPTHS = ("U", "A", "A2")  # by levels of helpers below the overseer
DIFFERENCES = (
    ("A", "U"), ("G", "U"), ("A", "C"), ("C", "U"), ("Sh", "U"), ("A", "Sh"), ("A", "C0"), ("A", "C+"), ("A", "A0"),
)  # fmt: skip
MEASURES = ("reward_accuracy", "near_accuracy", BEST, "policy_gold")
FAR = "far_correct"
NOTES = "recursion_notes.txt"  # failed attempts, one per line; shown on the page

Seeds = dict[str, dict[str, Any]]  # by seed: `arms` and `helpers`


# -- what was measured ------------------------------------------------------------------------------------------------


def measured(folder: Path) -> Seeds:
    """The finished pieces of each seed."""
    questions, found = _read(folder / "questions.json"), Seeds()
    for place in sorted(folder.glob("seed*"), key=lambda one: int(one.name[4:])):
        arms = {file.stem: _read(file) for file in sorted(place.glob("*.json")) if "arm" in _read(file)}
        helpers: dict[str, Any] = {}
        for file in sorted(place.glob("helpers_*.json")):
            kind = file.stem.removeprefix("helpers_")
            helpers |= {f"{name} of {kind}" if kind != "A" else name: _helper(one, kind)
                        for name, one in _read(file)["helpers"].items()}  # fmt: skip
        names = [name for name in arms if not name.endswith("_policy")]
        pairs = sha256(place / "pairs.json") if names else ""
        found[place.name[4:]] = {
            "arms": {name: _arm(arms[name], arms.get(f"{name}_policy"), questions, pairs) for name in names},
            "helpers": helpers,
        }
    return {seed: one for seed, one in found.items() if one["arms"] or one["helpers"]}


def _together(old: Seeds, new: Seeds) -> Seeds:
    """All seeds; where both have an arm or a helper, the new one counts. Exits if their arms have other pairs."""
    empty: dict[str, Any] = {"arms": {}, "helpers": {}}
    for seed in {*old, *new}:
        arms = [*old.get(seed, empty)["arms"].values(), *new.get(seed, empty)["arms"].values()]
        if len({one["pairs"] for one in arms}) > 1:
            raise SystemExit(f"The arms of seed {seed} have different pairs: run all of a seed on one machine")
    return {
        seed: {key: old.get(seed, empty)[key] | new.get(seed, empty)[key] for key in empty}
        for seed in sorted({*old, *new}, key=int)
    }


def _arm(piece: dict[str, Any], policy: dict[str, Any] | None, questions: dict[str, Any], pairs: str) -> dict[str, Any]:
    """An arm at one seed. `pairs` is a digest of the pairs that it learned from, which all arms of a seed share."""
    best, most = expected_best(piece["rewards"], questions["gold"]), len(questions["gold"][0])
    found = {
        "label_accuracy": _mean(piece["labels"]),
        "reward_accuracy": float(correctness(piece["far"]).mean()),
        # By question, which all seeds share: 2 right, 1 tied, 0 wrong.
        FAR: "".join(f"{2 * one:.0f}" for one in correctness(piece["far"])),
        "near_accuracy": float(correctness(piece["near"]).mean()),
        **{f"best_of_{n}": float(best[:, min(n, most) - 1].mean()) for n in BEST_OF},
        "checks": piece["checks"],
        "comparisons": piece["comparisons"],
        "seconds": piece["seconds"]["all"],
        "commit": piece["commit"],
        "pairs": pairs,
    }
    if policy is not None:
        found |= {
            "policy_gold": _mean(policy["gold"]),
            # Fraction of the policy's responses that the domain cannot read; each gets the lowest gold.
            "policy_unreadable": policy["unreadable"] / sum(len(group) for group in policy["responses"]),
            "policy_seconds": policy["seconds"],
            "policy_tokens": policy["tokens"],
        }
    return found


def _helper(one: dict[str, Any], kind: str) -> dict[str, Any]:
    quality = one["quality"]
    return {
        "kind": kind,
        "balanced_accuracy": quality["balanced_accuracy"]["value"],
        "by_verdict": quality["by_verdict"]["value"],
        "taken_for": quality["taken_for"],  # of each true verdict, what was said
        "depth": one["depth"],
        "checks": one["costs"]["checks"],
        "seconds": sum(one["costs"]["seconds"].values()),
    }


# -- what follows from it ---------------------------------------------------------------------------------------------


def results(by_seed: Seeds, trivial: Mapping[str, float]) -> dict[str, Any]:
    """All results: every number with its t interval over the seeds that have it; of differences in accuracy between
    arms, also over questions.

    Args:
        by_seed: What was measured.
        trivial: Gold of responses that need no reward model, the arm B.

    Seeds count when all arms of the core are done, and their policies when all of these are.
    """
    every, by_seed = by_seed, _complete(by_seed)
    found: dict[str, Any] = {
        "seeds": _seeds(by_seed, *CORE),
        "policy_seeds": _seeds(by_seed, *CORE, key="policy_gold"),
        "arms": {arm: _over_arm(by_seed, arm) for arm in (*CORE, *CONTROLS) if _seeds(by_seed, arm)},
        "helpers": _helpers(by_seed),
        "by_seed": every,
    }
    if not found["seeds"]:
        return found | {"verdict": "not finished: no seed has all of " + ", ".join(CORE)}
    found["arms"]["B"] = dict(trivial)
    gains = {
        name: (_paired(by_seed, "A", "U", name), _paired(by_seed, "G", "U", name))
        for name in ("reward_accuracy", BEST, "policy_gold")
    }
    found |= {
        f"pgr_{name}": _share(*gain)
        for name, gain in zip(("reward_accuracy", BEST, "policy"), gains.values(), strict=True)
    }
    found["differences"] = {
        f"{one} - {other}": _differences(by_seed, one, other)
        for one, other in DIFFERENCES if _seeds(by_seed, one, other)
    }  # fmt: skip
    found["ablations"] = {arm: _against_a(by_seed, arm) for arm in _ablations(by_seed) if _seeds(by_seed, "A", arm)}
    deep = _seeds(by_seed, *DEPTHS)
    found["depths"] = {str(n): {"arm": arm, **_against_a(by_seed, arm, deep)} for n, arm in enumerate(DEPTHS) if deep}
    return found | _judged(by_seed, found)


def _complete(by_seed: Seeds) -> Seeds:
    """The seeds with all arms of the core, without the policies of seeds that lack one of these."""
    found = {seed: one for seed, one in by_seed.items() if all(arm in one["arms"] for arm in CORE)}
    for seed, one in found.items():
        if not all("policy_gold" in one["arms"][arm] for arm in CORE):
            arms = {name: {k: v for k, v in arm.items() if k != "policy_gold"} for name, arm in one["arms"].items()}
            found[seed] = {**one, "arms": arms}
    return found


def _judged(by_seed: Seeds, found: dict[str, Any]) -> dict[str, Any]:
    """The verdict, and the goals of the experiment, which are stricter than the rules."""

    def gain(one: str, other: str, key: str = "reward_accuracy") -> Interval:
        found = _difference(by_seed, one, other, key)
        assert found is not None  # the seeds have all arms of the core
        return found

    findings = Findings(
        gain=gain("A", "U"), room=gain("G", "U"), over_cost=gain("A", "C"),
        sham=_difference(by_seed, "Sh", "U"), over_sham=_difference(by_seed, "A", "Sh"),
        best_gain=gain("A", "U", BEST), policy_gain=_difference(by_seed, "A", "U", "policy_gold"),
        curve=[found["arms"]["A"]["best_of_n"][str(n)]["value"] for n in BEST_OF],
        helpers={name: Interval(*_ends(one["balanced_accuracy"])) for name, one in found["helpers"].items()
                 if one["helps_main"]},
    )  # fmt: skip
    conclusion = conclude(findings)
    best = found[f"pgr_{BEST}"]
    return {
        "verdict": conclusion.verdict,
        "reasons": list(conclusion.reasons),
        "verdict_text": conclusion.text,
        "aim_met": {
            "A - U at least 6 points": findings.gain.value >= AIM,
            "best-of-16 PGR at least 0.4": None if best is None else best["value"] >= 0.4,
            "A above C": findings.over_cost.value > 0,
            "Sh not above U": None if findings.sham is None else findings.sham.value <= 0,
        },
    }


def _difference(by_seed: Seeds, one: str, other: str, key: str = "reward_accuracy") -> Interval | None:
    """The difference of two arms with its interval over seeds; for accuracies of five seeds or more, over seeds and
    questions. None if no seed has both.
    """
    means = _paired(by_seed, one, other, key)
    if not means:
        return None
    if key != "reward_accuracy":
        return over_seeds(means)
    return _minus(by_seed, one, other, _seeds(by_seed, one, other, key=key))


def _minus(by_seed: Seeds, one: str, other: str, seeds: Sequence[int]) -> Interval:
    """The difference of two arms in accuracy at these seeds."""
    arms = [by_seed[str(seed)]["arms"] for seed in seeds]
    if len(arms) < FEWEST_RUNS:
        return over_seeds([of[one]["reward_accuracy"] - of[other]["reward_accuracy"] for of in arms])
    each = np.array([[[int(digit) / 2 for digit in of[arm][FAR]] for arm in (one, other)] for of in arms])
    found = over_runs(each[:, 0] - each[:, 1], [str(number) for number in range(each.shape[-1])])
    return Interval(found.value, found.low, found.high)


def _over_arm(by_seed: Seeds, arm: str) -> dict[str, Any]:
    """An arm over its seeds. The cost is that of one seed, including its helpers."""
    seeds, policies = _seeds(by_seed, arm), _seeds(by_seed, arm, key="policy_gold")

    def values(key: str, which: Sequence[int] = seeds) -> list[float]:
        return [by_seed[str(seed)]["arms"][arm][key] for seed in which]

    kind = {"A": "A", "Sh": "A", "A0": "A0"}.get(arm)
    helping = [sum(one["seconds"] for one in by_seed[str(seed)]["helpers"].values() if one["kind"] == kind)
               for seed in seeds]  # fmt: skip
    return {
        "seeds": seeds,
        "label_accuracy": _mean(values("label_accuracy")),
        "reward_accuracy": over_seeds(values("reward_accuracy")).to_dict(),
        "reward_accuracy_by_seed": _rounded(values("reward_accuracy")),
        "near_accuracy": over_seeds(values("near_accuracy")).to_dict(),
        "best_of_n": {str(n): over_seeds(values(f"best_of_{n}")).to_dict() for n in BEST_OF},
        f"{BEST}_by_seed": _rounded(values(BEST)),
        "policy_gold": over_seeds(values("policy_gold", policies)).to_dict() if policies else None,
        "policy_by_seed": _rounded(values("policy_gold", policies)),
        "policy_unreadable": _rounded(values("policy_unreadable", policies)),
        "cost": {
            "checks": values("checks")[0],
            "comparisons": round(_mean(values("comparisons"))),
            "seconds": round(_mean(values("seconds")), 1),
            "helper_seconds": round(_mean(helping), 1),
            "policy_seconds": round(_mean(values("policy_seconds", policies)), 1) if policies else 0.0,
            "policy_tokens": round(_mean(values("policy_tokens", policies))) if policies else 0,
        },
    }


def _differences(by_seed: Seeds, one: str, other: str) -> dict[str, Any]:
    gains = {key: _difference(by_seed, one, other, key) for key in MEASURES}
    found: dict[str, Any] = {key: gain and gain.to_dict() for key, gain in gains.items()}
    return found | {"seeds": _seeds(by_seed, one, other)}


def _against_a(by_seed: Seeds, arm: str, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """An arm, and its difference from A, at the seeds where both are done."""
    seeds = _seeds(by_seed, "A", arm) if seeds is None else seeds
    mine = [by_seed[str(seed)]["arms"][arm] for seed in seeds]
    return {
        "seeds": list(seeds),
        "checks": mine[0]["checks"],
        "label_accuracy": _mean([one["label_accuracy"] for one in mine]),
        "reward_accuracy": over_seeds([one["reward_accuracy"] for one in mine]).to_dict(),
        "less_A": _minus(by_seed, arm, "A", seeds).to_dict(),
        BEST: over_seeds([one[BEST] for one in mine]).to_dict(),
        f"{BEST}_less_A": over_seeds(_paired(by_seed, arm, "A", BEST, seeds)).to_dict(),
    }


def _helpers(by_seed: Seeds) -> dict[str, Any]:
    """By helper, its quality over the seeds. Those of A alone decide the verdict."""
    found: dict[str, Any] = {}
    for name in sorted({name for one in by_seed.values() for name in one["helpers"]}):
        every = [one["helpers"][name] for one in by_seed.values() if name in one["helpers"]]
        found[name] = {
            "balanced_accuracy": over_seeds([one["balanced_accuracy"] for one in every]).to_dict(),
            "by_verdict": _mean([one["by_verdict"] for one in every]),
            "by_seed": _rounded([one["balanced_accuracy"] for one in every]),
            "depth": every[0]["depth"],
            "checks": every[0]["checks"],
            "seconds": _mean([one["seconds"] for one in every]),
            "helps_main": every[0]["kind"] == "A",
        }
    return found


def _ablations(by_seed: Seeds) -> list[str]:
    done = {arm for one in by_seed.values() for arm in one["arms"]}
    return sorted(done - {*CORE, *CONTROLS, *DEPTHS})


def _seeds(by_seed: Seeds, *arms: str, key: str = "reward_accuracy") -> list[int]:
    """Seeds at which all of these arms have been measured."""
    return [int(seed) for seed, one in by_seed.items() if all(key in one["arms"].get(arm, {}) for arm in arms)]


def _paired(by_seed: Seeds, one: str, other: str, key: str, seeds: Sequence[int] | None = None) -> list[float]:
    """The differences of two arms, by seed."""
    seeds = _seeds(by_seed, one, other, key=key) if seeds is None else seeds
    arms = [by_seed[str(seed)]["arms"] for seed in seeds]
    return [of[one][key] - of[other][key] for of in arms]


def _share(gain: Sequence[float], room: Sequence[float]) -> dict[str, float | None] | None:
    """The performance gap recovered; None ("not testable") while the interval of what there is to gain includes 0."""
    found = share(gain, room) if room else None
    return found and found.to_dict()


def _ends(value: Mapping[str, float | None]) -> tuple[float, float, float]:
    """An interval from its dictionary, in which None is an infinite end."""
    middle, low, high = value["value"], value["low"], value["high"]
    assert middle is not None
    return middle, -math.inf if low is None else low, math.inf if high is None else high


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# -- the files --------------------------------------------------------------------------------------------------------


def render(found: dict[str, Any], notes: Sequence[str]) -> str:
    """The page as HTML."""
    arms = {arm: one for arm, one in found["arms"].items() if arm != "B"}
    rows = [
        ForestRow(f"{arm}: {_ARMS[arm]}", _estimate(one["reward_accuracy"]), dots=tuple(one["reward_accuracy_by_seed"]))
        for arm, one in arms.items()
    ]
    picture = page.embed(forest(rows, 0.5, note="chance"), "arms", "Reward accuracy of each arm")
    return page.render("experiment.html.j2", found=found, of=arms, notes=list(notes), picture=picture, arms=_ARMS)


_ARMS = {
    "U": "nobody helps", "A": "helpers\N{RIGHT SINGLE QUOTATION MARK} notes", "Sh": "notes on another response",
    "C": "the checks spent without helpers", "C0": "C\N{RIGHT SINGLE QUOTATION MARK}s measured pairs alone",
    "C+": "C, measured pairs three times", "A0": "helpers without planted designs", "G": "true labels",
}  # fmt: skip


def _estimate(value: Mapping[str, float | None]) -> Estimate:
    return Estimate(*_ends(value), 0, 0)


def summarise(folder: Path, results_folder: Path, machine: dict[str, object]) -> str:
    """Write the JSON, and the page if at least one seed is complete; returns the verdict.

    Without a folder of pieces, everything is computed again from `by_seed`. Exits if the file is of another experiment.
    """
    file = results_folder / "recursion.json"
    old, experiment = _read(file), _read(folder / "experiment.json")
    if old and experiment and any(old.get(key) != value for key, value in experiment.items()):
        raise SystemExit(f"{file} is of another experiment: choose another --results")
    questions = _read(folder / "questions.json")
    here = measured(folder)
    found = {
        "created": now(),
        "machines": {**old.get("machines", {}), **dict.fromkeys(here, machine)},
        **{key: old[key] for key in ("model", "domain", "sizes", "readable", "trivial") if key in old},
        **experiment,
        **{key: questions[key] for key in ("readable", "trivial") if key in questions},
    }
    found |= results(_together(old.get("by_seed", {}), here), found.get("trivial", {}))
    write_json(file, found)
    if found["seeds"]:
        notes = results_folder / NOTES
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
        write_text(results_folder / "recursion.html", render(found, [line for line in lines if line.strip()]))
    return str(found.get("verdict_text", found["verdict"]))
