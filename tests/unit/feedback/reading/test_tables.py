"""Folders as the Hub lays them out, and as people make them: the split that was asked for, never several merged."""

import json
from pathlib import Path

import datasets
import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.reading.prompts import load_prompts


def write(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{name}?", "chosen": "Yes.", "rejected": "No."} for name in names]
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked(folder: Path, split: str = "train", **options) -> list[str]:
    return [c.prompt[0].content.rstrip("?") for c in load_feedback(str(folder), split=split, **options).comparisons]


def test_shards_of_a_split_in_data(tmp_path):
    for number in range(2):
        write(tmp_path / "mine" / "data" / f"train-0000{number}-of-00002.parquet", f"train {number}")
    write(tmp_path / "mine" / "data" / "test-00000-of-00001-0123456789abcdef.parquet", "test")
    (tmp_path / "mine" / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / "mine" / "README.md").write_text("a card")
    assert asked(tmp_path / "mine") == ["train 0", "train 1"]
    assert asked(tmp_path / "mine", "test") == ["test"]
    assert load_feedback(str(tmp_path / "mine")).comparisons[0].source == "mine"


def test_several_splits_that_begin_with_train_are_never_merged(tmp_path):
    for name in ("train_prefs", "train_sft", "test_prefs"):
        write(tmp_path / f"{name}-00000-of-00001.parquet", name)
    with pytest.raises(DataError, match=r"train_prefs, train_sft.*--dataset_train_split train_prefs"):
        load_feedback(str(tmp_path))
    assert asked(tmp_path, "train_sft") == ["train_sft"]
    assert asked(tmp_path, "test") == ["test_prefs"]  # the only one
    write(tmp_path / "train-00000-of-00001.parquet", "train")
    assert asked(tmp_path) == ["train"]  # the exact name comes first


def test_a_split_by_another_usual_name(tmp_path):
    write(tmp_path / "dev.jsonl", "dev")
    write(tmp_path / "dev_hard.jsonl", "hard")
    write(tmp_path / "train.jsonl", "train")
    assert asked(tmp_path, "validation") == ["dev"]
    assert asked(tmp_path, "dev_hard") == ["hard"]
    with pytest.raises(DataError, match=r"split 'test'.*dev_hard, train, validation"):
        load_feedback(str(tmp_path), split="test")


def test_numbered_parts_are_one_split(tmp_path):
    for number in (1, 2):
        write(tmp_path / f"train_part{number}.jsonl", f"part {number}")
        write(tmp_path / f"test-{number}.jsonl", f"test {number}")
    assert asked(tmp_path) == ["part 1", "part 2"] and asked(tmp_path, "test") == ["test 1", "test 2"]


def test_folders_named_by_split_and_by_configuration(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "splits" / split / "0000.parquet", split)
        write(tmp_path / "configs" / "easy" / f"{split}.jsonl", f"easy {split}")
        write(tmp_path / "configs" / "hard" / f"{split}.jsonl", f"hard {split}")
    assert asked(tmp_path / "splits") == ["train"] and asked(tmp_path / "splits", "test") == ["test"]
    assert load_feedback(str(tmp_path / "splits")).comparisons[0].source == "splits"
    with pytest.raises(DataError, match=r"several subfolders with data.*easy, hard.*--dataset_config"):
        load_feedback(str(tmp_path / "configs"))
    assert asked(tmp_path / "configs", "test", config="hard") == ["hard test"]


def test_files_without_a_split_are_all_read_unless_one_has_the_name(tmp_path):
    write(tmp_path / "club.jsonl", "club")
    write(tmp_path / "pub.jsonl", "pub")
    assert asked(tmp_path) == ["club", "pub"]
    assert asked(tmp_path, "pub") == ["pub"]


def test_saved_sets_below_a_folder_and_by_another_name_of_a_split(tmp_path):
    made = {"train": ["a", "b"], "dev": ["c"]}
    saved = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_list([{"prompt": f"{q}?", "chosen": "Y", "rejected": "N"} for q in questions])
            for name, questions in made.items()
        }
    )
    saved.save_to_disk(str(tmp_path / "whole"))
    assert asked(tmp_path / "whole") == ["a", "b"] and asked(tmp_path / "whole", "validation") == ["c"]
    for name in made:
        saved[name].save_to_disk(str(tmp_path / "apart" / name))
    assert asked(tmp_path / "apart", "dev") == ["c"] and asked(tmp_path / "apart") == ["a", "b"]


def test_prompts_alone_in_folders_and_saved_sets(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows = datasets.Dataset.from_list([{"prompt": "Why?", "id": 1}, {"prompt": "Who?", "id": 2}])
    rows.to_parquet(str(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    for folder in ("hub", "saved"):
        assert [prompt[0].content for prompt in load_prompts(str(tmp_path / folder))] == ["Why?", "Who?"]


def test_prompts_alone_of_a_hub_set(monkeypatch):
    rows = datasets.Dataset.from_list([{"instruction": "Why?"}, {"instruction": ""}, {"instruction": "Who?"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert [prompt[0].content for prompt in load_prompts("org/prompts")] == ["Why?", "Who?"]


def test_repeated_rows_are_counted(tmp_path):
    feedback = load_feedback(str(write(tmp_path / "mine.jsonl", "a", "b", "a", "a")))
    assert "the row repeats an earlier one: 2 (row 3, 4)" in feedback.counts.summary()
    assert len(feedback.comparisons) == 4
