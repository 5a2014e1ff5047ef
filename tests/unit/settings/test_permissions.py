"""A settings file runs no code, redirects nothing and names no key without the user's word on the command line."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.cli.commands import COMMANDS
from rrm_lm.cli.main import main
from rrm_lm.cli.pipeline import pipeline as pipeline_run
from rrm_lm.cli.pipeline.pipeline import run
from rrm_lm.errors import ConfigError
from rrm_lm.launch import launcher
from rrm_lm.runs import recurse as recurse_run
from rrm_lm.runs.compare import CompareRun
from rrm_lm.runs.critics import find_critic
from rrm_lm.runs.data.collect import load_overseer
from rrm_lm.settings.parsing import parser
from rrm_lm.settings.permissions import runs_code
from rrm_lm.settings.policies import CollectArguments, CompareArguments
from rrm_lm.settings.workflows import PipelineArguments, RecurseArguments

REQUESTS = "data/assistant/requests.jsonl"
NEEDED = {  # what a command has to be given beside, so that its settings are read whole
    "collect": ["--policy", "p", "--prompts", "q.jsonl"],
    "compare": ["--policies", "p", "--prompts", "q.jsonl"],
}
CODE = [
    ("policy", "reward_function: mine.py:f", ["--reward_function", "own.py:f"]),
    ("policy", "reward_function: [os:getcwd]", ["--reward-function=own.py:f"]),
    ("policy", "gold: mine.py:f", ["--gold", REQUESTS]),
    ("policy", "gold: llm:model", ["--gold", REQUESTS]),  # a module of that name
    ("policy", "trust_remote_code: true", ["--trust_remote_code", "true"]),
    ("policy", "trust_remote_code: 'yes'", ["--trust-remote-code=false"]),
    ("reward", "trust_remote_code: 1", ["--trust_remote_code"]),
    ("sft", "attn_implementation: kernels-community/flash-attn2", ["--attn_implementation", "sdpa"]),
    ("collect", "overseer: my.module:f", ["--overseer", "llm:model"]),
    ("compare", "gold: ~/mine.py:f", ["--gold", "other.py:f"]),
    ("recurse", "domain: mine.py:World", ["--domain", "chip"]),
    ("chat", "trust_remote_code: on", ["--trust_remote_code", "false"]),
    ("plan", "trust_remote_code: true", ["--trust_remote_code", "true"]),
    ("evaluate", "trust_remote_code: true", ["--trust_remote_code", "true"]),
    ("score", "trust_remote_code: true", ["--trust_remote_code", "true"]),
]


def kinds(command: str, monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The dataclasses of a command's settings."""
    found: list[type] = []

    def parse(types: list[type], *_: Any, **__: Any) -> None:
        found.extend(types)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(parser, "parse", parse)
        patch.setattr(pipeline_run, "parse", parse)
        COMMANDS[command].run(["--config", "a.yaml"])
    return found


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads the settings of a command from a file with the given text, and from flags."""

    def read(command: str, text: str, *flags: str) -> dict[str, Any]:
        file = tmp_path / "settings.yaml"
        file.write_text(f"# a comment\n{text}\n", encoding="utf-8")
        words = ["--config", str(file), *NEEDED.get(command, []), *flags]
        found = parser.parse(kinds(command, monkeypatch), words, command=f"rrm-lm {command}")
        return {key: value for one in found for key, value in vars(one).items()}

    return read


@pytest.mark.parametrize(("command", "line", "own"), CODE)
def test_code_in_a_file_needs_permission(
    command: str, line: str, own: list[str], settings: Any, tmp_path: Path
) -> None:
    key = line.partition(":")[0]
    with pytest.raises(ConfigError, match=f"would run code: `{key}`") as error:
        settings(command, line)
    assert error.value.where == f"{tmp_path / 'settings.yaml'}, line 2"
    assert "--allow_code" in error.value.expected and f"--{key} itself" in error.value.remedy
    with pytest.raises(ConfigError, match="would run code"):
        settings(command, line, "--allow_code", "false")
    assert settings(command, line, "--allow_code")[key]
    settings(command, line, *own)  # the file's value counts no longer


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("policy", f"gold: {REQUESTS}"),
        ("collect", f"overseer: {REQUESTS}"),
        ("collect", "overseer: llm:Qwen/Qwen3-8B"),
        ("recurse", "domain: chip"),
        ("reward", "trust_remote_code: false"),
        ("reward", "attn_implementation: flash_attention_2"),
        ("reward", "allow_code: false"),
        ("compare", "judge_key_env: null"),
    ],
)
def test_data_and_what_comes_with_the_project_need_none(command: str, line: str, settings: Any) -> None:
    settings(command, line)


def test_a_file_of_requests_may_have_a_colon_in_its_name_and_a_function_may_not_hide_behind_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("os:getcwd").touch()
    assert not runs_code("gold", "os:getcwd")  # load_gold reads a file of that name
    assert runs_code("reward_function", ["os:getcwd"]) and runs_code("domain", "os:getcwd")  # these look for none


@pytest.mark.parametrize(
    ("command", "line", "flags"),
    [
        ("policy", "allow_code: true", ["--allow_code"]),
        ("compare", "judge_key_env: MY_KEY", ["--judge_key_env", "MY_KEY"]),
        ("collect", "judge_key_env: MY_KEY", ["--judge_key_env", "OTHER"]),
        ("policy", "rollout_key_env: MY_KEY", ["--rollout_key_env", "MY_KEY"]),
    ],
)
def test_a_file_gives_no_permission_and_names_no_key(command: str, line: str, flags: list[str], settings: Any) -> None:
    key = line.partition(":")[0]
    with pytest.raises(ConfigError, match=f"sets `{key}`, which is only allowed on the command line"):
        settings(command, line)
    if key.endswith("_key_env"):
        with pytest.raises(ConfigError, match="only allowed on the command line"):
            settings(command, line, "--allow_code")
        assert settings(command, line, *flags)[key] == flags[1]
    else:
        settings(command, line, *flags)


@pytest.mark.parametrize(
    "name",
    [
        *("PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "PATH", "HF_ENDPOINT", "HF_TOKEN", "OPENAI_BASE_URL"),
        *("https_proxy", "OMP_TOOL_LIBRARIES", "NCCL_NET_PLUGIN", "WANDB_BASE_URL", "WANDB__EXECUTABLE", "RRM_LM_HOME"),
    ],
)
def test_variables_that_may_run_code_or_redirect_need_permission(
    name: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "as it was")
    with pytest.raises(ConfigError, match=f"environment variable {name}") as error:
        settings("reward", f"env: {{OMP_NUM_THREADS: 1, {name}: x}}")
    assert error.value.where.endswith("settings.yaml, line 2") and "--allow_code" in error.value.remedy
    assert os.environ[name] == "as it was"
    if name != "PATH":
        settings("reward", f"env: {{{name}: x}}", "--allow_code")
        assert os.environ[name] == "x"


def test_every_setting_that_says_it_takes_code_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("file.py:", "module:", "Run code")
    found = set()
    for command in COMMANDS:
        if command != "fetch":
            for one in (item for kind in kinds(command, monkeypatch) for item in dataclasses.fields(kind)):
                if one.init and any(word in str(one.metadata.get("help")) for word in words):
                    found.add(one.name)
    found.discard("allow_code")
    assert found == {"reward_function", "gold", "overseer", "domain", "trust_remote_code"}
    assert all(runs_code(name, True if name == "trust_remote_code" else "a.py:f") for name in found)


def test_what_a_run_writes_says_with_which_flags_it_is_repeated(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    parser.write_resolved(file, RecurseArguments(domain="mine.py:World", allow_code=True))
    head, body = file.read_text().split("\n", 1)
    words = shlex.split(head.partition("To repeat it: ")[2].replace("THIS_FILE", str(file)))
    assert words[-1] == "--allow_code" and "allow_code" not in body
    (again,) = parser.parse([RecurseArguments], words, command="rrm-lm recurse")
    assert again.domain == "mine.py:World"
    parser.write_resolved(file, RecurseArguments())
    assert "allow_code" not in file.read_text()


PIPELINE = """\
output_dir: {root}/out

# a comment
reward:
  dataset_name: [train.jsonl]
  # another
  learning_rate: 1e-4
  model_name_or_path: smollm2-135m

  trust_remote_code: true
collect:
  policy: p
  prompts: [q.jsonl]
  overseer: mine.py:f
"""


class TestPipelines:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "run.yaml"
        file.write_text(PIPELINE.format(root=tmp_path))
        return file

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """The words of the stages that would start in a process of their own."""
        calls: list[list[str]] = []
        monkeypatch.setattr("rrm_lm.launch.signals.call", lambda words: calls.append(words) or 1)
        return calls

    def test_a_section_needs_permission_and_its_line_is_named(
        self, file: Path, tmp_path: Path, started: list[list[str]]
    ) -> None:
        with pytest.raises(ConfigError, match="`trust_remote_code`") as error:
            run(["--config", str(file)])
        assert error.value.where == f"{file}, section reward, line 10"
        assert not started and not (tmp_path / "out").exists()

    def test_stages_in_processes_of_their_own_get_the_permission(self, file: Path, started: list[list[str]]) -> None:
        assert run(["--config", str(file), "--allow_code"]) == 1
        assert "--allow_code" in started[0] and "--config" in started[0]

    def test_a_stage_that_is_given_its_own_word_needs_none(self, file: Path, started: list[list[str]]) -> None:
        assert run(["--config", str(file), "--reward.trust_remote_code", "true"]) == 1
        assert "--allow_code" not in started[0]

    def test_permission_is_no_input_of_a_stage(self, file: Path) -> None:
        pipeline = importlib.import_module("rrm_lm.cli.pipeline.pipeline")
        one, other = (
            pipeline.plan(PipelineArguments(output_dir="out", allow_code=allowed), file, {})[0]
            for allowed in (True, False)
        )
        assert one.inputs() == other.inputs() and one.words(file) != other.words(file)


def test_launched_processes_get_the_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[list[str]] = []
    monkeypatch.setattr(launcher, "_run", lambda _, words: launched.append(words) or 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(launcher.COMMAND, "")
    words = ["policy", "--accelerate_config", "cpu2", "--config", "a.yaml", "--allow_code"]
    assert main(words) == 0
    assert launched[0][-3:] == ["--config", "a.yaml", "--allow_code"]
    assert os.environ[launcher.COMMAND].endswith("--allow_code")  # of which the command that goes on is made


def test_nodes_solved_elsewhere_get_the_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's settings are in a file for them, also what its command line gave."""
    started: list[list[str]] = []

    class Ended:
        returncode = 0

        def __init__(self, words: list[str], **_: Any) -> None:
            started.append(words)

        def poll(self) -> int:
            return 0

        def __class_getitem__(cls, _: Any) -> type:
            return cls

    monkeypatch.setattr(recurse_run.subprocess, "Popen", Ended)
    tree = {"top": {"task": "main", "helpers": ["heat"]}, "heat": {}}
    args = RecurseArguments(tree=tree, output_dir=str(tmp_path), processes=2)
    one = recurse_run.RecurseRun(args, recurse_run.ModelArguments())
    one._solve_in_processes([node for node in one.tree.walk() if node.name == "heat"])
    assert "--allow_code" in started[0] and str(tmp_path / "config.yaml") in started[0]


def test_the_domain_of_a_helper_is_not_run_without_permission(tmp_path: Path) -> None:
    node = tmp_path / "nodes" / "heat"
    node.mkdir(parents=True)
    (node / "node.json").write_text("{}")
    (tmp_path / "world.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "config.yaml").write_text(f"domain: {tmp_path}/world.py:World\n")
    with pytest.raises(ConfigError, match="`domain`") as error:
        find_critic(str(node))
    assert error.value.where == f"{tmp_path / 'config.yaml'}, line 1"
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="no function 'World'"):
        find_critic(str(node), allow_code=True)
    assert (tmp_path / "ran").exists()


def test_the_named_key_goes_to_the_judge_of_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the optional package openai is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    url = "https://judge.invalid/v1"
    for name, sent in ((None, "none"), ("OTHER_KEY", "sk-other")):
        comparison = object.__new__(CompareRun)
        comparison.args, comparison.critiques = CompareArguments(base_url=url, judge_key_env=name), None
        overseer: Any = load_overseer(CollectArguments(overseer="llm:model", base_url=url, judge_key_env=name))
        assert [one._client.api_key for one in (overseer, comparison._served_judge("llm:model"))] == [sent, sent]


@pytest.mark.parametrize(("command", "own"), [("collect", "samples"), ("evaluate", "critic"), ("reward", "split_seed")])
def test_help_has_the_commands_own_settings_above_the_shared_ones(
    command: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help_all"])
    page = capsys.readouterr().out
    places = [page.index(f"  --{name} ") for name in (own, "max_cell_chars", "allow_code")]
    assert places == sorted(places)
