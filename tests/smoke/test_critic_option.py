"""`--critic` in evaluate, compare and collect: judges see critiques as data, and the results say so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.evaluation.preferences.judge import NOTES_QUESTION
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.recursion.notes import Note, with_notes
from tests.openai_server import fake_server, shown
from tests.smoke.commands import pair_rows, read, read_rows, rewards_of, run, write_rows
from tests.smoke.conftest import TrainedReward
from tests.smoke.test_recurse_command import TOY, TREE
from tests.tiny import lora, prompt_of, tiny_tokenizer

QUESTIONS = ["what is the moon made of?", "who lives in the sea?", "is the answer blue?"]


@pytest.fixture(scope="module")
def critic(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with random weights, which writes a different critique of every response."""
    torch.manual_seed(5)
    backbone = Backbone(load_causal_lm(str(tiny), dtype="float32"), pad_id=0)
    settings = RewardSettings(str(tiny), max_length=160, max_critique_length=8)
    folder = tmp_path_factory.mktemp("critics") / "mine"
    RewardModel.create(backbone, lora(), settings).save(folder, tiny_tokenizer())
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": question} for question in QUESTIONS]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def evaluate(capture: Any, model: Path, data: Path, output: Path, *more: object) -> Any:
    words = ("--model", model, "--dataset", data, "--output_dir", output, "--dtype", "float32")
    return run(capture, "evaluate", *words, *more)


def noted_texts(folder: Path) -> dict[str, str]:
    """By response, the text with notes that judges were shown, reconstructed from the critiques file."""
    rows = read_rows(folder)
    assert all(row["shown"] == bool(row["critique"]) for row in rows)
    return {
        row["response"]: with_notes(row["response"], [Note("critic", row["critique"], "")] if row["critique"] else [])
        for row in rows
    }


# -- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["judge", "reward"])
def test_evaluate_shows_critiques_to_whatever_scores(
    kind: str, critic: Path, trained: TrainedReward, tmp_path: Path, capsys: Any
) -> None:
    model, out = trained.model if kind == "judge" else trained.folder, tmp_path / "out"
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(5, seed=7))
    result = evaluate(capsys, model, data, out, "--critic", critic)
    assert result.code == 0, result.err
    found = read(out / "results.json")
    assert found["model"] == f"{model.name} with mine" and found["critic"]["name"] == "mine"
    assert found["critic"]["responses"] == 10 and found["critic"]["different"] > 5 and not found["critic"]["ignored"]
    assert "the critic mine: 10 responses" in result.err and f"{model.name} with mine on held-out" in result.out
    shown_texts = noted_texts(out / "critiques.jsonl")
    scorer = load_scorer(str(model), dtype="float32", judge_question=NOTES_QUESTION)
    for row, rewards in zip(read_rows(data), rewards_of(out), strict=True):
        sides = [shown_texts[row[side]] for side in ("chosen", "rejected")]
        expected = scorer.score([prompt_of(row["prompt"])], [sides])[0]
        assert rewards == pytest.approx(expected, abs=1e-4)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Helped by the critic mine" in page and "the judge was shown the critic's critique of it" in page
    assert (out / f"{model.name}-with-mine.json").is_file()


def test_critic_without_critiques_does_not_change_the_judge(
    critic: Path, trained: TrainedReward, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rrm_lm.recursion.critics import AdapterCritic, Remark

    monkeypatch.setattr(AdapterCritic, "critiques", lambda self, prompts, responses: [Remark("")] * len(responses))
    result = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "helped", "--critic", critic)
    assert result.code == 0 and "the critic mine says nothing about any response" in result.err
    assert evaluate(capsys, trained.folder, trained.heldout, tmp_path / "alone").code == 0
    assert rewards_of(tmp_path / "helped") == rewards_of(tmp_path / "alone")
    found = read(tmp_path / "helped" / "results.json")["critic"]
    assert found["empty"] == found["responses"] == 24 and found["ignored"]
    assert "this is the judge alone" in (tmp_path / "helped" / "report.html").read_text(encoding="utf-8")


def test_invalid_critics_are_refused_before_anything_is_loaded(
    policy: Path, prompts: Path, critic: Path, trained: TrainedReward, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mute = shutil.copytree(critic, tmp_path / "mute")
    (mute / "config.yaml").write_text("critique_weight: 0.0\ncritique_weight_end: null\ncritique_first: false\n")
    empty = shutil.copytree(critic, tmp_path / "empty")
    (empty / "adapter_model.safetensors").unlink()
    for what in ("rrm_lm.models.pretrained.load_causal_lm", "rrm_lm.models.saving.adapters.load_backbone"):
        monkeypatch.setattr(what, None)
    for folder, said in (
        (tmp_path / "nowhere", "There is no such folder"),
        (trained.model, "This is not a critic: it has no adapter"),
        (policy, "This is not a critic: its adapter is for the task CAUSAL_LM"),
        (mute, "never trained to write critiques"),
        (empty, "The critic has no weights"),
    ):
        result = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "out", "--critic", folder)
        assert result.code == 2 and said in result.error["error"], result.err
        assert str(folder) in result.error["where"]
    result = run(capsys, "compare", policy, "--prompts", prompts, "--critic", critic)
    assert result.code == 2 and "there is no judge" in result.error["error"]
    requests = write_rows(tmp_path / "requests.jsonl", [{"request": QUESTIONS[0], "mentions": ["sea"]}])
    words = ("--prompts", prompts, "--overseer", requests, "--critic", critic)
    result = run(capsys, "collect", policy, *words, "--output_dir", tmp_path / "new")
    assert result.code == 2 and "would mistake a critique for part of the response" in result.error["error"]
    assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()


def test_a_solved_helper_is_a_critic(tiny: Path, trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    tree = TREE.format(toy=TOY, model=tiny, root=tmp_path)
    (tmp_path / "tree.yaml").write_text(tree, encoding="utf-8")
    solved = run(capsys, "recurse", "--allow_code", "--config", tmp_path / "tree.yaml", "--node", "letter_b")
    assert solved.code == 0, solved.err
    helper = tmp_path / "out" / "nodes" / "letter_b"
    result = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "judged", "--allow_code", "--critic", helper)
    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "judged" / "critiques.jsonl")
    assert {row["critique"] for row in rows} <= {"yes", "no", ""} and any(row["critique"] for row in rows)
    assert all(row["quote"] in row["response"] for row in rows)
    (helper / "node.json").write_text("{}", encoding="utf-8")
    broken = evaluate(capsys, trained.folder, trained.heldout, tmp_path / "judged", "--allow_code", "--critic", helper)
    assert broken.code == 2 and "letter_b is not solved, its files are damaged" in broken.error["error"]
    (helper.parent / "top").mkdir()
    (helper.parent / "top" / "node.json").write_text("{}", encoding="utf-8")
    top = evaluate(
        capsys, trained.folder, trained.heldout, tmp_path / "judged", "--allow_code", "--critic", helper.parent / "top"
    )
    assert top.code == 2 and "top answers requests" in top.error["error"]


# -- compare and collect ----------------------------------------------------------------------------------------------


def test_compare_shows_critiques_to_its_judges(
    policy: Path, prompts: Path, critic: Path, tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("openai", reason="the optional package openai is not installed")
    with fake_server(lambda question: "A" if shown(question)["A"] > shown(question)["B"] else "B") as server:
        result = run(
            capsys, "compare", policy, "--prompts", prompts, "--judge", tiny, "llm:some/judge", "--base_url",
            server.url, "--critic", critic, "--dtype", "float32", "--max_new_tokens", 6, "--samples", 1,
            "--output_dir", tmp_path / "out",
        )  # fmt: skip
    assert result.code == 0, result.err
    shown_texts = noted_texts(tmp_path / "out" / "critiques.jsonl")
    rows = read_rows(tmp_path / "out" / "samples.jsonl")
    answers = {(row["policy"], row["prompt"][0]["content"]): row["response"] for row in rows}
    asked = [question for question in server.questions if "Yes." not in shown(question).values()]  # the first look
    expected = {tuple(shown_texts[answers[name, q]] for name in (str(policy), str(tiny))) for q in QUESTIONS}
    assert {tuple(shown(question).values()) for question in asked} == expected | {pair[::-1] for pair in expected}
    assert all("Behind a reply there may stand notes" in question for question in asked)
    found = read(tmp_path / "out" / "results.json")
    assert found["critic"]["responses"] == len(set(answers.items())) == 6
    # The tiny model has room for 512 tokens, and so for no question with notes; nobody knows how many a server has.
    assert found["critic"]["asked_without"] == {str(tiny): 6, "llm:some/judge": 0}
    assert "Helped by the critic mine" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


OVERSEER = """
from rrm_lm.feedback.asking.overseers import Verdict

class Reads:
    name, limit = "reads", "reads everything"

    def compare(self, prompt, responses):
        assert all(text.endswith("[end of notes]") for text in responses), responses
        return Verdict(int(responses[1] > responses[0]))

    def critique(self, prompt, response):
        return f"It has {response.count('critic: ')} critique."

overseer = Reads
"""


def test_collect_shows_critiques_to_an_overseer_who_reads(
    policy: Path, prompts: Path, critic: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "people.py").write_text(OVERSEER)
    words = ("--prompts", prompts, "--overseer", f"{tmp_path / 'people.py'}:overseer", "--output_dir", tmp_path / "new")
    result = run(capsys, "collect", policy, *words, "--max_new_tokens", 6, "--critic", critic)
    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "new" / "feedback.jsonl")
    assert rows and all("[end of notes]" not in row["chosen"][0]["content"] for row in rows)
    assert {text for row in rows for text in row["chosen_critiques"]} == {"It has 1 critique."}
    counts = read(tmp_path / "new" / "counts.json")
    assert counts["critic"]["responses"] == 2 * counts["pairs"] and counts["critic"]["empty"] == 0
    # Feedback is read back without what the critic wrote; and nobody goes on without the critic.
    from rrm_lm.feedback.reading.datasets import load_feedback

    assert load_feedback(str(tmp_path / "new")).sizes().keys() == {"comparisons"}
    other = run(capsys, "collect", policy, *words, "--max_new_tokens", 6)
    assert other.code == 2 and "critic" in other.err
