"""The simulated user that a file of requests describes."""

from __future__ import annotations

from pathlib import Path

from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.simulated.note_users import WEIGHTS, NoteUser
from rrm_lm.simulated.plain_user import PlainUser

SimulatedUser = PlainUser | NoteUser


def load_user(name: str, limits: ReadLimits | None = None) -> SimulatedUser | None:
    """The user of a file of requests; None if there is no such file.

    Args:
        name: A file whose rows are requests as in `data/assistant/requests.jsonl` (`PlainUser`) or questions about
            notes as in `data/notes` (`NoteUser`). `FILE:thorough` names the thorough one of the two users of notes.
        limits: How much the file may hold; None for the defaults.

    Raises:
        DataError: A row that is not such a request.
    """
    path, _, manner = (
        name.rpartition(":") if name.endswith(tuple(f":{manner}" for manner in WEIGHTS)) else (name, "", "")
    )
    file = Path(path).expanduser()
    if not file.is_file():
        return None
    first = next((entry for _, entry in read_rows(file, limits)), {})
    if manner or "note" in first:
        return NoteUser.from_file(file, manner or "plain", limits)
    return PlainUser.from_file(file, limits)
