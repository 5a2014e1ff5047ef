"""Rollout engines: what samples an update's responses. Our own loop, or a server with a copy of the model.

The trainer computes all log-probabilities itself, whatever the engine. With a server it compares the two
(:func:`rrm_lm.training.ppo.reports.mismatch_metrics`).
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from accelerate.utils import gather_object

from rrm_lm.errors import ConfigError, RRMError, TrainingError
from rrm_lm.feedback.asking.concurrently import ask_all
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.decoding.generation import check_prompts, own_seed
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.server import AT_ONCE, CompletionServer
from rrm_lm.models.saving.adapters import save_adapter
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.training.ppo.config import PPOConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ids = Sequence[int]  # token ids

# Hidden; the name lets `clear_leftovers` delete it after a crash.
_ADAPTERS = ".adapters.staging-rollouts"


class Sampled(NamedTuple):
    """Sampled responses: for each prompt, in the given order, one list per response."""

    # Token ids: a finished response ends with an end token, another has the maximum number of tokens.
    ids: list[list[list[int]]]
    log_probs: list[list[list[float]]] | None = None  # of each token, as the engine computed it; None if it does not


class RolloutEngine(Protocol):
    """Samples from the current policy. Every method is called by all processes."""

    def refresh(self, update: int) -> None:
        """Take over the policy's current weights, before the samples of this update. Raises TrainingError."""

    def sample(
        self, prompts: Sequence[Ids], sampling: Sampling, *, end_ids: Ids, num_return: int, seed: int, first: int
    ) -> Sampled:
        """Sample `num_return` responses to each prompt, given as token ids.

        The random numbers of a response depend only on `seed`, its prompt's index and its own index; `first` is the
        index of the first prompt, as prompts are split among processes. Raises TrainingError, in all processes.
        """
        ...

    def release(self) -> None:
        """Free what the engine holds for the policy. Never fails."""


def make_engine(args: PPOConfig, agent: AgentModel, settings: PolicySettings, accelerator: Any) -> RolloutEngine:
    """The engine that the settings name. Raises ConfigError: a server cannot sample from this policy, or its address
    or key is invalid; TrainingError: the server cannot be reached.
    """
    if args.rollouts == "own":
        return OwnEngine(agent, args.rollout_batch_tokens)
    return ServerEngine(args, agent, settings, accelerator)


class OwnEngine(RolloutEngine):
    """Samples with the agent itself; see :func:`rrm_lm.models.decoding.rollouts.roll_out`."""

    def __init__(self, agent: AgentModel, batch_tokens: int) -> None:
        self._agent, self._batch_tokens = agent, batch_tokens

    def sample(self, prompts: Sequence[Ids], sampling: Sampling, **options: Any) -> Sampled:
        return Sampled(self._agent.roll_out(prompts, sampling, batch_tokens=self._batch_tokens, **options))


class ServerEngine(RolloutEngine):
    """Samples on a server, from a copy of the policy's adapter that is loaded there before every update.

    The main process saves and loads the adapter. Then each process sends its own prompts: the server batches them all,
    and no responses have to be passed on. An error of any process is raised in all of them.

    The adapter's name has a random part for each call of `train` and the update's number, so no name occurs twice on a
    server, even if a run is resumed.
    """

    def __init__(self, args: PPOConfig, agent: AgentModel, settings: PolicySettings, accelerator: Any) -> None:
        if agent.policy_adapter is None:
            raise ConfigError(
                "The policy has no LoRA adapter, and a server is sent nothing else",
                where="rollouts",
                remedy="train with a LoRA adapter (peft_config), or leave out --rollouts server",
            )
        self._agent, self._adapter, self._settings = agent, agent.policy_adapter, settings
        self._main: bool = accelerator.is_main_process
        self._folder = Path(str(args.output_dir)).absolute() / _ADAPTERS
        self._run = ""  # a random part of the adapters' names, the same in all processes
        self.name = ""  # of the adapter that is loaded now
        vocabulary = int(agent.backbone.config.vocab_size)
        self.server = CompletionServer(str(args.rollout_url), args.rollout_key_env or "", vocabulary)
        self._together(self.server.check)

    def refresh(self, update: int) -> None:
        if not self.name:
            self._run = gather_object([secrets.token_hex(4)])[0]
        name = f"rrm-{self._run}-update-{update}"
        self._together(lambda: self._push(name))
        self._drop()
        self.name = name

    def sample(
        self, prompts: Sequence[Ids], sampling: Sampling, *, end_ids: Ids, num_return: int, seed: int, first: int
    ) -> Sampled:
        check_prompts(prompts, sampling, num_return, self._agent.backbone.config)

        def ask(index: int) -> Any:
            own = own_seed(seed, (first + index,), 0)
            return self.server.complete(
                self.name, prompts[index], sampling, end_ids=end_ids, count=num_return, seed=own
            )

        found = self._together(lambda: ask_all(ask, range(len(prompts)), at_once=AT_ONCE))
        ids = [[sample.ids for sample in samples] for samples in found]
        return Sampled(ids, [[sample.log_probs for sample in samples] for samples in found])

    def release(self) -> None:
        self._drop()
        self.name = ""
        if self._main:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _push(self, name: str) -> None:
        base, revision, folder = self._settings.base_model, self._settings.revision, self._folder / name
        names: dict[str, Any] = {"task": "CAUSAL_LM", "base_model": base, "revision": revision}
        save_adapter(self._agent.backbone, self._adapter, folder, **names, write=self._main)
        if self._main:
            self.server.load(name, folder)

    def _drop(self) -> None:
        """Unload the adapter. Its folder is kept until then, because servers read evicted adapters again."""
        if not self._main or not self.name:
            return
        try:
            self.server.unload(self.name)
        except TrainingError as error:
            logger.warning("the server may still hold the adapter %s: %s", self.name, error.what)
        shutil.rmtree(self._folder / self.name, ignore_errors=True)

    def _together(self, action: Callable[[], T]) -> T:
        """Call a function in all processes and wait for all; the first error of any of them is raised in each."""
        found: list[T] = []
        error: list[RRMError] = []
        try:
            found.append(action())
        except RRMError as caught:
            error.append(caught)
        for first in gather_object(error):  # of all processes
            raise first
        return found[0]
