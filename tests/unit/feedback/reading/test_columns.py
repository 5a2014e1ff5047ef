"""Every column is read, or named as unread, or the file is refused: by name and by what it holds."""

from typing import Any

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message

PAIR = {"prompt": "Where is Oslo?", "chosen": "Oslo is in Norway.", "rejected": "Oslo is in Sweden."}
SHOWN = [{"role": "user", "content": "Where is Oslo?"}, {"role": "assistant", "content": "In Norway."}]


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


def test_a_pair_with_equal_scores_is_a_tie_unless_it_has_a_margin(load):
    """UltraFeedback's rejected response is drawn at random, so it may have the best score, too."""
    tie = PAIR | {"prompt": "Oslo?", "score_chosen": 7, "score_rejected": 7, "rejected_critique": "too long"}
    feedback = load(PAIR | {"score_chosen": 8, "score_rejected": 5}, tie)
    assert [record.margin for record in feedback.comparisons] == [3]
    assert feedback.counts.files[0].dropped["tie: the overseer preferred neither response"].count == 1
    assert [record.critique for record in feedback.critiques] == ["too long"]
    assert [record.margin for record in load(tie | {"margin": 2}).comparisons] == [2]


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
    assert "'source' (text" in feedback.counts.summary() and feedback.comparisons[0].source == "mine"


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


def varied(row: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Six rows whose texts have numbers; a function of `more` gives the value of each row."""
    rows = [{name: f"{value} {i}" for name, value in row.items()} for i in range(6)]
    return [r | {name: make(i) if callable(make) else make for name, make in more.items()} for i, r in enumerate(rows)]


NO_PROMPT = {
    "frage": lambda i: f"Wo liegt denn Oslo {i}?",
    "ask": lambda i: f"Where is it, then? {i}",
    "context_text": lambda i: f"A text about number {i} of them",
    "X": lambda i: f"Tell me about {i} of them",
    "turn_1": lambda i: f"Good morning to you, {i}",
    "id": lambda i: f"Where is number {i}?",
    "q": lambda i: ("Oslo?", "Rome?", "Bern?", "Kiev?", "Baku?", "Riga?")[i],
    "stichwort": lambda i: ("Hund", "Katze", "Maus", "Kuh", "Pferd", "Huhn")[i],
    "meta": lambda i: {"asked": f"Where is number {i}?", "id": i},
    "turns": lambda i: [f"Where is number {i}?"],
}


@pytest.mark.parametrize("name", NO_PROMPT)
def test_text_of_any_name_and_nesting_is_never_ignored_for_an_implicit_prompt(load, name):
    for pair in (without_prompt(), {"response_a": PAIR["chosen"], "response_b": PAIR["rejected"]}):
        rows = varied(pair, **{name: NO_PROMPT[name]})
        rows = [row | ({"winner": "ab"[i % 2]} if "response_a" in pair else {}) for i, row in enumerate(rows)]
        with pytest.raises(DataError, match="no prompt column") as caught:
            load(*rows)
        assert repr(name) in str(caught.value) and f"--columns {name}=prompt" in str(caught.value)


@pytest.mark.parametrize("name", ["id", "language", "model", "hash", "split"])
def test_short_names_and_identifiers_do_not_stop_an_implicit_prompt(load, name):
    values = {"language": "en", "model": lambda i: f"gpt-{i}", "split": "train"}
    assert len(load(*varied(without_prompt(), **{name: values.get(name, lambda i: f"a{i}f")})).comparisons) == 6


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("preamble", "You are a pirate, and you never say so.", "a system message"),
        ("setup", "Act as a tired clerk in an office.", "a system message"),
        ("dossier", lambda i: f"On day {i} they " + "went up the river " * 5, "a part of the prompt"),
        ("artikel", lambda i: f"{i} Am Abend " + "gingen alle nach Hause " * 5, "a part of the prompt"),
        ("better", lambda i: ("chosen", "rejected")[i % 2], "a judgment of the response"),
        ("gold_choice", lambda i: ("rejected", "tie")[i % 2], "a judgment of the response"),
        ("is_swapped", lambda i: i % 2 == 0, "whether chosen and rejected are swapped"),
    ],
)
def test_what_a_column_holds_decides_next_to_a_pair(load, name, make, what):
    rows = varied(PAIR, **{name: make})
    with pytest.raises(DataError, match=f"column '{name}' is not read .* {what}"):
        load(*rows)
    assert len(load(*rows, columns={name: "ignore"}).comparisons) == 6


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("explanation", lambda i: f"It is number {i} because " + "of the many rivers " * 5),
        ("raw_output", lambda i: f"{i}: " + "a long text of a judge " * 5),
        ("annotator", lambda i: f"Ola {i % 2}"),
        ("confidence", lambda i: i / 6),
        ("settings", {"temperature": 0.7}),
    ],
)
def test_text_about_the_responses_does_not_refuse_a_pair(load, name, make):
    summary = load(*varied(PAIR, **{name: make})).counts.summary()
    assert repr(name) in summary and f"{name}=" not in summary


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("usable", lambda i: ("ja", "nein")[i % 2]),
        ("flagged", lambda i: (None, "yes")[i % 2]),
        ("reaction", lambda i: ("👍", "👎")[i % 2]),
        ("annotator_said", lambda i: ("OK", "Not OK")[i % 2]),
        ("judge", lambda i: {"score": i, "comment": ""}),
        ("scores", lambda i: {"clarity": i}),
        ("pass_rate", lambda i: i / 6),
    ],
)
def test_judgments_in_other_words_or_nested_refuse_demonstrations(load, name, make):
    for shown in ({"prompt": PAIR["prompt"], "completion": PAIR["chosen"]}, {}):
        rows = varied(shown, **{name: make})
        with pytest.raises(DataError, match=f"column '{name}' is not read .* a judgment of the response"):
            load(*(row | ({} if shown else {"messages": SHOWN}) for row in rows))


def test_a_prompt_next_to_messages_that_do_not_hold_it_is_not_ignored(load):
    with pytest.raises(DataError, match="column 'prompt' is not read"):
        load({"messages": SHOWN, "prompt": "Answer in French."})
    assert load({"messages": SHOWN, "prompt": SHOWN[0]["content"]}).demonstrations


def test_all_columns_that_refuse_a_file_are_named_at_once_with_options_for_a_shell(load):
    rows = varied(PAIR, history="a b c", label=lambda i: i % 2, **{"the setup": "You are a poor old pirate."})
    with pytest.raises(DataError) as caught:
        load(*rows)
    message = str(caught.value)
    assert all(f"column {name!r} is not read" in message for name in ("history", "label", "the setup"))
    assert "'the setup=system'" in message and "--columns history=ignore label=ignore 'the setup=ignore'" in message
    assert len(load(*rows, columns=dict.fromkeys(("history", "label", "the setup"), "ignore")).comparisons) == 6


def test_advice_never_replaces_the_prompt_and_a_replaced_column_is_named(load):
    rows = varied(PAIR, frage="Wo in der Welt?")
    assert "'frage' (text, in 100% of rows; if it matters, add it to the prompt)" in load(*rows).counts.summary()
    feedback = load(*rows, columns={"frage": "prompt"})
    assert feedback.comparisons[0].prompt == (Message("user", "Wo in der Welt?"),)
    assert "not read: 'prompt' (--columns reads 'frage' in its place)" in feedback.counts.summary()


def test_a_short_text_that_is_part_of_another_does_not_repeat_it(load):
    rows = [row | {"verdict": "in"} for row in varied(PAIR)]
    assert "'verdict' (a judgment of the response, in 100% of rows)" in load(*rows).counts.summary()
