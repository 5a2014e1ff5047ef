"""`rrm-lm serve` under load, against `rrm-lm score` on the same texts.

64 clients on loopback send one prompt with two responses at a time and wait for the rewards, until all texts are scored
or the time is over. Then the same texts are scored without a server. Writes `scripts/bench/results/serve.json`:

- `throughput_share`: responses per second, divided by those of `rrm-lm score`;
- `lost`: responses without a reward, or with another than that of `rrm-lm score` by more than 1e-3;
- `p50_ms`, `p95_ms`: time of a request;
- `memory_mb`: the server's resident memory after the first tenth of the requests, and at the end.

.venv/bin/python -m scripts.bench.serve [--model outputs/mine] [--pairs 400] [--seconds 120]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.preferences.scoring import group_by_prompt, score_responses
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.settings.models import ModelArguments
from rrm_lm.storage import write_json
from scripts.bench.common import RESULTS, commit, machine

DATA = Path(__file__).parents[2] / "data" / "assistant" / "train.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a reward model; default: random LoRA weights on smollm2-135m")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=400, help="most prompts, each with its two responses")
    parser.add_argument("--seconds", type=float, default=120, help="after which no client sends another request")
    parser.add_argument("--results", type=Path, default=RESULTS / "serve.json")
    args = parser.parse_args()
    groups = group_by_prompt(load_feedback(str(DATA)).comparisons[: args.pairs])
    items = list(groups.items())
    with tempfile.TemporaryDirectory() as work:
        model = args.model or random_model(Path(work) / "random")
        with server(model) as (url, process):
            before = time.perf_counter()
            asked, memory = asyncio.run(load(url, process, items, args.clients, args.seconds))
            seconds = time.perf_counter() - before
        scorer = load_scorer(model)
    texts = {items[place][0]: items[place][1] for place in asked}
    before = time.perf_counter()
    rewards = score_responses(scorer, texts)
    alone = time.perf_counter() - before
    responses = sum(map(len, texts.values()))
    times = [1000 * found["seconds"] for found in asked.values()]
    lost = sum(
        not abs(reward - rewards[items[place][0]][text]) < 1e-3
        for place, found in asked.items()
        for text, reward in zip(items[place][1], found["rewards"], strict=True)
    )
    result = {
        "throughput_share": round(alone / seconds, 3), "lost": int(lost), "responses": responses,
        "requests": len(asked), "clients": args.clients, "seconds": round(seconds, 1),
        "responses_per_second": round(responses / seconds, 2),
        "responses_per_second_of_score": round(responses / alone, 2),
        "p50_ms": round(float(np.percentile(times, 50))), "p95_ms": round(float(np.percentile(times, 95))),
        "memory_mb": memory, "model": args.model or "random LoRA on smollm2-135m", "machine": machine(),
        "commit": commit(),
    }  # fmt: skip
    write_json(args.results, result)
    print(result)


def random_model(folder: Path) -> str:
    """A reward model with random weights."""
    set_seed(0)
    lora = ModelArguments().lora()
    lora.init_lora_weights = False
    backbone = Backbone(load_causal_lm("smollm2-135m"), pad_id=0)
    RewardModel.create(backbone, lora, RewardSettings("smollm2-135m")).save(folder, load_tokenizer("smollm2-135m"))
    return str(folder)


@contextmanager
def server(model: str) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of a server."""
    words = [sys.executable, "-m", "rrm_lm", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line and "serving" not in line:
            print(line, end="", file=sys.stderr)
            line = process.stderr.readline()
        try:
            yield "http://" + line.partition("on http://")[2].split(";")[0], psutil.Process(process.pid)
        finally:
            process.terminate()


async def load(
    url: str, process: psutil.Process, items: list[Any], clients: int, seconds: float
) -> tuple[dict[int, Any], list[int]]:
    """What each request found, by its place in `items`, and the server's memory in MB near the start and at the end."""
    found: dict[int, Any] = {}
    memory: list[int] = []
    left = iter(range(len(items)))
    end = time.perf_counter() + seconds

    async def client(http: httpx2.AsyncClient) -> None:
        for place in left:
            prompt, responses = items[place]
            body = {"items": [{"messages": [m.to_dict() for m in prompt], "responses": responses}]}
            before = time.perf_counter()
            answer = await http.post(f"{url}/v1/rewards", json=body)
            [item] = answer.raise_for_status().json()["items"]
            rewards = [one.get("reward", float("nan")) for one in item["responses"]]
            found[place] = {"seconds": time.perf_counter() - before, "rewards": rewards}
            if not memory and 10 * len(found) >= len(items):
                memory.append(process.memory_info().rss >> 20)
            if time.perf_counter() > end:
                return

    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=clients)) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return found, [*memory, process.memory_info().rss >> 20]


if __name__ == "__main__":
    main()
