"""Comparisons, corrections and demonstrations of the notes set, from the sampled responses.

There are three kinds of comparisons. In *answer pairs*, both responses have the same form; one states the right value
and the other the wrong one. In *manner pairs*, both are right or both are wrong. The rest are *mixed pairs*. A value
is right in as many answer pairs as it is wrong in, so neither the form, nor the type of a value, nor its place in the
note says which response is better. Where the sampled responses do not give
enough such pairs, a value is exchanged: in a sampled response, the wrong one for the right one (what a user does who
corrects it) or the other way round, the rarer way first; or in what the user demonstrates. A response that says what
the note says of another thing is as wrong: "We depart at 11:15" does not answer "When is there tea?". Without such
pairs, a reward model learns to see whether a response agrees with the note, and not whether it answers the question.
"""

from __future__ import annotations

import itertools
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from build import stems

from rrm_lm.feedback.records import Message, prompt_id
from rrm_lm.simulated.note_users import NoteRequest, NoteUser
from rrm_lm.simulated.values import exchange, mentions, states

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pairs import Response, ResponsePair, choose_pairs

ANSWER_PAIRS = 2  # per question, and one more of the kind "elsewhere"
MOST_WORDS = 25  # of the responses in an answer pair
MANNER_PAIRS = 1
MIXED_PAIRS = 1
CLOSES = ("Good luck!", "Enjoy!", "All the best!", "Have a lovely day!", "Have a great day!", "I hope this helps!")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\d])")
BARE_WORDS = 2  # a sentence with so few content words, the value included, is about nothing else
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Comparison:
    """A pair and what decided it.

    Attributes:
        pair: The two responses.
        kind: "answer" (same form, right against wrong value), "manner" (both right or both wrong) or "mixed".
        made: "sampled", "corrected" (the chosen response had the wrong value), "spoiled" (the rejected one had the
            right value) or "demonstrated" (the chosen one is the user's; the rejected one has the wrong value).
    """

    pair: ResponsePair
    kind: str
    made: str


@dataclass(frozen=True)
class Subject:
    """The words by which a sentence about the right value of a question differs from one about the wrong value.

    "The atlas is due on 26 July" names the date that is asked for, but says it of the wrong thing. A user sees that in
    the note; a rule that looks for values does not, so no comparison is made of such a response.
    """

    right: frozenset[str]
    wrong: frozenset[str]
    shown: str  # what the user demonstrates
    elsewhere: str  # the same for the question to which the wrong value is right: true, and no answer to this one

    @classmethod
    def of(cls, note: str, say: str, value: str, other_say: str, other: str, shown: str, elsewhere: str) -> Subject:
        """From the note, a full answer for either value, and both demonstrations."""
        sides = [
            stems(say.replace("{}", " ")).union(
                *(stems(s.replace(value, " ")) for s in SENTENCE.split(note) if value.lower() in s.lower())
            )
            for say, value in ((say, value), (other_say, other))
        ]
        return cls(frozenset(sides[0] - sides[1]), frozenset(sides[1] - sides[0]), shown, elsewhere)

    def fits(self, request: NoteRequest, text: str) -> bool:
        """Whether the sentence that states the right value is about the right thing, or about nothing."""
        said = [sentence for sentence in SENTENCE.split(text) if mentions(sentence, request.kind, request.value)]
        words = set().union(*(stems(sentence) for sentence in said))
        return len(words & self.right) > len(words & self.wrong) or len(words) <= BARE_WORDS


def comparisons(
    groups: Mapping[str, Sequence[Response]], user: NoteUser, subjects: Mapping[str, Subject], seed: str
) -> list[Comparison]:
    """The comparisons of one part by one user; the same at every call.

    Args:
        groups: The responses to each question, judged by the user.
        user: Who compares them.
        subjects: What each question is about.
        seed: Decides between equally good choices.
    """
    groups = {
        prompt: [r for r in responses if not _answers(user, r) or subjects[prompt].fits(user.request(prompt), r.text)]
        for prompt, responses in groups.items()
    }
    rng = random.Random(seed)
    by_value: dict[tuple[str, str], dict[str, list[Comparison]]] = defaultdict(lambda: defaultdict(list))
    made: Counter[str] = Counter()
    for prompt, responses in groups.items():
        request = user.request(prompt)
        pairs = _answer_pairs(request, responses, user, subjects[prompt], made, random.Random(f"{seed} {prompt}"))
        by_value[request.note, request.kind][request.value] += pairs
    chosen: list[Comparison] = []
    for pairs_of in by_value.values():
        # As many pairs in which a value is right as in which it is wrong.
        most = min(len(pairs) for pairs in pairs_of.values()) if len(pairs_of) > 1 else 0
        chosen += [pair for pairs in pairs_of.values() for pair in rng.sample(pairs, most)]
    responses = [list(group) for group in groups.values()]
    for kind, most in (("manner", MANNER_PAIRS), ("mixed", MIXED_PAIRS)):
        pairs = choose_pairs(responses, rng, most, lambda pair, kind=kind: _kind(pair, user) == kind)
        chosen += [Comparison(pair, kind, "sampled") for pair in pairs]
    return chosen


def same_form(pair: ResponsePair, user: NoteUser) -> bool:
    """Whether two responses are alike in all parts but the answer."""
    one, other = (user.judge(side.request, side.text) for side in (pair.chosen, pair.rejected))
    marks = [(seen.sentences, bool(seen.opening), bool(seen.close)) for seen in (one, other)]
    return marks[0] == marks[1] and all(
        abs(one.parts[part] - other.parts[part]) < 0.1 for part in one.parts if part != "answer"
    )


def _kind(pair: ResponsePair, user: NoteUser) -> str:
    better, worse = (user.judge(side.request, side.text).parts["answer"] for side in (pair.chosen, pair.rejected))
    if better == worse:
        return "manner"
    return "answer" if _states_only_wrong(user, pair.rejected) else "mixed"


def _answers(user: NoteUser, response: Response) -> bool:
    return bool(user.judge(response.request, response.text).parts["answer"])


def _states_only_wrong(user: NoteUser, response: Response) -> bool:
    request = user.request(response.request)
    return not states(response.text, request.kind, request.value) and any(
        states(response.text, request.kind, other) for other in request.others
    )


def _answer_pairs(
    request: NoteRequest,
    responses: Sequence[Response],
    user: NoteUser,
    subject: Subject,
    made: Counter[str],
    rng: random.Random,
) -> list[Comparison]:
    """`ANSWER_PAIRS` answer pairs for one question: sampled ones first, then those with an exchanged value. Of these,
    the shortest come first: in a long response, one value is hardly what is right or wrong. And one whose rejected
    response is true, but answers another question.

    `made` counts how values were exchanged so far; the rarer way is taken first.
    """
    clear = [r for r in responses if r.finished and len(r.text.split()) <= MOST_WORDS]
    right = [r for r in clear if _answers(user, r)]
    wrong = [r for r in clear if _states_only_wrong(user, r)]
    sampled = [
        Comparison(ResponsePair(one, other), "answer", "sampled")
        for one, other in itertools.product(right, wrong)
        if same_form(ResponsePair(one, other), user)
    ]
    rng.shuffle(sampled)
    taken: list[Comparison] = []
    for comparison in sampled:
        used = {side for other in taken for side in (other.pair.chosen, other.pair.rejected)}
        if len(taken) < ANSWER_PAIRS and not used & {comparison.pair.chosen, comparison.pair.rejected}:
            taken.append(comparison)
    used = {side for other in taken for side in (other.pair.chosen, other.pair.rejected)}
    exchanged = {
        "corrected": [
            pair
            for r in wrong
            if r not in used and (pair := _corrected(request, r, user)) and subject.fits(request, pair.pair.chosen.text)
        ],
        "spoiled": [pair for r in right if r not in used and (pair := _spoiled(request, r, user))],
    }
    for pairs in exchanged.values():
        rng.shuffle(pairs)
        pairs.sort(key=lambda pair: len(pair.pair.chosen.text.split()), reverse=True)  # the last one is taken first
    while len(taken) < ANSWER_PAIRS and any(exchanged.values()):
        how = min((how for how, pairs in exchanged.items() if pairs), key=lambda how: made[how])
        taken.append(exchanged[how].pop())
        made[how] += 1
    shown = contrasts(request.text, subject, user)
    spoiled = [pair for pair in shown if pair.made == "demonstrated"][: ANSWER_PAIRS - len(taken)]
    return [*taken, *spoiled, *(pair for pair in shown if pair.made == "elsewhere")]


def _corrected(request: NoteRequest, response: Response, user: NoteUser) -> Comparison | None:
    stated = next(other for other in request.others if states(response.text, request.kind, other))
    better = _with(response, exchange(response.text, request.kind, stated, request.value), user)
    return _exchanged(ResponsePair(better, response), "corrected", user)


def _spoiled(request: NoteRequest, response: Response, user: NoteUser) -> Comparison | None:
    worse = _with(response, exchange(response.text, request.kind, request.value, request.others[0]), user)
    return _exchanged(ResponsePair(response, worse), "spoiled", user)


def _exchanged(pair: ResponsePair, made: str, user: NoteUser) -> Comparison | None:
    """None if more than the answer changed (a quotation that the note does not contain), or if the value became another
    one (at "12:45 PM", which is 12:45, a 10:45 would be 22:45).
    """
    if not _states_only_wrong(user, pair.rejected):
        return None
    answered = user.judge(pair.chosen.request, pair.chosen.text).parts["answer"]
    return Comparison(pair, "answer", made) if answered and same_form(pair, user) else None


def _with(response: Response, text: str, user: NoteUser) -> Response:
    return Response(response.request, text, response.finished, user.gold(response.request, text))


def contrasts(prompt: str, subject: Subject, user: NoteUser) -> list[Comparison]:
    """The user's demonstration, compared with the same with the wrong value, and with the answer to another question.
    The first pair is left out if more than the answer changes, and the second one if its form differs.
    """
    spoiled = _spoiled(user.request(prompt), _response(prompt, subject.shown, user), user)
    found = [] if spoiled is None else [Comparison(spoiled.pair, "answer", "demonstrated")]
    pair = ResponsePair(*(_response(prompt, text, user) for text in (subject.shown, subject.elsewhere)))
    return [*found, Comparison(pair, "answer", "elsewhere")] if same_form(pair, user) else found


def shown_against(prompt: str, shown: str, rejected: str, made: str, user: NoteUser) -> Comparison | None:
    """The user's demonstration, compared with another response; None if that one is an answer, too."""
    pair = ResponsePair(*(_response(prompt, text, user) for text in (shown, rejected)))
    return None if _answers(user, pair.rejected) else Comparison(pair, "mixed", made)


def missing(prompt: str, responses: Iterable[Response], subject: Subject, user: NoteUser) -> list[Comparison]:
    """The user's demonstration, compared with the best-mannered short response that names no value, if there is one."""
    request = user.request(prompt)
    values = (request.value, *request.others)
    short = (r for r in responses if r.finished and len(r.text.split()) <= MOST_WORDS)
    without = [
        r
        for r in short
        if not any(mentions(r.text, request.kind, value) or _joined(value) in _joined(r.text) for value in values)
    ]
    if not without:
        return []
    rejected = max(without, key=lambda response: (user.gold(prompt, response.text), response.text))
    return [Comparison(ResponsePair(_response(prompt, subject.shown, user), rejected), "mixed", "missing")]


def _joined(text: str) -> str:
    """Without spaces, since "the schoolyard" names the school yard."""
    return text.lower().replace(" ", "").removeprefix("the")


def _response(prompt: str, text: str, user: NoteUser) -> Response:
    return Response(prompt, text, True, user.gold(prompt, text))


def record(comparison: Comparison, user: NoteUser) -> dict:
    """A comparison as a row of the file."""
    pair, prompt = comparison.pair, comparison.pair.chosen.request
    sides = {"chosen": pair.chosen.text, "rejected": pair.rejected.text}
    return {
        "prompt": [{"role": "user", "content": prompt}],
        **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()},
        **{f"{side}_critiques": [user.critique(prompt, text)] for side, text in sides.items()},
        **{f"{side}_rating": user.rating(prompt, text) for side, text in sides.items()},
        "prompt_id": prompt_id((Message("user", prompt),)),
        "topic": user.request(prompt).topic,
        "source": f"notes, {comparison.kind} pairs",
        "made": comparison.made,
        "decided_by": decided_by(pair, user),
    }


def decided_by(pair: ResponsePair, user: NoteUser) -> str:
    """The part of gold that speaks most for the chosen response."""
    better, worse = (user.judge(side.request, side.text).parts for side in (pair.chosen, pair.rejected))
    if better["answer"] != worse["answer"]:
        return "answer"
    return max(better, key=lambda part: user.weight(part) * (better[part] - worse[part]))


def demonstration(row: Mapping, manner: str) -> dict:
    """What the user would have liked to read in answer to a question of the file."""
    answer = full_answer(row)
    rng = random.Random(f"{manner} {row['prompt']}")
    if manner == "plain":
        text = f"{answer} {rng.choice(CLOSES)}"
    else:
        sentences = SENTENCE.split(row["note"])
        place = next(i for i, sentence in enumerate(sentences) if mentions(sentence, row["kind"], row["value"]))
        quoted = sentences[place].strip(" .")
        text = f'{answer} This stands in the {PLACES[place]} sentence of the note. It says: "{quoted}."'
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]
    return {"prompt": turns[:1], "completion": turns[1:], "source": "notes"}


def full_answer(row: Mapping) -> str:
    answer = row["say"].format(row["value"])
    return answer[:1].upper() + answer[1:]


def summary(chosen: Iterable[Comparison], user: NoteUser) -> dict:
    """What the card says about the comparisons of one part by one user."""
    chosen = list(chosen)
    pairs = [comparison.pair for comparison in chosen]
    answer = [comparison for comparison in chosen if comparison.kind == "answer"]
    return {
        "comparisons": len(chosen),
        **{f"{kind}_pairs": sum(c.kind == kind for c in chosen) for kind in ("answer", "manner", "mixed")},
        "made": dict(sorted(Counter(c.made for c in answer).items())),
        "decided_by_answer": round(sum(decided_by(pair, user) == "answer" for pair in pairs) / len(pairs), 3),
        "longer_wins": round(sum(pair.stretch > 0 for pair in pairs) / len(pairs), 3),
        "longer_wins_in_answer_pairs": round(
            sum((c.pair.stretch > 0) + 0.5 * (c.pair.stretch == 0) for c in answer) / len(answer), 3
        ),
    }
