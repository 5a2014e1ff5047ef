"""Processes of one machine that load the same model from the Hub at the same time download its weights once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.http_server import serving
from tests.smoke.launches import ROOT
from tests.tiny import save_tiny_model

NAME, COMMIT, WEIGHTS = "someone/tiny", "c" * 40, "model.safetensors"
LOAD = f"from rrm_lm.models.pretrained import load_causal_lm; print(load_causal_lm({NAME!r}).num_parameters())"


def test_weights_are_downloaded_once(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in save_tiny_model(tmp_path / "tiny").iterdir()}
    got: Counter[str] = Counter()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{NAME}"):
                about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.answer(json.dumps(about).encode(), {})
                return
            name = path.rpartition("/")[2]
            if name not in files or "/resolve/" not in path:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.command == "GET":
                got[name] += 1
                time.sleep(0.5 if name == WEIGHTS else 0.0)  # so that the other process finds the download under way
            tag = hashlib.sha256(files[name]).hexdigest()
            self.answer(files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def answer(self, body: bytes, more: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in {**more, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Hub) as address:
        online = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **online, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", LOAD]
        both = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        output = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert output[0][0] == output[1][0] and int(output[0][0]) > 0
    assert got[WEIGHTS] == 1
