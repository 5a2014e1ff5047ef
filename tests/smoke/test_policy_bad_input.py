"""User errors with `rrm-lm policy`, and errors while it runs: one message with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from rrm_lm.api.policy import saving as policy_save
from rrm_lm.locks import lock
from rrm_lm.models import agent_files
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.pretrained import load_sequence_classifier
from rrm_lm.storage import verify
from tests.smoke.commands import contents, read, run, write_rows
from tests.smoke.conftest import TrainedReward
from tests.smoke.policies import CHECKPOINTS, QUESTIONS, teach, updates, write_prompts
from tests.tiny import CHATML, save_tiny_model, tiny_tokenizer
from tests.tiny_policy import written


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "data")


def names(prompts: Path, trained: TrainedReward, tmp_path: Path) -> dict[str, Path]:
    """Placeholders for files in the tables below."""
    data = prompts.parent
    long, empty = "the sea is blue because " * 200, {"prompt": " "}
    silent = {"prompt": [{"role": "system", "content": "be short"}]}
    return {
        "REWARDS": data / "rewards.py",
        "PROMPTS": prompts,
        "HELD": data / "heldout.jsonl",
        "LONG": write_rows(data / "long.jsonl", [{"prompt": "who is it?"}, {"prompt": long}]),
        "EMPTY": write_rows(data / "empty.jsonl", [{"prompt": "who is it?"}, empty]),
        "SILENT": write_rows(data / "silent.jsonl", [{"prompt": "who is it?"}, silent]),
        "OTHERS": write_rows(data / "others.jsonl", [{"request": "another question", "mentions": ["x"]}]),
        "REWARD": trained.folder,
        "MERGED": trained.merged,
        "OUT": tmp_path / "out",
    }


# -- before training: nothing is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what", "where"),
    [
        (("--prompts", "EMPTY"), "column 'prompt' is empty", "EMPTY, row 2"),
        (("--prompts", "SILENT"), "the prompt has no user turn with text in it", "SILENT, row 2"),
        (("--prompts", "LONG"), "and a response of 6 do not fit the model's 512 positions", "the sea is blue because"),
        (("--prompts", "gone.jsonl"), "there is no such file", "gone.jsonl"),
        (("--max_length", 6), "6 tokens of a response leave no tokens for the prompt", "max_length"),
        (("--response_length", 600), "leave no tokens for the prompt, with 512 in all", "response_length"),
        (("--reward_function", "REWARDS:missing"), "There is no function 'missing'", "REWARDS"),
        (("--reward_function", "REWARDS:number"), "There is no function 'number'", "REWARDS"),
        (("--reward_function", "gone.py:f"), "The reward function cannot be loaded (FileNotFoundError", "gone.py:f"),
        (("--reward_function", "REWARDS:short", "REWARDS:short"), "is given twice", "reward_function"),
        (("--reward_weights", 1, 2), "There are 2 weights for 1 rewards", "reward_weights"),
        (("--reward_model", "./gone"), "There is no such folder", "./gone"),
        (("--model_name_or_path", "REWARD"), "This is a reward model, which scores responses", "REWARD"),
        (("--output_dir", "REWARD", "--reward_model", "REWARD"), "is in the output folder", "REWARD"),
        (("--value_model", "MERGED"), "There is a value_model, and value_function is head", "value_model"),
        (("--value_function", "tree"), "value_function is 'tree'", "value_function"),
        (("--value_function", "model", "--value_model", "WIDE"), "The value model has 3 outputs", "WIDE"),
        (("--reward_model", "WIDE"), "The classifier has 3 outputs", "WIDE"),
        (("--lora_target_modules", "no_such_layer"), "LoRA with these settings cannot be put", "lora_r"),
        (("--stop_token_id", 5000), "There is no token 5000", "stop_token_id"),
        (("--stop_token", "eos", "--stop_token_id", 2), "Both stop_token and stop_token_id are set", "stop_token"),
        (("--samples_per_prompt", 3), "4 episodes a process cannot be divided by 3", "samples_per_prompt"),
        (("--gold", "REWARDS:gold"), "to monitor the policy by, and no held-out prompt", "eval_prompts"),
        (("--gold", "nothing", "--eval_prompts", "HELD"), "There is no gold reward 'nothing'", "gold"),
        (("--gold", "OTHERS", "--monitor_reward_model", "REWARD"), "Both gold and monitor_reward_model", ""),
        (("--stop_when_over_optimised", "true"), "no independent reward that would show over-optimization", ""),
        (("--monitor_steps", 0), "monitor_steps is 0", ""),
        (("--algorithm", "dpo"), "algorithm is 'dpo'", "algorithm"),
        (("--eval_strategy", "steps"), "eval_strategy is steps", "eval_strategy"),
        (("--learnin_rate", 1), "did you mean `--learning_rate`?", "the command line"),
        (("--reward_model_path", "x"), "There is no flag `--reward_model_path`", "the command line"),
    ],
)  # fmt: skip
def test_pipelines_that_are_refused(
    words: tuple[Any, ...], what: str, where: str, trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    known = names(prompts, trained, tmp_path)
    if "WIDE" in words:
        known["WIDE"] = tmp_path / "wide"
        load_sequence_classifier(str(trained.model), num_labels=3).save_pretrained(str(known["WIDE"]))
        tiny_tokenizer().save_pretrained(str(known["WIDE"]))

    def put(text: Any) -> Any:
        for name, path in known.items():
            text = text.replace(name, str(path)) if isinstance(text, str) and not text.startswith("--") else text
        return text

    before = contents(trained.folder)
    result = teach(capsys, trained.model, prompts, tmp_path / "out", *map(put, words))
    assert result.code == 2, result.err
    assert what in result.error["error"]
    assert put(where) in result.error.get("where", "")
    assert contents(tmp_path / "out") == {} and contents(trained.folder) == before


@pytest.mark.parametrize("places", [(0,), (1, 3), (0, 1, 2, 3)])
def test_prompts_that_the_template_refuses_are_skipped(places: tuple[int, ...], tmp_path: Path, capsys: Any) -> None:
    template = "{{ raise_exception('no system messages') if messages[0].role == 'system' }}" + CHATML
    model = save_tiny_model(tmp_path / "strict", tokenizer=tiny_tokenizer(template))
    prompts = write_prompts(tmp_path / "data")
    system, user = {"role": "system", "content": "be short"}, {"role": "user", "content": "who is it?"}
    talks = [[system, {**user, "content": f"who is it? {n}"}][n not in places :] for n in range(4)]
    write_rows(prompts, [{"prompt": talk} for talk in talks])
    words = ("--skip_bad_rows", "true", "--max_steps", 1)
    result = teach(capsys, model, prompts, tmp_path / "out", *words)
    if len(places) == 4:
        assert result.code == 2 and "refuses all prompts" in result.error["error"]
    else:
        assert result.code == 0, result.err
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_no_prompts_and_no_reward(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--model_name_or_path", tiny, "--output_dir", tmp_path / "out", "--use_cpu", "true")
    result = run(capsys, "policy", *words, "--prompts", prompts)
    assert result.code == 2 and result.error["error"] == "There is no reward to train on"
    result = run(capsys, "policy", *words, "--reward_function", f"{prompts.parent / 'rewards.py'}:short")
    assert result.code == 2 and result.error["error"] == "`prompts` is not given"
    assert contents(tmp_path / "out") == {}


def test_long_prompt_is_truncated_if_asked(trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    long = names(prompts, trained, tmp_path)["LONG"]
    result = teach(capsys, trained.model, long, tmp_path / "out", "--max_length", 40)
    assert result.code == 0, result.err
    assert "warning: 1 of 2 prompts are longer than the 34 tokens that max_length leaves for them" in result.err
    assert read(tmp_path / "out" / "policy.json")["max_length"] == 40


def test_held_out_prompts_in_the_training_set_are_reported(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = [{"prompt": question} for question in (QUESTIONS[0].upper(), "is this new?")]
    held = write_rows(tmp_path / "held.jsonl", rows)
    result = teach(capsys, tiny, prompts, tmp_path / "out", "--eval_prompts", held, "--max_steps", 1)
    assert result.code == 0, result.err
    assert "warning: 1 of 2 held-out prompts are also training prompts" in result.err


def test_two_runs_in_one_folder(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    with lock(tmp_path / "out" / ".lock", what="The output folder"):
        result = teach(capsys, tiny, prompts, tmp_path / "out")
    assert result.code == 2 and "in use by another run" in result.error["error"]


# -- rewards that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raising", "The reward raising raised KeyError: 'no such word'"),
        ("nothing", "The reward nothing gave nan"),
        ("one", "The reward one gave 1 rewards for 4 responses"),
    ],
)
def test_a_reward_that_fails_stops_with_the_text(
    name: str, what: str, tiny: Path, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    result = teach(capsys, tiny, prompts, tmp_path / "out", "--reward_function", f"{prompts.parent}/rewards.py:{name}")
    assert result.code == 2, result.err
    assert what in result.error["error"]
    assert result.error["where"].startswith("response '") and any(q in result.error["where"] for q in QUESTIONS)
    assert read(tmp_path / "out" / "run.json")["outcome"] == "stopped by TrainingError"


def test_a_function_that_cannot_be_used_stops_before_anything_is_written(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ("--reward_function", f"{prompts.parent}/rewards.py:scalar")
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words)
    assert result.code == 2, result.err
    found = "fails on a trial call before training. The reward scalar gave 1.0 for 3 responses"
    assert found in result.error["error"] and "Loading weights" not in result.err
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_constant_reward_is_reported(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--reward_function", f"{prompts.parent / 'rewards.py'}:constant")
    result = teach(capsys, tiny, prompts, tmp_path / "out", *words)
    assert result.code == 0, result.err
    assert result.err.count("the reward constant is 2.5 for each of 4 responses: nothing can be learned") == 1


def test_gold_reward_without_the_word_stops(trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    known = names(prompts, trained, tmp_path)
    words = ("--eval_prompts", known["HELD"], "--gold", known["OTHERS"])
    result = teach(capsys, trained.model, prompts, tmp_path / "out", *words)
    assert result.code == 2 and result.error["error"] == "No response got a reward"
    assert result.error["where"] == f"gold: {known['OTHERS']}"


def test_reward_model_with_a_missing_backbone(
    trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=3)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name, data in contents(trained.folder).items():
        if "/" not in name:
            (moved / name).write_bytes(data.replace(str(trained.model).encode(), b"/no/such/model"))
    result = teach(capsys, other, prompts, tmp_path / "out", "--reward_model", moved)
    assert result.code == 2 and "/no/such/model" in result.error["error"] + result.error["where"]


# -- while it trains ------------------------------------------------------------------------------------------------


def test_end_token_that_never_occurs_is_reported(tiny: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    result = teach(capsys, tiny, prompts, tmp_path / "out", "--stop_token_id", 0)
    assert result.code == 0, result.err
    assert "no response has ended within 6 tokens" in result.err and "writes the token 0" in result.err


def test_policy_that_only_writes_the_end_token(
    trained: TrainedReward, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentModel, "roll_out", lambda self, *args, **more: written([[2]])(*args, **more))
    result = teach(capsys, trained.model, prompts, tmp_path / "out", "--reward_model", trained.merged)
    assert result.code == 0, result.err
    assert "merged: a response without text gets the lowest reward of its batch" in result.err
    assert "nothing can be learned from a constant" in result.err
    last = updates(tmp_path / "out")[-1]
    assert (last["val/finished"], last["val/response_length"]) == (1.0, 1.0)


def test_resuming_with_another_kind_of_value_function_is_refused(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    assert teach(capsys, tiny, prompts, tmp_path / "one", *CHECKPOINTS).code == 0
    anyway = ("--resume_from_checkpoint", tmp_path / "one" / "checkpoint-4", "--allow_config_change", "true")
    words = (*anyway[:2], "--value_function", "adapter")
    result = teach(capsys, tiny, prompts, tmp_path / "two", *CHECKPOINTS, *words)
    assert result.code == 2 and "value_function was 'head' and is 'adapter'" in result.error["error"]
    words = (*anyway, "--value_function", "adapter")
    result = teach(capsys, tiny, prompts, tmp_path / "two", *CHECKPOINTS, *words)
    assert result.code == 2, result.err
    assert "The value function does not fit this agent" in result.error["error"]
    words = (*anyway, "--lora_r", 2)
    result = teach(capsys, tiny, prompts, tmp_path / "three", *CHECKPOINTS, *words)
    assert result.code == 2 and "does not fit" in result.error["error"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk(
    error: Exception, tiny: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint does not fit on the disk; the first is complete, and the run resumes from it."""
    own, folder = agent_files.save_file, tmp_path / "out"

    def save_file(tensors: Any, file: Path, **more: Any) -> None:
        if (folder / "checkpoint-2").is_dir():
            raise error
        own(tensors, file, **more)

    with monkeypatch.context() as patch:
        patch.setattr(agent_files, "save_file", save_file)
        result = teach(capsys, tiny, prompts, folder, *CHECKPOINTS)
    assert result.code == 2, result.err
    assert result.error["error"].startswith("The disk is full (") and result.error["where"] == str(folder)
    assert verify(folder / "checkpoint-2") == [] and not (folder / "checkpoint-4").exists()
    rest = teach(capsys, tiny, prompts, folder, *CHECKPOINTS, "--resume_from_checkpoint", "true")
    assert rest.code == 0, rest.err


def test_other_errors_are_not_mistaken_for_a_full_disk(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault of this program")

    monkeypatch.setattr(agent_files, "save_file", save_file)
    with pytest.raises(RuntimeError, match="a fault of this program"):
        teach(capsys, tiny, prompts, tmp_path / "out", *CHECKPOINTS)


def test_reload_with_different_logits_fails_the_run(
    tiny: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = policy_save.load_policy

    def load(*args: Any, **kwargs: Any) -> Any:
        policy = own(*args, **kwargs)
        next(p for name, p in policy.backbone.named_parameters() if "lora_B" in name).data += 1e-3
        return policy

    monkeypatch.setattr(policy_save, "load_policy", load)
    result = teach(capsys, tiny, prompts, tmp_path / "out")
    assert result.code == 2
    assert "The saved policy gives different logits than the trained one" in result.error["error"]


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_lists_only_settings_with_an_effect(capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        run(capsys, "policy", "--help_all")
    assert not left.value.code
    page = capsys.readouterr().out
    assert page.startswith("Examples:\n  rrm-lm policy ") and "--reward_function" in page and "--num_ppo_epochs" in page
    assert "--sft_model_path" not in page and "--world_size" not in page and "pythia" not in page
