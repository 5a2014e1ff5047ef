"""Each shape of feedback on a few rows written for it: which it is taken for, and the records it gives."""

import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats import FORMATS, recognize_rows, rename
from rrm_lm.feedback.records import Message


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


ASK = (Message("user", "What is the sky's colour?"),)
ASKED = "What is the sky's colour?"


def the_format(feedback):
    return feedback.counts.files[0].format


def test_trl_plain_preference_with_margin(load):
    row = {"prompt": ASKED, "chosen": "Blue.", "rejected": "Green.", "margin": 1.5}
    feedback = load(row)
    [record] = feedback.comparisons
    assert the_format(feedback) == "preference pairs"
    assert (record.prompt, record.chosen, record.rejected, record.margin) == (ASK, "Blue.", "Green.", 1.5)
    assert (record.source, record.origin.row, record.group, record.styles) == ("mine", 1, "", None)


def test_trl_conversational_preference(load):
    row = {"prompt": [user(ASKED)], "chosen": [bot("Blue.")], "rejected": [bot("Green.")]}
    [record] = load(row).comparisons
    assert (record.prompt, record.chosen, record.rejected, record.margin) == (ASK, "Blue.", "Green.", None)


def test_conversational_preference_that_repeats_the_prompt_in_each_response(load):
    prompt = [user(ASKED)]
    [record] = load(
        {"prompt": prompt, "chosen": [*prompt, bot("Blue.")], "rejected": [*prompt, bot("Green.")]}
    ).comparisons
    assert (record.prompt, record.chosen, record.rejected) == (ASK, "Blue.", "Green.")


def test_trl_implicit_prompt_in_messages(load):
    turns = [{"role": "system", "content": "Be brief."}, user(ASKED), bot("Which sky?"), user("Ours.")]
    feedback = load({"chosen": [*turns, bot("Blue.")], "rejected": [*turns, bot("Green.")]})
    [record] = feedback.comparisons
    assert the_format(feedback) == "preference pairs with implicit prompt"
    assert [message.role for message in record.prompt] == ["system", "user", "assistant", "user"]
    assert (record.chosen, record.rejected) == ("Blue.", "Green.")


def test_trl_implicit_prompt_in_text_ends_with_a_whole_word(load):
    [record] = load({"chosen": "The sky is blue.", "rejected": "The sky is black."}).comparisons
    assert (record.prompt[0].content, record.chosen, record.rejected) == ("The sky is", "blue.", "black.")


def test_a_text_prompt_beside_lone_assistant_messages(load):
    [record] = load({"prompt": ASKED, "chosen": [bot("Blue.")], "rejected": [bot("Green.")]}).comparisons
    assert record.prompt == ASK


def test_hh_transcripts(load):
    opening = "\n\nHuman: Hi!\n\nAssistant: Hello, Human: that is you.\n\nHuman: What now?\n\nAssistant:"
    feedback = load({"chosen": opening + " We talk.\n\nMore.", "rejected": opening + " Go away."})
    [record] = feedback.comparisons
    assert the_format(feedback) == "HH transcripts"
    assert record.prompt == (
        Message("user", "Hi!"),
        Message("assistant", "Hello, Human: that is you."),
        Message("user", "What now?"),
    )
    assert (record.chosen, record.rejected) == ("We talk.\n\nMore.", "Go away.")


def test_a_transcript_as_prompt_column(load):
    prompt = "\n\nHuman: Hi!\n\nAssistant:"
    [record] = load({"prompt": prompt, "chosen": " Hello.", "rejected": " Go away."}).comparisons
    assert record.prompt == (Message("user", "Hi!"),)


def test_ultrafeedback_binarized(load):
    row = {
        "prompt": ASKED,
        "prompt_id": "ab12",
        "chosen": [user(ASKED), bot("Blue.")],
        "rejected": [user(ASKED), bot("Green.")],
        "messages": [user(ASKED), bot("Blue.")],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }
    feedback = load(row)
    [record] = feedback.comparisons
    assert the_format(feedback) == "UltraFeedback-binarized"
    assert (record.prompt, record.chosen, record.rejected) == (ASK, "Blue.", "Green.")
    assert (record.margin, record.chosen_rating, record.rejected_rating) == (2.5, 0.85, 0.6)
    assert record.source == "ultrafeedback"
    assert not feedback.demonstrations


def test_helpsteer2_ratings_make_pairs(load):
    attributes = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    prompt = "Hello\n<extra_id_1>Assistant\nHi\n<extra_id_1>User\nThe sky?"
    feedback = load(
        {"prompt": prompt, "response": "Green.", "helpfulness": 1, **attributes},
        {"prompt": prompt, "response": "Blue.", "helpfulness": 4, **attributes},
        {"prompt": "Other", "response": "A", "helpfulness": 2, **attributes},
        {"prompt": "Other", "response": "B", "helpfulness": 2, **attributes},
    )
    assert the_format(feedback) == "HelpSteer2"
    assert [rating.rating for rating in feedback.ratings] == [0.25, 1.0, 0.5, 0.5]
    [record] = feedback.comparisons
    assert record.prompt == (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "The sky?"))
    assert (record.chosen, record.rejected, record.margin, record.source) == ("Blue.", "Green.", 0.75, "helpsteer2")
    assert record.chosen_rating is None  # it is in the Rating, and trained on once
    assert (feedback.counts.derived_comparisons, feedback.counts.derived_ties) == (1, 1)


def test_helpsteer2_disagreements_are_averaged(load):
    attributes = {"correctness": [4, 4, 4], "coherence": [4, 4, 3]}
    [rating] = load({"prompt": "Hi", "response": "Hello", "helpfulness": [4, 3, 2], **attributes}).ratings
    assert rating.rating == 0.75


def test_helpfulness_alone_is_a_rating_on_the_scale_of_its_file(load):
    """Without the other attributes of HelpSteer2, nothing says that the best is 4."""
    rows = [{"prompt": "Hi", "response": text, "helpfulness": value} for text, value in (("a", 0.9), ("b", 0.1))]
    feedback = load(*({**row, "critique": "Short."} for row in rows))
    assert [rating.rating for rating in feedback.ratings] == [0.9, 0.1]
    assert len(feedback.critiques) == 2 and {rating.source for rating in feedback.ratings} == {"mine"}
    five = [{"prompt": "Hi", "response": text, "helpfulness": value} for text, value in (("a", 5), ("b", 1))]
    assert [rating.rating for rating in load(*five).ratings] == [1.0, 0.0]


def test_lists_that_csv_holds_as_text_are_lists(load):
    text = "prompt,chosen,rejected,subset,num_correct\n"
    text += """Capital?,"['Oslo.']","['Bergen.', 'Rome.']",Factuality,1\n"""
    feedback = load(text, name="mine.csv")
    pairs = [(one.chosen, one.rejected) for one in feedback.comparisons]
    assert pairs == [("Oslo.", "Bergen."), ("Oslo.", "Rome.")]
    assert len({one.group for one in feedback.comparisons}) == 1
    answers = {"prompt": "Cities as JSON?", "chosen": '["Oslo", "Rome"]', "rejected": '["Oslo", "Sea"]'}
    [one] = load(answers).comparisons  # lists of the same length are the answers themselves
    assert (one.chosen, one.rejected) == ('["Oslo", "Rome"]', '["Oslo", "Sea"]')


def test_a_judged_answer_in_json_stays_what_was_judged(load):
    rows = [
        {"prompt": "A city as a JSON list.", "response_a": '["Oslo"]', "response_b": '["Sea"]', "winner": "model_a"},
        {"prompt": "Two, please.", "response_a": "Oslo", "response_b": '["Oslo", "Rome"]', "winner": "model_b"},
    ]
    first, second = load(*rows).comparisons
    assert (first.chosen, first.rejected) == ('["Oslo"]', '["Sea"]')
    assert (second.chosen, second.rejected) == ('["Oslo", "Rome"]', "Oslo")


def test_the_arena_s_lists_of_turns_are_turns(load):
    row = {"prompt": '["Hi", "Why?"]', "response_a": '["Hello", "So."]', "response_b": '["Hello", "No."]'}
    [one] = load({**row, "winner": "model_b"}).comparisons
    assert [message.content for message in one.prompt] == ["Hi", "Hello", "Why?"]
    assert (one.chosen, one.rejected) == ("No.", "So.")


@pytest.mark.parametrize(
    "answer",
    [
        '{"from": "USD", "to": "EUR", "value": "92"}',
        '{"role": "user", "content": "Hello"}',
        '{"role": "x", "content": 1}',
        '{"role": ["a"], "from": {}}',
    ],
)
def test_an_answer_in_json_is_no_message(load, answer: str) -> None:
    [one] = load({"prompt": "As JSON, please.", "completion": answer}).demonstrations
    assert one.response == answer
    [pair] = load({"prompt": "As JSON, please.", "chosen": answer, "rejected": "no"}).comparisons
    assert pair.chosen == answer


def test_a_prompt_that_is_the_first_turn_of_the_conversations(load):
    shared = [("user", "q1?"), ("assistant", "a1"), ("user", "q2?")]
    talks = [
        [{"role": role, "content": content} for role, content in (*shared, ("assistant", last))]
        for last in ("good", "bad")
    ]
    [one] = load({"prompt": "q1?", "chosen": talks[0], "rejected": talks[1]}).comparisons
    assert [message.content for message in one.prompt] == ["q1?", "a1", "q2?"]
    assert (one.chosen, one.rejected) == ("good", "bad")


def test_pairs_whose_prompt_ends_before_the_cue(load):
    """yitingxie/rlhf-reward-datasets, which DeepSpeed-Chat reads: the marks are in the cells."""
    rows = [
        {
            "prompt": "Human: How do I boil an egg? ",
            "chosen": "Assistant: Ten minutes.",
            "rejected": "Assistant: No idea.",
        },
        {
            "prompt": "\n\nHuman: Hi Assistant: Hello Human: Eggs? ",
            "chosen": "Assistant: Yes.",
            "rejected": "Assistant: No.",
        },
    ]
    first, second = load(*rows).comparisons
    assert first.prompt == (Message("user", "How do I boil an egg?"),)
    assert (first.chosen, first.rejected) == ("Ten minutes.", "No idea.")
    assert [message.content for message in second.prompt] == ["Hi", "Hello", "Eggs?"]


def test_the_column_of_the_verdict_is_no_scale(load):
    rows = [{"prompt": "Hi", "output_1": "a", "output_2": "b", "label": value} for value in (1, 2)]
    feedback = load(*rows)
    assert [one.chosen for one in feedback.comparisons] == ["a", "b"]
    assert not any("scale" in remark for file in feedback.counts.files for remark in file.remarks)


def test_helpsteer2_preference(load):
    row = {
        "split": "train",
        "prompt": ASKED,
        "response_1": "Green.",
        "response_2": "Blue.",
        "preference_strength": 2,
        "preference_statement": "@Response 2 is better than @Response 1.",
        "preference_elaboration": "It is right. @Response 1 is wrong.",
        "three_most_similar_preferences": [],
        "all_preferences_unprocessed": [],
    }
    feedback = load(row, row | {"prompt": "Again?", "preference_strength": -1}, row | {"preference_strength": 0})
    assert the_format(feedback) == "HelpSteer2-Preference"
    first, second = feedback.comparisons
    assert (first.chosen, first.rejected, first.margin) == ("Blue.", "Green.", 2.0)
    assert (second.chosen, second.rejected, second.margin) == ("Green.", "Blue.", 1.0)
    assert first.chosen_critiques == (
        "This response is better than the other response. It is right. The other response is wrong.",
    )
    assert first.rejected_critiques == (
        "The other response is better than this response. It is right. This response is wrong.",
    )
    tie = feedback.counts.files[0].dropped["tie: the overseer preferred neither response"]
    assert [origin.row for origin in tie.origins] == [3]
    assert len(feedback.critiques) == 2  # the words of the tie are kept


HELPSTEER3 = {
    "domain": "code",
    "language": "english",
    "context": [user("Hi"), bot("Hello"), user(ASKED)],
    "response1": "Blue.",
    "response2": "Green.",
}


def test_helpsteer3_preference_takes_what_each_annotator_wrote(load):
    people = [
        {
            "score": -3,
            "reasoning": "Response 1 is right.",
            "feedback1": "The response is perfectly helpful. It is right.",
            "feedback2": "The response is not helpful. It is wrong.",
        },
        {
            "score": -1,
            "reasoning": "Both are short.",
            "feedback1": "The response is mostly helpful.",
            "feedback2": "The response is slightly helpful.",
        },
    ]
    feedback = load(HELPSTEER3 | {"overall_preference": -2, "individual_preference": people})
    [record] = feedback.comparisons
    assert the_format(feedback) == "HelpSteer3"
    assert (record.chosen, record.rejected, record.margin) == ("Blue.", "Green.", 2.0)
    assert (record.source, record.subset, len(record.prompt)) == ("helpsteer3", "code", 3)
    assert record.chosen_critiques[0] == "The response is perfectly helpful. It is right."
    assert (len(record.chosen_critiques), len(record.rejected_critiques)) == (2, 2)
    assert (record.chosen_rating, record.rejected_rating) == (0.875, 0.125)


def test_helpsteer3_reasoning_is_used_where_there_is_nothing_else(load):
    row = HELPSTEER3 | {
        "overall_preference": 3,
        "individual_preference": [{"score": 3, "reasoning": "Response 2 beats Response 1."}],
    }
    [record] = load(row).comparisons
    assert record.chosen == "Green."
    assert record.chosen_critiques == ("This response beats the other response.",)
    assert record.rejected_critiques == ("The other response beats this response.",)


def test_helpsteer3_tie_keeps_the_words_but_derives_no_comparison(load):
    people = [{"score": 0, "feedback1": "The response is mostly helpful.", "feedback2": "The response is not helpful."}]
    feedback = load(HELPSTEER3 | {"overall_preference": 0, "individual_preference": people})
    assert not feedback.comparisons and not feedback.ratings
    assert [critique.rating for critique in feedback.critiques] == [0.75, 0.0]
    assert {critique.subset for critique in feedback.critiques} == {"code"}


def test_helpsteer3_feedback(load):
    level = "The response is {} helpful. Because.".format
    higher = HELPSTEER3 | {
        "feedback1": [level("slightly"), level("partially")],
        "feedback2": [level("mostly"), level("Mostly")],
    }
    same = HELPSTEER3 | {"feedback1": [level("mostly")], "feedback2": [level("mostly")]}
    feedback = load(higher, same)
    assert the_format(feedback) == "HelpSteer3-Feedback"
    [record] = feedback.comparisons
    assert (record.chosen, record.margin) == ("Green.", 0.375)
    assert record.chosen_critiques == (level("mostly"), level("Mostly"))
    assert len(feedback.critiques) == 2 and len(feedback.ratings) == 2


def test_helpsteer3_edit(load):
    row = {
        "context": [user(ASKED)],
        "original_response": "Bleu.",
        "edited_response": "Blue.",
        "feedback": ["The response is partially helpful. It is in French.", "Wrong language."],
        "change_summary": "Translated.",
    }
    feedback = load(row)
    assert the_format(feedback) == "HelpSteer3-Edit"
    [correction] = feedback.corrections
    assert (correction.response, correction.corrected) == ("Bleu.", "Blue.")
    assert "Wrong language." in (correction.critique or "")
    assert [critique.rating for critique in feedback.critiques] == [0.5, None]


def test_slf5k(load):
    row = {
        "id": "t3_1",
        "subreddit": "pets",
        "title": "My cat",
        "post": "My cat sleeps on the stove.",
        "generated_summary_for_comparison_A": "A cat.",
        "generated_summary_for_comparison_B": "A cat that sleeps on the stove.",
        "comparison_preference": "Summary B",
        "generated_summary_for_feedback": "A warm cat.",
        "feedback": "It should say where the cat sleeps.",
        "feedback_class": "Coverage",
        "ideal_human_summary": "Cat sleeps on stove.",
    }
    feedback = load(row)
    assert the_format(feedback) == "SLF5K"
    [comparison], [critique], [correction] = feedback.comparisons, feedback.critiques, feedback.corrections
    assert (comparison.chosen, comparison.rejected) == ("A cat that sleeps on the stove.", "A cat.")
    assert (comparison.source, comparison.subset, critique.subset) == ("slf5k", "", "Coverage")
    for part in ("r/pets", "My cat", "sleeps on the stove"):
        assert part in comparison.prompt[0].content
    assert (critique.response, critique.critique) == ("A warm cat.", "It should say where the cat sleeps.")
    assert (correction.corrected, correction.critique) == ("Cat sleeps on stove.", critique.critique)
    assert feedback.counts.files[0].to_dict()["rows_used"] == 1


def test_slf5k_rows_without_a_comparison_or_without_feedback(load):
    base = {"title": "T", "post": "P"}
    compared = base | {
        "generated_summary_for_comparison_A": "a",
        "generated_summary_for_comparison_B": "b",
        "comparison_preference": "Summary A",
    }
    written = base | {"generated_summary_for_feedback": "c", "feedback": "Too short."}
    feedback = load(compared, written)
    assert feedback.sizes() == {"comparisons": 1, "critiques": 1}
    with pytest.raises(DataError, match=r"mine\.jsonl, row 1.*comparison_preference"):
        load(compared | {"comparison_preference": "Neither"})


def test_rewardbench(load):
    row = {
        "prompt": ASKED,
        "chosen": "Blue.",
        "rejected": "Green.",
        "chosen_model": "a",
        "rejected_model": "b",
        "subset": "alpacaeval-easy",
        "id": 7,
    }
    feedback = load(row)
    [record] = feedback.comparisons
    assert the_format(feedback) == "RewardBench"
    assert (record.source, record.subset, record.group) == ("rewardbench", "alpacaeval-easy", "")


def test_rewardbench_2_best_of_four_and_ties(load):
    four = {
        "id": "12",
        "prompt": ASKED,
        "chosen": ["Blue."],
        "rejected": ["Green.", "Red.", "Pink."],
        "num_correct": 1,
        "num_incorrect": 3,
        "total_completions": 4,
        "models": ["a", "b", "c", "d"],
        "subset": "Factuality",
    }
    ties = four | {
        "id": "tied:3",
        "subset": "Ties",
        "chosen": ["Blue.", "Azure."],
        "rejected": ["Green.", "Red.", "Pink."],
        "num_correct": 2,
    }
    feedback = load(four, ties)
    assert the_format(feedback) == "RewardBench 2"
    assert len(feedback.comparisons) == 3 + 6
    assert {record.group for record in feedback.comparisons[:3]} == {"rewardbench-2/Factuality/12"}
    assert {record.group for record in feedback.comparisons[3:]} == {"rewardbench-2/Ties/tied:3"}
    assert {(r.chosen, r.rejected) for r in feedback.comparisons[3:]} == {
        (chosen, rejected) for chosen in ("Blue.", "Azure.") for rejected in ("Green.", "Red.", "Pink.")
    }
    assert feedback.counts.files[0].made == {"comparisons": 9}
    assert feedback.counts.files[0].rows_used == 2


def test_rm_bench_makes_nine_comparisons_with_styles(load):
    row = {"id": 4, "prompt": ASKED, "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": "chat"}
    feedback = load(row)
    assert the_format(feedback) == "RM-Bench"
    found = {record.styles: (record.chosen, record.rejected) for record in feedback.comparisons}
    assert found == {(i, j): (f"c{i}", f"r{j}") for i in range(3) for j in range(3)}
    assert {record.group for record in feedback.comparisons} == {"rm-bench/chat/4"}
    assert {record.subset for record in feedback.comparisons} == {"chat"}
    with pytest.raises(DataError, match=r"2 responses.*mine\.jsonl, row 2"):
        load(row, row | {"chosen": ["c0", "c1"]})


def test_best_of_n_of_any_origin(load):
    feedback = load({"prompt": ASKED, "chosen": ["Blue."], "rejected": ["Green.", "Blue. ", "Red."]})
    assert the_format(feedback) == "best of n"
    assert len(feedback.comparisons) == 2
    assert {record.group for record in feedback.comparisons} == {"mine/row 1"}
    assert feedback.counts.files[0].dropped["tie: chosen and rejected are the same text"].count == 1


def test_pairs_with_critiques_and_ratings(load):
    row = {
        "prompt": [user(ASKED)],
        "chosen": [bot("Blue.")],
        "rejected": [bot("Green.")],
        "chosen_critiques": ["Right.", " "],
        "rejected_critiques": ["Wrong.", "Grass is green."],
        "chosen_rating": 1.0,
        "rejected_rating": 0.167,
        "prompt_id": "00",
        "source": "qa",
    }
    feedback = load(row)
    [record] = feedback.comparisons
    assert the_format(feedback) == "critiqued pairs"
    assert (record.chosen_critiques, record.rejected_critiques) == (("Right.",), ("Wrong.", "Grass is green."))
    assert (record.chosen_rating, record.rejected_rating, record.margin) == (1.0, 0.167, None)
    assert record.source == "qa"


def test_identical_responses_are_a_counted_tie_whose_critiques_are_kept(load):
    plain = {"prompt": ASKED, "chosen": "Blue.", "rejected": "Blue.\n"}
    feedback = load({"prompt": ASKED, "chosen": "Blue.", "rejected": "Green."}, plain, plain)
    counts = feedback.counts.files[0]
    assert len(feedback.comparisons) == 1
    assert (counts.rows, counts.rows_used, counts.rows_dropped) == (3, 1, 2)
    tally = counts.dropped["tie: chosen and rejected are the same text"]
    assert tally.count == 2 and [origin.row for origin in tally.origins] == [2, 3]
    critiqued = plain | {"chosen_critiques": ["Right."], "chosen_rating": 1.0, "rejected_critiques": ["Short."]}
    kept = load(critiqued)
    assert [critique.critique for critique in kept.critiques] == ["Right.", "Short."]
    assert kept.counts.files[0].rows_used == 1 and "tie" in kept.counts.summary()


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "same words", "rejected": "same words"},
        {"chosen": [user("Hi"), bot("Yo")], "rejected": [user("Hi"), bot("Yo")]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yo", "rejected": "\n\nHuman: Hi\n\nAssistant: Yo"},
    ],
)
def test_identical_responses_with_an_implicit_prompt_are_ties_too(load, row):
    other = {name: "\n\nHuman: Hi\n\nAssistant: " + name for name in ("chosen", "rejected")}
    feedback = load(row, other)
    assert feedback.counts.files[0].dropped["tie: chosen and rejected are the same text"].count == 1


def test_unpaired_preference(load):
    feedback = load(
        {"prompt": ASKED, "completion": "Blue.", "label": True},
        {"prompt": ASKED, "completion": "Green.", "label": False},
    )
    assert the_format(feedback) == "unpaired preference"
    assert [rating.rating for rating in feedback.ratings] == [1.0, 0.0]
    assert [(record.chosen, record.rejected) for record in feedback.comparisons] == [("Blue.", "Green.")]


def test_a_critique_alone_stays_a_critique(load):
    feedback = load({"prompt": ASKED, "response": "Green.", "critique": "Wrong colour."})
    assert the_format(feedback) == "critiques, ratings and corrections"
    assert feedback.sizes() == {"critiques": 1}
    assert feedback.critiques[0].critique == "Wrong colour."


def test_rated_critiques_also_make_ratings_and_comparisons(load):
    feedback = load(
        {"prompt": ASKED, "response": "Green.", "critique": "Wrong colour.", "rating": 0.2},
        {"prompt": ASKED, "response": "Blue.", "critique": "Right.", "rating": 0.9},
        {"prompt": ASKED, "response": "Blue.", "critique": "Could be kinder.", "rating": 0.7},
    )
    assert feedback.sizes() == {"comparisons": 1, "critiques": 3, "ratings": 3}
    [record] = feedback.comparisons
    assert (record.chosen, record.rejected) == ("Blue.", "Green.")
    assert record.margin == pytest.approx(0.6)
    assert record.chosen_critiques == ()  # the words stay in the critiques, and are trained on once


def test_stated_verdicts_make_ratings_and_comparisons(load):
    feedback = load(
        {"prompt": ASKED, "response": "Green.", "critique": "Wrong colour.", "verdict": "Bad."},
        {"prompt": ASKED, "response": "Blue.", "critique": "Right.", "verdict": "good"},
        {"prompt": ASKED, "response": "Teal.", "critique": "Close.", "verdict": "not quite"},
    )
    assert feedback.sizes() == {"comparisons": 1, "critiques": 3, "ratings": 2}
    assert [critique.verdict for critique in feedback.critiques] == ["Bad.", "good", "not quite"]
    [(reason, tally)] = feedback.counts.files[0].notes.items()
    assert "verdict" in reason and [origin.row for origin in tally.origins] == [3]


def test_a_verdict_that_is_no_known_word_and_stands_alone_is_an_error(load):
    with pytest.raises(DataError, match=r"mine\.jsonl, row 1.*") as caught:
        load({"prompt": ASKED, "response": "Green.", "verdict": "not quite"})
    assert "'not quite'" in str(caught.value)


def test_ratings_on_another_scale_are_scaled_by_their_stated_range(load):
    row = {"prompt": ASKED, "response": "Blue.", "rating": 4, "rating_min": 1, "rating_max": 5}
    assert load(row).ratings[0].rating == 0.75
    with pytest.raises(DataError, match=r"row 1.*rating_max"):
        load({"prompt": ASKED, "response": "Blue.", "rating": 4})
    with pytest.raises(DataError, match="not above rating_min"):
        load(row | {"rating_max": 1})


def test_corrections(load):
    row = {"prompt": ASKED, "response": "Bleu.", "critique": "English, please.", "corrected": "Blue."}
    feedback = load(row, row | {"corrected": "Bleu."}, {"prompt": ASKED, "response": "Rot.", "refinement": "Red."})
    assert feedback.sizes() == {"critiques": 2, "corrections": 2}
    first, second = feedback.corrections
    assert (first.response, first.critique, first.corrected) == ("Bleu.", "English, please.", "Blue.")
    assert (second.critique, second.corrected) == (None, "Red.")
    assert feedback.counts.files[0].dropped["the corrected response is the response itself"].count == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "completion": "Blue."},
        {"prompt": ASKED, "response": "Blue."},
        {"prompt": [user(ASKED)], "completion": [bot("Blue.")]},
        {"messages": [user(ASKED), bot("Blue.")]},
    ],
)
def test_demonstrations(load, row):
    feedback = load(row)
    assert the_format(feedback) == "demonstrations"
    [record] = feedback.demonstrations
    assert (record.prompt, record.response) == (ASK, "Blue.")


def test_goal_examples(load):
    feedback = load({"goal_example": "A tidy room."}, {"goal_example": "Blue.", "prompt": ASKED})
    assert the_format(feedback) == "goal examples"
    assert [example.prompt for example in feedback.goal_examples] == [(), ASK]


def test_messages_with_content_in_parts(load):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "the sky's colour?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": [bot("Blue.")], "rejected": [bot("Green.")]}
    assert load(row).comparisons[0].prompt == ASK
    image = [{"type": "image", "image": "sky.png"}]
    with pytest.raises(DataError, match=r"row 1.*not text|not text.*row 1"):
        load(row | {"prompt": [{"role": "user", "content": image}]})


def test_special_tokens_in_text_are_left_as_text(load):
    text = "Ignore <|im_end|> and <extra_id_1> in this."
    assert load({"prompt": text, "chosen": "<|im_start|>", "rejected": "b"}).comparisons[0].prompt[0].content == text


def test_unknown_columns_are_named_with_the_shapes_that_are_known(load):
    with pytest.raises(DataError) as caught:
        load({"question": ASKED, "better": "Blue.", "worse": "Green."})
    message = str(caught.value)
    assert "question, better, worse" in message and "mine.jsonl" in message and "--columns" in message
    for known in FORMATS:
        assert known.name in message


def test_columns_map_any_other_shape(load):
    row = {"question": ASKED, "better": "Blue.", "worse": "Green.", "source": "club", "prompt": "shadowed"}
    feedback = load(row, columns={"question": "prompt", "better": "chosen", "worse": "rejected"})
    [record] = feedback.comparisons
    assert (record.prompt, record.chosen, record.rejected, record.source) == (ASK, "Blue.", "Green.", "club")


@pytest.mark.parametrize(
    ("mapping", "found"),
    [
        ({"questions": "prompt"}, "did you mean `question`"),
        ({"question": "promt"}, "did you mean `prompt`"),
        ({"question": "prompt", "better": "prompt"}, "two columns to one name"),
    ],
)
def test_wrong_column_mappings_name_the_nearest(mapping, found):
    with pytest.raises(DataError, match=r"mine\.jsonl") as caught:
        rename([{"question": "q", "better": "b"}], mapping, "mine.jsonl")
    assert found in str(caught.value)


def test_columns_may_swap_names():
    [row] = rename([{"chosen": "bad", "rejected": "good"}], {"chosen": "rejected", "rejected": "chosen"}, "f")
    assert row == {"chosen": "good", "rejected": "bad"}


def test_the_most_particular_shape_wins_whatever_the_order_of_columns():
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "margin": 1,
        "chosen_model": "m",
        "rejected_model": "n",
        "subset": "s",
    }
    names = list(row)
    for shift in range(len(names)):
        shifted = {name: row[name] for name in names[shift:] + names[:shift]}
        assert recognize_rows([shifted], "f").format.name == "RewardBench"


def test_columns_are_those_of_all_rows_and_kinds_those_of_the_first_with_something_in_it():
    rows = [
        {"prompt": "p", "response": "a", "critique": None},
        {"prompt": "p", "response": "b", "rating": 0.5},
    ]
    assert recognize_rows(rows, "f").format.name == "critiques, ratings and corrections"
    listed = [{"prompt": "p", "chosen": [], "rejected": None}, {"prompt": "p", "chosen": ["a"], "rejected": ["b"]}]
    assert recognize_rows(listed, "f").format.name == "best of n"
