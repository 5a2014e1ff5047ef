"""Criteria and their file."""

import math
from pathlib import Path

import pytest

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.criteria.records import Criterion, Quotation, read_criteria, write_criteria


def written(folder: Path, text: str) -> Path:
    path = folder / "criteria.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_by_hand(tmp_path: Path) -> None:
    found = read_criteria(
        written(
            tmp_path,
            """
criteria:
  - is kind to beginners
  - statement: is at most two sentences long
    measure: sentences
    target: [0, 2]
    weight: 1
    quotations: [Too long., {text: Cut it., where: "a.jsonl, row 3"}]
  - {statement: has no list, measure: list_items, direction: less}
  - {statement: rhymes, measure: "function: my.py:rhymes"}
""",
        )
    )
    kind, short, plain, rhymes = found
    assert (kind.name, kind.question) == ("is_kind_to_beginners", "Is this true of the reply: it is kind to beginners?")
    assert (short.name, short.direction, short.target, short.weight) == ("sentences", "target", (0, 2), 1)
    assert short.quotations == (Quotation("Too long."), Quotation("Cut it.", "a.jsonl, row 3"))
    assert (plain.direction, plain.function, rhymes.function) == ("less", "", "my.py:rhymes")


ENDS = ((-math.inf, 3.0), (-2.0, math.inf), (0.0, 2.0))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    criteria = [
        Criterion(
            "is short", "length", "words", "less", weight=0.31, low=-0.1, high=0.7, mean=3.5, scale=2.25, named=4
        ),
        Criterion(
            "is long",
            "size",
            "words",
            "target",
            (30, math.inf),
            quotations=(Quotation("More: \u201cplease\u201d", "row 1"),),
        ),
    ]
    criteria += [Criterion("is like that", f"w{i}", "words", "target", ends) for i, ends in enumerate(ENDS)]
    write_criteria(tmp_path / "criteria.yaml", criteria, "made by hand\nsecond line")
    again = read_criteria(tmp_path / "criteria.yaml")
    assert [one.to_dict() for one in again] == [one.to_dict() for one in criteria]
    assert again[1].target == (30, math.inf)
    assert tuple(one.target for one in again[2:]) == ENDS


def test_values_point_to_the_wanted_direction() -> None:
    assert Criterion("is long", measure="words").value(7) == 7
    assert Criterion("is short", measure="words", direction="less").value(7) == -7
    middle = Criterion("is right", measure="words", direction="target", target=(3, 5))
    assert [middle.value(number) for number in (1, 3, 4, 5, 9)] == [-2, 0, 0, 0, -4]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{statement: is short, measure: wrods}", "no measure 'wrods' (did you mean `words`?)"),
        ("{statement: is short, mesaure: words}", "no key 'mesaure' (did you mean `measure`?)"),
        ("{statement: is short, measure: words, direction: lesser}", "did you mean `less`?"),
        ("{measure: words}", "no statement"),
        ("{statement: a, measure: words, target: [5, 3]}", "target"),
        ("{statement: a, measure: words, target: 5}", "invalid"),
        ("{statement: a, measure: words, weight: heavy}", "invalid"),
        ("{statement: a, measure: words, weight: .nan}", "finite"),
        ("{statement: a, measure: words, weight: 1.0e+300}", "very large"),
        ("{statement: a, measure: words, weight: true}", "weight is True"),
        ("{statement: a, measure: words, scale: -6.7}", "a standard deviation above 0"),
        ("{statement: a, measure: words, scale: 1.0e-320}", "a standard deviation above 0"),
        ("{statement: a, measure: words, direction: less, target: [0, 2]}", "direction less"),
        ("{statement: a, measure: 'function: my.py'}", "names no function"),
        ("[1, 2]", "is not a criterion"),
    ],
)
def test_errors_name_the_criterion(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_criteria(written(tmp_path, f"criteria:\n  - is kind\n  - {entry}\n"))
    assert message in str(error.value) and "criterion 2" in str(error.value)


def test_files_without_criteria(tmp_path: Path) -> None:
    for text in ("", "criteria: []", "words: 3"):
        with pytest.raises(ConfigError, match="no criteria"):
            read_criteria(written(tmp_path, text))
    with pytest.raises(ConfigError, match="words is given twice"):
        read_criteria(written(tmp_path, "- {statement: a, measure: words}\n- {statement: b, measure: words}"))
    with pytest.raises(DataError, match="cannot be read"):
        read_criteria(written(tmp_path, "criteria: ["))
    with pytest.raises(DataError, match="cannot be read"):
        read_criteria(written(tmp_path, "!!python/object/apply:os.system ['true']"))
    with pytest.raises(DataError, match=r"rrm-lm criteria"):
        read_criteria(tmp_path / "missing.yaml")
