"""The rewards recorded at saving are compared with the served ones, at the start and by `rrm-lm check-server`."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from rrm_lm.api.reward.saving import members_by_template, record_rewards
from rrm_lm.cli.main import main
from rrm_lm.errors import ModelError
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.models.portable import RECORDED
from rrm_lm.models.reward_files import EXAMPLES_FILE, read_examples
from rrm_lm.serving.app import create_app
from rrm_lm.serving.checks import check_app
from rrm_lm.serving.models import load_models
from rrm_lm.settings.serving import ServeArguments
from tests.unit.serving.conftest import served


@pytest.fixture
def recorded(reward_folder: Path, tmp_path: Path) -> Path:
    """The model with its recorded rewards."""
    folder = tmp_path / "mine"
    shutil.copytree(reward_folder, folder)
    scorer: Any = load_scorer(str(folder))
    members = members_by_template(scorer.model, scorer.chat, RECORDED)
    record_rewards(members, scorer.model, folder, scorer.chat, RECORDED)
    return folder


def check(folder: Path) -> None:
    args = ServeArguments(model=[str(folder)])
    models = load_models(args)
    asyncio.run(check_app(create_app(models, args, "word"), models, "word"))


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")


def test_recorded_rewards_are_those_of_score(recorded: Path) -> None:
    rows = read_examples(recorded)
    assert [talk for talk, _, _ in rows] == list(RECORDED) and len(rows) == 8
    scorer = load_scorer(str(recorded))
    for (prompt, response), _, reward in rows:
        assert scorer.score([prompt], [[response]])[0][0] == pytest.approx(reward, abs=1e-5)


def test_an_unchanged_model_passes_with_and_without_recorded_rewards(recorded: Path, reward_folder: Path) -> None:
    check(recorded)
    check(reward_folder)


def test_other_weights_are_refused(recorded: Path) -> None:
    rows = json.loads((recorded / EXAMPLES_FILE).read_text())
    rows["examples"][3]["reward"] += 2e-3
    (recorded / EXAMPLES_FILE).write_text(json.dumps(rows))
    with pytest.raises(ModelError, match=r"differ from the recorded ones by up to 0.002.*/v1/rewards"):
        check(recorded)


def test_another_template_is_refused_and_the_first_other_token_is_named(recorded: Path) -> None:
    change(recorded, "chat_template.jinja", "message['role'] + '\n'", "message['role'] + ':\n'")
    with pytest.raises(ModelError, match="token 3 is ':' in place of '\\\\n'"):
        check(recorded)


def test_check_server_accepts_this_server_and_refuses_other_rewards(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ServeArguments(model=[str(recorded)])
    with served(create_app(load_models(args), args)) as url:
        for dialect in ("own", "vllm", "sglang", "verl", "tei", "openrlhf", "llamafactory"):
            address = url if dialect == "own" else f"{url}/{dialect}"
            assert main(["check-server", address, "--dialect", dialect, "--model", str(recorded)]) == 0
            assert "gives the recorded rewards" in capsys.readouterr().out
        rows = json.loads((recorded / EXAMPLES_FILE).read_text())
        rows["examples"][0]["reward"] -= 1
        (recorded / EXAMPLES_FILE).write_text(json.dumps(rows))
        assert main(["check-server", url, "--model", str(recorded)]) == 2
        assert "differ from the recorded ones by up to 1" in capsys.readouterr().err


def foreign(change: Any) -> FastAPI:
    """A server with vLLM's address whose rewards are a function of the recorded ones."""
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request) -> Any:
        count = len((await request.json())["input"])
        return {"data": [{"index": i, "probs": [change(i)], "num_classes": 1} for i in range(count)]}

    return app


def test_check_server_names_a_sigmoid_and_unreadable_answers(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import math

    rewards = [reward for _, _, reward in read_examples(recorded)]
    words = ["check-server", "--dialect", "vllm", "--model", str(recorded), "--url"]
    with served(foreign(lambda i: 1 / (1 + math.exp(-rewards[i])))) as url:
        assert main([*words, url]) == 2
    assert "went through a sigmoid" in capsys.readouterr().err
    with served(foreign(lambda i: None)) as url:
        assert main([*words, url]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main([*words, "http://127.0.0.1:9"]) == 2
    assert "does not answer" in capsys.readouterr().err
