"""Batch sizes that the settings leave open, from the free memory of a GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rrm_lm
from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import token_probs
from rrm_lm.planning import sizing
from rrm_lm.planning.planning import Job
from rrm_lm.planning.sizing import fit_sizes, strategy
from rrm_lm.training.arguments import TOKENS
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.reward.config import RewardConfig
from tests.tiny import lora, prompt_of, save_tiny_model, tiny_chat, tiny_model

JOB = Job(prompt_length=48, response_length=32, batch=64, samples_per_prompt=2)


def sizes(tmp_path: Path, task: str, memory: float | None, monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[int]:
    make = RewardConfig if task == "reward" else PPOConfig
    args: Any = make(output_dir=str(tmp_path), use_cpu=True, report_to="none", **given)
    monkeypatch.setattr(sizing, "free_memory", lambda backbone: memory)
    fit_sizes(args, task, Backbone(tiny_model(), 0), lora(), lambda: JOB)
    return [getattr(args, name) for name in TOKENS if hasattr(args, name)]


def test_on_a_cpu_they_are_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes(tmp_path, "reward", None, monkeypatch) == [2048]
    assert sizes(tmp_path, "ppo", None, monkeypatch) == [2048, 16384]
    assert sizing.free_memory(Backbone(tiny_model(), 0)) is None


@pytest.mark.parametrize("there", ["cuda", "cpu"])
def test_free_memory_is_what_this_process_may_use(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GB, another process holds 10; this one has allocated 20 of 25 reserved, of which 16 are the backbone."""
    gpu = torch.device("cuda", 1)
    known = {"mem_get_info": (45e9, 80e9), "memory_reserved": 25e9, "memory_allocated": 20e9}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value if device == gpu else None)
    monkeypatch.setattr(sizing, "process_state", lambda: SimpleNamespace(device=gpu))
    part = SimpleNamespace(device=torch.device(there), numel=lambda: 4e9, element_size=lambda: 2)
    backbone = SimpleNamespace(model=SimpleNamespace(parameters=lambda: [part, part]))
    expected = 0.9 * (45e9 + 5e9 + (16e9 if there == "cuda" else 0))  # the backbone is planned for, there or not
    assert sizing.free_memory(backbone) == pytest.approx(expected)


@pytest.mark.parametrize("task", ["reward", "ppo"])
def test_more_memory_gives_larger_passes(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        little, more, much = (sizes(tmp_path, task, memory, monkeypatch) for memory in (8e6, 16e6, 80e9))
    assert little[0] < more[0] < much[0]
    assert all(a <= b <= c for a, b, c in zip(little, more, much, strict=True))
    assert all(tokens <= 65536 for tokens in much)
    assert f"micro_batch_tokens {much[0]}" in caplog.text and "what fits into 80.0 GB of GPU memory" in caplog.text


def test_what_is_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sizes(tmp_path, "ppo", 80e9, monkeypatch, micro_batch_tokens=123)
    assert found[0] == 123 and found[1] != 16384
    assert sizes(tmp_path, "ppo", 80e9, monkeypatch, micro_batch_tokens=1, rollout_batch_tokens=2) == [1, 2]


def test_too_little_memory_gives_the_smallest_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = sizes(tmp_path, "reward", 1e3, monkeypatch)
    assert found == JOB.pair.width
    assert "the longest rows of this run may not fit" in caplog.text


def test_a_model_that_cannot_be_traced_gets_the_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError("This model cannot be traced")

    monkeypatch.setattr(sizing, "measure", refuse)
    assert sizes(tmp_path, "ppo", 80e9, monkeypatch) == [2048, 16384]
    assert "batch sizes are not fitted to the GPU: This model cannot be traced" in caplog.text


def test_quantized_weights_get_the_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    model.config.quantization_config = {"load_in_4bit": True}
    monkeypatch.setattr(sizing, "free_memory", lambda backbone: 80e9)
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    fit_sizes(args, "ppo", Backbone(model, 0), lora(), lambda: JOB)
    assert args.micro_batch_tokens == TOKENS["micro_batch_tokens"] and "quantized" in caplog.text


def test_the_strategy_is_that_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert [strategy(1), strategy(2)] == ["single", "ddp"]
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert strategy(2) == "zero2"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert [strategy(1), strategy(2)] == ["single", "fsdp2"]
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert strategy(2) == "fsdp2_offload"


def test_chunks_of_logits_grow_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80e9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert token_probs.chunk(128_000, cpu) == 256 and token_probs.logit_bytes(128_000, cpu) == 0
    assert [token_probs.chunk(vocabulary, gpu) for vocabulary in (32_000, 128_000, 10_000_000)] == [4096, 2304, 256]
    assert token_probs.logit_bytes(128_000, gpu) < 0.08 * Properties.total_memory


def test_trainers_fit_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainers of the front door ask for the longest rows of their own data."""
    jobs: dict[str, Job] = {}

    def fit(args: Any, task: str, backbone: Any, lora: Any, job: Any) -> None:
        jobs[task] = job()
        args.micro_batch_tokens, args.rollout_batch_tokens = 77, 777

    monkeypatch.setattr("rrm_lm.api.reward.trainer.fit_sizes", fit)
    monkeypatch.setattr("rrm_lm.api.policy.trainers.fit_sizes", fit)
    name = str(save_tiny_model(tmp_path / "base", tokenizer=tiny_chat().tokenizer))
    config = rrm_lm.RewardConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", eval_fraction=0)
    rows = [{"prompt": "who?", "chosen": "the moon and the sea", "rejected": "no"}]
    reward = rrm_lm.RewardTrainer(name, config, train_dataset=rows)
    chat = reward.chat
    (row,) = reward.train_dataset[0].rows
    assert reward.args.micro_batch_tokens == 77
    assert len(row) <= jobs["reward"].pair.width <= len(row) + 3
    settings = rrm_lm.PPOConfig(
        output_dir=str(tmp_path / "ppo"), use_cpu=True, report_to="none", response_length=9, eval_fraction=0,
        monitor_prompts=0, per_device_train_batch_size=6, samples_per_prompt=2,
    )  # fmt: skip
    prompts = ["who?", "what is the moon made of?"]
    policy = rrm_lm.PPOTrainer(name, lambda prompts, responses: [0.0] * len(responses), prompts, settings)
    assert (policy.trainer.args.micro_batch_tokens, policy.trainer.args.rollout_batch_tokens) == (77, 777)
    longest = max(len(chat.prompt_ids(prompt_of(one))) for one in prompts)
    job = jobs["ppo"]
    assert (job.prompt_length, job.response_length, job.batch, job.samples_per_prompt) == (longest, 9, 6, 2)
