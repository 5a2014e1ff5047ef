"""Reward models with criteria: trained, saved, loaded, and used by everything that needs a reward."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

import rrm_lm
from rrm_lm.api.resuming import fingerprint
from rrm_lm.api.reward.criteria import FEW
from rrm_lm.cli.main import main
from rrm_lm.errors import ConfigError, DataError, ModelError
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.feedback.criteria.records import read_criteria
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Origin, Rating
from rrm_lm.models.reward_files import load_reward_model, merge_reward_model, put_reward
from rrm_lm.models.saving.adapters import _WANTED
from tests.openai_server import fake_server
from tests.tiny import save_tiny_model, tiny_tokenizer

ROWS = [
    {
        "prompt": f"what is it {n}?",
        "chosen": f"yes {n}",
        "rejected": "no i do not know what the answer is " * (1 + n % 2) + str(n),
        "chosen_critiques": ["Nice and short."],
        "rejected_critiques": ["Far too long."],
    }
    for n in range(8)
]
SHORT = "criteria:\n  - {statement: is short, name: length, measure: words, direction: less}\n"
PROMPT, RESPONSES = "what is the moon made of?", ["the answer is yes", "no i do not know", "yes"]


def trainer(start: Path, output: Path, criteria: str, rows: Any = ROWS, held_out: Any = None, **settings: Any) -> Any:
    settings = {"use_cpu": True, "report_to": "none", "max_steps": 2, **settings}
    args = rrm_lm.RewardConfig(output_dir=str(output), criteria=criteria, **settings)
    return rrm_lm.RewardTrainer(str(start), args, train_dataset=rows, eval_dataset=held_out)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("criteria")
    (folder / "criteria.yaml").write_text(SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        trainer(tiny, folder / "out", str(folder / "criteria.yaml"), held_out=ROWS[:3]).train()
    return folder / "out"


def parts(folder: Path) -> tuple[Any, Any]:
    """The rewards of the criteria and of the LoRA part."""
    scorer: Any = load_scorer(str(folder))
    prompt = (rrm_lm.feedback.records.Message("user", PROMPT),)
    criteria = np.array(scorer.criteria.rewards([prompt], [RESPONSES])[0])
    scorer.criteria = None
    return criteria, np.array(scorer.score([prompt], [RESPONSES])[0])


def test_the_reward_is_the_sum_wherever_it_is_read(trained: Path, tmp_path: Path) -> None:
    criteria, lora = parts(trained)
    reward = rrm_lm.RewardModel.from_pretrained(trained)
    found = reward.score(PROMPT, RESPONSES)
    np.testing.assert_allclose(found, criteria + lora, rtol=1e-6)
    assert criteria.std() > 0.01
    (criterion,) = read_criteria(trained / "criteria.yaml")
    assert criterion.weight > 0 and criterion.low is not None and criterion.scale is not None

    reward.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(rrm_lm.RewardModel.from_pretrained(tmp_path / "again").score(PROMPT, RESPONSES), found)
    rows = [{"prompt": PROMPT, "completion": one} for one in RESPONSES]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "rewards.jsonl"
    assert (
        main(
            ["score", "--model", str(trained), "--dataset", str(tmp_path / "rows.jsonl"), "--output_file", str(output)]
        )
        == 0
    )
    written = [json.loads(line) for line in output.read_text().splitlines()]
    np.testing.assert_allclose([row["reward"] for row in written], found, rtol=1e-5)
    np.testing.assert_allclose([row["criteria"]["length"] for row in written], criteria, rtol=1e-5)


def test_training_evaluates_the_sum(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["sets"]["held out"]["accuracy"]["value"] == 1.0  # the shorter response always wins
    length, lora = results["criteria"]["held out"]
    assert (
        length["statement"] == "is short" and length["lead"] > 0 and length["low"] < length["weight"] < length["high"]
    )
    scores = [json.loads(line) for line in (trained / "scores.jsonl").read_text().splitlines()]
    whole = sum(row["margin"] for row in scores) / len(scores)
    assert lora["statement"] == "the LoRA reward" and lora["lead"] + length["lead"] == pytest.approx(whole)
    page = (trained / "report.html").read_text()
    assert "What each part of the reward adds" in page and "is short" in page


def test_evaluate_explains_the_reward_every_time(trained: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    for number in (1, 2):  # the second time, rewards of other models would come from the cache
        output = tmp_path / str(number)
        assert main(["evaluate", "--model", str(trained), "--dataset", str(rows), "--output_dir", str(output)]) == 0
        (found,) = json.loads((output / "results.json").read_text())["criteria"].values()
        assert [one["statement"] for one in found] == ["is short", "the LoRA reward"]


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
@pytest.mark.parametrize("question", ["", "- {statement: is kind, measure: 'question: Is it kind?', weight: 0.1}\n"])
def test_a_policy_optimizes_the_sum(
    trained: Path,
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    question: str,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Detectors read the text; questions need the reward model on a backbone of its own."""
    folder = shutil.copytree(trained, tmp_path / "reward")
    with open(folder / "criteria.yaml", "a") as file:
        file.write(question)
    args = rrm_lm.PPOConfig(
        output_dir=str(tmp_path / "policy"), use_cpu=True, report_to="none", total_episodes=2, response_length=4,
        eval_fraction=0, per_device_train_batch_size=2, gradient_accumulation_steps=1, num_mini_batches=1,
        samples_per_prompt=2,
    )  # fmt: skip
    monkeypatch.setattr(rrm_lm.PPOTrainer, "algorithm", algorithm)
    with caplog.at_level(logging.INFO):
        made = rrm_lm.PPOTrainer(str(tiny), str(folder), [PROMPT, "who is it?"], args)
    assert ("gets its own backbone: The reward model has criteria" in caplog.text) is bool(question)
    asked = [(rrm_lm.feedback.records.Message("user", PROMPT),)] * 4
    scorer: Any = load_scorer(str(folder))
    lines = [line for (line,) in scorer.chat.encode(asked[0], [*RESPONSES, "yes"]).whole().lines]
    (found,) = made.trainer.rewards(asked, [*RESPONSES, " "], lines).values()
    np.testing.assert_allclose(found[:3], sum(parts(folder)), rtol=1e-5)
    assert found[3] == min(found)  # of a response without text nothing can be measured
    if algorithm == "rloo":  # what is gathered for rewards under FSDP, and counted in mfu
        assert made.trainer._rewards_here == (not question)
    made.train()
    assert made.trainer.state.global_step


def test_what_cannot_hold_criteria_refuses(trained: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "criteria.yaml").write_text(SHORT)
    with pytest.raises(ConfigError, match="cannot hold criteria"):
        trainer(tiny, tmp_path / "out", str(tmp_path / "criteria.yaml"), merge=True)
    with pytest.raises(ModelError, match="cannot hold the criteria"):
        merge_reward_model(trained, tmp_path / "merged", tiny_tokenizer())
    model, _ = load_reward_model(trained)
    with pytest.raises(ModelError, match="has criteria"):
        put_reward(model.backbone, trained, adapter="second")


def test_a_reward_model_on_the_hub_keeps_its_criteria(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fetched includes them, and they are explained as those of a folder are."""
    fetched = filter_repo_objects([one.name for one in trained.iterdir()], allow_patterns=_WANTED)
    place = tmp_path / "hub" / "models--me--rm"
    (place / "snapshots" / "c0").mkdir(parents=True)
    for name in fetched:
        shutil.copy(trained / name, place / "snapshots" / "c0" / name)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("c0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    reward = rrm_lm.RewardModel.from_pretrained("me/rm")
    np.testing.assert_allclose(reward.score(PROMPT, RESPONSES), sum(parts(trained)), rtol=1e-6)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    asked = ["evaluate", "--model", "me/rm", "--dataset", str(tmp_path / "rows.jsonl"), "--output_dir"]
    assert main([*asked, str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["criteria"]


def test_a_model_without_criteria_removes_those_of_an_earlier_one(trained: Path, tiny: Path, tmp_path: Path) -> None:
    """When it is saved over it from Python, and when a run is resumed with other settings."""
    folder = shutil.copytree(trained, tmp_path / "folder")
    reward = rrm_lm.RewardModel.from_pretrained(folder)
    reward.scorer.criteria = None  # type: ignore[attr-defined]
    found = reward.score(PROMPT, RESPONSES)
    reward.save_pretrained(folder)
    np.testing.assert_allclose(rrm_lm.RewardModel.from_pretrained(folder).score(PROMPT, RESPONSES), found)

    trainer(tiny, tmp_path / "run", "auto", save_steps=1).train()
    assert (tmp_path / "run" / "criteria.yaml").is_file()
    again = trainer(tiny, tmp_path / "run", "none", save_steps=1, max_steps=3, allow_config_change=True)
    again.train(resume_from_checkpoint=True)
    assert not (tmp_path / "run" / "criteria.yaml").exists()


def test_the_card_says_what_peft_alone_reads(trained: Path) -> None:
    card = (trained / "README.md").read_text()
    (*_, lora) = json.loads((trained / "results.json").read_text())["criteria"]["held out"]
    assert "- is short (+" in card and "RewardModel.from_pretrained" in card
    assert f"which is right on {100 * lora['accuracy']['value']:.1f}%" in card
    assert "load the adapter with PEFT read the LoRA reward alone" in (trained / "report.html").read_text()


def test_ratings_fix_the_scale_so_that_no_criteria_are_added(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    asked = [(rrm_lm.feedback.records.Message("user", f"what is it {n}?"),) for n in range(20, 30)]
    ratings = [
        Rating(prompt=one, response="yes", rating=0.5, origin=Origin("ratings", n)) for n, one in enumerate(asked)
    ]
    rows = [*load_feedback(str(tmp_path / "rows.jsonl")).comparisons, *ratings]
    with caplog.at_level(logging.INFO):
        assert trainer(tiny, tmp_path / "out", "auto", rows=rows).criteria is None
    assert "ratings fix the scale" in caplog.text
    assert trainer(tiny, tmp_path / "out", "auto", rows=rows, rating_weight=0.0).criteria is not None
    assert trainer(tiny, tmp_path / "out", "critiques", rows=rows).criteria is not None


def test_rows_that_are_left_out_give_no_criteria(tmp_path: Path) -> None:
    """Critiques of rows that the chat template refuses are not trained on."""
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    save_tiny_model(tmp_path / "start", tokenizer=tiny_tokenizer(refusing))
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "what is it?"}]
    refused = {**ROWS[0], "prompt": turns}
    silent = [{**row, "chosen_critiques": [], "rejected_critiques": []} for row in ROWS[1:]]
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in silent]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [refused, *rows])))
    asked = ["reward", "--model_name_or_path", str(tmp_path / "start"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    more = ["--max_steps", "1", "--eval_fraction", "0", "--use_cpu", "--report_to", "none", "--skip_bad_rows", "true"]
    assert main([*asked, *more, "--output_dir", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "criteria.yaml").exists()


def test_criteria_that_do_not_vary_leave_the_lora_reward(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "criteria.yaml").write_text("- {statement: has a heading, measure: headings}")
    assert trainer(tiny, tmp_path / "out", str(tmp_path / "criteria.yaml")).criteria is None
    assert "no criterion is left" in caplog.text


def test_fitted_weights_are_not_a_prior_without_a_word(
    trained: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tiny, tmp_path / "out", str(trained / "criteria.yaml"))
    assert "count twice" in caplog.text
    trainer(trained, tmp_path / "next", "none")
    assert "has criteria, which are not taken over" in caplog.text


@pytest.mark.parametrize("word", ["off", "False", "NONE", "no"])
def test_words_that_turn_criteria_off(word: str) -> None:
    assert rrm_lm.RewardConfig(output_dir="unused", criteria=word).criteria == "none"
    assert rrm_lm.RewardConfig(output_dir="unused", criteria="Auto").criteria == "auto"


def test_a_file_that_is_not_there_names_the_words(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="critiques, auto or none"):
        trainer(tiny, tmp_path / "out", "missing.yaml")


def test_criteria_from_the_critiques_that_are_trained_on(tiny: Path, tmp_path: Path) -> None:
    made = trainer(tiny, tmp_path / "out", "critiques")
    (criterion,) = made.criteria.criteria
    assert (criterion.name, criterion.direction, criterion.named) == ("length", "less", 16)
    with pytest.raises(DataError, match="name no criterion"):
        trainer(
            tiny,
            tmp_path / "out",
            "critiques",
            rows=[{**row, "chosen_critiques": [], "rejected_critiques": ["Hm."]} for row in ROWS],
        )


@pytest.mark.parametrize(
    ("flags", "count", "has_criteria"),
    [([], 8, True), (["--criteria", "none"], 8, False), (["--merge"], 8, False), ([], FEW + 1, False)],
)
def test_few_comparisons_with_critiques_get_criteria(
    tiny: Path, tmp_path: Path, flags: list[str], count: int, has_criteria: bool
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{**ROWS[n % 2], "prompt": f"what is it {n}?"} for n in range(count)]
    data.write_text("\n".join(map(json.dumps, rows)))
    asked = [
        "reward",
        "--model_name_or_path",
        str(tiny),
        "--dataset_name",
        str(data),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    more = ["--max_steps", "1", "--eval_fraction", "0", "--use_cpu", "--report_to", "none", *flags]
    assert main(asked + more) == 0
    assert (tmp_path / "o" / "criteria.yaml").is_file() is has_criteria


def test_no_critique_no_criteria(tiny: Path, tmp_path: Path) -> None:
    rows = [{**row, "chosen_critiques": [], "rejected_critiques": ["Hm."]} for row in ROWS]
    assert trainer(tiny, tmp_path / "out", "auto", rows=rows).criteria is None
    assert trainer(tiny, tmp_path / "out", "auto").criteria is not None


def test_the_adapter_is_the_one_that_is_trained_without_criteria(trained: Path, tiny: Path, tmp_path: Path) -> None:
    """Programs that read the adapter alone then read a whole reward of the comparisons."""
    args = rrm_lm.RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=2)
    rrm_lm.RewardTrainer(str(tiny), args, train_dataset=ROWS, eval_dataset=ROWS[:3]).train()
    alone = rrm_lm.RewardModel.from_pretrained(tmp_path / "out").score(PROMPT, RESPONSES)
    np.testing.assert_array_equal(parts(trained)[1], alone)


def test_quotations_of_rows_that_are_held_out_are_reported(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    assert main(["criteria", str(data), "--output", str(tmp_path / "criteria.yaml")]) == 0
    with caplog.at_level(logging.WARNING):
        trainer(
            tiny,
            tmp_path / "out",
            str(tmp_path / "criteria.yaml"),
            rows=str(data),
            held_out=rrm_lm.api.reward.examples.HOLD_OUT,
            eval_fraction=0.9,
        )
    assert "quote rows that are held out" in caplog.text


def test_a_file_of_criteria_is_a_reward_by_itself(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "criteria.yaml").write_text(SHORT)
    reward = rrm_lm.RewardModel.from_pretrained(tmp_path / "criteria.yaml")
    found = reward.score(PROMPT, ["one", "one two three", " "])
    assert found[0] > found[1] and np.isnan(found[2])
    assert rrm_lm.evaluate(reward, ROWS)["sets"]["rows"]["accuracy"]["value"] == 1.0
    args = rrm_lm.PPOConfig(
        output_dir=str(tmp_path / "policy"), use_cpu=True, report_to="none", total_episodes=2, response_length=4,
        eval_fraction=0, per_device_train_batch_size=2, gradient_accumulation_steps=1, num_mini_batches=1,
    )  # fmt: skip
    made = rrm_lm.PPOTrainer(str(tiny), str(tmp_path / "criteria.yaml"), [PROMPT, "who is it?"], args)
    (source,) = made.trainer.rewards.sources
    asked = [(rrm_lm.feedback.records.Message("user", PROMPT),)] * 2
    np.testing.assert_allclose(source(asked, ["one", "one two three"]), found[:2])


def test_code_in_a_file_of_criteria_needs_permission(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "criteria.yaml").write_text(
        "- {statement: is short, measure: 'function: tests.unit.api.reward.test_criteria:short'}"
    )
    with pytest.raises(ConfigError, match="--allow_code"):
        trainer(tiny, tmp_path / "out", str(tmp_path / "criteria.yaml"))
    trainer(tiny, tmp_path / "out", str(tmp_path / "criteria.yaml"), allow_code=True).train()
    with pytest.raises(ConfigError, match="--trust_remote_code"):
        rrm_lm.RewardModel.from_pretrained(tmp_path / "out")
    rrm_lm.RewardModel.from_pretrained(tmp_path / "out", trust_remote_code=True).score(PROMPT, RESPONSES)


def test_edited_criteria_are_another_model(trained: Path, tmp_path: Path) -> None:
    """Cached rewards and resumed runs depend on the contents of a file of criteria."""
    shutil.copytree(trained, tmp_path / "copy")
    before = fingerprint(tmp_path / "copy")
    assert before == fingerprint(trained)
    with open(tmp_path / "copy" / "criteria.yaml", "a") as file:
        file.write("# edited")
    assert fingerprint(tmp_path / "copy") != before


def nowhere(prompts: Any, responses: Any) -> list[float]:
    return [float("nan") for _ in responses]


def short(prompts: Any, responses: Any) -> list[float]:
    return [-float(len(one)) for one in responses]


def test_an_ordinary_reward_model_learns_what_one_with_criteria_says(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"what is it {n}?"}) for n in range(6)))
    flags = ["--prompts", str(prompts), "--max_new_tokens", "6", "--samples", "3", "--output_dir"]
    asked = ["collect", str(tiny), *flags, str(tmp_path / "soft"), "--overseer", str(trained), "--edits", "2"]
    assert main(asked) == 0
    rows = [json.loads(line) for line in (tmp_path / "soft" / "feedback.jsonl").read_text().splitlines()]
    counts = json.loads((tmp_path / "soft" / "counts.json").read_text())
    assert 6 < counts["pairs"] <= 18 and counts["missing_critiques"] == 0
    reward = rrm_lm.RewardModel.from_pretrained(trained)
    for row in rows:
        chosen, rejected = reward.score(row["prompt"], [row[side][0]["content"] for side in ("chosen", "rejected")])
        assert row["margin"] == pytest.approx(chosen - rejected, abs=1e-4)

    student = rrm_lm.RewardConfig(
        output_dir=str(tmp_path / "student"), use_cpu=True, report_to="none", max_steps=60, learning_rate=5e-3,
        grades="target", merge=True, eval_fraction=0,
    )  # fmt: skip
    rrm_lm.RewardTrainer(str(tiny), student, train_dataset=rows, eval_dataset=None).train()
    learned = rrm_lm.RewardModel.from_pretrained(tmp_path / "student" / "merged")
    margins = [
        np.subtract(*learned.score(row["prompt"], [row[side][0]["content"] for side in ("chosen", "rejected")]))
        for row in rows
    ]
    assert np.corrcoef(margins, [row["margin"] for row in rows])[0, 1] > 0.5

    capsys.readouterr()
    asked = [
        "collect",
        str(tiny),
        *flags,
        str(tmp_path / "no"),
        "--overseer",
        str(tmp_path / "student"),
        "--edits",
        "2",
    ]
    assert main(asked) == 2
    assert "has no criteria, which say what is edited" in capsys.readouterr().err


def test_a_language_model_edits_what_no_rule_edits(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its edits are kept if they move the measure of the criterion; refusals and other changes are not."""
    folder = shutil.copytree(trained, tmp_path / "reward")
    more = "- {statement: 'names {a} number.', name: numbers, measure: numbers, weight: 1}\n"
    (folder / "criteria.yaml").write_text("criteria:\n" + more)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"what is it {n}?"}) for n in range(6)))
    replies = iter(
        ["It is 7.", "It is red.", "I'm sorry, I cannot help.", "<text 12345678>\nIt is 8.\n</text 12345678>"]
    )

    with fake_server(lambda question: next(replies, "It is 7 and 8.")) as server:
        asked = [
            "collect", str(tiny), "--prompts", str(prompts), "--max_new_tokens", "6", "--samples", "2", "--edits", "1",
            "--overseer", str(folder), "--editor", "llm:fake", "--base_url", server.url,
        ]  # fmt: skip
        assert main([*asked, "--output_dir", str(tmp_path / "out")]) == 0
    assert len(server.questions) == 6
    assert all("so that it names {a} number. Change as little" in question for question in server.questions)
    rows = (tmp_path / "out" / "feedback.jsonl").read_text()
    assert '"It is 7 and 8."' in rows and "It is red" not in rows and "sorry" not in rows and "<text" not in rows
    said = capsys.readouterr().err
    assert "fake wrote 5 edits; 4 of them move" in said and "wrote no edit for some responses: 1 edit: refused" in said
    assert all(request["max_tokens"] == 24 for request in server.requests)

    nowhere = "- {statement: is fine, measure: 'function: tests.unit.api.reward.test_criteria:nowhere', weight: 1}"
    (folder / "criteria.yaml").write_text(nowhere)
    with fake_server(lambda question: "It is 7.") as server:
        asked = ["collect", str(tiny), "--prompts", str(prompts), "--max_new_tokens", "6", "--samples", "2"]
        more = ["--edits", "1", "--overseer", str(folder), "--editor", "llm:fake", "--allow_code", "true"]
        assert main([*asked, *more, "--base_url", server.url, "--output_dir", str(tmp_path / "nan")]) == 0
    assert "fake wrote 6 edits; 0 of them move" in capsys.readouterr().err

    wrong = ["collect", str(tiny), "--prompts", str(prompts), "--overseer", str(folder), "--output_dir"]
    for flags in (["--editor", "llm:fake"], ["--editor", "fake", "--edits", "1"], ["--editor", "llm:", "--edits", "1"]):
        assert main([*wrong, str(tmp_path / "no"), *flags]) == 2
        assert "--editor llm:MODEL" in capsys.readouterr().err
