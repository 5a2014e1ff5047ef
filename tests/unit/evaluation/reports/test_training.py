"""The page about a training: what it shows of made-up updates and measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rrm_lm.evaluation.reports.history import Update
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.reports.training import (
    AFTER,
    BEFORE,
    HELD_OUT,
    TRAINED,
    TrainingReportData,
    before_and_after,
    main_panels,
    more_panels,
    render_training_report,
    seconds,
)
from rrm_lm.training.over_optimisation import Measurement, Probe
from tests.tiny import prompt_of

PROMPTS = [prompt_of(f"what is {word}?") for word in ("the sea", "the moon", "<b>it</b>")]
NAMES = ("gold", "short")


def probes(gold: float, kl: float) -> tuple[Probe, ...]:
    """An answer to each prompt, the second worth one more than the others."""
    return tuple(
        Probe(number, f"p{number}", f"answer {number} & more", -gold, gold + (number == 1), kl, 5 + number, number > 0)
        for number in range(len(PROMPTS))
    )


def update(number: int, **more: Any) -> Update:
    measures = {"reward": number / 2, "kl": number, "finished": 0.5, "length": 20.0, "entropy": 2.0, "kl_coef": 0.05}
    losses = {"policy_loss": -0.1, "value_loss": 0.2, "clipped": 0.01}
    return Update(number, True, {**measures, **losses}, {"short": number / 2}, {"roll_out": 3.0, "update": 1.0}, **more)


MEASURED = [Measurement(step, probes(step / 10, step / 2), NAMES) for step in (0, 2, 4)]
DATA = TrainingReportData(
    title="ppo", updates=[update(number) for number in (1, 2, 3, 4)], planned=4, episodes=16, measurements=MEASURED
)


def test_before_and_after() -> None:
    found = before_and_after(PROMPTS, MEASURED[0].samples, MEASURED[-1].samples, NAMES)
    assert [result.name for result in found.results] == [BEFORE, AFTER]
    assert (found.main, found.proxy) == ("gold", "short")
    (after,) = found.policies
    assert after.against["gold"].difference.value == pytest.approx(0.4)
    assert after.against["short"].difference.value == pytest.approx(-0.4)
    assert after.kl is not None and after.kl.value == pytest.approx(2.0)
    assert after.drift["tokens"].level.value == pytest.approx(6.0)


def test_without_gold_the_reward_itself_is_all_there_is() -> None:
    silent = [replace(probe, gold=math.nan) for probe in MEASURED[-1].samples]
    found = before_and_after(PROMPTS, silent, silent, NAMES)
    assert (found.main, found.measures) == (None, ("short",))
    page = render_training_report(replace(DATA, comparison=found))
    assert "so it is no evidence of better answers" in page and "Over-optimization" not in page


def test_the_page() -> None:
    comparison = before_and_after(PROMPTS, MEASURED[0].samples, MEASURED[-1].samples, NAMES)
    page = render_training_report(replace(DATA, comparison=comparison, configuration={"kl_coef": 0.1}))
    assert "After training: mean gold reward is 0.733 (95% interval" in page
    assert "), +0.400 compared with before training (95% interval +0.400 to +0.400, 3 prompts): better." in page
    assert "4 updates of 16 episodes each, 16 s in total." in page
    for anchor in ("training", "rewards", "over-optimisation", "answers", "settings", "glossary"):
        assert f'id="{anchor}"' in page and f'href="#{anchor}"' in page
    assert "&lt;b&gt;it&lt;/b&gt;" in page and "<b>it</b>" not in page and "answer 1 &amp; more" in page
    assert "Nothing was measured" not in page and "over_optimisation.jsonl" in page


def test_the_page_without_held_out_prompts() -> None:
    page = render_training_report(replace(DATA, measurements=()))
    assert "Nothing was measured on held-out prompts" in page and HELD_OUT not in page.split("<section")[0]
    assert "over_optimisation.jsonl" not in page and 'id="answers"' not in page


def test_a_run_without_an_update() -> None:
    page = render_training_report(replace(DATA, updates=[], measurements=(), ended="the first reward was no number"))
    assert "No update was made." in page
    assert "0 updates of 16 episodes each. Training ended early, 4 were planned" in page


def test_how_it_went() -> None:
    assert sentence("course", replace(DATA, episodes=1), 1, 4.0) == "1 update of 1 episode each, 4 s in total."
    stopped = replace(DATA, ended="the KL divergence is 300, above max_kl 100", planned=9)
    words = "Training ended early, 9 were planned: the KL divergence is 300, above max_kl 100."
    assert sentence("course", stopped, 4, 16.0).endswith(words)
    kept = replace(DATA, ended="the reward fell; the policy is that of step 2")
    assert sentence("course", kept, 4, 16.0).endswith("The reward fell; the policy is that of step 2.")
    page = render_training_report(DATA)
    assert '<div class="value">2.000</div><div class="detail">was 0.500 in the first update</div>' in page


def test_the_curves_hold_both_sides() -> None:
    (reward, kl), (length, ended) = main_panels(DATA)
    assert reward[1][TRAINED] == ([1, 2, 3, 4], [0.5, 1.0, 1.5, 2.0])
    assert kl[1][HELD_OUT] == ([0, 2, 4], [0.0, 1.0, 2.0])
    assert length[1][HELD_OUT][1] == [6.0, 6.0, 6.0]
    assert ended[1][HELD_OUT][1] == pytest.approx([2 / 3] * 3)
    assert [title for title, _ in more_panels(DATA.updates)] == ["Losses", "Entropy, nats a token", "Clipped tokens"]
    assert more_panels([Update(1, True, {"reward": 1.0})]) == []


def test_several_rewards_have_a_picture_of_their_own() -> None:
    two = [replace(update(n), rewards={"short": 1.0, "polite": float(n)}) for n in (1, 2)]
    rows = main_panels(replace(DATA, updates=two))
    assert rows[1] == [("Each reward", {"polite": ([1, 2], [1.0, 2.0]), "short": ([1, 2], [1.0, 1.0])})]


def test_where_the_time_went() -> None:
    assert seconds(DATA.updates) == {"total": 16.0, "parts": {"roll out": (3.0, 0.75), "update": (1.0, 0.25)}}
    assert "<td>roll out</td><td>3.0 s an update, 75.0%</td>" in render_training_report(DATA)
    assert seconds([Update(1, True, {})]) == {"total": 0, "parts": {}}
