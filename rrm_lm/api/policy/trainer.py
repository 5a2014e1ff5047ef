"""`rrm_lm.PPOTrainer`, and `PolicyTraining`, which it shares with `rrm-lm policy`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rrm_lm.api.data.inspection import log_inspection
from rrm_lm.api.data.rows import read_prompts
from rrm_lm.api.data.shown import show_prompt
from rrm_lm.api.output_run import OutputRun
from rrm_lm.api.policy.config import PolicyConfig
from rrm_lm.api.policy.monitor import Monitor
from rrm_lm.api.policy.prompts import fit_chat, renderable_prompts, split_prompts
from rrm_lm.api.policy.results import write_results
from rrm_lm.api.policy.rewards import Rewards, gold_reward, scorer_loader
from rrm_lm.api.policy.saving import save_and_compare
from rrm_lm.api.policy.trainers import Parts, Training, check_start, load_start, make_training
from rrm_lm.api.policy_model import Policy
from rrm_lm.api.reward_model import RewardModel
from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.policies.gold import CheckedFunction, Gold, RewardFunction
from rrm_lm.feedback.reading.prompts import as_feedback
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.pretrained import set_seed
from rrm_lm.models.saving.policies import Policy as LoadedPolicy
from rrm_lm.models.saving.policies import PolicySettings
from rrm_lm.settings.data import PromptSplit
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments
from rrm_lm.storage import report_full_disk
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.templates import date_of
from rrm_lm.training.arguments import TOKENS, set_sizes
from rrm_lm.training.reward_functions import PromptRows
from rrm_lm.training.reward_sources import PythonReward, RewardSource, ScorerReward, load_function

_CHECKED = 4  # prompts whose logits must be identical after a reload


class PolicySettingsGroup(NamedTuple):
    """The settings of one run."""

    split: PromptSplit
    rewards: RewardArguments
    model: ModelArguments
    config: PolicyConfig
    monitor: MonitorArguments
    run: PolicyRunArguments


@dataclass(frozen=True)
class Given:
    """Inputs that are already loaded."""

    prompts: tuple[list[Prompt], list[Prompt]]  # (training, held-out) prompts
    policy: LoadedPolicy | None = None  # the policy to start from, in place of `model_name_or_path`
    rewards: Sequence[RewardSource] = ()  # rewards in addition to those of the settings
    gold: RewardFunction | None = None
    rows: PromptRows | None = None  # the row of each prompt, for reward functions
    lora: Any = None  # the LoRA configuration, in place of that of the settings
    callbacks: Sequence[Any] = field(default=())


class PolicyTraining:
    """Trains one policy, saves it, checks that it reloads, and writes the report."""

    def __init__(self, settings: PolicySettingsGroup, given: Given) -> None:
        self.settings, self.given = settings, given
        split, rewards, model, config, monitor, run = settings
        self.folder, self.main = Path(str(config.output_dir)), bool(config.should_save)
        train, heldout = given.prompts
        watched = [] if config.dry_run else heldout[: monitor.monitor_prompts]
        if not watched and not config.dry_run and (monitor.has_gold or given.gold is not None):
            raise ConfigError(
                "There is a reward to monitor the policy by, and no held-out prompt",
                where="eval_prompts, eval_fraction and monitor_prompts",
                remedy="pass --eval_prompts, or an --eval_fraction and --monitor_prompts above 0",
            )
        functions = {name: PythonReward(name, rows=given.rows) for name in rewards.reward_function}
        for source in [*functions.values(), *given.rewards]:
            if isinstance(source, PythonReward):
                source.try_on(train)
        if watched and isinstance(given.gold, Gold):
            given.gold.try_on(watched)
        load = scorer_loader(
            model.loading(),
            micro_batch_tokens=config.micro_batch_tokens or TOKENS["micro_batch_tokens"],
            seed=config.seed,
            chat_template=model.chat_template,
        )
        gold = gold_reward(monitor, load, given.gold)
        start = load_start(model, config.stop_token_id, given.policy, rewards.reward_model)
        train, watched = renderable_prompts(start.chat, train, watched, getattr(split, "skip_bad_rows", None))
        self.prompts = train
        length = config.response_length
        chat, longest = fit_chat(start.chat, start.backbone, split.max_length, length, [*train, *watched])
        if self.main:
            learned, held = (as_feedback(dict.fromkeys(prompts, ("", ""))) for prompts in given.prompts)
            log_inspection(learned, held, chat, only_prompts=True)
        recorded = start.settings or PolicySettings(str(model.model_name_or_path))
        set_seed(config.seed)  # fresh weights must not depend on what was loaded before
        parts = Parts(
            policy=start._replace(chat=chat),
            prompts=train,
            config=config,
            model=model,
            rewards=rewards,
            put_rewards=lambda backbone: Rewards(rewards, backbone, chat, load, functions, given.rewards),
            settings=replace(recorded, max_length=longest, method=run.algorithm),
            lora=given.lora,
        )
        self.training: Training = make_training(run.algorithm, parts)
        for callback in given.callbacks:
            self.training.trainer.add_callback(callback)
        self.watcher = None
        if watched:
            self.watcher = Monitor(monitor, config, self.training, watched, gold, self.folder)

    def show_prompt(self) -> None:
        """Print the first prompt to stderr as the model sees it."""
        if self.main:
            show_prompt(self.training.policy.chat, self.prompts[0])

    def train(self, run: OutputRun) -> Any:
        """Train and write all results to the output folder; returns Hugging Face's `TrainOutput`."""
        training = self.training
        with run:
            for copied in run.settings:  # before sizes were fitted to this machine
                set_sizes(copied, {name: getattr(self.settings.config, name) for name in TOKENS})
            run.begin()
            with report_full_disk(self.folder):
                result = run.train(training.trainer, training.trainer.train, training.steps_per_update)
                if self.settings.config.dry_run:
                    return result
                self._save()
            episodes = int(self.settings.config.batch_size or 0)  # computed by the trainer
            write_results(self.folder, training, result, self.watcher, run.settings, episodes)
            training.trainer.upload()
        return result

    def _save(self) -> None:
        trainer, chat = self.training.trainer, self.training.policy.chat
        # Any tokens after a prompt serve for the check: every logit must be identical.
        prompts = [chat.prompt_ids(prompt) for prompt in self.prompts[:_CHECKED]]
        sample = [ChatFormat.sampled_line(ids, (*ids[-8:], chat.end_id)) for ids in prompts]
        trainer.save_state()
        model, merge = self.settings.model, self.settings.run.merge
        save_and_compare(trainer, self.training.policy, self.folder, sample, model, merge=merge)


@dataclass
class PPOConfig(PromptSplit, ModelArguments, MonitorArguments, PolicyRunArguments, PolicyConfig):
    """How a policy is trained: every setting of `rrm-lm policy`, and all of Hugging Face's `TrainingArguments`.

    ``rrm-lm policy --help_all`` describes each. Lengths are in tokens, KL divergences in nats per response.

    Example:
        >>> PPOConfig(output_dir="outputs/policy", total_episodes=512, response_length=64, kl_coef=0.1)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in (MonitorArguments, PolicyRunArguments, PolicyConfig):
            kind.__post_init__(self)


Reward = str | Path | RewardModel | Callable[..., Any]


class PPOTrainer:
    """Trains a policy with PPO on one or more rewards and monitors it on held-out prompts; `rrm-lm policy` in Python.

    Args:
        policy: A folder, a Hub id, ``smollm2-135m``, or a :class:`rrm_lm.Policy`, which is trained in place.
        rewards: One reward or a list: a reward model's folder or Hub id, a :class:`rrm_lm.RewardModel`, a function
            as in TRL (`UserFunction` describes its arguments), or ``"file.py:function"``. They are summed with
            ``args.reward_weights``.
        prompts: Training prompts: a list of texts or messages, rows, or a file.
        args: Settings; by default those of `rrm-lm policy`.
        eval_prompts: Held-out prompts; by default ``args.eval_fraction`` of the prompts.
        gold: An independent reward, of the same kinds, that monitors the policy; by default ``args.gold``. It is never
            optimized.
        peft_config: The LoRA configuration of a fresh adapter.
        callbacks: As in `transformers.Trainer`.

    Attributes:
        trainer: The `transformers.Trainer` underneath, with ``state``, ``log`` and ``add_callback``.

    Raises:
        ConfigError: Settings that do not fit together.
        DataError: Prompts that cannot be read.
        ModelError: No such model.

    Example:
        >>> trainer = PPOTrainer("smollm2-135m", "outputs/rm", ["Hello!", "Who are you?"])
        >>> trainer.train()
        >>> trainer.policy.respond("Hello!")
    """

    algorithm = "ppo"

    def __init__(
        self,
        policy: str | Path | Policy,
        rewards: Reward | Sequence[Reward],
        prompts: Any,
        args: PPOConfig | None = None,
        *,
        eval_prompts: Any = None,
        gold: Reward | None = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.args = args or PPOConfig()
        self.args.algorithm = self.algorithm
        self.args.model_name_or_path = policy.name if isinstance(policy, Policy) else str(policy)
        gold = self.args.gold if gold is None else gold
        self.args.require_gold(gold is not None)
        named = RewardArguments()
        listed: Any = rewards if isinstance(rewards, list | tuple) else [rewards]
        rows: dict[Prompt, Any] = {}
        train = dict.fromkeys(read_prompts(prompts, rows=rows), ("", ""))
        heldout = None
        if eval_prompts is not None:
            heldout = dict.fromkeys(read_prompts(eval_prompts, split="test", rows=rows), ("", ""))
        sources = _sort_rewards(listed, named, self.args, rows)
        check_start(Path(str(self.args.output_dir)), self.args, named, self.args)
        given = Given(
            split_prompts(self.args, train, heldout),
            policy.loaded if isinstance(policy, Policy) else None,
            sources,
            None if gold is None else _gold(gold, rows),
            rows,
            peft_config,
            tuple(callbacks),
        )
        self._settings = [copy.copy(self.args), named]  # a copy: the trainer writes derived values into its settings
        self._training = PolicyTraining(
            PolicySettingsGroup(self.args, named, self.args, self.args, self.args, self.args), given
        )
        if isinstance(policy, Policy):
            policy.loaded = self._training.training.policy
        self._prompts = given.prompts[0]
        self.trainer = self._training.training.trainer

    def train(self, resume_from_checkpoint: str | bool | None = None) -> Any:
        """Train, save into ``args.output_dir``, reload and compare; returns Hugging Face's `TrainOutput`.

        Args:
            resume_from_checkpoint: True for the newest complete checkpoint in the output folder, or a path.

        Raises:
            CheckpointError: The output folder is in use or holds another run, or a checkpoint is broken.
            TrainingError: A reward failed, or a loss is not a number.
        """
        run = OutputRun(
            "rrm-lm policy",
            self.args,
            self.args,
            self._settings,
            resume_from_checkpoint,
            {
                "prompts": [message.content for prompt in self._prompts for message in prompt],
                "chat_date": date_of(self._training.training.policy.chat.tokenizer),
            },
        )
        return self._training.train(run)

    @property
    def policy(self) -> Policy:
        """The current policy, ready to respond."""
        return Policy(self._training.training.policy, str(self.args.output_dir))

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy's adapter folder, by default to ``args.output_dir``."""
        self.trainer.save_model(None if output_dir is None else str(output_dir))


def _sort_rewards(
    rewards: Sequence[Reward], named: RewardArguments, args: PPOConfig, rows: PromptRows
) -> list[RewardSource]:
    """Put named rewards into the settings and return sources for the others; reorder the weights, names first."""
    kinds: tuple[list[int], list[int], list[int]] = ([], [], [])
    sources: list[RewardSource] = []
    for place, reward in enumerate(rewards):
        if isinstance(reward, str | Path):
            is_function = ":" in str(reward) and not Path(reward).exists()
            kinds[is_function].append(place)
            (named.reward_function if is_function else named.reward_model).append(str(reward))
        else:
            kinds[2].append(place)
            sources.append(_source(reward, rows))
    if not rewards:
        named.require()
    if args.reward_weights is not None and len(args.reward_weights) == len(rewards):
        args.reward_weights = [args.reward_weights[place] for kind in kinds for place in kind]
    return sources


def _source(reward: Any, rows: PromptRows) -> RewardSource:
    if isinstance(reward, RewardModel):
        return ScorerReward(reward.scorer)
    if callable(reward):
        return PythonReward(reward, rows=rows)
    expected = "a folder or Hub id, a RewardModel, or a function of prompts and responses"
    raise ConfigError(f"A reward is a {type(reward).__name__}", where="rewards", expected=expected)


def _gold(gold: Reward, rows: PromptRows) -> RewardFunction:
    if isinstance(gold, str | Path):
        text = str(gold)
        if Path(text).is_file() and Path(text).suffix not in (".yaml", ".yml"):
            expected = "a reward model, or a function; rrm-lm policy --gold also takes a file of requests"
            raise ConfigError("The gold reward is a file of data", where=f"gold: {text}", expected=expected)
        is_function = ":" in text and not Path(text).exists()
        gold = load_function(text) if is_function else RewardModel.from_pretrained(text)
    source = _source(gold, rows)
    return Gold(CheckedFunction(source)) if isinstance(source, PythonReward) else source
