"""What every request passes first: who it is for, how often it comes, and for forms their size, origin and secret."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from urllib.parse import parse_qsl

from fastapi import HTTPException, Request

FORM_SECONDS = 20.0  # a form that takes longer to arrive is given up
HEADERS = {
    # Scripts and styles come from this server only, and never from a page's text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with the origin `null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """The rules of one server. `hosts`: names with ports that it answers to; others may be rebound to this address."""

    def __init__(self, hosts: Collection[str], max_body: int, max_requests: int, key: bytes) -> None:
        self.hosts, self.max_body, self.max_requests, self._key = set(map(_host, hosts)), max_body, max_requests, key
        self.members: set[str] = set()  # the tokens of people, each of whom has a limit of their own
        self._left: dict[str, tuple[float, float]] = {}  # requests that a client may send now, and since when

    def token(self, purpose: str) -> str:
        """A secret that only this server can make, for a link, a cookie or a form."""
        return hmac.digest(self._key, purpose.encode(), "sha256").hex()[:40]

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """The status and reason to refuse a request, or None."""
        if _host(request.headers.get("host", "")) not in self.hosts:
            return 421, "this server does not answer to that name; see --hostname"
        client = request.cookies.get("person", "")
        if client not in self.members:  # anybody can make up cookies
            client = request.client.host if request.client else ""
        now, (left, since) = time.monotonic(), self._left.get(client, (float(self.max_requests), time.monotonic()))
        left = min(self.max_requests, left + (now - since) * self.max_requests / 60)
        if len(self._left) > 10_000:
            self._left.clear()
        self._left[client] = (max(left - 1, 0), now)
        return (429, "too many requests; wait a moment") if left < 1 else None

    async def form(self, request: Request, person: str) -> dict[str, str]:
        """The fields of a form. Raises HTTPException: from another site, without its secret, too large, or too slow."""
        origin = request.headers.get("origin")
        if origin is not None and _host(origin.partition("://")[2]) != _host(request.headers.get("host", "")):
            raise HTTPException(403, "the form comes from another site")
        try:
            async with asyncio.timeout(FORM_SECONDS):
                body = await self._body(request)
        except TimeoutError:
            raise HTTPException(408, "the form took too long to arrive") from None
        try:
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=200, errors="strict"))
        except ValueError:
            raise HTTPException(400, "the form is not readable") from None
        if not hmac.compare_digest(fields.pop("secret", "").encode(), self.token(f"form {person}").encode()):
            raise HTTPException(403, "the form is from another session; reload the page, your draft is kept")
        return fields

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        length = request.headers.get("content-length", "0")
        async for part in request.stream():
            body += part
            if len(body) > self.max_body or (length.isdigit() and int(length) > self.max_body):
                raise HTTPException(413, f"the answer is larger than {self.max_body // 1000} kB")
        return bytes(body)


def _host(name: str) -> str:
    """A host and port as browsers send them: in lower case, and without the port of HTTP."""
    return name.lower().removesuffix(":80")
