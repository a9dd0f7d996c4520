"""Folders, patterns and compressed files; JSON text in columns; references of unusual types; contradictory rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gmpo.data.files import find_files, row_count, write_parquet
from gmpo.data.prepare import prepare
from gmpo.data.problems import contradictions, contradictory, load_problems, problems_from_rows
from gmpo.data.report import prepared
from gmpo.errors import DataError


def row(question: str = "2+2?", truth: Any = "4", **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": question}]
    return {"data_source": "openai/gsm8k", "prompt": prompt, "reward_model": {"ground_truth": truth}, **more}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    for number in (10, 2, 1):
        write_parquet([row(f"question {number}")], folder / f"train-{number}.parquet")
    return folder


def asked(files: Any) -> list[str]:
    return [problem.prompt[0]["content"].split()[-1] for problem in load_problems(files)]


def test_a_folder_and_a_pattern_stand_for_their_files_in_the_order_of_their_numbers(shards: Path) -> None:
    assert asked(shards) == asked(str(shards / "train-*.parquet")) == ["1", "2", "10"]
    assert asked([shards / "train-10.parquet", str(shards / "train-[12].parquet")]) == ["10", "1", "2"]
    assert row_count(shards) == 3


def test_nothing_is_taken_for_something_else(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing matches .*val-"):
        find_files(str(shards / "val-*.parquet"))
    write_parquet([row()], shards / "test-1.parquet")
    with pytest.raises(DataError, match="holds training and test files"):
        find_files(shards)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        find_files(tmp_path / "empty")


def test_compressed_json_is_read_and_a_cut_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(row(f"question {n}")) + "\n" for n in range(3)).encode())
    file.write_bytes(whole)
    assert asked(file) == ["0", "1", "2"]
    assert row_count(file) == 3
    file.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"rows.jsonl.gz cannot be read"):
        load_problems(file)


def test_prompts_and_further_fields_may_be_json_text() -> None:
    """What tables cannot hold is kept as text: it means the same. Text that only begins like JSON stays text."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    (problem,) = problems_from_rows([{**row(), "prompt": json.dumps(messages), "extra_info": '{"index": 3}'}])
    assert [dict(message) for message in problem.prompt] == messages
    assert problem.extra["index"] == 3
    (plain,) = problems_from_rows([{**row(), "prompt": "[{1, 2}, {3}] has how many sets?"}])
    assert plain.prompt[0]["content"] == "[{1, 2}, {3}] has how many sets?"


@pytest.mark.parametrize(
    ("given", "reference"),
    [(["4"], "4"), ([4], "4"), (4.0, "4"), ("4.00", "4.00"), (10**400, "1" + "0" * 400), (["4", "5"], '["4", "5"]')],
)
def test_a_reference_is_the_text_of_what_stands_there(given: Any, reference: str) -> None:
    (problem,) = problems_from_rows([row(truth=given)])
    assert problem.ground_truth == reference


def test_an_integer_that_cannot_be_written_out_is_named() -> None:
    with pytest.raises(DataError, match="cannot be written out"):
        problems_from_rows([row(truth=10**5000)])


def test_questions_with_two_answers_are_found_whatever_their_spaces() -> None:
    rows = [row("a  b", "1"), row("c", "2"), row("a b", "1"), row("a b ", "3"), row("a b", "4")]
    assert [(one.id, other.id) for one, other in contradictory(problems_from_rows(rows))] == [("rows:1", "rows:4")]


def test_of_many_contradictory_rows_the_first_are_shown_and_the_others_counted() -> None:
    rows = [row(str(i // 2), str(i)) for i in range(10)]
    head, first, second, rest = contradictions(problems_from_rows(rows), "the rows", 2)
    assert head.startswith("5 questions stand in the rows with different answers")
    assert first == "    rows:1 (0) and rows:2 (1)"
    assert second == "    rows:3 (2) and rows:4 (3)"
    assert rest == "    and 3 more"
    assert len(contradictions(problems_from_rows(rows), "the rows", 5)) == 6
    assert contradictions(problems_from_rows(rows[::2]), "the rows", 5) == []
    assert contradictions(problems_from_rows(rows[:2]), "the rows", 5)[0].startswith("1 question stands in the rows")


def test_gmpo_data_lists_contradictory_rows_of_what_it_wrote_where_they_stand(tmp_path: Path) -> None:
    """The rows are those of the written file, in which one that was left out has no number."""
    asked = [("What is 2+2?", "4"), ("held out " * 9, "1"), ("What is 3+3?", "6"), ("What is  2+2?", "5")]
    file = write_parquet([{**row(*one), "data_source": "lighteval/MATH"} for one in asked], tmp_path / "train.parquet")
    held = write_parquet([row("held out " * 9, "1")], tmp_path / "eval.parquet")
    (written,) = prepare("math", tmp_path / "out", file, against=[held], drop=True)
    assert written.rows == 3
    lines = list(prepared([written]))
    (head,) = [i for i, line in enumerate(lines) if "with different answers" in line]
    assert lines[head].startswith("    1 question stands in this file with different answers")
    assert lines[head + 1].strip() == "train.parquet:1 (4) and train.parquet:3 (5)"
    assert [p.ground_truth for p in contradictory(load_problems(written.path))[0]] == ["4", "5"]
    assert not any("different" in line for line in prepared(prepare("stories", tmp_path / "own", size=50)))


def test_leaving_out_what_nothing_was_compared_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--against"):
        prepare("stories", tmp_path, size=4, drop=True)


@pytest.mark.parametrize(("name", "source"), [("gsm8k", "countdown"), ("math500", "openai/gsm8k")])
def test_rows_of_another_data_set_are_not_relabelled(tmp_path: Path, name: str, source: str) -> None:
    """Competition mathematics is published under many names, and stays free to be."""
    file = write_parquet([{**row(), "data_source": source}], tmp_path / "test.parquet")
    with pytest.raises(DataError, match=f"`data_source` is '{source}', another data set"):
        prepare(name, tmp_path / "out", file)
    write_parquet([{**row(), "data_source": "lighteval/MATH"}], file)
    assert prepare("math500", tmp_path / "out", file)[0].rows == 1
