"""Move feedback between stores, files of this project, TRL's preference sets and Argilla's exports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm_lm import storage
from rrm_lm.errors import DataError
from rrm_lm.feedback.records import Message, Origin, Record
from rrm_lm.feedback.store.events import ANSWER, FIRST, ITEM, SECOND, UNDO, About, Answer, Event, Item, State
from rrm_lm.feedback.store.files import Store
from rrm_lm.feedback.store.records import COMPARISONS, Row, as_answer, numbered_rows, prompt_text

FORMATS = ("rrm_lm", "trl", "argilla")
_SIDES = ("response_0", "response_1")


def export(state: State, path: Path, format: str, strengths: Mapping[str, float] | None = None) -> dict[str, int]:
    """Write the answers that count; returns the rows of each kind. With `strengths`, each comparison has that of its
    person as its margin.

    `rrm_lm`: a folder with a JSON Lines file for each kind of feedback, which `load_feedback` reads as a whole; `trl`:
    a JSON Lines file of preferences; `argilla`: a JSON file as Argilla's `records.to_json` writes it.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    for kind, row in numbered_rows(state):
        by_person = {} if strengths is None or kind != COMPARISONS else {"margin": strengths[row["source"]]}
        rows[kind].append(row | by_person)
    if format == "argilla":
        records = argilla_records(state)
        storage.write_json(path, records)
        return {"records": len(records)}
    if format == "trl":
        pairs = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows[COMPARISONS]]
        storage.write_jsonl(path, pairs)
        return {COMPARISONS: len(pairs)}
    with storage.staged_folder(path, replace=(path / storage.MANIFEST).is_file()) as folder:
        for kind, found in rows.items():
            storage.write_jsonl(folder / f"{kind}.jsonl", found)
    return {kind: len(found) for kind, found in rows.items()}


def import_records(store: Store, records: Iterable[Record], person: str = "") -> dict[str, int]:
    """Add records as answers by `person`, or by each record's source; returns counts.

    Records of one person about one item make one answer. The same answer again is a duplicate, which is not stored.
    Another answer to an item that the person has already answered is a conflict: the new one counts.
    """
    given: dict[tuple[str, str], Answer] = {}
    items: dict[str, Item] = {}
    for record in records:
        item, answer = as_answer(record)
        items[item.id] = item
        key = person or record.source or "imported", item.id
        given[key] = _joined(given[key], answer) if key in given else answer
    return add_answers(store, items, given)


def add_answers(store: Store, items: Mapping[str, Item], given: Mapping[tuple[str, str], Answer]) -> dict[str, int]:
    """Store answers by person and item; returns how many are new, duplicates and conflicts."""
    store.add_items(list(items.values()))
    state, counts, events = store.state(), Counter(answers=0, duplicates=0, conflicts=0), []
    for (who, item), answer in given.items():
        answer.check(items[item])
        known = state.answer(who, item)
        if known is not None and _said(known) == _said(answer):
            counts["duplicates"] += 1
            continue
        counts["conflicts" if known is not None else "answers"] += 1
        events.append((Event(0, storage.now(), who, ANSWER, item, dataclasses.asdict(answer)), ""))
    store.append_all(events)
    return dict(counts)


def merge(store: Store, others: Sequence[Store]) -> dict[str, int]:
    """Add the events of other stores, with people and times; returns counts. Merging a store again adds nothing.

    An event is known by its content, and by how many equal ones its store has before it: copies of a store number
    different events alike, and the same event of two stores may have two numbers.
    """
    found = [(event, place) for place, other in enumerate(others) for event in other.events()]
    counts, numbers = Counter(answers=0, duplicates=0, conflicts=0), dict[tuple[int, int], int]()
    before = {(event.person, event.item): _said(answer) for event, answer in store.state().answers()}
    seen = Counter[tuple[int, str]]()

    def identify(event: Event, place: int) -> str:
        fields = [event.time, event.person, event.kind, event.item, storage.plain(event.body)]
        content = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        seen[place, content] += 1
        return f"{content} {seen[place, content]}"

    known = {identify(event, -1): event.id for event in store.events()}
    for event, place in sorted(found, key=lambda one: (one[0].kind != ITEM, one[0].time, one[0].id)):
        body = event.body
        if event.kind == UNDO:
            body = {**body, "answer": numbers.get((place, int(body.get("answer", 0))), 0)}
        added = dataclasses.replace(event, body=body)
        identity = identify(added, place)
        number, new = known.get(identity, 0), False
        if not number:
            request = f"item:{event.item}" if event.kind == ITEM else f"merged:{identity}"
            [(number, new)] = store.append_all([(added, request)])
            known[identity] = number
        numbers[place, event.id] = number
        if event.kind == ANSWER:
            said = before.get((event.person, event.item))
            conflicts = new and said is not None and said != _said(Answer.from_dict(event.body))
            counts["conflicts" if conflicts else "answers" if new else "duplicates"] += 1
    return dict(counts)


def _said(answer: Answer) -> Answer:
    """An answer without how it was given."""
    about = tuple(dataclasses.replace(one, quote="") for one in answer.about)
    is_said = any(one != About() for one in about)
    return dataclasses.replace(answer, shown=(), seconds=None, about=about if is_said else ())


def _joined(one: Answer, other: Answer) -> Answer:
    """Two partial answers as one; where they differ, the second one's part counts."""
    about = [
        About(
            # a correction repeats the critiques of its response as one text
            critiques=first.critiques
            if second.critiques == ("\n".join(first.critiques),)
            else tuple(dict.fromkeys((*first.critiques, *second.critiques))),
            rating=first.rating if second.rating is None else second.rating,
            corrected=second.corrected or first.corrected,
            goal=second.goal or first.goal,
        )
        for first, second in zip(one.about, other.about, strict=True)
    ]
    return dataclasses.replace(
        one,
        verdict=other.verdict or one.verdict,
        strength=one.strength if other.strength is None else other.strength,
        demonstration=other.demonstration or one.demonstration,
        about=tuple(about),
    )


def argilla_records(state: State) -> list[Row]:
    """The items as Argilla's records: text fields `prompt`, `response_0` and `response_1`; the questions are named for
    the parts of an answer, with the number of the response at their end. The messages are in the metadata.
    """
    records: dict[str, Row] = {}
    for event, answer in state.answers():
        item = state.items.get(event.item)
        if item is None:
            continue
        record = records.setdefault(
            event.item,
            {
                "id": event.item,
                "fields": {"prompt": prompt_text(item.prompt), **dict(zip(_SIDES, item.responses, strict=False))},
                "metadata": {"messages": storage.json_text([m.to_dict() for m in item.prompt], indent=None)},
                "suggestions": {},
                "responses": defaultdict(list),
                "vectors": {},
            },
        )
        for question, value in _questions(answer).items():
            record["responses"][question].append({"value": value, "user_id": event.person})
    return list(records.values())


def _questions(answer: Answer) -> Row:
    found: Row = {"verdict": answer.verdict, "strength": answer.strength, "demonstration": answer.demonstration}
    for place, about in enumerate(answer.about):
        values = dataclasses.asdict(about) | {"critiques": storage.json_text(about.critiques, indent=None)}
        values["critiques"] = values["critiques"] if about.critiques else ""
        found |= {f"{name}_{place}": value for name, value in values.items()}
    return {name: value for name, value in found.items() if value not in ("", None)}


def read_argilla(records: Sequence[Any], file: str) -> tuple[dict[str, Item], dict[tuple[str, str], Answer]]:
    """Items, and answers by person and item, of an export that `argilla_records` wrote or Argilla wrote of such a
    dataset: fields `prompt` (or `instruction`), `response_0` and `response_1` (or `response1` and `response2`), and the
    questions of `argilla_records`. `preference` is read as `verdict`; its value names a field.
    Raises DataError: other fields or questions.
    """
    items: dict[str, Item] = {}
    given: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for number, record in enumerate(records, 1):
        origin = Origin(file, number)
        try:
            fields, responses = record["fields"], record["responses"]
            names = [name for name in (*_SIDES, "response1", "response2") if fields.get(name)]
            messages = (record.get("metadata") or {}).get("messages")
            if messages:
                prompt = tuple(map(Message.from_dict, json.loads(messages)))
            else:
                prompt = (Message("user", fields["prompt"] if "prompt" in fields else fields["instruction"]),)
            item = Item(prompt, tuple(fields[name] for name in names), source=file)
            places = {name: str(item.responses.index(fields[name])) for name in names}
            for question, answers in responses.items():
                for one in answers:
                    name, value = _argilla_part(question, one["value"], places)
                    given[str(one["user_id"]), item.id][name] = value
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"the record is not one of Argilla's, or has a question that is not known ({error})"
            expected = "fields prompt, response_0, response_1; questions verdict, rating_0, critiques_0 ..."
            raise DataError(what, where=str(origin), expected=expected) from None
        items[item.id] = item
    return items, {key: _argilla_answer(parts, items[key[1]]) for key, parts in given.items()}


def _argilla_part(question: str, value: Any, places: Mapping[str, str]) -> tuple[str, Any]:
    """The part of an answer that a question asks for (`rating_0` of the item's first response), and its value."""
    name, _, side = question.rpartition("_")
    if question in ("verdict", "preference"):
        sides = {field: (FIRST, SECOND)[int(place)] for field, place in places.items()}
        if question == "preference" and value not in sides:
            raise ValueError(f"{question}: {value!r}")
        return "verdict", sides.get(value, value)
    if question in ("strength", "demonstration"):
        return question, value
    if name not in {field.name for field in dataclasses.fields(About)} or f"response_{side}" not in places:
        raise ValueError(question)
    if name == "critiques":
        value = _argilla_critiques(value)
    return f"{name}_{places[f'response_{side}']}", value


def _argilla_critiques(value: str) -> tuple[str, ...]:
    """The critiques in a list that :func:`argilla_records` wrote as text, or the one that a person typed."""
    try:
        listed = json.loads(value)
    except ValueError:
        listed = None
    if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
        return tuple(listed)
    return (value,) if value.strip() else ()


def _argilla_answer(parts: Mapping[str, Any], item: Item) -> Answer:
    about = []
    for place in range(len(item.responses)):
        own = {name[:-2]: value for name, value in parts.items() if name.endswith(f"_{place}")}
        about.append(About(**{**own, "critiques": own.get("critiques", ())}))
    whole = {name: parts[name] for name in ("verdict", "strength", "demonstration") if name in parts}
    return Answer(**whole, about=tuple(about) if any(one != About() for one in about) else ())
