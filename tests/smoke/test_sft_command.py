"""`rrm-lm sft` from a file of responses to a policy, on a tiny model."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rrm_lm.api.policy import saving as policy_save
from rrm_lm.locks import lock
from rrm_lm.storage import verify
from rrm_lm.training.sft.trainer import SFTTrainer
from tests.smoke.commands import (
    Result,
    adapter,
    check_readable_policy,
    contents,
    flags,
    pair_row,
    pair_rows,
    read,
    run,
    same,
    write_rows,
)
from tests.smoke.conftest import TrainedReward
from tests.tiny import comparison, some_comparisons

CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", 2, "--max_steps", 6)


def shown_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of demonstrations."""
    made = some_comparisons(count, seed=seed, critiques=False)
    return [{"prompt": c.prompt[-1].content, "completion": c.chosen, "kind": "demonstration"} for c in made]


def corrected_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    made = some_comparisons(count, seed=seed, critiques=False)
    return [{"prompt": c.prompt[-1].content, "response": c.rejected, "corrected": c.chosen} for c in made]


def train(capture: Any, model: Path, data: Path, output: Path, *more: object) -> Result:
    """`rrm-lm sft` with a few quick steps; `more` overrides the defaults."""
    settings = {
        "max_length": 120,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "warmup_steps": 0,
        "learning_rate": "5e-3",
        "save_strategy": "no",
        "disable_tqdm": "true",
        "dtype": "float32",
        "use_cpu": "true",
        "lora_r": 4,
    }
    names = ("--model_name_or_path", model, "--output_dir", output, "--dataset_name", data)
    return run(capture, "sft", *names, *flags(settings, more))


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", pair_rows(12))


# -- what a run leaves ----------------------------------------------------------------------------------------------


def test_files_written_by_a_run(tiny: Path, chosen: Path, tmp_path: Path, capsys: Any) -> None:
    held = write_rows(tmp_path / "held.jsonl", pair_rows(6, seed=7))
    folder = tmp_path / "out"
    words = ("--sft_on", "chosen", "--eval_dataset_name", held, "--merge", "true", *CHECKPOINTS)
    result = train(capsys, tiny, chosen, folder, *words)
    assert result.code == 0, result.err
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("adapter_config.json", "adapter_model.safetensors", "policy.json", "merged"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("trainer_state.json", "train_results.json", "eval_results.json", "all_results.json"),
        *("config.yaml", "run.json", "leakage.json", "examples.json"),
        *("checkpoint-2", "checkpoint-4", "checkpoint-6"),
    }
    assert read(folder / "run.json")["outcome"] == "finished"
    assert read(folder / "train_results.json")["train_loss"] > 0
    settings = read(folder / "policy.json")
    assert settings == {
        "base_model": str(tiny),
        "max_length": 120,
        "revision": None,
        "chat_date": None,
        "quantization": None,
        "method": "sft",
    }
    examples = read(folder / "examples.json")
    assert (examples["learned_responses"], examples["held_out_responses"], examples["shortened"]) == (12, 6, 0)
    measured = read(folder / "eval_results.json")
    assert (measured["eval_responses"], measured["eval_prompts"]) == (6, 6)
    assert measured["eval_tokens"] == examples["held_out_tokens"] > 6
    for name in ("eval_loss", "eval_loss_of_backbone", "eval_loss_difference"):
        assert measured[f"{name}_low"] < measured[name] < measured[f"{name}_high"]
    apart = measured["eval_loss"] - measured["eval_loss_of_backbone"]
    assert measured["eval_loss_difference"] == pytest.approx(apart, abs=1e-9)
    assert verify(folder / "checkpoint-6") == [] and same(folder, folder / "checkpoint-6")
    assert "reloaded, and its logits are identical" in result.err and "merged checkpoint in" in result.err
    check_readable_policy(folder, tiny)


def test_the_run_can_be_repeated_from_its_resolved_settings(
    tiny: Path, chosen: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(capsys, tiny, chosen, tmp_path / "one", "--sft_on", "chosen").code == 0
    settings = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert settings["sft_on"] == ["chosen"] and settings["bf16"] is False
    again = run(capsys, "sft", "--config", tmp_path / "one" / "config.yaml", "--output_dir", tmp_path / "two")
    assert again.code == 0, again.err
    assert same(tmp_path / "one", tmp_path / "two")
    assert read(tmp_path / "one" / "eval_results.json") == read(tmp_path / "two" / "eval_results.json")


def test_it_learns_what_it_is_shown(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """All questions have the same answer: after a few steps the held-out loss is far below the backbone's."""
    rows = [{"prompt": f"what is {n}?", "completion": "the sea is blue"} for n in range(24)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    words = ("--max_steps", 20, "--learning_rate", 0.02, "--eval_fraction", 0.25)
    result = train(capsys, tiny, data, tmp_path / "out", *words)
    assert result.code == 0, result.err
    measured = read(tmp_path / "out" / "eval_results.json")
    assert measured["eval_loss"] < 1 < 4 < measured["eval_loss_of_backbone"]
    assert measured["eval_loss_difference_high"] < -3


# -- what is imitated -----------------------------------------------------------------------------------------------


def test_one_example_is_shown_with_what_is_learned_marked(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    data = write_rows(tmp_path / "a[x].jsonl", [{"prompt": "what is [blue]?", "completion": "the sea"}])
    result = train(capsys, tiny, data, tmp_path / "out", "--eval_fraction", 0)
    assert result.code == 0, result.err
    assert f"One example as the model sees it ({data}, row 1). The words in ⟦ ⟧ are learned." in result.err
    prompt = "<|im_start|>user\nwhat is [blue]?<|im_end|>\n<|im_start|>assistant\n"
    assert f"[imitated] {prompt}⟦the sea<|im_end|>⟧\n" in result.err
    assert "no responses are held out, so nothing is measured" in result.err
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_corrections_teach_the_corrected_text(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": "who is it?", "response": "no idea", "corrected": "the moon"}]
    data = write_rows(tmp_path / "a.jsonl", rows)
    result = train(capsys, tiny, data, tmp_path / "out", "--eval_fraction", 0)
    assert result.code == 0, result.err
    assert "⟦the moon<|im_end|>⟧" in result.err and "no idea" not in result.err


def test_several_sources_at_once(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    shown = write_rows(tmp_path / "a.jsonl", shown_rows(4))
    corrected = write_rows(tmp_path / "b.jsonl", corrected_rows(3, seed=1))
    pairs = write_rows(tmp_path / "c.jsonl", pair_rows(5, seed=2))
    more = ("--dataset_name", shown, corrected, pairs, "--eval_fraction", 0)
    result = train(capsys, tiny, shown, tmp_path / "two", *more)
    assert "to learn from: 7 responses; held out: 0" in result.err, result.err
    result = train(capsys, tiny, shown, tmp_path / "all", *more, "--sft_on", "chosen", "demonstrations", "corrections")
    assert "to learn from: 12 responses; held out: 0" in result.err, result.err
    result = train(capsys, tiny, shown, tmp_path / "some", *more, "--sft_on", "chosen", "--max_comparisons", 2)
    assert "to learn from: 2 responses; held out: 0" in result.err, result.err


def test_comparisons_are_imitated_only_on_request(tiny: Path, chosen: Path, tmp_path: Path, capsys: Any) -> None:
    result = train(capsys, tiny, chosen, tmp_path / "out")
    assert result.code == 2
    assert "There is nothing to imitate" in result.error["error"] and "12 comparisons" in result.error["error"]
    assert "--sft_on chosen" in result.error["what to do"] and result.error["where"] == str(chosen)
    assert contents(tmp_path / "out") == {}


def test_truncated_examples_are_reported(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    long = {"prompt": "who is it?", "completion": "the moon and the sea " * 40}
    data = write_rows(tmp_path / "a.jsonl", [*shown_rows(4), long])
    result = train(capsys, tiny, data, tmp_path / "out", "--eval_fraction", 0)
    assert result.code == 0, result.err
    told = "left out, the response leaves no room for its prompt in 120 tokens: 1 (row 5)"
    assert f"warning: to fit max_length 120: {told}" in result.err
    assert read(tmp_path / "out" / "examples.json")["learned_responses"] == 4
    only = write_rows(tmp_path / "b.jsonl", [long])
    result = train(capsys, tiny, only, tmp_path / "none", "--eval_fraction", 0)
    assert result.code == 2 and "No feedback is left to train on" in result.error["error"]


def test_recorded_length_is_the_maximum(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    data = write_rows(tmp_path / "a.jsonl", shown_rows(4))
    result = train(capsys, tiny, data, tmp_path / "out", "--max_length", 4096, "--eval_fraction", 0)
    assert "max_length is 512, not 4096" in result.err
    assert read(tmp_path / "out" / "policy.json")["max_length"] == 512


def test_the_overlap_with_the_held_out_set_is_reported_or_refused(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    row = pair_row(comparison("please write two words about the sea and the moon and who lives there", "a", "b"))
    data = write_rows(tmp_path / "train.jsonl", [*pair_rows(4), row])
    held = write_rows(tmp_path / "held.jsonl", [*pair_rows(3, seed=3), row])
    words = ("--sft_on", "chosen", "--eval_dataset_name", held)
    refused = train(capsys, tiny, data, tmp_path / "out", *words, "--fail_on_leak", "true")
    assert refused.code == 2 and "1 of 4 held-out records overlap" in refused.error["error"]
    assert contents(tmp_path / "out") == {}
    assert train(capsys, tiny, data, tmp_path / "out", *words).code == 0
    assert read(tmp_path / "out" / "leakage.json")["found"]


# -- training on ----------------------------------------------------------------------------------------------------


def test_training_continues_from_a_policy(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """It continues from its weights, with its own LoRA settings, and keeps the name of its backbone."""
    data = write_rows(tmp_path / "a.jsonl", shown_rows(8))
    assert train(capsys, tiny, data, tmp_path / "first", "--lora_r", 2).code == 0
    result = train(capsys, tmp_path / "first", data, tmp_path / "second", "--learning_rate", 0)
    assert result.code == 0, result.err
    assert same(tmp_path / "first", tmp_path / "second")
    assert read(tmp_path / "second" / "policy.json")["base_model"] == str(tiny)
    assert read(tmp_path / "second" / "adapter_config.json")["r"] == 2
    result = train(capsys, tmp_path / "second", data, tmp_path / "second", "--overwrite_output_dir", "true")
    assert result.code == 0, result.err  # in its own place
    assert not same(tmp_path / "first", tmp_path / "second")


def test_reward_model_is_not_a_policy(trained: TrainedReward, chosen: Path, tmp_path: Path, capsys: Any) -> None:
    for model in (trained.folder, trained.merged):
        result = train(capsys, model, chosen, tmp_path / "out", "--sft_on", "chosen")
        assert result.code == 2 and "scores responses but does not write them" in result.error["error"]
        assert contents(tmp_path / "out") == {}


# -- interruptions --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> Any:
    """The user presses Ctrl-C in this step."""
    own = SFTTrainer.training_step

    def training_step(self: SFTTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", training_step)
        yield


def test_stopped_run_resumes_bit_for_bit(
    tiny: Path, chosen: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--sft_on", "chosen", *CHECKPOINTS, "--lora_dropout", 0.1, "--logging_steps", 1)
    assert train(capsys, tiny, chosen, tmp_path / "whole", *words).code == 0
    with interrupted(monkeypatch, 3):
        assert train(capsys, tiny, chosen, tmp_path / "parts", *words).code == 130
    assert verify(tmp_path / "parts" / "checkpoint-2") == []
    assert not (tmp_path / "parts" / "adapter_model.safetensors").exists()
    refused = train(capsys, tiny, chosen, tmp_path / "parts", *words)
    assert refused.code == 2 and "--resume_from_checkpoint true" in refused.error["what to do"]
    other = train(capsys, tiny, chosen, tmp_path / "parts", *words, "--lora_r", 8, "--resume_from_checkpoint", "true")
    assert other.code == 2 and "lora_r was 4 and is 8" in other.error["error"]
    rest = train(capsys, tiny, chosen, tmp_path / "parts", *words, "--resume_from_checkpoint", "true")
    assert rest.code == 0, rest.err
    assert same(tmp_path / "whole", tmp_path / "parts")
    logs = [read(tmp_path / name / "trainer_state.json")["log_history"][-2] for name in ("whole", "parts")]
    assert logs[0]["loss"] == logs[1]["loss"]


def test_diverging_learning_rate(tiny: Path, chosen: Path, tmp_path: Path, capsys: Any) -> None:
    result = train(capsys, tiny, chosen, tmp_path / "out", "--sft_on", "chosen", "--learning_rate", 1e30)
    assert result.code == 2
    assert result.error["error"].startswith("The loss is nan; training stopped before the step")
    assert f"responses from {chosen}, row " in result.error["where"]


def test_a_folder_in_use_and_a_folder_of_another_command(
    trained: TrainedReward, tiny: Path, chosen: Path, tmp_path: Path, capsys: Any
) -> None:
    with lock(tmp_path / "out" / ".lock", what="The output folder"):
        result = train(capsys, tiny, chosen, tmp_path / "out", "--sft_on", "chosen")
    assert result.code == 2 and "in use by another run" in result.error["error"]
    copy = shutil.copytree(trained.folder, tmp_path / "reward")
    before = contents(copy)
    result = train(capsys, tiny, chosen, copy, "--sft_on", "chosen", "--overwrite_output_dir", "true")
    assert result.code == 2 and "what `rrm-lm reward` made" in result.error["error"]
    assert contents(copy) == before


# -- checks after saving --------------------------------------------------------------------------------------------


def test_reload_with_different_logits_fails_the_run(
    tiny: Path, chosen: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = policy_save.load_policy

    def load(*args: Any, **kwargs: Any) -> Any:
        policy = own(*args, **kwargs)
        next(p for name, p in policy.backbone.named_parameters() if "lora_B" in name).data += 1e-3
        return policy

    monkeypatch.setattr(policy_save, "load_policy", load)
    result = train(capsys, tiny, chosen, tmp_path / "out", "--sft_on", "chosen")
    assert result.code == 2
    assert "The saved policy gives different logits than the trained one" in result.error["error"]


def test_merged_checkpoint_with_different_probabilities_fails_the_run(
    tiny: Path, chosen: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = policy_save.load_causal_lm

    def load(*args: Any, **kwargs: Any) -> Any:
        model: Any = own(*args, **kwargs)
        model.lm_head.weight.data *= 1.1
        return model

    monkeypatch.setattr(policy_save, "load_causal_lm", load)
    result = train(capsys, tiny, chosen, tmp_path / "out", "--sft_on", "chosen", "--merge", "true")
    assert result.code == 2
    assert "The merged checkpoint gives different probabilities than the adapter" in result.error["error"]


@pytest.mark.parametrize("precision", [("--bf16", "true"), ("--dtype", "bfloat16")])
def test_half_precision(precision: tuple[str, str], tiny: Path, chosen: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--sft_on", "chosen", "--merge", "true", *precision)
    result = train(capsys, tiny, chosen, tmp_path / "out", *words)
    assert result.code == 0, result.err
    assert "reloaded, and its logits are identical" in result.err
    assert all(tensor.dtype == torch.float32 for tensor in adapter(tmp_path / "out").values())


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--lora_target_modules", "no_such_layer"), "cannot be put on this model"),
        (("--lora_target_modules", "lm_head", "q_proj"), "No trainer can be made with these settings"),
        (("--eval_strategy", "epoch", "--eval_fraction", 0), "there are no held-out responses"),
        (("--sft_on", "everything"), "sft_on is ['everything']"),
        (("--learnin_rate", 1), "did you mean `--learning_rate`?"),
    ],
)
def test_settings_that_do_not_fit(
    words: tuple[object, ...], what: str, tiny: Path, chosen: Path, tmp_path: Path, capsys: Any
) -> None:
    sources = () if words[0] == "--sft_on" else ("--sft_on", "chosen")
    result = train(capsys, tiny, chosen, tmp_path / "out", *sources, *words)
    assert result.code == 2, result.err
    assert what in result.error["error"]
    assert contents(tmp_path / "out") == {}


def test_nothing_to_learn_from(capsys: Any) -> None:
    result = run(capsys, "sft")
    assert result.code == 2 and result.error["error"] == "`dataset_name` is not given"


def test_help_begins_with_examples(capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        run(capsys, "sft", "--help")
    assert not left.value.code
    page = capsys.readouterr().out
    assert page.startswith("Examples:\n  rrm-lm sft") and "--sft_on chosen" in page and "--eos_token" not in page
