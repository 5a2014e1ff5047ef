"""An agent on disk: the policy as others read it, and beside it what else was trained; a reward put on its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models.agent import AgentModel, adapter_parameters, set_trainable
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.portable import is_template_of
from rrm_lm.models.pretrained import refuse_pickles, resolve
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings, read_settings
from rrm_lm.models.saving.adapters import read_weights
from rrm_lm.models.saving.policies import PolicySettings, save_policy
from rrm_lm.models.sharding import assign, gather, is_sharded, reshard
from rrm_lm.text.chat import ChatFormat

VALUE_FILE = "value.safetensors"
ALL_FILE = "trained.safetensors"


def save_agent(
    agent: AgentModel, folder: Path, tokenizer: Any, settings: PolicySettings, *, whole: bool, write: bool = True
) -> None:
    """Write the policy as PEFT (or transformers) reads it, and :data:`VALUE_FILE` with the value function.

    Args:
        agent: The agent. If it is sharded, all processes call this.
        folder: Where it goes; what else is there stays.
        tokenizer: Saved with the policy.
        settings: How the policy is used.
        whole: Also write what :func:`load_agent` needs of a policy whose own weights are trained.
        write: Off in processes that only give their shards.
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
            _write(everything, folder / ALL_FILE)
    if write:
        _write(values, folder / VALUE_FILE)


def load_agent(agent: AgentModel, folder: Path) -> None:
    """Put what :func:`save_agent` wrote into an agent that was made in the same way.

    Raises:
        CheckpointError: Weights are missing or broken, or do not fit: another backbone, rank or value function.
    """
    reshard(agent)
    if agent.policy_adapter is not None:
        read_weights(agent.backbone, agent.policy_adapter, folder)
        load_values(agent, folder)
    else:
        restore(trained(agent), _read(folder / ALL_FILE), folder / ALL_FILE)


def load_values(agent: AgentModel, folder: Path) -> None:
    """Put the value function in a folder into the agent.

    Raises:
        CheckpointError: It is missing or broken, or another kind of value function, or one of another size.
    """
    restore(trained_values(agent), _read(folder / VALUE_FILE), folder / VALUE_FILE)


def trained(agent: nn.Module) -> dict[str, nn.Parameter]:
    """Everything that is trained, by name: of a sharded model the shards, which the optimizer has."""
    reshard(agent)
    return {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}


def trained_values(agent: AgentModel) -> dict[str, nn.Parameter]:
    """What is trained for the value function alone, by name."""
    policy, everything = agent.policy_adapter, trained(agent)
    mine = trained(agent.backbone) if policy is None else adapter_parameters(agent.backbone, policy)
    taken = {id(parameter) for parameter in mine.values()}
    return {name: parameter for name, parameter in everything.items() if id(parameter) not in taken}


def snapshot(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of some parameters; of shards, shards (see :func:`rrm_lm.models.sharding.reshard`)."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def restore(parameters: dict[str, nn.Parameter], state: dict[str, Tensor], where: Path | None = None) -> None:
    """Put a copy back.

    Raises:
        CheckpointError: The copy is of something else.
    """
    missing, foreign = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    shapes = [name for name in parameters.keys() & state.keys() if parameters[name].shape != state[name].shape]
    what = ""
    if missing or foreign:
        what = f"has no {missing[0]}" if missing else f"has {foreign[0]}, for which this agent has no place"
    elif shapes:
        name = sorted(shapes)[0]
        what = f"has {name} of shape {tuple(state[name].shape)}, not {tuple(parameters[name].shape)}"
    if what:
        raise CheckpointError(
            f"The value function does not fit this agent: it {what}",
            where=str(where or ""),
            expected="the same backbone and the same kind of value function",
            remedy="set value_function as it was then, or start without that checkpoint",
        )
    for name, parameter in parameters.items():
        assign(parameter, state[name])


def _write(state: dict[str, Tensor], file: Path) -> None:
    save_file(state, file, metadata={"format": "pt"})


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The agent's weights cannot be read ({error})",
            where=str(file),
            expected="a whole safetensors file",
            remedy="go on from another checkpoint, or train again",
        ) from error


# -- rewards --------------------------------------------------------------------------------------------------------


def put_reward(
    backbone: Backbone,
    folder: str | Path,
    *,
    chat: ChatFormat | None = None,
    base_model: str | None = None,
    ensemble: str | None = None,
    ensemble_k: float | None = None,
    adapter: str = ADAPTER,
) -> RewardModel:
    """Put a saved reward model's adapter and head on a backbone that is there already, frozen.

    Args:
        backbone: The backbone it was trained on. Adapters that it has stay as they are.
        folder: The reward model, as :meth:`RewardModel.save` wrote it, or any PEFT ``SEQ_CLS`` adapter with one output.
        chat: The format that responses are sampled in; it must be the one that the reward model was trained with.
        base_model: What the backbone is called in the reward model's folder, if it goes by another name here.
        ensemble, ensemble_k: How the members of an ensemble are combined, instead of the recorded way.
        adapter: What to call it there.

    Raises:
        ConfigError: There is no such way to combine members.
        ModelError: It was trained on another backbone, or with another chat template, or writes critiques first.
        CheckpointError: Its weights are missing or broken, or do not fit the backbone.
    """
    folder = Path(folder)
    refuse_pickles(folder)
    config: Any = LoraConfig.from_pretrained(str(folder))
    settings = read_settings(folder) or RewardSettings(str(config.base_model_name_or_path), revision=config.revision)
    settings = settings.combined(ensemble, ensemble_k)
    elsewhere = "pass it as a reward of its own, which is loaded with its own backbone"
    if base_model is None and not _is_same(settings.base_model, backbone):
        raise ModelError(
            f"The reward model was trained on another backbone, {settings.base_model}",
            where=str(folder),
            expected=str(backbone.causal_lm.name_or_path),
            remedy=elsewhere,
        )
    if settings.critique_first:
        raise ModelError(
            "The reward model writes a critique before it scores, which it cannot do inside another model's pass",
            where=str(folder),
            remedy=elsewhere,
        )
    template = folder / "chat_template.jinja"
    written = template.read_text(encoding="utf-8") if template.is_file() else None
    if chat is not None and written is not None and not is_template_of(written, chat.tokenizer):
        raise ModelError(
            "The reward model was trained with another chat template than responses are sampled in",
            where=str(template),
            remedy=elsewhere,
        )
    config.task_type, config.modules_to_save, config.inference_mode = TaskType.CAUSAL_LM, None, False
    try:
        model = RewardModel.create(backbone, config, settings, adapter)
    except ValueError as error:
        raise ModelError(
            f"The reward model cannot be put on this backbone: {error}", where=str(folder), remedy=elsewhere
        ) from error
    model.load_adapter_state(folder)
    set_trainable(backbone, adapter, False)
    model.head.requires_grad_(False)
    return model


def _is_same(name: str, backbone: Backbone) -> bool:
    """Whether a name is the backbone's; a model made in the process has none, and only its shapes can tell."""
    mine = str(backbone.causal_lm.name_or_path or "")
    if not mine or name == mine:
        return True
    try:
        theirs = resolve(name)
    except ModelError:
        return False
    return theirs == mine or (Path(theirs).is_dir() and Path(theirs).resolve() == Path(mine).resolve())
