"""The page about policies: whole, self-contained, escaped, and saying no more than the numbers do."""

import math
import re

import pytest

from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.monitors import over_optimisation, track_of
from rrm_lm.evaluation.policies.results import PairVerdict, PolicySamples, Sample
from rrm_lm.evaluation.reports import plots, policy_figures
from rrm_lm.evaluation.reports.formats import minus
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.reports.policies import ANSWERS, PolicyReportData, answers, render_policy_report
from tests.unit.evaluation.policy_cases import (
    asked,
    full_comparison,
    measurements,
    prompts,
    random_policy,
    sample,
    written,
)
from tests.unit.evaluation.reports.test_preferences import ATTACK, Page

RISING = [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.2)]
FALLING = [*RISING, (5, 3.0), (6, 4.5), (7, 6.0)]


def track(curve=lambda d: d * (1 - 0.6 * math.log(d)) if d else 0.0, steps=FALLING):
    return over_optimisation(track_of(measurements(curve, steps)))


def page(comparison=None, **more) -> str:
    settings = {
        "comparison": comparison or full_comparison(),
        "tracks": {"outputs/p1": track()},
        "configuration": {"temperature": 1.0, "policies": ["outputs/p1"]},
        "environment": {"torch": "2.13.0"},
        "created": "2030-01-02T03:04:05+00:00",
        **more,
    }
    return render_policy_report(PolicyReportData(**settings))


def one_sided(gold, optimised=None, *, count=12):
    """A policy that is better or worse by fixed amounts, up to a little noise that differs by prompt."""
    wobble = [0.01 * (i % 3) for i in range(count)]
    start = [[sample(0.5, f"first answer {i}", proxy=0.0)] for i in range(count)]
    new = [[sample(0.5 + gold + w, f"new answer {i}", proxy=(optimised or 0.0) + w)] for i, w in enumerate(wobble)]
    return compare(prompts(count), [written("start", start), written("new", new)], proxy="proxy")


# ---- the page ----


@pytest.mark.parametrize("policies", [1, 3])
def test_page_is_well_formed_with_unique_ids_and_working_links(policies):
    found = Page(page(full_comparison(policies=policies)))
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [str(a["href"]) for tag, a in found.tags if tag == "a"]
    assert len(anchors) >= 8 and {anchor[1:] for anchor in anchors} <= set(ids)


def test_page_loads_nothing_from_anywhere():
    html = page()
    found = Page(html)
    assert found.count("script") == found.count("link") == found.count("img") == 0
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"url\((?!#)", html) and "@import" not in html
    assert not [color for color in plots.PALETTE if color in html]


def test_page_has_every_part():
    text = Page(page()).text
    for words in (
        "outputs/p1: mean gold reward is",
        "its best of 4 by proxy",
        "outputs/p1 compared with start",
        "Ended with an end token",
        "prefers the first shown",
        "some judge",
        "n: best of n by proxy",
        "distance from the reference: square root of KL",
        "is past its peak",
        "4-word runs that also occur in other answers",
        "Answers before and after",
        "8 of 24 prompts, drawn at random with a fixed seed",
        "Glossary",
        "2030-01-02 03:04 UTC",
    ):
        assert words in text, words


def test_everything_people_and_models_wrote_is_escaped():
    start = written(ATTACK, [[sample(0.1, f"old {ATTACK}", proxy=0.1)], [sample(0.2, ATTACK, proxy=0.3)]])
    new = written(f"new {ATTACK}", [[sample(0.4, f"new {ATTACK}", proxy=0.1)], [sample(0.2, ATTACK, proxy=0.3)]])
    verdicts = {f"judge {ATTACK}": {new.name: [PairVerdict(0, 0.9, 0.8), PairVerdict(1, 0.1, 0.8)]}}
    found = compare([asked(f"{ATTACK} 1"), asked(f"{ATTACK} 2")], [start, new], proxy="proxy", verdicts=verdicts)
    html = page(
        found,
        title=ATTACK,
        tracks={new.name: track()},
        configuration={ATTACK: ATTACK},
        environment={"list": [ATTACK]},
    )
    assert "<script" not in html and "<img" not in html
    parsed = Page(html)
    assert parsed.open == []
    assert f"old {ATTACK}" in parsed.text and f"judge {ATTACK}" in parsed.text


def test_a_comparison_with_nothing_to_say_still_has_its_answers():
    rows = [[sample(text=f"{name} {i}")] for i in range(2) for name in "x"]
    found = compare(prompts(2), [written("start", rows), written("new", rows)])
    text = Page(render_policy_report(PolicyReportData(comparison=found))).text
    assert "nothing shows whether it is better than start" in text
    assert "No gold reward and no reward model was given." in text
    assert "2 of 2 prompts, drawn at random with a fixed seed. The first sample of each policy." in text
    assert "Best of n" not in text


def test_judges_alone_make_a_headline():
    rows = [[sample(text=f"text {i}")] for i in range(20)]
    verdicts = {"judge": {"new": [PairVerdict(i, 0.9, 0.7 if i else 0.2) for i in range(20)]}}
    found = compare(prompts(20), [written("start", rows), written("new", rows)], verdicts=verdicts)
    html = page(found, tracks={})
    assert "new by judge" in Page(html).text
    assert "new: judge prefers it to start in 97.5% of 20 pairs" in Page(html).text
    assert "Preferred by judge" in html


def test_an_empty_response_is_shown_as_nothing():
    found = compare(prompts(1), [written("start", [[sample(0.1, "words")]]), written("new", [[sample(0.2, " ")]])])
    assert '<div class="text empty">nothing</div>' in page(found, tracks={})


def test_the_best_of_n_of_the_same_rewards_stands_beside_a_policys_track():
    text = Page(page(full_comparison())).text
    assert "start, best of n." in text
    other = over_optimisation(track_of([type(one)(one.step, one.samples, ("gold", "another proxy"))
                                        for one in measurements(lambda d: d, FALLING)]))  # fmt: skip
    html = page(full_comparison(), tracks={"outputs/p1": other})
    assert "another proxy reward" in html and html.count('id="track-') > 0
    titles = re.findall(r"<h3>([^<]*)</h3>", html[html.index('id="over-optimisation"') :])
    assert titles[:2] == ["outputs/p1", "Best of n"]


# ---- answers ----


def test_answers_are_drawn_at_random_and_not_by_reward():
    count = 30
    start = written("start", [[sample(0.0, f"old {i}")] for i in range(count)])
    new = [written("new", [[sample(float(x * i), f"new {i}")] for i in range(count)]) for x in (1, -1)]
    found, reversed_rewards = (answers(compare(prompts(count), [start, one])) for one in new)
    numbers = [answer["prompt"][0].content.removeprefix("question ").removesuffix("?") for answer in found]
    assert len(set(numbers)) == ANSWERS and numbers != sorted(numbers, key=int)
    assert numbers == [a["prompt"][0].content.removeprefix("question ").removesuffix("?") for a in reversed_rewards]
    for number, answer in zip(numbers, found, strict=True):
        assert [side["sample"].response for side in answer["sides"]] == [f"old {number}", f"new {number}"]


def test_answers_show_their_length():
    start = written("start", [[sample(0.0, "old")], [sample(text="none")]])
    new = written("new", [[sample(1.0, "new", finished=False)], [sample(1.0, "x")]])
    assert "2 tokens, cut off" in page(compare(prompts(2), [start, new]), tracks={})


def test_values_at_temperature_0_stand_next_to_the_sampled_ones():
    def at_zero(name: str, sampled: float, zero: float) -> PolicySamples:
        def one(value: float) -> Sample:
            return Sample("text", 2, True, {"gold": value, "gold: answer": value / 2})

        return PolicySamples(name, tuple((one(sampled + i / 10),) for i in range(4)), greedy=(one(zero),) * 4)

    found = compare(prompts(4), [at_zero("start", 0.1, 0.9), at_zero("new", 0.3, 0.8)])
    assert found.results[1].greedy["gold"].level.value == pytest.approx(0.8)
    change = found.results[1].greedy["gold: answer"].change
    assert change is not None and change.value == pytest.approx(-0.05)
    text = Page(page(found, tracks={})).text
    assert text.count("at temperature 0") >= 2 and "0.800" in text
    assert "at temperature 0" not in Page(page(full_comparison())).text.split("Glossary")[0]


# ---- words ----


@pytest.mark.parametrize(
    ("gold", "proxy", "words"),
    [
        (0.2, 0.5, "(95% interval +0.205 to +0.215, 12 prompts): better."),
        (-0.2, 0.5, "worse. The reward it was optimized for rose by 0.510: it is over-optimized."),
        (-0.2, -0.5, "worse."),
        (-0.01, 0.5, "not shown to be better or worse. The reward it was optimized for rose by 0.510 nevertheless."),
    ],
)
def test_verdicts_say_no_more_than_the_intervals(gold, proxy, words):
    found = one_sided(gold, proxy)
    assert sentence("policy_verdict", found, found.policies[0]).endswith(words)


def parted(answer, *, trivial=None, count=12):
    """A policy with a gold that is 0.2 higher than the start's, and a part of it that changes by `answer`."""
    wobble = [0.01 * (i % 3) for i in range(count)]
    rows = [[sample(0.5, **{"gold: answer": 0.4})] for _ in wobble]  # type: ignore[arg-type]
    new = [[sample(0.7 + w, **{"gold: answer": 0.4 + answer + w})] for w in wobble]  # type: ignore[arg-type]
    policies = [written("start", rows), written("new", new)]
    if trivial is not None:
        policies.append(written("always", [[sample(trivial + 0.05 * w)] for w in wobble], trivial=True))
    return compare(prompts(count), policies)


def said(comparison, result) -> list[str]:
    return [sentence("doubt", doubt) for doubt in comparison.doubts(result)]


@pytest.mark.parametrize(
    ("answer", "trivial", "words"),
    [
        (0.1, None, ""),
        (0.1, 0.6, ""),
        (-0.2, 0.6, "A part of the gold reward fell: answer -0.190 compared with start (-0.195 to -0.185)."),
        (0.1, 0.8, "Below a trivial policy: -0.091 compared with always (-0.096 to -0.085)."),
        (
            0.1,
            0.71,
            "Not shown to be above a trivial policy: -0.000 compared with always (-0.006 to +0.005).",
        ),
    ],
)
def test_a_higher_reward_is_not_called_better_where_a_part_fell_or_nonsense_gets_as_much(answer, trivial, words):
    found = parted(answer, trivial=trivial)
    assert said(found, found.policies[0]) == ([minus(words)] if words else [])
    end = "to +0.215, 12 prompts): higher." if words else "to +0.215, 12 prompts): better."
    assert sentence("policy_verdict", found, found.policies[0]).endswith(end)
    assert minus(words) in Page(page(found, tracks={})).text


def test_a_part_that_fell_from_the_policy_before_is_named():
    wobble = [0.01 * (i % 3) for i in range(12)]
    rows = {"start": (0.5, 0.4), "sft": (0.6, 0.6), "ppo": (0.7, 0.5)}
    policies = [
        written(name, [[sample(gold + i * w, **{"gold: answer": answer + i * w})] for w in wobble])  # type: ignore[arg-type]
        for i, (name, (gold, answer)) in enumerate(rows.items())
    ]
    sft, ppo = (found := compare(prompts(12), policies)).policies
    assert sft.parts_minus == {} and list(ppo.parts_minus) == ["sft"]
    assert sentence("policy_verdict", found, sft).endswith("better.")
    words = "A part of the gold reward fell: answer -0.090 compared with sft (-0.095 to -0.085)."
    assert said(found, ppo) == [minus(words)]


def test_the_page_shows_every_part_and_every_trivial_policy():
    text = Page(page(parted(-0.2, trivial=0.6), tracks={})).text
    assert "The parts of gold" in text and "Policies compared with each other" in text and "always" in text
    assert "always compared with start" not in text  # no section of its own
    assert "The parts of gold" not in Page(page()).text


def test_the_proxy_alone_is_no_evidence():
    rows = [[[sample(proxy=value)] for value in (0.1, 0.2, 0.3)], [[sample(proxy=value)] for value in (1.1, 1.3, 1.4)]]
    found = compare(prompts(3), [written("start", rows[0]), written("new", rows[1])], proxy="proxy")
    assert "so it is no evidence of better answers" in sentence("policy_verdict", found, found.policies[0])


def test_verdicts_say_what_was_left_out():
    start = written("start", [[sample(0.1)], [sample(0.2)], [sample(0.3)]])
    new = written("new", [[sample(0.4)], [sample(0.4)], [sample(math.nan)]])
    found = compare(prompts(3), [start, new])
    words = "Left out because they have no such reward: 1 of 3 answers of new."
    assert sentence("policy_verdict", found, found.policies[0]).endswith(words)


def test_one_prompt_shows_nothing():
    found = compare(prompts(1), [written("start", [[sample(0.0)]]), written("new", [[sample(1.0)]])])
    assert sentence("policy_verdict", found, found.policies[0]).endswith("on one prompt, which shows nothing.")
    assert "no interval from one prompt" in page(found, tracks={})


@pytest.mark.parametrize(
    ("found", "words", "tone"),
    [
        (track(steps=RISING), "still rises at the last point", "good"),
        (track(), "is past its peak: it falls at the last point. The peak is at a distance of 1.9", "bad"),
        (track(steps=RISING[:2]), "too few points at different distances for a fit: 2 measurements on 20", ""),
        (track(lambda d: 0.0), "the slope there is too uncertain", ""),
    ],
)
def test_notes_on_over_optimisation(found, words, tone):
    assert words in sentence("track_note", found)
    html = page(full_comparison(), tracks={"outputs/p1": found})
    assert f'<p class="callout {tone}"><strong>outputs/p1.</strong>' in html


def test_formulas_are_written_out():
    assert re.fullmatch(r"−?\S+ \+ d \(\d\.\d+ − 0\.\d+ ln d\), R² 1\.00", sentence("formula", track().fit))  # noqa: RUF001
    html = page(full_comparison(), tracks={"outputs/p1": track(steps=RISING[:2])})
    assert "Fit: " not in html[html.index("<strong>outputs/p1.") :].split("</p>")[0]


def test_tiles_fill_their_rows():
    assert page().count('class="tile"') == 6
    bare = compare(prompts(2), [written(name, [[sample(text="a b c d e")]] * 2) for name in ("start", "new")])
    assert page(bare, tracks={}).count('class="tile"') == 3


# ---- pictures ----


def test_pictures_can_be_drawn_of_little_and_of_much():
    for comparison in (one_sided(0.1, count=2), one_sided(0.0, count=1), full_comparison(policies=5)):
        policy_figures.headline(comparison, "gold")
        policy_figures.reward_by_length(comparison, "gold")
    policy_figures.best_of_n(full_comparison(policies=2))
    for found in (track(), track(steps=RISING), track(steps=RISING[:1])):
        policy_figures.over_optimisation({"a": (plots.ACCENT, found)})


def test_the_reference_is_amber_and_the_first_policy_blue():
    rows = policy_figures.reward_rows(full_comparison(policies=2), "gold")
    assert [(row.label, row.color) for row in rows[:3]] == [
        ("start", plots.BASELINE),
        ("its best of 4 by proxy", plots.BASELINE),
        ("outputs/p1", plots.ACCENT),
    ]
    assert rows[3].color not in (plots.BASELINE, plots.ACCENT)


def test_policies_with_nothing_in_common_are_drawn_apart():
    """A policy without the measure has no row in the picture."""
    bare = written("bare", [[sample(text="x")]] * 3)
    found = compare(prompts(3), [random_policy("start", 3), bare])
    assert [row.label for row in policy_figures.reward_rows(found, "gold")] == ["start"]
