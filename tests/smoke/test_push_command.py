"""`rrm-lm push`: what is published, what is refused, and an upload to a server with the Hub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard

from rrm_lm.evaluation.preferences.results import Evaluation
from rrm_lm.evaluation.reports.model_card import Card, model_card
from tests.hub_server import COMMIT, FakeHub, fake_hub
from tests.smoke.commands import Result, run
from tests.unit.evaluation.samples import evaluate, many

# huggingface_hub passes files to httpx2 in a way that httpx2 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

REPO = "me/my-reward"
# In parts, so that this file holds no secret either.
SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 11,
    "an API key": "sk-" + "proj-4Zx" * 4,
    "an AWS key": "AKIA" + "ABCDEFGH12345678",
    "a token of GitHub or Slack": "ghp_" + "a1b2" * 9,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}
STAYS = ("config.yaml", "run.json", "scores.jsonl", "trainer_state.json", "report.html", "training_args.bin")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            huggingface_hub.constants, "HF_HUB_DISABLE_XET", True
        )  # the server takes large files by LFS
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The files of a trained reward model, and of its training."""
    folder = tmp_path / "outputs" / "mine"
    (folder / "checkpoint-4").mkdir(parents=True)
    evaluation = Evaluation("mine", (evaluate(many(20)),))
    card = Card(kind="adapter", base_model="org/base", location=str(folder), sources={"dev": ("org/pairs", "d" * 40)})
    texts: dict[str, Any] = {
        "adapter_config.json": json.dumps({"base_model_name_or_path": "org/base", "task_type": "SEQ_CLS"}),
        "reward_model.json": json.dumps({"base_model": "org/base"}),
        "tokenizer.json": json.dumps({"model": {"vocab": {"/usr/bin/env": 7}}}),
        "chat_template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "results.json": json.dumps(evaluation.to_dict()),
        "README.md": model_card(evaluation, card),
        **dict.fromkeys(STAYS, f"made in {tmp_path}"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def push(capsys: Any, folder: Path, *more: object) -> Result:
    return run(capsys, "push", folder, REPO, *more)


def test_an_upload_is_one_commit_of_what_the_model_needs(output: Path, hub: FakeHub, capsys: Any) -> None:
    result = push(capsys, output)
    assert result.code == 0, result.err
    assert f"{hub.url}/{REPO}/commit/{COMMIT}" in result.out
    assert hub.repos[REPO]["visibility"] == "private"
    assert hub.messages == ["Upload with rrm_lm"]
    kept = {path.name for path in output.iterdir()} - {*STAYS, "checkpoint-4"}
    assert set(hub.files) == kept
    assert all(hub.files[name] == (output / name).read_bytes() for name in kept - {"README.md"})
    assert len(hub.blobs) == 1  # the weights


def test_the_card_names_the_repository_and_holds_the_results(output: Path, hub: FakeHub, capsys: Any) -> None:
    assert push(capsys, output).code == 0
    card = hub.files["README.md"].decode()
    assert f'AutoTokenizer.from_pretrained("{REPO}")' in card and str(output) not in card
    data: Any = ModelCard(card).data
    accuracy = next(one for one in data.eval_results if one.metric_type == "accuracy")
    assert (accuracy.dataset_type, accuracy.dataset_revision) == ("org/pairs", "d" * 40)
    written = json.loads((output / "results.json").read_text())["sets"]["dev"]["accuracy"]
    assert accuracy.metric_value == pytest.approx(written["value"], abs=1e-6)
    assert accuracy.metric_args is not None
    assert accuracy.metric_args["notes"] == (
        f"95% interval {written['low']:.3f} to {written['high']:.3f}, clustered by prompt; n = 20"
    )


def test_a_dry_run_lists_the_files_and_sends_nothing(output: Path, hub: FakeHub, capsys: Any) -> None:
    result = push(capsys, output, "--dry_run", "true")
    assert result.code == 0, result.err
    assert "         10,240 bytes  adapter_model.safetensors" in result.out.splitlines()
    assert "README.md" in result.out and "run.json" not in result.out
    assert "not published: checkpoint-4, config.yaml" in result.err and "nothing was sent" in result.err
    assert hub.requests == []


@pytest.mark.parametrize("what", SECRETS)
def test_secrets_are_refused_and_not_repeated(what: str, output: Path, hub: FakeHub, capsys: Any) -> None:
    (output / "results.json").write_text(f'{{\n"note": "use {SECRETS[what]} here"}}')
    refused = push(capsys, output)
    assert refused.code == 2
    assert f"results.json, line 2: {what}" in refused.error["error"]
    assert SECRETS[what] not in refused.err or what == "a private key"  # whose first line says nothing
    assert hub.requests == []


@pytest.mark.parametrize(
    "text",
    [
        "/home/anna/pairs.jsonl",
        "see file:///tmp/x/y",
        r"a\n/Users/anna/m",
        "(/tmp/a/b)",
        r"C:\\Users\\anna",
        "x=/tmp/a/b",
    ],
)
def test_paths_of_this_machine_are_refused(text: str, output: Path, hub: FakeHub, capsys: Any) -> None:
    (output / "reward_model.json").write_text('{"base_model": "' + text + '"}')
    refused = push(capsys, output, "--dry_run", "true")
    assert refused.code == 2
    assert "reward_model.json, line 1: a path of this machine" in refused.error["error"]
    assert "edit these files" in refused.error["what to do"] and hub.requests == []


@pytest.mark.parametrize(
    "text",
    ["https://host.org/tmp/a/b", "outputs/tmp/a", "and/or", "POST /v1/rewards", "1/2/3", "</tmp>", "~/x", "a task-123"],
)
def test_other_texts_are_published(text: str, output: Path, hub: FakeHub, capsys: Any) -> None:
    (output / "reward_model.json").write_text(json.dumps({"note": text}))
    assert push(capsys, output).code == 0
    assert json.loads(hub.files["reward_model.json"])["note"] == text


def test_many_problems_are_counted(output: Path, hub: FakeHub, capsys: Any) -> None:
    (output / "results.json").write_text("/tmp/a/b\n" * 9)
    assert "line 5: a path of this machine (/tmp/a/b); and 4 more" in push(capsys, output).error["error"]


def test_an_adapter_on_a_local_backbone_is_refused(policy: Path, capsys: Any) -> None:
    refused = push(capsys, policy, "--dry_run", "true")
    assert refused.code == 2
    assert "is a folder" in refused.error["error"] and "--merge true" in refused.error["what to do"]


def test_a_model_without_a_card_gets_one(output: Path, hub: FakeHub, capsys: Any) -> None:
    for name in ("README.md", "reward_model.json", "results.json"):
        (output / name).unlink()
    (output / "policy.json").write_text(json.dumps({"base_model": "org/base", "method": "ppo"}))
    assert push(capsys, output).code == 0
    _, front, body = hub.files["README.md"].decode().split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["base_model"], found["library_name"], found["pipeline_tag"]) == (
        "org/base",
        "peft",
        "text-generation",
    )
    assert found["tags"] == ["rrm_lm", "ppo"]
    assert f'rrm_lm.Policy.from_pretrained("{REPO}")' in body and "No evaluation is recorded" in body


def test_what_the_hub_refuses_is_one_message(
    output: Path, hub: FakeHub, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    refused = push(capsys, output)
    assert refused.code == 2 and hub.files == {}
    assert "401" in refused.error["error"] and "hf auth login" in refused.error["what to do"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "offline" in push(capsys, output).error["error"]


def test_an_existing_repository_gets_another_commit(output: Path, hub: FakeHub, capsys: Any) -> None:
    assert [push(capsys, output, "--commit_message", text).code for text in ("one", "two")] == [0, 0]
    assert hub.messages == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "0 names"),
        (("outputs/mine",), "1 names"),
        (("outputs/mine", "no-owner"), "names no owner"),
        (("outputs/mine", "a/b/c"), "a/b/c"),
        (("outputs/no-such-folder", REPO), "There is no model to publish"),
    ],
)
def test_words_that_name_nothing(words: tuple[str, ...], said: str, capsys: Any) -> None:
    refused = run(capsys, "push", *words)
    assert refused.code == 2 and said in refused.error["error"]
