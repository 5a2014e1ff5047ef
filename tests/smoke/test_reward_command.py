"""`rrm-lm reward` from a file of feedback to a judged reward model, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rrm_lm.api.reward import model as reward_model
from rrm_lm.api.reward import saving as reward_save
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.feedback.records import Message
from rrm_lm.models import reward
from rrm_lm.models.portable import save_tokenizer
from rrm_lm.models.reward_files import read_examples
from rrm_lm.storage import verify
from tests.smoke.commands import (
    contents,
    pair_row,
    pair_rows,
    read,
    read_rows,
    rewards_of,
    run,
    same,
    train,
    write_rows,
)
from tests.smoke.conftest import TrainedReward
from tests.tiny import comparison

HANDS = "please write two words about the sea and the moon and who lives in the sea today"


# -- what a run leaves ----------------------------------------------------------------------------------------------


def test_files_written_by_a_run(trained: TrainedReward) -> None:
    names = {path.name for path in trained.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("adapter_config.json", "adapter_model.safetensors", "reward_model.json", "example_rewards.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merged"),
        *("trainer_state.json", "train_results.json", "all_results.json"),
        *("config.yaml", "run.json", "leakage.json", "results.json", "scores.jsonl"),
        *("reward.json", "reward_outputs.jsonl", "README.md", "report.html"),
    }
    assert read(trained.folder / "run.json")["outcome"] == "finished"
    assert read(trained.folder / "trainer_state.json")["global_step"] == 4
    assert read(trained.folder / "train_results.json")["train_loss"] > 0
    assert read(trained.folder / "leakage.json")["heldout_records"] == 12
    results = read(trained.folder / "results.json")["sets"]["held out"]
    assert (results["n_scored"], results["n_given"]) == (12, 12)
    assert results["accuracy"]["low"] <= results["accuracy"]["value"] <= results["accuracy"]["high"]
    assert len(read_rows(trained.folder / "scores.jsonl")) == 12
    assert read(trained.folder / "reward.json")["num_prompts"] == 12  # RewardBench's
    assert "<|im_start|>assistant\n" in read_rows(trained.folder / "reward_outputs.jsonl")[0]["text_chosen"]
    report = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert "held out" in report and "<script src" not in report
    card = (trained.folder / "README.md").read_text(encoding="utf-8")
    assert f'AutoPeftModelForSequenceClassification.from_pretrained(\n    "{trained.folder}", num_labels=1, pad' in card


def test_the_code_on_the_model_card_prints_the_reward(trained: TrainedReward, capsys: Any) -> None:
    card = (trained.folder / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    exec(card.partition("```python\n")[2].partition("```")[0], {})
    asked = (Message("user", "What is the capital of France?"),)
    [[expected]] = load_scorer(str(trained.folder), dtype="float32").score([asked], [["Paris."]])
    assert float(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5)


def test_rewards_of_fixed_conversations_are_recorded(trained: TrainedReward) -> None:
    for folder in (trained.folder, trained.merged):
        scorer = load_scorer(str(folder), dtype="float32")
        rows = read_examples(folder)
        found = [scorer.score([prompt], [[response]])[0][0] for (prompt, response), _, _ in rows]
        assert len(rows) >= 6 and found == pytest.approx([reward for _, _, reward in rows], abs=1e-4)


def test_the_merged_checkpoint_says_how_it_was_trained(trained: TrainedReward) -> None:
    assert read(trained.merged / "reward_model.json") == read(trained.folder / "reward_model.json")
    assert read(trained.merged / "config.json")["architectures"] == ["LlamaForSequenceClassification"]
    assert verify(trained.merged) == []


def test_the_run_can_be_repeated_from_its_resolved_settings(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(capsys, tiny, pairs, tmp_path / "one").code == 0
    settings = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert settings["max_steps"] == 3 and settings["dataset_name"] == [str(pairs)]
    again = run(capsys, "reward", "--config", tmp_path / "one" / "config.yaml", "--output_dir", tmp_path / "two")
    assert again.code == 0, again.err
    assert same(tmp_path / "one", tmp_path / "two")
    assert rewards_of(tmp_path / "one") == rewards_of(tmp_path / "two")


def test_one_example_is_shown_with_what_is_trained_on_marked(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    made = comparison(
        "what is blue?", "the sea", "the moon [bold]", chosen_critiques=("short, good",), rejected_critiques=("no",)
    )
    more = comparison("what is made of story?", "the answer", "no answer")
    data = write_rows(tmp_path / "a[x].jsonl", [pair_row(made), pair_row(more)])
    result = train(capsys, tiny, data, tmp_path / "out", "--eval_fraction", 0)
    assert result.code == 0, result.err
    assert f"({data}, row 1). The reward is read at ▲; the words in ⟦ ⟧ are learned." in result.err
    prompt = "<|im_start|>user\nwhat is blue?<|im_end|>\n<|im_start|>assistant\n"
    for label, response, words in (("preferred", "the sea", "short, good"), ("rejected", "the moon [bold]", "no")):
        shown = f"[{label}] {prompt}{response}<|im_end|>▲\n<|im_start|>user\n⟦{words}<|im_end|>⟧\n"
        assert shown in result.err


def test_the_overlap_with_the_held_out_set_is_reported_or_refused(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    row = pair_row(comparison(HANDS, "the sea is blue", "no"))
    data = write_rows(tmp_path / "train.jsonl", [*pair_rows(6), row])
    held = write_rows(tmp_path / "held.jsonl", [*pair_rows(6, seed=3), {**row, "chosen": "the moon is blue"}])
    words = ("--eval_dataset_name", held)
    refused = train(capsys, tiny, data, tmp_path / "out", *words, "--fail_on_leak", "true")
    assert refused.code == 2
    assert "1 of 7 held-out records overlap" in refused.error["error"]
    assert refused.error["where"] == str(held)
    assert contents(tmp_path / "out") == {}
    result = train(capsys, tiny, data, tmp_path / "out", *words)
    assert result.code == 0
    assert "warning: leakage check: 1 of 7 held-out records overlap" in result.err
    leak = read(tmp_path / "out" / "leakage.json")
    assert leak["found"] and leak["prompts_exact"]["examples"][0]["heldout"] == f"{held}, row 7"
    assert "1 of 7 held-out records overlap" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# -- which feedback -------------------------------------------------------------------------------------------------


def test_ratings_alone(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": f"who is {n}?", "response": "the sea " * (n + 1), "rating": n / 5} for n in range(6)]
    result = train(capsys, tiny, write_rows(tmp_path / "rated.jsonl", rows), tmp_path / "out", "--logging_steps", 1)
    assert result.code == 0, result.err
    assert "[rated " in result.err and "preferred" not in result.err
    log = read(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert "loss_ratings" in log[0] and "accuracy" not in log[0]
    assert "no comparisons are held out, so nothing is judged" in result.err
    assert not (tmp_path / "out" / "results.json").exists()


def test_critiques_alone(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": f"who is {n}?", "response": "the sea", "critique": "too short, sorry"} for n in range(6)]
    result = train(capsys, tiny, write_rows(tmp_path / "said.jsonl", rows), tmp_path / "out", "--logging_steps", 1)
    assert result.code == 0, result.err
    assert "[critiqued] " in result.err and "⟦too short, sorry<|im_end|>⟧" in result.err
    log = read(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert "loss_critiques" in log[0] and "loss_pairs" not in log[0]


def test_several_files_of_several_kinds(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    said = write_rows(tmp_path / "said.jsonl", [{"prompt": "who is it?", "response": "it is", "critique": "no"}])
    rated = write_rows(tmp_path / "rated.jsonl", [{"prompt": "who are you?", "response": "i am", "rating": 1}])
    result = train(
        capsys, tiny, [pairs, said, rated], tmp_path / "out", "--eval_fraction", 0,
        "--per_device_train_batch_size", 22, "--logging_steps", 1,
    )  # fmt: skip
    assert "to learn from: 20 comparisons, 1 critiques, 1 ratings; held out: nothing" in result.err
    log = read(tmp_path / "out" / "trainer_state.json")["log_history"]
    assert {"loss_pairs", "loss_critiques", "loss_ratings"} <= log[0].keys()


def test_columns_of_other_names(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{"question": r["prompt"], "good one": r["chosen"], "bad": r["rejected"]} for r in pair_rows(6)]
    columns = ("--columns", "question=prompt", "good one=chosen", "bad=rejected")
    result = train(capsys, tiny, write_rows(tmp_path / "q.jsonl", rows), tmp_path / "out", *columns)
    assert result.code == 0, result.err
    assert "6 rows (preference pairs) gave 6 comparisons" in result.err


def test_no_more_comparisons_than_asked_for(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    result = train(capsys, tiny, pairs, tmp_path / "out", "--max_comparisons", 5, "--eval_fraction", 0.25)
    assert "to learn from: 5 comparisons; held out: 5 comparisons" in result.err


def test_dropped_rows_are_not_counted_for_the_held_out_part(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    tie = {"prompt": "who is it?", "chosen": "same", "rejected": "same"}
    data = write_rows(tmp_path / "pairs.jsonl", [*pair_rows(10, critiques=False), tie, tie])
    result = train(capsys, tiny, data, tmp_path / "out", "--eval_fraction", 0.2)
    assert "left out, tie: chosen and rejected are the same text: 2 (row 11, 12)" in result.err
    assert read(tmp_path / "out" / "results.json")["sets"]["held out"]["n_given"] == 2
    assert "are the same text" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_folder_is_read_by_split(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "set" / "train.jsonl", pair_rows(6))
    write_rows(tmp_path / "set" / "test.jsonl", pair_rows(3, seed=3))
    folder = tmp_path / "set"
    result = train(capsys, tiny, folder, tmp_path / "out", "--eval_dataset_name", folder)
    assert result.code == 0, result.err
    assert "to learn from: 6 comparisons; held out: 3 comparisons" in result.err


# -- ways to train --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["true", "false"])
def test_prefix_sharing_does_not_change_rewards(
    share: str, trained: TrainedReward, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture's run, which shares prefixes, once more without sharing: only rounding may differ."""
    monkeypatch.chdir(tmp_path)
    config = (
        "--config",
        trained.folder / "config.yaml",
        "--output_dir",
        "out",
        "--merge",
        "false",
        "--criteria",
        "none",
    )
    assert run(capsys, "reward", *config, "--share_prefixes", share).code == 0
    torch.testing.assert_close(
        torch.tensor(rewards_of(tmp_path / "out")), torch.tensor(rewards_of(trained.folder)), atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("first", ["true", "false"])
def test_mixed_precision(first: str, tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    """Rewards in 16 bits while training; the model that is saved and judged is the one that others load."""
    held = write_rows(tmp_path / "held.jsonl", pair_rows(4, seed=3))
    words = ("--bf16", "true", "--eval_dataset_name", held, "--critique_first", first)
    assert train(capsys, tiny, pairs, tmp_path / "out", *words).code == 0
    judged(capsys, tmp_path / "out", held, "--seed", 42)
    torch.testing.assert_close(
        torch.tensor(rewards_of(tmp_path / "judged")), torch.tensor(rewards_of(tmp_path / "out"))
    )


def test_evaluation_during_training_and_the_best_checkpoint(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any
) -> None:
    """The best step is not the last one, and its checkpoint is saved as the model."""
    words = ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    result = train(
        capsys, tiny, pairs, tmp_path / "out", *words, "--load_best_model_at_end", "true", "--learning_rate", 2.0,
        "--max_steps", 4, "--eval_fraction", 0.3,
    )  # fmt: skip
    assert result.code == 0, result.err
    state = read(tmp_path / "out" / "trainer_state.json")
    losses = {log["step"]: log["eval_loss"] for log in state["log_history"] if "eval_loss" in log}
    best = min(losses, key=lambda step: losses[step])
    assert len(losses) == 4 and state["best_global_step"] == best < 4
    assert same(tmp_path / "out", tmp_path / "out" / f"checkpoint-{best}")


def test_a_critique_first(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    held = write_rows(tmp_path / "held.jsonl", pair_rows(4, seed=3))
    words = ("--critique_first", "true", "--critique_samples", 2, "--eval_dataset_name", held)
    result = train(capsys, tiny, pairs, tmp_path / "out", *words)
    assert result.code == 0, result.err
    first, second = result.err.split("One example as the model sees it")[1:]
    assert "▲" not in first.partition("learning to write critiques from")[0]
    assert "⟧▲\n[rejected]" in second and "The reward is read at ▲" in second
    assert not (tmp_path / "out" / "critic").exists()
    settings = read(tmp_path / "out" / "reward_model.json")
    assert settings["critique_first"] and settings["max_critique_length"] == 12
    # The evaluation of the saved model writes the same critiques, also of some of these responses by themselves.
    one, seed = ("--critique_samples", 1), ("--seed", 42)
    part = write_rows(tmp_path / "part.jsonl", read_rows(held)[1:3])
    for file, rows in ((held, slice(0, 4)), (part, slice(1, 3))):
        judged(capsys, tmp_path / "out", file, "--critique_samples", 2, *seed, "--micro_batch_tokens", 100)
        expected = torch.tensor(rewards_of(tmp_path / "out")[rows])
        torch.testing.assert_close(torch.tensor(rewards_of(tmp_path / "judged")), expected, atol=1e-5, rtol=1e-5)
    # One critique, or another seed, gives others.
    for more in ((*one, *seed), ("--critique_samples", 2, "--seed", 1)):
        judged(capsys, tmp_path / "out", held, *more)
        assert rewards_of(tmp_path / "judged") != rewards_of(tmp_path / "out")


def judged(capture: Any, model: Path, data: Path, *more: object) -> None:
    """Evaluate into the folder `judged` next to the model."""
    words = ("--model", model, "--dataset", data, "--output_dir", model.parent / "judged", *more)
    result = run(capture, "evaluate", *words, "--dtype", "float32")
    assert result.code == 0, result.err


# -- checks after saving --------------------------------------------------------------------------------------------


def test_reload_with_different_rewards_fails_the_run(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = reward_save.load_reward_model

    def load(*args: Any, **kwargs: Any) -> Any:
        model, chat = own(*args, **kwargs)
        model.head.weight.data += 1e-3
        return model, chat

    monkeypatch.setattr(reward_save, "load_reward_model", load)
    result = train(capsys, tiny, pairs, tmp_path / "out")
    assert result.code == 2
    assert "The saved model gives other rewards than the trained one" in result.error["error"]


def test_merged_checkpoint_with_different_rewards_fails_the_run(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = reward_save.load_sequence_classifier

    def load(*args: Any, **kwargs: Any) -> Any:
        model: Any = own(*args, **kwargs)
        model.score.weight.data *= 1.1
        return model

    monkeypatch.setattr(reward_save, "load_sequence_classifier", load)
    result = train(capsys, tiny, pairs, tmp_path / "out", "--merge", "true")
    assert result.code == 2
    assert "Plain transformers reads other rewards from the saved model" in result.error["error"]
    assert str(tmp_path / "out" / "merged") in str(result.error)


def test_template_that_clients_read_to_another_token_fails_the_run(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case that the check is for: the unchanged tokenizer, with the new line that ChatML adds after a turn."""
    monkeypatch.setattr(reward, "save_reward_tokenizer", save_tokenizer)
    result = train(capsys, tiny, pairs, tmp_path / "out")
    assert result.code == 2
    assert "Plain transformers reads other rewards from the saved model" in result.error["error"]
    assert "is '\\n' in place of ''" in result.error["error"]


def test_a_tokenizer_that_clients_cannot_read_is_named_before_training(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model, "unreadable", lambda chat: "token 9 is '</s>' in place of ''")
    result = train(capsys, tiny, pairs, tmp_path / "merged", "--merge", "true")
    assert result.code == 2 and not contents(tmp_path / "merged")
    assert "token 9 is '</s>'" in result.error["error"] and "--merge" in str(result.error)
    result = train(capsys, tiny, pairs, tmp_path / "out")
    assert result.code == 0 and "only rrm_lm will read these rewards right" in result.err


def test_learning_curve(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    held, out = write_rows(tmp_path / "held.jsonl", pair_rows(12, seed=3)), tmp_path / "out"
    more = ("--eval_dataset_name", held, "--learning_curve", "true", "--save_strategy", "epoch")
    result = train(capsys, tiny, pairs, out, *more)
    assert result.code == 0, result.err
    curve = read(out / "learning_curve.json")
    assert [one["share"] for one in curve["points"]] == [0.25, 0.5, 1.0]
    sizes = [one["comparisons"] for one in curve["points"]]
    assert sizes[0] < sizes[1] < sizes[2] == 20
    accuracies = {folder: read(folder / "results.json")["sets"]["held out"]["accuracy"]["value"]
                  for folder in (out / "learning_curve" / "25", out / "learning_curve" / "50", out)}  # fmt: skip
    assert [one["accuracy"]["value"] for one in curve["points"]] == pytest.approx(list(accuracies.values()))
    assert curve["doubling"]["value"] == pytest.approx(accuracies[out] - accuracies[out / "learning_curve" / "50"])
    assert curve["sentence"] in " ".join(result.out.split())
    assert "one run each" in curve["sentence"]
    # The large run is the same as without a curve.
    train(capsys, tiny, pairs, tmp_path / "plain", "--eval_dataset_name", held)
    assert same(out, tmp_path / "plain")


def test_shares_of_a_learning_curve_are_nested_by_prompt(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    from rrm_lm.runs import reward as learning_curve

    real = learning_curve.split_by_prompt

    def split(*args: Any) -> Any:
        found = real(*args)
        seen.append({record.prompt_id for record in found[0].records()})
        return found

    monkeypatch.setattr(learning_curve, "split_by_prompt", split)
    assert train(capsys, tiny, pairs, tmp_path, "--eval_fraction", 0.2, "--learning_curve", "true").code == 0
    half, quarter = seen
    assert quarter < half and len(quarter) * 2 == pytest.approx(len(half), abs=1)


def test_shares_of_a_learning_curve_have_criteria_if_the_whole_has(
    tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few comparisons get criteria, and a share may have few where the whole does not."""
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(24))
    for few, has_criteria in ((24, True), (12, False)):
        monkeypatch.setattr("rrm_lm.api.reward.criteria.FEW", few)
        out = tmp_path / str(few)
        result = train(capsys, tiny, rows, out, "--eval_fraction", 0.1, "--learning_curve", "true", "--max_steps", 1)
        assert result.code == 0, result.err
        for folder in (out, out / "learning_curve" / "50", out / "learning_curve" / "25"):
            assert (folder / "criteria.yaml").is_file() is has_criteria


def test_shares_whose_critiques_name_nothing_have_no_criteria(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """The user asked for no criteria, so their absence is no error, least of all after the training."""
    critiques = {n: ["Far too long."] if n == 1 else [] for n in range(16)}
    rows = [row | {"chosen_critiques": [], "rejected_critiques": critiques[n]} for n, row in enumerate(pair_rows(16))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    result = train(
        capsys, tiny, data, tmp_path / "out", "--eval_fraction", 0.25, "--learning_curve", "true", "--max_steps", 1
    )
    assert result.code == 0, result.err
    shares = [tmp_path / "out" / "learning_curve" / share / "criteria.yaml" for share in ("25", "50")]
    assert (tmp_path / "out" / "criteria.yaml").is_file() and not all(file.is_file() for file in shares)


def test_a_learning_curve_needs_something_held_out(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    result = train(capsys, tiny, pairs, tmp_path / "out", "--eval_fraction", 0, "--learning_curve", "true")
    assert "no learning curve" in result.error["error"]
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
