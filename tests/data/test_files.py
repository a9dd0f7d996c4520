"""Files are read or refused with what is there instead, and written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmpo.data.files import find_file, read_rows, row_count, write_parquet
from gmpo.errors import DataError

ROWS: list[dict[str, Any]] = [
    {
        "extra_info": {"index": i, "answer": None if i else "x"},
        "reward_model": {"style": "rule", "ground_truth": str(i)},
        "prompt": [{"role": "user", "content": f"question {i}"}],
        "data_source": "s",
        "ability": "math",
    }
    for i in range(3)
]


def text_of(name: str | Path) -> str:
    """The message with which reading this file is refused."""
    with pytest.raises(DataError) as raised:
        list(read_rows(find_file(name)))
    return str(raised.value)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = write_parquet(ROWS, tmp_path / "new" / "a.parquet")
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


def test_the_schema_is_verls_whatever_the_order_of_the_keys(tmp_path: Path) -> None:
    schema = pq.read_schema(write_parquet([{**ROWS[0], "note": 1}, *ROWS[1:]], tmp_path / "a.parquet"))
    assert schema.names == ["data_source", "prompt", "ability", "reward_model", "extra_info", "note"]
    assert schema.field("prompt").type == pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    assert schema.field("reward_model").type == pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
    assert schema.field("extra_info").type == pa.struct([("index", pa.int64()), ("answer", pa.string())])


def test_a_column_that_only_a_later_row_has_is_not_lost(tmp_path: Path) -> None:
    path = write_parquet([{"a": 1}, {"a": 2, "b": "x"}], tmp_path / "a.parquet")
    assert [row for _, row in read_rows(path)] == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]


def test_equal_rows_give_equal_bytes_compressed_with_zstd(tmp_path: Path) -> None:
    first, second = write_parquet(ROWS, tmp_path / "a.parquet"), write_parquet(ROWS, tmp_path / "b.parquet")
    assert first.read_bytes() == second.read_bytes()
    assert pq.read_metadata(first).row_group(0).column(0).compression == "ZSTD"


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(ROWS, tmp_path / "a.parquet")
    before = path.read_bytes()

    def full_disk(table: pa.Table, where: Path, **_: Any) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left"):
        write_parquet(ROWS[:1], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([], "there are no rows"),
        ([{"a": 1}, {"a": "x"}], "column `a` holds values of different types"),
        ([{"a": 2**70}], "column `a`"),
        ([{"a": {}}], "cannot be written"),
    ],
)
def test_rows_that_make_no_table_are_refused_and_leave_no_file(tmp_path: Path, rows: Any, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        write_parquet(rows, tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_cannot_be_written_into(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_parquet(ROWS, tmp_path / "f" / "a.parquet")


def test_rows_are_counted_without_reading_them_as_rows(tmp_path: Path) -> None:
    write_parquet(ROWS, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\nnot read\n')
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2}]')
    assert [row_count(tmp_path / name) for name in ("a.parquet", "a.jsonl", "a.json")] == [3, 3, 2]


def test_the_number_of_a_json_row_is_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"a": 1}\r\n\r\n{"a": "\u2028"}', encoding="utf-8")
    assert list(read_rows(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (3, {"a": "\u2028"})]


# --- bad files


def test_a_missing_file_names_the_nearest_and_what_the_folder_holds(tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        write_parquet(ROWS, tmp_path / name)
    text = text_of(tmp_path / "trian.parquet")
    assert f"there is no file {tmp_path}/trian.parquet" in text
    assert "Did you mean train.parquet?" in text
    assert "The folder holds test.parquet, train.parquet." in text


def test_a_missing_folder_names_the_nearest_that_exists(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    text = text_of(tmp_path / "gsm" / "x" / "train.parquet")
    assert f"Its folder does not exist either; {tmp_path} does, and holds gsm8k." in text


def test_a_folder_is_no_file_and_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    assert "is a folder, not a file; it holds train.jsonl" in text_of(tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a"])
def test_an_unknown_suffix_lists_the_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert "Known: .parquet, .jsonl, .json" in text_of(tmp_path / name)


def test_a_remote_name_says_that_files_are_local() -> None:
    assert "only local files are read" in text_of("hdfs://cluster/train.parquet")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a.jsonl", "x" * 5000 + ".jsonl"])
def test_a_name_that_the_system_refuses_is_a_data_error(name: str) -> None:
    assert "cannot be reached" in text_of(name)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b'{"a": 1}\n{"a": 2\n', "a.jsonl, row 2: invalid JSON"),
        (b'{"a": 1}\n\n[1]', "a.jsonl, row 3: a row must be an object with named columns, found list"),
        (b'[{"a": 1}, 2]', "a.jsonl, row 2: a row must be an object with named columns, found int"),
        (b'[{"a": 1}', "a.jsonl: invalid JSON"),
        (b'{"a": "\xff"}', "a.jsonl is not UTF-8 text (byte 7)"),
        (b'{"a": ' + b"[" * 100_000, "a.jsonl, row 1: invalid JSON"),
    ],
)
def test_a_broken_json_file_is_named_with_its_row(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert cause in text_of(tmp_path / "a.jsonl")


def test_what_is_no_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    assert "a.parquet cannot be read as parquet" in text_of(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        row_count(tmp_path / "a.parquet")


def test_a_parquet_file_whose_pages_are_damaged_is_a_data_error(tmp_path: Path) -> None:
    path = write_parquet([{"a": f"{i * 7919 % 10007}"} for i in range(5000)], tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[64:256] = bytes(192)
    path.write_bytes(content)
    assert "cannot be read as parquet" in text_of(path)


def test_json_rows_keep_their_types(tmp_path: Path) -> None:
    value = {"i": 3, "f": 0.5, "l": [1, None], "n": {"t": True}}
    (tmp_path / "a.jsonl").write_text(json.dumps(value))
    assert list(read_rows(tmp_path / "a.jsonl")) == [(1, value)]
