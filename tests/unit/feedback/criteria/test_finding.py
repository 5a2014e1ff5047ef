"""Criteria found in the critiques of a set of feedback."""

from rrm_lm.feedback.criteria.finding import find_criteria
from rrm_lm.feedback.records import Comparison, Critique, Message, Origin

PROMPT = (Message("user", "How long does rice keep?"),)


def critique(row: int, response: str, text: str) -> Critique:
    return Critique(prompt=PROMPT, response=response, critique=text, origin=Origin("a.jsonl", row))


LONG = ["Well, " + "rice keeps for a long time in the fridge. " * (5 + n) for n in range(12)]
SHORT = [f"It keeps {n} days." for n in range(2, 14)]
RECORDS = [critique(n, text, "This is far too long.") for n, text in enumerate(LONG, 1)] + [
    critique(n, text, "Nice and short. My cat is called Tom.") for n, text in enumerate(SHORT, 20)
]


def test_a_criterion_with_its_counts_and_quotations() -> None:
    found = find_criteria(RECORDS)
    (length,) = found.found
    criterion = length.criterion
    assert (criterion.name, criterion.measure, criterion.direction) == ("length", "words", "less")
    assert (criterion.named, criterion.faults, length.merits, criterion.against) == (24, 12, 12, 0)
    assert (length.agreement, length.compared, length.contradicted) == (1.0, 12, 0)
    assert criterion.weight > 0.5
    assert {one.where for one in criterion.quotations} <= {f"a.jsonl, row {n}" for n in range(1, 32)}
    assert {one.text for one in criterion.quotations} == {"This is far too long.", "Nice and short."}
    assert dict(found.uncovered) == {"My cat is called Tom.": 12}
    assert (found.critiques, found.clauses, found.read) == (24, 36, 24)


def test_limits_become_the_target() -> None:
    records = [critique(n, text, "Three to five sentences would be right.") for n, text in enumerate(LONG + SHORT)]
    (length,) = find_criteria(records).criteria
    assert (length.measure, length.direction, length.target) == ("sentences", "target", (3, 5))
    assert length.statement == "has 3 to 5 sentences"


def test_contradictions_are_counted_and_shrink_the_weight() -> None:
    records = [
        *RECORDS,
        *(critique(n, LONG[0], text) for n, text in enumerate(["Too short.", "Very terse!", "Too brief."], 40)),
    ]
    (before,), (after,) = find_criteria(RECORDS).found, find_criteria(records).found
    assert (after.criterion.against, after.contradicted) == (3, 1)
    assert 0 < after.criterion.weight < before.criterion.weight


def test_a_measure_that_does_not_fire_gets_little_weight() -> None:
    swapped = [critique(n, text, "This is far too long.") for n, text in enumerate(SHORT, 1)]
    swapped += [critique(n, text, "Nice and short.") for n, text in enumerate(LONG, 20)]
    (length,) = find_criteria(swapped).found
    assert length.agreement == 0.0
    assert 0 < length.criterion.weight < 0.5 * find_criteria(RECORDS).criteria[0].weight


def test_comparisons_count_a_critique_once() -> None:
    rows = [
        Comparison(
            prompt=PROMPT,
            chosen="Four days.",
            rejected=text,
            rejected_critiques=("Too long.",),
            chosen_critiques=("Good.",),
            origin=Origin("b.jsonl", n),
        )
        for n, text in enumerate([LONG[0], LONG[0], LONG[1]], 1)
    ]
    (length,) = find_criteria(rows).found
    assert (length.criterion.named, length.compared) == (2, 2)


def test_critiques_that_are_cut_are_counted() -> None:
    found = find_criteria([critique(1, SHORT[0], "Far too long. " * 3000)])
    assert found.cut == 1 and found.criteria[0].named < 3000


def test_no_critiques() -> None:
    assert find_criteria([]).criteria == []


def test_responses_that_miss_it_without_complaint_do_not_shrink_the_weight() -> None:
    """Nearly all responses lack a friendly close, and people complain of it only sometimes: that is no evidence."""
    records = [critique(n, text, "I miss a friendly word at the end.") for n, text in enumerate(SHORT[:8])]
    few = find_criteria(records).criteria[0]
    records += [critique(n, text, "My cat is called Tom.") for n, text in enumerate(SHORT[8:] + LONG, 20)]
    (close,) = find_criteria(records).found
    assert (close.criterion.measure, close.agreement) == ("friendly_close", 0.5)
    assert close.criterion.weight == few.weight
