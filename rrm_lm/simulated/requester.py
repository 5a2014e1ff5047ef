"""What simulated users share: they know their own requests, and prefer the response with the highest gold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from rrm_lm.errors import DataError
from rrm_lm.feedback.asking.overseers import Verdict
from rrm_lm.feedback.records import Prompt


class _Asked(Protocol):
    @property
    def text(self) -> str: ...


RequestT = TypeVar("RequestT", bound=_Asked)


class Requester(Generic[RequestT]):
    """A user who judges responses to its own requests. Subclasses say what a response is worth. If the gold rewards of
    two responses differ by less than `tie`, neither is preferred.
    """

    def __init__(self, requests: Iterable[RequestT], tie: float = 0.02) -> None:
        self.requests = {_key(request.text): request for request in requests}
        self.tie = tie

    def judge(self, prompt: Prompt | str, response: str) -> Any:
        """Judge a response part by part. Raises DataError for a prompt that is not one of this user's requests."""
        raise NotImplementedError

    def gold(self, prompt: Prompt | str, response: str) -> float:
        """The gold reward of a response, 0 to 1. For labels and measurements, never for training."""
        return self.judge(prompt, response).gold

    def rating(self, prompt: Prompt | str, response: str) -> float:
        """`gold` as a rating of one to five stars, scaled to 0 to 1."""
        return round(4 * self.gold(prompt, response)) / 4

    def compare(self, prompt: Prompt | str, responses: Sequence[str]) -> Verdict:
        """Prefer the response with the highest gold; none if the best two differ by less than `tie`."""
        golds = [self.gold(prompt, response) for response in responses]
        best, second = sorted(range(len(golds)), key=lambda index: -golds[index])[:2]
        return Verdict(None if golds[best] - golds[second] < self.tie else best)

    def request(self, prompt: Prompt | str) -> RequestT:
        """The request of a prompt's last user turn. Raises DataError if it is not one of this user's."""
        text = prompt
        if not isinstance(text, str):
            text = next((message.content for message in reversed(text) if message.role == "user"), "")
        request = self.requests.get(_key(text))
        if request is None:
            what = f"This user did not ask {text[:80]!r}, and does not know a good answer to it"
            raise DataError(what, remedy="add the request to the file that the user is read from")
        return request


def _key(text: str) -> str:
    return " ".join(text.lower().split())
