"""`rrm-lm compare` from names of models and files to the page, on tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.simulated.plain_user import PlainUser
from rrm_lm.training.over_optimisation import FILE_NAME
from tests.openai_server import Reply, fake_server, shown
from tests.smoke.commands import contents, read, read_rows, run, write_rows
from tests.smoke.conftest import TrainedReward
from tests.tiny import save_tiny_model

QUESTIONS = ["what is the moon made of?", "who lives in the sea?", "is the answer blue?", "what was asked?"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": question} for question in QUESTIONS]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The requests of a user who asked all but the last question."""
    rows = [{"request": question, "mentions": ["sea|blue", "moon"]} for question in QUESTIONS[:3]]
    return write_rows(tmp_path_factory.mktemp("requests") / "requests.jsonl", rows)


def compare(capture: Any, *words: object, output: Path) -> Any:
    settings = ("--dtype", "float32", "--max_new_tokens", 6, "--samples", 3, "--output_dir", output)
    return run(capture, "compare", *words, *settings)


def test_all_measures_together(
    policy: Path, prompts: Path, requests: Path, trained: TrainedReward, tmp_path: Path, capsys: Any
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    result = compare(
        capsys, policy, other, "--prompts", prompts, "--gold", requests, "--proxy", trained.folder, "--reward_model",
        trained.merged, "--judge", trained.model, output=tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")
    assert (found["reference"], found["main"], found["n_prompts"]) == (str(trained.model), "gold", 4)
    assert list(found["policies"]) == [str(trained.model), str(policy), str(other)]
    ppo, plain = found["policies"][str(policy)], found["policies"][str(other)]
    assert ppo["samples"] == 12 and ppo["unscored"]["gold"] == 3  # of the question that the user did not ask
    assert ppo["against_reference"]["gold"]["difference"]["clusters"] == 3
    assert ppo["kl"]["n"] == 12 and ppo["kl"]["value"] > 1 and plain["kl"]["value"] > 1
    assert ppo["judged"][str(trained.model)]["pairs"] == 4
    assert len(ppo["best_of_n"]["n"]) == 3
    # Both ways of loading the reward model give the same rewards.
    rows = read_rows(tmp_path / "out" / "samples.jsonl")
    assert len(rows) == 3 * 4 * 3
    zero, at_zero = ppo["greedy"]["gold"]["level"]["value"], read_rows(tmp_path / "out" / "greedy.jsonl")
    assert len(at_zero) == 3 * 4
    mine = [row["rewards"]["gold"] for row in at_zero if row["policy"] == str(policy)]
    assert zero == pytest.approx(sum(filter(None, mine)) / 3)  # of the three questions that the user did ask
    user = PlainUser.from_file(requests)
    for row in rows:
        question, rewards = row["prompt"][0]["content"], row["rewards"]
        assert rewards["gold"] == (user.gold(question, row["response"]) if question in QUESTIONS[:3] else None)
        if row["response"]:
            assert rewards[str(trained.folder)] == pytest.approx(rewards[str(trained.merged)], abs=1e-4)
        assert (row["log_ratio"] is None) == (row["policy"] == str(trained.model))
    assert len(read_rows(tmp_path / "out" / "verdicts.jsonl")) == 8
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Answers before and after" in page and "at temperature 0" in page
    assert f"{policy}: mean gold reward" in result.out and "4 prompts" in result.out


def test_trivial_policies_and_parts_of_gold(
    policy: Path, prompts: Path, requests: Path, tmp_path: Path, capsys: Any
) -> None:
    texts = ("Xyzzy blorp frob. Enjoy!", "{first_sentence} Hope this helps!")
    words = ("--gold", requests, "--trivial", *texts, "--judge", policy)
    result = compare(capsys, policy, "--prompts", prompts, *words, output=tmp_path / "out")
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["policies"]
    reference, _, nonsense, first = found
    assert [one["trivial"] for one in found.values()] == [False, False, True, True]
    assert found[nonsense]["parts"]["answer"]["level"]["value"] == 0 and found[nonsense]["kl"] is None
    assert (found[nonsense]["samples"], found[first]["samples"]) == (4, 12)
    assert list(found[str(policy)]["minus"]) == [nonsense, first]
    user, rows = PlainUser.from_file(requests), read_rows(tmp_path / "out" / "samples.jsonl")
    answers = {(row["policy"], row["prompt"][0]["content"], row["sample"]): row["response"] for row in rows}
    for row in rows:
        question = row["prompt"][0]["content"]
        parts = user.judge(question, row["response"]).parts if question in QUESTIONS[:3] else {}
        assert {name: row["rewards"][f"gold: {name}"] for name in parts} == parts
        if row["policy"] == nonsense:
            assert row["response"] == texts[0] and row["finished"]
        if row["policy"] == first:
            whole = answers[reference, question, row["sample"]]
            assert whole.startswith(row["response"].removesuffix("Hope this helps!").strip())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The parts of gold" in page and nonsense in page and f"{nonsense} compared with" not in page


def test_served_judge(policy: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    """The judge prefers the greater text, refuses one question, and in another always picks the first response."""
    pytest.importorskip("openai", reason="the optional package openai is not installed")
    refused, placed = QUESTIONS[1], QUESTIONS[2]

    def answer(question: str) -> Reply | str:
        if refused in question:
            return Reply(refusal="I would rather not.")
        replies = shown(question)
        return "A" if placed in question or replies["A"] > replies["B"] else "B"

    with fake_server(answer) as server:
        words = ("--judge", "llm:some/judge", "--base_url", server.url)
        result = compare(capsys, policy, "--prompts", prompts, *words, output=tmp_path / "out")
    assert result.code == 0, result.err
    assert {request["model"] for request in server.requests} == {"some/judge"}
    assert len(server.requests) == 1 + 2 * len(QUESTIONS)  # one to see that it is there, and each pair in both orders
    firsts = {
        (row["policy"], row["prompt"][0]["content"]): row["response"]
        for row in read_rows(tmp_path / "out" / "samples.jsonl")
        if row["sample"] == 0
    }
    texts = {name: [firsts[name, question] for question in QUESTIONS] for name, _ in firsts}
    mine, theirs = texts.pop(str(policy)), *texts.values()
    better = [float(own > other) for own, other in zip(mine, theirs, strict=True)]
    verdicts = read_rows(tmp_path / "out" / "verdicts.jsonl")
    assert [row["judge"] for row in verdicts] == ["llm:some/judge"] * 4
    assert [(row["shown_first"], row["shown_second"]) for row in verdicts] == [
        (better[0], better[0]),
        (None, None),
        (1.0, 0.0),
        (better[3], better[3]),
    ]
    judged = read(tmp_path / "out" / "results.json")["policies"][str(policy)]["judged"]["llm:some/judge"]
    assert (judged["pairs"], judged["abstained"], judged["inconsistent"]) == (4, 1, 1)
    assert judged["win_rate"]["value"] == pytest.approx((better[0] + 0.5 + better[3]) / 3)
    assert "3 of 4 pairs decided in both orders" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "llm:some/judge gave no verdict on some questions: 2 refused" in result.err


def test_a_server_that_cannot_judge_is_named_before_anything_is_answered(
    policy: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="the optional package openai is not installed")
    monkeypatch.setattr("rrm_lm.runs.compare.draw", None)
    with fake_server(lambda _: Reply("no such model", status=404)) as server:
        words = ("--judge", "llm:some/judge", "--base_url", server.url)
        result = compare(capsys, policy, "--prompts", prompts, *words, output=tmp_path / "out")
    assert result.code == 2 and len(server.requests) == 1
    assert "does not know the model 'some/judge'" in result.error["error"] and server.url in result.error["where"]


def test_the_same_seed_gives_the_same_answers(policy: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = compare(capsys, policy, "--prompts", prompts, "--seed", seed, output=tmp_path / name)
        assert result.code == 0, result.err
    first, again, other = ((tmp_path / name / "samples.jsonl").read_bytes() for name in "abc")
    assert first == again != other


def test_copy_of_the_reference_has_zero_kl(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(tiny, tmp_path / "copy")
    result = compare(capsys, copy, "--reference", tiny, "--prompts", prompts, output=tmp_path / "out")
    assert result.code == 0, result.err
    kl = read(tmp_path / "out" / "results.json")["policies"][str(copy)]["kl"]
    assert kl["value"] == pytest.approx(0, abs=1e-4)
    assert "nothing shows whether it is better" in result.out


def test_truncated_sampling_has_no_divergence(policy: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    result = compare(capsys, policy, "--prompts", prompts, "--top_k", 5, output=tmp_path / "out")
    assert result.code == 0 and f"no KL divergence for {policy}" in result.err
    assert read(tmp_path / "out" / "results.json")["policies"][str(policy)]["kl"] is None


def test_measurements_of_training_are_shown(policy: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(policy, tmp_path / "ppo")
    probe = {"prompt": 0, "prompt_id": "x", "response": "r", "proxy": 1.0, "kl": 0.0, "tokens": 2, "finished": True}
    write_rows(
        folder / FILE_NAME, [{"step": step, "samples": [{**probe, "gold": -step, "kl": step}]} for step in (0, 5, 10)]
    )
    result = compare(capsys, folder, "--prompts", prompts, output=tmp_path / "out")
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "results.json")["over_optimisation"][str(folder)]
    assert [point["step"] for point in found["points"]] == [0, 5, 10] and found["state"] == "not enough points"
    assert "square root of KL" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_prompts_from_feedback_with_max_prompts(policy: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    result = compare(capsys, policy, "--prompts", pairs, "--max_prompts", 2, output=tmp_path / "out")
    assert result.code == 0, result.err
    drawn = {row["prompt"][0]["content"] for row in read_rows(tmp_path / "out" / "samples.jsonl")}
    assert len(drawn) == 2 and drawn < {row["prompt"] for row in read_rows(pairs)}


def test_long_prompt_loses_its_beginning(policy: Path, tmp_path: Path, capsys: Any) -> None:
    data = write_rows(tmp_path / "long.jsonl", [{"prompt": "the sea is blue because " * 200}])
    result = compare(capsys, policy, "--prompts", data, output=tmp_path / "out")
    assert result.code == 0, result.err
    result = compare(capsys, policy, "--prompts", data, "--max_length", 40, output=tmp_path / "out")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("words", "what", "where"),
    [
        ((), "`policies` is not given", "the command line"),
        (("POLICY",), "`prompts` is not given", "the command line"),
        (("POLICY", "POLICY", "--prompts", "PROMPTS"), "is given twice", "policies and reference"),
        (("POLICY", "TINY", "--prompts", "PROMPTS"), "is both a policy and the reference", "reference"),
        (("TINY", "--prompts", "PROMPTS"), "does not record which model it was trained from", "reference"),
        (("POLICY", "--prompts", "PROMPTS", "--gold", "nothing"), "There is no gold reward 'nothing'", "gold"),
        (("POLICY", "--prompts", "gone.jsonl"), "there is no such file", "gone.jsonl"),
        (("POLICY", "--prompts", "PROMPTS", "--judge", "./gone"), "There is no such folder", "./gone"),
        (("POLICY", "--prompts", "PROMPTS", "--judge", "llm:"), "llm: names no model", "judge"),
        (("POLICY", "--prompts", "PROMPTS", "--judge", "llm:a", "llm:a"), "llm:a is given twice", "judge"),
        (("POLICY", "--prompts", "PROMPTS", "--judge", "llm:a", "--base_url", "a"), "not the address", "base_url"),
        (("POLICY", "--prompts", "PROMPTS", "--temperature", "0"), "Temperature 0 gives one answer", "samples"),
        (("POLICY", "--prompts", "PROMPTS", "--max_length", "6"), "max_length is 6", "max_length"),
        (("REWARD", "--reference", "TINY", "--prompts", "PROMPTS"), "This is a reward model, which scores", "REWARD"),
        (("POLICY", "--prompts", "PROMPTS", "--gold", "OTHERS"), "No response got a reward", "gold: OTHERS"),
    ],
)
def test_comparisons_that_are_refused(
    words: tuple[str, ...], what: str, where: str, policy: Path, prompts: Path, trained: TrainedReward, tmp_path: Path,
    capsys: Any,
) -> None:  # fmt: skip
    others = write_rows(tmp_path / "others.jsonl", [{"request": "another question", "mentions": ["x"]}])
    names = {"POLICY": policy, "PROMPTS": prompts, "TINY": trained.model, "REWARD": trained.folder, "OTHERS": others}
    output = tmp_path / "out"
    assert compare(capsys, policy, "--prompts", prompts, output=output).code == 0
    before = contents(output)
    result = compare(capsys, *(names.get(word, word) for word in words), output=output)
    assert result.code == 2, result.err
    for name, path in names.items():
        what, where = what.replace(name, str(path)), where.replace(name, str(path))
    assert what in result.error["error"]
    assert where in result.error["where"]
    assert contents(output) == before  # earlier results stay until there are new ones


def test_names_of_the_results_folder(
    policy: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(policy, tmp_path / "runs" / "ppo")
    result = run(
        capsys, "compare", "runs/ppo", "--prompts", prompts, "--dtype", "float32", "--max_new_tokens", 3, "--samples", 1
    )
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "outputs" / "compare" / "runs-ppo" / "results.json").read_text())
    assert list(found["policies"])[1] == "runs/ppo"
