"""The shapes of feedback, recognized by their columns.

A file has one shape: the first entry of `FORMATS` whose test its columns pass. Entries go from the most particular to
the most general, so a set with more columns is never read as a poorer one. Every column is read, or named as unread, or
the file is refused (`columns.name_unread`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats import benchmarks, columns, pairs, responses, structure, verdicts
from rrm_lm.feedback.reading.formats.columns import IGNORE
from rrm_lm.feedback.reading.formats.row import SUBSETS, Row, Table
from rrm_lm.feedback.records import Record


class Columns(columns.Columns):
    """The columns of a file, with what some formats find in them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], file: str = "") -> None:
        super().__init__(rows)
        self.file = file

    @cached_property
    def verdicts(self) -> verdicts.Verdicts | None:
        """Two responses and the verdict on them, if a file without chosen and rejected has them."""
        return None if self.have("chosen", "rejected") else verdicts.find_verdicts(self.kinds, self.rows, self.file)

    @cached_property
    def ranked(self) -> str:
        """The column with a list of responses that have a rank or a score; "" if there is none."""
        for name, kind in self.kinds.items():
            first = next(iter(self.values(name)), None) if kind in ("objects", "messages") else None
            if first is not None and benchmarks.ranked_keys(first[0]) is not None:
                return name
        return ""


@dataclass(frozen=True)
class Format:
    """One shape of rows.

    Attributes:
        name, shape: Its name, and its columns as a person would write them.
        matches: Whether a file has this shape.
        read: The records of a row.
        reads: The columns it reads in addition to `ALWAYS`.
        source: The source of its records if the rows do not name it; "" for the name of the file or set.
    """

    name: str
    shape: str
    matches: Callable[[Columns], bool]
    read: Callable[[Row], Iterator[Record]]
    reads: str = ""
    source: str = ""


ALWAYS = ("prompt", "system", "tools", "source", *SUBSETS)
PAIR = (
    "chosen rejected margin chosen_critiques rejected_critiques chosen_critique rejected_critique chosen_rating "
    "rejected_rating score_chosen score_rejected"
)
ONE = "response completion messages"
SLF5K = (
    "title post subreddit comparison_preference generated_summary_for_comparison_A generated_summary_for_comparison_B "
    "generated_summary_for_feedback feedback feedback_class ideal_human_summary"
)
ABOUT_ONE = (*responses.CRITIQUES, *responses.CORRECTED, "rating", "verdict")
CRITIQUED = (
    *("chosen_critiques", "chosen_critique", "chosen_rating"),
    *("rejected_critiques", "rejected_critique", "rejected_rating"),
)


def _lists(c: Columns) -> bool:
    return c.have("prompt") and c.hold("texts", "chosen", "rejected")


def _pair(c: Columns) -> bool:
    return c.have("chosen", "rejected") and not c.hold("texts", "chosen", "rejected")


def _answered(c: Columns) -> bool:
    return (c.have("prompt") and c.have_any("completion", "response")) or c.hold("messages", "messages")


FORMATS: tuple[Format, ...] = (
    Format(
        "RM-Bench",
        "prompt, chosen [3 texts], rejected [3 texts], domain",
        lambda c: _lists(c) and c.have("domain") and not c.have_any("subset", "num_correct"),
        benchmarks.read_rm_bench,
        "chosen rejected id",
        "rm-bench",
    ),
    Format(
        "RewardBench 2",
        "prompt, chosen [texts], rejected [texts], subset, num_correct",
        lambda c: _lists(c) and c.have_any("subset", "num_correct"),
        benchmarks.read_best_of,
        "chosen rejected id num_correct",
        "rewardbench-2",
    ),
    Format(
        "best of n",
        "prompt, chosen [texts], rejected [texts]",
        _lists,
        benchmarks.read_best_of,
        "chosen rejected id",
    ),
    Format(
        "RewardBench",
        "prompt, chosen, rejected, chosen_model, rejected_model, subset",
        lambda c: _pair(c) and c.have("prompt", "chosen_model", "rejected_model", "subset"),
        pairs.read_preference,
        PAIR,
        "rewardbench",
    ),
    Format(
        "HelpSteer3",
        "context, response1, response2, overall_preference",
        lambda c: c.have("response1", "response2", "overall_preference"),
        pairs.read_graded,
        "context response1 response2 overall_preference individual_preference",
        "helpsteer3",
    ),
    Format(
        "HelpSteer3-Feedback",
        "context, response1, response2, feedback1, feedback2",
        lambda c: c.have("response1", "response2", "feedback1", "feedback2"),
        pairs.read_feedback_pair,
        "context response1 response2 feedback1 feedback2",
        "helpsteer3",
    ),
    Format(
        "HelpSteer3-Edit",
        "context, original_response, edited_response, feedback",
        lambda c: c.have("context", "original_response", "edited_response"),
        responses.read_response,
        "context original_response edited_response feedback",
        "helpsteer3",
    ),
    Format(
        "HelpSteer2-Preference",
        "prompt, response_1, response_2, preference_strength",
        lambda c: c.have("response_1", "response_2", "preference_strength"),
        pairs.read_graded,
        "response_1 response_2 preference_strength preference_statement preference_elaboration",
        "helpsteer2",
    ),
    Format(
        "HelpSteer2",
        "prompt, response, helpfulness",
        lambda c: c.have("prompt", "response", "helpfulness"),
        responses.read_helpsteer2,
        "response helpfulness",
        "helpsteer2",
    ),
    Format(
        "SLF5K",
        "title, post, generated_summary_for_comparison_A and _B, comparison_preference, feedback",
        lambda c: (
            c.have("title", "post")
            and c.have_any("generated_summary_for_feedback", "generated_summary_for_comparison_A")
        ),
        pairs.read_slf5k,
        SLF5K,
        "slf5k",
    ),
    Format(
        "two responses and a verdict",
        "prompt, response_a, response_b, winner (arena, PKU-SafeRLHF, SHP, WebGPT ...), or a score of each",
        lambda c: c.verdicts is not None,
        verdicts.read_verdict,
    ),
    Format(
        "ranked responses",
        "prompt, answers [{answer, rank}] (Nectar), or scores instead of ranks",
        lambda c: bool(c.ranked),
        benchmarks.read_ranked,
    ),
    Format(
        "HH transcripts",
        'chosen and rejected "\\n\\nHuman: ... \\n\\nAssistant: ..."',
        lambda c: c.hold("transcript", "chosen", "rejected"),
        pairs.read_preference,
        PAIR,
    ),
    Format(
        "critiqued pairs",
        "prompt, chosen, rejected, chosen_critiques, rejected_critiques, chosen_rating, rejected_rating",
        lambda c: _pair(c) and c.have_any(*CRITIQUED),
        pairs.read_preference,
        PAIR,
    ),
    Format(
        "UltraFeedback-binarized",
        "prompt, chosen [messages], rejected [messages], score_chosen, score_rejected",
        lambda c: _pair(c) and c.have("score_chosen", "score_rejected"),
        pairs.read_preference,
        PAIR,
        "ultrafeedback",
    ),
    Format(
        "preference pairs",
        "prompt, chosen, rejected (texts or messages), margin if graded",
        lambda c: _pair(c) and c.have("prompt"),
        pairs.read_preference,
        PAIR,
    ),
    Format(
        "preference pairs with implicit prompt",
        "chosen, rejected that begin with the same prompt",
        _pair,
        pairs.read_preference,
        PAIR,
    ),
    Format(
        "unpaired preference",
        "prompt, completion, label (true or false)",
        lambda c: _answered(c) and c.have("label") and not c.have_any(*ABOUT_ONE),
        responses.read_response,
        ONE + " label",
    ),
    Format(
        "critiques, ratings and corrections",
        "prompt, response (or messages), and any of critique, rating, label, verdict, corrected",
        lambda c: _answered(c) and c.have_any("label", *ABOUT_ONE),
        responses.read_response,
        ONE + " label rating rating_min rating_max verdict " + " ".join((*responses.CRITIQUES, *responses.CORRECTED)),
    ),
    Format("demonstrations", "prompt, completion (or messages)", _answered, responses.read_demonstration, ONE),
    Format(
        "goal examples",
        "goal_example, prompt if it has one",
        lambda c: c.have("goal_example"),
        responses.read_goal,
        "goal_example",
    ),
)

# The names that --columns may map to.
MORE = "id chosen_model rejected_model response_a response_b preference"
COLUMNS = frozenset((*" ".join(known.reads for known in FORMATS).split(), *ALWAYS, *MORE.split(), IGNORE))
PARTICULAR = tuple(known for known in FORMATS if known.source)


@dataclass
class Recognized:
    """A file's rows under our names, its format, and what is true of all its rows.

    Attributes:
        remarks: What a person should know about how the columns were read.
    """

    rows: list[dict[str, Any]]
    format: Format
    table: Table
    remarks: list[str] = field(default_factory=list)


def recognise(rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None = None) -> Format:
    """The format of a file's rows; see `recognize_rows`."""
    return recognize_rows(rows, file, mapping).format


def recognize_rows(
    rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None = None
) -> Recognized:
    """Recognize a file's format and columns.

    Args:
        rows: All rows of the file.
        file: Its name, for errors.
        mapping: Their column name to ours, for shapes that are not recognized.

    Raises:
        DataError: No format fits, a column is ambiguous, or an unread one changes what is learned.
    """
    found, table, aliases = _named(rows, file, mapping)
    chosen = next((known for known in FORMATS if known.matches(table)), None)
    if chosen is None:
        raise _unknown(Columns(rows), file)
    read = {*ALWAYS, *chosen.reads.split()}
    documents = {name: f"{name} text" for name in ("source", *SUBSETS) if columns.is_document(table, name)}
    if documents:
        found = [{documents.get(name, name): value for name, value in row.items()} for row in found]
        table = Columns(found, file)
    info = Table(columns=set(table.kinds))
    if chosen.read is verdicts.read_verdict and table.verdicts is not None:
        info.reader = table.verdicts
        read |= table.verdicts.columns
    elif chosen.read is benchmarks.read_ranked:
        info.reader = table.ranked
        read.add(table.ranked)
    unused = {ours: theirs for theirs, ours in aliases.items() if ours not in read}
    if unused:
        found = [{unused.get(name, name): value for name, value in row.items()} for row in found]
        table = Columns(found, file)
    remarks = _name_aliases({theirs: ours for theirs, ours in aliases.items() if ours in read})
    if chosen.name == "preference pairs with implicit prompt":
        columns.refuse_other_text(table, read, file)
    remarks += _find_scales(table, info, read)
    remarks += columns.name_unread(table, read, demonstrations=chosen.name == "demonstrations", file=file)
    info.repeats_prompt = _repeats_prompt(table, read - set(ALWAYS))
    info.is_rendered = _is_rendered(table, read)
    return Recognized(found, chosen, info, remarks)


def prompt_rows(
    rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None = None
) -> Recognized | None:
    """The rows of a file that is not feedback of a known format but has prompts; None if it is, or has none."""
    found, table, aliases = _named(rows, file, mapping)
    if any(known.matches(table) for known in FORMATS) or table.kinds.get("prompt") is None:
        return None
    remarks = _name_aliases(aliases) + columns.name_unread(table, ALWAYS, demonstrations=False, file=file)
    return Recognized(found, PROMPTS, Table(columns=set(table.kinds)), remarks)


PROMPTS = Format("prompts", "prompt", lambda c: c.have("prompt"), lambda row: iter(()))


def _named(
    rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None
) -> tuple[list[dict[str, Any]], Columns, dict[str, str]]:
    """The rows under our column names, their columns, and which of theirs were renamed to which of ours."""
    found = columns.prepare_cells(rename(rows, mapping, file) if mapping else rows)
    table = Columns(found, file)
    particular = next((known for known in PARTICULAR if known.matches(table)), None)
    joined: dict[str, str] = {}
    if particular is None and {"instruction", "input"} <= table.kinds.keys() and not table.have("prompt"):
        for row in found:
            parts = [str(row.pop(name, None) or "") for name in ("instruction", "input")]
            row["prompt"] = "\n\n".join(filter(str.strip, parts)) or None
        table, joined = Columns(found, file), {"instruction and input": "prompt"}
    used = set(particular.reads.split()) if particular else set()
    if particular is None and table.verdicts is not None:
        used = table.verdicts.columns
    aliases = columns.find_aliases(table, used, file)
    if particular is not None:
        aliases = {theirs: ours for theirs, ours in aliases.items() if ours in ("system", "tools")}
    if aliases:
        found = [{aliases.get(name, name): value for name, value in row.items()} for row in found]
        table = Columns(found, file)
    return found, table, joined | aliases


def _name_aliases(aliases: Mapping[str, str]) -> list[str]:
    told = ", ".join(f"{theirs!r} as {ours!r}" for theirs, ours in aliases.items())
    return [f"read {told}"] if told else []


def _find_scales(table: Columns, info: Table, read: set[str]) -> list[str]:
    """Set the scales of ratings that are not in [0, 1], and say which were assumed."""
    remarks = []
    for names in (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"), ("rating",), ("label",)):
        present = [name for name in names if name in read and name in table.kinds]
        if present and not (names == ("rating",) and table.have_any("rating_min", "rating_max")):
            scale = columns.scale_of(table, present)
            if names == ("score_chosen", "score_rejected") and _fits(table, present, (0, 10)):
                scale = (0, 10)  # UltraFeedback's, also where a file has only low scores
            if scale is not None:
                info.scales.update(dict.fromkeys(present, (float(scale[0]), float(scale[1]))))
                remarks.append(f"{' and '.join(present)}: assumed to be on a scale from {scale[0]:g} to {scale[1]:g}")
    return remarks


def _fits(table: Columns, names: Sequence[str], scale: tuple[float, float]) -> bool:
    values = [columns.as_number(value) for name in names for value in table.values(name)]
    return all(value is not None and scale[0] <= value <= scale[1] for value in values)


def _repeats_prompt(table: Columns, read: set[str]) -> bool:
    """Whether at least half of all text responses begin with the text of their prompt."""
    counted = repeating = 0
    for row in table.rows[:10_000]:
        prompt = row.get("prompt")
        if isinstance(prompt, str) and prompt.strip():
            texts = [text for name in read if isinstance(text := row.get(name), str) and name in RESPONSE_COLUMNS]
            counted += bool(texts)
            repeating += bool(texts) and all(text.startswith(prompt) and text != prompt for text in texts)
    return counted > 0 and repeating >= counted / 2


def _is_rendered(table: Columns, read: set[str]) -> bool:
    """Whether at least half of the rows have a text with a chat template's turn marks inside."""
    rows = table.rows[:2000]
    marked = sum(
        any(isinstance(text := row.get(name), str) and structure.has_turns_inside(text) for name in read)
        for row in rows
    )
    return marked > 0 and marked >= len(rows) / 2


RESPONSE_COLUMNS = frozenset(
    ["chosen", "rejected", "response", "completion", "response_a", "response_b", "response_0", "response_1"]
)


def _unknown(table: Columns, file: str) -> DataError:
    found = ", ".join(table.kinds) or "none"
    near = {
        name: ours for name in table.kinds for ours in COLUMNS if name != ours and name.lower().strip() == ours.lower()
    }
    hint = " ".join(f"{theirs}={ours}" for theirs, ours in near.items())
    return DataError(
        f"these columns are no known shape of feedback: {found}",
        where=file,
        expected="one of: " + "; ".join(f"{known.name} ({known.shape})" for known in FORMATS),
        remedy=f"did you mean --columns {hint}?"
        if hint
        else "say which column is which, for example --columns question=prompt better=chosen worse=rejected",
    )


def rename(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str], file: str) -> list[dict[str, Any]]:
    """Rows with their columns under our names; `mapping` is theirs to ours, or to `IGNORE`.

    A column that is not mapped keeps its name, unless a mapped one takes that name: then it is left aside.

    Raises:
        DataError: A column that no row has, a name of ours that does not exist, or two columns mapped to one.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    for theirs, ours in mapping.items():
        if theirs not in present:
            raise DataError(
                f"--columns names {theirs!r}, which the file does not have",
                where=file,
                expected="one of its columns: " + ", ".join(present),
                remedy=_nearest(theirs, present),
            )
        if ours not in COLUMNS:
            raise DataError(
                f"--columns maps {theirs!r} to {ours!r}, which is not a column that is read",
                where=file,
                expected="one of " + ", ".join(sorted(COLUMNS)),
                remedy=_nearest(ours, sorted(COLUMNS)),
            )
    targets = [ours for ours in mapping.values() if ours != IGNORE]
    if len(set(targets)) != len(targets):
        raise DataError("--columns maps two columns to one name", where=file, remedy="map each to a name of its own")
    return [
        {
            mapping.get(name, name): value
            for name, value in row.items()
            if mapping.get(name) != IGNORE and (name in mapping or name not in targets)
        }
        for row in rows
    ]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else ""
