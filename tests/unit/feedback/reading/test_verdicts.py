"""A against B: two responses and who won, as the public sets write it and as others may."""

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message

TIE, BAD = "tie: the overseer preferred neither response", "tie: the overseer found both responses bad"


def pairs(feedback):
    return [(c.prompt[-1].content, c.chosen, c.rejected) for c in feedback.comparisons]


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_arena_conversations(load):
    base = {"model_a": "x", "model_b": "y", "language": "en"}
    rows = [
        base | {"conversation_a": talk("Hi", "one"), "conversation_b": talk("Hi", "two"), "winner": winner}
        for winner in ("model_a", "model_b", "tie", "tie (bothbad)")
    ]
    feedback = load(*rows)
    assert pairs(feedback) == [("Hi", "one", "two"), ("Hi", "two", "one")]
    dropped = feedback.counts.files[0].dropped
    assert (dropped[TIE].count, dropped[BAD].count) == (1, 1)


def test_arena_lists_of_turns_and_one_hot_winners(load):
    row = {"prompt": '["Hi"]', "response_a": '["one"]', "response_b": '["two"]'}
    marks = [
        dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), m, strict=True))
        for m in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    feedback = load(*(row | mark for mark in marks))
    assert pairs(feedback) == [("Hi", "one", "two"), ("Hi", "two", "one")]
    assert feedback.counts.files[0].dropped[TIE].count == 1
    several = {"prompt": '["Hi", "So?"]', "response_a": '["same", "one"]', "response_b": '["same", "two"]'} | marks[0]
    assert load(several).comparisons[0].prompt == (
        Message("user", "Hi"),
        Message("assistant", "same"),
        Message("user", "So?"),
    )


def test_saferlhf_names_the_verdict_that_is_not_read(load):
    row = {"prompt": "Hi", "response_0": "one", "response_1": "two", "better_response_id": 1, "safer_response_id": 0}
    feedback = load(row, row | {"better_response_id": 0, "safer_response_id": 1})
    assert pairs(feedback) == [("Hi", "two", "one"), ("Hi", "one", "two")]
    assert "'safer_response_id'" in feedback.counts.summary()
    safer = {"safer_response_id": "preference", "better_response_id": "ignore"}
    assert pairs(load(row, columns=safer)) == [("Hi", "one", "two")]


def test_shp_where_one_means_the_first(load):
    row = {"history": "Why?", "human_ref_A": "one", "human_ref_B": "two", "score_A": 9, "score_B": 2}
    assert pairs(load(row | {"labels": 1}, row | {"labels": 0, "score_A": 1})) == [
        ("Why?", "one", "two"),
        ("Why?", "two", "one"),
    ]


def test_webgpt_scores(load):
    row = {"question": {"dataset": "eli5", "id": "q", "full_text": "Why?"}, "answer_0": "one", "answer_1": "two"}
    feedback = load(row | {"score_0": -0.5, "score_1": 0.5}, row | {"score_0": 0.0, "score_1": 0.0})
    assert pairs(feedback) == [("Why?", "two", "one")]
    assert feedback.comparisons[0].margin == 1.0 and feedback.counts.files[0].dropped[TIE].count == 1


def test_nectar_rankings(load):
    answers = [{"answer": f"rank {rank}", "model": "m", "rank": float(rank)} for rank in (2, 1, 3)]
    feedback = load({"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers})
    assert pairs(feedback) == [("Hi", "rank 1", "rank 2"), ("Hi", "rank 1", "rank 3"), ("Hi", "rank 2", "rank 3")]
    scored = {"instruction": "Hi", "completions": [{"response": "bad", "score": 1}, {"response": "good", "score": 4}]}
    assert pairs(load(scored)) == [("Hi", "good", "bad")]


def test_a_response_without_the_rank_of_the_others_is_not_placed_by_its_score(load):
    answers = [
        {"answer": "good", "rank": 1, "score": 0.9},
        {"answer": "bad", "rank": None, "score": 0.1},
        {"answer": "fair", "rank": 2, "score": 0.5},
    ]
    best_first = [("Hi", "good", "fair"), ("Hi", "good", "bad"), ("Hi", "fair", "bad")]
    assert pairs(load({"prompt": "Hi", "answers": answers})) == best_first
    for answer in answers[:2]:
        del answer["score"]
    with pytest.raises(DataError, match="no rank or score that all of them have"):
        load({"prompt": "Hi", "answers": answers})


def test_scored_turns_of_a_conversation_are_not_ranked_responses(load):
    talk = [{"role": "user", "content": "hi there", "score": 2}, {"role": "assistant", "content": "yo", "score": 9}]
    with pytest.raises(DataError, match="'prompt' is not read with these columns"):
        load({"prompt": "Hi", "messages": talk})


@pytest.mark.parametrize("name", ["winner", "label"])
def test_a_verdict_that_is_always_1_does_not_say_which_response_is_better(load, name):
    rows = [{"prompt": p, "response_a": "one", "response_b": "two", name: 1} for p in ("Hi", "Ho")]
    with pytest.raises(DataError, match="do not say which response is better: 1") as caught:
        load(*rows)
    assert f"write the name of the better response instead of {name} 1" in str(caught.value)
    numbered = [{"prompt": p, "response_1": "one", "response_2": "two", name: 1} for p in ("Hi", "Ho")]
    assert pairs(load(*numbered)) == [("Hi", "one", "two"), ("Ho", "one", "two")]


@pytest.mark.parametrize(
    ("names", "verdict", "first", "second"),
    [
        (("response_a", "response_b"), "preference", "A", "b"),
        (("response_a", "response_b"), "winner", "response_a", "response_b"),
        (("answer1", "answer2"), "choice", 1, 2),
        (("completion_0", "completion_1"), "preferred", "0", "1"),
        (("first_output", "second_output"), "better", "first", "second"),
        (("responseA", "responseB"), "winner", "Model A", "Model B"),
        (("output_a", "output_b"), "label", "a", "b"),
        (("candidate_1", "candidate_2"), "preferred", 1, 2),
        (("text_1", "text_2"), "winner", "text_1", "text_2"),
        (("response_a", "response_b"), "winner", 0, 1),
    ],
)
def test_any_two_responses_with_a_verdict(load, names, verdict, first, second):
    row = {"prompt": "Hi", names[0]: "one", names[1]: "two"}
    assert pairs(load(row | {verdict: first}, row | {verdict: second})) == [("Hi", "one", "two"), ("Hi", "two", "one")]


def test_the_winner_by_the_name_of_its_model(load):
    row = {"prompt": "Hi", "model_a": "big", "model_b": "small", "response_a": "one", "response_b": "two"}
    assert pairs(load(row | {"winner": "small"}, row | {"winner": "big"}))[0] == ("Hi", "two", "one")


@pytest.mark.parametrize("values", [(0, 1), (True, False), (-1, 1), (0, 2)])
def test_a_verdict_whose_direction_is_not_clear_refuses_the_file(load, values):
    row = {"prompt": "Hi", "response_a": "one", "response_b": "two"}
    with pytest.raises(DataError, match=r"'label' do not say which response is better.*--columns label=preference"):
        load(*(row | {"label": value} for value in values))


def test_a_verdict_that_is_neither_is_an_error_of_its_row(load):
    row = {"prompt": "Hi", "response_a": "one", "response_b": "two"}
    with pytest.raises(DataError, match=r"'winner' is 'C'.*row 2"):
        load(row | {"winner": "A"}, row | {"winner": "C"})


def test_two_responses_of_other_names_by_columns(load):
    row = {"asked": "Hi", "left one": "one", "right one": "two", "who": "response_b"}
    columns = {"asked": "prompt", "left one": "response_a", "right one": "response_b", "who": "preference"}
    assert pairs(load(row, columns=columns)) == [("Hi", "two", "one")]
