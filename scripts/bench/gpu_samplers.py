"""More of what `gpu.py` measures: our PPO with rollouts by a server, and TRL's GRPO with transformers' generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
from datasets import Dataset
from gpu_flops import WeightCounts
from gpu_job import GRPO, RANK, SERVER, BenchJob
from gpu_sides import (
    DeviceClock,
    TrainerSide,
    lora,
    made,
    our_ppo_trainer,
    ppo_side,
    prompts,
    shared,
)
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback

SAMPLES = 2  # of each prompt in GRPO, which needs more than one


def covering_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer that names every token id of a random model, because servers write responses as text too."""
    words = {f"<{number}>": number for number in range(vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")))


def our_server(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    """Our PPO; what counts as its rollout is the wait for the server's responses, without loading the adapter there.

    `rollout_kl` has the largest KL divergence between the server's token probabilities and the trainer's, in nats per
    token. It stops nothing, so that a measurement shows it.
    """
    asked = prompts(job, vocabulary)
    trainer = our_ppo_trainer(
        job, tokenizer, asked, clock, folder, rollouts="server", rollout_url=job.server, max_rollout_mismatch=None,
    )  # fmt: skip
    adapters = DeviceClock(clock.device)
    trainer.engine.sample = clock.rollout(trainer.engine.sample)
    trainer.engine.refresh = adapters.rollout(trainer.engine.refresh)

    def more() -> dict[str, Any]:
        far = [entry["rollout/kl"] for entry in trainer.state.log_history if "rollout/kl" in entry]
        return {
            "adapter_seconds": round(sum(adapters.rollouts[1:]) / job.steps, 4),
            "rollout_kl": float(f"{max(far):.3g}"),
            "server": server_version(job.server),
            **({} if job.server_share is None else {"server_memory_share": job.server_share}),
        }

    return ppo_side(job, trainer, asked, trainer.agent.backbone.config, None, more)


def server_version(url: str) -> str:
    """What vLLM says that it is; other servers may not say it."""
    parts = urlsplit(url)
    try:
        answer = httpx2.get(f"{parts.scheme}://{parts.netloc}/version", timeout=5.0, trust_env=False)
        return f"vllm {answer.json()['version']}"
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return "version unknown"


def trl_grpo(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    """TRL's GRPO without a reference, its default.

    As many samples in a step as our PPO has episodes, and each is trained on as often. As it needs several samples of
    a prompt, it has every second prompt, ordered by length. The reward is made of numbers that need no time.
    """
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    load = job.load
    asked = sorted(prompts(job, vocabulary), key=len)[::SAMPLES]
    micro_batch = min(job.setting["micro_batch"], load.episodes)
    args = GRPOConfig(
        **{**shared(job, folder), "max_steps": load.epochs * (job.steps + 1)}, num_generations=SAMPLES,
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=load.episodes // micro_batch,
        gradient_checkpointing=job.setting["gradient_checkpointing"], num_iterations=load.epochs,
        max_completion_length=load.new_tokens, temperature=0.7, shuffle_dataset=False, logging_strategy="no",
        generation_kwargs={"min_new_tokens": load.new_tokens},  # none ends early
    )  # fmt: skip
    model = made(job)
    trainer: Any = GRPOTrainer(
        model, alternating(load.new_tokens), args, processing_class=tokenizer, peft_config=lora(), callbacks=[clock],
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(asked))]),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    # TRL takes prompts as text only; this way they are the token ids that the others get.
    trainer._tokenize_prompts = lambda numbers: ([asked[int(number)] for number in numbers], None, {})
    trainer._generate_single_turn = clock.rollout(trainer._generate_single_turn)
    whole = [len(ids) + load.new_tokens for ids in asked for _ in range(SAMPLES)]
    flops = WeightCounts.of(model.config, RANK).grpo(whole, load.new_tokens, load.epochs)
    return TrainerSide(trainer, sum(whole), flops, updates=load.epochs)


def alternating(tokens: int) -> Callable[..., list[float | None]]:
    """A reward of 0 and 1 in turns, so that the samples of a prompt differ. Raises ValueError if a response does not
    have this many tokens.
    """

    def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
        if lengths := {len(ids) for ids in completion_ids} - {tokens}:
            raise ValueError(f"responses have {sorted(lengths)} tokens, not {tokens}")
        return [float(number % SAMPLES) for number in range(len(completion_ids))]

    return reward


SAMPLERS: dict[str, Callable[..., TrainerSide]] = {SERVER: our_server, GRPO: trl_grpo}
