"""Dynamic batching: responses of all requests wait in one queue, and one thread encodes and scores them.

While a batch is computed, further responses arrive; the next batch takes them together, an equal share of each
request, so that a large request does not delay the others. There is one thread, because two that hold Python's lock in
turn are slower than one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rrm_lm.api.asks import Ask, Read, Scored, read, score
from rrm_lm.errors import DataError, ModelError, RRMError
from rrm_lm.serving.models import Served

_BATCHES = 4  # forward passes per batch: enough responses to group by length
_CHARACTERS = 4  # per token, to guess lengths before tokens are known

Found = tuple[Read | None, Scored | RRMError]  # how a response was read, and its reward or why it has none


class Busy(Exception):
    """Too many responses wait; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many responses wait; try again in {seconds} s")
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class _Request:
    """The responses of one request: those that wait, by their places, and what was found for the others."""

    model: Served
    cut: bool
    waiting: deque[tuple[int, Ask | DataError]]
    left: int
    found: dict[int, Found] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Queue:
    """Scores responses in batches. `max_waiting` is the most responses that wait."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting, self.waiting, self.batches = max_waiting, 0, 0
        self._requests: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._rate = 50.0  # responses per second
        self._worker = ThreadPoolExecutor(1, "score")

    async def score(self, model: Served, asks: Sequence[Ask | DataError], cut: bool) -> list[Found]:
        """Encode and score the responses of one request; without `cut`, those that are too long are errors.

        If the caller is cancelled, what is not scored yet leaves the queue. Raises Busy.
        """
        if self.waiting and self.waiting + len(asks) > self.max_waiting:
            raise Busy(max(1, math.ceil(self.waiting / self._rate)))
        request = _Request(model, cut, deque(enumerate(asks)), len(asks))
        self._requests.append(request)
        self.waiting += len(asks)
        self._arrived.set()
        try:
            await request.done.wait()
        finally:
            self.waiting -= len(asks)
            request.waiting.clear()
        return [request.found[place] for place in range(len(asks))]

    async def run(self) -> None:
        """Score batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            began = time.monotonic()
            asked = [(ask, request.cut) for request, _, ask in batch]
            results = await loop.run_in_executor(self._worker, _work, batch[0][0].model, asked)
            self.batches += 1
            self._rate += 0.3 * (len(batch) / max(1e-6, time.monotonic() - began) - self._rate)
            for (request, place, _), result in zip(batch, results, strict=True):
                request.found[place] = result
                request.left -= 1
                if not request.left:
                    request.done.set()

    def close(self) -> None:
        """Stop the thread once it has finished its batch."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[tuple[_Request, int, Ask | DataError]]:
        """The next batch: responses of one model, in turn from each request, up to the token budget."""
        while self._requests and not self._requests[0].waiting:  # scored or cancelled
            self._requests.popleft()
        if not self._requests:
            return []
        model = self._requests[0].model
        turn = deque(request for request in self._requests if request.model is model and request.waiting)
        self._requests.rotate(-1)
        batch: list[tuple[_Request, int, Ask | DataError]] = []
        tokens, budget = 0, _BATCHES * model.scorer.micro_batch_tokens
        share = budget / len(turn)
        while turn and tokens < budget:
            request, taken = turn.popleft(), 0
            while request.waiting and taken < share and tokens < budget:
                place, ask = request.waiting.popleft()
                batch.append((request, place, ask))
                length = _length(ask)
                taken, tokens = taken + length, tokens + length
            if request.waiting:
                turn.append(request)
        return batch


def _length(ask: Ask | DataError) -> int:
    """The approximate number of tokens."""
    if isinstance(ask, DataError) or not isinstance(ask.response, str):
        return 1
    text = sum(len(m.content) for m in ask.prompt) + len(ask.response) if ask.prompt else len(ask.rendered or "")
    return 1 + text // _CHARACTERS


def _work(model: Served, asked: Sequence[tuple[Ask | DataError, bool]]) -> list[Found]:
    """Encode and score a batch."""
    reads: list[Read | RRMError] = []
    for ask, cut in asked:
        try:
            reads.append(read(model.chat, ask, cut))
        except RRMError as error:
            reads.append(error)
        except Exception as error:  # whatever a message holds must not end the server
            what = " ".join(str(error).split())[:200]
            reads.append(DataError(f"The response cannot be read ({type(error).__name__}: {what})"))
    rewards = iter(_score(model, [one for one in reads if isinstance(one, Read)]))
    return [(one, next(rewards)) if isinstance(one, Read) else (None, one) for one in reads]


def _score(model: Served, reads: list[Read]) -> list[Scored | RRMError]:
    """Rewards; if the batch fails, those of its halves, so that a bad response fails alone."""
    try:
        rewards = score(model.scorer, reads) if reads else []
    except Exception as error:  # whatever a model raises must not end the server
        if len(reads) > 1:
            half = len(reads) // 2
            return _score(model, reads[:half]) + _score(model, reads[half:])
        if isinstance(error, RRMError):
            return [error]
        return [ModelError(f"The model raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")]
    return [one if math.isfinite(one.reward) else ModelError(f"The reward is {one.reward}") for one in rewards]
