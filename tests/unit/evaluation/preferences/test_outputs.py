"""The files of an evaluation: keys that programs rely on, RewardBench's shapes, and the card."""

import json
import math

import pytest
import yaml

from rrm_lm.evaluation.preferences.outputs import file_name, plain_text, rewardbench_summary, write_evaluation
from rrm_lm.evaluation.preferences.results import Evaluation
from rrm_lm.evaluation.reports.model_card import Card, model_card
from rrm_lm.feedback.records import Message
from tests.unit.evaluation.samples import compare, evaluate, hashed, many, rewards_of

NOT_SCORED = "the reward is not a number"


def evaluation(*sets, model="org/tiny"):
    return Evaluation(model, sets or (evaluate(many(20)),), {"seed": 7})


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- results.json ----


def test_results_json_has_the_promised_keys_per_set(tmp_path):
    comparisons = [*many(20), compare("broken", "a", "b", row=21)]
    result = evaluate(comparisons, lambda p, r: math.nan if p == "broken" else hashed(p, r), dropped={"empty": 2})
    write_evaluation(evaluation(result), tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["model"] == "org/tiny"
    assert written["seed"] == 7
    dev = written["sets"]["dev"]
    accuracy = dev["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert (accuracy["n"], accuracy["clusters"]) == (20, 10)
    assert (dev["n_given"], dev["n_scored"]) == (23, 20)
    assert dev["not_scored"] == {"empty": 2, NOT_SCORED: 1}
    for key in ("ties", "ece", "brier", "longer_accuracy"):
        assert isinstance(dev[key], int | float)
    assert set(dev["intervals"]["brier"]) == {"value", "low", "high", "n", "clusters"}
    assert set(dev["by_source"]) == {"forum", "desk", "dev"}
    assert dev["by_source"]["forum"]["accuracy"]["n"] == 10
    assert dev["sections"] is None and dev["best_of_four"] is None and dev["styles"] is None


def test_results_are_the_same_bytes_when_written_again(tmp_path):
    write_evaluation(evaluation(), tmp_path / "one")
    write_evaluation(evaluation(), tmp_path / "two")
    for name in ("results.json", "scores.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---- scores.jsonl ----


def test_scores_have_a_row_for_every_comparison_scored_or_not(tmp_path):
    comparisons = [
        compare("p", "right", "wrong", row=4, source="forum", group="g"),
        compare("p", "right", "nan", row=5),
    ]
    result = evaluate(comparisons, rewards_of({"right": 2.0, "wrong": 0.5, "nan": math.nan}))
    write_evaluation(evaluation(result), tmp_path)
    first, second = read_lines(tmp_path / "scores.jsonl")
    assert first == {
        "set": "dev",
        "index": 0,
        "prompt_id": comparisons[0].prompt_id,
        "source": "forum",
        "subset": "",
        "group": "g",
        "styles": None,
        "origin": {"file": "pairs.jsonl", "row": 4},
        "reward_chosen": 2.0,
        "reward_rejected": 0.5,
        "margin": 1.5,
        "probability": pytest.approx(1 / (1 + math.exp(-1.5))),
        "correct": 1.0,
        "length_chosen": 5,
        "length_rejected": 5,
        "not_scored_because": None,
    }
    assert second["not_scored_because"] == NOT_SCORED
    assert second["reward_chosen"] is None and second["margin"] is None and second["correct"] is None


# ---- RewardBench's files ----


def test_rewardbench_files_have_its_keys_and_places(tmp_path):
    write_evaluation(evaluation(), tmp_path, tokenizer="org/tokenizer")
    summary = json.loads((tmp_path / "org" / "tiny.json").read_text())
    assert list(summary) == [
        "accuracy",
        "num_prompts",
        "model",
        "ref_model",
        "tokenizer",
        "chat_template",
        "extra_results",
    ]
    assert (summary["model"], summary["tokenizer"], summary["num_prompts"]) == ("org/tiny", "org/tokenizer", 20)
    assert summary["extra_results"] is None
    rows = read_lines(tmp_path / "org" / "tiny_outputs.jsonl")
    assert list(rows[0])[:6] == [
        "prompt",
        "results",
        "scores_chosen",
        "scores_rejected",
        "text_chosen",
        "text_rejected",
    ]
    assert len(rows) == 20
    assert summary["accuracy"] == sum(row["results"] for row in rows) / 20
    assert all(row["results"] == int(row["scores_chosen"] > row["scores_rejected"]) for row in rows)


def test_rewardbench_counts_a_tie_as_wrong_and_we_as_half():
    rewards = {"right": 1.0, "same": 1.0, "wrong": 0.0}
    result = evaluate([compare("p", "right", "same"), compare("q", "right", "wrong")], rewards_of(rewards))
    assert rewardbench_summary(result, "tiny")["accuracy"] == 0.5
    assert result.measures.accuracy.value == 0.75


def test_rewardbenchs_own_set_has_its_subsets_in_the_extra_results():
    rewards = {"right": 1.0, "wrong": 0.0}
    comparisons = [
        compare("p", "right", "wrong", subset="math-prm"),
        compare("q", "right", "wrong", subset="hep-go"),
        compare("r", "wrong", "right", subset="hep-go"),
    ]
    summary = rewardbench_summary(evaluate(comparisons, rewards_of(rewards)), "tiny")
    assert summary["extra_results"] == {"hep-go": 0.5, "math-prm": 1.0}
    mixed = evaluate([*comparisons, compare("s", "right", "wrong", subset="mine")], rewards_of(rewards))
    assert rewardbench_summary(mixed, "tiny")["extra_results"] is None


def test_texts_are_rendered_as_the_model_reads_them(tmp_path):
    def render(prompt, response):
        return "".join(f"<{m.role}>{m.content}" for m in prompt) + (f"<assistant>{response}" if response else "")

    write_evaluation(evaluation(evaluate([compare("hi", "yes", "no")])), tmp_path, render=render)
    (row,) = read_lines(tmp_path / "org" / "tiny_outputs.jsonl")
    assert (row["prompt"], row["text_chosen"], row["text_rejected"]) == (
        "<user>hi",
        "<user>hi<assistant>yes",
        "<user>hi<assistant>no",
    )


def test_plain_text_names_the_roles():
    prompt = (Message("system", "be kind"), Message("user", "hi"))
    assert plain_text(prompt, None) == "system: be kind\n\nuser: hi"
    assert plain_text(prompt, "hello") == "system: be kind\n\nuser: hi\n\nassistant: hello"


def test_several_sets_have_a_folder_each(tmp_path):
    write_evaluation(evaluation(evaluate(many(10), name="my/dev set"), evaluate(many(12), name="test")), tmp_path)
    assert (tmp_path / "my-dev-set" / "org" / "tiny.json").is_file()
    assert json.loads((tmp_path / "test" / "org" / "tiny.json").read_text())["num_prompts"] == 12
    assert set(json.loads((tmp_path / "results.json").read_text())["sets"]) == {"my/dev set", "test"}
    assert {row["set"] for row in read_lines(tmp_path / "scores.jsonl")} == {"my/dev set", "test"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/tiny", "org/tiny"),
        ("/somewhere/outputs/demo", "demo"),
        ("../outputs/demo", "demo"),
        ("./demo", "demo"),
        ("a name: with | odd signs", "a-name-with-odd-signs"),
        ("..", "model"),
        ("outputs/a/results", "results-model"),
        ("", "model"),
    ],
)
def test_file_names_stay_inside_the_folder(model, name):
    assert file_name(model) == name


# ---- the card ----


def split_card(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_has_the_hubs_metadata_with_the_numbers():
    result = evaluation()
    card = Card(kind="adapter", base_model="org/base", datasets=["org/pairs", "my.jsonl"])
    front, body = split_card(model_card(result, card))
    assert front["base_model"] == "org/base"
    assert front["datasets"] == ["org/pairs"]
    assert front["library_name"] == "peft"
    (entry,) = front["model-index"]
    assert entry["name"] == "tiny"
    metrics = {metric["type"]: metric for metric in entry["results"][0]["metrics"]}
    accuracy = result.sets[0].measures.accuracy
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy.value, abs=1e-6)
    assert metrics["accuracy"]["args"]["low"] == pytest.approx(accuracy.low, abs=1e-6)
    assert set(metrics) == {"accuracy", "longer_accuracy", "expected_calibration_error", "brier_score"}
    assert "AutoPeftModelForSequenceClassification" in body
    assert f"| dev | {100 * accuracy.value:.1f}% |" in body


def test_card_leaves_local_names_out_of_the_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    card = Card(kind="merged", base_model="smollm2-135m", datasets=["data/pairs", "../x"])
    front, body = split_card(model_card(evaluation(), card))
    assert "datasets" not in front and "base_model" not in front
    assert "AutoPeftModel" not in body and "AutoModelForSequenceClassification" in body


def test_card_of_an_adapter_on_the_embedded_model_says_how_to_load_it():
    """PEFT alone does not find a backbone that is not on the Hub."""
    _, body = split_card(model_card(evaluation(), Card(kind="adapter", base_model="smollm2-135m", location="mine")))
    assert "AutoPeftModel" not in body
    assert 'fetch("smollm2-135m")' in body and 'PeftModel.from_pretrained(backbone, "mine")' in body


def test_card_of_someone_elses_model_does_not_say_that_we_trained_it():
    _, body = split_card(model_card(evaluation(), Card(kind="evaluated")))
    assert body.lstrip().startswith("# Evaluation of tiny")
    assert "trained with" not in body and "How to use it" not in body


def test_card_shows_settings_as_a_table_that_odd_signs_do_not_break():
    card = Card(kind="adapter", training={"target": ["q", "v"], "note": "a|b\nc"}, leakage="none was found.")
    body = model_card(evaluation(), card)
    assert "| target | q, v |" in body
    assert "| note | a\\|b c |" in body
    assert "Overlap of training and evaluation: none was found." in body


def test_card_lists_benchmark_scores():
    names = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm"]
    comparisons = [compare(f"q{i}", "right", "wrong", subset=name) for i, name in enumerate(names)]
    _, body = split_card(model_card(evaluation(evaluate(comparisons)), Card(kind="evaluated")))
    assert "| dev: RewardBench: Chat Hard |" in body
