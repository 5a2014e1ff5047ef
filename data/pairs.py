"""What the scripts in the folders of this one share: which sampled responses are compared with each other."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

PAIRS_PER_REQUEST = 4
MOST_USES = 2  # pairs that one response may be part of
LEAST_GAP = 0.08  # in gold between the responses of a pair; closer ones would be ties to a person
MOST_UNFINISHED = 0.15  # fraction of pairs with a response that was cut off at the token limit
# Bands of the log ratio of lengths. In each of them the longer response wins half of the time.
BANDS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.05, 1.5, math.inf)


class Judge(Protocol):
    """A simulated user."""

    def gold(self, prompt: str, response: str) -> float: ...


@dataclass(frozen=True)
class Response:
    """A response and its gold reward."""

    request: str
    text: str
    finished: bool
    gold: float


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one request; the user prefers `chosen`."""

    chosen: Response
    rejected: Response

    @property
    def stretch(self) -> float:
        """Log ratio of the lengths (in characters) of the chosen and the rejected response."""
        return math.log(len(self.chosen.text) / len(self.rejected.text))

    @property
    def unfinished(self) -> bool:
        return not (self.chosen.finished and self.rejected.finished)


def judged(
    rows: Iterable[dict], user: Judge, key: str = "request", keep_shared: bool = False
) -> dict[str, list[Response]]:
    """The distinct usable responses to each request, judged.

    Excluded are empty responses and responses with control tokens or broken characters.

    Args:
        rows: Sampled responses (`sampled.read_responses`).
        user: Judges them.
        key: The field with the request.
        keep_shared: Keep identical responses to two requests. Otherwise they are excluded too, since they could be on
            both sides of a split.
    """
    rows = [row for row in rows if row["response"] and not re.search(r"<\|\w+\|>|\ufffd", row["response"])]
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[" ".join(re.findall(r"\w+", row["response"].lower()))].add(row[key])
    shared = {text for text, requests in owners.items() if len(requests) > 1}
    found: dict[str, dict[str, Response]] = defaultdict(dict)
    for row in rows:
        request, text = row[key], row["response"]
        if keep_shared or " ".join(re.findall(r"\w+", text.lower())) not in shared:
            found[request].setdefault(text, Response(request, text, row["finished"], user.gold(request, text)))
    return {request: list(by_text.values()) for request, by_text in found.items()}


def choose_pairs(
    groups: list[list[Response]],
    rng: random.Random,
    most: int = PAIRS_PER_REQUEST,
    wanted: Callable[[ResponsePair], bool] | None = None,
) -> list[ResponsePair]:
    """Up to `most` pairs per request, such that length does not predict which response is better.

    Works in rounds: every request gets a first pair before any gets a second one. A pair is taken only if its band of
    length ratios stays balanced; the first pair of a request may unbalance it a little.

    Args:
        groups: The responses to each request.
        rng: Order of requests and candidates.
        most: Pairs per request.
        wanted: Restricts the pairs that may be chosen.
    """
    candidates = [_candidates(group, rng, wanted) for group in groups]
    chosen: list[ResponsePair] = []
    pairs_of: Counter[int] = Counter()
    used: Counter[Response] = Counter()
    balance: Counter[int] = Counter()
    unfinished = 0
    for round_number in range(most):
        for index in rng.sample(range(len(groups)), len(groups)):
            if pairs_of[index] < round_number:
                continue  # there was no pair for it in an earlier round
            full = unfinished >= MOST_UNFINISHED * (len(chosen) + 10)
            allowed = [
                pair
                for pair in candidates[index]
                if not (full and pair.unfinished) and max(used[pair.chosen], used[pair.rejected]) < MOST_USES
            ]
            pair = min(allowed, key=lambda pair: _tilt(pair, balance), default=None)
            if pair is None or _tilt(pair, balance) > (2 if round_number == 0 else 0):
                continue
            chosen.append(pair)
            candidates[index].remove(pair)
            pairs_of[index] += 1
            used.update((pair.chosen, pair.rejected))
            balance[_band(pair)] += 1 if pair.stretch > 0 else -1
            unfinished += pair.unfinished
    return chosen


def _candidates(
    group: list[Response], rng: random.Random, wanted: Callable[[ResponsePair], bool] | None
) -> list[ResponsePair]:
    pairs = []
    for one, other in itertools.combinations(group, 2):
        if abs(one.gold - other.gold) >= LEAST_GAP and len(one.text) != len(other.text):
            pair = ResponsePair(one, other) if one.gold > other.gold else ResponsePair(other, one)
            if wanted is None or wanted(pair):
                pairs.append(pair)
    rng.shuffle(pairs)
    return pairs


def _band(pair: ResponsePair) -> int:
    return sum(abs(pair.stretch) >= edge for edge in BANDS)


def _tilt(pair: ResponsePair, balance: Counter[int]) -> int:
    """How far the band already leans to this pair's side; below 0, the pair restores the balance."""
    return balance[_band(pair)] * (1 if pair.stretch > 0 else -1)
