"""The project's own feedback set, `data/assistant`: its size, its split, its labels, and what its card says."""

from __future__ import annotations

import gzip
import importlib
import json
import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Message, prompt_id
from rrm_lm.feedback.splits import leakage
from rrm_lm.models.decoding.generation import sample
from rrm_lm.simulated.plain_user import PlainUser
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer

FOLDER = Path(__file__).parents[3] / "data" / "assistant"
PARTS = ("train", "heldout")


@lru_cache(maxsize=2)
def rows(part: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / f"{part}.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def everything() -> list[dict[str, Any]]:
    return [row for part in PARTS for row in rows(part)]


def request_of(row: dict[str, Any]) -> str:
    [message] = row["prompt"]
    assert message["role"] == "user"
    return message["content"]


def response_of(row: dict[str, Any], side: str) -> str:
    [message] = row[side]
    assert message["role"] == "assistant"
    return message["content"]


@pytest.fixture(scope="module")
def user() -> PlainUser:
    return PlainUser.from_file(FOLDER / "requests.jsonl")


def test_enough_comparisons_on_enough_requests(user: PlainUser) -> None:
    assert len(everything()) >= 600
    assert len({request_of(row) for row in everything()}) >= 300
    assert len(user.requests) >= 340
    share = len(rows("heldout")) / len(everything())
    assert 0.15 < share < 0.25


def test_no_request_is_in_both_parts() -> None:
    train, heldout = ({row["prompt_id"] for row in rows(part)} for part in PARTS)
    assert not train & heldout
    assert all(row["prompt_id"] == prompt_id((Message("user", request_of(row)),)) for row in everything())


def test_every_label_is_the_users(user: PlainUser) -> None:
    for row in everything():
        chosen, rejected = (user.gold(request_of(row), response_of(row, side)) for side in ("chosen", "rejected"))
        assert chosen - rejected >= 0.08


def test_every_rating_is_the_users(user: PlainUser) -> None:
    for row in everything():
        for side in ("chosen", "rejected"):
            assert row[f"{side}_rating"] == user.rating(request_of(row), response_of(row, side))


def test_every_response_has_its_own_critiques(user: PlainUser) -> None:
    for row in everything():
        for side in ("chosen", "rejected"):
            texts = row[f"{side}_critiques"]
            possible = [user.critique(request_of(row), response_of(row, side), seed) for seed in range(2)]
            assert texts and texts == possible[: len(texts)]
            assert all(8 <= len(text.split()) <= 40 for text in texts)


def test_critiques_vary() -> None:
    texts = {
        (request_of(row), response_of(row, side)): row[f"{side}_critiques"]
        for row in everything()
        for side in ("chosen", "rejected")
    }
    written = [text for several in texts.values() for text in several]
    assert len(set(written)) > 0.95 * len(written)


def test_length_does_not_predict_the_label() -> None:
    for part, slack in (("train", 0.03), ("heldout", 0.06)):
        longer = [len(response_of(row, "chosen")) > len(response_of(row, "rejected")) for row in rows(part)]
        assert abs(sum(longer) / len(longer) - 0.5) <= slack
        words = [
            len(response_of(row, "chosen").split()) > len(response_of(row, "rejected").split()) for row in rows(part)
        ]
        assert 0.4 <= sum(words) / len(words) <= 0.6


def test_responses_are_clean_and_used_at_most_twice() -> None:
    uses: dict[tuple[str, str], int] = {}
    for row in everything():
        assert response_of(row, "chosen") != response_of(row, "rejected")
        for side in ("chosen", "rejected"):
            text = response_of(row, side)
            assert text == text.strip() and text
            assert not re.search(r"<\|\w+\|>|\ufffd", text)
            uses[request_of(row), text] = uses.get((request_of(row), text), 0) + 1
    assert max(uses.values()) <= 2


def test_every_response_was_sampled() -> None:
    with gzip.open(FOLDER / "responses.jsonl.gz", "rt", encoding="utf-8") as stream:
        sampled = {(entry["request"], entry["response"]) for entry in map(json.loads, stream)}
    for row in everything():
        for side in ("chosen", "rejected"):
            assert (request_of(row), response_of(row, side)) in sampled


def test_the_files_are_what_the_script_makes_of_the_responses(user: PlainUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    make = importlib.import_module("make")
    with gzip.open(FOLDER / "responses.jsonl.gz", "rt", encoding="utf-8") as stream:
        responses = make.judged(map(json.loads, stream), user)
    for part, requests in zip(PARTS, make.split(user), strict=True):
        pairs = make.choose_pairs([responses[request] for request in requests], random.Random(f"{make.SEED} {part}"))
        assert [make.record(pair, user) for pair in pairs] == rows(part)


def test_the_project_reads_the_full_set_and_finds_no_leak() -> None:
    train, heldout = (load_feedback(str(FOLDER / f"{part}.jsonl.gz")) for part in PARTS)
    assert len(train.comparisons) == len(rows("train"))
    assert len(heldout.comparisons) == len(rows("heldout"))
    first = train.comparisons[0]
    assert first.source == "assistant" and first.chosen_critiques and first.chosen_rating is not None
    report = leakage(train, heldout)
    assert not report.found, report.summary()


def test_the_card_says_what_is_there() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    numbers = json.loads((FOLDER / "statistics.json").read_text(encoding="utf-8"))
    for part in PARTS:
        assert numbers[part]["comparisons"] == len(rows(part))
        row = next(line for line in card.splitlines() if line.startswith(f"| {part} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        told = numbers[part]
        assert cells[1:5] == [str(told[key]) for key in ("comparisons", "requests", "responses", "critiques")]
        assert cells[5] == f"{told['longer_wins']:.3f}"
    assert "Apache-2.0" in card


def test_sampling_resumes_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    sampling = importlib.import_module("sampling")
    sampled = sampling.sampled
    config = tiny_config("llama")
    config.max_position_embeddings = 4096
    steps: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        steps.append(len(arguments[1]))
        return sample(*arguments, **options)

    monkeypatch.setattr(sampled, "load_tokenizer", lambda *_: tiny_tokenizer())
    monkeypatch.setattr(sampled, "load_causal_lm", lambda *_, **__: tiny_model(config=config))
    monkeypatch.setattr(sampling, "MOST_TOKENS", dict.fromkeys(sampling.MOST_TOKENS, 3))
    monkeypatch.setattr(sampled, "sample", counted)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    path, requests = tmp_path / "responses.jsonl", ["what is the sea?", "tell me a story"]
    sampling.sample_responses(requests, path, 0)
    whole, needed = sampled.read_responses(path), len(steps)
    assert len(whole) == 10 and sum(steps) == 10
    assert {entry["form"] for entry in whole} == {"own", "brief", "two", "long", "list"}

    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")  # in the middle of a line
    steps.clear()
    sampling.sample_responses(requests, path, 0)
    assert sampled.read_responses(path) == whole
    assert 0 < len(steps) < needed

    steps.clear()
    sampling.sample_responses(requests, path, 0)
    assert steps == []
