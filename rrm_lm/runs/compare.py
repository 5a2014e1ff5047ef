"""`rrm-lm compare`: every policy answers the same prompts; reward models and judges evaluate the answers.

It writes results.json, samples.jsonl, greedy.jsonl, verdicts.jsonl and report.html, and prints a table.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rrm_lm.api.judging import environment
from rrm_lm.api.policy.results import print_comparison
from rrm_lm.api.policy.rewards import refuse_unscored
from rrm_lm.api.policy_model import Policy
from rrm_lm.api.start import fitted
from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.gold import Gold, RewardFunction, rewards_by
from rrm_lm.evaluation.policies.monitors import OverOptimisation, over_optimisation, track_of
from rrm_lm.evaluation.policies.pair_judges import LanguageModelJudge, PairJudge, both_orders
from rrm_lm.evaluation.policies.results import GOLD, PART, PairVerdict, PolicyComparison, PolicySamples, Sample
from rrm_lm.evaluation.policies.samples import Drawn, draw, drawn_text, log_probs, rewards_of_drawn
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.reports.policies import PolicyReportData, render_policy_report
from rrm_lm.feedback.asking.judge_questions import LETTER_QUESTION, VERDICT_QUESTION, noted
from rrm_lm.feedback.asking.llm_judge import SERVED, ServedJudge
from rrm_lm.feedback.reading.prompts import prompt_sources
from rrm_lm.feedback.records import Prompt, prompt_id
from rrm_lm.feedback.splits import limit_prompts
from rrm_lm.models.decoding.generation import sampling_bar
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state, resolve
from rrm_lm.models.saving.adapters import ADAPTER_CONFIG, model_file, read_json
from rrm_lm.models.saving.policies import Policy as LoadedPolicy
from rrm_lm.models.saving.policies import read_policy_settings
from rrm_lm.recursion.critics import AssistedPairs, Critiques
from rrm_lm.runs.critics import CRITIQUES_FILE, CriticSource, find_critic
from rrm_lm.runs.gold import load_gold
from rrm_lm.settings.policies import CompareArguments, DrawingArguments
from rrm_lm.simulated.plain_user import split_sentences
from rrm_lm.storage import write_json, write_jsonl, write_text
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.output_folder import OutputFolder
from rrm_lm.training.over_optimisation import FILE_NAME, read_measurements

logger = logging.getLogger(__name__)

_FIRST_SENTENCE = "{first_sentence}"  # placeholder in the text of a trivial policy
Answers = list[list[Drawn]]  # one policy's answers, by prompt
LogRatios = list[list[float]] | None  # log p(policy) - log p(reference) of each answer; None where it is undefined
Rewards = dict[str, list[list[float]]]  # one policy's rewards, by measure, prompt and answer


def compare_policies(args: CompareArguments, drawing: DrawingArguments) -> None:
    """Sample answers, score them, write the results and print them."""
    CompareRun(args, drawing).run()


class CompareRun:
    """One comparison of policies."""

    def __init__(self, args: CompareArguments, drawing: DrawingArguments) -> None:
        self.args, self.drawing = args, drawing
        self.sampling = Sampling(drawing.max_new_tokens, drawing.temperature, drawing.top_p, drawing.top_k)
        self.critiques: Critiques | None = None  # shown to judges along with the answers
        self.asked_without: dict[str, int] = {}  # by judge, the questions that were too long to include critiques

    def run(self) -> PolicyReportData:
        """Compare, write the results to the output folder, and print them; returns the report's data. Raises RRMError:
        an unusable model, file or setting. Earlier results are kept.
        """
        if process_state().num_processes > 1:
            raise ConfigError(
                "rrm-lm compare runs in one process", remedy="start it without accelerate launch or torchrun"
            )
        args = self.args
        critic = None if args.critic is None else find_critic(args.critic, allow_code=args.allow_code)
        reference = args.reference or self._starting_model(args.policies[0])
        if reference in args.policies:
            remedy = "remove it from the policies, or choose another --reference"
            raise ConfigError(f"{reference} is both a policy and the reference", where="reference", remedy=remedy)
        folder = OutputFolder(
            args.folder,
            command="rrm-lm compare",
            identity={"policies": args.policies, "reference": reference, "prompts": args.prompts},
            overwrite=args.overwrite_output_dir,
            deferred=True,  # keep earlier results until there are new ones
        )
        with folder:
            rows: dict[Prompt, Any] = {}
            prompts = self._load_prompts(rows if args.gold else None)
            gold = None if args.gold is None else load_gold(args.gold, args, rows)
            if gold is not None:
                gold.try_on(prompts)
            # Unknown names and unreachable servers must fail now, not after an hour of sampling.
            served = [name for name in args.judge if name.startswith(SERVED)]
            for name in [reference, *args.policies, *args.scorers, *args.judge]:
                if name not in served:
                    resolve(name)
            for name in served:
                self._served_judge(name).judge([(prompts[0], "Yes.", "No.")])
            comparison = self._compare(reference, prompts, gold, critic)
            folder.begin()
            if self.critiques is not None:
                write_jsonl(args.folder / CRITIQUES_FILE, self.critiques.rows())
            settings = {**asdict(args), **asdict(self.drawing), "reference": reference}
            return write_comparison(comparison, args.folder, configuration=settings)

    def _load_prompts(self, rows: dict[Prompt, Any] | None = None) -> list[Prompt]:
        args = self.args
        found = prompt_sources(args.prompts, **args.reading(args.split), rows=rows)
        prompts = limit_prompts(found, args.max_prompts, self.drawing.seed)
        logger.info("%d prompts, %d answers of each policy to each", len(prompts), self.drawing.samples)
        return prompts

    def _starting_model(self, policy: str) -> str:
        """The model that a policy was trained from. Raises ConfigError: the policy does not record it."""
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
                f"{policy} does not record which model it was trained from",
                where="reference",
                remedy="name the model to compare it with, for example --reference smollm2-135m",
            )
        return str(name)

    def _compare(
        self, reference: str, prompts: Sequence[Prompt], gold: Gold | None, critic: CriticSource | None
    ) -> PolicyComparison:
        names = [reference, *self.args.policies, *map(_trivial_name, self.args.trivial)]
        start = self._load(reference)
        answers: list[Answers] = [self._draw(start, reference, prompts, 0)]
        greedy: list[Answers] = self._draw_greedy(start, reference, prompts)
        ratios: list[LogRatios] = [None]
        for place, name in enumerate(self.args.policies, start=1):
            policy = self._load(name)
            answers.append(self._draw(policy, name, prompts, place))
            greedy += self._draw_greedy(policy, name, prompts)
            ratios.append(self._log_ratios(policy, start, answers[-1], name))
            del policy
            gc.collect()  # hold one policy at a time in addition to the reference
        for text in self.args.trivial:
            answers.append(_trivial_answers(text, start.chat, prompts, answers[0]))
            ratios.append(None)
        del start
        gc.collect()
        rewards = self._rewards(prompts, [*answers, *greedy], gold)
        if critic is not None:
            judged = [
                (prompt, text) for texts in _first_answers(answers) for prompt, text in zip(prompts, texts, strict=True)
            ]
            self.critiques = critic.write(judged, **self.drawing.loading())
        verdicts = {judge: self._judge(judge, prompts, names, answers) for judge in self.args.judge}
        written = [
            replace(_written(*each), trivial=place > len(self.args.policies))
            for place, each in enumerate(zip(names, answers, ratios, rewards[: len(answers)], strict=True))
        ]
        for place, each in enumerate(zip(names, greedy, rewards[len(answers) :], strict=False)):
            certain = _written(each[0], each[1], None, each[2])
            written[place] = replace(written[place], greedy=tuple(group[0] for group in certain.samples))
        details: dict[str, Any] = {"samples_per_prompt": self.drawing.samples, "sampling": asdict(self.sampling)}
        if self.critiques is not None:
            details["critic"] = self.critiques.account() | {"asked_without": dict(self.asked_without)}
        return compare(prompts, written, proxy=self.args.proxy, verdicts=verdicts, details=details)

    def _load(self, name: str) -> LoadedPolicy:
        """A policy on this device, whose chat format truncates prompts so that an answer fits."""
        is_adapter = model_file(resolve(name), ADAPTER_CONFIG) is not None
        base = self.drawing.base_model if is_adapter else None
        policy = Policy.from_pretrained(
            name, base_model=base, **self.drawing.tokenizing(), **self.drawing.loading()
        ).loaded
        longest = fitted(self.drawing.max_length, policy.backbone)
        max_prompt = None if longest is None else longest - self.sampling.max_new_tokens
        if max_prompt is not None and max_prompt < 1:
            what = f"{self.sampling.max_new_tokens} new tokens leave none for a prompt: {name} has {longest} in total"
            raise ConfigError(what, where="max_new_tokens", remedy="set a smaller max_new_tokens")
        return policy._replace(chat=ChatFormat(policy.chat.tokenizer, max_prompt))

    def _draw_greedy(self, policy: LoadedPolicy, name: str, prompts: Sequence[Prompt]) -> list[Answers]:
        """One answer to each prompt at temperature 0, in a list; the empty list if they are not wanted."""
        if not self.args.greedy or self.drawing.temperature == 0:
            return []
        return [self._draw(policy, f"{name} at temperature 0", prompts, 0, greedy=True)]

    def _draw(
        self, policy: LoadedPolicy, name: str, prompts: Sequence[Prompt], place: int, *, greedy: bool = False
    ) -> Answers:
        """Answers of one policy. Each policy has its own seed, so that their samples are independent."""
        samples = 1 if greedy else self.drawing.samples
        sampling = Sampling(self.drawing.max_new_tokens, temperature=0) if greedy else self.sampling
        with sampling_bar(f"answers of {name}", "answer") as progress:
            return draw(
                policy.backbone,
                policy.adapter,
                policy.chat,
                prompts,
                sampling,
                samples=samples,
                seed=self.drawing.seed * 1000 + place,
                batch_tokens=self.drawing.batch_tokens,
                progress=progress,
            )

    def _log_ratios(self, policy: LoadedPolicy, reference: LoadedPolicy, answers: Answers, name: str) -> LogRatios:
        """Log-probability ratios of policy to reference, or None where their mean would not be a KL divergence."""
        same_tokens = policy.chat.tokenizer.get_vocab() == reference.chat.tokenizer.get_vocab()
        if self.sampling.truncates or not same_tokens:
            full = "it needs samples of the full distribution: temperature above 0, top_p 1 and top_k 0"
            reason = full if self.sampling.truncates else "its tokens differ from the reference's"
            logger.warning("no KL divergence for %s: %s", name, reason)
            return None
        temperature, options = self.sampling.temperature, {"micro_batch_tokens": self.drawing.micro_batch_tokens}
        bar = "log-probabilities of "
        ours = log_probs(policy.backbone, policy.adapter, answers, temperature, label=bar + name, **options)
        theirs = log_probs(
            reference.backbone, reference.adapter, answers, temperature, label=bar + "the reference", **options
        )
        return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(ours, theirs, strict=True)]

    def _rewards(self, prompts: Sequence[Prompt], answers: Sequence[Answers], gold: Gold | None) -> list[Rewards]:
        rewards: list[Rewards] = [{} for _ in answers]
        functions: list[tuple[str, Callable[[], RewardFunction]]] = []
        if gold is not None:
            functions.append((GOLD, lambda: gold))
            functions += [(PART + name, lambda part=part: part) for name, part in gold.parts.items()]
        functions += [(name, lambda name=name: self._scorer(name)) for name in self.args.scorers]
        for measure, make in functions:
            function = make()  # one reward model in memory at a time
            for of_policy, found in zip(rewards, _rewards_of_all(function, prompts, answers), strict=True):
                of_policy[measure] = found
            del function
            gc.collect()
            every = (value for of_policy in rewards for row in of_policy[measure] for value in row)
            refuse_unscored(every, f"gold: {self.args.gold}" if measure == GOLD else measure)
        return rewards

    def _scorer(self, name: str) -> RewardFunction:
        logger.info("scoring with %s", name)
        own = {key: getattr(self.drawing, key) for key in ("micro_batch_tokens", "seed", "max_length", "pad_token")}
        return rewards_by(load_scorer(name, **own, **self.drawing.loading()))

    def _judge(
        self, name: str, prompts: Sequence[Prompt], names: Sequence[str], answers: Sequence[Answers]
    ) -> dict[str, list[PairVerdict]]:
        """Verdicts on the first answer of each policy against the reference's first."""
        logger.info("asking %s", name)
        judge: PairJudge = self._served_judge(name) if name.startswith(SERVED) else self._local_judge(name)
        assisted = None if self.critiques is None else AssistedPairs(judge, self.critiques)
        reference, *others = _first_answers(answers)
        verdicts = {
            policy: both_orders(assisted or judge, prompts, texts, reference)
            for policy, texts in zip(names[1:], others, strict=True)
        }
        if assisted is not None:
            self.asked_without[name] = assisted.asked_without
        if isinstance(judge, ServedJudge) and judge.abstentions:
            causes = ", ".join(f"{count} {cause}" for cause, count in judge.abstentions.most_common())
            logger.warning("%s gave no verdict on some questions: %s", name, causes)
        return verdicts

    def _served_judge(self, name: str) -> ServedJudge:
        question = VERDICT_QUESTION if self.critiques is None else noted(VERDICT_QUESTION)
        model, key = name.removeprefix(SERVED), self.args.judge_key_env
        return ServedJudge(model, self.args.base_url, name=name, question=question, key_variable=key)

    def _local_judge(self, name: str) -> LanguageModelJudge:
        policy = Policy.from_pretrained(name, pad_token=self.drawing.pad_token, **self.drawing.loading()).loaded
        return LanguageModelJudge(
            policy.backbone,
            policy.chat,
            name,
            adapter=policy.adapter,
            micro_batch_tokens=self.drawing.micro_batch_tokens,
            question=LETTER_QUESTION if self.critiques is None else noted(LETTER_QUESTION),
        )


def _first_answers(answers: Sequence[Answers]) -> list[list[str]]:
    """Each policy's first answer to each prompt: the ones that judges compare."""
    return [[group[0].text for group in drawn] for drawn in answers]


def _rewards_of_all(
    function: RewardFunction, prompts: Sequence[Prompt], answers: Sequence[Answers]
) -> list[list[list[float]]]:
    """Rewards by policy, prompt and answer, from one call, so that a reward model computes each prompt once."""
    of_prompts = [[one for drawn in answers for one in drawn[i]] for i in range(len(prompts))]
    values = [iter(row) for row in rewards_of_drawn(function, prompts, of_prompts)]
    return [[[next(row) for _ in group] for group, row in zip(drawn, values, strict=True)] for drawn in answers]


def _trivial_name(text: str) -> str:
    """The name of a trivial policy: its answer in quotes."""
    shown = text.replace(_FIRST_SENTENCE, "[first sentence]")
    return f"\N{LEFT DOUBLE QUOTATION MARK}{shown}\N{RIGHT DOUBLE QUOTATION MARK}"


def _trivial_answers(text: str, chat: ChatFormat, prompts: Sequence[Prompt], reference: Answers) -> Answers:
    """A trivial policy's answers: one per prompt, or one per answer of the reference if the text quotes it."""
    texts = [
        [text.replace(_FIRST_SENTENCE, next(iter(split_sentences(one.text)), "")) for one in group]
        for group in (reference if _FIRST_SENTENCE in text else [group[:1] for group in reference])
    ]
    return [[drawn_text(chat, prompt, one) for one in group] for prompt, group in zip(prompts, texts, strict=True)]


def _written(name: str, answers: Answers, ratios: LogRatios, rewards: Rewards) -> PolicySamples:
    def sample(i: int, k: int, one: Drawn) -> Sample:
        found = {measure: rows[i][k] for measure, rows in rewards.items()}
        return Sample(one.text, one.tokens, one.finished, found, None if ratios is None else ratios[i][k])

    samples = [tuple(sample(i, k, one) for k, one in enumerate(group)) for i, group in enumerate(answers)]
    return PolicySamples(name, tuple(samples))


# ---- the output ----


def write_comparison(
    comparison: PolicyComparison, folder: Path, *, configuration: Mapping[str, object]
) -> PolicyReportData:
    """Write all numbers, samples and verdicts and the report, and print the numbers; returns the report's data."""
    tracks = training_tracks(comparison)
    monitored = {name: found.to_dict() for name, found in tracks.items()}
    write_json(folder / "results.json", {**comparison.to_dict(), "over_optimisation": monitored})
    write_jsonl(folder / "samples.jsonl", sample_rows(comparison))
    if comparison.written[0].greedy:
        write_jsonl(folder / "greedy.jsonl", sample_rows(comparison, greedy=True))
    if comparison.verdicts:
        write_jsonl(folder / "verdicts.jsonl", verdict_rows(comparison))
    report = PolicyReportData(
        comparison=comparison, tracks=tracks, configuration=configuration, environment=environment()
    )
    write_text(folder / "report.html", render_policy_report(report))
    print_comparison(comparison)
    logger.info("report: %s", folder / "report.html")
    return report


def training_tracks(comparison: PolicyComparison) -> dict[str, OverOptimisation]:
    """Over-optimization during training, for the policies whose folders have measurements of it."""
    files = {result.name: Path(result.name).expanduser() / FILE_NAME for result in comparison.policies}
    return {
        name: over_optimisation(track_of(measurements))
        for name, file in files.items()
        if file.is_file() and (measurements := read_measurements(file))
    }


def sample_rows(comparison: PolicyComparison, *, greedy: bool = False) -> Iterator[dict[str, Any]]:
    """One row per sample, or per answer at temperature 0, ordered by prompt; the reference comes first."""
    for number, prompt in enumerate(comparison.prompts):
        for one in comparison.written:
            for k, sample in enumerate(one.greedy[number : number + 1] if greedy else one.samples[number]):
                yield {
                    "prompt": [m.to_dict() for m in prompt],
                    "prompt_id": prompt_id(prompt),
                    "policy": one.name,
                    "sample": k,
                    **asdict(sample),
                }


def verdict_rows(comparison: PolicyComparison) -> Iterator[dict[str, Any]]:
    """One row per judged pair: the probability that the policy's response is better, for each order."""
    for judge, by_policy in comparison.verdicts.items():
        for policy, verdicts in by_policy.items():
            for verdict in verdicts:
                yield {
                    "judge": judge,
                    "policy": policy,
                    "prompt_id": prompt_id(comparison.prompts[verdict.prompt]),
                    "shown_first": verdict.shown_first,
                    "shown_second": verdict.shown_second,
                }
