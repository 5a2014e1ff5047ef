"""Dynamic batching: responses of all requests wait in one queue, and one thread scores them.

While a batch is computed, further responses arrive; the next batch takes them together, an equal share of each
request, so that a large request does not delay the others. Everything but encoding and scoring runs on the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rrm_lm.api.asks import Ask, Read, read, score
from rrm_lm.errors import DataError, ModelError, RRMError
from rrm_lm.serving.models import Served

_ENCODED = 32  # responses that are encoded at once, so that requests take turns
_BATCHES = 4  # forward passes per batch: enough responses to group by length


class Busy(Exception):
    """Too many responses wait; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many responses wait; try again in {seconds} s")
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class _Request:
    """The responses of one request that are not scored yet."""

    model: Served
    waiting: deque[tuple[int, Read]] = field(default_factory=deque)  # place in the request, and the response
    left: int = 0  # responses without a result
    found: dict[int, float | RRMError] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, place: int, result: float | RRMError) -> None:
        self.found[place] = result
        self.left -= 1
        if not self.left:
            self.done.set()


class Queue:
    """Scores responses in batches. `max_waiting` is the most responses that wait."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting, self.waiting = max_waiting, 0
        self.batches = self.scored = 0
        self._requests: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._rate = 50.0  # responses per second
        # Tokenizers must not be used by two threads at once; nor models.
        self._encoder = ThreadPoolExecutor(1, "encode")
        self._scorer = ThreadPoolExecutor(1, "score")

    async def score(
        self, model: Served, asks: Sequence[Ask | DataError], cut: bool
    ) -> list[tuple[Read | None, float | RRMError]]:
        """Encode and score the responses of one request: for each, how it was read and its reward, or an error.

        Without `cut`, a conversation that is too long is an error. If the caller is cancelled, what is not scored yet
        leaves the queue. Raises Busy.
        """
        if self.waiting and self.waiting + len(asks) > self.max_waiting:
            raise Busy(max(1, math.ceil(self.waiting / self._rate)))
        request = _Request(model, left=len(asks))
        reads: list[Read | None] = []
        self.waiting += len(asks)
        try:
            loop = asyncio.get_running_loop()
            for start in range(0, len(asks), _ENCODED):
                encoded = await loop.run_in_executor(self._encoder, _encode, model, asks[start : start + _ENCODED], cut)
                for place, one in enumerate(encoded, start):
                    reads.append(one if isinstance(one, Read) else None)
                    if isinstance(one, Read):
                        request.waiting.append((place, one))
                    else:
                        request.put(place, one)
                if request.waiting and request not in self._requests:
                    self._requests.append(request)
                    self._arrived.set()
            await request.done.wait()
        finally:
            self.waiting -= len(asks)
            request.waiting.clear()
        return [(read, request.found[place]) for place, read in enumerate(reads)]

    async def run(self) -> None:
        """Score batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            model, began = batch[0][0].model, time.monotonic()
            results = await loop.run_in_executor(self._scorer, _score, model, [read for _, _, read in batch])
            self.batches, self.scored = self.batches + 1, self.scored + len(batch)
            rate = len(batch) / max(1e-6, time.monotonic() - began)
            self._rate += 0.3 * (rate - self._rate)
            for (request, place, _), result in zip(batch, results, strict=True):
                request.put(place, result)

    def close(self) -> None:
        """Stop the threads once they have finished what they are doing."""
        self._encoder.shutdown(wait=False, cancel_futures=True)
        self._scorer.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[tuple[_Request, int, Read]]:
        """The next batch: responses of one model, in turn from each request, up to the token budget."""
        while self._requests and not self._requests[0].waiting:  # scored or cancelled
            self._requests.popleft()
        if not self._requests:
            return []
        model = self._requests[0].model
        turn = deque(request for request in self._requests if request.model is model and request.waiting)
        batch: list[tuple[_Request, int, Read]] = []
        tokens, budget = 0, _BATCHES * model.scorer.micro_batch_tokens
        share = budget / len(turn)
        while turn and tokens < budget:
            request, taken = turn.popleft(), 0
            while request.waiting and taken < share and tokens < budget:
                place, read = request.waiting.popleft()
                batch.append((request, place, read))
                taken, tokens = taken + read.tokens, tokens + read.tokens
            if request.waiting:
                turn.append(request)
        self._requests.rotate(-1)
        return batch


def _encode(model: Served, asks: Sequence[Ask | DataError], cut: bool) -> list[Read | RRMError]:
    found: list[Read | RRMError] = []
    for ask in asks:
        try:
            found.append(read(model.chat, ask, cut))
        except RRMError as error:
            found.append(error)
    return found


def _score(model: Served, reads: list[Read]) -> list[float | RRMError]:
    """Rewards; if the batch fails, each response alone, so that one bad response fails alone."""
    try:
        rewards = score(model.scorer, reads)
    except Exception as error:  # whatever a model raises must not end the server
        if len(reads) > 1:
            half = len(reads) // 2
            return _score(model, reads[:half]) + _score(model, reads[half:])
        return [ModelError(f"The model raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")]
    return [one if math.isfinite(one) else ModelError(f"The reward is {one}") for one in rewards]
