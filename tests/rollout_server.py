"""A server on this machine that speaks the part of vLLM's HTTP API that rollouts need, with a tiny model."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.saving.policies import put_policy
from tests.http_server import serving
from tests.tiny import tiny_model

Change = Callable[[Any], Any]  # what is sent instead of an answer: an object, or text


@dataclass
class RolloutServer:
    """The server's address and model, and what it was asked."""

    backbone: Backbone
    key: str = ""  # which every request must have
    url: str = ""
    change: Change = lambda reply: reply  # of answers to completions; an error closes the connection
    takes_adapters: bool = True
    is_stale: bool = False  # samples from the first adapter, whatever its answers say
    loaded: list[str] = field(default_factory=list)  # names of the adapters that are loaded now
    pushed: list[str] = field(default_factory=list)  # names of all adapters, in their order
    asked: list[dict[str, Any]] = field(default_factory=list)  # the completions
    _lock: Any = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the answer to a request."""
        if path == "/v1/models":
            return 200, {"data": []}
        if path == "/v1/completions":
            if body["model"] not in self.loaded:
                return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
            self.asked.append(body)
            return 200, self.change(self._complete(body))
        name = body["lora_name"]
        if not self.takes_adapters or path not in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return 404, {"detail": "Not Found"}
        if path == "/v1/unload_lora_adapter":
            self.loaded.remove(name)
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if name in self.pushed:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        self.put(name, body["lora_path"])
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def put(self, name: str, folder: str) -> None:
        put_policy(self.backbone, Path(folder), adapter=name)
        self.pushed.append(name)
        self.loaded.append(name)

    def log_probs(self, adapter: str, prompt: list[int], ids: list[int], sampling: Sampling) -> list[float]:
        with torch.no_grad(), self.backbone.using(adapter):
            logits = self.backbone.causal_lm(input_ids=torch.tensor([[*prompt, *ids]])).logits
        return sampling.log_probs(logits[0, -len(ids) - 1 : -1], torch.tensor(ids)).tolist()

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        adapter = self.pushed[0] if self.is_stale else body["model"]
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"], max(0, body["top_k"]))
        (responses,) = roll_out(
            self.backbone, adapter, [body["prompt"]], sampling, end_ids=body["stop_token_ids"], num_return=body["n"],
            seed=body["seed"],
        )  # fmt: skip
        choices = []
        for index, ids in enumerate(responses):
            log_probs = self.log_probs(adapter, body["prompt"], ids, sampling)
            choices.append({"index": index, "text": "", "token_ids": ids, "logprobs": {"token_logprobs": log_probs}})
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices}


@contextlib.contextmanager
def rollout_server(
    family: str = "llama", kind: type[RolloutServer] = RolloutServer, **options: Any
) -> Iterator[RolloutServer]:
    """Serve the model of `tests.tiny_policy.tiny_agent` on a free port of 127.0.0.1."""
    fake = kind(Backbone(tiny_model(family), pad_id=0), **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, reply = 401, {"error": f"not {self.headers.get('Authorization')}"}
            if not fake.key or self.headers.get("Authorization") == f"Bearer {fake.key}":
                try:
                    with fake._lock:
                        status, reply = fake.answer(self.path, json.loads(raw) if raw else {})
                except ConnectionError:
                    return  # closes the connection without an answer
            payload = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        fake.url = f"{address}/v1"
        yield fake
