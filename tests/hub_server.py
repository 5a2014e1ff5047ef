"""A small server with the part of the Hub's API that uploads use, on loopback. It keeps what it is sent."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_server import serving

COMMIT = "c" * 40


@dataclass
class FakeHub:
    """The server's address, its repositories with their files, and the requests in the order of arrival."""

    url: str = ""
    token: str = "test-token"  # the only one that may write
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)  # what created each repository
    files: dict[str, bytes] = field(default_factory=dict)  # of the last commit, by name
    messages: list[str] = field(default_factory=list)  # of all commits
    requests: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON for one request."""
        self.requests.append(path)
        if path.startswith("/blobs/"):
            self.blobs[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            taken = name in self.repos
            self.repos.setdefault(name, asked)
            return (409 if taken else 200), {"url": f"{self.url}/{name}"}
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            names = [one["path"] for one in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": modes[n.endswith(".safetensors")], "shouldIgnore": False} for n in names]
            return 200, {"files": files}
        if path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            objects = [{**one, "actions": {"upload": {"href": f"{self.url}/blobs/{one['oid']}"}}} for one in asked]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            return 200, {"commitUrl": f"{self.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        return 404, {"error": f"no {path}"}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                self.messages.append(value["summary"])
            elif key == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve on a free port of 127.0.0.1."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = hub.answer(self.path.partition("?")[0], body, self.headers.get("Authorization", ""))
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        hub.url = address
        yield hub
