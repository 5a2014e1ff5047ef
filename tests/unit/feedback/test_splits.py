"""Splits are by prompt; the leakage check finds what is repeated and nothing else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Comparison, Correction, Critique, GoalExample, Message, Origin, Prompt, Rating
from rrm_lm.feedback.splits import (
    MIN_WORDS,
    composition,
    composition_text,
    leakage,
    limit_comparisons,
    limit_prompts,
    split_by_prompt,
)

WORDS = [f"{a}{b}" for a in "bcdfghjklm" for b in ("a", "e", "i", "o", "u", "ar", "en", "il", "or", "un")]


def sentence(seed, count=30):
    return " ".join(random.Random(seed).choices(WORDS, k=count)).capitalize() + "."


def comparison(prompt, chosen, rejected, row=1, file="f", later=()):
    turns = (Message("user", prompt), *later)
    return Comparison(prompt=turns, chosen=chosen, rejected=rejected, origin=Origin(file, row))


def many(prompts, rows_each=3):
    return Feedback.of(
        [comparison(f"Question {p}?", f"Yes {r}.", f"No {r}.", row=r) for p in range(prompts) for r in range(rows_each)]
    )


@given(prompts=st.integers(2, 40), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 3))
def test_no_prompt_is_on_both_sides_and_no_record_is_lost(prompts, fraction, seed):
    feedback = many(prompts)
    train, held_out = split_by_prompt(feedback, fraction, seed)
    sides = [{record.prompt_id for record in side.records()} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert all(sides)
    assert len(train) + len(held_out) == len(feedback)
    assert set(train.comparisons) | set(held_out.comparisons) == set(feedback.comparisons)
    assert len(sides[1]) == min(max(1, round(fraction * prompts)), prompts - 1)


def test_a_split_depends_on_seed_and_prompts_alone():
    feedback = many(50)
    _, first = split_by_prompt(feedback, 0.2, seed=1)
    _, again = split_by_prompt(Feedback.of(feedback.comparisons[::-1]), 0.2, seed=1)
    _, fewer_rows = split_by_prompt(many(50, rows_each=1), 0.2, seed=1)
    _, other = split_by_prompt(feedback, 0.2, seed=2)
    assert {c.prompt_id for c in first.comparisons} == {c.prompt_id for c in again.comparisons}
    assert {c.prompt_id for c in first.comparisons} == {c.prompt_id for c in fewer_rows.comparisons}
    assert {c.prompt_id for c in first.comparisons} != {c.prompt_id for c in other.comparisons}


def topics(**sizes):
    """Comparisons in blocks, one subset after the other, two rows of each prompt."""
    return Feedback.of(
        [
            Comparison(
                prompt=(Message("user", f"{topic} {i // 2}"),),
                chosen=f"yes {i}",
                rejected="no",
                source="set",
                subset=topic,
                origin=Origin("f", i + 1),
            )
            for topic, size in sizes.items()
            for i in range(size)
        ]
    )


def test_a_limit_draws_from_every_part_of_a_file_in_proportion():
    """A file whose first half is harmless and whose second half is helpful gave only the first half."""
    feedback = topics(harmless=400, helpful=400, rare=80)
    some = limit_comparisons(feedback, 110, seed=1)
    assert composition(some) == {"comparisons": {"set / harmless": 50, "set / helpful": 50, "set / rare": 10}}
    assert list(some.comparisons) == [c for c in feedback.comparisons if c in set(some.comparisons)]
    assert some.comparisons == limit_comparisons(feedback, 110, seed=1).comparisons
    assert some.comparisons != limit_comparisons(feedback, 110, seed=2).comparisons
    harmless = [int(c.prompt[0].content.split()[1]) for c in some.comparisons if c.subset == "harmless"]
    assert max(harmless) > 100  # 200 prompts; the first 25 are not what is taken
    assert len(set(harmless)) == 25  # whole prompts
    assert limit_comparisons(feedback, 10**6).comparisons == feedback.comparisons


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    most=st.integers(1, 100),
    seed=st.integers(0, 3),
)
def test_a_limit_is_reached_exactly_and_each_part_is_within_one_of_its_share(sizes, most, seed):
    feedback = topics(**{f"t{i}": size for i, size in enumerate(sizes)})
    some = limit_comparisons(feedback, most, seed)
    total = sum(sizes)
    assert len(some.comparisons) == min(most, total)
    for i, size in enumerate(sizes):
        share = min(most, total) * size / max(1, total)
        assert abs(sum(c.subset == f"t{i}" for c in some.comparisons) - share) < 1


def test_a_limit_on_prompts_draws_in_proportion():
    prompts: dict[Prompt, tuple[str, str]] = {
        (Message("user", f"{topic} {i}"),): ("set", topic) for topic in ("a", "b") for i in range(50)
    }
    some = limit_prompts(prompts, 20, seed=3)
    assert [prompts[prompt][1] for prompt in some] == ["a"] * 10 + ["b"] * 10
    assert some != limit_prompts(prompts, 20, seed=4) and some[0] != next(iter(prompts))
    assert limit_prompts(prompts, None) == list(prompts)


def test_a_held_out_part_is_drawn_in_proportion():
    _, held_out = split_by_prompt(topics(harmless=400, helpful=400, rare=40), 0.1, seed=5)
    assert composition(held_out) == {"comparisons": {"set / harmless": 40, "set / helpful": 40, "set / rare": 4}}


def test_composition_names_sources_subsets_and_labels():
    rated = {
        "prompt": (Message("user", "q"),),
        "source": "kto",
        "origin": Origin("f", 1),
    }
    ratings = [Rating(response=f"r{i}", rating=float(i > 0), **rated) for i in range(3)]
    text = composition_text(
        composition(Feedback.of([*topics(**{f"t{i}": i + 1 for i in range(10)}).comparisons, *ratings]))
    )
    assert "comparisons: 10 set / t9, 9 set / t8" in text and "3 others" in text
    assert "ratings: 2 kto / good, 1 kto / bad" in text


def test_branches_of_one_conversation_stay_together():
    later = (Message("assistant", "Hello."), Message("user", "More?"))
    rows = [comparison(f"Q{i}", "a", "b") for i in range(9)] + [comparison("q0 ", "a", "b", later=later)]
    for seed in range(8):
        train, held_out = split_by_prompt(Feedback.of(rows), 0.5, seed)
        assert sum(record in train.comparisons for record in (rows[0], rows[-1])) in (0, 2)
        assert sum(record in held_out.comparisons for record in (rows[0], rows[-1])) in (0, 2)


def test_goal_examples_without_a_prompt_stay_in_training():
    goal = GoalExample(example="A tidy room.", origin=Origin("f", 1))
    for seed in range(8):
        train, _ = split_by_prompt(Feedback.of([*many(3).comparisons, goal]), 0.5, seed)
        assert train.goal_examples == (goal,)


def test_what_cannot_be_split():
    with pytest.raises(DataError, match="1 prompt cannot be split"):
        split_by_prompt(many(1), 0.5)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            split_by_prompt(many(3), fraction)


def test_unrelated_sets_do_not_overlap():
    train = Feedback.of([comparison(sentence(i), sentence(i + 1000), sentence(i + 2000)) for i in range(50)])
    held = Feedback.of([comparison(sentence(i + 100), sentence(i + 3000), sentence(i + 4000)) for i in range(20)])
    report = leakage(train, held)
    assert not report.found
    assert report.to_dict()["heldout_touched"] == 0
    assert report.responses_exact.of == 40
    assert report.summary() == "leakage check: none of 20 held-out records overlaps the training set"


def test_exact_overlaps_ignore_case_space_and_punctuation():
    train = Feedback.of([comparison(sentence(1), sentence(2), sentence(3), row=4, file="train")])
    shouted = sentence(2).upper().replace(" ", "\n  ").replace(".", "!")
    held = Feedback.of([comparison("Hi?", shouted, "b", row=9, file="held")])
    report = leakage(train, held)
    assert (report.responses_exact.count, report.responses_near.count, report.prompts_exact.count) == (1, 0, 0)
    [match] = report.responses_exact.examples
    assert (match.heldout, match.train, match.similarity) == ("held, row 9", "train, row 4", 1.0)
    assert report.found and report.heldout_touched == 1


def test_near_duplicates_are_found_above_the_threshold_and_not_below():
    original = sentence(1, 60)
    words = original.split()
    near = " ".join([*words[:-1], "otherwise"])
    far = " ".join(word if i % 4 else "otherwise" for i, word in enumerate(words))
    train = Feedback.of([comparison(original, sentence(5), sentence(6))])
    report = leakage(train, Feedback.of([comparison(near, "a", "b"), comparison(far, "c", "d")]))
    assert (report.prompts_near.count, report.prompts_near.of, report.prompts_exact.count) == (1, 2, 0)
    assert report.prompts_near.examples[0].similarity == round(57 / 59, 4)
    assert report.heldout_touched == 1
    assert leakage(train, Feedback.of([comparison(near, "a", "b")]), threshold=1.0).prompts_near.count == 0


def test_reported_similarity_is_the_exact_jaccard_index_and_few_are_missed():
    rng, train, held, expected = random.Random(0), [], [], 0
    for i in range(60):
        words = sentence(i, 40).lower().strip(".").split()
        copy = [rng.choice(WORDS) if rng.random() < 0.04 else word for word in words]
        grams = [{tuple(side[j : j + 3]) for j in range(38)} for side in (words, copy)]
        expected += 0.7 <= len(grams[0] & grams[1]) / len(grams[0] | grams[1]) < 1
        train.append(comparison(f"t{i}", " ".join(words), "b"))
        held.append(comparison(f"h{i}", " ".join(copy), "b"))
    report = leakage(Feedback.of(train), Feedback.of(held), threshold=0.7)
    assert expected > 15
    assert 0.9 * expected <= report.responses_near.count <= expected
    assert all(0.7 <= match.similarity < 1 for match in report.responses_near.examples)


def test_short_texts_are_not_near_duplicates_and_short_responses_no_leak():
    train = Feedback.of([comparison("What is the capital of France?", "I do not know.", "Paris is it.")])
    held = Feedback.of([comparison("What is the capital of Spain?", "I do not know.", "Madrid is it.")])
    assert not leakage(train, held, threshold=0.3).found
    same_prompt = Feedback.of([comparison("what is the capital of  france", "x", "y")])
    report = leakage(train, same_prompt)
    assert report.prompts_exact.count == 1 and report.found
    long_answer = " ".join(WORDS[:MIN_WORDS])
    first, second = (Feedback.of([comparison(name, long_answer, "y")]) for name in ("a?", "b?"))
    assert leakage(first, second).responses_exact.count == 1


def test_a_shared_first_turn_is_a_leak_even_if_the_conversations_differ():
    later = (Message("assistant", sentence(1)), Message("user", sentence(2)))
    train, held = Feedback.of([comparison("Hi!", "a", "b")]), Feedback.of([comparison("hi!", "c", "d", later=later)])
    report = leakage(train, held)
    assert (report.openings.count, report.prompts_exact.count, report.heldout_touched) == (1, 0, 1)


def test_text_without_spaces_between_words_is_compared_by_character():
    text = "我想知道怎么把米饭煮得松软又不粘锅请你一步一步地告诉我谢谢"
    train = Feedback.of([comparison(text, "a", "b")])
    assert leakage(train, Feedback.of([comparison(text[:-2] + "好吗", "c", "d")])).prompts_near.count == 1


def test_every_kind_of_record_is_checked():
    text = sentence(3)
    critique = Critique(prompt=(Message("user", "Hi"),), response=text, critique="Good.", origin=Origin("c", 1))
    goal = GoalExample(example=text, origin=Origin("g", 1))
    mended = Correction(prompt=critique.prompt, response="Uh.", corrected=text, origin=Origin("m", 1))
    train = Feedback.of([comparison("x?", text, "b")])
    assert leakage(train, Feedback.of([critique, goal, mended])).heldout_touched == 3


def test_the_report_is_plain_data_with_examples_and_shares():
    train = Feedback.of([comparison(sentence(i), sentence(i + 50), "b", row=i) for i in range(9)])
    told = leakage(train, train).to_dict()
    assert told["prompts_exact"]["count"] == 9 and told["prompts_exact"]["share"] == 1.0
    assert len(told["prompts_exact"]["examples"]) == 5
    assert told["prompts_exact"]["examples"][1] == {
        "heldout": "f, row 1",
        "train": "f, row 1",
        "similarity": 1.0,
        "text": " ".join(sentence(1).split())[:159] + ("…" if len(sentence(1)) > 160 else sentence(1)[159:]),
    }
    assert "9 of 9 held-out records" in leakage(train, train).summary()


def test_an_impossible_threshold_is_refused():
    for threshold in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            leakage(many(2), many(2), threshold)
