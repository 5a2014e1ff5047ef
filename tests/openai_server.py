"""A small server with the chat completions of OpenAI's API, on loopback, that answers as a test says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.http_server import serving

SHOWN = re.compile(r"Reply ([AB]):\n<text (\w+)>\n(.*?)\n</text \2>", re.DOTALL)


@dataclass
class Reply:
    """What the server sends back: an answer of the model, or a status with a body."""

    content: str | None = ""
    finish_reason: str = "stop"
    refusal: str | None = None
    status: int = 200
    body: Any = None
    location: str = ""

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()
        if self.status != 200:
            return json.dumps({"error": {"message": self.content}}).encode()
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        return json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "fake",
                "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
            }
        ).encode()


@dataclass
class FakeServer:
    """The server's address, and what it was asked, in the order of arrival."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


@contextlib.contextmanager
def fake_server(answer: Callable[[str], Reply | str]) -> Iterator[FakeServer]:
    """Serve on a free port of 127.0.0.1; `answer` gets the question, in a separate thread for each request."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(request)
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = answer(request["messages"][0]["content"])
            reply = Reply(reply) if isinstance(reply, str) else reply
            payload = reply.payload()
            with contextlib.suppress(ConnectionError):  # a client that did not want to wait is gone
                path = urlsplit(self.path).path  # a proxy gets the full address
                self.send_response(reply.status if path == "/v1/chat/completions" else 404)
                if reply.location:
                    self.send_header("Location", reply.location)
                self.send_header("Content-Type", "text/html" if isinstance(reply.body, str) else "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.send_header("retry-after-ms", "5")  # the client's own waits are half a second and more
                self.end_headers()
                self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        fake.url = f"{address}/v1"
        yield fake


def shown(question: str) -> dict[str, str]:
    """The replies that a question shows: {"A": ..., "B": ...}."""
    return {letter: text for letter, _, text in SHOWN.findall(question)}


def prefers(wanted: Callable[[str], float]) -> Callable[[str], str]:
    """A judge who prefers the reply with the higher number, and says so on the last line."""

    def answer(question: str) -> str:
        replies = shown(question)
        if not replies:
            return "It is  a reply.\nIt could be shorter."
        one, other = wanted(replies["A"]), wanted(replies["B"])
        return "That decides it.\n" + ("tie" if one == other else "A" if one > other else "B")

    return answer
