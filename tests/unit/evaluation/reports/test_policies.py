"""The page about policies: whole, self-contained, escaped, and saying no more than the numbers do."""

import math
import re

import pytest

from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.monitors import over_optimisation, track_of
from rrm_lm.evaluation.policies.results import PairVerdict
from rrm_lm.evaluation.reports import figures, policy_figures, policy_wording
from rrm_lm.evaluation.reports.policies import (
    ANSWERS,
    PolicyReportData,
    answers,
    render_policy_report,
    write_policy_report,
)
from rrm_lm.evaluation.reports.wording import minus
from rrm_lm.evaluation.statistics.metrics import Estimate
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
    assert not [color for color in figures.PALETTE if color in html]


def test_page_has_every_part():
    text = Page(page()).text
    for words in (
        "outputs/p1: mean gold reward",
        "its best of 4 by proxy",
        "outputs/p1 against start",
        "Ends by itself",
        "prefers the first shown",
        "some judge",
        "n: best of n by proxy",
        "distance from the reference: square root of KL",
        "is past its peak",
        "4-word runs that stand in other answers too",
        "Answers before and after",
        "8 of 24 prompts, spread evenly from where outputs/p1 lost most",
        "What the words mean",
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


def test_a_comparison_with_nothing_to_say_still_has_its_answers(tmp_path):
    rows = [[sample(text=f"{name} {i}")] for i in range(2) for name in "x"]
    found = compare(prompts(2), [written("start", rows), written("new", rows)])
    write_policy_report(PolicyReportData(comparison=found), tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "nothing says whether it is better than start" in text
    assert "There is neither a gold reward nor a reward model to say." in text
    assert "2 of 2 prompts, spread evenly. The first sample of each." in text
    assert "Best of n" not in text.split("What the words mean")[0]


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


def test_answers_are_spread_from_the_largest_loss_to_the_largest_gain():
    count = 30
    start = written("start", [[sample(0.0, f"old {i}")] for i in range(count)])
    new = written("new", [[sample(float((7 * i) % count), f"new {i}")] for i in range(count)])
    found = answers(compare(prompts(count), [start, new]), "gold")
    gains = [float(answer["sides"][1]["reward"].split()[1]) for answer in found]
    assert len(gains) == ANSWERS and gains == sorted(gains)
    assert (gains[0], gains[-1]) == (0.0, 29.0)
    for answer in found:
        number = answer["prompt"][0].content.removeprefix("question ").removesuffix("?")
        assert [side["response"] for side in answer["sides"]] == [f"old {number}", f"new {number}"]


def test_answers_without_a_reward_are_not_ranked():
    start = written("start", [[sample(0.0, "old")], [sample(text="none")]])
    new = written("new", [[sample(1.0, "new", finished=False)], [sample(1.0, "x")]])
    (only,) = answers(compare(prompts(2), [start, new]), "gold")
    assert only["sides"][1]["length"] == "2 tokens, cut off"


# ---- words ----


@pytest.mark.parametrize(
    ("gold", "proxy", "words"),
    [
        (0.2, 0.5, "held-out prompts (95% interval +0.205 to +0.215): better."),
        (-0.2, 0.5, "worse. The reward it was optimised for rose by 0.510: it is over-optimised."),
        (-0.2, -0.5, "worse."),
        (-0.01, 0.5, "not shown to be better or worse. The reward it was optimised for rose by 0.510 all the same."),
    ],
)
def test_verdicts_say_no_more_than_the_intervals(gold, proxy, words):
    found = one_sided(gold, proxy)
    assert policy_wording.verdict(found, found.policies[0]).endswith(words)


def parted(answer, *, trivial=None, count=12):
    """A policy with a gold that is 0.2 higher than the start's, and a part of it that changes by `answer`."""
    wobble = [0.01 * (i % 3) for i in range(count)]
    rows = [[sample(0.5, **{"gold: answer": 0.4})] for _ in wobble]  # type: ignore[arg-type]
    new = [[sample(0.7 + w, **{"gold: answer": 0.4 + answer + w})] for w in wobble]  # type: ignore[arg-type]
    policies = [written("start", rows), written("new", new)]
    if trivial is not None:
        policies.append(written("always", [[sample(trivial + 0.05 * w)] for w in wobble], trivial=True))
    return compare(prompts(count), policies)


@pytest.mark.parametrize(
    ("answer", "trivial", "words"),
    [
        (0.1, None, ""),
        (0.1, 0.6, ""),
        (-0.2, 0.6, "The answers got worse in a part of it: answer -0.190 against start (-0.195 to -0.185)."),
        (0.1, 0.8, "Below a trivial policy: -0.091 against always (-0.096 to -0.085)."),
        (
            0.1,
            0.71,
            "Not shown to be above a trivial policy: -0.000 against always (-0.006 to +0.005).",
        ),
    ],
)
def test_a_higher_reward_is_not_called_better_where_a_part_fell_or_nonsense_gets_as_much(answer, trivial, words):
    found = parted(answer, trivial=trivial)
    assert policy_wording.doubts(found, found.policies[0]) == ([minus(words)] if words else [])
    end = "to +0.215): higher." if words else "to +0.215): better."
    assert policy_wording.verdict(found, found.policies[0]).endswith(end)
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
    assert policy_wording.verdict(found, sft).endswith("better.")
    words = "The answers got worse in a part of it: answer -0.090 against sft (-0.095 to -0.085)."
    assert policy_wording.doubts(found, ppo) == [minus(words)]


def test_the_page_shows_every_part_and_every_trivial_policy():
    text = Page(page(parted(-0.2, trivial=0.6), tracks={})).text
    assert "The parts of gold" in text and "Against each other" in text and "always" in text
    assert "always against start" not in text  # no section of its own
    assert "The parts of gold" not in Page(page()).text


def test_the_proxy_alone_is_no_evidence():
    rows = [[[sample(proxy=value)] for value in (0.1, 0.2, 0.3)], [[sample(proxy=value)] for value in (1.1, 1.3, 1.4)]]
    found = compare(prompts(3), [written("start", rows[0]), written("new", rows[1])], proxy="proxy")
    assert "which is no evidence by itself" in policy_wording.verdict(found, found.policies[0])


def test_verdicts_say_what_was_left_out():
    start = written("start", [[sample(0.1)], [sample(0.2)], [sample(0.3)]])
    new = written("new", [[sample(0.4)], [sample(0.4)], [sample(math.nan)]])
    found = compare(prompts(3), [start, new])
    words = "Left out, because they have no such reward: 1 of 3 answers of new."
    assert policy_wording.verdict(found, found.policies[0]).endswith(words)


def test_one_prompt_shows_nothing():
    found = compare(prompts(1), [written("start", [[sample(0.0)]]), written("new", [[sample(1.0)]])])
    assert policy_wording.verdict(found, found.policies[0]).endswith("on one prompt, which shows nothing.")
    assert "no interval from one prompt" in page(found, tracks={})


@pytest.mark.parametrize(
    ("found", "words", "tone"),
    [
        (track(steps=RISING), "still rises at the last point", "good"),
        (track(), "is past its peak: it falls at the last point. Its peak is at a distance of 1.9", "bad"),
        (track(steps=RISING[:2]), "Too few points at different distances for a fit: 2 measurements on 20", ""),
        (track(lambda d: 0.0), "its slope there is not known well enough", ""),
    ],
)
def test_notes_on_over_optimisation(found, words, tone):
    assert words in policy_wording.over_optimisation_note(found)
    assert policy_wording.tone(found) == tone


def test_formulas_are_written_out():
    assert re.fullmatch(r"−?\S+ \+ d \(\d\.\d+ − 0\.\d+ ln d\), R² 1\.00", policy_wording.formula(track()))  # noqa: RUF001
    assert policy_wording.formula(track(steps=RISING[:2])) == policy_wording.NONE


def test_numbers_are_written_for_people():
    assert policy_wording.decimal(-0.12345) == "\N{MINUS SIGN}0.123"
    assert (
        policy_wording.decimal(12.345, sign=True) == "+12.35" or policy_wording.decimal(12.345, sign=True) == "+12.34"
    )
    assert policy_wording.decimal(math.inf) == "\N{INFINITY}"
    assert policy_wording.decimal(math.nan) == policy_wording.NONE
    assert policy_wording.between(Estimate(1.0, 0.5, math.inf, 9, 5)) == "0.500 to \N{INFINITY}"
    assert policy_wording.change("finished", Estimate(0.25, -0.1, 0.6, 9, 5)) == (
        "+25.0 points", "\N{MINUS SIGN}10.0 to +60.0"
    )  # fmt: skip


def test_tiles_fill_their_rows():
    assert len(policy_wording.tiles(full_comparison(), full_comparison().policies[0])) == 6
    bare = compare(prompts(2), [written(name, [[sample(text="a b c d e")]] * 2) for name in ("start", "new")])
    assert len(policy_wording.tiles(bare, bare.policies[0])) == 3


# ---- pictures ----


def test_pictures_can_be_drawn_of_little_and_of_much():
    for comparison in (one_sided(0.1, count=2), one_sided(0.0, count=1), full_comparison(policies=5)):
        policy_figures.headline(comparison, "gold")
        policy_figures.reward_by_length(comparison, "gold")
    policy_figures.best_of_n(full_comparison(policies=2))
    for found in (track(), track(steps=RISING), track(steps=RISING[:1])):
        policy_figures.over_optimisation({"a": (figures.ACCENT, found)})


def test_the_reference_is_amber_and_the_first_policy_blue():
    rows = policy_figures.reward_rows(full_comparison(policies=2), "gold")
    assert [(row.label, row.color) for row in rows[:3]] == [
        ("start", figures.BASELINE),
        ("its best of 4 by proxy", figures.BASELINE),
        ("outputs/p1", figures.ACCENT),
    ]
    assert rows[3].color not in (figures.BASELINE, figures.ACCENT)


def test_policies_with_nothing_in_common_are_drawn_apart():
    """A policy without the measure has no row in the picture."""
    bare = written("bare", [[sample(text="x")]] * 3)
    found = compare(prompts(3), [random_policy("start", 3), bare])
    assert [row.label for row in policy_figures.reward_rows(found, "gold")] == ["start"]
