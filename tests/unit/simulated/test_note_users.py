"""The two users of notes: what they call an answer, what manners are worth to each, and what files they refuse."""

import json
from pathlib import Path

import pytest

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.asking.overseers import Overseer
from rrm_lm.simulated.note_users import MOST_WITHOUT_ANSWER, NoteRequest, NoteUser, answers, load_user

NOTE = "The choir rehearses on 3 May, and Anna brings the music. The concert follows on 9 June."
PROMPT = f"{NOTE}\n\nOn which date is the concert?"
REQUEST = NoteRequest(PROMPT, NOTE, "On which date is the concert?", "date", "9 June", ("3 May",), "club")
PLAIN = "The concert is on 9 June. Have a nice day!"
THOROUGH = (
    'The concert is on 9 June. The second sentence of the note says so: "The concert follows on 9 June". '
    "It comes after the rehearsal."
)


def user(manner: str) -> NoteUser:
    return NoteUser([REQUEST], manner)


@pytest.mark.parametrize(
    "response",
    [
        "The concert is on 3 May.",
        "It is on 9 June or 3 May.",
        "It is not on 9 June.",
        "The concert is soon. Have a nice day!",
        "Xyzzy blorp frob. Enjoy!",
        "",
        NOTE,
    ],
)
@pytest.mark.parametrize("manner", ["plain", "thorough"])
def test_without_the_answer_manners_are_worth_little(response: str, manner: str) -> None:
    assert not answers(REQUEST, response)
    assert user(manner).gold(PROMPT, response) <= MOST_WITHOUT_ANSWER
    assert user(manner).gold(PROMPT, "9 June") > user(manner).gold(PROMPT, response)


def test_each_user_prefers_their_own_manner() -> None:
    assert user("plain").gold(PROMPT, PLAIN) == 1.0
    assert user("thorough").gold(PROMPT, THOROUGH) == 1.0
    assert user("plain").compare(PROMPT, [PLAIN, THOROUGH]).preferred == 0
    assert user("thorough").compare(PROMPT, [PLAIN, THOROUGH]).preferred == 1


@pytest.mark.parametrize(
    ("manner", "better", "worse", "part"),
    [
        ("plain", PLAIN, "The concert is on 9 June.", "close"),
        ("plain", PLAIN, f"Sure! {PLAIN}", "opening"),
        ("plain", PLAIN, "- 9 June\n- That is all\n\nHave a nice day!", "form"),
        ("plain", PLAIN, f"{THOROUGH} {PLAIN}", "length"),
        ("thorough", THOROUGH, f"{THOROUGH} Have a nice day!", "close"),
        ("thorough", THOROUGH, "The concert is on 9 June. It will be good. Do come and listen.", "source"),
        ("thorough", THOROUGH, "The concert is on 9 June, as the second sentence says.", "length"),
    ],
)
def test_each_part_can_fail(manner: str, better: str, worse: str, part: str) -> None:
    good, bad = user(manner).judge(PROMPT, better), user(manner).judge(PROMPT, worse)
    assert good.parts[part] > bad.parts[part]
    assert good.gold > bad.gold


def test_critiques_speak_of_faults_and_never_hand_over_the_answer() -> None:
    wrong = "Sure! The concert is on 3 May."
    for manner in ("plain", "thorough"):
        said = {user(manner).critique(PROMPT, wrong, seed) for seed in range(30)}
        assert len(said) > 10
        assert all("{" not in words and 5 <= len(words.split()) <= 45 for words in said)
        assert not any("9 June" in words for words in said)
        assert any("3 May" in words for words in said)
        assert user(manner).critique(PROMPT, wrong, 3) == user(manner).critique(PROMPT, wrong, 3)


def test_a_number_that_the_note_does_not_contain_is_no_answer() -> None:
    note = "Bring ten benches on 4 May, and four tables."
    benches = NoteRequest(f"{note}\n\nHow many benches?", note, "How many benches?", "count", "ten", ("four",))
    assert answers(benches, "Bring ten benches, one for each row.") and answers(
        benches, "1. Bring 10 benches on 4 May."
    )
    assert not answers(benches, "Bring ten benches. The number of seats is 12.")


def test_a_number_may_end_a_sentence() -> None:
    room = NoteRequest("Room 7 or 8? Where?", "Room 7 or room 8?", "Where?", "place", "room 7", ("room 8",))
    judged = NoteUser([room]).judge(room.text, "It is in room 7. Good luck!")
    assert judged.sentences == 1 and judged.close == "Good luck!"
    listed = NoteUser([room]).judge(room.text, "1. Go there.\n2. It is room 7. Good luck!")
    assert listed.parts["form"] < 1


def test_they_are_overseers_and_refuse_what_they_do_not_know() -> None:
    assert isinstance(user("plain"), Overseer)
    with pytest.raises(DataError, match="did not ask"):
        user("plain").gold("What is the capital of France?", "Paris.")
    with pytest.raises(ConfigError, match="plain or thorough"):
        NoteUser([REQUEST], "rude")


def row(**changes: object) -> dict:
    entry = {"prompt": PROMPT, "note": NOTE, "question": REQUEST.question, "kind": "date", "value": "9 June"}
    return {**entry, "others": ["3 May"], **changes}


def test_a_file_names_its_user(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(row()) + "\n", encoding="utf-8")
    plain, thorough = load_user(str(file)), load_user(f"{file}:thorough")
    assert isinstance(plain, NoteUser) and isinstance(thorough, NoteUser)
    assert (plain.manner, thorough.manner) == ("plain", "thorough")
    assert thorough.parts == ("answer", "length", "opening", "form", "close", "source")
    assert load_user(str(tmp_path / "none.jsonl")) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"others": ["9 June"]}, "overlap"),
        ({"kind": "place", "value": "the gym", "others": ["the gym hall"], "note": "the gym hall"}, "overlap"),
        ({"kind": "colour"}, "unknown kind 'colour'"),
        ({"value": "1 July"}, "does not contain the value '1 July'"),
        ({"value": None, "others": None}, "cannot be read"),
    ],
)
def test_questions_that_nobody_could_judge_are_refused_with_their_row(
    tmp_path: Path, changes: dict, match: str
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(row()) + "\n" + json.dumps(row(**changes)) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=match) as caught:
        NoteUser.from_file(file)
    assert "row 2" in str(caught.value)
