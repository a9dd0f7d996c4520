"""Rows of verl's schema become problems, or a message that names file, row, cause and remedy."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.data.files import row_count, write_parquet
from gmpo.data.problems import Draw, ProblemStream, load_problems, problems_from_rows, sample
from gmpo.errors import ConfigError, DataError


def row(**changes: Any) -> dict[str, Any]:
    """A good row, apart from `changes`."""
    good = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "2 + 2 = ?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"split": "train", "index": 0},
    }
    return {**good, **changes}


def truth(value: Any) -> dict[str, Any]:
    return row(reward_model={"style": "rule", "ground_truth": value})


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def message_of(raised: pytest.ExceptionInfo[Exception]) -> str:
    return str(raised.value)


# --- what a row becomes


def test_parquet_and_json_lines_and_a_json_array_of_the_same_rows_give_the_same_problems(tmp_path: Path) -> None:
    rows = [truth("4"), truth("5"), row(prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])]
    write_parquet(rows, tmp_path / "a.parquet")
    jsonl(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    loaded = {suffix: load_problems(tmp_path / f"a.{suffix}") for suffix in ("parquet", "jsonl", "json")}
    for suffix, problems in loaded.items():
        assert [p.id for p in problems] == [f"a.{suffix}:{n}" for n in (1, 2, 3)]
        assert [p.ground_truth for p in problems] == ["4", "5", "4"]
        assert [len(p.prompt) for p in problems] == [1, 1, 2]
        assert problems[0].prompt[0] == {"role": "user", "content": "2 + 2 = ?"}
        assert problems[0].extra == {"ability": "math", "split": "train", "index": 0}


def test_files_are_concatenated_in_the_order_given(tmp_path: Path) -> None:
    b, a = jsonl(tmp_path / "b.jsonl", truth("1"), truth("2")), jsonl(tmp_path / "a.jsonl", truth("3"))
    assert [p.ground_truth for p in load_problems([b, a])] == ["1", "2", "3"]
    assert [p.ground_truth for p in load_problems([str(a), str(b)])] == ["3", "1", "2"]


def test_files_of_one_name_are_told_apart_by_their_folder_and_a_repeated_file_by_a_count(tmp_path: Path) -> None:
    for folder in ("gsm8k", "math"):
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "train.jsonl", row())
    files = [tmp_path / "gsm8k/train.jsonl", tmp_path / "math/train.jsonl", tmp_path / "math/train.jsonl"]
    ids = [p.id for p in load_problems(files)]
    assert ids == ["gsm8k/train.jsonl:1", "math/train.jsonl:1", "math/train.jsonl#2:1"]
    assert load_problems(files[0])[0].id == "train.jsonl:1"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "t.jsonl", row())
    assert len(load_problems(["~/t.jsonl"])) == row_count("~/t.jsonl") == 1


def test_a_plain_text_prompt_is_one_user_message() -> None:
    assert problems_from_rows([row(prompt="2 + 2 = ?")])[0].prompt == ({"role": "user", "content": "2 + 2 = ?"},)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1,234", "1,234"),
        (42, "42"),
        (42.0, "42"),
        (-3.5, "-3.5"),
        (Decimal("0.10"), "0.10"),
        (np.int64(7), "7"),
        ({"numbers": [1, 2], "target": 3}, '{"numbers": [1, 2], "target": 3}'),
        (["x", "ü"], '["x", "ü"]'),
        (np.array([1, 2]), "[1, 2]"),
    ],
)
def test_a_ground_truth_that_is_no_text_becomes_one(value: Any, text: str) -> None:
    assert problems_from_rows([truth(value)])[0].ground_truth == text


def test_extra_info_may_be_missing_and_other_columns_are_kept_under_it() -> None:
    bare = row(level=3)
    del bare["extra_info"]
    both = row(level=3, extra_info={"level": "five", "index": 0})
    first, second, third = problems_from_rows([bare, both, row(extra_info=None)])
    assert first.extra == {"ability": "math", "level": 3}
    assert second.extra == {"ability": "math", "level": "five", "index": 0}
    assert third.extra == {"ability": "math"}


def test_the_records_of_a_data_frame_with_numpy_inside_are_rows() -> None:
    prompt = np.array([{"role": "user", "content": "?"}], dtype=object)
    problem = problems_from_rows([row(prompt=prompt, extra_info={"index": np.int64(3)})], "frame")[0]
    assert problem.id == "frame:1"
    assert problem.extra["index"] == 3
    assert json.loads(json.dumps(dict(problem.extra))) == problem.extra


def test_null_fields_of_a_message_are_gaps_of_the_table_and_are_left_out() -> None:
    prompt = [{"role": "user", "content": "?", "name": None}]
    assert problems_from_rows([row(prompt=prompt)])[0].prompt == ({"role": "user", "content": "?"},)


def test_prompt_and_source_may_stand_in_other_columns() -> None:
    renamed = {"question": "2+2", "task": "x", "prompt": "unused", "reward_model": {"ground_truth": "4"}}
    problem = problems_from_rows([renamed], prompt_key="question", data_source_key="task")[0]
    assert (problem.prompt[0]["content"], problem.data_source) == ("2+2", "x")
    assert problem.extra == {"prompt": "unused"}


def test_a_limit_keeps_the_first_rows_and_with_a_seed_a_random_choice_in_order() -> None:
    assert sample(range(10), 3, None) == [0, 1, 2]
    assert sample(range(10), -1, None) == sample(range(10), 99, 1) == list(range(10))
    drawn = sample(range(1000), 50, 1)
    assert drawn == sorted(set(drawn)) == sample(range(1000), 50, 1)
    assert len(drawn) == 50
    assert drawn != sample(range(1000), 50, 2)
    assert max(drawn) > 500


@pytest.mark.parametrize("limit", [0, -2])
def test_a_limit_that_means_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=r"must be -1 \(all\) or at least 1"):
        sample([1, 2], limit, None)


# --- bad input


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (
            {k: v for k, v in row().items() if k != "prompt"},
            "no column `prompt`. Columns present: data_source, ability",
        ),
        ({k: v for k, v in row().items() if k != "data_source"}, "no column `data_source`"),
        ({k: v for k, v in row().items() if k != "reward_model"}, "no column `reward_model`"),
        (row(prompt=[]), "`prompt` must be a string or a list of messages with role and content, found [] (list)"),
        (row(prompt=None), "found None (NoneType)"),
        (row(prompt="  "), "`prompt` is empty"),
        (row(prompt=["hello"]), "`prompt`, message 1 must be an object with role and content, found 'hello' (str)"),
        (row(prompt=[{"role": "user"}]), "message 1: `content` must be a string, found None"),
        (row(prompt=[{"role": "user", "content": ["image"]}]), "`content` must be a string, found ['image'] (list)"),
        (row(prompt=[{"role": "", "content": "x"}]), "`role` is empty"),
        (row(prompt="\ud800"), "half of a surrogate pair"),
        (row(data_source=7), "`data_source` must be a name, found 7 (int)"),
        (row(reward_model="4"), "`reward_model` must be an object with a field `ground_truth`, found '4' (str)"),
        (row(reward_model={"style": "rule"}), "with a field `ground_truth`"),
        (truth(None), "`ground_truth` must be a string, a number, a list or an object, found None (NoneType)"),
        (truth(" "), "`ground_truth` must be a string"),
        (truth(True), "found True (bool)"),
        (truth(float("nan")), "found nan (float)"),
        (truth([{1, 2}, 3]), "`ground_truth` cannot be written as JSON"),
        (row(extra_info="x"), "`extra_info` must be an object with named fields, found 'x' (str)"),
        (["not", "a", "row"], "a row must be a mapping with named columns"),
    ],
)
def test_a_malformed_row_is_named_with_its_number_and_what_is_wrong(bad: Any, cause: str) -> None:
    with pytest.raises(DataError) as raised:
        problems_from_rows([row(), bad], "mine")
    assert message_of(raised).startswith("mine, row 2: ")
    assert cause in message_of(raised)


def test_a_malformed_row_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = write_parquet([row(), truth(""), row()], tmp_path / "a.parquet")
    with pytest.raises(DataError) as raised:
        load_problems(path)
    assert message_of(raised).startswith(f"{path}, row 2: `reward_model`: `ground_truth` must be a string")


def test_no_rows_and_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="has no rows"):
        load_problems([tmp_path / "e.jsonl"])
    with pytest.raises(DataError, match="no data files are given"):
        load_problems([])
    with pytest.raises(DataError, match="the data set is empty"):
        problems_from_rows([])


# --- the order of a run

SIZES = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(SIZES, st.integers(0, 2**40), st.integers(0, 5))
def test_an_epoch_visits_every_problem_at_most_once_and_leaves_out_only_the_last_part_batch(
    sizes: tuple[int, int], seed: int, epoch: int
) -> None:
    n, batch = sizes
    stream = ProblemStream(range(n), batch, shuffle=True, seed=seed)
    steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
    visited = [i for step in steps for i in stream.take(step)]
    assert stream.steps_per_epoch == n // batch
    assert {stream.epoch_of(step * batch) for step in steps} == {epoch}
    assert len(visited) == len(set(visited)) == n - n % batch
    assert set(visited) <= set(range(n))


def test_a_draw_passes_over_what_is_not_wanted_and_goes_on_behind_the_last_one_taken() -> None:
    stream = ProblemStream(range(8), 2, shuffle=False, seed=0)
    assert stream.draw(1, lambda i: i % 2 == 0) == Draw([2, 4], [2, 4], 5)
    assert stream.draw(5, lambda i: i % 2 == 0) == Draw([6, 0], [6, 8], 9)  # over the end of the first epoch
    assert stream.draw(9) == Draw([1, 2], [9, 10], 11)


def test_a_draw_over_the_seam_of_two_epochs_never_holds_a_problem_twice() -> None:
    stream = ProblemStream(range(4), 4, shuffle=True, seed=3)
    for position in range(8):
        drawn = stream.draw(position)
        assert sorted(drawn.items) == [0, 1, 2, 3]
        assert position + 4 <= drawn.end <= position + 8
        assert drawn.positions == sorted(set(drawn.positions)), "each position names one problem of the batch"
        assert (drawn.positions[0], drawn.positions[-1]) == (position, drawn.end - 1)


def test_too_few_wanted_problems_are_an_error_that_counts_them() -> None:
    stream = ProblemStream(range(8), 4, shuffle=True, seed=0)
    with pytest.raises(DataError, match="only 3 of 8 problems are wanted, fewer than a batch of 4"):
        stream.draw(0, lambda i: i < 3)


def test_when_the_batch_divides_the_data_each_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    stream = ProblemStream(range(32), 8, shuffle=True, seed=0)
    epochs = [[i for step in range(e * 4, e * 4 + 4) for i in stream.take(step)] for e in range(3)]
    assert all(sorted(order) == list(range(32)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


def test_what_a_step_sees_depends_on_the_step_alone_so_resuming_anywhere_continues_the_run() -> None:
    whole = ProblemStream(range(20), 3, shuffle=True, seed=5)
    run = [whole.take(step) for step in range(30)]
    for start in (0, 1, 7, 29):
        resumed = ProblemStream(range(20), 3, shuffle=True, seed=5)
        assert [resumed.take(step) for step in range(start, 30)] == run[start:]
    assert [whole.take(step) for step in reversed(range(30))] == run[::-1]


def test_the_order_is_fixed_for_good_by_seed_and_epoch() -> None:
    order = [ProblemStream("abcdefgh", 8, shuffle=True, seed=s).take(e) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert ["".join(letters) for letters in order] == ["dcbheafg", "egcbfhda", "bdcgehaf"]


def test_without_shuffling_every_epoch_runs_through_the_rows_in_order() -> None:
    stream = ProblemStream("abcde", 2, shuffle=False, seed=0)
    assert [stream.take(step) for step in range(4)] == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]


def test_a_batch_larger_than_the_data_set_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        DataError, match=r"batch of 9 problems is larger than the data set of 5: lower data\.train_batch"
    ):
        ProblemStream(range(5), 9, shuffle=True, seed=0)
    assert ProblemStream(range(5), 5, shuffle=True, seed=0).steps_per_epoch == 1


def test_a_batch_of_none_and_a_negative_seed_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 problem"):
        ProblemStream(range(5), 0, shuffle=True, seed=0)
    with pytest.raises(ConfigError, match=r"data\.seed=-1"):
        ProblemStream(range(5), 1, shuffle=False, seed=-1)
