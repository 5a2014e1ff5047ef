"""What the scripts in the folders of this one share: sampling responses from SmolLM2, and files with equal bytes."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rrm_lm import storage
from rrm_lm.feedback.records import Message
from rrm_lm.models.decoding.generation import sample
from rrm_lm.models.pretrained import DEFAULT_MODEL, load_causal_lm
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.chat import ChatFormat

ROWS_PER_STEP = 48  # sampled and saved together


@dataclass(frozen=True)
class Row:
    """One conversation to respond to.

    Attributes:
        id: Number of the row, unique in its file.
        messages: The conversation, ending with a user turn.
        group: Rows of one group have the same `most_tokens` and are sampled together, by temperature.
        most_tokens: Longest response in tokens.
        temperature: Sampling temperature.
        fields: Saved with the response.
    """

    id: int
    messages: tuple[Message, ...]
    group: str
    most_tokens: int
    temperature: float
    fields: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manner:
    """The style of a response. With `form` "own" there are no examples, and the model responds in its own style."""

    form: str
    opening: str = ""
    closing: str = ""
    temperature: float = 0.7

    def messages(self, request: str, examples: Iterable[tuple[str, Mapping[str, str]]]) -> tuple[Message, ...]:
        """The conversation that the model responds to: examples (a question, an answer in each form), the request."""
        shown: list[Message] = []
        gap = "\n\n" if self.form == "list" else " "
        for question, answers in examples:
            answer = " ".join(part for part in (self.opening, answers[self.form]) if part)
            answer += (gap + self.closing) * bool(self.closing)
            shown += [Message("user", question), Message("assistant", answer)]
        return (*shown, Message("user", request))


def sample_rows(
    rows: Sequence[Row], path: Path, seed: int, num_return: int = 1, threads: int = 2, adapter: Path | None = None
) -> None:
    """Sample `num_return` responses to every row and append them to `path`, one JSON object per line.

    Steps that are already in `path` are not sampled again, so a stopped run can be resumed. The model is SmolLM2, with
    an adapter if one is given.
    """
    done = set()
    if path.exists():
        whole = read_responses(path)
        storage.write_jsonl(path, whole)  # drops an incomplete last line, to which the next one would be appended
        done = {(entry["id"], entry.get("sample", 0)) for entry in whole}
    needed = range(num_return)
    steps = [s for s in _steps(rows) if not all((row.id, number) in done for row in s for number in needed)]
    if not steps:
        return
    torch.set_num_threads(threads)
    tokenizer: Any = load_tokenizer(DEFAULT_MODEL)
    model: Any = load_causal_lm(DEFAULT_MODEL, dtype="float32")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    chat = ChatFormat(tokenizer)
    for number, step in enumerate(steps):
        outputs = sample(
            model,
            [chat.prompt_ids(row.messages) for row in step],
            pad_id=int(tokenizer.pad_token_id),
            eos_ids=[chat.end_id],
            max_new_tokens=step[0].most_tokens,
            temperature=step[0].temperature,
            top_p=0.95,
            seed=seed + step[0].id,
            num_return=num_return,
            batch_tokens=20_000,
        )
        with path.open("a", encoding="utf-8") as stream:
            for row, responses in zip(step, outputs, strict=True):
                for place, ids in enumerate(responses):
                    finished = ids[-1] == chat.end_id
                    text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
                    place_of = {"sample": place} if num_return > 1 else {}
                    entry = {"id": row.id, **place_of, **row.fields, "finished": finished, "response": text.strip()}
                    stream.write(json.dumps(entry) + "\n")
        print(f"sampled {number + 1} of {len(steps)} steps ({len(step)} rows each)", file=sys.stderr, flush=True)


def read_responses(path: Path) -> list[dict]:
    """The sampled responses, ordered by id. Later lines replace earlier ones; incomplete lines are dropped."""
    entries: dict[tuple[int, int], dict] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        entries[entry["id"], entry.get("sample", 0)] = entry
    return [entries[key] for key in sorted(entries)]


def write_gzipped(path: Path, rows: Iterable[dict]) -> None:
    """Write gzipped JSON lines without a timestamp, so that equal data gives equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with storage.staged_file(path) as staged:
        staged.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def _steps(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that are sampled together, of one group and temperature."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.group, row.temperature), []).append(row)
    for group in groups.values():
        for start in range(0, len(group), ROWS_PER_STEP):
            yield group[start : start + ROWS_PER_STEP]
