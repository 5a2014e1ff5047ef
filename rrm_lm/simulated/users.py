"""Load the simulated user that belongs to a file of requests."""

from __future__ import annotations

from pathlib import Path

from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.simulated.note_users import WEIGHTS, NoteUser
from rrm_lm.simulated.plain_user import PlainUser

SimulatedUser = PlainUser | NoteUser


def load_user(name: str, limits: ReadLimits | None = None) -> SimulatedUser | None:
    """Load the user of a file of requests; None if the file does not exist. `name` is a file of requests as in
    `data/assistant/requests.jsonl` (`PlainUser`) or of questions about notes as in `data/notes` (`NoteUser`);
    `FILE:thorough` selects the thorough note user. Raises DataError for a row that is not such a request.
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
