"""A file that holds more than it may is refused by name, row, limit and flag, before it is in memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rrm_lm.api.data.heldout import load
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.runs.gold import load_gold
from rrm_lm.settings.data import DataArguments, PromptArguments
from rrm_lm.settings.policies import CollectArguments, CompareArguments
from rrm_lm.settings.scoring import ScoringArguments

MB = 1 << 20


def pair(long: str = "") -> dict[str, Any]:
    return {"prompt": "Why?", "chosen": f"Because.{long}", "rejected": "No."}


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), data)
    return data.getvalue()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
}
every_format = pytest.mark.parametrize("suffix", list(FORMATS))


def written(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"a{suffix}.gz"
    path.write_bytes(gzip.compress(FORMATS[suffix](rows)))
    return path


def refused(path: Path, limits: ReadLimits | None = None) -> DataError:
    with pytest.raises(DataError) as error:
        list(read_rows(path, limits))
    assert str(path) in error.value.where
    return error.value


@every_format
def test_a_cell_that_is_too_long(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, [pair(), pair("!" * 100), pair()])
    error = refused(path, ReadLimits(max_cell_chars=107))
    assert error.where == f"{path}, row 2"
    assert "at most 107 characters" in error.expected and "--max_cell_chars" in error.remedy
    assert len(list(read_rows(path, ReadLimits(max_cell_chars=108)))) == 3


@every_format
def test_a_file_that_is_too_large(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, [pair(f"{n:05}" * 20) for n in range(2000)])
    error = refused(path, ReadLimits(max_file_gb=1e-4))
    assert "at most 0.0001 GB (max_file_gb)" in error.expected and "--max_file_gb" in error.remedy
    assert len(list(read_rows(path, ReadLimits(max_file_gb=1e-2)))) == 2000


def test_messages_are_counted_whole() -> None:
    messages = [{"role": "user", "content": "four"}, {"role": "assistant", "content": ["five!", {"x": "yz"}]}]
    length = len("roleusercontentfourroleassistantcontentfive!xyz")
    ReadLimits(max_cell_chars=length).check_row({"prompt": messages}, "here")
    with pytest.raises(DataError, match=f"the cell 'prompt' has {length} characters"):
        ReadLimits(max_cell_chars=length - 1).check_row({"prompt": messages}, "here")
    deep: Any = "text"
    for _ in range(5000):
        deep = [deep]
    ReadLimits().check_row({"prompt": deep}, "here")


BOMBS = {
    "one line.jsonl": lambda out: [out.write(b" " * MB) for _ in range(100)],
    "zeros.json": lambda out: [out.write(b"\0" * MB) for _ in range(100)],
    "rows.jsonl": lambda out: [out.write(b'{"a": "%s"}\n' % (b"x" * MB)) for _ in range(100)],
    "one cell.csv": lambda out: [out.write(b'a,b\n"'), *(out.write(b"x" * MB + b",\n") for _ in range(100))],
    "zeros.parquet": lambda out: [out.write(b"\0" * MB) for _ in range(100)],
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_small_download_that_would_fill_the_memory(name: str, tmp_path: Path) -> None:
    """100 MB from some 100 kB, of which not much more than the limit is ever held."""
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        BOMBS[name](out)
    assert path.stat().st_size < 2 * MB
    tracemalloc.start()
    try:
        error = refused(path, ReadLimits(max_file_gb=0.01, max_cell_chars=MB))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "--max_" in error.remedy
    assert peak < 50 * MB


def test_a_parquet_file_that_repeats_a_large_value(tmp_path: Path) -> None:
    """By a dictionary: 2 GB of text in a file of some kilobytes."""
    path = tmp_path / "a.parquet"
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * MB])
    pq.write_table(pa.table({"prompt": value}), path, store_schema=False)
    assert path.stat().st_size < MB
    before = pa.total_allocated_bytes()
    error = refused(path, ReadLimits(max_file_gb=0.05))
    assert "max_file_gb" in error.expected
    assert pa.default_memory_pool().max_memory() - before < 300 * MB


def test_unless_set_the_limit_is_a_part_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 10**5))
    error = refused(written(tmp_path, ".jsonl", [pair("!" * 1000)] * 200))
    assert "at most 0.0001 GB" in error.expected and ", row " in error.where
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    assert ReadLimits().file_bytes() == 20 * 10**9


def test_a_hub_set_is_held_to_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([pair(), pair("!" * 100)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    with pytest.raises(DataError, match="the cell 'chosen' has 108 characters") as error:
        load_feedback("org/name", limits=ReadLimits(max_cell_chars=107))
    assert error.value.where == "org/name[train], row 2"
    with pytest.raises(DataError, match="GB in it") as error:
        load_feedback("org/name", limits=ReadLimits(max_file_gb=1e-8))
    assert error.value.where == "org/name[train]"
    assert len(load_feedback("org/name")) == 2


KINDS = (DataArguments, PromptArguments, ScoringArguments, CompareArguments, CollectArguments)


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_that_reads_files_has_the_limits(kind: type[ReadLimits]) -> None:
    assert kind(max_file_gb=0.5, max_cell_chars=7).file_bytes() == 5 * 10**8
    with pytest.raises(ConfigError, match="max_file_gb is 0"):
        kind(max_file_gb=0.0)
    with pytest.raises(ConfigError, match="max_cell_chars is 0"):
        kind(max_cell_chars=0)


def test_and_holds_what_it_reads_to_them(tmp_path: Path) -> None:
    from rrm_lm.api.policy.prompts import read_prompts
    from rrm_lm.runs.compare import CompareRun
    from rrm_lm.runs.data.collect import _choose_prompts, load_overseer
    from rrm_lm.runs.scoring import load_sets

    path = tmp_path / "a.jsonl"
    row = pair("!" * 100) | {"request": "Why?", "mentions": ["x"]}
    path.write_text(json.dumps(row) + "\n")
    name = str(path)
    small = ReadLimits(max_cell_chars=20)

    def compared(args: CompareArguments) -> Any:
        run = object.__new__(CompareRun)
        run.args = args
        return run._load_prompts()

    readers: list[Callable[[], Any]] = [
        lambda: load(DataArguments(max_cell_chars=20), [name], "train"),
        lambda: read_prompts(PromptArguments(prompts=[name], max_cell_chars=20)),
        lambda: load_sets(ScoringArguments(dataset=[name], max_cell_chars=20)),
        lambda: compared(CompareArguments(prompts=[name], max_cell_chars=20)),
        lambda: _choose_prompts(CollectArguments(prompts=[name], max_cell_chars=20)),
        lambda: load_overseer(CollectArguments(overseer=name, max_cell_chars=20)),
        lambda: load_gold(name, small),
        lambda: load_prompts(name, limits=small),
    ]
    for read in readers:
        with pytest.raises(DataError, match=r"--max_cell_chars") as error:
            read()
        assert error.value.where == f"{path}, row 1"
