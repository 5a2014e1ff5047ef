"""`rrm-lm ask` from start to end: sampled items, the order by disagreement, training meanwhile, and refusals."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

pytest.importorskip("fastapi", reason="the extra `ask` is not installed")

from rrm_lm.asking.desk import Desk
from rrm_lm.asking.run import fill
from rrm_lm.asking.sampling import Disagreement, Sampler, sample
from rrm_lm.asking.training import LEAST, Trainer, current_policy
from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import ANSWER, FIRST, Answer, Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.feedback import AskArguments
from tests.smoke.commands import run, write_rows
from tests.smoke.conftest import TrainedReward

PROMPTS = [{"prompt": f"Tell me about {thing}."} for thing in ("rice", "fjords", "trains", "tea", "owls")]


def test_a_policy_answers_ahead_of_need(tiny: Path, tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "prompts.jsonl", PROMPTS))
    args = AskArguments(prompts=[file], model=str(tiny), max_new_tokens=5, store=str(tmp_path / "a.db"))
    with Store(args.store, create=True) as store:
        prompts = fill(store, args)
        assert len(prompts) == 5 and not store.state().items
        sample(args, prompts, str(args.model))
        items = list(store.state().items.values())
        assert {item.prompt for item in items} == set(prompts)
        assert all(item.model == str(tiny) and item.source == file for item in items)
        count = len(store.events())
        sample(args, prompts, str(args.model))  # started again, nothing is sampled twice
        assert len(store.events()) == count
        with pytest.raises(DataError, match="no longer in the file"):
            fill(
                store, AskArguments(prompts=[str(write_rows(tmp_path / "prompts.jsonl", PROMPTS[1:]))], model=str(tiny))
            )


def test_prompts_without_a_model_ask_for_demonstrations(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "prompts.jsonl", PROMPTS))
    with Store(tmp_path / "a.db", create=True) as store:
        assert fill(store, AskArguments(prompts=[file])) == {}
        assert [item.responses for item in store.state().items.values()] == [()] * 5


def test_pairs_on_which_models_differ_come_first(trained: TrainedReward, tiny: Path, tmp_path: Path) -> None:
    items = [
        Item((Message("user", f"Say {n}."),), (f"{n}", f"No, I will not say {n} today, thanks." * (n + 1)))
        for n in range(4)
    ]
    with Store(tmp_path / "a.db", create=True) as store:
        store.add_items([*items, Item((Message("user", "Write."),))])
        desk = Desk(store)
        desk.priority = disagreement = Disagreement([str(trained.folder), str(tiny)])
        disagreement.prepare(list(store.state().items.values()))
        order = [disagreement(item) for item in desk.open_items("anna")]
        assert order == sorted(order, reverse=True) and order[0] > order[-1] == 0


@pytest.mark.slow
def test_sampling_in_its_process(tiny: Path, tmp_path: Path) -> None:
    prompts = {(Message("user", "Name a fruit."),): "file"}
    with Store(tmp_path / "a.db", create=True) as store:
        args = AskArguments(model=str(tiny), max_new_tokens=5, store=str(store.path))
        sampler = Sampler(args, prompts)
        sampler.start()
        deadline = time.monotonic() + 120
        while sampler.is_working and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(store.state().items) == 1 and sampler.error == ""
        args.model = str(tmp_path / "missing")
        broken = Sampler(args, {(Message("user", "Name a tree."),): "file"})
        broken.start()
        while not broken.error and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "missing" in broken.error
        broken.stop()
        assert not broken.is_working


@pytest.mark.slow
def test_a_reward_model_is_trained_meanwhile(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRM_LM_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "reward.yaml"
    config.write_text(f"model_name_or_path: {tiny}\nmax_steps: 2\nuse_cpu: true\ndtype: float32\neval_fraction: 0.4\n")
    args = AskArguments(train=True, train_every=2, train_config=str(config), train_dir=str(tmp_path / "train"))
    with Store(tmp_path / "a.db", create=True) as store:
        trainer = Trainer(Desk(store), args)
        trainer.start()
        items = [Item((Message("user", f"Say {n}."),), (f"It is {n}.", f"No {n}!")) for n in range(LEAST)]
        store.add_items(items)
        for item in items:
            assert not trainer.rounds
            answer = Answer(verdict=FIRST, strength=1.0)
            store.append(ANSWER, person="anna", item=item.id, body=asdict(answer))
        deadline = time.monotonic() + 240
        while not (trainer.rounds or trainer.problem) and time.monotonic() < deadline:
            time.sleep(0.2)
        trainer.stop()
        assert trainer.problem == ""
        [one] = trainer.rounds
        assert one["answers"] == LEAST and one["n"] >= 1 and 0 <= one["low"] <= one["value"] <= one["high"] <= 1
        assert Path(one["model"], "adapter_model.safetensors").is_file()
        assert Trainer(Desk(store), args).rounds == [one]  # known after a restart


def test_a_failed_export_is_shown_and_the_next_answers_start_another_attempt(tmp_path: Path) -> None:
    args = AskArguments(train=True, train_every=1, train_dir=str(tmp_path / "train"))
    (tmp_path / "train" / "round-1").mkdir(parents=True)
    (tmp_path / "train" / "round-1" / "feedback").write_text("a file where a folder belongs")
    with Store(tmp_path / "a.db", create=True) as store:
        items = [Item((Message("user", f"Say {n}."),), (f"It is {n}.", f"No {n}!")) for n in range(LEAST)]
        store.add_items(items)
        for item in items:
            store.append(ANSWER, person="anna", item=item.id, body=asdict(Answer(verdict=FIRST)))
        trainer = Trainer(Desk(store), args)
        trainer.start()
        deadline = time.monotonic() + 60
        while not trainer.problem and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "feedback" in trainer.problem and trainer.is_alive()
        trainer.stop()


@pytest.mark.slow
def test_the_policy_is_trained_against_the_reward_model_and_answers_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRM_LM_CACHE", str(tmp_path / "cache"))
    reward, policy = tmp_path / "reward.yaml", tmp_path / "policy.yaml"
    reward.write_text(f"model_name_or_path: {tiny}\nmax_steps: 2\nuse_cpu: true\ndtype: float32\neval_fraction: 0.4\n")
    policy.write_text(
        "max_steps: 1\nper_device_train_batch_size: 2\nresponse_length: 4\nuse_cpu: true\ndtype: float32\n"
    )
    args = AskArguments(
        prompts=[str(write_rows(tmp_path / "prompts.jsonl", PROMPTS))], model=str(tiny), max_new_tokens=5,
        store=str(tmp_path / "a.db"), train=True, train_config=str(reward), policy_config=str(policy),
        train_dir=str(tmp_path / "train"),
    )  # fmt: skip
    with Store(args.store, create=True) as store:
        prompts = fill(store, args)
        sampler = Sampler(args, prompts)
        sampler.start()
        deadline = time.monotonic() + 280
        while sampler.is_working and time.monotonic() < deadline:
            time.sleep(0.2)
        first = store.state().items
        assert {item.prompt for item in first.values()} == set(prompts) and not sampler.error
        for name, item in first.items():
            if len(item.responses) == 2:
                store.append(ANSWER, person="anna", item=name, body=asdict(Answer(verdict=FIRST, strength=1.0)))
        trainer = Trainer(Desk(store), args)
        trainer._train(len(first))
        assert trainer.problem == "" and Path(trainer.rounds[0]["policy"], "adapter_model.safetensors").is_file()
        while len({item.model for item in store.state().items.values()}) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        sampler.stop()
        assert not sampler.error and current_policy(args) == trainer.rounds[0]["policy"]
        new = [item for name, item in store.state().items.items() if name not in first]
        assert new and all(item.model.startswith(trainer.rounds[0]["policy"]) for item in new)


@pytest.mark.slow
def test_a_training_that_fails_is_named(tmp_path: Path) -> None:
    config = tmp_path / "reward.yaml"
    config.write_text("no_such_setting: 1\n")
    args = AskArguments(train=True, train_config=str(config), train_dir=str(tmp_path / "train"))
    with Store(tmp_path / "a.db", create=True) as store:
        item = Item((Message("user", "Say."),), ("a", "b"))
        store.add_items([item])
        store.append(ANSWER, person="anna", item=item.id, body=asdict(Answer(verdict=FIRST)))
        trainer = Trainer(Desk(store), args)
        trainer._train(1)
        assert "round 1 failed" in trainer.problem
        assert "no_such_setting" in (tmp_path / "train" / "round-1" / "log.txt").read_text()


def start(*words: str) -> tuple[subprocess.Popen[str], str]:
    """The running command and the address that it printed."""
    command = [sys.executable, "-m", "rrm_lm", "ask", "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.search(r"(http://\S+)/ asks you", line)
    assert found, process.stderr.read()
    return process, found[1]


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": "Capital of Norway?", "responses": ["Oslo.", "Rome."]}]
    file, store = write_rows(tmp_path / "file.jsonl", rows), tmp_path / "a.db"
    process, address = start("--responses", str(file), "--store", str(store))
    try:
        page = urlopen(address, timeout=30).read().decode()
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.split('id="undo"')[0]))
        body = urlencode({**fields, "verdict": "4", "critique_0": "Fine."}).encode()
        assert "that was the last one" in urlopen(f"{address}/answer", data=body, timeout=30).read().decode()
        again = run(capsys, "ask", "--responses", file, "--store", store, "--port", 0)
        assert again.code == 2 and "in use by another run" in again.error["error"]
        assert load_feedback(str(store)).critiques[0].critique == "Fine."
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode in (0, 130) and "1 answers in" in out and "Traceback" not in err
        assert "/answer" not in err
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to ask about"),
        (["--responses", "missing.jsonl"], "no such file"),
        (["--prompts", "PROMPTS", "--policy_config", "policy.yaml"], "nothing to train the policy with"),
        (["--prompts", "PROMPTS", "--instructions", "missing.md"], "instructions cannot be read"),
        (["--prompts", "PROMPTS", "--host", "192.0.2.1", "--people", "anna"], "cannot be served on 192.0.2.1"),
        (["--responses", "PROMPTS", "--store", "PROMPTS"], "not a SQLite file"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(write_rows(tmp_path / "prompts.jsonl", PROMPTS))
    result = run(capsys, "ask", *(file if word == "PROMPTS" else word for word in words))
    assert result.code == 2 and message in result.error["error"].lower() + result.error["error"]


def test_without_the_extra(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("rrm_lm.asking")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = run(capsys, "ask", "--responses", "file.jsonl")
    assert result.code == 2 and "pip install 'rrm_lm[ask]'" in result.err
