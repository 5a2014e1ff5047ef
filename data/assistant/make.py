"""Makes the assistant set: `python data/assistant/make.py`.

Samples responses to `requests.jsonl` from SmolLM2 (`sampling.py`; slow on a CPU, but resumable), has the plain user
(`rrm_lm.simulated.plain_user`) judge them, and writes `train.jsonl.gz`, `heldout.jsonl.gz` and `statistics.json` to
this folder. Responses are saved in `responses.jsonl.gz`; while that file exists, nothing is sampled and the script
takes seconds. `--resample` samples them again.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sampling

from rrm_lm import storage
from rrm_lm.feedback.records import Message, prompt_id
from rrm_lm.simulated.plain_user import PlainUser

HERE = Path(__file__).resolve().parent
SEED = 0
HELDOUT = 0.2  # of the requests of each topic
PAIRS_PER_REQUEST = 4
MOST_USES = 2  # pairs that one response may be part of
LEAST_GAP = 0.08  # in gold between the responses of a pair; closer ones would be ties to a person
MOST_UNFINISHED = 0.15  # fraction of pairs with a response that was cut off at the token limit
SECOND_CRITIQUE = 0.4  # probability of a second critique of a response
# Bands of the log ratio of lengths. In each of them the longer response wins half of the time.
BANDS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.05, 1.5, math.inf)


@dataclass(frozen=True)
class Response:
    """A sampled response and its gold reward."""

    request: str
    text: str
    finished: bool
    gold: float


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one request; the user prefers `chosen`."""

    chosen: Response
    rejected: Response

    @property
    def stretch(self) -> float:
        """Log ratio of the lengths (in characters) of the chosen and the rejected response."""
        return math.log(len(self.chosen.text) / len(self.rejected.text))

    @property
    def unfinished(self) -> bool:
        return not (self.chosen.finished and self.rejected.finished)


def main() -> None:
    """Sample if necessary, judge, choose pairs, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resample", action="store_true", help="sample the responses again")
    arguments = parser.parse_args()
    user = PlainUser.from_file(HERE / "requests.jsonl")
    rows = sampled_rows([request.text for request in user.requests.values()], resample=arguments.resample)
    responses = judged(rows, user)
    train_requests, heldout_requests = split(user)
    parts: dict[str, list[ResponsePair]] = {}
    for name, requests in (("train", train_requests), ("heldout", heldout_requests)):
        parts[name] = choose_pairs([responses[request] for request in requests], random.Random(f"{SEED} {name}"))
        write_gzipped(HERE / f"{name}.jsonl.gz", (record(pair, user) for pair in parts[name]))
    summary = {name: statistics(pairs, user) for name, pairs in parts.items()}
    storage.write_json(HERE / "statistics.json", summary)
    print(storage.json_text(summary))


def sampled_rows(requests: list[str], *, resample: bool) -> list[dict]:
    """The sampled responses, from `responses.jsonl.gz` or from the model."""
    kept, partial = HERE / "responses.jsonl.gz", HERE / "responses.partial.jsonl"
    if resample or not kept.exists():
        sampling.sample_responses(requests, partial, SEED)
        write_gzipped(kept, sampling.read_responses(partial))
        partial.unlink()
    with gzip.open(kept, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def judged(rows: Iterable[dict], user: PlainUser) -> dict[str, list[Response]]:
    """The distinct usable responses to each request, judged.

    Excluded are empty responses, responses with control tokens or broken characters, and identical responses to two
    requests, which could be on both sides of the split.
    """
    rows = [row for row in rows if row["response"] and not re.search(r"<\|\w+\|>|\ufffd", row["response"])]
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[" ".join(re.findall(r"\w+", row["response"].lower()))].add(row["request"])
    shared = {text for text, requests in owners.items() if len(requests) > 1}
    found: dict[str, dict[str, Response]] = {request.text: {} for request in user.requests.values()}
    for row in rows:
        request, text = row["request"], row["response"]
        if " ".join(re.findall(r"\w+", text.lower())) not in shared:
            found[request].setdefault(text, Response(request, text, row["finished"], user.gold(request, text)))
    return {request: list(by_text.values()) for request, by_text in found.items()}


def split(user: PlainUser) -> tuple[list[str], list[str]]:
    """Training and held-out requests, with the same fraction of every topic held out."""
    rng = random.Random(f"{SEED} split")
    topics: dict[str, list[str]] = defaultdict(list)
    for request in user.requests.values():
        topics[request.topic].append(request.text)
    train, heldout = [], []
    for texts in topics.values():
        rng.shuffle(texts)
        count = round(HELDOUT * len(texts))
        heldout += texts[:count]
        train += texts[count:]
    return train, heldout


def choose_pairs(groups: list[list[Response]], rng: random.Random) -> list[ResponsePair]:
    """Up to `PAIRS_PER_REQUEST` pairs per request, such that length does not predict which response is better.

    Works in rounds: every request gets a first pair before any gets a second one. A pair is taken only if its band of
    length ratios stays balanced; the first pair of a request may unbalance it a little.
    """
    candidates = [_candidates(group, rng) for group in groups]
    chosen: list[ResponsePair] = []
    pairs_of: Counter[int] = Counter()
    used: Counter[Response] = Counter()
    balance: Counter[int] = Counter()
    unfinished = 0
    for round_number in range(PAIRS_PER_REQUEST):
        for index in rng.sample(range(len(groups)), len(groups)):
            if pairs_of[index] < round_number:
                continue  # there was no pair for it in an earlier round
            full = unfinished >= MOST_UNFINISHED * (len(chosen) + 10)
            allowed = [
                pair
                for pair in candidates[index]
                if not (full and pair.unfinished) and max(used[pair.chosen], used[pair.rejected]) < MOST_USES
            ]
            pair = min(allowed, key=lambda pair: _tilt(pair, balance), default=None)
            if pair is None or _tilt(pair, balance) > (2 if round_number == 0 else 0):
                continue
            chosen.append(pair)
            candidates[index].remove(pair)
            pairs_of[index] += 1
            used.update((pair.chosen, pair.rejected))
            balance[_band(pair)] += 1 if pair.stretch > 0 else -1
            unfinished += pair.unfinished
    return chosen


def _candidates(group: list[Response], rng: random.Random) -> list[ResponsePair]:
    pairs = []
    for one, other in itertools.combinations(group, 2):
        if abs(one.gold - other.gold) >= LEAST_GAP and len(one.text) != len(other.text):
            pairs.append(ResponsePair(one, other) if one.gold > other.gold else ResponsePair(other, one))
    rng.shuffle(pairs)
    return pairs


def _band(pair: ResponsePair) -> int:
    return sum(abs(pair.stretch) >= edge for edge in BANDS)


def _tilt(pair: ResponsePair, balance: Counter[int]) -> int:
    """How far the band already leans to this pair's side; below 0, the pair restores the balance."""
    return balance[_band(pair)] * (1 if pair.stretch > 0 else -1)


def record(pair: ResponsePair, user: PlainUser) -> dict:
    """A pair as a row of the file."""
    request = pair.chosen.request
    sides = {"chosen": pair.chosen.text, "rejected": pair.rejected.text}
    return {
        "prompt": [{"role": "user", "content": request}],
        **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()},
        **{f"{side}_critiques": critiques(request, text, user) for side, text in sides.items()},
        **{f"{side}_rating": user.rating(request, text) for side, text in sides.items()},
        "prompt_id": prompt_id((Message("user", request),)),
        "topic": user.request(request).topic,
        "source": "assistant",
    }


def critiques(request: str, response: str, user: PlainUser) -> list[str]:
    """One or two critiques; always the same for the same response."""
    count = 2 if random.Random(f"{SEED} {request} {response}").random() < SECOND_CRITIQUE else 1
    return list(dict.fromkeys(user.critique(request, response, seed) for seed in range(count)))


def statistics(pairs: list[ResponsePair], user: PlainUser) -> dict:
    """The numbers of the data card for one part."""
    texts = {(r.request, r.text): r for pair in pairs for r in (pair.chosen, pair.rejected)}
    written = [c for request, text in texts for c in critiques(request, text, user)]
    words = sorted(len(text.split()) for _, text in texts)
    faults = Counter(
        part for r in texts.values() for part, value in user.judge(r.request, r.text).parts.items() if value < 0.9
    )
    return {
        "comparisons": len(pairs),
        "requests": len({pair.chosen.request for pair in pairs}),
        "responses": len(texts),
        "critiques": len(written),
        "distinct_critiques": len(set(written)),
        "critique_words_mean": round(sum(len(c.split()) for c in written) / len(written), 1),
        "response_words": {
            q: words[int(len(words) * share)] for q, share in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))
        },
        "longer_wins": round(sum(pair.stretch > 0 for pair in pairs) / len(pairs), 3),
        "gold_mean": round(sum(r.gold for r in texts.values()) / len(texts), 3),
        "gold_gap_mean": round(sum(p.chosen.gold - p.rejected.gold for p in pairs) / len(pairs), 3),
        "pairs_with_cut_off_response": round(sum(pair.unfinished for pair in pairs) / len(pairs), 3),
        "share_of_responses_at_fault": {part: round(count / len(texts), 3) for part, count in sorted(faults.items())},
    }


def write_gzipped(path: Path, rows: Iterable[dict]) -> None:
    """Write gzipped JSON lines without a timestamp, so that equal data gives equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with storage.staged_file(path) as staged:
        staged.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


if __name__ == "__main__":
    main()
