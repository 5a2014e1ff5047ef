"""The page: whole, self-contained, escaped, and saying no more than the numbers do."""

import re
from html.parser import HTMLParser

import pytest

from rrm_lm.evaluation.preferences.results import Evaluation
from rrm_lm.evaluation.reports import figures
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.reports.plots import PALETTE
from rrm_lm.evaluation.reports.preferences import ReportData, describe, render_report, training_panels
from rrm_lm.feedback.counts import FileCounts, ReadCounts
from rrm_lm.feedback.records import Origin
from tests.unit.evaluation.samples import compare, evaluate, many, rewards_of

ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Tags, ids, links and text of a page, and whether every opened element is closed again."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def evaluation(*sets):
    return Evaluation("org/tiny", sets or (evaluate(many(60)),))


def full_report(**more) -> str:
    file = FileCounts("train.jsonl", "pairs")
    file.drop("chosen and rejected are the same", Origin("train.jsonl", 3))
    overlap = {"count": 0, "of": 30, "share": 0.0, "examples": []}
    match = {"heldout": "dev, row 1", "train": "train, row 2", "similarity": 0.9, "text": "same words"}
    kinds = ("openings", "prompts_exact", "prompts_near", "responses_exact")
    settings = {
        "evaluation": evaluation(),
        "log_history": [
            {"step": 10, "loss": 0.7, "critique_loss": 2.0},
            {"step": 20, "loss": 0.6, "critique_loss": 1.5, "eval_accuracy": 0.6},
            {"step": 20, "train_loss": 0.65, "train_runtime": 3.0},
        ],
        "leakage": {
            "threshold": 0.8,
            "heldout_records": 30,
            "heldout_touched": 1,
            **dict.fromkeys(kinds, overlap),
            "responses_near": {"count": 1, "of": 30, "share": 0.03, "examples": [match]},
        },
        "read_counts": [ReadCounts((file,)).to_dict()],
        "statistics": {"training": describe(many(60)), "held out": {"comparisons": 3}},
        "configuration": {"learning_rate": 1e-4, "bf16": False, "lora_target_modules": ["q_proj", "v_proj"]},
        "environment": {"torch": "2.13.0"},
        "created": "2030-01-02T03:04:05+00:00",
        **more,
    }
    return render_report(ReportData(**settings))


def test_page_is_well_formed_with_unique_ids_and_working_links():
    page = Page(full_report(evaluation=evaluation(evaluate(many(60)), evaluate(many(44), name="test"))))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [a["href"] for tag, a in page.tags if tag == "a"]
    assert len(anchors) >= 7
    assert {str(anchor)[1:] for anchor in anchors} <= set(ids)
    assert page.count("h1") == 1


def test_page_loads_nothing_from_anywhere():
    html = full_report()
    page = Page(html)
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#")
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "http" not in without_namespaces
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_page_has_every_part():
    text = Page(full_report()).text
    for words in (
        "Held-out preferences: dev",
        "Is its confidence calibrated?",
        "Does it reward length?",
        "By source",
        "By subset",
        "Most confident mistakes",
        "Training",
        "1 of 30 held-out records",
        "same words",
        "chosen and rejected are the same: 1",
        "q_proj, v_proj",
        "2.13.0",
        "Glossary",
        "2030-01-02 03:04 UTC",
    ):
        assert words in text


def test_page_without_training_or_data_leaves_those_parts_out():
    page = Page(render_report(ReportData(evaluation=evaluation())))
    anchors = [a["href"] for tag, a in page.tags if tag == "a"]
    assert anchors == ["#set-1", "#set-1-mistakes", "#glossary"]


def test_everything_people_and_models_wrote_is_escaped():
    comparisons = [
        compare(
            f"{ATTACK} {i}",
            f"chosen {ATTACK}",
            f"rejected {ATTACK}",
            row=i,
            source=f"{ATTACK} {i % 2}",
            subset=ATTACK,
            chosen_critiques=(f"critique {ATTACK}",),
        )
        for i in range(1, 9)
    ]
    result = evaluate(comparisons, lambda _, r: float(r.startswith("rejected")), name=ATTACK)
    html = full_report(
        evaluation=Evaluation(ATTACK, (result,)),
        title=ATTACK,
        configuration={ATTACK: ATTACK},
        environment={"list": [ATTACK]},
        statistics={ATTACK: {ATTACK: 1}},
    )
    assert "<script" not in html
    assert "<img" not in html
    page = Page(html)
    assert page.open == []
    assert page.text.count(f"critique {ATTACK}") == 8


def test_dollar_signs_in_names_are_not_taken_for_formulas():
    comparisons = [compare(f"q{i}", "a", "bb", source=f"$\\frac{{{i}$", row=i) for i in range(1, 4)]
    assert "$\\frac{1$" in Page(full_report(evaluation=evaluation(evaluate(comparisons, name="$x_$")))).text


def test_mistakes_are_the_most_confident_ones_and_one_per_prompt():
    scores = {"good": 0.0, "bad": 3.0, "worse": 5.0, "fine": -1.0}
    comparisons = [
        compare("first question", "good", "bad", row=1),
        compare("first question", "good", "worse", row=2),
        compare("second question", "good", "bad", row=3),
        compare("third question", "good", "fine", row=4),
    ]
    html = render_report(ReportData(evaluation=evaluation(evaluate(comparisons, rewards_of(scores)))))
    mistakes = re.findall(r'<article class="mistake">(.*?)</article>', html, flags=re.DOTALL)
    assert len(mistakes) == 2
    assert "first question" in mistakes[0] and "worse" in mistakes[0]
    assert "margin \N{MINUS SIGN}5.00" in mistakes[0]
    assert "reward +5.00" in mistakes[0]
    assert "second question" in mistakes[1]


def test_a_model_without_mistakes_says_so():
    html = render_report(
        ReportData(evaluation=evaluation(evaluate(many(8), lambda _, r: float(r.startswith("answer")))))
    )
    assert "It made no mistakes." in html


def test_long_texts_are_folded_but_whole():
    long = "word " * 400 + "the very end"
    html = full_report(evaluation=evaluation(evaluate([compare("q", long, "no")], lambda _, r: -float(len(r)))))
    folded = re.findall(r'<details class="fold">(.*?)</details>', html, flags=re.DOTALL)
    assert len(folded) == 1
    assert "the very end" in folded[0]
    assert "the very end" not in folded[0].split("</summary>")[0]


# ---- sentences ----


def with_accuracy(right: int, wrong: int, *, longer_is_right: bool = False, prompts: int | None = None):
    """A set of `right + wrong` comparisons; lengths alternate, or always point to the chosen response."""
    comparisons, wins = [], {}
    for i in range(right + wrong):
        chosen, rejected = f"a{i}" + "+" * (9 if longer_is_right or i % 2 else 0), f"b{i}" + "+" * 4
        wins[chosen], wins[rejected] = float(i < right), 0.5
        comparisons.append(compare(f"q{i % (prompts or 10**6)}", chosen, rejected, row=i + 1))
    return evaluate(comparisons, rewards_of(wins))


@pytest.mark.parametrize(
    ("right", "wrong", "longer", "words"),
    [
        (90, 10, False, "better than chance, and 40.0 points better than always picking the"),
        (52, 48, False, "not shown to be better than chance"),
        (20, 80, False, "worse than chance"),
        (90, 10, True, "better than chance, but worse than always picking the longer response (100.0%)"),
        (99, 1, True, "better than chance, but not shown to be better than always picking the longer"),
    ],
)
def test_verdict_says_no_more_than_the_intervals(right, wrong, longer, words):
    result = with_accuracy(right, wrong, longer_is_right=longer)
    said = sentence("accuracy_verdict", result)
    assert words in said
    assert f"Accuracy is {right}.0% on 100 held-out comparisons (95% interval" in said


def test_verdict_on_one_prompt_claims_nothing():
    assert "not shown to be better than chance" in sentence("accuracy_verdict", with_accuracy(9, 0, prompts=1))


def test_calibration_note_names_the_direction():
    boastful = evaluate(many(200), lambda p, r: 40.0 * (hash_bit(p + r) - 0.5))
    assert "is overconfident by" in sentence("calibration_note", boastful.measures)
    modest = with_accuracy(100, 0)
    assert "is underconfident by" in sentence("calibration_note", modest.measures)


def hash_bit(text: str) -> int:
    return sum(map(ord, text)) % 2


def glossary(found: Evaluation) -> str:
    html = render_report(ReportData(evaluation=found))
    return html[html.index('id="glossary"') :]


def test_glossary_explains_a_benchmark_only_where_there_is_one():
    plain = glossary(evaluation())
    assert "accuracy" in plain and "RewardBench sections" not in plain and "best of four" not in plain
    rewardbench = evaluate([compare("q", "right", "wrong", subset="math-prm")])
    assert "RewardBench sections" in glossary(evaluation(rewardbench))


# ---- curves, data, pictures ----


def test_training_panels_sort_losses_from_accuracies_and_skip_the_summary():
    history = [
        {"step": 1, "loss": 1.0, "loss/preference": 0.7, "critique_loss": 2, "learning_rate": 1e-4, "grad_norm": 3.0},
        {"step": 2, "loss": 0.9, "eval_loss": 0.8, "eval_accuracy": 0.6, "eval_hh_accuracy": 0.7, "accuracy": 0.5},
        {"step": 2, "train_loss": 0.9, "train_runtime": 10.0},
        {"step": 3, "loss": float("nan")},
        {"loss": 4.0},
    ]
    (loss_title, losses), (accuracy_title, accuracies) = training_panels(history)
    assert (loss_title, accuracy_title) == ("Loss", "Accuracy")
    assert losses == {
        "total": ([1, 2], [1.0, 0.9]),
        "preference": ([1], [0.7]),
        "critique": ([1], [2.0]),
        "held-out": ([2], [0.8]),
    }
    assert accuracies == {"held-out": ([2], [0.6]), "held-out hh": ([2], [0.7]), "training batches": ([2], [0.5])}
    assert training_panels([]) == []


def test_describe_counts_a_set():
    comparisons = [
        compare("12345", "four", "no", chosen_critiques=("good", "kind"), margin=1.0),
        compare("12345", "ab", "abc", row=2),
    ]
    assert describe(comparisons) == {
        "comparisons": 2,
        "prompts": 1,
        "with more than one turn": 0,
        "median length of the prompt": 5,
        "median length of the chosen": 3,
        "median length of the rejected": 2,
        "the chosen is longer": "50.0%",
        "with critiques": 1,
        "critiques": 2,
        "with graded margin": 1,
    }
    assert describe([]) == {"comparisons": 0}


def test_no_marker_colour_is_left_in_the_page():
    html = full_report()
    assert not [color for color in PALETTE if color in html]
    assert "var(--accent)" in html and "prefers-color-scheme: dark" in html and "@media print" in html


def test_headline_shows_each_set_and_the_rule_to_beat():
    rows = figures.headline_rows(evaluation(with_accuracy(80, 20), with_accuracy(30, 10, longer_is_right=True)))
    assert [row.label for row in rows][1::2] == ["always the longer response", "always the longer response"]
    assert rows[0].estimate.value == 0.8 and rows[3].estimate.value == 1.0


def test_the_same_data_make_the_same_page():
    one, two = (render_report(ReportData(evaluation=evaluation(), created="2030-01-01T00:00:00")) for _ in range(2))
    assert one == two
