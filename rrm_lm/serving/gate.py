"""What every request passes first: its token, the size of its body and the time it takes to arrive.

A request whose client leaves is cancelled, so that its responses leave the queue.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

_OPEN = ("/health",)  # for load balancers, which have no token


class Gate:
    """ASGI middleware. `token` is "" for none, `max_body` is in bytes and `timeout` in seconds."""

    def __init__(self, app: ASGIApp, token: str, max_body: int, timeout: float) -> None:
        self.app, self.max_body, self.timeout = app, max_body, timeout
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not self._is_allowed(scope):
            return await _refuse(send, 401, "the token is missing or wrong", (b"www-authenticate", b"Bearer"))
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._body(scope, receive)
        except TimeoutError:
            return await _refuse(send, 408, f"the request did not arrive within {self.timeout:g} s")
        except OverflowError:
            return await _refuse(send, 413, f"the request is larger than {self.max_body / 1e6:g} MB")
        if body is not None:
            await self._run(scope, body, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        """Whether the request has the token: as Bearer, or as the password of a URL (``http://any:TOKEN@host``), which
        is all that clients without a setting for keys can send.
        """
        if not self._token or scope["path"] in _OPEN:
            return True
        kind, _, sent = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":
            try:
                sent = base64.b64decode(sent, validate=True).partition(b":")[2]
            except ValueError:
                return False
        return secrets.compare_digest(sent.strip(), self._token)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client leaves. Raises OverflowError if it is too large."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            raise OverflowError
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise OverflowError
            if not message.get("more_body"):
                return b"".join(parts)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        bodies = [body]

        async def replay() -> MutableMapping[str, Any]:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await asyncio.Event().wait()  # the disconnection cancels the application instead
            raise AssertionError

        work = asyncio.ensure_future(self.app(scope, replay, send))
        left = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work


async def _refuse(send: Send, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    more = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": status, "headers": [*more, (b"connection", b"close"), *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
