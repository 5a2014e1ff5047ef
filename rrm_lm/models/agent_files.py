"""Agents on disk: the policy in PEFT or transformers format, and the other trained weights next to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from rrm_lm.errors import CheckpointError
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import adapter_parameters
from rrm_lm.models.saving.adapters import load_tensors, misfit, read_weights
from rrm_lm.models.saving.policies import PolicySettings, save_policy
from rrm_lm.models.sharding import assign, gather, is_sharded, reshard

VALUE_FILE = "value.safetensors"
ALL_FILE = "trained.safetensors"


def save_agent(
    agent: AgentModel, folder: Path, tokenizer: Any, settings: PolicySettings, *, whole: bool, write: bool = True
) -> None:
    """Write the policy in PEFT (or transformers) format, and the value function as :data:`VALUE_FILE`; for `write` see
    :func:`save_adapter`. For a policy without an adapter, `whole` also writes what :func:`load_agent` needs.
    """
    values = gather(trained_values(agent))
    if write:
        folder.mkdir(parents=True, exist_ok=True)
    if agent.policy_adapter is not None:
        save_policy(agent.backbone, folder, tokenizer, settings, agent.policy_adapter, write)
    else:
        model = agent.backbone.causal_lm
        state = gather(model.state_dict()) if is_sharded(agent) else None
        everything = gather(trained(agent)) if whole else {}
        if write:
            model.save_pretrained(str(folder), state_dict=state)
            tokenizer.save_pretrained(str(folder))
        if write and whole:
            save_file(everything, folder / ALL_FILE, metadata={"format": "pt"})
    if write:
        save_file(values, folder / VALUE_FILE, metadata={"format": "pt"})


def load_agent(agent: AgentModel, folder: Path) -> None:
    """Load what :func:`save_agent` wrote. Raises CheckpointError if weights are missing or broken, or belong to another
    backbone, rank or value function.
    """
    reshard(agent)
    if agent.policy_adapter is not None:
        read_weights(agent.backbone, agent.policy_adapter, folder)
        load_values(agent, folder)
    else:
        restore(trained(agent), load_tensors(folder / ALL_FILE), folder / ALL_FILE)


def load_values(agent: AgentModel, folder: Path) -> None:
    """Load a folder's value function. Raises CheckpointError if it is missing, broken, or of another kind or size."""
    restore(trained_values(agent), load_tensors(folder / VALUE_FILE), folder / VALUE_FILE)


def trained(agent: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name; for a sharded model the shards, which the optimizer updates."""
    reshard(agent)
    return {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}


def trained_values(agent: AgentModel) -> dict[str, nn.Parameter]:
    """The trained parameters of the value function alone, by name."""
    policy, everything = agent.policy_adapter, trained(agent)
    mine = trained(agent.backbone) if policy is None else adapter_parameters(agent.backbone, policy)
    taken = {id(parameter) for parameter in mine.values()}
    return {name: parameter for name, parameter in everything.items() if id(parameter) not in taken}


def restore(parameters: dict[str, nn.Parameter], state: dict[str, Tensor], where: Path | None = None) -> None:
    """Restore parameters from a copy. Raises CheckpointError if the copy is of other parameters."""
    if wrong := misfit(state, parameters):
        raise CheckpointError(
            f"The value function does not fit this agent: it {wrong}",
            where=str(where or ""),
            expected="the same backbone and the same kind of value function",
            remedy="set value_function as it was then, or start without that checkpoint",
        )
    for name, parameter in parameters.items():
        assign(parameter, state[name])
