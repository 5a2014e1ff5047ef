"""Critics: any trained helper assists any judgement, with neither a tree nor a simulator.

A critic reads a response and says something about it: a reward model that learned from critiques writes one, a solved
helper of a tree gives its verdict and its quotation. All responses to be judged are read first (`write_critiques`);
what was written then is an `Assistance` like any other (`Critiques`), so overseers get it through `Assisted`, reward
models through `AssistedScorer`, and judges of pairs through `AssistedPairs`: as delimited data, never as instructions.
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
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.reward import RewardModel
from rrm_lm.recursion.agents import Agent, RewardsWithNotes
from rrm_lm.recursion.assistance import ENOUGH, Subject
from rrm_lm.recursion.notes import Note, is_verbatim, shortened, with_notes, without_marks
from rrm_lm.recursion.tasks import MainTask
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)

LONGEST = 600  # characters of a critique that are shown; the rest would only take the response's place
SAMPLES = 6  # responses whose critiques are shown to people
_FRAME = 16  # tokens that the chat template puts around a critique
_SENTENCES = re.compile(r".*[.!?](?=\s|$)")


@dataclass(frozen=True, slots=True)
class Remark:
    """What a critic said about one response.

    Attributes:
        text: Its words; "" where it said nothing that can be used.
        quote: Words of the response that it points at, if it points at any.
        cut: Whether it said more than there is room for.
    """

    text: str
    quote: str = ""
    cut: bool = False


class Critic(Protocol):
    """Whoever says something about a response."""

    @property
    def name(self) -> str:
        """What to call it in results."""
        ...

    @property
    def label(self) -> str:
        """What whoever judges is told that a remark is: it must not depend on what a folder is called."""
        ...

    def critiques(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Remark]:
        """A remark on each response."""
        ...


class AdapterCritic:
    """A reward model that learned to write critiques: its most likely critique of each response.

    Args:
        model: The reward model, on its own backbone.
        chat: The chat format it was trained with. A conversation that leaves no room for a critique loses its
            beginning.
        name: What to call it in results.
        batch_tokens: Most tokens held at once.
    """

    label = "critic"

    def __init__(self, model: RewardModel, chat: ChatFormat, name: str, *, batch_tokens: int = 8192) -> None:
        context = getattr(model.backbone.config, "max_position_embeddings", None)
        room = None if context is None else context - chat.max_critique_length - _FRAME
        longest = min((n for n in (chat.max_length, room) if n is not None), default=None)
        self.model, self.name, self.batch_tokens = model.eval(), name, batch_tokens
        self.chat = ChatFormat(chat.tokenizer, longest, chat.max_critique_length, chat.trim)

    def critiques(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Remark]:
        """See `Critic`. Nothing is said about a response without text."""
        there = [place for place, text in enumerate(responses) if text.strip()]
        written = roll_out(
            self.model.backbone,
            self.model.adapter,
            [self.chat.critique_prompt_ids(prompts[place], responses[place]) for place in there],
            Sampling(self.chat.max_critique_length, temperature=0.0),
            end_ids=[self.chat.end_id],
            batch_tokens=self.batch_tokens,
        )
        remarks = [Remark("")] * len(responses)
        for place, (ids,) in zip(there, written, strict=True):
            remarks[place] = self._remark(ids)
        return remarks

    def _remark(self, ids: Sequence[int]) -> Remark:
        ended = bool(ids) and ids[-1] == self.chat.end_id
        text = self.chat.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        return fitted(" ".join(text.split()), ended=ended)


@dataclass(frozen=True)
class HelperCritic:
    """A solved helper of a tree: its verdict and what it quotes. A quotation that is false says nothing.

    Attributes:
        agent: The helper.
        name: What to call it in results.
    """

    agent: Agent
    name: str

    @property
    def label(self) -> str:
        return self.agent.task.name

    def critiques(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Remark]:
        """See `Critic`."""
        task = self.agent.task
        assert not isinstance(task, MainTask)  # that would be a policy; whoever loads a helper refuses it
        asked = [task.ask(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        remarks = []
        for text, response in zip(self.agent.respond(asked), responses, strict=True):
            note = task.read(text)
            if note is None or not is_verbatim(note, response):
                remarks.append(Remark(""))
            else:
                kept = shortened(note)
                remarks.append(Remark(kept.verdict, kept.quote, kept != note))
        return remarks


def fitted(text: str, *, ended: bool = True) -> Remark:
    """A critique of no more than `LONGEST` characters, in whole sentences where it has one.

    Args:
        text: The critique.
        ended: Whether it came to its end.
    """
    if ended and len(text) <= LONGEST:
        return Remark(text)
    kept = text[:LONGEST]
    whole = _SENTENCES.match(kept)
    return Remark(whole[0] if whole else kept.rpartition(" ")[0] or kept, cut=True)


@dataclass(frozen=True)
class Critiques:
    """What a critic wrote about responses: an `Assistance`.

    A critic that says nothing about any of them, or the same about all, is named and nothing of it is shown.

    Attributes:
        name, label: The critic's.
        remarks: By response, what it said.
        no_room: Responses that do not fit whoever judges with what was said about them: it is left out there.
    """

    name: str
    label: str
    remarks: Mapping[Subject, Remark]
    no_room: frozenset[Subject] = field(default_factory=frozenset)

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Nothing: everything is written."""

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        """What is shown beside a response."""
        remark = self.remarks[prompt, response]
        if self.ignored or not remark.text or (prompt, response) in self.no_room:
            return ()
        return (Note(self.label, without_marks(remark.text), without_marks(remark.quote)),)

    @cached_property
    def ignored(self) -> str:
        """Why nothing of it is shown; "" where it is."""
        texts = [remark.text for remark in self.remarks.values() if remark.text]
        if len(self.remarks) < ENOUGH:
            return ""
        if not texts:
            return "says nothing about any response"
        same = len(texts) >= ENOUGH and len(set(texts)) == 1
        return f"says the same about every response: {texts[0][:80]!r}" if same else ""

    def fitting(self, fits: Callable[[Prompt, str], bool]) -> Critiques:
        """The same, without those that do not fit.

        Args:
            fits: Whether whoever judges can read a response, with everything behind it, whole.
        """
        noted = ((subject, self.notes(*subject)) for subject in self.remarks)
        out = {subject for subject, some in noted if some and not fits(subject[0], with_notes(subject[1], some))}
        return replace(self, no_room=frozenset(out)) if out else self

    def account(self) -> dict[str, Any]:
        """What became of them, and some of them to read."""
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
        """Everything, one row for each response."""
        for (prompt, response), remark in self.remarks.items():
            messages = [{"role": message.role, "content": message.content} for message in prompt]
            yield {
                "prompt": messages,
                "response": response,
                "critique": remark.text,
                "quote": remark.quote,
                "cut": remark.cut,
                "shown": bool(self.notes(prompt, response)),
            }

    def _samples(self) -> Iterator[dict[str, str]]:
        """Some with their texts, evenly from all."""
        subjects = list(self.remarks)
        for subject in subjects[:: max(1, -(-len(subjects) // SAMPLES))]:
            prompt, response = subject
            remark = self.remarks[subject]
            said = f"{remark.text} ({remark.quote!r})" if remark.quote else remark.text
            yield {"prompt": prompt[-1].content, "response": response, "critique": said}


def write_critiques(critic: Critic, subjects: Sequence[Subject], *, progress: bool = True) -> Critiques:
    """What a critic has to say about responses, each read once. All processes call it with the same responses.

    Args:
        critic: The critic.
        subjects: Prompts, each with a response to it.
        progress: Show a bar.
    """
    distinct = list(dict.fromkeys(subjects))
    sizes = [sum(len(message.content) for message in prompt) + len(text) for prompt, text in distinct]
    # As for rewards, what is read together does not depend on the number of processes (see `preferences.chunks`).
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
        logger.warning("the critic %s %s; nothing of it is shown", critic.name, written.ignored)
    return written


class AssistedScorer:
    """A scorer that reads what a critic wrote behind each response.

    Args:
        scorer: A reward model, a classifier, or a judge whose question speaks of notes (`scorers.NOTES_QUESTION`).
        critiques: On everything that will be scored.
    """

    def __init__(self, scorer: ResponseScorer, critiques: Critiques) -> None:
        fits: Callable[[Prompt, str], bool] | None = getattr(scorer, "fits", None)
        self.critiques = critiques if fits is None else critiques.fitting(fits)
        self.name = f"{scorer.name} with {critiques.name}"
        self.chat: ChatFormat | None = getattr(scorer, "chat", None)
        self._rewards = RewardsWithNotes(scorer, self.critiques)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """See `rrm_lm.evaluation.preferences.scoring.ResponseScorer`."""
        return self._rewards.score(prompts, responses)


class AssistedPairs:
    """A judge of pairs who reads what a critic wrote behind each response.

    Args:
        judge: Who judges.
        critiques: On everything that will be judged.

    Attributes:
        asked_without: Questions that the judge could read whole only without notes, and so was asked without any.
    """

    def __init__(self, judge: PairJudge, critiques: Critiques) -> None:
        self._alone, self.critiques = judge, critiques
        self.name, self.asked_without = judge.name, 0

    def judge(self, questions: Sequence[PairQuestion]) -> list[float | None]:
        """See `rrm_lm.evaluation.policies.pair_judges.PairJudge`."""
        fits: Callable[[PairQuestion], bool] | None = getattr(self._alone, "fits", None)
        shown = []
        for question in questions:
            prompt, *responses = question
            first, second = (with_notes(text, self.critiques.notes(prompt, text)) for text in responses)
            noted = (prompt, first, second)
            room = fits is None or noted == question or fits(noted)
            self.asked_without += not room
            shown.append(noted if room else question)
        return self._alone.judge(shown)
