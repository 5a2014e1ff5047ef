"""Files to rows: every format, gzipped or not, and every fault with its file and row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.files import read_rows

ROWS = [
    {"prompt": "Name a colour.", "response": "Bläu “blue”", "rating": 0.5},
    {"prompt": "Two\nlines, with a comma", "response": 'She said "no".', "rating": 1.0},
]


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def fault(path):
    """The message of the error that reading a file gives."""
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert path.name in message
    return message


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_lines(tmp_path, suffix, packed):
    data = jsonl(ROWS).encode()
    path = write(tmp_path / f"a{suffix}{'.gz' if packed else ''}", gzip.compress(data) if packed else data)
    assert list(read_rows(path)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_gzip_is_told_by_its_first_bytes_not_by_its_name(tmp_path):
    assert len(list(read_rows(write(tmp_path / "unpacked.jsonl.gz", jsonl(ROWS))))) == 2
    assert len(list(read_rows(write(tmp_path / "packed.jsonl", gzip.compress(jsonl(ROWS).encode()))))) == 2


def test_rows_of_json_lines_count_lines_so_blank_ones_keep_their_number(tmp_path):
    path = write(tmp_path / "a.jsonl", "\ufeff" + json.dumps(ROWS[0]) + "\r\n\r\n" + json.dumps(ROWS[1]))
    assert [number for number, _ in read_rows(path)] == [1, 3]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}])
def test_json_lists(tmp_path, wrap):
    path = write(tmp_path / "a.json", json.dumps(wrap(ROWS), indent=1))
    assert list(read_rows(path)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_json_lines_under_the_name_json(tmp_path):
    assert [row for _, row in read_rows(write(tmp_path / "a.json", jsonl(ROWS)))] == ROWS


def test_one_json_object_is_one_row(tmp_path):
    assert list(read_rows(write(tmp_path / "a.json", json.dumps(ROWS[0])))) == [(1, ROWS[0])]


def test_csv_counts_rows_below_the_header_even_when_cells_span_lines(tmp_path):
    text = 'prompt,response,note\n"Two\nlines, with a comma","She said ""no"".",\nHi,Hello,x\n'
    rows = list(read_rows(write(tmp_path / "a.csv", text)))
    assert rows == [
        (1, {"prompt": "Two\nlines, with a comma", "response": 'She said "no".', "note": None}),
        (2, {"prompt": "Hi", "response": "Hello", "note": "x"}),
    ]
    assert list(read_rows(write(tmp_path / "a.tsv", "a\tb\n1\t2\n"))) == [(1, {"a": "1", "b": "2"})]


def test_csv_cells_with_message_lists_are_read_as_lists_and_other_brackets_as_text(tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    cells = [json.dumps(messages), '["a", "b"]', '["too long"]', "[not json]"]
    line = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    [(_, row)] = read_rows(write(tmp_path / "a.csv", "prompt,response,chosen_critiques,rejected\n" + line + "\n"))
    assert row == {
        "prompt": messages,
        "response": '["a", "b"]',
        "chosen_critiques": ["too long"],
        "rejected": "[not json]",
    }


@pytest.mark.parametrize("packed", [False, True])
def test_parquet_over_several_batches(tmp_path, packed):
    rows = [{"prompt": f"p{i}", "messages": [{"role": "user", "content": str(i)}], "rating": None} for i in range(1100)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    if packed:
        path = write(tmp_path / "b.parquet.gz", gzip.compress(path.read_bytes()))
    assert list(read_rows(path)) == list(enumerate(rows, 1))


def test_a_missing_file_a_folder_and_an_unknown_extension(tmp_path):
    assert "no such file" in fault(tmp_path / "gone.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "a folder" in fault(tmp_path / "folder.jsonl")
    message = fault(write(tmp_path / "a.xlsx", "x"))
    assert ".jsonl" in message and ".parquet" in message


def test_broken_json_lines_name_the_row(tmp_path):
    message = fault(write(tmp_path / "a.jsonl", jsonl(ROWS) + '{"prompt": }\n' + jsonl(ROWS)))
    assert "a.jsonl, row 3" in message and "not valid JSON" in message


def test_a_truncated_last_line_says_so(tmp_path):
    message = fault(write(tmp_path / "a.jsonl", jsonl(ROWS)[:-20]))
    assert "a.jsonl, row 2" in message and "copy the file again" in message


def test_rows_that_are_no_objects_name_the_row(tmp_path):
    assert "row 2" in fault(write(tmp_path / "a.jsonl", '{"a": 1}\n[1, 2]\n'))
    assert "row 2" in fault(write(tmp_path / "a.json", '[{"a": 1}, "x"]'))
    assert "not rows" in fault(write(tmp_path / "b.json", "3"))
    assert "not valid JSON" in fault(write(tmp_path / "c.json", "[" * 200_000))


def test_deep_nesting_and_endless_numbers_are_faults_of_the_row_not_crashes(tmp_path):
    assert "row 1" in fault(write(tmp_path / "a.jsonl", "[" * 200_000 + "\n"))
    assert "row 1" in fault(write(tmp_path / "b.jsonl", '{"a": ' + "1" * 5000 + "}\n"))


def test_broken_json_names_the_line(tmp_path):
    assert "row 3" in fault(write(tmp_path / "a.json", '[{"a": 1},\n{"a": 2},\n{"a": ?},\n{"a": 4}]'))
    assert "cut short" in fault(write(tmp_path / "b.json", '[{"a": 1},\n{"a": 2'))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.parquet.gz"])
def test_truncated_gzip(tmp_path, name):
    whole = gzip.compress(jsonl([{"prompt": str(i), "x": i * 7919 % 1000} for i in range(5000)]).encode())
    message = fault(write(tmp_path / name, whole[: len(whole) // 2]))
    assert "cut short or damaged" in message
    if "jsonl" in name:
        row = int(message.split("row ")[1].split(".")[0])
        assert 1 < row < 5000  # where reading stopped


def test_damaged_gzip(tmp_path):
    data = bytearray(gzip.compress(jsonl(ROWS).encode()))
    data[len(data) // 2] ^= 0xFF
    assert "damaged" in fault(write(tmp_path / "a.jsonl.gz", bytes(data)))


def test_bytes_that_are_not_utf8_name_the_row(tmp_path):
    good, bad = json.dumps(ROWS[1]).encode() + b"\n", '{"prompt": "café"}\n'.encode("latin-1")
    message = fault(write(tmp_path / "a.jsonl", good + bad + good))
    assert "a.jsonl, row 2" in message and "0xe9" in message and "UTF-8" in message
    assert "row 2" in fault(write(tmp_path / "a.csv", b"prompt\ncaf\xe9\n"))
    assert "row 2" in fault(write(tmp_path / "a.json", b'[{"a": 1},\n{"a": "\xff"}]'))


def test_text_in_parquet_that_is_not_utf8_names_the_row(tmp_path):
    good = pa.array([b"a"] * 600 + [b"caf\xe9"] + [b"b"] * 100, pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(good), good.buffers())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": broken}), path)
    message = fault(path)
    assert "a.parquet, row 601" in message and "0xe9" in message


def test_truncated_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert "not a complete Parquet file" in fault(write(path, path.read_bytes()[:-30]))


def test_broken_csv_names_the_row(tmp_path):
    assert "row 2" in fault(write(tmp_path / "a.csv", "a,b\n1,2\n1,2,3\n"))
    assert "row 2" in fault(write(tmp_path / "b.csv", "a,b\n1,2\n1\n"))
    assert "row 2" in fault(write(tmp_path / "c.csv", 'a,b\n1,2\n1,"open\n'))
    assert "header" in fault(write(tmp_path / "d.csv", "a,a\n1,2\n"))


def test_cells_larger_than_the_csv_modules_own_limit(tmp_path):
    long = "word " * 60_000
    [(_, row)] = read_rows(write(tmp_path / "a.csv", f'a,b\n"{long}",x\n'))
    assert row["a"] == long


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_decides_the_encoding(tmp_path, encoding, suffix, packed):
    row = {"prompt": "Größe, \u4f60\u597d?", "response": "groß 🙂"}
    tab = "\t" if suffix == ".tsv" else ","
    text = {".jsonl": jsonl([row]), ".json": json.dumps([row])}.get(
        suffix, f'prompt{tab}response\n"{row["prompt"]}"{tab}{row["response"]}\n'
    )
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    data = (mark + text).encode(encoding)
    path = write(tmp_path / f"a{suffix}", gzip.compress(data) if packed else data)
    assert list(read_rows(path)) == [(1, row)]


def test_text_that_does_not_fit_its_byte_order_mark_says_so(tmp_path):
    assert "UTF-16" in fault(write(tmp_path / "a.csv", b"\xff\xfea\x00b"))


@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_the_delimiter_of_a_table_is_told_by_its_header(tmp_path, delimiter):
    text = delimiter.join(("prompt", '"a, b; c"', "response")) + "\n" + delimiter.join(("Hi", '"1;2,3"', "Yo")) + "\n"
    assert list(read_rows(write(tmp_path / "a.csv", text))) == [
        (1, {"prompt": "Hi", "a, b; c": "1;2,3", "response": "Yo"})
    ]


def test_a_nameless_index_column_is_an_index(tmp_path):
    path = write(tmp_path / "a.csv", ",prompt,response\n0,Hi,Yo\n1,Ho,Yu\n")
    assert list(read_rows(path)) == [
        (1, {"index": "0", "prompt": "Hi", "response": "Yo"}),
        (2, {"index": "1", "prompt": "Ho", "response": "Yu"}),
    ]
    assert "header" in fault(write(tmp_path / "b.csv", "prompt,,response\nHi,,Yo\n"))
