"""`transformers serve` answers with a merged policy as this package does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from transformers.utils.import_utils import is_serve_available

import rrm_lm
from tests.smoke.commands import run, write_rows
from tests.smoke.launches import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs fastapi, uvicorn and openai"),
]
QUESTIONS = ["What is the sea?", "Name a fruit.", "Say no."]


def ask(address: str, model: Path, question: str) -> str:
    body = {
        "model": str(model), "messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0,
        "seed": 0,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    return json.load(urlopen(request, timeout=60))["choices"][0]["message"]["content"]


def test_a_merged_policy_gives_the_same_answers(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": question} for question in QUESTIONS])
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def short(prompts, completions, **columns):\n    return [-float(len(c)) for c in completions]\n"
    )
    folder = tmp_path / "policy"
    result = run(
        capsys, "policy", "--model_name_or_path", tiny, "--prompts", prompts, "--reward_function", f"{rewards}:short",
        "--output_dir", folder, "--max_steps", 2, "--per_device_train_batch_size", 4, "--response_length", 8,
        "--learning_rate", 0.05, "--eval_fraction", 0, "--dtype", "float32", "--merge", "true",
    )  # fmt: skip
    assert result.code == 0, result.err
    policy = rrm_lm.Policy.from_pretrained(str(folder), dtype="float32")
    expected = [policy.respond(question, temperature=0, max_new_tokens=12) for question in QUESTIONS]
    before = rrm_lm.Policy.from_pretrained(str(tiny), dtype="float32")
    assert expected != [before.respond(question, temperature=0, max_new_tokens=12) for question in QUESTIONS]
    port = free_port()
    words = ["serve", str(folder / "merged"), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while True:
                try:
                    urlopen(f"{address}/health", timeout=5)
                    break
                except (URLError, ConnectionError):
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.3)
            assert [ask(address, folder / "merged", question) for question in QUESTIONS] == expected
        finally:
            process.terminate()
