"""`rrm-lm ask` under load and in a browser, and what choosing the questions saves. Writes `results/asking.json`.

    .venv/bin/python -m scripts.bench.asking load [--people 20] [--seconds 300]
    .venv/bin/python -m scripts.bench.asking keys
    .venv/bin/python -m scripts.bench.asking curve

`load`: people on loopback answer with a second of thought between two items. One in twenty posts an answer twice, and
one in fifty drops the connection before the reply and posts again. `p50_ms` and `p95_ms` are the time from an answer
to the next item; `lost` and `doubled` count answers in the store afterwards.

`keys`: one person in Chromium, from the key that sends an answer to the next item on the page.

`curve`: see :mod:`scripts.bench.asking_curve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from rrm_lm.feedback.store.files import Store
from rrm_lm.storage import read_object
from scripts.bench.common import RESULTS, commit, machine, save

ITEMS = 8000
THOUGHT = 1.0  # mean seconds between two answers of a person, who is faster than people are
TWICE, DROPPED = 0.05, 0.02
TIMING = """
window.times = [];
let since = 0;
document.addEventListener("keydown", (event) => { if (event.key === "Enter") since = performance.now(); }, true);
new MutationObserver((changes) => {
  const isNext = changes.some((change) => [...change.addedNodes].some((node) => node.id === "main"));
  if (isNext) requestAnimationFrame(() => window.times.push(performance.now() - since));
}).observe(document.body, { childList: true });
"""  # until the next item is drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("load", "keys", "curve"))
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    args = parser.parse_args()
    if args.part == "curve":
        from scripts.bench.asking_curve import curve

        found: dict[str, Any] = curve()
    else:
        found = {args.part: load(args.people, args.seconds) if args.part == "load" else keys()}
    print(save("asking.json", read_object(RESULTS / "asking.json") | found))


def load(people: int, seconds: float) -> dict[str, Any]:
    """The numbers of `load`."""
    names = [f"person{number}" for number in range(people)]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        with page(folder, names) as links:
            given, times = asyncio.run(answer_all(links, seconds))
        with Store(folder / "feedback.db", writable=False) as store:
            stored = Counter((event.person, event.item) for event, _ in store.state().answers())
            events = Counter((event.person, event.item) for event in store.events() if event.kind == "answer")
    return {
        "people": people, "seconds": seconds, "items": ITEMS, "answers": len(given),
        "p50_ms": round(1000 * float(np.percentile(times, 50)), 1),
        "p95_ms": round(1000 * float(np.percentile(times, 95)), 1),
        "largest_ms": round(1000 * max(times), 1),
        "lost": len(set(given) - set(stored)),
        "doubled": sum(count > 1 for count in events.values()),
        "machine": machine(), "commit": commit(),
    }  # fmt: skip


def keys(answers: int = 60) -> dict[str, Any]:
    """The numbers of `keys`, without those of the first answer."""
    from playwright import sync_api

    with tempfile.TemporaryDirectory() as work, sync_api.sync_playwright() as driver, page(Path(work), ["me"]) as links:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(bypass_csp=True)  # playwright evaluates what it waits for
        tab.goto(links["me"])
        tab.click("text=Start")
        tab.wait_for_selector("main[data-item]:not([data-item=''])")
        tab.evaluate(TIMING)
        for number in range(answers):
            tab.keyboard.press("2")
            tab.keyboard.press("Enter")
            tab.wait_for_function(f"window.times.length > {number}")
        times = tab.evaluate("window.times")[1:]
        browser.close()
    p50, p95 = (round(float(np.percentile(times, share)), 1) for share in (50, 95))
    return {"answers": len(times), "p50_ms": p50, "p95_ms": p95, "machine": machine(), "commit": commit()}


@contextmanager
def page(folder: Path, names: list[str]) -> Iterator[dict[str, str]]:
    """A running page with `ITEMS` items; yields the invitation of each person."""
    with (folder / "responses.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(ITEMS):
            text = " ".join(random.Random(number).choices(["garden", "letter", "small", "answer", "open"], k=60))
            row = {"prompt": f"Question {number}? {text}", "responses": [f"One. {text}", f"Two. {text}"]}
            stream.write(json.dumps(row) + "\n")
    words = ["ask", "--responses", "responses.jsonl", "--store", "feedback.db", "--port", "0", "--people", *names]
    command = [sys.executable, "-m", "rrm_lm", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        links: dict[str, str] = {}
        while len(links) < len(names):
            name, _, link = process.stdout.readline().strip().partition(": ")
            if link:
                links[name] = link
        try:
            yield links
        finally:
            process.terminate()
            process.stdout.read()  # its last line


async def answer_all(links: dict[str, str], seconds: float) -> tuple[list[tuple[str, str]], list[float]]:
    """All people answer until the time is over: (person, item) of each answer, and seconds to the next item."""
    given: list[tuple[str, str]] = []
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def person(name: str, link: str) -> None:
        rng = random.Random(name)
        async with httpx2.AsyncClient(timeout=30) as client:
            await client.get(link)
            site = link.partition("/join/")[0]
            text = (await client.get(f"{site}/")).text
            while time.perf_counter() < end and 'name="item"' in text:
                await asyncio.sleep(rng.expovariate(1 / THOUGHT))
                fields = dict(re.findall(r'name="(secret|request|item)" value="([^"]*)"', text))
                form = fields | {"verdict": str(rng.randint(1, 7)), "critique_0": "It says what was asked."}
                if rng.random() < DROPPED:
                    with suppress(httpx2.TimeoutException):
                        await client.post(f"{site}/answer", data=form, timeout=0.002)
                started = time.perf_counter()
                reply = await client.post(f"{site}/answer", data=form, headers={"X-Next": "page"})
                times.append(time.perf_counter() - started)
                reply.raise_for_status()
                if rng.random() < TWICE:
                    reply = await client.post(f"{site}/answer", data=form, headers={"X-Next": "page"})
                given.append((name, fields["item"]))
                text = reply.text

    await asyncio.gather(*(person(name, link) for name, link in links.items()))
    return given, times


if __name__ == "__main__":
    main()
