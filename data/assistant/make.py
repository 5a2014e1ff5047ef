"""Makes the assistant set: `python data/assistant/make.py`.

Samples responses to `requests.jsonl` from SmolLM2 (`sampling.py`; slow on a CPU, but resumable), has the plain user
(`rrm_lm.simulated.plain_user`) judge them, and writes `train.jsonl.gz`, `heldout.jsonl.gz` and `statistics.json` to
this folder. Responses are saved in `responses.jsonl.gz`; while that file exists, nothing is sampled and the script
takes seconds. `--resample` samples them again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

from sampling import sample_responses

from rrm_lm import storage
from rrm_lm.feedback.records import Message, prompt_id
from rrm_lm.simulated.plain_user import PlainUser

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pairs import ResponsePair, choose_pairs, judged
from sampled import read_responses, write_gzipped

HERE = Path(__file__).resolve().parent
SEED = 0
HELDOUT = 0.2  # of the requests of each topic
SECOND_CRITIQUE = 0.4  # probability of a second critique of a response


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
        sample_responses(requests, partial, SEED)
        write_gzipped(kept, read_responses(partial))
        partial.unlink()
    with gzip.open(kept, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


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


if __name__ == "__main__":
    main()
