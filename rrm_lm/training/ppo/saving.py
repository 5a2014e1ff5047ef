"""Checkpoints of policy training: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer
from trl.experimental.ppo.ppo_trainer import OnlineTrainerState

from rrm_lm.models.agent import AgentModel
from rrm_lm.models.agent_files import load_agent, save_agent
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.models.sharding import gather
from rrm_lm.storage import write_json
from rrm_lm.training.portable_checkpoints import PortableCheckpoints
from rrm_lm.training.ppo.control import Steering

if TYPE_CHECKING:
    from trl.experimental.ppo import PPOTrainer as _Base
else:
    _Base = object

STATE_FILE = "ppo_state.json"
_LAST_GOOD = "last_good.safetensors"
_TRAINER_STATE = "trainer_state.json"


class PolicyCheckpoints(_Base):
    """The part of the trainer that saves and loads; a mixin, in front of `PortableCheckpoints`.

    A checkpoint holds the policy's adapter, the value function, the optimizer, the schedule, random states, the
    position in the order of prompts (the number of updates), the KL coefficient, the rewards' scale, and the last
    policy whose KL divergence was in order. A saved model holds the first two.
    """

    agent: AgentModel
    settings: PolicySettings
    steering: Steering
    last_good: dict[str, Tensor] | None
    _staging: Path | None
    is_cut: bool

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy and the value function. Called by all processes."""
        own: Any = PortableCheckpoints if self.is_cut else Trainer  # TRL's would leave the values out
        own.save_model(self, output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        checkpoint, write = self._staging is not None, bool(self.args.should_save)
        if not (write or self.is_fsdp_enabled):
            return
        save_agent(self.agent, folder, self.processing_class, self.settings, whole=checkpoint, write=write)
        last_good = gather(self.last_good or {}) if checkpoint else {}
        if not (checkpoint and write):
            return
        write_json(folder / STATE_FILE, self.steering.state())
        if last_good:
            save_file(last_good, folder / _LAST_GOOD, metadata={"format": "pt"})

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Put everything but the random states back.

        Raises:
            CheckpointError: The weights do not fit this agent.
        """
        self._load_from_checkpoint(str(checkpoint))
        self._load_optimizer_and_scheduler(str(checkpoint))
        self._load_scaler(str(checkpoint))
        self.steering.load(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
        kept = checkpoint / _LAST_GOOD
        self.last_good = load_file(kept, device=str(self.agent.device)) if kept.is_file() else None
        local, world = self.state.is_local_process_zero, self.state.is_world_process_zero
        self.state = OnlineTrainerState.load_from_json(str(checkpoint / _TRAINER_STATE))  # type: ignore[assignment]
        self.state.is_local_process_zero, self.state.is_world_process_zero = local, world
        self._load_callback_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_agent(self.agent, Path(resume_from_checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card; it looks for the model's configuration, which a wrapped model does not show."""
        wrapped, self.model = self.model, self.agent  # type: ignore[assignment]
        try:
            super().create_model_card(*args, **kwargs)
        finally:
            self.model = wrapped
