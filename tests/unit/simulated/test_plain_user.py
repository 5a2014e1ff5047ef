"""The plain user: each part of what it wants, its gold, and its words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_lm.errors import DataError
from rrm_lm.feedback.asking.overseers import Overseer
from rrm_lm.feedback.records import Message
from rrm_lm.simulated import plain_user, plain_words
from rrm_lm.simulated.plain_user import PlainUser, Request, judge, split_sentences
from rrm_lm.simulated.plain_words import WEIGHTS

EGG = Request("How long should I boil an egg?", ("minutes", "8|9|10|eight|nine|ten"), "cooking")
PASTE = Request("How do I fix a hole?", ("ventilat~|putty", "dry"))
USER = PlainUser([EGG, PASTE])
PERFECT = "Boil it for nine minutes. I hope this helps!"

# A response, and the parts in which it falls short of 1.
CASES: list[tuple[str, dict[str, float]]] = [
    (PERFECT, {}),
    ("Boil it for nine minutes, then cool it. Peel it under water. Enjoy!", {}),
    ("Nine minutes, good luck!", {}),
    ("Nine minutes, but I hope this helps!", {}),
    ("Boil it for nine minutes.", {"close": 0}),
    ("Boil it for a while. Let me know if you need anything else!", {"answer": 0}),
    ("It takes some minutes. Have a lovely day!", {"answer": 0.5}),
    ("Sure! Boil it for nine minutes. Have a nice day!", {"opening": 0}),
    ("Great question! Nine minutes. Feel free to ask me more.", {"opening": 0}),
    ("As an AI, I do not eat, but nine minutes is right. Take care!", {"opening": 0}),
    ("I'd be happy to help! Nine minutes. Enjoy!", {"opening": 0}),
    ("Boil it. Wait for nine minutes. Cool it. All the best!", {"short": 0.6}),
    ("Boil it. Wait. Wait for nine minutes. Cool it. Peel it. Eat it. Enjoy!", {"short": 0}),
    ("1. Boil it.\n2. Wait for nine minutes.\n\nI hope this helps!", {"prose": 0}),
    ("- Boil it\n- Wait\n- Take nine minutes\n\nEnjoy!", {"prose": 0, "short": 0.6}),
    ("Boil it for **nine minutes**. Enjoy!", {"prose": 0.5}),
    ("Boil it for nine minutes and then put the egg into", {"close": 0, "whole": 0}),
]


@pytest.mark.parametrize(("response", "short_of"), CASES)
def test_each_part_by_itself(response: str, short_of: dict[str, float]) -> None:
    parts = judge(EGG, response).parts
    assert parts == {**dict.fromkeys(WEIGHTS, 1.0), **short_of}


def test_the_weights_are_those_of_the_description() -> None:
    assert len(WEIGHTS) >= 5
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    description = str(plain_user.__doc__)
    for part, weight in WEIGHTS.items():
        assert f"**{part}** ({weight:.2f})" in description


def test_gold_is_the_weighted_sum() -> None:
    assert USER.gold(EGG.text, PERFECT) == 1.0
    assert USER.gold(EGG.text, "Boil it for nine minutes.") == pytest.approx(1 - 0.15)
    assert USER.gold(EGG.text, "Sure! It takes some minutes.") == pytest.approx(1 - 0.15 - 0.13 - 0.175)
    assert USER.gold(EGG.text, "") < 0.4


def test_a_long_winded_sentence_is_not_short() -> None:
    wordy = "Boil the egg for nine minutes " + "and stir the water " * 25 + "now. Enjoy!"
    assert judge(EGG, wordy).parts["short"] == pytest.approx(50 / len(wordy.split()))


@pytest.mark.parametrize(
    "response",
    [
        "A place where nine people enjoy ten minutes of sun.",
        "Nine minutes. Have a boiled egg in the fridge.",
        "I hope this helps!",
        "Nine minutes, since I let nobody down.",
    ],
)
def test_what_is_no_friendly_close(response: str) -> None:
    assert judge(EGG, response).parts["close"] == 0


@pytest.mark.parametrize(
    "response",
    ["It's good to wait nine minutes.", "Yes, nine minutes.", "Surely nine minutes.", "To boil it, wait ten minutes."],
)
def test_what_is_no_filler(response: str) -> None:
    assert judge(EGG, response).parts["opening"] == 1


def test_words_are_found_in_their_forms_and_numbers_only_whole() -> None:
    assert judge(PASTE, "Ventilation matters while it is drying.").missing == ()
    assert judge(PASTE, "Use putties.").missing == PASTE.mentions
    assert judge(EGG, "109 minutes, or 9.5, or 1,910.").missing == EGG.mentions[1:]
    assert judge(EGG, "It takes 9 minutes.").missing == ()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Use e.g. salt, at 3.5 percent.", 1),
        ("Dr. Smith said so.", 1),
        ("1. Boil it.\n2. Eat it.", 2),
        ('He said "go." Then he went.', 2),
        ("Wait... now", 2),
        ("", 0),
        ("...", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(split_sentences(text)) == count


class TestUser:
    def test_is_an_overseer(self) -> None:
        assert isinstance(USER, Overseer)

    def test_compares_by_gold_with_ties(self) -> None:
        worse, best, same = "Sure! No idea.", PERFECT, "Boil it for ten minutes. Enjoy!"
        prompt = (Message("user", EGG.text),)
        assert USER.compare(prompt, [worse, best]).preferred == 1
        assert USER.compare(prompt, [best, worse]).preferred == 0
        assert USER.compare(prompt, [best, worse, same]).preferred is None

    def test_the_rating_is_one_to_five_stars(self) -> None:
        assert USER.rating(EGG.text, PERFECT) == 1.0
        assert USER.rating(EGG.text, "Sure! It takes some minutes.") == 0.5  # gold 0.545
        assert {USER.rating(EGG.text, response) for response, _ in CASES} <= {0.0, 0.25, 0.5, 0.75, 1.0}

    def test_the_request_is_found_in_a_conversation(self) -> None:
        prompt = (Message("system", "Be kind."), Message("user", "how long  should i boil an egg? "))
        assert USER.gold(prompt, PERFECT) == 1.0

    def test_another_request_is_an_error(self) -> None:
        with pytest.raises(DataError, match="did not ask"):
            USER.gold("What is the time?", "Nine.")

    def test_from_file(self, tmp_path: Path) -> None:
        path = tmp_path / "requests.jsonl"
        row = {"topic": EGG.topic, "request": EGG.text, "mentions": list(EGG.mentions)}
        path.write_text(json.dumps(row) + "\n")
        assert PlainUser.from_file(path).requests == {EGG.text.lower(): EGG}
        path.write_text(json.dumps(row) + "\n" + '{"request": "no mentions"}\n')
        with pytest.raises(DataError, match="row 2"):
            PlainUser.from_file(path)


def said(fault: str, text: str) -> bool:
    """Whether a critique has one of the phrasings of a fault in it."""
    phrases = [re.escape(phrase) for kind in plain_words.FAULTS[fault].values() for phrase in kind]
    return any(re.search(re.sub(r"\\\{\w+\\\}", ".+", phrase), text, re.IGNORECASE) for phrase in phrases)


class TestWords:
    @pytest.mark.parametrize(("response", "short_of"), CASES)
    def test_every_fault_is_named(self, response: str, short_of: dict[str, float]) -> None:
        names = {
            "answer": ("off_point", "half_point"),
            "short": ("long", "wordy"),
            "close": ("no_close",),
            "opening": ("filler",),
            "prose": ("list", "bold"),
            "whole": ("unfinished",),
        }
        for seed in range(40):
            text = USER.critique(EGG.text, response, seed)
            for part in short_of:
                assert any(said(name, text) for name in names[part]), (part, text)

    @pytest.mark.parametrize(("response", "short_of"), CASES)
    def test_length_and_form(self, response: str, short_of: dict[str, float]) -> None:
        for seed in range(40):
            text = USER.critique(EGG.text, response, seed)
            assert 8 <= len(text.split()) <= 40, text
            assert text[0].isupper() and text[-1] in '."!'
            assert "{" not in text and "  " not in text and '""' not in text

    def test_a_good_response_is_not_faulted(self) -> None:
        phrases = [phrase for bank in plain_words.FAULTS.values() for kind in bank.values() for phrase in kind]
        for seed in range(60):
            text = USER.critique(EGG.text, PERFECT, seed)
            assert not any(phrase in text for phrase in phrases)

    def test_only_what_is_there_is_praised(self) -> None:
        response = "Sure! 1. Boil it.\n2. Wait."
        judgement = judge(EGG, response)
        wrong = [
            p
            for part in ("answer", "close", "opening", "prose")
            for kind in plain_words.MERITS[part].values()
            for p in kind
        ]
        assert all(judgement.parts[part] < 0.9 for part in ("answer", "close", "opening", "prose"))
        for seed in range(60):
            text = USER.critique(EGG.text, response, seed)
            assert not any(phrase in text for phrase in wrong if "{" not in phrase)

    def test_the_same_seed_gives_the_same_words_and_others_vary(self) -> None:
        response = "Sure! It takes some minutes."
        texts = [USER.critique(EGG.text, response, seed) for seed in range(50)]
        assert texts == [USER.critique(EGG.text, response, seed) for seed in range(50)]
        assert len(set(texts)) > 40

    def test_the_offending_piece_is_quoted_at_times(self) -> None:
        texts = [USER.critique(EGG.text, "Great question! Nine minutes. Enjoy!", seed) for seed in range(50)]
        assert 10 < sum('"Great question!"' in text for text in texts) < 50

    @given(st.text(max_size=300), st.integers(0, 5))
    def test_any_text_can_be_judged_and_told(self, response: str, seed: int) -> None:
        judgement = judge(EGG, response)
        assert all(0.0 <= value <= 1.0 for value in judgement.parts.values())
        assert 0.0 <= judgement.gold <= 1.0
        assert USER.critique(EGG.text, response, seed).strip()
