"""Every column is read, or named as unread, or the file is refused: by name and by what it holds."""

import json
from typing import Any

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, load_feedback
from rrm_lm.feedback.records import Message

PAIR = {"prompt": "Where is Oslo?", "chosen": "Oslo is in Norway.", "rejected": "Oslo is in Sweden."}
SHOWN = [{"role": "user", "content": "Where is Oslo?"}, {"role": "assistant", "content": "In Norway."}]


@pytest.fixture
def load(tmp_path):
    def loader(*rows: dict[str, Any], **options: Any) -> Feedback:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load_feedback(str(path), **options)

    return loader


def without_prompt(**more: Any) -> dict[str, Any]:
    return {"chosen": PAIR["chosen"], "rejected": PAIR["rejected"], **more}


@pytest.mark.parametrize("name", ["question", "instruction", "input", "query", "user_prompt"])
def test_a_prompt_under_another_name_is_read_and_no_prompt_is_made_up(load, name):
    feedback = load(without_prompt(**{name: PAIR["prompt"]}))
    [record] = feedback.comparisons
    assert (record.prompt, record.chosen) == ((Message("user", PAIR["prompt"]),), PAIR["chosen"])
    assert f"'{name}' as 'prompt'" in feedback.counts.summary()


def test_an_instruction_with_an_input_is_one_prompt(load):
    rows = [without_prompt(instruction="Translate.", input="Hund"), without_prompt(instruction="Say hi.", input="")]
    assert [c.prompt[0].content for c in load(*rows).comparisons] == ["Translate.\n\nHund", "Say hi."]


def test_alpacas_columns_are_demonstrations(load):
    rows = [{"instruction": "Translate.", "input": word, "output": f"The {word}."} for word in ("Hund", "")]
    assert [(d.prompt[0].content, d.response) for d in load(*rows).demonstrations] == [
        ("Translate.\n\nHund", "The Hund."),
        ("Translate.", "The ."),
    ]


@pytest.mark.parametrize("name", ["utterance", "Prompt", "what they asked", "post"])
def test_another_column_of_text_is_never_ignored_for_an_implicit_prompt(load, name):
    with pytest.raises(DataError, match="no prompt column") as caught:
        load(without_prompt(**{name: "Where in the world is Oslo?"}))
    assert repr(name) in str(caught.value) and f"{name}=prompt" in str(caught.value)
    [record] = load(without_prompt(**{name: "Where is it?"}), columns={name: "prompt"}).comparisons
    assert record.prompt == (Message("user", "Where is it?"),)
    [record] = load(without_prompt(**{name: "Where in the world?"}), columns={name: "ignore"}).comparisons
    assert record.prompt == (Message("user", "Oslo is in"),)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_column_begins_the_prompt(load, name):
    [record] = load(PAIR | {name: "Be a pirate."}).comparisons
    assert record.prompt == (Message("system", "Be a pirate."), Message("user", PAIR["prompt"]))
    turns = [{"role": "system", "content": "Be a clerk."}, *SHOWN[:1]]
    with pytest.raises(DataError, match="differs from the system message"):
        load(PAIR | {name: "Be a pirate.", "prompt": turns, "chosen": [SHOWN[1]], "rejected": [SHOWN[1]]})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("label", True, False),
        ("label", "good", "bad"),
        ("label", "True", "False"),
        ("labels", 1, 0),
        ("score", 0.9, 0.1),
        ("rating", 5, 1),
        ("verdict", "correct", "wrong"),
    ],
)
def test_judged_messages_are_ratings_and_never_demonstrations(load, name, good, bad):
    other = [SHOWN[0], {"role": "assistant", "content": "In Peru."}]
    feedback = load({"messages": SHOWN, name: good}, {"messages": other, name: bad})
    assert not feedback.demonstrations
    assert [rating.rating > 0.5 for rating in feedback.ratings] == [True, False]
    assert [(c.chosen, c.rejected) for c in feedback.comparisons] == [("In Norway.", "In Peru.")]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("thumbs_up", True, False), ("is_fine", "yes", "no"), ("quality", 5, 1), ("flag", "good", "bad"), ("grade", 3, 1)],
)
def test_judgments_of_unknown_names_refuse_demonstrations(load, name, good, bad):
    rows = {"messages": SHOWN, name: good}, {"messages": SHOWN, name: bad}
    with pytest.raises(DataError, match="a judgment of the response") as caught:
        load(*rows)
    assert repr(name) in str(caught.value) and f"--columns {name}=rating" in str(caught.value)
    ratings = [rating.rating for rating in load(*rows, columns={name: "rating"}).ratings]
    assert ratings[0] > ratings[1]
    assert len(load(*rows, columns={name: "ignore"}).demonstrations) == 2


def test_columns_that_count_or_identify_are_named_and_not_refused(load):
    rows = [{"messages": SHOWN, "id": i, "num_turns": i % 3, "language": "en", "empty": None} for i in range(9)]
    feedback = load(*rows)
    assert len(feedback.demonstrations) == 9
    [file] = feedback.counts.files
    assert (file.columns, file.unread) == ({"messages": "messages"}, ["'id'", "'num_turns'", "'language'"])
    assert "not read: 'id', 'num_turns', 'language'" in feedback.counts.summary()


def test_a_label_beside_a_rating_refuses_the_file(load):
    rows = {"messages": SHOWN, "score": 0.9, "label": True}, {"messages": SHOWN, "score": 0.8, "label": False}
    with pytest.raises(DataError, match="column 'label' is not read"):
        load(*rows)
    assert [r.rating for r in load(*rows, columns={"score": "ignore"}).ratings] == [1.0, 0.0]


def test_a_label_that_never_varies_is_named(load):
    assert "'score'" in load(PAIR | {"score": 1}, PAIR | {"prompt": "Oslo?", "score": 1}).counts.summary()
    with pytest.raises(DataError, match="'score'"):
        load(PAIR | {"score": 1}, PAIR | {"prompt": "Oslo?", "score": 0})


@pytest.mark.parametrize("name", ["input", "question", "instruction", "conversations", "reasoning", "history"])
def test_a_second_column_that_changes_the_meaning_refuses_the_file(load, name):
    with pytest.raises(DataError, match=f"column '{name}' is not read"):
        load(PAIR | {name: "A long text that the answers are about."})
    assert load(PAIR | {name: "A long text."}, columns={name: "ignore"}).comparisons
    assert load(PAIR | {name: ""}).comparisons  # nothing is in it


def test_other_text_beside_a_prompt_is_named_with_what_it_could_be(load):
    summary = load(PAIR | {"persona": "You are a bored clerk."}, PAIR | {"background": "A long text of words."}).counts
    assert "'persona' (a system message, in 50% of rows" in summary.summary()
    assert "'background' (text, in 50% of rows" in summary.summary()


def test_a_column_that_repeats_what_is_read_is_not_a_reason_to_refuse(load):
    row = PAIR | {"messages": [SHOWN[0], {"role": "assistant", "content": PAIR["chosen"]}]}
    assert "'messages' (repeats columns that are read)" in load(row).counts.summary()


def test_a_prompt_that_is_not_the_conversations_is_an_error(load):
    talk = {name: [SHOWN[0], {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert load({"prompt": SHOWN[0]["content"], **talk}).comparisons[0].prompt == (Message("user", PAIR["prompt"]),)
    with pytest.raises(DataError, match="is not in the conversations"):
        load({"prompt": "Where is Rome?", **talk})


@pytest.mark.parametrize(("low", "high", "scaled"), [(1, 5, (1.0, 0.0)), (2, 9, (8 / 9, 1 / 9)), (30, 80, (0.8, 0.3))])
def test_ratings_of_any_scale_beside_a_pair_never_cost_the_pair(load, low, high, scaled):
    feedback = load(PAIR | {"chosen_rating": high, "rejected_rating": low})
    [record] = feedback.comparisons
    assert (record.chosen_rating, record.rejected_rating) == pytest.approx(scaled)
    assert "assumed to be on a scale from" in feedback.counts.summary()


def test_a_rating_without_a_scale_is_left_out_and_the_pair_is_kept(load):
    feedback = load(PAIR, PAIR | {"prompt": "Oslo?", "chosen_rating": 4})
    assert [c.chosen_rating for c in feedback.comparisons] == [None, None]
    assert "the rating was left out: 1 (row 2)" in feedback.counts.summary()


@pytest.mark.parametrize("scores", [(-3.5, -7.25), (97, 12), (0.9, 0.2)])
def test_scores_of_any_scale_never_cost_the_pair(load, scores):
    [record] = load(PAIR | {"score_chosen": scores[0], "score_rejected": scores[1]}).comparisons
    assert record.margin == pytest.approx(scores[0] - scores[1])
    [record] = load(PAIR | {"score_chosen": scores[1], "score_rejected": scores[0]}).comparisons
    assert record.margin is None  # the overseer's preference and the scores disagree


@pytest.mark.parametrize("true", [True, "True", "TRUE", "yes", "1", 1, "1.0"])
def test_booleans_in_any_spelling(load, true):
    rows = {"prompt": "Hi", "completion": "Yo", "label": true}, {"prompt": "Hi", "completion": "Go", "label": 0}
    assert [rating.rating for rating in load(*rows).ratings] == [1.0, 0.0]


def test_several_columns_that_could_be_the_prompt_are_named(load):
    with pytest.raises(DataError, match=r"several columns could be the prompt: 'question', 'query'"):
        load(without_prompt(question="Where is Oslo?", query="oslo location"))


def test_a_document_in_a_column_that_should_name_the_source_is_not_ignored(load):
    texts = ("The city of Oslo lies in the south of Norway.", "Oslo has about seven hundred thousand people, they say.")
    with pytest.raises(DataError, match="no prompt column"):
        load(*(without_prompt(source=text) for text in texts))
    feedback = load(*(PAIR | {"prompt": f"{i}?", "source": text} for i, text in enumerate(texts)))
    assert "'source text'" in feedback.counts.summary() and feedback.comparisons[0].source == "mine"


@pytest.mark.parametrize("name", ["images", "image", "audio"])
def test_pictures_and_sound_refuse_the_file(load, name):
    with pytest.raises(DataError, match=f"'{name}'.*pictures or sound"):
        load(PAIR | {name: [{"path": "oslo.png"}]})


def test_a_misspelled_column_gets_did_you_mean(load):
    with pytest.raises(DataError, match="did you mean --columns Prompt=prompt Chosen=chosen Rejected=rejected"):
        load({name.title(): text for name, text in PAIR.items()})


def test_counts_name_each_column_that_is_read_and_what_it_is_read_as(load):
    rows = [without_prompt(Question="Where?", instruction="", topic="north", sys_prompt="Be brief.", extra=None)]
    [file] = load(*rows, columns={"Question": "prompt"}).counts.files
    assert file.columns == {
        "chosen": "chosen", "rejected": "rejected", "Question": "prompt", "topic": "topic", "sys_prompt": "system"
    }  # fmt: skip
    assert file.to_dict()["columns"] == file.columns
    assert file.unread == []
