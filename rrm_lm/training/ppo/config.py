"""Settings of policy training: TRL's PPOConfig and our additions."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trl.experimental.ppo import PPOConfig as _TrlPPOConfig

from rrm_lm.errors import ConfigError
from rrm_lm.models.agent import REFERENCES, VALUE_KINDS
from rrm_lm.models.decoding.server_dialects import SGLANG, VLLM
from rrm_lm.options import check, check_minimum, option
from rrm_lm.training.arguments import TrainerArguments, check_above_zero, check_choice

KL_CONTROLS = ("fixed", "adaptive")
ENGINES = ("own", "server")


@dataclass
class PPOConfig(TrainerArguments, _TrlPPOConfig):
    """PPO settings. Names are those of TRL and Hugging Face where they have one.

    An *update* samples ``batch_size`` episodes and trains on them ``num_ppo_epochs`` times. Each process has
    ``per_device_train_batch_size * gradient_accumulation_steps`` of them. ``micro_batch_tokens`` bounds one forward
    pass and does not change the gradient.
    """

    # Defaults that differ from TRL's:
    output_dir: str | None = option("outputs/policy", "Where the policy and results go.")
    learning_rate: float = option(1e-4, "Peak learning rate of adapters and value head.")
    bf16: bool | None = option(False, "Compute in bfloat16 where that is safe (autocast).")
    ddp_broadcast_buffers: bool | None = option(False, "Not needed: buffers are constants, the same on all processes.")
    dataloader_pin_memory: bool = option(False, "Not used: batches are made during the step.")
    # Settings that TRL does not have:
    ds3_gather_for_generation: bool = option(
        True,
        "For a sharded policy: gather the whole model on each process for rollouts, which is much faster; set to false "
        "if it does not fit.",
    )
    trl_compatible: bool = option(
        False,
        "Compute the update exactly as TRL 1.12 does (differences: rrm_lm/training/ppo/estimates.py): to compare with "
        "it, not for better policies.",
    )
    samples_per_prompt: int = option(1, "Responses per prompt; the prompt is computed once for all of them.")
    top_p: float = option(1.0, "Sample from the smallest set of tokens with this total probability.")
    top_k: int = option(0, "Sample from this many most likely tokens; 0 for all.")
    micro_batch_tokens: int = option(
        None, "Most padded tokens that go through the model at once; unset: 2048, or what fits on the GPU."
    )
    rollout_batch_tokens: int = option(
        None, "Most tokens (prompt and response) held at once while sampling; unset: 16384, or what fits on the GPU."
    )
    rollouts: str = option(
        "own",
        "What samples: own (this program), or server (vLLM or SGLang at rollout_url, with a LoRA copy of the policy "
        "before each update, for long responses on GPUs). Held-out answers are always sampled by this program.",
    )
    rollout_url: str | None = option(
        None,
        "With rollouts server: address of a server of the same model, such as http://127.0.0.1:8000/v1, that sees "
        f"output_dir under the same path. Start it with {VLLM.start}; or {SGLANG.start}.",
    )
    rollout_key_env: str | None = option(
        None, "Environment variable with the API key for rollout_url; unset: none. Only on the command line."
    )
    max_rollout_mismatch: float | None = option(
        0.05,
        "With rollouts server: stop when the KL divergence of its token probabilities from the trainer's exceeds this, "
        "in nats per token; unset: never.",
    )
    rollout_importance_cap: float | None = option(
        None,
        "With rollouts server: weight each token by its probability here over that on the server, at most by this "
        "(truncated importance sampling; 2 is usual); unset: no weights.",
    )
    share_prefixes: bool = option(True, "Compute a prompt once for all of its samples, where that is exact.")
    value_function: str = option(
        "head",
        "head (a linear head on the policy's hidden states), adapter (a LoRA adapter with a head) or model (a separate "
        "sequence-classification model, as in TRL).",
    )
    reference: str = option(
        "start", "The reference of the KL divergence: start (the policy before training) or base (no adapter)."
    )
    reward_weights: list[float] | None = option(
        None, "Weights of the rewards in their sum, the one on the policy's own backbone first; unset: 1 each."
    )
    normalize_rewards: bool = option(False, "Shift and scale rewards by their running mean and standard deviation.")
    reward_clip: float | None = option(None, "Clip rewards to plus and minus this, after normalizing; unset: no.")
    kl_control: str = option("fixed", "fixed (kl_coef is constant) or adaptive (kl_coef moves towards kl_target).")
    kl_target: float = option(6.0, "With adaptive: KL divergence to the reference to aim for, in nats per response.")
    kl_gain: float = option(0.1, "With adaptive: how fast; an update changes kl_coef by at most a fifth of this share.")
    max_kl: float | None = option(
        100.0,
        "Stop when the KL divergence to the reference exceeds this, in nats per response, and keep the policy from "
        "before; unset: never.",
    )
    max_value_loss: float | None = option(
        None, "Stop when the value loss exceeds this, in the rewards' unit squared; unset: never."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kl_estimator", ("k1", "k3"))
        check_choice(self, "kl_control", KL_CONTROLS)
        check_choice(self, "value_function", VALUE_KINDS)
        check_choice(self, "reference", REFERENCES)
        check_choice(self, "stop_token", ("eos", None))
        check_choice(self, "rollouts", ENGINES)
        if (self.rollouts == "server") != (self.rollout_url is not None):
            raise ConfigError(
                f"rollouts is {self.rollouts}, and rollout_url is {self.rollout_url}",
                where="rollout_url",
                expected="rollouts server with the rollout_url of that server, or neither",
                remedy="pass --rollouts server --rollout_url http://127.0.0.1:8000/v1",
            )
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ConfigError("Both stop_token and stop_token_id are set", where="stop_token", expected="one of them")
        sizes = ("samples_per_prompt", "micro_batch_tokens", "rollout_batch_tokens", "response_length")
        check_minimum(self, **dict.fromkeys((*sizes, "num_ppo_epochs", "num_mini_batches"), 1))
        check_minimum(self, kl_coef=0, kl_gain=0, vf_coef=0, cliprange=0, cliprange_value=0, seed=0)
        check_above_zero(self, "temperature", "kl_target", "max_kl", "max_value_loss", "reward_clip")
        check_above_zero(self, "max_rollout_mismatch", "rollout_importance_cap")
        check(self, *((name, 0 <= getattr(self, name) <= 1, "from 0 to 1") for name in ("gamma", "lam")))

    @classmethod
    def from_trl(cls, args: _TrlPPOConfig) -> PPOConfig:
        """TRL's own settings; TRL's conventions apply. What has no effect in TRL's PPO, such as ``bf16``, is off."""
        settings = {item.name: getattr(args, item.name) for item in fields(args) if item.init}
        settings |= dict.fromkeys(("bf16", "fp16", "gradient_checkpointing", "activation_checkpointing"), False)
        return cls(**{**settings, "max_kl": None}, trl_compatible=True)

    def count_batches(self, processes: int, prompts: int) -> None:
        """Set the derived sizes, under TRL's names. Raises ConfigError: sizes that do not divide evenly."""
        self.world_size = processes
        self.local_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        self.micro_batch_size = self.per_device_train_batch_size * processes
        self.batch_size = self.local_batch_size * processes
        for name in ("num_mini_batches", "samples_per_prompt"):
            if self.local_batch_size % getattr(self, name):
                raise ConfigError(
                    f"{self.local_batch_size} episodes a process cannot be divided by {getattr(self, name)}",
                    where=name,
                    expected="a divisor of per_device_train_batch_size * gradient_accumulation_steps",
                )
        self.mini_batch_size = self.batch_size // self.num_mini_batches
        self.local_mini_batch_size = self.local_batch_size // self.num_mini_batches
        if self.total_episodes is None:
            self.total_episodes = max(1, int(self.num_train_epochs * prompts * self.samples_per_prompt))
        self.num_total_batches = -(-self.total_episodes // self.batch_size)
        if self.max_steps > 0:
            self.num_total_batches = self.max_steps
            self.total_episodes = self.max_steps * self.batch_size

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps in one epoch over an update's episodes."""
        if not self.trl_compatible:
            return self.num_mini_batches
        assert self.local_mini_batch_size is not None
        parts = -(-self.local_mini_batch_size // self.per_device_train_batch_size) * self.num_mini_batches
        return max(1, parts // self.gradient_accumulation_steps)
