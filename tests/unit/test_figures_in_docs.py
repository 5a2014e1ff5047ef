"""Figures in README.md, scripts/bench/README.md and the data card match the JSON files that they cite."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from rrm_lm.evaluation.statistics import metrics
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.simulated.plain_user import PlainUser
from rrm_lm.simulated.plain_words import WEIGHTS

ROOT = Path(__file__).parents[2]
RESULTS, DATA = ROOT / "scripts" / "bench" / "results", ROOT / "data" / "assistant"
NOTES = ROOT / "data" / "notes"
OVERLAP_RULE = "sentence with most of the question's words plus a close"  # as in aligned.py
README, BENCH, CARD = ROOT / "README.md", RESULTS.parent / "README.md", DATA / "README.md"

Found = dict[str, Any]


@cache
def result(name: str) -> Found:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def plain(one: Found, digits: int = 2, *, factor: float = 1, sign: str = "", unit: str = "") -> str:
    """A number with its interval."""
    value, low, high = (factor * one[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.{digits}f}{unit} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def points(one: Found) -> str:
    return plain(one, 1, factor=100, sign="+")


def percent(one: Found) -> str:
    return plain(one, 1, factor=100, unit="%")


def by_seed(values: list[float], digits: int = 1, factor: float = 100) -> str:
    return ", ".join(f"{factor * value:.{digits}f}" for value in values)


# ---- what each document must say, from the files ----


def critiques() -> Iterator[str]:
    found = {(one["set"], one["budget"], one["arm"]): one for one in result("critiques")["results"]}
    for budget in (8, 16, 32):
        alone = found["assistant", budget, "pairs"]
        gains = [found.get(("assistant", budget, arm)) for arm in ("all", "read", "stars")]
        cells = ["" if gain is None else points(gain["gain"]) for gain in gains]
        yield f"| {budget} | {len(alone['seeds'])} | {100 * alone['accuracy']:.1f}% | {' | '.join(cells)} |"
    yield f"{points(found['assistant', 32, 'reward']['gain'])} points with 32 comparisons and two seeds"
    for budget in (8, 16):
        yield f"{points(found['feedbackqa', budget, 'all']['gain'])} points with {budget} comparisons"


def clauses() -> Iterator[str]:
    names = {"all": "all", "feedbackqa": "people (FeedbackQA)", "own": "written for this file"}
    for key, name in names.items():
        one = result("clauses")["final"][key]
        shares = " | ".join(percent(one[part]) for part in ("coverage", "direction", "direction_and_aspect", "false"))
        yield f"| {name} | {one['coverage']['n']} | {shares} of {one['false']['n']} |"


def words() -> Iterator[str]:
    found = result("words")
    for name, sets in found["sets"].items():
        for budget in ("8", "16", "32"):
            one, gains = sets[budget]["accuracy"], sets[budget]["gain_over"]
            before, after = (f"{100 * one[arm]['value']:.1f}%" for arm in ("no_words", "words"))
            cells = [
                points(gains[arm]) if arm in gains else "-"
                for arm in ("no_words", "other_person", "default", "equal_time", "checkboxes")
            ]
            yield f"| {name} | {budget} | {before} | {after} | {' | '.join(cells)} |"
    for arm in ("no_words", "other_person"):
        yield f"**{points(found['primary']['gain_over'][arm])}**"
    assert found["primary"]["verdict"] == "aim reached"


def notes() -> Iterator[str]:
    searched = {
        "values, then all (450 questions, 3 and 2 passes)": "values, then all (450 questions)",
        "values, then contrasts (60 patterns, seen once)": "values, then contrasts",
        "contrasts at a constant rate": "contrasts at a constant rate",
        "contrasts at a constant rate, then all": "contrasts at a constant rate, then all",
    }
    for name, chain in searched.items():
        one = result("reward_search")[f"{chain}, seed 42"]
        kinds = (f"{100 * one['by_source'][f'notes, {kind} pairs']['value']:.1f}%" for kind in ("answer", "manner"))
        yield f"| {name} | {percent(one['accuracy'])} | {' | '.join(kinds)} | {sum(one['seconds'])} |"
    pilot = result("notes_pilot")["temperature_0"]
    for policy, name in (("start", "SmolLM2"), ("sft", "SFT"), ("ppo", "PPO")):
        yield f"{name} {plain(pilot['policies'][policy]['answer'], 3)}"
    yield f"PPO minus SFT {plain(pilot['ppo_minus_sft']['answer'], 3, sign='+')}"
    yield f"in gold {plain(pilot['ppo_minus_sft']['gold'], 3, sign='+')}"


def sft_pilot() -> Iterator[str]:
    found = result("notes_sft_pilot")
    passes = found["right_at_temperature_0"]
    yield f"One pass is right on {percent(passes['sft_450_one_pass']['right'])}"
    yield f"three passes on {percent(passes['sft_450_three_passes']['right'])}"
    yield f"on {100 * passes['sft_450_three_passes']['hard']['value']:.0f}% of hard questions"
    runs = found["ppo_from_three_passes"]
    fast, slow = runs["learning_rate_3e-4"], runs["learning_rate_1e-4"]
    yield f"from {100 * fast[0]['right']:.1f}% to {100 * fast[-1]['right']:.1f}% in {fast[-1]['update']} updates"
    yield f"to {100 * slow[-1]['right']:.1f}% in {slow[-1]['update']}"
    new, change = found["ppo_with_new_questions"], found["ppo_with_new_questions"]["right_after_minus_before"]
    before, after = (f"{100 * new[when]['right']['value']:.1f}%" for when in ("before", "after"))
    yield f"{before} before and {after} after 10 updates ({points(change).replace(' (', ' points, ')}"
    of_values = found["reward_model_from_one_pass"]["by_source"]["notes, answer pairs"]
    yield f"on {percent(of_values)} of answer pairs after 70 steps"
    first, last = found["ppo_from_one_pass"][0], found["ppo_from_one_pass"][-1]
    yield f"from {100 * first['right']:.1f}% to {100 * last['right']:.1f}% in {last['update']} updates"


def aligned() -> Iterator[str]:
    found = result("aligned")
    yield f"{percent(found['reward_accuracy'])} of {found['reward_accuracy']['n']} comparisons"
    yield f"on {percent(found['answer_pairs_accuracy'])} of those"
    yield f"linear probe on {100 * found['baselines']['probe']['accuracy']['value']:.1f}%"
    yield f"of {found['reward_accuracy']['clusters']} patterns"
    for policy, one in found["policies"].items():
        greedy = found["policies_at_temperature_0"].get(policy)
        values = [here and here["gold"] for here in (one, greedy)]
        values += [here and here["parts"]["answer"] for here in (one, greedy)]
        yield f"| {' | '.join(plain(value, 3) if value else '' for value in values)} |"
    yield f"gold {plain(found['ppo_minus_best_other'], 3, sign='+')}, at temperature 0"
    yield f"{plain(found['ppo_minus_best_other_at_temperature_0'], 3, sign='+')}; right answers"
    yield plain(found["answer_ppo_minus_best_other"], 3, sign="+")
    yield ", ".join(f"{name} {one['gold']['value']:.3f}" for name, one in found["trivial"].items())
    rule = found["trivial"][OVERLAP_RULE]
    yield f"gold of {rule['gold']['value']:.3f} and is right on {100 * rule['answer']['value']:.1f}%"
    files = ("train_plain.jsonl.gz", "train_plain_contrasts.jsonl.gz")
    comparisons = sum(len(gzip.decompress((NOTES / name).read_bytes()).splitlines()) for name in files)
    drawn = re.findall(r"pairs: int = (\d+)", (RESULTS.parent / "aligned_dpo.py").read_text(encoding="utf-8"))
    yield f"{int(drawn[0]):,} of the {comparisons:,} comparisons"
    columns = ("start", "sft", "ppo", "dpo", "best_of_8", "best_of_8_by_truth", OVERLAP_RULE)
    for wording, one in found["answers_by_wording"].items():
        pairs = percent(found["answer_pairs_by_wording"][wording])
        yield f"| {wording} ({one['questions']}) | {' | '.join(percent(one[name]) for name in columns)} | {pairs} |"
    general = [one["general"] for one in found["by_seed"]]
    for policy in ("sft", "policy", "dpo"):
        answers = [one[policy]["parts"]["answer"]["level"]["value"] for one in general]
        yield f"{min(answers):.2f} to {max(answers):.2f}"
    ended = {name: [one[name]["drift"]["finished"]["level"]["value"] for one in general] for name in ("sft", "policy")}
    start = [one["smollm2-135m"]["drift"]["finished"]["level"]["value"] for one in general]
    sft, ours = (f"{100 * min(ended[name]):.0f} to {100 * max(ended[name]):.0f}%" for name in ("sft", "policy"))
    yield f"{sft} of SFT's answers end, {ours} of PPO's, and {100 * min(start):.0f}% of SmolLM2's"
    if likelihood := found["general_likelihood"]:
        minus = {name: plain(one, 2, sign="+") for name, one in likelihood["minus_start"].items()}
        yield f"start model's {likelihood['start']['value']:.2f}: SFT {minus['sft']}, PPO {minus['ppo']},"
        yield f"DPO {minus['dpo']} nats"


def served() -> Iterator[str]:
    found = result("serve")
    yield f"{100 * found['throughput_share']:.1f}% of that throughput ({found['responses_per_second']:.2f}"
    yield f"lost {found['lost']} of {found['responses']} responses"
    yield f"half of the requests took {found['p50_ms'] / 1000:.1f} s"


def asking() -> Iterator[str]:
    found = result("asking")
    load, keys = found["load"], found["keys"]
    yield f"{load['people']} people gave {load['answers']:,} answers in {load['seconds'] / 60:.0f} minutes"
    yield f"{load['lost']} were lost and {load['doubled']} stored twice"
    yield f"{load['p50_ms']:.0f} ms for half of them and {load['p95_ms']:.0f} ms for 95%"
    yield f"{keys['p50_ms']:.0f} ms, and in 95% at most {keys['p95_ms']:.0f} ms"
    for name in ("notes", "assistant"):
        one = found["curve"][name]
        for budget, difference in list(one["disagreement_minus_random"].items())[1:]:  # the first answers are the same
            values = (100 * one["accuracy"][arm][budget]["value"] for arm in ("random", "disagreement"))
            yield f"| {name} | {budget} | {' | '.join(f'{value:.1f}%' for value in values)} | {points(difference)} |"


def words_lora() -> Iterator[str]:
    found = result("words_lora")["budgets"]["16"]
    for person, one in found.items():
        arms = ("pairs", "words", "other_person", "detectors", "words_alone")
        cells = " | ".join(f"{100 * one['accuracy'][arm]['value']:.1f}%" for arm in arms)
        yield f"| {person} | {cells} |"
    gains = found["both"]["gain_of_words_over"]
    verdicts = [gains[arm]["verdict"] for arm in ("pairs", "other_person", "detectors")]
    assert verdicts == ["better", "better", "not shown"]
    yield f"**{points(gains['pairs'])}** to the LoRA reward and {points(gains['other_person'])}"
    yield f"is not shown: {points(gains['detectors'])}"
    yield f"{len(found['plain']['accuracy']['words']['by_run'])} draws of each person"
    first, gain = (found["plain"][key]["after_criteria"] for key in ("accuracy", "gain_of_words_over"))
    yield f"{100 * first['value']:.1f}% for the plain person (range of 2 runs: {100 * first['low']:.1f} to"
    yield f"{100 * first['high']:.1f}), {100 * gain['value']:.1f} points less"


def words_arms() -> Iterator[str]:
    found = result("words_lora")["budgets"]["16"]
    for person in ("plain", "thorough"):
        gains = [found[person]["gains"][f"{arm}/pairs"] for arm in ("stars", "directed", "random", "distilled")]
        assert all(one["kind"].startswith("range of") for one in gains)
        cells = (f"{points(one)}, {len(one['by_run'])} draws" for one in gains)
        yield f"| {person} | {' | '.join(cells)} |"
    better = [found[person]["gains"]["directed/random"] for person in ("plain", "thorough")]
    yield f"in every draw: {points(better[0])} and {points(better[1])}."
    loss = [found[person]["gains"]["loss/pairs"] for person in ("plain", "thorough", "both")]
    yield f"adds {points(loss[0])} for the plain person in {len(loss[0]['by_run'])} draws"
    yield f"{points(loss[1])} for the thorough one in {len(loss[1]['by_run'])}, and {points(loss[2])} in both"


def words_follow() -> Iterator[str]:
    found = result("words_follow")
    for person in ("plain", "thorough"):
        one = found[person]["all"]
        arms = ("pairs", "words", "other_person", "detectors", "words_alone")
        cells = " | ".join(f"{100 * one['share'][arm]['value']:.1f}%" for arm in arms)
        yield f"| {person} | {one['edits']} | {cells} | {points(one['gain_of_words_over']['detectors'])} |"
    gains = [found[person]["all"]["gain_of_words_over"] for person in ("plain", "thorough")]
    assert [one["pairs"]["verdict"] for one in gains] == ["better", "better"]
    assert [one["detectors"]["verdict"] for one in gains] == ["better", "not shown"]
    for gain, person in zip(gains, ("plain person", "thorough one"), strict=True):
        yield f"{points(gain['pairs'])} for the {person}"


def words_best_of() -> Iterator[str]:
    found = result("words_best_of")
    for person in ("plain", "thorough", "both"):
        arms = ("any", "pairs", "words", "other_person", "detectors", "words_alone", "best")
        cells = " | ".join(f"{found[person]['gold'][arm]['value']:.3f}" for arm in arms)
        yield f"| {person} | {cells} |"
    gains = found["both"]["gold_gain_of_words_over"]
    for arm in ("pairs", "other_person", "detectors"):
        assert gains[arm]["verdict"] == ("not shown" if arm == "detectors" else "better")
        yield plain(gains[arm], 3, sign="+")
    one, alone, words = (f"{100 * found['both']['right'][arm]['value']:.1f}%" for arm in ("any", "pairs", "words"))
    yield f"{one} of the answers are right, {alone} of those chosen without words, {words} with words"


def words_policy() -> Iterator[str]:
    found = result("words_policy")
    for person in ("plain", "thorough", "both"):
        if person in found:
            arms = [found[person]["arms"][arm] for arm in ("start", "pairs", "words")]
            cells = [f"{one['gold']['value']:.3f}" for one in arms]
            cells += [f"{100 * one['answer']['value']:.0f}%" for one in arms]
            gains = [plain(found[person][f"words_minus_{arm}"]["gold"], 3, sign="+") for arm in ("pairs", "start")]
            yield f"| {person} | {' | '.join(cells + gains)} |"
    verdicts = [found[person]["words_minus_pairs"]["gold"]["verdict"] for person in ("plain", "thorough", "both")]
    assert verdicts == ["worse", "not shown", "not shown"]
    assert found["plain"]["draws"] == found["thorough"]["draws"] == [1, 2, 3, 4, 5]
    name = "sentence with most of the question's words plus a close"
    plain_one, thorough = (found[person]["trivial"][name] for person in ("plain", "thorough"))
    yield f"a gold of {plain_one['gold']:.3f} for the plain person and {thorough['gold']:.3f} for the thorough one"
    yield f"is right on {100 * plain_one['answer']:.0f}% of these questions"


def critic() -> Iterator[str]:
    found = result("critic")
    yield f"{percent(found['accuracy']['none-plain'])} of {found['heldout']['pairs']} held-out pairs"
    for name in ("critic", "sham", "human"):
        yield f"{points(found['differences'][f'{name}-notes minus none-notes'])}"
    for name in ("none", "critic", "human"):
        yield f"{found['length']['correlation'][f'{name}-notes']['within_spearman']['value']:.2f}"
    yield f"the longer answer is right in {100 * found['length']['longer_is_right']['value']:.0f}%"
    yield f'"{found["verdict"]}"'


def recursion() -> Iterator[str]:
    """Without seed 0, the pilot."""
    found = result("recursion_first")
    names = {"U": "U: nobody helps", "A": "A: helpers' notes", "Sh": "Sh: notes on another response",
             "C": "C: the checks without helpers", "G": "G: true labels"}  # fmt: skip
    arms = {arm: [found["arms"][arm][f"{name}_by_seed"] for name in ("reward_accuracy", "policy")] for arm in names}
    for arm, name in names.items():
        cells = zip(arms[arm], (1, 2), (100, 1), strict=True)
        yield (
            f"| {name} | "
            + " | ".join(
                f"{by_seed(values[1:], digits, scale)} (pilot {scale * values[0]:.{digits}f})"
                for values, digits, scale in cells
            )
            + " |"
        )
    for one, other in ("AU", "GU", "AC", ("Sh", "U"), ("A", "Sh"), "CU"):
        pairs = zip(arms[one], arms[other], (1, 2), (100, 1), strict=True)
        yield (
            f"| {one} - {other} | "
            + " | ".join(
                ", ".join(f"{scale * (a - b):+.{digits}f}" for a, b in zip(first[1:], second[1:], strict=True))
                for first, second, digits, scale in pairs
            )
            + " |"
        )
    for arm, one in found["ablations"].items():
        yield f"| {arm} | {one['checks']} | {100 * one['reward_accuracy']['value']:.1f}% | {points(one['less_A'])} |"
    for name in ("benchmark", "heat", "lifetime", "security"):
        yield f"{found['helpers'][name]['balanced_accuracy']:.2f}"
    yield f"{100 * found['arms']['C']['policy_unreadable'][0]:.0f}% of its responses cannot be read"
    gain = recursion_gain()
    yield f"{plus(gain.value)} points ({gain.kind}: {plus(gain.low)} to {plus(gain.high)})"


def new_recursion() -> Iterator[str]:
    found = result("recursion")
    assert found["verdict"] == "not shown to help"
    yield f"of which {len(found['seeds'])} are done"
    arms = (f"{100 * found['arms'][arm]['reward_accuracy']['value']:.1f}% ({arm})" for arm in ("U", "A", "C", "G"))
    yield "{}, {}, {} and {}".format(*arms)
    gain = found["differences"]["A - U"]["reward_accuracy"]
    yield f"A - U is {plus(gain['value'])} points ({plus(gain['low'])} to {plus(gain['high'])})"


def recursion_gain() -> metrics.OverRuns:
    """Reward accuracy of A minus that of U, over the seeds that count."""
    arms = result("recursion_first")["arms"]
    assisted, alone = (np.array(arms[name]["reward_accuracy_by_seed"])[1:, None] for name in ("A", "U"))
    return metrics.over_runs(assisted - alone, ["all questions"])


def plus(value: float) -> str:
    return f"{100 * value:+.1f}"


def reward_speed() -> Iterator[str]:
    found = result("reward")
    ours, trl, single = found["ours"], found["trl"], found["trl_accumulated"]
    low, high = min(found["ratio_rounds"]), max(found["ratio_rounds"])
    yield (
        f"| pairs trained per second | {ours['pairs_per_second']:.2f} | {trl['pairs_per_second']:.2f} "
        f"({found['ratio']:.1f} times slower; rounds {low:.1f} to {high:.1f}) | {single['pairs_per_second']:.2f} "
        f"({found['ratio_accumulated']:.1f} times slower) |"
    )
    yield f"| peak memory | {ours['peak_rss_mb'] / 1000:.1f} GB | {trl['peak_rss_mb'] / 1000:.1f} GB | |"
    score = found["score"]
    yield (
        f"| responses scored per second, four to a prompt | {score['ours']['responses_per_second']:.1f} "
        f"| {score['trl']['responses_per_second']:.1f} (`get_reward`, batch 8) | |"
    )
    yield f"{100 * found['ceiling_share']:.0f}% of the matrix-product ceiling"
    yield f"between {min(found['ceiling_gflops_all']):.0f} and {max(found['ceiling_gflops_all']):.0f} GFLOP/s"
    yield f"by at most {found['score']['largest_difference_of_rewards']:.0e}".replace("e-06", "e-6")


def policy_speed() -> Iterator[str]:
    found = result("policy")
    names = {
        "epochs_2": "two PPO epochs",
        "epochs_4": "four PPO epochs (TRL's default)",
        "samples_4": "four samples a prompt",
    }
    for key, name in names.items():
        rounds = [one["trl"][key]["iteration"] / one["ours"][key]["iteration"] for one in found["rounds"]]
        yield (
            f"| an iteration, {name} | {found['seconds']['ours'][key]['iteration']:.1f} s "
            f"| {found['iteration_ratio'][key]:.1f} times as long (rounds {min(rounds):.1f} to {max(rounds):.1f}) |"
        )
    yield (
        f"| rollouts | {found['rollout_tokens_per_second']['ours']:.0f} tokens/s | {found['rollout_ratio']:.1f} times |"
    )
    update = f"{found['update_ratio']:.1f} times"
    yield f"| the strictly equivalent update (separate value model, TRL's masks) | | {update} |"
    peak = found["peak_rss_mb"]
    yield f"| peak memory | {peak['ours'] / 1000:.1f} GB | {peak['trl'] / 1000:.1f} GB |"
    parts = found["seconds"]["ours"]["epochs_2"]
    yield ", ".join(f"{parts[key]:.1f}" for key in ("roll_out", "score", "estimate", "update"))
    yield f"{100 * found['ceiling_share']['matrix_product_of_passes']:.0f}% of the matrix-product ceiling"
    yield f"TRL takes {found['iteration_ratio_nothing_shared']:.1f} times as long"
    heads = result("ensemble")
    low, high = min(heads["ratio_rounds"]), max(heads["ratio_rounds"])
    yield f"({heads['ratio']:.2f} times, rounds {low:.2f} to {high:.2f}"


DEMO_ROWS = (
    "SmolLM2-135M-Instruct",
    "SFT on 450 demonstrations",
    "then PPO, 8 updates of 64 episodes",
    'always "I hope this helps! Have a lovely day!"',
    'SmolLM2\'s first sentence + "Hope this helps!"',
)


def demo() -> Iterator[str]:
    found = result("demo")["compare"]["policies"]
    for name, one in zip(DEMO_ROWS, found.values(), strict=True):
        difference = one["against_reference"].get("gold", {}).get("difference")
        yield (
            f"| {name} | {plain(one['rewards']['gold'], 3)} | {plain(difference, 3, sign='+') if difference else ''} "
            f"| {plain(one['parts']['answer']['level'], 3)} | {one['drift']['tokens']['level']['value']:.0f} "
            f"| {100 * one['drift']['finished']['level']['value']:.0f}% |"
        )
    policy = found["outputs/demo/policy"]
    answers = policy["parts_minus"]["outputs/demo/sft"]["answer"]
    yield f"PPO is {plain(policy['minus']['outputs/demo/sft'], 3, sign='+')} above SFT in gold reward"
    yield f"{plain(answers, 3, sign='+')} in right answers"
    every = result("demo")["reward"]["accuracy"]
    pairs = result("demo")["reward"]["by_source"]["notes, answer pairs"]["accuracy"]
    yield f"{percent(every)} of {every['n']} held-out comparisons and {percent(pairs)} of {pairs['n']}"


def demo_trials() -> Iterator[str]:
    trials = result("notes_demo_trials")
    apart, one_prompt, one_note = (
        f"{tokens / 1000:.0f} thousand" for tokens in trials["tokens_of_all_comparisons"].values()
    )
    yield f"The {trials['comparisons']:,} comparisons are {apart} tokens"
    yield f"{one_prompt} with `--comparisons_together 3`, and {one_note} if"
    for one in trials["reward_models"]:
        yield f"| {one['tokens'] / 1000:.0f} | {percent(one['accuracy'])} | {percent(one['answer_pairs'])} |"
    for one in trials["policies_at_temperature_0"]:
        before, after = (percent(one[when]["right"]) for when in ("before", "after"))
        yield f"| {percent(one['reward_model_answer_pairs'])} | {one['settings']} | {before} | {after} |"
    for one in trials["sft"]:
        yield f"{one['tokens'] / 1000:.0f} thousand tokens instead of {one['tokens_without'] / 1000:.0f}"
        yield f"{percent(one['right'])} in one such run"


def clients() -> Iterator[str]:
    cases = [one for of_model in result("clients")["models"].values() for one in of_model.values()]
    yield f"all {len(cases)} cases, rewards differ by at most {result('clients')['largest_difference']:.1e}"


def large() -> Iterator[str]:
    plans = [
        {one["task"]: one for one in plan["choices"] if one["strategy"] == "fsdp2"}
        for plan in result("plan_70b")["processes"].values()
    ]
    for task in ("reward", "ppo"):
        assert all(plan[task]["fits"] and not plan[task]["gather_for_generation"] for plan in plans)
        yield " | ".join(f"{plan[task]['memory']['peak'] / 1e9:.0f} GB" for plan in plans)
    yield " | ".join(f"{plan['ppo']['traffic']['learning'] / 1e12:.1f} TB" for plan in plans)
    yield " | ".join(f"{plan['ppo']['traffic']['rollout'] / 1e12:.0f} TB" for plan in plans)
    private = [one["private_over_model"] for one in result("loading")["cases"]]
    yield f"{min(private):.2f} to {max(private):.2f} models in private memory"


def in_short() -> Iterator[str]:
    """The figures in the README."""
    for name, one in zip(DEMO_ROWS, result("demo")["compare"]["policies"].values(), strict=True):
        gold, answers = plain(one["rewards"]["gold"], 3), plain(one["parts"]["answer"]["level"], 3)
        yield f"| {name.split(' (')[0].split(',')[0]} | {gold} | {answers} |"
    yield f"{result('reward')['ratio']:.1f} times the pairs per second"
    yield f"iteration takes TRL {result('policy')['iteration_ratio']['epochs_2']:.1f} times as long"
    gain = recursion_gain()
    assert metrics.verdict(gain) == "not shown"
    yield f"{100 * gain.value:+.1f} points of reward accuracy ({gain.kind}: {plus(gain.low)} to {plus(gain.high)})"
    both = result("words_lora")["budgets"]["16"]["both"]
    words, alone = both["gain_of_words_over"]["pairs"], both["accuracy"]["pairs"]["value"]
    yield f"[{plus(words['value'])} points ({plus(words['low'])} to {plus(words['high'])})]"
    yield f"detectors without words {plus(both['accuracy']['detectors']['value'] - alone)}"
    largest = result("clients")["largest_difference"]
    assert largest <= 2e-5
    yield "rewards within 2e-5 of `rrm-lm score`"
    right = {name: one["parts"]["answer"] for name, one in result("aligned")["policies_at_temperature_0"].items()}
    ppo, sft = (f"{100 * right[name]['value']:.0f}%" for name in ("ppo", "sft"))
    yield f"PPO is right on {ppo} of test questions, SFT on {sft}"
    rule = result("aligned")["trivial"][OVERLAP_RULE]["answer"]["value"]
    hard = result("aligned")["answers_by_wording"]["hard"]
    yield f"is right on {100 * rule:.0f}%"
    yield f"{100 * hard['ppo']['value']:.0f}% against {100 * hard[OVERLAP_RULE]['value']:.0f}%"
    gain = result("aligned")["answer_ppo_minus_best_other"]
    assert gain["kind"] == "95% interval over 5 runs and 45 prompts"
    yield f"{plus(gain['value'])} points ({plus(gain['low'])} to {plus(gain['high'])})"
    yield "five seeds). SFT on 450 demonstrations, not 100, reaches " + "{:.0f}% on validation".format(
        100 * result("notes_sft_pilot")["right_at_temperature_0"]["sft_450_three_passes"]["right"]["value"]
    )
    for one in result("aligned")["first_answers"]:
        yield f"| {one['prompt'].split(chr(10))[-1]} | {one['ppo']} |"


def ablation() -> Iterator[str]:
    found = result("ablation")["workloads"]
    rows = {
        "reward_training": {"prefix_sharing": "prefix sharing", "length_grouping": "length grouping",
                            "keeping_activations": "keeping activations"},
        "scoring": {"prefix_sharing": "prefix sharing", "length_grouping": "length grouping"},
        "rollout": {"any_decoder": "any decoder of ours", "lean_decoder": "lean decoder",
                    "packed_weights": "packed weights", "shared_beginning": "shared prefix of prompts"},
        "ppo_update": {"prefix_sharing": "prefix sharing", "kept_graph": "kept graph",
                       "slopes_in_hidden_states": "slopes in hidden states",
                       "slopes_written_down": "closed-form slopes"},
    }  # fmt: skip
    for workload, paths in rows.items():
        yield ", ".join(f"{name} {found[workload][path]['time_ratio']['median']:.2f}" for path, name in paths.items())
    fused = [found["reward_training"][f"fused_{part}"] for part in ("lora", "norm", "mlp")]
    yield "worth {:.2f}, {:.2f} and {:.2f} in reward training".format(*(one["time_ratio"]["median"] for one in fused))
    yield f"saved {100 * (fused[2]['memory_ratio'] - 1):.0f}% of activation memory"


def processes() -> Iterator[str]:
    ratios = [one["planned_over_measured"] for one in result("plan")["cases"]]
    yield f"{min(ratios):.2f} to {max(ratios):.2f} times the memory"
    cases = result("loading")["cases"]
    mapped, *converted = (f"{one['private_over_model']:.2f}" for one in cases)
    yield f"at most {mapped} times"
    yield "{} times (float32 to bfloat16), {} (experts that are merged) and {} (both)".format(*converted)
    yield "{}, {}, {} and {} times the model".format(*(f"{one['peak_over_model']:.2f}" for one in cases))
    for one in [result("scaling")[job] for job in ("reward", "ppo")]:
        yield f"{one['throughput_ratio']:.2f}"
        yield f"{min(one['throughput_ratio_rounds']):.2f} to {max(one['throughput_ratio_rounds']):.2f}"
        yield f"{one['bytes_per_step'] / 1e6:.0f} MB"


def card() -> Iterator[str]:
    found = result("simple_rules")
    for name in WEIGHTS:
        yield f"| {name} alone | {plain(found['parts'][name])} |"
    for key, name in (("longer", "the longer response"), ("length", "a linear model of three functions of length"),
                      ("words", "a linear model of words and word pairs")):  # fmt: skip
        yield f"| {name} | {plain(found[key])} |"
    known = [found["true_parts"][n]["value"] for n in ("8", "16", "32")]
    yield f"{known[0]:.2f} of them with 8, {known[1]:.2f} with 16 and {known[2]:.2f} with 32"
    for part, one in json.loads((DATA / "statistics.json").read_text(encoding="utf-8")).items():
        yield f"| {part} | {one['comparisons']} | {one['requests']} |"
        yield f"| {one['longer_wins']:.3f} | {one['gold_mean']:.3f} |"


SAID: list[tuple[Path, Callable[[], Iterator[str]]]] = [
    (BENCH, critiques),
    (BENCH, critic),
    (BENCH, recursion),
    (BENCH, new_recursion),
    (BENCH, words_lora),
    (BENCH, words_arms),
    (BENCH, words_follow),
    (BENCH, words_best_of),
    (BENCH, words_policy),
    (BENCH, clauses),
    (BENCH, words),
    (BENCH, notes),
    (BENCH, sft_pilot),
    (BENCH, aligned),
    (BENCH, served),
    (BENCH, clients),
    (BENCH, asking),
    (BENCH, reward_speed),
    (BENCH, policy_speed),
    (BENCH, demo),
    (BENCH, demo_trials),
    (BENCH, processes),
    (ROOT / "configs" / "accelerate" / "README.md", large),
    (README, in_short),
    (CARD, card),
]


@pytest.mark.parametrize(("document", "figures"), SAID, ids=lambda value: getattr(value, "__name__", None))
def test_figures_in_documents_match_the_files(document: Path, figures: Callable[[], Iterator[str]]) -> None:
    text = " ".join(document.read_text(encoding="utf-8").split())
    missing = [figure for figure in figures() if " ".join(figure.split()) not in text]
    assert not missing, f"{document.name} does not say: {missing}"


def test_simple_rules_are_reproducible() -> None:
    """The rules that need no fitting, recomputed from the data."""
    user, found = PlainUser.from_file(DATA / "requests.jsonl"), result("simple_rules")
    pairs = load_feedback(str(DATA / "heldout.jsonl.gz")).comparisons
    for name in WEIGHTS:
        values = [[user.judge(p.prompt, text).parts[name] for text in (p.chosen, p.rejected)] for p in pairs]
        assert mean((a > b) + (a == b) / 2 for a, b in values) == pytest.approx(found["parts"][name]["value"])
