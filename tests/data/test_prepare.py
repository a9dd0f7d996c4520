"""`gmpo data`: known data sets become verl's rows, counts are reported, malformed rows are named."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmpo.data import countdown, gsm8k, math, stories
from gmpo.data.catalogue import PUBLISHED, plain_name
from gmpo.data.files import write_parquet
from gmpo.data.prepare import DATASETS, prepare, require_memory
from gmpo.data.problems import load_problems
from gmpo.data.report import Pace
from gmpo.errors import DataError

NATALIA = {"question": "Natalia sold 48 clips, then half as many.", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"}
CHORD = {"problem": "Compute $x$.", "solution": r"So $\boxed{\frac{1}{2}}$.", "level": "Level 5", "type": "Algebra"}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        prepare(*args, **options)
    return str(raised.value)


# --- the formats


def test_a_gsm8k_row_becomes_verls_row_word_for_word() -> None:
    assert gsm8k.convert(NATALIA, "train", 7) == {
        "data_source": "openai/gsm8k",
        "prompt": [
            {
                "role": "user",
                "content": "Natalia sold 48 clips, then half as many. "
                'Let\'s think step by step and output the final answer after "####".',
            }
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1072"},
        "extra_info": {"split": "train", "index": 7, "answer": NATALIA["answer"], "question": NATALIA["question"]},
    }


def test_a_math_row_becomes_verls_row_and_keeps_its_solution() -> None:
    row = math.convert(CHORD, "test", 0)
    assert row["data_source"] == "DigitalLearningGmbH/MATH-lighteval"
    assert row["prompt"] == [
        {
            "role": "user",
            "content": r"Compute $x$. Let's think step by step and output the final answer within \boxed{}.",
        }
    ]
    assert row["reward_model"] == {"style": "rule", "ground_truth": r"\frac{1}{2}"}
    assert row["extra_info"] == {
        "split": "test",
        "index": 0,
        "answer": CHORD["solution"],
        "question": CHORD["problem"],
        "level": "Level 5",
        "type": "Algebra",
    }


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\sqrt{2}+{a}} }", r"\sqrt{2}+{a}"),
        (r"$\fbox{7}$", "7"),
        (r"so $\boxed 5$.", "5"),
        (r"\boxed {3}", "3"),
        (r"\boxed{{1}}", "{1}"),
    ],
)
def test_the_answer_is_what_the_last_box_holds(solution: str, answer: str) -> None:
    assert math.boxed_answer(solution) == answer


@pytest.mark.parametrize(
    ("answer", "number"), [("#### 72", "72"), ("x\n#### -3", "-3"), ("#### 2.5", "2.5"), ("#### 1,234,567", "1234567")]
)
def test_the_final_answer_of_gsm8k_loses_its_commas(answer: str, number: str) -> None:
    assert gsm8k.final_answer(answer) == number


def test_the_two_empty_boxes_of_math_are_filled_in_and_no_other() -> None:
    known = "You are given a sequence of $58$ terms; each term has the form $P+n$ where"
    assert math.convert({"problem": known, "solution": r"is $\boxed{}$."}, "train", 0)["reward_model"] == {
        "style": "rule",
        "ground_truth": "0",
    }
    with pytest.raises(DataError, match="is empty"):
        math.convert({"problem": "Another.", "solution": r"is $\boxed{}$."}, "train", 0)


# --- files in, files out


def test_a_local_file_is_written_as_the_split_that_its_name_says(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "test.jsonl", NATALIA, NATALIA)
    (written,) = prepare("gsm8k", tmp_path / "out", source)
    assert written.path == tmp_path / "out" / "test.parquet"
    assert (written.rows, written.source_rows, written.published, written.as_published) == (2, 2, 1319, False)
    problems = load_problems(written.path)
    assert [p.ground_truth for p in problems] == ["1072", "1072"]
    assert [p.extra["split"] for p in problems] == ["test", "test"]


def test_a_file_named_after_no_split_is_training_data(tmp_path: Path) -> None:
    (written,) = prepare("math", tmp_path / "out", write_parquet([CHORD], tmp_path / "mine.parquet"))
    assert written.path.name == "train.parquet"
    assert written.published == 7500


def test_a_folder_gives_every_split_it_holds(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", NATALIA, NATALIA)
    jsonl(tmp_path / "test.jsonl", NATALIA)
    (tmp_path / "notes.txt").write_text("x")
    assert [(w.path.name, w.rows) for w in prepare("gsm8k", tmp_path / "out", tmp_path)] == [
        ("train.parquet", 2),
        ("test.parquet", 1),
    ]


def test_a_size_takes_a_random_part_chosen_by_the_seed_in_the_order_of_the_source(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(200)]
    source = jsonl(tmp_path / "train.jsonl", *rows)

    def kept(seed: int) -> list[int]:
        (written,) = prepare("gsm8k", tmp_path / "out", source, seed=seed, size=20)
        assert (written.rows, written.source_rows) == (20, 200)
        return [int(p.ground_truth) for p in load_problems(written.path)]

    assert kept(1) == kept(1) == sorted(kept(1))
    assert kept(1) != kept(2)
    assert "train.jsonl has 200 rows, fewer than the size of 201" in refusal("gsm8k", tmp_path, source, size=201)


def test_the_stories_are_three_files_that_share_no_held_out_numbers(tmp_path: Path) -> None:
    written = prepare("stories", tmp_path, seed=4, size=3000)
    assert [(w.path.name, w.rows) for w in written] == [
        ("train.parquet", 3000),
        ("test.parquet", 512),
        ("demonstrations.parquet", 32_000),
    ]
    train, test, shown = ({p.extra["key"] for p in load_problems(w.path)} for w in written)
    assert len(test) == 512
    assert not test & (train | shown)


# --- the hub


def fake_hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    """The hub's client, which needs a network, replaced by one function."""
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_without_a_source_every_split_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return [NATALIA]

    fake_hub(monkeypatch, load)
    written = prepare("gsm8k", tmp_path)
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert [(w.path.name, w.published) for w in written] == [("train.parquet", 7473), ("test.parquet", 1319)]


def test_a_hub_that_fails_is_a_data_error_that_offers_local_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    fake_hub(monkeypatch, load)
    text = refusal("math", tmp_path)
    assert "DigitalLearningGmbH/MATH-lighteval (train) on the Hugging Face hub cannot be loaded: no route" in text
    assert "--from" in text


def test_without_the_hubs_client_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = refusal("gsm8k", tmp_path)
    assert "pip install 'gmpo[hub]'" in text
    assert "--from" in text


# --- bad input


def test_a_malformed_row_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", NATALIA)
    source = jsonl(tmp_path / "test.jsonl", NATALIA, {"question": "q", "answer": "no number"})
    assert refusal("gsm8k", tmp_path / "out", tmp_path).startswith(
        f"{source}, row 2: `answer` does not end in `#### NUMBER` but in 'no number'"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "row", "cause"),
    [
        ("gsm8k", {"question": "q"}, "there is no column `answer`. Columns present: question"),
        ("gsm8k", {"question": 3, "answer": "#### 3"}, "`question` must be a string, found 3"),
        ("math", {"problem": "p", "solution": "no box"}, r"no \boxed{} with the answer; it ends in 'no box'"),
        ("math", {"problem": "p", "solution": r"\boxed{1"}, "is not closed"),
        ("math", {"problem": "p", "solution": r"\boxed"}, "is not closed"),
        ("gsm8k", {"prompt": "q", "reward_model": {}}, "`prompt` must be a list of messages, found 'q'"),
        ("gsm8k", {"prompt": [{"content": "q"}], "reward_model": {}}, "must hold the string `ground_truth`"),
        ("amc23", {"question": "q", "answer": [1, 2]}, "`answer` must be one answer, found [1, 2]"),
        ("countdown", {"nums": "1 2", "target": 3}, "`nums` must be a list of integers, found '1 2'"),
        ("countdown", {"nums": [1, 2], "target": "3"}, "`target` must be an integer, found '3'"),
    ],
)
def test_rows_of_another_format_say_what_is_wrong(tmp_path: Path, name: str, row: Any, cause: str) -> None:
    text = refusal(name, tmp_path / "out", jsonl(tmp_path / "train.jsonl", row))
    assert "train.jsonl, row 1: " in text
    assert cause in text


def test_names_sizes_and_sources_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    assert "there is no data set 'gsm8'. Did you mean gsm8k? Known: gsm8k, math, " in refusal("gsm8", tmp_path)
    assert "ask for at least 1 row" in refusal("stories", tmp_path, size=0)
    assert "made, not read: leave out --from" in refusal("stories", tmp_path, tmp_path / "x.jsonl")
    assert "there is no file" in refusal("gsm8k", tmp_path, tmp_path / "train.jsonl")
    assert "holds no train or test file" in refusal("gsm8k", tmp_path, tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    assert "train.jsonl has no rows" in refusal("gsm8k", tmp_path / "out", tmp_path / "train.jsonl")
    (tmp_path / "train.json").write_text("[]")
    assert "two files of split train, train.json and train.jsonl" in refusal("gsm8k", tmp_path / "out", tmp_path)


@pytest.mark.parametrize(("name", "held_out"), [("countdown", 1024), ("stories", 512)])
def test_a_size_beyond_what_differs_or_fits_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, held_out: int
) -> None:
    there = {"countdown": countdown, "stories": stories}[name].DISTINCT - held_out
    assert f"there are {there:,} " in refusal(name, tmp_path, size=there + 1)
    with pytest.raises(DataError, match=r"take 2,000,000 GB of memory or more, and this machine has [0-9,]+\. Ask"):
        require_memory(10**12)
    require_memory(1000)


def test_all_stories_that_differ_are_those_of_the_count() -> None:
    @functools.cache
    def after(total: int, sentences: int) -> int:
        operations = stories.OPERATIONS.values() if sentences else ()
        steps = [(operation, operand) for operation in operations for operand in operation.operands(total)]
        return sum(after(one.exact(total, operand), sentences - 1) for one, operand in steps) if sentences else 1

    starts = range(stories.SMALLEST, stories.LARGEST + 1)
    assert sum(after(start, count) for count in stories.SENTENCES for start in starts) == stories.DISTINCT


def test_all_countdown_tasks_of_three_numbers_that_differ_are_those_of_the_count() -> None:
    """Those of four, counted the same way, take a minute in C. Enumerated: numbers in any order, any two operations."""
    a, b, c = np.meshgrid(*[np.arange(1, countdown.LARGEST_NUMBER + 1)] * 3, indexing="ij")
    numbers = np.sort(np.stack([a, b, c]).reshape(3, -1), axis=0)
    code = (numbers[0] * 100 + numbers[1]) * 100 + numbers[2]
    found = np.zeros((10**6, 100), dtype=bool)
    for one, two in itertools.product("+-*/", repeat=2):
        above, below = a.ravel(), np.ones(a.size, dtype=np.int64)
        for sign, number in ((one, b.ravel()), (two, c.ravel())):
            above = above + {"+": 1, "-": -1}.get(sign, 0) * number * below
            above, below = above * number if sign == "*" else above, below * number if sign == "/" else below
        right = (above > 0) & (above % below == 0) & (above <= countdown.LARGEST_TARGET * below)
        found[code[right], above[right] // below[right]] = True
    assert int(found.sum()) == 580_640


def test_the_pace_is_told_with_what_is_left_and_not_too_often() -> None:
    told: list[str] = []
    seconds = iter([0.0, 10.0, 30.0, 31.0, 60.0, 60.0, 100.0, 200.0])
    pace = Pace(told.append, 30.0, lambda: next(seconds))
    for done in (1, 500, 1000, 1001, 2000):
        pace("train", done, 10_000)
    for done, total in ((1, None), (70, None), (80, 80)):
        pace("test", done, total)
    assert told == [
        "train: 1,000 of 10,000 rows, about 0:04:30 to go",
        "train: 2,000 of 10,000 rows, about 0:04:00 to go",
        "test: 70 rows so far",
    ]


def test_every_row_that_is_made_or_read_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    prepare("countdown", tmp_path, size=3, progress=lambda *row: told.append(row))
    assert told == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]
    told.clear()
    prepare("stories", tmp_path, size=2, progress=lambda *row: told.append(row))
    assert told[:2] == [("train", 1, 2), ("train", 2, 2)]


def test_every_entry_of_the_table_tells_what_it_is() -> None:
    assert all(entry.about for entry in DATASETS.values())


def test_rows_of_another_known_set_are_refused_and_those_of_its_own_names_or_of_none_are_not(tmp_path: Path) -> None:
    names = {name: PUBLISHED[name].data_source for name in PUBLISHED}

    def row(source: str | None) -> dict[str, Any]:
        truth = json.dumps({"numbers": [1, 2], "target": 3}) if source == "countdown" else "3"
        named = {} if source is None else {"data_source": source}
        prompt = [{"role": "user", "content": "1 + 2 = ?"}]
        return {**named, "prompt": prompt, "reward_model": {"ground_truth": truth}}

    for name, entry in PUBLISHED.items():
        for other, source in names.items():
            file = jsonl(tmp_path / "rows.jsonl", row(source))
            if plain_name(source) in entry.names:
                assert prepare(name, tmp_path / "out", file)[0].rows == 1
            else:
                assert {name, other} != {"math", "math_lvl3to5"}  # one data_source for both
                assert f"`data_source` is {source!r}, another" in refusal(name, tmp_path / "bad", file)
        assert prepare(name, tmp_path / "out", jsonl(tmp_path / "rows.jsonl", row(None)))[0].rows == 1
    allowed = {(n, o) for n in names for o in names if n != o and plain_name(names[o]) in PUBLISHED[n].names}
    parts = {("math", "math_lvl3to5"), ("math_lvl3to5", "math"), ("math500", "math"), ("math500", "math_lvl3to5")}
    assert allowed == {*parts, ("aime24", "dapo_math_17k")}
    assert not (tmp_path / "bad").exists()
