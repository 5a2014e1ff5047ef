"""Settings of commands that sample from saved policies: `rrm-lm chat`, `collect` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.asking.llm_judge import SERVED
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.options import check, check_minimum, option, refuse_repeats, require
from rrm_lm.settings.data import EvaluationSource
from rrm_lm.settings.models import ModelLoading, SavedModel
from rrm_lm.settings.permissions import CodeArguments
from rrm_lm.settings.scoring import CriticArguments, ResultsFolder


@dataclass
class Truncation:
    """Which tokens may be drawn."""

    top_p: float = option(1.0, "Draw from the smallest set of tokens with this probability.")
    top_k: int = option(0, "Draw from this many most likely tokens; 0 for all.")


@dataclass
class ChatArguments(Truncation, SavedModel):
    """The model, and how its answers are sampled."""

    model: str | None = option(None, "A policy's folder, a merged policy, a Hub id or an alias.")
    system: str | None = option(None, "System message.")
    temperature: float = option(0.7, "Sampling temperature; 0 for the most likely tokens.")
    max_new_tokens: int = option(512, "Most tokens per answer.")
    seed: int | None = option(None, "Seed, to get the same answers again. Unset: new answers each time.")
    max_length: int | None = option(
        None, "Longest conversation in tokens; the oldest turns are dropped. Unset: the model's limit."
    )

    def __post_init__(self) -> None:
        check_minimum(self, max_length=2)

    def require(self) -> None:
        require(self, model="name one: rrm-lm chat outputs/sft, or rrm-lm chat smollm2-135m")


@dataclass
class ServerArguments:
    """The server of a judge llm:MODEL."""

    base_url: str = option("http://127.0.0.1:8000/v1", "Address of a server with OpenAI's chat completions API.")
    judge_key_env: str | None = option(
        None,
        "Environment variable with the API key for that server. Unset: OPENAI_API_KEY, which is only sent to "
        "https://api.openai.com and to this machine. Only on the command line.",
    )


@dataclass
class CollectArguments(ReadLimits, ServerArguments, CriticArguments, CodeArguments):
    """Whose answers to which prompts, and who compares them."""

    policy: str | None = option(None, "Policy that answers: a folder, a Hub id or an alias; also as the first word.")
    prompts: list[str] = option([], "Prompts to answer: feedback of any kind, or JSON lines with `prompt`.")
    max_prompts: int | None = option(None, "Use only this many prompts, drawn with the seed.")
    overseer: str | None = option(
        None,
        "Who compares: llm:MODEL at base_url, the folder of a reward model, a file of a simulated user's requests, or "
        "file.py:function, a function that returns an overseer (see rrm_lm/feedback/asking/overseers.py).",
    )
    samples: int = option(4, "Answers per prompt.")
    comparisons_per_prompt: int = option(1, "Most pairs of answers to ask about per prompt.")
    edits: int = option(
        0, "Also ask about this many pairs per prompt of an answer and an edit of it, if the overseer has criteria."
    )
    editor: str | None = option(
        None, "llm:MODEL at base_url, which makes the edits for criteria that no rule edits; unset: none are made."
    )
    critiques: bool = option(True, "Also ask for a critique of each compared answer.")
    round: int = option(1, "Number of the round in records and reports.")
    max_new_tokens: int = option(128, "Most tokens per answer.")
    temperature: float = option(1.0, "Sampling temperature; must be above 0, or all answers would be the same.")
    seed: int = option(0, "Seed of answers and pairs.")
    batch_tokens: int = option(16384, "Most tokens in memory at once during sampling.")
    output_dir: str = option("outputs/feedback", "Folder for feedback.jsonl and counts.json.")
    overwrite_output_dir: bool = option(
        False, "Start again. Unset: a stopped collection resumes; no question is repeated."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, samples=2, comparisons_per_prompt=1, round=1, max_new_tokens=1, max_prompts=1, edits=0)
        check(self, ("temperature", self.temperature > 0, "above 0"))

    def require(self) -> None:
        require(
            self,
            policy="name one: rrm-lm collect outputs/policy ...",
            prompts="pass --prompts my_prompts.jsonl",
            overseer="pass --overseer llm:MODEL",
        )
        if self.editor is not None and (not self.edits or not self.editor.startswith(SERVED) or self.editor == SERVED):
            what = f"editor is {self.editor}, and edits is {self.edits}"
            raise ConfigError(what, where="editor", expected="--editor llm:MODEL, and --edits above 0")


@dataclass
class CompareArguments(ResultsFolder, EvaluationSource, ServerArguments, CriticArguments, CodeArguments):
    """The policies, their prompts, and who says which answers are better."""

    policies: list[str] = option([], "Policies: adapter folders, merged policies, Hub ids or aliases.")
    reference: str | None = option(None, "Model to compare them with. Unset: the model the first was trained from.")
    prompts: list[str] = option(
        [], "Held-out prompts: feedback of any kind, or JSON lines with `prompt`; one or more files or datasets."
    )
    trivial: list[str] = option(
        [],
        "Texts that answer every prompt, as additional policies: they show the reward of answers that cannot be good. "
        "{first_sentence} in a text stands for the first sentence of the reference's answer.",
    )
    max_prompts: int | None = option(None, "Use only this many prompts, drawn with the seed.")
    greedy: bool = option(True, "Also score one answer per prompt at temperature 0: what a policy does without luck.")
    gold: str | None = option(
        None, "Gold reward: file.py:function, module:function, or a file of a simulated user's requests."
    )
    proxy: str | None = option(None, "Reward model the policies were optimized for; it picks the best of n.")
    reward_model: list[str] = option([], "One or more independent reward models, trained on other feedback.")
    judge: list[str] = option(
        [],
        "One or more language models that compare answers in both orders. llm:MODEL is a model on the server at "
        "base_url, which receives all prompts and compared answers.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, max_prompts=1)

    def require(self) -> None:
        """Raise a ConfigError if there is no policy or no prompt, a name is given twice, or a critic has no judge."""
        require(
            self,
            policies="name one or more: rrm-lm compare outputs/ppo ...",
            prompts="pass --prompts held_out_prompts.jsonl",
        )
        refuse_repeats("policies and reference", [*self.policies, *filter(None, [self.reference])])
        refuse_repeats("proxy and reward_model", self.scorers)
        refuse_repeats("judge", self.judge)
        refuse_repeats("trivial", self.trivial)
        if self.critic is not None and not self.judge:
            raise ConfigError(
                "A critic helps a judge, and there is no judge", where="critic", remedy="pass --judge MODEL"
            )
        if SERVED in self.judge:
            raise ConfigError(f"{SERVED} names no model", where="judge", remedy=f"pass --judge {SERVED}Qwen/Qwen3-8B")

    @property
    def scorers(self) -> list[str]:
        return [*filter(None, [self.proxy]), *self.reward_model]

    @property
    def folder(self) -> Path:
        folder = self._folder("outputs/compare", self.policies, "_")
        return folder.with_name(folder.name[:120]) if self.output_dir is None else folder


@dataclass
class DrawingArguments(Truncation, ModelLoading):
    """How answers are sampled and models are run."""

    samples: int = option(4, "Answers of each policy per prompt.")
    max_new_tokens: int = option(128, "Most tokens per answer.")
    temperature: float = option(1.0, "Sampling temperature. KL divergence needs it above 0, top_p 1 and top_k 0.")
    seed: int = option(0, "Seed of the answers.")
    max_length: int | None = option(
        None, "Longest prompt plus answer in tokens; the oldest turns are dropped. Unset: the model's limit."
    )
    batch_tokens: int = option(16384, "Most tokens in memory at once during sampling.")
    micro_batch_tokens: int = option(4096, "Most padded tokens per forward pass of scoring.")
    base_model: str | None = option(None, "Backbone of policies that are adapters.")

    def __post_init__(self) -> None:
        check_minimum(self, samples=1, max_new_tokens=1, batch_tokens=1, micro_batch_tokens=1)
        check(
            self,
            ("temperature", self.temperature >= 0, "0 (most likely tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("max_length", self.max_length is None or self.max_length > self.max_new_tokens, "above max_new_tokens"),
        )
        if self.temperature == 0 and self.samples > 1:
            what = f"Temperature 0 gives one answer per prompt, but {self.samples} were requested"
            raise ConfigError(what, where="samples", remedy="pass --samples 1, or a temperature above 0")
