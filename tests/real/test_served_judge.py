"""The served judge with a real server: `transformers serve` with the embedded model, on the loopback interface.

Under a minute on idle cores. What SmolLM2 prefers does not matter here (it likes whatever stands first): verdicts and
abstentions must come back over real HTTP from a real model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rrm_lm.errors import ModelError
from rrm_lm.feedback.asking.collection import ASKED, collect
from rrm_lm.feedback.asking.judge_questions import CUT_OFF, EMPTY, LETTER_QUESTION, REFUSED, UNREADABLE
from rrm_lm.feedback.asking.llm_judge import INCONSISTENT, ServedJudge
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison
from rrm_lm.models.pretrained import DEFAULT_MODEL, resolve
from tests.smoke.launches import free_port

for package in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason=f"transformers serve needs {package}, which is not installed")

pytestmark = [pytest.mark.real, pytest.mark.slow]

HELD_OUT = Path(__file__).parents[2] / "data" / "assistant" / "heldout.jsonl.gz"
START = "import sys; from transformers.cli.transformers import main; sys.exit(main())"  # what `transformers` runs
CAUSES = {INCONSISTENT, UNREADABLE, REFUSED, EMPTY, CUT_OFF}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address and the model of a local server, which is stopped afterwards."""
    model, log = resolve(DEFAULT_MODEL), tmp_path_factory.mktemp("serve") / "log.txt"
    port = free_port()
    command = [sys.executable, "-c", START, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + 240
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    """The shortest pairs of the held-out part of data/assistant."""
    found = load_feedback(str(HELD_OUT)).comparisons
    return sorted(found, key=lambda pair: len(pair.chosen) + len(pair.rejected))[:3]


def test_the_model_gives_verdicts(server: tuple[str, str], pairs: list[Comparison]) -> None:
    url, model = server
    judge = ServedJudge(model, url, key_variable="", max_tokens=6, question=LETTER_QUESTION, at_once=2)
    verdicts = judge.judge([(pair.prompt, pair.chosen, pair.rejected) for pair in pairs])
    assert set(verdicts) <= {0.0, 0.5, 1.0, None} and any(verdict is not None for verdict in verdicts)
    assert judge.abstentions.total() == verdicts.count(None) and set(judge.abstentions) <= CAUSES
    assert judge.usage["requests"] == 3 and judge.usage["prompt_tokens"] > 300


def test_verdicts_or_abstentions_become_feedback(
    server: tuple[str, str], pairs: list[Comparison], tmp_path: Path
) -> None:
    url, model = server
    judge = ServedJudge(model, url, name="smollm2", key_variable="", max_tokens=24, at_once=2)
    prompts, responses = [pair.prompt for pair in pairs[:2]], [[pair.chosen, pair.rejected] for pair in pairs[:2]]
    found = collect(judge, prompts, responses, critiques=False, path=tmp_path / "new.jsonl")
    counts = found.counts
    assert counts.pairs == 2 == counts.comparisons + counts.ties + sum(counts.abstentions.values())
    assert set(counts.abstentions) <= CAUSES and dict(judge.abstentions) == dict(counts.abstentions)
    assert 2 <= judge.usage["requests"] <= 4 and judge.usage["completion_tokens"] >= judge.usage["requests"]
    assert len((tmp_path / f"new.jsonl{ASKED}").read_text(encoding="utf-8").splitlines()) == 1 + 2
    again = collect(judge, prompts, responses, critiques=False, path=tmp_path / "new.jsonl")
    assert again == found and judge.usage["requests"] <= 4


def test_a_critique_comes_back(server: tuple[str, str], pairs: list[Comparison]) -> None:
    url, model = server
    judge = ServedJudge(model, url, key_variable="", max_tokens=30)
    critique = judge.critique(pairs[0].prompt, pairs[0].rejected)
    assert critique == " ".join(critique.split()) and bool(critique) != bool(judge.abstentions)


def test_model_missing_on_the_server_is_named(server: tuple[str, str], pairs: list[Comparison]) -> None:
    url, _ = server
    judge = ServedJudge("no-such-model", url, key_variable="", max_retries=0, patience=1)
    with pytest.raises(ModelError, match="no-such-model"):
        judge.compare(pairs[0].prompt, [pairs[0].chosen, pairs[0].rejected])
