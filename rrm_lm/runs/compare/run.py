"""What `rrm-lm compare` does: every policy answers the same prompts, and whatever can judge the answers does."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.gold import Gold, RewardFunction, rewards_by
from rrm_lm.evaluation.policies.pair_judges import LanguageModelJudge, PairJudge, both_orders
from rrm_lm.evaluation.policies.results import GOLD, PART, PairVerdict, PolicyComparison, PolicySamples, Sample
from rrm_lm.evaluation.policies.samples import Drawn, draw, drawn_text, log_probs, rewards_of_drawn
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.reports.policies import PolicyReportData
from rrm_lm.feedback.asking.judge_questions import LETTER_QUESTION, VERDICT_QUESTION, noted
from rrm_lm.feedback.asking.llm_judge import SERVED, ServedJudge
from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state, resolve
from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, model_file, read_json
from rrm_lm.models.saving.policies import Policy, load_policy, read_policy_settings
from rrm_lm.recursion.critics import AssistedPairs, Critiques
from rrm_lm.runs.compare.results import write_comparison
from rrm_lm.runs.critics import FILE, NamedCritic, find_critic
from rrm_lm.runs.gold import load_gold
from rrm_lm.runs.progress import advance
from rrm_lm.settings.policies import CompareArguments, DrawingArguments
from rrm_lm.simulated.plain_user import split_sentences
from rrm_lm.storage import write_jsonl
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

_FIRST_SENTENCE = "{first_sentence}"  # in a trivial policy's text
Answers = list[list[Drawn]]  # for each prompt, what a policy wrote
Ratios = list[list[float]] | None  # the same for log p(policy) - log p(reference); None where it is not defined


class CompareRun:
    """One comparison, from names to files."""

    def __init__(self, args: CompareArguments, drawing: DrawingArguments) -> None:
        self.args, self.drawing = args, drawing
        self.sampling = Sampling(drawing.max_new_tokens, drawing.temperature, drawing.top_p, drawing.top_k)
        self.device = torch.device(process_state().device or "cpu")
        self.critiques: Critiques | None = None  # what judges are shown beside answers
        self.asked_without: dict[str, int] = {}  # by judge, questions that had no room for it

    def run(self) -> PolicyReportData:
        """Compare, write the results into the output folder, and print them; returns what the page was made from.

        Raises:
            RRMError: A model, a file or a setting that cannot be used; earlier results are left then.
        """
        if process_state().num_processes > 1:
            raise ConfigError(
                "rrm-lm compare runs in one process", remedy="start it without accelerate launch or torchrun"
            )
        args = self.args
        critic = None if args.critic is None else find_critic(args.critic, allow_code=args.allow_code)
        reference = args.reference or self._made_from(args.policies[0])
        if reference in args.policies:
            raise ConfigError(
                f"{reference} is both a policy and what it is compared with",
                where="reference",
                remedy="leave it out of the policies, or name another --reference",
            )
        folder = OutputFolder(
            args.folder,
            command="rrm-lm compare",
            identity={"policies": args.policies, "reference": reference, "prompts": args.prompts},
            overwrite=args.overwrite_output_dir,
            deferred=True,  # earlier results stay until there are new ones
        )
        with folder:
            prompts = self._prompts()
            gold = None if args.gold is None else load_gold(args.gold, args)
            # A name that is none, or a server that is not there, is said now, not after an hour of answers.
            for name in [reference, *args.policies, *args.scorers, *args.judge]:
                if not (name in args.judge and name.startswith(SERVED)):
                    resolve(name)
            self._reach_judges(prompts[0])
            comparison = self._compare(reference, prompts, gold, critic)
            folder.begin()
            if self.critiques is not None:
                write_jsonl(args.folder / FILE, self.critiques.rows())
            settings = {**asdict(args), **asdict(self.drawing), "reference": reference}
            return write_comparison(comparison, args.folder, configuration=settings)

    # -- what is compared -----------------------------------------------------------------------------------------

    def _prompts(self) -> list[Prompt]:
        args = self.args
        found: dict[Prompt, None] = {}
        for name in args.prompts:
            found |= dict.fromkeys(load_prompts(name, **args.reading(args.split)))
        prompts = list(found)[: args.max_prompts]
        logger.info("%d prompts, %d answers of each policy to each", len(prompts), self.drawing.samples)
        return prompts

    def _made_from(self, policy: str) -> str:
        """The model that a policy was trained from.

        Raises:
            ConfigError: It does not say.
        """
        path = resolve(policy)
        settings = read_policy_settings(path)
        if self.drawing.base_model is not None:
            return self.drawing.base_model
        if settings is not None:
            return settings.base_model
        config = model_file(path, ADAPTER_CONFIG)
        name = None if config is None else read_json(config).get("base_model_name_or_path")
        if not name:
            raise ConfigError(
                f"{policy} does not say which model it was made from",
                where="reference",
                remedy="say what it shall be compared with: --reference smollm2-135m, for example",
            )
        return str(name)

    # -- answers --------------------------------------------------------------------------------------------------

    def _compare(
        self, reference: str, prompts: Sequence[Prompt], gold: Gold | None, critic: NamedCritic | None
    ) -> PolicyComparison:
        names = [reference, *self.args.policies, *map(_quoted, self.args.trivial)]
        start = self._load(reference)
        answers: list[Answers] = [self._draw(start, reference, prompts, 0)]
        ratios: list[Ratios] = [None]
        for place, name in enumerate(self.args.policies, start=1):
            policy = self._load(name)
            answers.append(self._draw(policy, name, prompts, place))
            ratios.append(self._ratios(policy, start, answers[-1], name))
            del policy
            gc.collect()  # one policy at a time beside the reference
        for text in self.args.trivial:
            answers.append(_trivial(text, start.chat, prompts, answers[0]))
            ratios.append(None)
        del start
        gc.collect()
        rewards = self._rewards(prompts, answers, gold)
        if critic is not None:
            judged = [(prompt, text) for texts in _firsts(answers) for prompt, text in zip(prompts, texts, strict=True)]
            self.critiques = critic.write(judged, **self.drawing.loading())
        verdicts = {judge: self._judge(judge, prompts, names, answers) for judge in self.args.judge}
        written = [
            replace(_written(*each), trivial=place > len(self.args.policies))
            for place, each in enumerate(zip(names, answers, ratios, rewards, strict=True))
        ]
        details: dict[str, Any] = {"samples_per_prompt": self.drawing.samples, "sampling": asdict(self.sampling)}
        if self.critiques is not None:
            details["critic"] = self.critiques.account() | {"asked_without": dict(self.asked_without)}
        return compare(prompts, written, proxy=self.args.proxy, verdicts=verdicts, details=details)

    def _load(self, name: str) -> Policy:
        """A policy on this device, whose chat format leaves room for an answer."""
        adapter = model_file(resolve(name), ADAPTER_CONFIG) is not None
        policy = load_policy(
            name,
            base_model=self.drawing.base_model if adapter else None,
            **self.drawing.tokenizing(),
            **self.drawing.loading(),
        )
        policy.backbone.to(self.device)
        context = getattr(policy.backbone.config, "max_position_embeddings", None)
        longest = min((n for n in (self.drawing.max_length, context) if n is not None), default=None)
        room = None if longest is None else longest - self.sampling.max_new_tokens
        if room is not None and room < 1:
            raise ConfigError(
                f"{self.sampling.max_new_tokens} new tokens leave no room for a prompt: {name} has {longest} in all",
                where="max_new_tokens",
                remedy="ask for fewer",
            )
        return policy._replace(chat=ChatFormat(policy.chat.tokenizer, room))

    def _draw(self, policy: Policy, name: str, prompts: Sequence[Prompt], place: int) -> Answers:
        """Answers of one policy. Each policy draws with a seed of its own, so that no two share their luck."""
        total = len(prompts) * self.drawing.samples
        with tqdm(total=total, desc=f"answers of {name}", unit="answer") as bar:
            return draw(
                policy.backbone,
                policy.adapter,
                policy.chat,
                prompts,
                self.sampling,
                samples=self.drawing.samples,
                seed=self.drawing.seed * 1000 + place,
                batch_tokens=self.drawing.batch_tokens,
                progress=advance(bar),
            )

    def _ratios(self, policy: Policy, reference: Policy, answers: Answers, name: str) -> Ratios:
        """How much likelier each answer is under its policy than under the reference, where that says how far it is."""
        reason = ""
        if self.sampling.truncates:
            reason = "it is of whole distributions: temperature above 0, top_p 1 and top_k 0"
        elif policy.chat.tokenizer.get_vocab() != reference.chat.tokenizer.get_vocab():
            reason = "it has other tokens than the reference"
        if reason:
            logger.warning("no KL divergence for %s: %s", name, reason)
            return None
        temperature, options = self.sampling.temperature, {"micro_batch_tokens": self.drawing.micro_batch_tokens}
        own = log_probs(policy.backbone, policy.adapter, answers, temperature, **options)
        theirs = log_probs(reference.backbone, reference.adapter, answers, temperature, **options)
        return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(own, theirs, strict=True)]

    # -- judging --------------------------------------------------------------------------------------------------

    def _rewards(
        self, prompts: Sequence[Prompt], answers: Sequence[Answers], gold: Gold | None
    ) -> list[dict[str, list[list[float]]]]:
        """For each policy, the rewards of its answers by measure."""
        rewards: list[dict[str, list[list[float]]]] = [{} for _ in answers]
        functions: list[tuple[str, Callable[[], RewardFunction]]] = []
        if gold is not None:
            functions.append((GOLD, lambda: gold))
            functions += [(PART + name, lambda part=part: part) for name, part in gold.parts.items()]
        functions += [(name, lambda name=name: self._scorer(name)) for name in self.args.scorers]
        for measure, make in functions:
            function = make()
            for own, drawn in zip(rewards, answers, strict=True):
                own[measure] = rewards_of_drawn(function, prompts, drawn)
            del function
            gc.collect()
            if not any(math.isfinite(value) for own in rewards for row in own[measure] for value in row):
                raise DataError(
                    "Not one answer got a reward",
                    where=f"gold: {self.args.gold}" if measure == GOLD else measure,
                    expected="finite rewards; a simulated user knows only its own requests",
                    remedy="name the file of requests that the prompts were taken from, or leave it out",
                )
        return rewards

    def _scorer(self, name: str) -> RewardFunction:
        logger.info("scoring with %s", name)
        scorer = load_scorer(
            name,
            micro_batch_tokens=self.drawing.micro_batch_tokens,
            seed=self.drawing.seed,
            max_length=self.drawing.max_length,
            pad_token=self.drawing.pad_token,
            **self.drawing.loading(),
        )
        return rewards_by(scorer)

    def _reach_judges(self, prompt: Prompt) -> None:
        """Ask each judge behind a server one question.

        Raises:
            ModelError: A server cannot be reached, knows no such model, or does not accept the key.
        """
        for name in self.args.judge:
            if name.startswith(SERVED):
                self._served(name).judge([(prompt, "Yes.", "No.")])

    def _served(self, name: str) -> ServedJudge:
        question = VERDICT_QUESTION if self.critiques is None else noted(VERDICT_QUESTION)
        args = self.args
        return ServedJudge(
            name.removeprefix(SERVED), args.base_url, name=name, question=question, key_variable=args.judge_key_env
        )

    def _judge(
        self, name: str, prompts: Sequence[Prompt], names: Sequence[str], answers: Sequence[Answers]
    ) -> dict[str, list[PairVerdict]]:
        """Verdicts on the first answer of each policy beside the first of the reference."""
        logger.info("asking %s", name)
        judge: PairJudge = self._served(name) if name.startswith(SERVED) else self._language_model(name)
        assisted = None if self.critiques is None else AssistedPairs(judge, self.critiques)
        firsts = _firsts(answers)
        verdicts = {
            policy: both_orders(assisted or judge, prompts, own, firsts[0])
            for policy, own in zip(names[1:], firsts[1:], strict=True)
        }
        if assisted is not None:
            self.asked_without[name] = assisted.asked_without
        if isinstance(judge, ServedJudge) and judge.abstentions:
            causes = ", ".join(f"{count} {cause}" for cause, count in judge.abstentions.most_common())
            logger.warning("%s gave no verdict on some questions: %s", name, causes)
        return verdicts

    def _language_model(self, name: str) -> LanguageModelJudge:
        model = load_policy(name, pad_token=self.drawing.pad_token, **self.drawing.loading())
        model.backbone.to(self.device)
        return LanguageModelJudge(
            model.backbone,
            model.chat,
            name,
            adapter=model.adapter,
            micro_batch_tokens=self.drawing.micro_batch_tokens,
            question=LETTER_QUESTION if self.critiques is None else noted(LETTER_QUESTION),
        )


def _firsts(answers: Sequence[Answers]) -> list[list[str]]:
    """For each policy, its first answer to each prompt: those that judges compare."""
    return [[group[0].text for group in drawn] for drawn in answers]


def _quoted(text: str) -> str:
    """A trivial policy's name: what it answers."""
    shown = text.replace(_FIRST_SENTENCE, "[first sentence]")
    return f"\N{LEFT DOUBLE QUOTATION MARK}{shown}\N{RIGHT DOUBLE QUOTATION MARK}"


def _trivial(text: str, chat: ChatFormat, prompts: Sequence[Prompt], reference: Answers) -> Answers:
    """A trivial policy's answers: one to a prompt, or one for each of the reference's where it quotes them."""
    if _FIRST_SENTENCE not in text:
        return [[drawn_text(chat, prompt, text)] for prompt in prompts]
    return [
        [drawn_text(chat, prompt, text.replace(_FIRST_SENTENCE, _first_sentence(one.text))) for one in group]
        for prompt, group in zip(prompts, reference, strict=True)
    ]


def _first_sentence(text: str) -> str:
    return next(iter(split_sentences(text)), "")


def _written(name: str, answers: Answers, ratios: Ratios, rewards: dict[str, list[list[float]]]) -> PolicySamples:
    return PolicySamples(
        name,
        tuple(
            tuple(
                Sample(
                    response=one.text,
                    tokens=one.tokens,
                    finished=one.finished,
                    rewards={measure: rows[number][k] for measure, rows in rewards.items()},
                    log_ratio=None if ratios is None else ratios[number][k],
                )
                for k, one in enumerate(group)
            )
            for number, group in enumerate(answers)
        ),
    )
