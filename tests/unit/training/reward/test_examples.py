"""What each kind of feedback becomes, and what is counted when something cannot be used."""

from __future__ import annotations

import pytest
import torch

from rrm_lm.feedback.records import Message
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import RewardModel
from rrm_lm.text.batching import collate
from rrm_lm.text.chat import Line
from rrm_lm.training.reward.examples import ExampleBuilder, FitCounts, LinePair, RewardExample
from tests.precision import Precision
from tests.tiny import (
    CHATML,
    comparison,
    critique,
    prompt_of,
    rating,
    some_comparisons,
    tiny_chat,
    tiny_model,
    tiny_reward_model,
    tiny_tokenizer,
)

torch.set_num_threads(1)

TOKENIZER = tiny_tokenizer()
SHARING = Backbone(tiny_model(), pad_id=0, sharing=True)
APART = Backbone(tiny_model(), pad_id=0, sharing=False)


def builder(backbone: Backbone = SHARING, max_length: int | None = None, **more: object) -> ExampleBuilder:
    return ExampleBuilder(tiny_chat(max_length), backbone, **more)  # type: ignore[arg-type]


def response_of(line: Line) -> str:
    return TOKENIZER.decode(list(line.ids[line.response_start : line.reward_at]))


def critique_of(line: Line) -> str:
    return TOKENIZER.decode([line.ids[i] for i in line.critique][:-1])


def rows_fit(example: RewardExample) -> bool:
    """Whether the rows hold the lines, in order."""
    batch = collate(example.rows, pad_id=0)
    read = [tuple(batch.input_ids[row, list(indices)].tolist()) for row, indices in batch.where]
    return read == [line.ids for line in example.lines]


# -- comparisons ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [SHARING, APART], ids=["shared", "apart"])
def test_a_comparison_without_critiques(backbone: Backbone) -> None:
    (example,) = builder(backbone).comparisons([comparison(row=7)])
    assert [response_of(line) for line in example.lines] == ["the answer is yes", "no i do not know"]
    assert example.pairs == (LinePair(0, 1, None),)
    assert (example.ratings, example.critique_tokens, example.origin) == ((), 0, "tiny.jsonl, row 7")
    assert len(example.rows) == (1 if backbone is SHARING else 2)
    assert rows_fit(example)


@pytest.mark.parametrize("backbone", [SHARING, APART], ids=["shared", "apart"])
def test_a_comparison_with_critiques(backbone: Backbone) -> None:
    record = comparison(chosen_critiques=("good", "short clear"), rejected_critiques=("too long",), margin=1.5)
    (example,) = builder(backbone).comparisons([record])
    assert [critique_of(line) for line in example.lines] == ["good", "short clear", "too long"]
    assert [response_of(line)[:2] for line in example.lines] == ["th", "th", "no"]
    assert example.pairs == (LinePair(0, 2, 1.5),)
    assert example.critique_tokens == 2 + 3 + 3  # with the ends of turn
    assert rows_fit(example)


def test_critiques_can_be_left_out() -> None:
    record = comparison(chosen_critiques=("good", "short clear"), rejected_critiques=("too long",))
    (example,) = builder(with_critiques=False).comparisons([record])
    assert len(example.lines) == 2 and example.critique_tokens == 0 and example.pairs == (LinePair(0, 1, None),)


def test_ratings_beside_a_pair() -> None:
    record = comparison(chosen_rating=0.9, rejected_rating=0.1, chosen_critiques=("good", "clear"))
    assert builder().comparisons([record])[0].ratings == ()
    assert builder(pair_ratings=True).comparisons([record])[0].ratings == ((0, 0.9), (2, 0.1))
    half = comparison(rejected_rating=0.0)
    assert builder(pair_ratings=True).comparisons([half])[0].ratings == ((1, 0.0),)


def test_critiques_may_see_only_the_reward() -> None:
    record = comparison(chosen_critiques=("good",))
    (wide,), (narrow,) = builder().comparisons([record]), builder(narrow=True).comparisons([record])
    assert [line.blind for line in wide.lines] == [(0, 0), (0, 0)]
    reward_at = narrow.lines[0].reward_at
    assert [line.blind for line in narrow.lines] == [(reward_at + 1, reward_at), (0, 0)]
    sees = collate(narrow.rows, pad_id=0).sees
    assert sees is not None
    last = narrow.rows[0].where[0][-1]
    seen = sees[0, last].nonzero().flatten().tolist()
    assert seen == [narrow.rows[0].where[0][0], *narrow.rows[0].where[0][reward_at:]]  # and the first token
    assert rows_fit(narrow)


def test_the_reward_does_not_feel_the_critique(precision: Precision) -> None:
    model = tiny_reward_model()
    for narrow in (False, True):
        rewards = []
        for texts in ((), ("good",), ("too long and not clear",)):
            record = comparison(chosen_critiques=texts)
            made = ExampleBuilder(tiny_chat(), model.backbone, narrow=narrow).comparisons([record])
            rewards.append(_rewards(model, made[0])[[0, -1]])
        precision.close(rewards[1], rewards[0])
        precision.close(rewards[2], rewards[0])


def _rewards(model: RewardModel, example: RewardExample) -> torch.Tensor:
    with torch.no_grad():
        return model(collate(example.rows, 0), example.lines).rewards


# -- responses ------------------------------------------------------------------------------------------------------


def test_critiques_and_ratings_of_one_response_are_one_example() -> None:
    made = builder().responses(
        [critique("the sea?", "yes", "good", row=1), critique("the sea?", "no", "too long", row=2),
         critique("the sea?", "yes", "clear", row=3)],
        [rating("the sea?", "yes", 0.5, row=4), rating("the moon?", "yes", 0.2, row=5),
         rating("the sea?", "yes", 1.0, row=6)],
    )  # fmt: skip
    assert [[critique_of(line) for line in example.lines if line.critique] for example in made] == [
        ["good", "clear"],
        ["too long"],
        [],
    ]
    assert [example.ratings for example in made] == [((0, 0.75),), (), ((0, 0.2),)]
    assert [example.origin for example in made] == [f"tiny.jsonl, row {row}" for row in (1, 2, 5)]
    assert all(example.pairs == () and rows_fit(example) for example in made)


def test_critiques_that_are_not_learned_leave_ratings() -> None:
    said = [critique("the sea?", "yes", "good"), critique("the sea?", "no", "good")]
    made = builder(with_critiques=False).responses(said, [rating("the sea?", "yes", 0.5)])
    assert [(example.ratings, example.critique_tokens) for example in made] == [(((0, 0.5),), 0)]


# -- own critiques --------------------------------------------------------------------------------------------------


def test_rewards_behind_own_critiques_are_compared_one_by_one() -> None:
    chat, record = tiny_chat(), comparison(margin=2.0)
    sampled = [TOKENIZER(text).input_ids for text in ("good", "too long")]
    lines = [chat.with_critique_ids(record.prompt, response, sampled) for response in (record.chosen, record.rejected)]
    (example,) = builder().own_critiques([record], [lines])
    assert example.pairs == (LinePair(0, 2, 2.0), LinePair(1, 3, 2.0))
    assert [critique_of(line) for line in example.lines] == ["good", "too long"] * 2
    assert all(line.reward_at == len(line.ids) - 1 for line in example.lines)
    assert rows_fit(example)


# -- fitting and counting -------------------------------------------------------------------------------------------


def test_what_was_cut_is_counted() -> None:
    long = prompt_of("the sea " * 30, "no", "who lives in the sea?")
    records = [
        comparison("short?"),
        comparison(long),
        comparison("the sea " * 30),
        comparison("short?", chosen="yes " * 40),
    ]
    made = builder(max_length=32)
    examples = made.comparisons(records)
    assert len(examples) == 4  # never dropped
    counts = made.counts.to_dict()
    assert counts["shortened"] == 3 and counts["dropped_turns"] == 2 and counts["cut_responses"] == 1
    assert isinstance(counts["cut_tokens"], int) and counts["cut_tokens"] > 0
    assert counts["unusable"] == {}
    assert all(line.reward_at < 32 for example in examples for line in example.lines)
    for example in examples[:3]:
        one, other = (line.ids[: line.response_start] for line in example.lines)
        assert one == other


def test_pairs_that_are_the_same_to_the_model_are_counted() -> None:
    trims = CHATML.replace("message['content']", "message['content'] | trim")  # as Llama 3's template does
    made = ExampleBuilder(tiny_chat(template=trims), SHARING)
    assert len(made.comparisons([comparison(chosen="yes", rejected="yes \n"), comparison()])) == 1
    assert {reason: tally.count for reason, tally in made.counts.unusable.items()} == {
        "chosen and rejected are the same tokens": 1
    }
    cut = builder(max_length=4)
    assert cut.comparisons([comparison(chosen="yes the sea is blue", rejected="no the sea is blue")]) == []
    assert [tally.count for tally in cut.counts.unusable.values()] == [1]


def test_a_response_that_the_template_swallows_is_counted_and_named() -> None:
    template = "{% for m in messages %}{{ m['content'].split('#')[0] }}{% endfor %}"
    made = ExampleBuilder(tiny_chat(template=template), SHARING)
    assert made.comparisons([comparison(chosen="# the sea", row=3), comparison(row=4)])[0].origin.endswith("row 4")
    assert made.counts.template.problems() == ["the chat template leaves out words of the response: 1 (row 3)"]
    assert [origin.row for origin in made.counts.template.origins] == [3]


def test_comparisons_of_one_prompt_share_it_and_repeated_responses() -> None:
    records = [comparison("the sea?", "yes", other) for other in ("no", "i do not know", "perhaps")]
    records.insert(1, comparison("the moon?", "yes", "no"))
    apart, sea_and_moon = builder().together(records, 1), builder().together(records, 3)
    assert [len(example.pairs) for example in apart] == [1, 1, 1, 1]
    assert [len(example.pairs) for example in sea_and_moon] == [3, 1]
    sea = sea_and_moon[0]
    assert [response_of(line) for line in sea.lines] == ["yes", "no", "i do not know", "perhaps"]
    assert sea.pairs == tuple(LinePair(0, other, None) for other in (1, 2, 3)) and rows_fit(sea)
    assert sum(map(len, sea.rows)) < sum(len(row) for one in apart for row in one.rows) / 2
    assert [len(example.pairs) for example in builder().together(records, 2)] == [2, 1, 1]


def test_a_response_of_several_comparisons_keeps_the_critiques_of_all() -> None:
    records = [
        comparison(chosen="yes", rejected="no", chosen_critiques=("clear",), rejected_critiques=("wrong",)),
        comparison(chosen="yes", rejected="perhaps", rejected_critiques=("vague",)),
        comparison(chosen="no", rejected="perhaps", chosen_critiques=("wrong", "short")),
    ]
    (example,) = builder().together(records, 3)
    said = sorted((response_of(line), critique_of(line)) for line in example.lines if critique_of(line))
    assert said == [("no", "short"), ("no", "wrong"), ("perhaps", "vague"), ("yes", "clear")]


def test_together_one_response_that_cannot_be_used_takes_nothing_else_with_it() -> None:
    template = "{% for m in messages %}{{ m['content'].split('#')[0] | trim }}{% endfor %}"
    made = ExampleBuilder(tiny_chat(template=template), SHARING)
    records = [
        comparison(chosen="yes", rejected="no", row=1),
        comparison(chosen="# the sea", rejected="no", row=2),
        comparison(chosen="yes", rejected="yes \n", row=3),
        comparison(chosen="the sea", rejected="yes", row=4),
    ]
    examples = made.together(records, 4)
    assert sorted(example.origin.rpartition(" ")[2] for example in examples) == ["1", "4"]
    assert sum(len(example.pairs) for example in examples) == 2
    assert [tally.origins[0].row for tally in made.counts.unusable.values()] == [3]
    assert [origin.row for origin in made.counts.template.origins] == [2]
    whole = ExampleBuilder(tiny_chat(template=template), SHARING)
    (example,) = whole.together([records[0], *records[2:]], 4)
    assert len(example.pairs) == 2 and [tally.count for tally in whole.counts.unusable.values()] == [1]


def test_counts_start_at_nothing() -> None:
    assert FitCounts().to_dict() == {
        "shortened": 0, "dropped_turns": 0, "cut_tokens": 0, "cut_responses": 0, "unusable": {},
        "template": {"refused": {}, "noted": {}},
    }  # fmt: skip
    first, second = builder(), builder()
    assert first.counts is not second.counts


def test_system_messages_and_many_records() -> None:
    records = some_comparisons(20)
    examples = builder().comparisons(records)
    assert len(examples) == 20 and all(rows_fit(example) for example in examples)
    prompt = (Message("system", "short"), *records[0].prompt)
    (example,) = builder().comparisons([comparison(prompt)])
    assert TOKENIZER.decode(list(example.lines[0].ids)).startswith("<|im_start|>system\nshort<|im_end|>")


QUESTIONS = ["the sea is blue the moon is not who lives in the sea?", "the sea is blue the moon is not yes?"]


def test_prompts_that_begin_alike_share_their_beginning() -> None:
    records = [
        comparison(QUESTIONS[0], "yes", "no", row=1, chosen_critiques=("clear",), margin=0.5),
        comparison("who?", "yes", "no", row=2),
        comparison(QUESTIONS[1], "the moon", "no", row=3, chosen_rating=0.9, rejected_rating=0.2),
        comparison(QUESTIONS[1], "the moon", "yes", row=4),
    ]
    made = builder(pair_ratings=True)
    alone = made.together(records, 2)
    joined = made.joined(alone, 2)
    assert sorted(len(example.pairs) for example in joined) == [1, 3]
    both = max(joined, key=lambda example: len(example.pairs))
    assert rows_fit(both) and {origin.rpartition(" ")[2] for origin in both.origin.split("; ")} == {"1", "3"}
    said = {(response_of(both.lines[p.chosen]), response_of(both.lines[p.rejected]), p.grade) for p in both.pairs}
    assert said == {("yes", "no", 0.5), ("the moon", "no", None), ("the moon", "yes", None)}
    assert {(response_of(both.lines[line]), rating) for line, rating in both.ratings} == {
        ("the moon", 0.9),
        ("no", 0.2),
    }
    assert sum(map(len, both.rows)) < 0.7 * sum(len(row) for one in alone if one.pairs for row in one.rows)
    assert made.joined(alone, 1) == alone
    assert sorted(len(example.pairs) for example in made.joined(alone, 3)) == [1, 3]  # "who?" begins otherwise


@pytest.mark.parametrize("backbone", [SHARING, APART])
def test_rewards_are_the_same_where_prompts_share_their_beginning(backbone: Backbone, precision: Precision) -> None:
    model = tiny_reward_model(sharing=backbone.can_share)
    made = builder(model.backbone)
    alone = made.comparisons([comparison(q, "yes", "no", row=n) for n, q in enumerate(QUESTIONS)])
    (both,) = made.joined(alone, 2)

    def rewards(example: RewardExample) -> dict[tuple[int, ...], float]:
        with torch.no_grad():
            found = model(collate(example.rows, 0), example.lines, with_critiques=False).rewards.tolist()
        return {line.ids: reward for line, reward in zip(example.lines, found, strict=True)}

    apart = {ids: reward for example in alone for ids, reward in rewards(example).items()}
    together = rewards(both)
    assert len(apart) == 4 and together.keys() == apart.keys()
    precision.close([together[ids] for ids in apart], list(apart.values()))


@pytest.mark.parametrize("backbone", [SHARING, APART])
def test_comparisons_of_one_prompt_together_have_the_same_margins_with_less_work(backbone: Backbone) -> None:
    names = ["the sea", "the moon is blue", "no i do not know", "yes"]
    records = [
        comparison(chosen=names[i], rejected=names[j], row=i + j, chosen_critiques=("good", "short"))
        for i, j in ((0, 1), (1, 2), (0, 3), (2, 3), (3, 1))
    ] + [comparison("who lives in the sea?", row=9)]
    model = tiny_reward_model(sharing=backbone.can_share)

    def margins(examples: list[RewardExample]) -> dict[tuple[str, str], float]:
        found = {}
        for example in examples:
            with torch.no_grad():
                rewards = model(collate(example.rows, 0), example.lines, with_critiques=False).rewards.tolist()
            for pair in example.pairs:
                chosen, rejected = example.lines[pair.chosen], example.lines[pair.rejected]
                found[response_of(chosen), response_of(rejected)] = rewards[pair.chosen] - rewards[pair.rejected]
        return found

    made = builder(model.backbone)
    alone, together = made.comparisons(records), made.together(records, 3)
    assert [len(example.pairs) for example in together] == [3, 2, 1]
    assert sum(len(row) for e in together for row in e.rows) < sum(len(row) for e in alone for row in e.rows)
    one, other = margins(alone), margins(together)
    assert one.keys() == other.keys() and len(one) == 6
    assert all(one[key] == pytest.approx(other[key], abs=1e-4) for key in one)
