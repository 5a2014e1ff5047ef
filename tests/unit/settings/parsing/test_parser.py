"""Settings come from the file and the flags, and every fault is named with its place."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import TrainingArguments
from trl.trainer.model_config import ModelConfig

from rrm_lm.errors import ConfigError
from rrm_lm.settings.parsing.parser import parse, write_resolved


@dataclass
class Data:
    """What to learn from.

    More that help does not show.
    """

    dataset_name: list[str] = field(default_factory=list, metadata={"help": "Files or Hub sets."})
    output_file: str | None = field(default=None, metadata={"help": "Where to write."})
    columns: dict[str, str] | str | None = field(default=None, metadata={"help": "Names of columns."})
    mode: Literal["pairs", "critiques"] = field(default="pairs", metadata={"help": "What is read."})


@dataclass
class Training:
    max_steps: int = 10
    learning_rate: float = field(default=1e-3, metadata={"help": "The step size."})
    shuffle: bool = True
    bf16: bool | None = None
    # In Hugging Face's order: their parser takes the first two members only, and None must be one of them.
    report_to: None | str | list[str] = None  # noqa: RUF036
    space: str | None | Literal[False] = None  # noqa: RUF036

    def __post_init__(self) -> None:
        if self.max_steps == 0:
            raise ValueError("there must be a step")


def read(*flags: str, yaml: str | None = None, folder: Path | None = None) -> tuple[Data, Training]:
    """Parse flags, and a file with the text `yaml` in `folder`."""
    words = list(flags)
    if yaml is not None:
        assert folder is not None
        (folder / "settings.yaml").write_text(textwrap.dedent(yaml), encoding="utf-8")
        words += ["--config", str(folder / "settings.yaml")]
    data, training = parse((Data, Training), words, command="rrm-lm test")
    return data, training


def fault(*flags: str, yaml: str | None = None, folder: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(*flags, yaml=yaml, folder=folder)
    return caught.value


class TestSources:
    def test_defaults(self) -> None:
        assert read() == (Data(), Training())

    def test_flags_override_the_file_which_overrides_defaults(self, tmp_path: Path) -> None:
        yaml = """
            dataset_name: [a.jsonl, b.jsonl]
            learning_rate: 1e-4
            max_steps: 20
        """
        data, training = read("--max_steps", "30", yaml=yaml, folder=tmp_path)
        assert (data.dataset_name, training.learning_rate, training.max_steps) == (["a.jsonl", "b.jsonl"], 1e-4, 30)

    def test_a_list_given_as_flags_replaces_the_files(self, tmp_path: Path) -> None:
        data, _ = read("--dataset_name", "c", "d", yaml="dataset_name: [a, b]", folder=tmp_path)
        assert data.dataset_name == ["c", "d"]

    @pytest.mark.parametrize("flags", [["--no_shuffle"], ["--shuffle", "false"], ["--no-shuffle"], ["--shuffle=no"]])
    def test_switching_off(self, flags: list[str]) -> None:
        assert read(*flags)[1].shuffle is False

    def test_hyphens_work_and_values_may_look_like_flags_if_joined(self) -> None:
        data, training = read("--learning-rate", "0.5", "--output_file=--odd")
        assert (training.learning_rate, data.output_file) == (0.5, "--odd")

    def test_env_sets_variables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")
        read(yaml="env:\n  TOKENIZERS_PARALLELISM: 7\n", folder=tmp_path)
        assert os.environ["TOKENIZERS_PARALLELISM"] == "7"

    def test_config_with_an_equals_sign(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text("max_steps: 3")
        assert read(f"--config={tmp_path / 's.yaml'}")[1].max_steps == 3


class TestValuesInTheFile:
    """A value means what it means as a flag, not what YAML makes of it."""

    @pytest.mark.parametrize(
        ("line", "name", "value"),
        [
            ("learning_rate: 1e-4", "learning_rate", 1e-4),  # a text for YAML 1.1
            ("learning_rate: 3", "learning_rate", 3.0),
            ("learning_rate: .inf", "learning_rate", float("inf")),
            ("max_steps: 1_000", "max_steps", 1000),
            ("max_steps: '20'", "max_steps", 20),
            ("shuffle: off", "shuffle", False),
            ("shuffle: 0", "shuffle", False),
            ("bf16: true", "bf16", True),
            ("bf16: null", "bf16", None),
            ("output_file: 2024-01-01", "output_file", "2024-01-01"),  # a date for YAML
            ("output_file: 0123", "output_file", "0123"),  # 83 for YAML
            ("output_file: no", "output_file", "no"),  # false for YAML
            ("output_file: ~", "output_file", None),
            ("output_file: 'null'", "output_file", "null"),
            ("output_file: |\n  two\n  lines", "output_file", "two\nlines"),
            ("dataset_name: one.jsonl", "dataset_name", ["one.jsonl"]),  # not a list of letters
            ("dataset_name: [1, no]", "dataset_name", ["1", "no"]),
            ("dataset_name: []", "dataset_name", []),
            ("columns: {chosen: good, rejected: bad}", "columns", {"chosen": "good", "rejected": "bad"}),
            ("columns: '{}'", "columns", "{}"),
            ("report_to: [trackio, tensorboard]", "report_to", ["trackio", "tensorboard"]),
            ("report_to: none", "report_to", "none"),
            ("space: false", "space", False),
            ("space: mine", "space", "mine"),
            ("mode: critiques", "mode", "critiques"),
        ],
    )
    def test_meaning(self, tmp_path: Path, line: str, name: str, value: Any) -> None:
        data, training = read(yaml=line, folder=tmp_path)
        found = getattr(data if hasattr(data, name) else training, name)
        assert found == value
        assert type(found) is type(value)

    @pytest.mark.parametrize(
        ("line", "what", "expected"),
        [
            ("max_steps: 1.5", "`max_steps` cannot be '1.5'", "a whole number"),
            ("max_steps: yes", "`max_steps` cannot be 'yes'", "a whole number"),
            ("max_steps: 1:30", "`max_steps` cannot be '1:30'", "a whole number"),  # 90 for YAML
            ("max_steps: null", "`max_steps` cannot be None", "a whole number"),
            ("max_steps:", "`max_steps` cannot be None", "a whole number"),
            ("max_steps: [1, 2]", "`max_steps` cannot be [1, 2]", "a whole number"),
            ("learning_rate: fast", "`learning_rate` cannot be 'fast'", "a number"),
            ("shuffle: maybe", "`shuffle` cannot be 'maybe'", "true or false"),
            ("dataset_name: {a: b}", "`dataset_name` cannot be {'a': 'b'}", "text, one or more"),
            ("output_file: {a: b}", "`output_file` cannot be {'a': 'b'}", "text"),
            ("mode: critique", "`mode` cannot be 'critique'", "pairs, critiques (did you mean `critiques`?)"),
        ],
    )
    def test_misfits(self, tmp_path: Path, line: str, what: str, expected: str) -> None:
        error = fault(yaml=f"# a comment\n{line}\n", folder=tmp_path)
        assert what in error.what
        assert expected in error.expected
        assert error.where == f"{tmp_path / 'settings.yaml'}, line 2"


class TestFaultsOfTheFile:
    def test_unknown_keys_are_named_with_line_and_nearest(self, tmp_path: Path) -> None:
        error = fault(yaml="max_steps: 1\nlearnig_rate: 1e-4\nxyzzy: 1\n", folder=tmp_path)
        assert error.what == (
            "There is no setting `learnig_rate` in line 2 (did you mean `learning_rate`?) and no `xyzzy` in line 3"
        )
        assert error.where == str(tmp_path / "settings.yaml")

    @pytest.mark.parametrize(
        ("yaml", "what", "place"),
        [
            ("max_steps: 1\nmax_steps: 2\n", "`max_steps` is given twice", ", lines 1 and 2"),
            ("columns:\n  a: b\n  a: c\n", "`a` is given twice", ", lines 2 and 3"),
            ("max_steps: [1\nshuffle: no\n", "not valid YAML", ", line 2, column 8"),
            ("max_steps: 1\n\tshuffle: no\n", "not valid YAML", ", line 2, column 1"),
            ("output_file: !!python/name:os.system x\n", "not valid YAML", ", line 1, column 14"),
            ("- max_steps\n", "holds no settings", ""),
            ("# nothing\n", "holds no settings", ""),
            ("just words\n", "holds no settings", ""),
            ("dataset_name:\n- a\n- [b]\n", "`dataset_name` contains a list", ", line 3"),
            ("env: 3\n", "`env` is not a mapping", ", line 1"),
            ("a: 1\n---\nb: 2\n", "not valid YAML", ", line 2, column 1"),
        ],
    )
    def test_faults(self, tmp_path: Path, yaml: str, what: str, place: str) -> None:
        error = fault(yaml=yaml, folder=tmp_path)
        assert what in error.what
        assert error.where == f"{tmp_path / 'settings.yaml'}{place}"

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_bytes(b"max_steps: \xff")
        error = fault("--config", str(tmp_path / "s.yaml"))
        assert "not UTF-8" in error.what
        assert error.where.endswith("s.yaml, byte 12")

    def test_a_missing_file_offers_those_that_are_there(self, tmp_path: Path) -> None:
        (tmp_path / "demo.yaml").write_text("max_steps: 1")
        error = fault("--config", str(tmp_path / "dmo.yaml"))
        assert "No such file" in error.what
        assert str(tmp_path / "demo.yaml") in error.remedy

    @pytest.mark.parametrize(
        ("flags", "what"),
        [
            (["--config"], "names no file"),
            (["--config", "--shuffle"], "names no file"),
            (["--config", "a.yaml", "--config=b.yaml"], "More than one --config"),
        ],
    )
    def test_the_flag_itself(self, flags: list[str], what: str) -> None:
        assert what in fault(*flags).what


class TestFaultsOfFlags:
    @pytest.mark.parametrize(
        ("flags", "what"),
        [
            (["--learnig_rate", "1"], "no flag `--learnig_rate` (did you mean `--learning_rate`?)"),
            (["--learnig-rate=1"], "no flag `--learnig-rate` (did you mean `--learning_rate`?)"),
            (["--learn", "1"], "no flag `--learn` (did you mean `--learning_rate`?)"),  # no abbreviations
            (["-max_steps", "1"], "no flag `-max_steps` (did you mean `--max_steps`?)"),
            (["--xyzzy", "1", "--max_step", "2"], "`--xyzzy` and no `--max_step` (did you mean `--max_steps`?)"),
            (["--max_steps", "x"], "`max_steps` cannot be 'x'"),
            (["--mode", "x"], "`mode` cannot be 'x'"),
            (["--max_steps"], "Argument --max_steps/--max-steps: expected one argument"),
            (["stray", "--max_steps", "1"], "a value that belongs to no flag: stray"),
            (["--max_steps", "1", "2"], "a value that belongs to no flag: 2"),
            (["--max_steps", "0"], "there must be a step"),
        ],
    )
    def test_faults(self, flags: list[str], what: str) -> None:
        error = fault(*flags)
        assert what in error.what
        assert error.where == "the command line"

    @pytest.mark.parametrize("flags", [["--max_steps", "-1"], ["--max_steps=-1"]])
    def test_negative_numbers_are_values(self, flags: list[str]) -> None:
        assert read(*flags)[1].max_steps == -1

    def test_a_missing_setting_is_named(self) -> None:
        @dataclass
        class Needs:
            wanted: str

        with pytest.raises(ConfigError, match="--wanted"):
            parse((Needs,), [], command="rrm-lm test")

    def test_an_args_file_beside_the_program_is_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "program.args").write_text("--max_steps 99")
        monkeypatch.setattr("sys.argv", [str(tmp_path / "program")])
        assert read()[1].max_steps == 10


class TestHelp:
    def page(self, capsys: pytest.CaptureFixture[str], flag: str) -> str:
        with pytest.raises(SystemExit) as caught:
            parse((ModelConfig, Data), ["--nonsense", flag], command="rrm-lm test", examples="rrm-lm test --mode pairs")
        assert caught.value.code == 0
        return capsys.readouterr().out

    def test_examples_come_first_then_our_settings(self, capsys: pytest.CaptureFixture[str]) -> None:
        page = self.page(capsys, "--help")
        assert page.startswith("Examples:\n  rrm-lm test --mode pairs\n\nusage: rrm-lm test ")
        assert page.index("What to learn from:") < page.index("--help_all")
        assert "  --dataset_name TEXT ...   Files or Hub sets.\n" in page
        assert "--mode {pairs,critiques}" in page
        assert "--lora_r" not in page

    def test_common_settings_may_be_chosen(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parse((ModelConfig, Data), ["--help"], command="rrm-lm test", common="mode lora_r")
        page = capsys.readouterr().out
        assert page.index("Common settings:") < page.index("--mode ") < page.index("--lora_r ")
        assert "--dataset_name" not in page

    def test_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        page = self.page(capsys, "--help_all")
        places = [
            page.index(text) for text in ("What to learn from:", "--dataset_name", "ModelConfig:", "--use_rslora")
        ]
        assert places == sorted(places)

    def test_the_text_of_every_training_argument_can_be_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parse((TrainingArguments,), ["--help_all"], command="rrm-lm test")
        page = capsys.readouterr().out
        for argument in dataclasses.fields(TrainingArguments):
            assert not argument.init or f"--{argument.name} " in page


class TestResolved:
    def test_it_reads_back_as_the_same_settings(self, tmp_path: Path) -> None:
        flags = ["--output_dir", str(tmp_path), "--use_cpu", "--lr_scheduler_kwargs", '{"num_cycles": 1}']
        flags += ["--lora_target_modules", "q_proj", "v_proj", "--report_to", "none", "--learning_rate", "3e-5"]
        flags += ["--dataset_name", "no", "0123", "--output_file", "a: 'b' # c", "--hub_token", "secret-token"]
        types = (Data, ModelConfig, TrainingArguments)
        first = parse(types, flags, command="rrm-lm test")
        write_resolved(tmp_path / "resolved.yaml", *first)
        assert "secret-token" not in (tmp_path / "resolved.yaml").read_text()
        again = parse(types, ["--config", str(tmp_path / "resolved.yaml")], command="rrm-lm test")
        first[2].hub_token = None
        for one, other in zip(first, again, strict=True):
            for item in dataclasses.fields(one):
                assert getattr(one, item.name) == getattr(other, item.name), item.name
        assert first[2].learning_rate == 3e-5
        assert again[0].dataset_name == ["no", "0123"]
