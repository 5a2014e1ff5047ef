"""`rrm-lm policy` from prompts and rewards to a policy and a page about it, on tiny models."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rrm_lm.storage import verify
from rrm_lm.training.ppo.trainer import PPOTrainer
from tests.smoke.commands import adapter, check_readable_policy, contents, read, run, same, write_rows
from tests.smoke.conftest import TrainedReward
from tests.smoke.policies import CHECKPOINTS, HELD_OUT, QUESTIONS, measured, same_values, teach, updates, write_prompts
from tests.smoke.test_sft_command import shown_rows
from tests.smoke.test_sft_command import train as imitate
from tests.tiny import save_tiny_model


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "data")


def rewards(prompts: Path, *names: str) -> list[str]:
    return [f"{prompts.parent / 'rewards.py'}:{name}" for name in names]


def watched(prompts: Path) -> tuple[object, ...]:
    """Flags for the monitor with a gold reward."""
    return ("--eval_prompts", prompts.parent / "heldout.jsonl", "--gold", *rewards(prompts, "gold"))


# -- what a run leaves ----------------------------------------------------------------------------------------------


def test_files_written_by_a_run(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out"
    words = (*watched(prompts), "--monitor_steps", 4, "--merge", "true", *CHECKPOINTS)
    result = teach(capsys, tiny, prompts, folder, *words)
    assert result.code == 0, result.err
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("adapter_config.json", "adapter_model.safetensors", "policy.json", "value.safetensors", "merged"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("trainer_state.json", "train_results.json", "all_results.json", "over_optimisation.jsonl"),
        *("config.yaml", "run.json", "report.html", "checkpoint-4", "checkpoint-6"),
    }
    assert read(folder / "run.json")["outcome"] == "finished"
    settings = read(folder / "policy.json")
    assert settings == {
        "base_model": str(tiny),
        "max_length": 512,
        "revision": None,
        "chat_date": None,
        "quantization": None,
        "method": "ppo",
    }
    found = read(folder / "train_results.json")
    assert (found["updates"], found["episodes"], found["ended"]) == (6, 24, "")
    assert found["objective/scores"] == updates(folder)[-1]["objective/scores"]
    assert found["objective/scores"] == pytest.approx(found["reward/counting"])
    assert verify(folder / "checkpoint-6") == [] and same(folder, folder / "checkpoint-6")
    assert "reloaded, and its logits are identical" in result.err and "merged checkpoint in" in result.err
    check_readable_policy(folder, tiny)


def test_monitor_and_page(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = (*watched(prompts), "--monitor_steps", 2, "--monitor_prompts", 3)
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words)
    assert result.code == 0, result.err
    taken = measured(tmp_path / "out")
    assert [one["step"] for one in taken] == [0, 2, 3] and taken[0]["names"] == ["gold", "counting"]
    assert all(len(one["samples"]) == 3 for one in taken)
    for probe in taken[-1]["samples"]:
        text = probe["response"]
        assert probe["gold"] == pytest.approx(text.count("e") + len(text) / 50)
    assert all(abs(probe["kl"]) < 1e-4 for probe in taken[0]["samples"])  # it began as its reference
    assert any(probe["kl"] > 1e-3 for probe in taken[-1]["samples"])
    assert "step 2, held out: kl " in result.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", page).replace("https://arxiv.org", "")
    for text in (
        "Policy training report",
        "after training compared with before training",
        "Over-optimization",
        "counting",
    ):
        assert text in page
    assert all(question in page for question in HELD_OUT[:3]) and HELD_OUT[3] not in page
    assert "3 updates of 4 episodes each" in page
    assert "3 prompts" in result.out and "after training: mean gold reward" in result.out


def test_the_terminal_shows_one_prompt_and_a_line_for_each_update(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    result = teach(capsys, tiny, prompts, tmp_path / "out")
    assert result.code == 0, result.err
    shown = f"[prompt] <|im_start|>user\n{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n▶"
    assert shown in result.err and "The policy writes on from ▶" in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("update ")]
    number = r"[+-]?\d+\.\d+"
    pattern = rf"update (\d) of 3: reward {number}, KL {number}, \d+% ended, {number} tokens, {number} s(, \d+ s left)?"
    matches = [re.fullmatch(pattern, line) for line in lines]
    assert all(matches) and [match[1] for match in matches if match] == ["1", "2", "3"]
    assert "objective/" not in result.err + result.out and "it/s]" not in result.out
    assert "Nothing was measured on held-out prompts" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "over_optimisation.jsonl").exists()


def test_the_run_can_be_repeated_from_its_resolved_settings(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    assert teach(capsys, tiny, prompts, tmp_path / "one", "--eval_fraction", 0.3).code == 0
    settings = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert settings["total_episodes"] is None and settings["max_steps"] == 3 and "batch_size" not in settings
    words = ("--config", tmp_path / "one" / "config.yaml", "--output_dir", tmp_path / "two")
    refused = run(capsys, "policy", *words)  # its reward is a function in a file
    assert refused.code == 2 and "--allow_code" in refused.error["what to do"]
    assert "To repeat it: --config THIS_FILE --allow_code\n" in (tmp_path / "one" / "config.yaml").read_text()
    again = run(capsys, "policy", *words, "--allow_code")
    assert again.code == 0, again.err
    assert same(tmp_path / "one", tmp_path / "two") and updates(tmp_path / "one") == updates(tmp_path / "two")
    assert measured(tmp_path / "one") == measured(tmp_path / "two")


def test_it_learns_what_is_rewarded(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--reward_function", *rewards(prompts, "gold"), "--max_steps", 12, "--per_device_train_batch_size", 16)
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words, "--kl_coef", 0.01, "--learning_rate", 0.02)
    assert result.code == 0, result.err
    scores = [entry["objective/scores"] for entry in updates(tmp_path / "out")]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.3


# -- rewards --------------------------------------------------------------------------------------------------------


def test_two_functions_are_summed_with_weights(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--reward_function", *rewards(prompts, "counting", "short"), "--reward_weights", 2, 0.5)
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words, "--eval_fraction", 0.4)
    assert result.code == 0, result.err
    for entry in updates(tmp_path / "out"):
        total = 2 * entry["reward/counting"] + 0.5 * entry["reward/short"]
        assert entry["objective/scores"] == pytest.approx(total, abs=1e-5)
    assert re.search(r"update 1 of 3: reward \S+ \(counting \S+, short \S+\), KL", result.err)
    assert measured(tmp_path / "out")[0]["names"] == ["gold", "sum of rewards"]
    assert "Each reward" in (tmp_path / "out" / "report.html").read_text()


def test_reward_adapter_shares_its_backbone_with_the_policy(
    trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the same rewards as with its own backbone, and no second backbone is loaded for it."""
    loaded: list[str] = []
    from rrm_lm.api.policy import rewards as policy_rewards

    own = policy_rewards.load_scorer

    def load(name: str, **options: Any) -> Any:
        loaded.append(name)
        return own(name, **options)

    monkeypatch.setattr(policy_rewards, "load_scorer", load)
    before = contents(trained.folder)
    functions = rewards(prompts, "short")
    words = ("--reward_function", *functions, "--reward_weights", 3, 0.25)
    model = (trained.model, prompts, tmp_path / "shared")
    result = teach(capsys, *model, "--reward_model", trained.folder, *words, "--eval_fraction", 0.4)
    assert result.code == 0, result.err
    assert loaded == [] and f"{trained.folder}: a reward model, on the policy's own backbone" in result.err
    for entry in updates(tmp_path / "shared"):
        total = 3 * entry["reward/reward"] + 0.25 * entry["reward/short"]
        assert entry["objective/scores"] == pytest.approx(total, abs=1e-4)
    assert contents(trained.folder) == before
    words = ("--reward_model", trained.merged, "--max_steps", 1)
    assert teach(capsys, trained.model, prompts, tmp_path / "apart", *words).code == 0
    assert loaded == [str(trained.merged)]


def test_reward_model_with_another_backbone_loads_it(
    trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    other = save_tiny_model(tmp_path / "other", "qwen3", seed=3)
    result = teach(capsys, other, prompts, tmp_path / "out", "--reward_model", trained.folder, "--max_steps", 1)
    assert result.code == 0, result.err
    assert "gets its own backbone: The reward model was trained on another backbone" in result.err
    assert updates(tmp_path / "out")[0]["reward/reward"] == updates(tmp_path / "out")[0]["objective/scores"]


def test_independent_reward_model_monitors(trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--eval_prompts", prompts.parent / "heldout.jsonl", "--monitor_reward_model", trained.merged)
    result = teach(capsys, trained.model, prompts, tmp_path / "out", *words)
    assert result.code == 0, result.err
    taken = measured(tmp_path / "out")
    assert taken[0]["names"] == ["merged", "counting"]
    assert all(probe["gold"] is not None for one in taken for probe in one["samples"] if probe["response"])
    assert "mean reward by merged" in result.out


# -- where it starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["start", "base"])
def test_it_starts_from_a_policy(reference: str, tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    data = write_rows(tmp_path / "shown.jsonl", shown_rows(8))
    assert imitate(capsys, tiny, data, tmp_path / "sft", "--lora_r", 2, "--learning_rate", 0.05).code == 0
    words = ("--reference", reference, "--eval_fraction", 0.4)
    result = teach(capsys, tmp_path / "sft", prompts, tmp_path / "out", *words)
    assert result.code == 0, result.err
    first = updates(tmp_path / "out")[0]["objective/kl"]
    assert abs(first) < 1e-4 if reference == "start" else first > 1e-3
    at_start = sum(probe["kl"] for probe in measured(tmp_path / "out")[0]["samples"])
    assert abs(at_start) < 1e-3 if reference == "start" else at_start > 1e-3
    assert read(tmp_path / "out" / "adapter_config.json")["r"] == 2
    assert read(tmp_path / "out" / "policy.json")["base_model"] == str(tiny)
    assert not same(tmp_path / "sft", tmp_path / "out")


@pytest.mark.parametrize(("kind", "dtype"), [("adapter", "float32"), ("model", "float32"), ("model", "bfloat16")])
def test_other_value_functions(kind: str, dtype: str, tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    result = teach(capsys, tiny, prompts, tmp_path / "out", "--value_function", kind, "--dtype", dtype)
    assert result.code == 0, result.err
    weights = load_file(tmp_path / "out" / "value.safetensors")
    assert sum(map(torch.numel, weights.values())) > 1000  # more than a head
    assert {weight.dtype for weight in weights.values()} == {torch.float32}  # what is trained
    assert AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out")) is not None


# -- interruptions --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, update: int) -> Any:
    """The user presses Ctrl-C in this update."""
    own = PPOTrainer.score

    def score(self: PPOTrainer, rollouts: Any) -> Any:
        if self.state.global_step == update:
            raise KeyboardInterrupt
        return own(self, rollouts)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "score", score)
        yield


def test_stopped_run_resumes_bit_for_bit(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*watched(prompts), "--monitor_steps", 1, "--kl_control", "adaptive", *CHECKPOINTS)
    assert teach(capsys, tiny, prompts, tmp_path / "whole", *words).code == 0
    with interrupted(monkeypatch, 3):
        assert teach(capsys, tiny, prompts, tmp_path / "parts", *words).code == 130
    assert verify(tmp_path / "parts" / "checkpoint-2") == []
    assert not (tmp_path / "parts" / "adapter_model.safetensors").exists()
    refused = teach(capsys, tiny, prompts, tmp_path / "parts", *words)
    assert refused.code == 2 and "--resume_from_checkpoint true" in refused.error["what to do"]
    on = ("--resume_from_checkpoint", "true")
    other = teach(capsys, tiny, prompts, tmp_path / "parts", *words, *on, "--value_function", "adapter")
    assert other.code == 2 and "value_function was 'head' and is 'adapter'" in other.error["error"]
    rest = teach(capsys, tiny, prompts, tmp_path / "parts", *words, *on)
    assert rest.code == 0, rest.err
    check_same(tmp_path / "whole", tmp_path / "parts")


def check_same(one: Path, other: Path) -> None:
    """All files of two runs are the same except for times."""
    assert same(one, other) and same_values(one, other)
    assert updates(one) == updates(other)
    assert (one / "over_optimisation.jsonl").read_bytes() == (other / "over_optimisation.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_run_resumes_bit_for_bit(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    """A separate process is killed while it computes a reward, in the update after a checkpoint."""
    waiting = tmp_path / "waiting"
    code = f"import pathlib, time, rewards\ncalls = []\ndef counting(prompts, responses):\n    calls.append(1)\n" \
        f"    if len(calls) == 7:\n        pathlib.Path({str(waiting)!r}).touch()\n        time.sleep(300)\n" \
        f"    return rewards.counting(prompts, responses)\n"  # fmt: skip
    (prompts.parent / "slow.py").write_text(code)
    words = (*watched(prompts), "--monitor_steps", 3, *CHECKPOINTS)
    assert teach(capsys, tiny, prompts, tmp_path / "whole", *words).code == 0
    settings = (tmp_path / "whole" / "config.yaml").read_text()
    (tmp_path / "killed.yaml").write_text(settings.replace("rewards.py:counting", "slow.py:counting"))
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "rrm_lm", "policy", "--allow_code", "--config", tmp_path / "killed.yaml", "--output_dir",
         tmp_path / "killed"],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{prompts.parent}"},
        cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not waiting.is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    (prompts.parent / "slow.py").write_text((prompts.parent / "rewards.py").read_text())
    words = ("--allow_code", "--config", tmp_path / "killed.yaml", "--output_dir", tmp_path / "killed")
    refused = run(capsys, "policy", *words, "--resume_from_checkpoint", "true")  # the reward is other code now
    assert refused.code == 2 and "contents of " in refused.error["error"] and "slow.py" in refused.error["error"]
    rest = run(capsys, "policy", *words, "--resume_from_checkpoint", "true", "--allow_config_change", "true")
    assert rest.code == 0, rest.err
    check_same(tmp_path / "whole", tmp_path / "killed")


def test_training_stops_when_kl_diverges(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = (*watched(prompts), "--max_kl", 0.5, "--learning_rate", 0.1, "--max_steps", 8, "--monitor_steps", 1)
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words)
    assert result.code == 0, result.err
    found = read(tmp_path / "out" / "train_results.json")
    assert found["updates"] < 8 and found["ended"].startswith("the KL divergence to the reference is")
    assert "above max_kl 0.5" in (tmp_path / "out" / "report.html").read_text()
    # What the page calls after training is the policy that is kept, not the one that ran away.
    last = sum(probe["kl"] for probe in measured(tmp_path / "out")[-1]["samples"]) / 4
    assert last > 0.5 and "KL to the reference" in (tmp_path / "out" / "report.html").read_text()
    policy = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert isinstance(policy, torch.nn.Module)


def test_training_stops_when_over_optimised(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    """The gold reward falls whatever the policy does, so the best policy is the initial one."""
    gold = ("--eval_prompts", prompts.parent / "heldout.jsonl", "--gold", *rewards(prompts, "falling"))
    words = (*gold, "--monitor_steps", 1, "--stop_when_over_optimised", "true")
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words)
    assert result.code == 0, result.err
    assert [one["step"] for one in measured(tmp_path / "out")] == [0, 1]
    assert "warning: over-optimisation at step 1: gold reward is" in result.err
    ended = read(tmp_path / "out" / "train_results.json")["ended"]
    assert "below that of step 0" in ended and ended.endswith("the policy is that of step 0, the best one")
    assert not any(value.any() for name, value in adapter(tmp_path / "out").items() if "lora_B" in name)
    assert same_values(tmp_path / "out", tmp_path / "out" / "best")
    other = (*gold, "--monitor_steps", 1)
    assert teach(capsys, tiny, prompts, tmp_path / "on", *other).code == 0
    assert len(measured(tmp_path / "on")) == 4


def test_folder_of_another_command_is_not_changed(
    trained: TrainedReward, prompts: Path, capsys: Any, tmp_path: Path
) -> None:
    before = contents(trained.folder)
    words = ("--overwrite_output_dir", "true")
    result = teach(capsys, trained.model, prompts, trained.folder, *words)
    assert result.code == 2 and "what `rrm-lm reward` made" in result.error["error"]
    assert contents(trained.folder) == before


# -- RLOO -----------------------------------------------------------------------------------------------------------


def test_rloo_writes_the_same_files(trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    """Two steps per update: updates, not steps, are counted, measured and logged."""
    words = ("--algorithm", "rloo", "--samples_per_prompt", 2, "--num_ppo_epochs", 2, "--save_strategy", "no")
    both = ("--reward_model", trained.folder, "--reward_function", *rewards(prompts, "short"))
    more = ("--reward_weights", 2, 0.1, "--merge", "true", "--monitor_steps", 2)
    result = teach(capsys, trained.model, prompts, tmp_path / "out", *words, *both, *more, *watched(prompts))
    assert result.code == 0, result.err
    assert "a reward model, on the policy's own backbone" in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("update ")]
    assert [line.partition(":")[0] for line in lines] == [f"update {number} of 3" for number in (1, 2, 3)]
    for entry in updates(tmp_path / "out"):
        total = 2 * entry["reward/reward"] + 0.1 * entry["reward/short"]
        assert entry["objective/scores"] == pytest.approx(total, abs=1e-4)
    assert [one["step"] for one in measured(tmp_path / "out")] == [0, 4, 6]
    first, *_, last = measured(tmp_path / "out")
    assert all(abs(probe["kl"]) < 1e-4 for probe in first["samples"])
    assert any(abs(probe["kl"]) > 1e-2 for probe in last["samples"])  # it learned, with a reward adapter beside it
    assert abs(updates(tmp_path / "out")[0]["objective/kl"]) < 1e-4 < abs(updates(tmp_path / "out")[-1]["objective/kl"])
    assert "3 updates of 4 episodes each" in (tmp_path / "out" / "report.html").read_text()
    assert read(tmp_path / "out" / "policy.json")["method"] == "rloo"
    assert read(tmp_path / "out" / "train_results.json")["updates"] == 3
    assert not (tmp_path / "out" / "value.safetensors").exists()
    assert AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out")) is not None
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "out" / "merged")) is not None


def test_stopped_rloo_run_resumes_bit_for_bit(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--algorithm", "rloo", "--samples_per_prompt", 2, "--num_ppo_epochs", 1, *CHECKPOINTS)
    assert teach(capsys, tiny, prompts, tmp_path / "whole", *words, *watched(prompts)).code == 0
    on = ("--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-4")
    result = teach(capsys, tiny, prompts, tmp_path / "rest", *words, *on, *watched(prompts))
    assert result.code == 0, result.err
    assert same(tmp_path / "whole", tmp_path / "rest")


def test_one_sample_is_too_few_for_rloo(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    result = teach(capsys, tiny, prompts, tmp_path / "out", "--algorithm", "rloo")
    assert result.code == 2 and result.error["error"] == "samples_per_prompt is 1"
    assert contents(tmp_path / "out") == {}
