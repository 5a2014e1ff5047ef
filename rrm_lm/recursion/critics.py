"""Critics: let any trained helper assist any judge, without a tree or a simulated domain.

A critic writes a remark on a response: a reward model trained on critiques writes a critique; a solved helper of a tree
gives a verdict with a quotation. `write_critiques` covers all responses before judging starts. Its result, `Critiques`,
is an `Assistance`: overseers get it through `Assisted`, reward models through `AssistedScorer` and pair judges through
`AssistedPairs`, always as delimited data, never as instructions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from rrm_lm.evaluation.policies.pair_judges import PairJudge, PairQuestion
from rrm_lm.evaluation.preferences.scoring import ResponseScorer, chunks
from rrm_lm.feedback.asking.collection import Subject
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.reward import RewardModel
from rrm_lm.recursion.agents import Agent, ScorerWithNotes
from rrm_lm.recursion.assistance import ENOUGH
from rrm_lm.recursion.notes import Note, is_verbatim, shortened, with_notes, without_marks
from rrm_lm.recursion.tasks import MainTask
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

LONGEST = 600  # maximum characters of a shown critique, to leave tokens for the response
SAMPLES = 6  # responses shown with critiques in reports
_TEMPLATE_TOKENS = 16  # maximum tokens that the chat template adds around a critique
_SENTENCES = re.compile(r".*[.!?](?=\s|$)")


@dataclass(frozen=True, slots=True)
class Remark:
    text: str  # the critique or the verdict; "" if unusable
    quote: str = ""  # quotation from the response; "" if none
    cut: bool = False  # whether it was shortened


class Critic(Protocol):
    """A model that writes remarks on responses."""

    @property
    def name(self) -> str: ...  # the critic's name in results

    @property
    def label(self) -> str: ...  # The source of a remark as shown to the judge. Must not depend on a folder's name.

    def critiques(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Remark]:
        """A remark on each response."""
        ...


class AdapterCritic:
    """A reward model trained on critiques, with its chat format; writes a greedy critique of each response. A
    conversation that leaves too few tokens for a critique loses its beginning.
    """

    label = "critic"

    def __init__(self, model: RewardModel, chat: ChatFormat, name: str, *, batch_tokens: int = 8192) -> None:
        context = context_length(model.backbone.config)
        left = None if context is None else context - chat.max_critique_length - _TEMPLATE_TOKENS
        longest = min((n for n in (chat.max_length, left) if n is not None), default=None)
        self.model, self.name, self.batch_tokens = model.eval(), name, batch_tokens
        self.chat = ChatFormat(chat.tokenizer, longest, chat.max_critique_length, chat.trim)

    def critiques(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Remark]:
        places = [place for place, text in enumerate(responses) if text.strip()]
        written = roll_out(
            self.model.backbone,
            self.model.adapter,
            [self.chat.critique_prompt_ids(prompts[place], responses[place]) for place in places],
            Sampling(self.chat.max_critique_length, temperature=0.0),
            end_ids=[self.chat.end_id],
            batch_tokens=self.batch_tokens,
        )
        remarks = [Remark("")] * len(responses)
        for place, (ids,) in zip(places, written, strict=True):
            complete = bool(ids) and ids[-1] == self.chat.end_id
            text = self.chat.tokenizer.decode(ids[:-1] if complete else ids, skip_special_tokens=True)
            remarks[place] = shortened_remark(" ".join(text.split()), complete=complete)
        return remarks


@dataclass(frozen=True)
class HelperCritic:
    """A solved helper of a tree; gives a verdict and a quotation. A false quotation makes the remark empty."""

    agent: Agent  # the helper
    name: str  # the critic's name in results

    @property
    def label(self) -> str:
        return self.agent.task.name

    def critiques(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Remark]:
        task = self.agent.task
        assert not isinstance(task, MainTask)  # `check_helper` rejects nodes of the main task
        asked = [task.ask(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        remarks = []
        for text, response in zip(self.agent.respond(asked), responses, strict=True):
            note = task.read(text)
            short = None if note is None or not is_verbatim(note, response) else shortened(note)
            remarks.append(Remark("") if short is None else Remark(short.verdict, short.quote, short != note))
        return remarks


def shortened_remark(text: str, *, complete: bool = True) -> Remark:
    """Shorten a critique to at most `LONGEST` characters, after a whole sentence if possible. One that is not
    `complete` is shortened too.
    """
    if complete and len(text) <= LONGEST:
        return Remark(text)
    short = text[:LONGEST]
    sentences = _SENTENCES.match(short)
    return Remark(sentences[0] if sentences else short.rpartition(" ")[0] or short, cut=True)


@dataclass(frozen=True)
class Critiques:
    """A critic's remarks on all responses that will be judged: an `Assistance`.

    No remark is shown if the critic says nothing about any response, or the same about all.
    """

    name: str
    label: str
    remarks: Mapping[Subject, Remark]  # the remark by response
    # responses that do not fit the judge's context with their remark, and are shown without it
    no_room: frozenset[Subject] = field(default_factory=frozenset)

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Do nothing: all remarks are already written."""

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        remark = self.remarks[prompt, response]
        if self.ignored or not remark.text or (prompt, response) in self.no_room:
            return ()
        return (Note(self.label, without_marks(remark.text), without_marks(remark.quote)),)

    @cached_property
    def ignored(self) -> str:
        """Why no remark is shown; "" if remarks are shown."""
        texts = [remark.text for remark in self.remarks.values() if remark.text]
        if len(self.remarks) < ENOUGH:
            return ""
        if not texts:
            return "says nothing about any response"
        same = len(texts) >= ENOUGH and len(set(texts)) == 1
        return f"says the same about every response: {texts[0][:80]!r}" if same else ""

    def fitting(self, fits: Callable[[Prompt, str], bool]) -> Critiques:
        """A copy without the remarks with which a prompt and a response do not fit the judge's context."""
        noted = ((subject, self.notes(*subject)) for subject in self.remarks)
        out = {subject for subject, some in noted if some and not fits(subject[0], with_notes(subject[1], some))}
        return replace(self, no_room=frozenset(out)) if out else self

    def account(self) -> dict[str, Any]:
        """Counts, and some responses with their remarks."""
        remarks = list(self.remarks.values())
        return {
            "name": self.name,
            "responses": len(remarks),
            "empty": sum(not remark.text for remark in remarks),
            "different": len({(remark.text, remark.quote) for remark in remarks if remark.text}),
            "cut": sum(remark.cut for remark in remarks),
            "no_room": len(self.no_room),
            "ignored": self.ignored,
            "samples": list(self._samples()),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        for (prompt, response), remark in self.remarks.items():
            yield {
                "prompt": [message.to_dict() for message in prompt],
                "response": response,
                "critique": remark.text,
                "quote": remark.quote,
                "cut": remark.cut,
                "shown": bool(self.notes(prompt, response)),
            }

    def _samples(self) -> Iterator[dict[str, str]]:
        """About `SAMPLES` remarks, evenly spaced."""
        subjects = list(self.remarks)
        for prompt, response in subjects[:: max(1, -(-len(subjects) // SAMPLES))]:
            remark = self.remarks[prompt, response]
            said = f"{remark.text} ({remark.quote!r})" if remark.quote else remark.text
            yield {"prompt": prompt[-1].content, "response": response, "critique": said}


def write_critiques(critic: Critic, subjects: Sequence[Subject], *, progress: bool = True) -> Critiques:
    """Get a critic's remarks on responses, each read once. All processes call this with the same responses."""
    distinct = list(dict.fromkeys(subjects))
    sizes = [sum(len(message.content) for message in prompt) + len(text) for prompt, text in distinct]
    # As for rewards, batches do not depend on the number of processes (see `scoring.chunks`).
    portions = chunks(sorted(range(len(distinct)), key=lambda place: (-sizes[place], place)))
    state = process_state()
    mine: list[tuple[int, Remark]] = []
    with tqdm(total=len(distinct), desc=f"critiques by {critic.name}", unit="response", disable=not progress) as bar:
        for portion in portions[state.process_index :: state.num_processes]:
            chosen = [distinct[place] for place in portion]
            said = critic.critiques([prompt for prompt, _ in chosen], [text for _, text in chosen])
            mine += zip(portion, said, strict=True)
            bar.update(len(portion))
    found = dict(gather_object(mine) if state.num_processes > 1 else mine)
    written = Critiques(critic.name, critic.label, {one: found[place] for place, one in enumerate(distinct)})
    if written.ignored:
        logger.warning("the critic %s %s; its remarks are not shown", critic.name, written.ignored)
    return written


class AssistedScorer:
    """A scorer (a reward model, a classifier, or a judge whose question mentions notes: `judge.NOTES_QUESTION`) that
    reads a critic's remark after each response.
    """

    def __init__(self, scorer: ResponseScorer, critiques: Critiques) -> None:
        fits: Callable[[Prompt, str], bool] | None = getattr(scorer, "fits", None)
        self.critiques = critiques if fits is None else critiques.fitting(fits)
        self.name = f"{scorer.name} with {critiques.name}"
        self.chat: ChatFormat | None = getattr(scorer, "chat", None)
        self._scorer = ScorerWithNotes(scorer, self.critiques)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        return self._scorer.score(prompts, responses)


class AssistedPairs:
    """A pair judge that reads a critic's remark after each response. `asked_without` counts questions asked without
    remarks, because they only fit the judge's context without them.
    """

    def __init__(self, judge: PairJudge, critiques: Critiques) -> None:
        self._judge, self.critiques = judge, critiques
        self.name, self.asked_without = judge.name, 0

    def judge(self, questions: Sequence[PairQuestion]) -> list[float | None]:
        fits: Callable[[PairQuestion], bool] | None = getattr(self._judge, "fits", None)
        shown = []
        for question in questions:
            prompt, *responses = question
            first, second = (with_notes(text, self.critiques.notes(prompt, text)) for text in responses)
            noted = (prompt, first, second)
            fit = fits is None or noted == question or fits(noted)
            self.asked_without += not fit
            shown.append(noted if fit else question)
        return self._judge.judge(shown)
