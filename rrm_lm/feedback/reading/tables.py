"""Find the rows of a file, a folder in one of the usual layouts, a set saved by `datasets`, or a Hub set.

Nothing is fetched unless the name is one of a Hub set; `datasets` is imported only then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.files import READERS, data_suffix, read_rows
from rrm_lm.feedback.reading.limits import ReadLimits, too_large
from rrm_lm.feedback.store.files import SUFFIX

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "eval", "heldout"), "test"),
}
# Files that this program and the Hub write next to the data.
SIDE_FILES = (
    "counts.json",
    "unacceptable.jsonl",
    "manifest.json",
    "run.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHARD = re.compile(r"(?:^|[-_.])(?:part[-_]?)?\d+(?:-of-\d+)?(?:-[0-9a-f]{8,})?$")


@dataclass(frozen=True)
class SourceTable:
    """The numbered rows of one file or split, and their names in messages and records."""

    rows: Sequence[tuple[int, dict[str, Any]]]
    where: str
    source: str
    revision: str = ""  # commit of a Hub set; "" if unknown


def read_tables(
    name: str,
    *,
    split: str = "train",
    revision: str | None = None,
    config: str | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[SourceTable]:
    """The tables of a file, a folder or a Hub set ("org/name").

    `split` selects a split of a Hub set, or of a folder with files or subfolders named by split. An exact match is
    preferred, then another common name (dev and val for validation), then the only name that begins with it. A folder
    without split names gives all its files. `config` is the configuration of a Hub set, or the subfolder of a folder.
    Raises DataError: no such set, several matching splits or subfolders, a broken file, or too much data.
    """
    path = Path(name).expanduser()
    if path.is_file():
        yield SourceTable(list(read_rows(path, limits)), str(path), file_source(path))
    elif path.exists():
        folder = _data_folder(path, split, config)
        if _is_saved(folder):
            rows, _ = _dataset_rows(folder, split, None, None, limits)
            yield SourceTable(rows, f"{name}[{split}]", path.name.lower())
            return
        for file in _files_of(folder, split):
            yield SourceTable(list(read_rows(file, limits)), str(file), file_source(file))
    else:
        rows, commit = _dataset_rows(_hub_name(name), split, revision, config, limits)
        yield SourceTable(rows, f"{name}[{split}]", Path(name).name.lower(), commit)


def is_local_file(name: str) -> bool:
    """Whether the rows are in files that the user can fix, so neither a Hub set nor a set saved by `datasets`."""
    path = Path(name).expanduser()
    return path.exists() and not _is_saved(path)


def file_source(file: Path) -> str:
    """A file's name for its records; if it only names a split, the name of its folder or of the one above data/."""
    if not _canonical(_part(file)) and _part(file):
        return file.name.partition(".")[0]
    folder = file.absolute().parent
    while folder.name in ("data", *SPLIT_NAMES) and folder.parent != folder.parent.parent:
        folder = folder.parent
    return folder.name


def _data_folder(path: Path, split: str, config: str | None) -> Path:
    """The folder with the files: `path`, its data/, its only subfolder with data, or the subfolder of a split."""
    if config and (path / config).is_dir():
        path = path / config
    if _is_saved(path) or _data_files(path):
        return path
    inner = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = [child for child in inner if _is_saved(child) or _data_files(child) or child.name == "data"]
    by_name = {child.name: child for child in found}
    if not found:
        raise DataError(
            "the folder has no data file", where=str(path), expected="a file with one of " + ", ".join(READERS)
        )
    if len(found) == 1:
        return found[0] if found[0].name != "data" else _data_folder(found[0], split, config)
    if any(_canonical(name) for name in by_name):
        return by_name[_choose(list(by_name), split, str(path))[0]]
    if "data" in by_name:
        return _data_folder(by_name["data"], split, config)
    what = "the folder has several subfolders with data"
    remedy = "name the one to read, or pass --dataset_config with its name"
    raise DataError(what, where=str(path), expected="one of " + ", ".join(by_name), remedy=remedy)


def _files_of(path: Path, split: str) -> list[Path]:
    """The data files of the split, or all of them if their names do not contain a split."""
    found = _data_files(path)
    if not any(_canonical(_part(file)) for file in found) and split.lower() not in map(_part, found):
        return found
    parts = dict.fromkeys(_part(file) for file in found)
    wanted = _choose(list(parts), split, str(path))
    return [file for file in found if _part(file) in wanted]


def _choose(names: Sequence[str], split: str, where: str) -> list[str]:
    """The names that belong to a split. Raises DataError if none of them belongs to the split, or several do."""
    lower = split.lower()
    wanted = SPLIT_NAMES.get(lower, lower)
    exact = [name for name in names if name.lower() == lower]
    usual = [name for name in names if SPLIT_NAMES.get(name.lower()) == wanted]
    beginning = [name for name in names if _canonical(name) == wanted]
    chosen = exact or usual or beginning
    if len(chosen) == 1 or exact:
        return chosen
    known = sorted({SPLIT_NAMES.get(name.lower(), name) for name in names if _canonical(name)})
    if not chosen:
        what = f"no file of the folder belongs to the split {split!r}"
        remedy = "name another split (--dataset_train_split, or --split), or one file"
        raise DataError(what, where=where, expected="one of " + ", ".join(known or names), remedy=remedy)
    what = f"several files of the folder belong to the split {split!r}: {', '.join(chosen)}"
    remedy = f"name one with --dataset_train_split {chosen[0]} (or --split), or pass the files that you want"
    raise DataError(what, where=where, expected="one set of files, which may repeat each other's rows", remedy=remedy)


def _data_files(path: Path) -> list[Path]:
    files = (file for file in path.iterdir() if file.is_file() and file.name not in SIDE_FILES)
    return sorted(file for file in files if data_suffix(file) in READERS and not file.name.startswith("."))


def every_data_file(path: Path) -> list[Path]:
    """The files in a folder and its subfolders that a split of it may be read from, to notice that they changed. The
    subfolders of the current folder, or of one around it, are left out: such a folder is hardly meant as data.
    """
    around = path.resolve() in (Path.cwd(), *Path.cwd().parents)
    found = (file for depth in ("*", "*/*", "*/*/*")[: 1 if around else 3] for file in path.glob(depth))
    data = (file for file in found if data_suffix(file) in (*READERS, ".arrow") and file.name not in SIDE_FILES)
    return sorted(file for file in data if file.is_file())


def _part(file: Path) -> str:
    """A file's name without extension and shard number: "train" for train-00000-of-00002.parquet."""
    suffixes = len(data_suffix(file)) + (3 if file.suffix.lower() == ".gz" else 0)
    return SHARD.sub("", file.name[: len(file.name) - suffixes]).lower()


def _canonical(name: str) -> str:
    """The split in a name: "train" for train_prefs, "" for answers."""
    return SPLIT_NAMES.get(re.split(r"[-_.]", name.lower())[0], "")


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _hub_name(name: str) -> str:
    looks_local = (
        name.startswith((".", "/", "~", "\\")) or data_suffix(Path(name)) in (*READERS, SUFFIX) or name.count("/") > 1
    )
    if looks_local or not HUB_NAME.fullmatch(name):
        expected = "a file, a folder, or a Hub set as org/name"
        raise DataError("there is no such file or folder", where=name, expected=expected, remedy="check the path")
    return name


def _dataset_rows(
    name: str | Path, split: str, revision: str | None, config: str | None, limits: ReadLimits | None
) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """The rows of a split of a Hub set, or of a folder that `datasets` saved; and the commit of a Hub set, if known."""
    import datasets

    where = f"{name}[{split}]"
    try:
        if isinstance(name, Path):
            saved = datasets.load_from_disk(str(name))
            if isinstance(saved, Mapping):
                saved = saved[split if split in saved else _choose(list(map(str, saved)), split, where)[0]]
            table = saved
        else:
            table = datasets.load_dataset(name, config, split=split, revision=revision)
    except DataError:
        raise
    except Exception as error:  # the library raises many types; each message needs the set's name and a remedy
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the set cannot be loaded ({why})", where=where, remedy=_hub_remedy(error)) from error
    limits = limits or ReadLimits()
    if table.data.nbytes > (most := limits.file_bytes()):
        raise too_large(most, where)
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, row in enumerate(table, 1):
        limits.check_row(dict(row), f"{where}, row {number}")
        rows.append((number, dict(row)))
    # `datasets` downloads from hf://datasets/ORG/NAME@COMMIT/FILE.
    commit = re.search(r"@([0-9a-f]{40})/", next(iter(table.info.download_checksums or {}), ""))
    return rows, commit[1] if commit else ""


def _hub_remedy(error: Exception) -> str:
    text = str(error)
    if "script" in text.lower():  # datasets 4 and later run no dataset scripts
        return "code of a set is never run: give revision refs/convert/parquet, or download its files and name them"
    if "split" in text.lower() or isinstance(error, KeyError):
        return "name one of the set's splits with --dataset_train_split (of a set to judge by: --split)"
    if "config" in text.lower():
        return "name one of the set's configurations with --dataset_config"
    return "check the name, and that the Hub can be reached (HF_HUB_OFFLINE is not set); a local file needs no network"
