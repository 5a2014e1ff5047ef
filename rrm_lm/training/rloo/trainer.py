"""Policy training with TRL's RLOOTrainer, without a value function.

REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740): with k samples of a prompt and rewards r minus the KL
penalty, the advantage of sample i is ``r_i - mean of r_j, j != i``, one number for the whole response. Use it where PPO
is unsuitable (rewards of whole responses, runs too short to train a value function), or to check PPO's result with
another method. The losses, the baseline and the KL penalty are TRL's own code. These parts are replaced:

- `text/chat.py` tokenizes prompts, as everywhere in this package: special tokens in messages stay text.
- Samples come from `models.decoding.rollouts.roll_out`, which computes a prompt once for all of its samples.
- Rewards are called through :class:`RewardSum`, which stops training if a reward fails and quotes the text.
- The reference is a frozen adapter. TRL disables the adapter, which makes PEFT's frozen adapters trainable.
- The policy is saved in the format of `models.saving.policies`. Checkpoints are verified; a resumed run continues with
  the next prompts.
- Training stops when the KL divergence exceeds ``max_kl``, and keeps the previous policy.

TRL computes log-probabilities with the temperature alone, even if top-p or top-k excluded tokens from sampling.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer as _TrlRLOOTrainer

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.models.agent import copy_adapter, disable_dropout
from rrm_lm.models.backbone import Backbone, adapter_parameters
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import chunk
from rrm_lm.models.ensemble import disagreement
from rrm_lm.models.saving.policies import Policy, PolicySettings
from rrm_lm.models.saving.quantization import keeping_weights
from rrm_lm.models.sharding import reshard, with_full_params
from rrm_lm.models.tokenizers import align_pad
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.control import LastGood, out_of_bounds
from rrm_lm.training.ppo.prompts import PromptOrder, check_lengths, encode_prompts
from rrm_lm.training.ppo.rollouts import Rollouts, end_id
from rrm_lm.training.processes import check_finite
from rrm_lm.training.reward_sources import AdapterReward, RewardSum, WithCriteria
from rrm_lm.training.rloo.config import rloo_config
from rrm_lm.training.speed import FORWARD, TRAINED, utilization
from rrm_lm.training.trainer import AdapterTrainer

logger = logging.getLogger(__name__)

_REFERENCE = "ref"  # TRL's name for the frozen adapter that it uses as the reference


class RLOOTrainer(AdapterTrainer, _TrlRLOOTrainer):
    """TRL's trainer on an adapter of a shared backbone, used like :class:`rrm_lm.training.ppo.trainer.PPOTrainer`.

    Logs have TRL's names for RLOO, and PPO's names where the meaning is the same (``objective/kl``,
    ``objective/scores``, ``reward/<name>`` ...). ``state.global_step`` counts optimizer steps, of which an update has
    ``steps_per_update``; callbacks that count updates (``OverOptimisationCallback(every=...)``) must multiply by it.
    ``end_ids`` are the tokens that end a response; ``stop_reason`` says why training stopped early.

    Args:
        policy: The policy to train, with an adapter. The backbone gets a frozen adapter ``ref`` as the reference: a
            copy of the current policy, or an adapter without effect if ``reference`` is base.
        ppo: The settings; :func:`rrm_lm.training.rloo.config.rloo_config` converts them.
        rewards: The reward sources. Use :class:`rrm_lm.training.reward_sources.AdapterReward` for a reward adapter on
            the policy's backbone.
        chat: The chat format of the prompts; by default the policy's.
        settings: Saved with the policy; by default those it was loaded with. The method is always rloo.
        more: Settings of TRL's RLOOConfig that PPO lacks, such as ``normalize_advantages``.

    Raises:
        ConfigError: Settings that RLOO lacks, or prompts that leave no tokens for a response.
        DataError: No prompts, or an invalid one.
    """

    args: RLOOConfig
    model: Any
    reference_adapter = _REFERENCE

    def __init__(
        self,
        policy: Policy,
        ppo: PPOConfig,
        rewards: RewardSum,
        prompts: Sequence[Prompt],
        chat: ChatFormat | None = None,
        *,
        settings: PolicySettings | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **more: Any,
    ) -> None:
        chat = policy.chat if chat is None else chat
        settings = settings or policy.settings or PolicySettings(str(policy.backbone.causal_lm.name_or_path))
        self.keep_for_saving(policy, chat.tokenizer, replace(settings, method="rloo"))
        policy.backbone.set_trainable(self.adapter, True)
        disable_dropout(policy.backbone)  # TRL's function leaves out numbers such as attention_dropout
        if ppo.compile_layers:
            policy.backbone.compile_layers()
        self.policy, self.ppo, self.rewards = policy, ppo, rewards
        self.prompts = encode_prompts(prompts, chat, chat.tokenizer)
        self._items = {item.prompt: item for item in self.prompts}
        args = self._settings(more)
        ends = end_id(ppo, chat.tokenizer, chat)
        assert ends is not None
        self.end_ids = [int(ends)]
        self.sampling = Sampling(ppo.response_length, ppo.temperature, ppo.top_p, ppo.top_k)
        assert args.steps_per_generation is not None and args.generation_batch_size is not None
        self.steps_per_update = args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps
        self.last_good = LastGood(self._trained)
        self.takes_positions = "position_ids" in inspect.signature(policy.backbone.causal_lm.forward).parameters
        self.stop_reason: str | None = None
        self._operations: Tensor | float = 0.0  # with each weight since the last log, in this process
        align_pad(policy.backbone.causal_lm, chat.tokenizer)
        policy.backbone.model.set_adapter(self.adapter)  # TRL trains the active adapter, which may be a different one
        functions: list[Any] = [_RewardFunction(source, self._rollouts) for source in rewards.sources]
        if ppo.missing_eos_penalty is not None:
            functions.append(_missing_end_penalty(ppo.missing_eos_penalty, self._rollouts))
        with _known_as_default(policy.backbone.model, self.adapter), keeping_weights(policy.backbone.model):
            super().__init__(
                model=policy.backbone.model,
                reward_funcs=functions,
                args=args,
                train_dataset=Dataset.from_list([{"prompt": _to_messages(item.prompt)} for item in self.prompts]),
                processing_class=_tokenizer_with_eos(chat.tokenizer, self.end_ids[0]),
                callbacks=[_StopOutOfBounds(self), *callbacks],
            )
        _set_reference(policy.backbone, self.adapter if ppo.reference == "start" else None)
        policy.backbone.set_trainable(self.adapter, True)
        size = args.generation_batch_size // ppo.samples_per_prompt
        self.order = PromptOrder(len(self.prompts), size, args.seed if args.data_seed is None else args.data_seed)

    def _settings(self, more: dict[str, Any]) -> RLOOConfig:
        """TRL's settings. Raises ConfigError (see the class)."""
        ppo, rewards = self.ppo, self.rewards
        positions = context_length(self.backbone.config)
        check_lengths(self.prompts, ppo.response_length, positions)
        if ppo.reward_weights is not None and [float(weight) for weight in ppo.reward_weights] != rewards.weights:
            what = f"The rewards have the weights {rewards.weights}, and reward_weights is {ppo.reward_weights}"
            raise ConfigError(what, where="reward_weights", remedy="make the RewardSum with these weights")
        return rloo_config(
            ppo,
            processes=PartialState().num_processes,
            prompts=len(self.prompts),
            longest=max(len(item.ids) for item in self.prompts),
            logits=chunk(int(self.backbone.config.vocab_size), self.backbone.device),
            weights=rewards.weights if ppo.missing_eos_penalty is None else [*rewards.weights, 1.0],
            **more,
        )

    def _rollouts(self, prompts: Sequence[Any], responses: Sequence[Sequence[int]]) -> Rollouts:
        items = [self._items[_to_prompt(messages)] for messages in prompts]
        return Rollouts.of(items, responses, self._saved_tokenizer, self.end_ids, torch.device("cpu"))

    def save_weights(self, folder: Path, write: bool) -> None:
        super().save_weights(folder, write)
        if self.is_saving_checkpoint:
            self.last_good.save(folder, write)

    def load_weights(self, folder: Path) -> None:
        super().load_weights(folder)
        self.last_good.load(folder, self.backbone.device)

    def _trained(self) -> dict[str, nn.Parameter]:
        reshard(self.model)
        return adapter_parameters(self.backbone, self.adapter)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        assert self.args.steps_per_generation is not None and self.num_generations is not None
        repeats = self.args.num_iterations * self.args.steps_per_generation
        updates = self.args.max_steps // self.steps_per_update
        return _UpdateSampler(self.order, updates, repeats, self.num_generations)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self._items[_to_prompt(messages)].ids) for messages in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        started = time.perf_counter()
        # Samples depend on the seed and their index in the update, not on the process.
        responses = with_full_params(
            self.model,
            roll_out,
            self.backbone,
            self.adapter,
            prompt_ids,
            self.sampling,
            end_ids=self.end_ids,
            seed=self.args.seed * 1_000_003 + self.state.global_step // self.steps_per_update,
            first=self.accelerator.process_index * len(prompt_ids),
            batch_tokens=self.ppo.rollout_batch_tokens,
        )
        seconds = time.perf_counter() - started
        found = [samples[0] for samples in responses]
        self._record("time/roll_out", seconds)
        self._record("tokens_per_second", sum(map(len, found)) / max(seconds, 1e-9))
        # Sampling, the policy that sampled, reference, and rewards on this backbone.
        each = FORWARD * (2 + bool(self.beta) + self._rewards_here)
        self._operations += each * sum(map(len, [*prompt_ids, *found]))
        return found

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's method on float32 logits and with positions. TRL uses the logits' dtype, and a bfloat16 sum may be off
        by half a nat. It pads prompts on the left, which shifts the learned positions of GPT-2.
        """

        def in_float32(**inputs: Any) -> Any:
            if self.takes_positions:
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
            output = model(**inputs)
            output.logits = output.logits.float()
            return output

        return super()._get_per_token_logps_and_entropies(in_float32, *args, **kwargs)

    @property
    def _rewards_here(self) -> int:
        """Number of rewards that are adapters on the policy's own backbone."""
        sources = [one.source if isinstance(one, WithCriteria) else one for one in self.rewards.sources]
        return sum(isinstance(source, AdapterReward) for source in sources)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        calculate = super()._calculate_rewards
        if self._rewards_here:
            rewards = with_full_params(self.model, calculate, *args, **kwargs)
        else:
            rewards = calculate(*args, **kwargs)
        # TRL leaves out a response without any reward; the penalty for a missing end is not a reward of its own.
        unscored = rewards[:, : len(self.rewards.sources)].isnan().all(1, keepdim=True)
        return rewards.masked_fill(unscored, torch.nan)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        latest = {name: values[-1] for name, values in self._metrics["train"].items() if values}
        scores, length = latest["reward"], latest["completions/mean_length"]
        self._record("objective/scores", scores)
        self._record("val/response_length", length)
        self._record("val/finished", 1.0 - latest["completions/clipped_ratio"])
        for source in self.rewards.sources:
            self._record(f"reward/{source.name}", latest[f"rewards/{source.name}/mean"])
        if self.beta:
            kl = latest["kl"] * length  # TRL's is per token; this is per response, as in PPO
            self._record("objective/kl", kl)
            self._record("objective/kl_coef", self.beta)
            self._record("objective/non_score_reward", -self.beta * kl)
            self._record("objective/rlhf_reward", scores - self.beta * kl)
            self.stop_reason = out_of_bounds("the KL divergence to the reference", kl, self.ppo.max_kl, "max_kl")
        if self.stop_reason is None:
            self.last_good.keep()
        return output

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        check_finite(loss, f"step {self.state.global_step + 1}", "the rewards")
        self._operations += TRAINED * (inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return loss

    def _record(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics with those of a step; entries of callbacks in between are logged separately."""
        if "loss" not in logs:
            due = self.control.should_log  # any log call resets it, but a due step must still be logged
            Trainer.log(self, logs, start_time)
            self.control.should_log = due
            return
        assert self.args.generation_batch_size is not None
        logs["episode"] = self.state.global_step // self.steps_per_update * self.args.generation_batch_size
        seconds = sum(self._metrics["train"]["step_time"])  # without saving
        logs |= utilization(self.backbone.decoder, float(self._operations), seconds, self.args.device)
        self._operations = 0.0
        super().log(logs, start_time)


class _StopOutOfBounds(TrainerCallback):
    """Ends training when the KL divergence is out of bounds. Runs before the callbacks that measure the policy."""

    def __init__(self, trainer: RLOOTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reason = self._trainer.stop_reason
        if reason is not None:
            outcome = self._trainer.last_good.put_back()
            logger.warning("training stopped at step %d: %s; %s", state.global_step, reason, outcome)
            control.should_training_stop = True


@contextmanager
def _known_as_default(model: Any, adapter: str) -> Iterator[None]:
    """Alias an adapter as `default`, the only name that TRL's trainer looks for in its `__init__`."""
    known = model.peft_config
    known["default"] = known[adapter]
    try:
        yield
    finally:
        if adapter != "default":
            del known["default"]


def _set_reference(backbone: Backbone, start: str | None) -> None:
    """Make the frozen adapter that TRL added a copy of `start`, or, for None, one without effect."""
    if start is not None:
        copy_adapter(backbone, start, _REFERENCE)
        return
    for name, parameter in adapter_parameters(backbone, _REFERENCE).items():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            nn.init.zeros_(parameter)
    backbone.set_trainable(_REFERENCE, False)


# -- inputs of TRL's trainer -------------------------------------------------------------------------------------------


class _RewardFunction:
    """A reward source in TRL's calling convention."""

    def __init__(self, source: Any, rollouts: Callable[..., Rollouts]) -> None:
        self.__name__ = source.name
        self._source, self._rollouts = RewardSum([source], is_part=True), rollouts

    def __call__(
        self, prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], log_metric: Any, **_: Any
    ) -> list[float]:
        made = self._rollouts(prompts, completion_ids)
        rewards = self._source([item.prompt for item in made.items], made.texts, made.lines)[self.__name__]
        apart = disagreement(rewards)
        if apart is not None:
            log_metric(f"disagreement/{self.__name__}", apart)
        return rewards


def _missing_end_penalty(penalty: float, rollouts: Callable[..., Rollouts]) -> Callable[..., list[float]]:
    """The penalty for responses that reach the length limit, in TRL's calling convention."""

    def missing_eos_penalty(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [-penalty * (not done) for done in rollouts(prompts, completion_ids).finished]

    return missing_eos_penalty


class _UpdateSampler(Sampler[int]):
    """The rows of all updates in sequence. Each update's rows come `repeats` times: TRL reads them for every
    micro-batch and uses the first reading.
    """

    def __init__(self, order: PromptOrder, updates: int, repeats: int, samples: int) -> None:
        self._order, self._updates, self._repeats, self._samples = order, updates, repeats, samples

    def __iter__(self) -> Iterator[int]:
        for update in range(self._updates):
            rows = [row for row in self._order.update(update) for _ in range(self._samples)]
            for _ in range(self._repeats):
                yield from rows

    def __len__(self) -> int:
        return self._updates * self._repeats * self._order.size * self._samples


def _to_messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [message.to_dict() for message in prompt]


def _to_prompt(messages: Sequence[Any]) -> Prompt:
    return tuple(map(Message.from_dict, messages))


def _tokenizer_with_eos(tokenizer: Any, eos_id: int) -> Any:
    """A copy of the tokenizer with this eos token, which marks the end of a response for TRL."""
    if tokenizer.eos_token_id == eos_id:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(eos_id)
    return other
