"""The real data sets, where the shared folder lies beside the repository."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from gmpo.data import gsm8k, math
from gmpo.data.files import row_count
from gmpo.data.prepare import prepare
from gmpo.data.problems import load_problems

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

if not DATA.is_dir():
    pytest.skip("the shared data sets are not here", allow_module_level=True)

ROWS = {
    name: int(count.replace(",", ""))
    for name, count in re.findall(
        r"^\| `([\w/]+\.parquet)` \| ([\d,]+) \| [\d,]+ \| `\w{64}` \| [^|]+ \| [^|]+ \|$",
        (DATA / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}
"""File -> rows, as the table of data sets in the folder's README says."""


def test_the_readme_lists_every_data_set_of_the_folder() -> None:
    files = {str(path.relative_to(DATA)) for path in DATA.rglob("*.parquet")}
    assert files - {"model_outputs_dev.parquet"} == set(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_file_loads_with_the_rows_that_its_readme_counts(name: str) -> None:
    problems = load_problems([DATA / name])
    assert len(problems) == row_count(DATA / name) == ROWS[name]
    assert len({problem.id for problem in problems}) == len(problems)


def test_gsm8k_and_math_together_make_the_epoch_of_the_published_run() -> None:
    problems = load_problems([DATA / "gsm8k/train.parquet", DATA / "math/train.parquet"])
    assert len({problem.id for problem in problems}) == 14_973
    assert Counter(p.data_source for p in problems) == {"openai/gsm8k": 7473, "lighteval/MATH": 7500}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_ground_truth_of_gsm8k_is_what_its_solutions_say(split: str) -> None:
    for problem in load_problems(DATA / f"gsm8k/{split}.parquet"):
        question = problem.prompt[0]["content"].removesuffix(f" {gsm8k.INSTRUCTION}")
        row = gsm8k.convert({"question": question, "answer": problem.extra["answer"]}, split, 0)
        assert row["reward_model"]["ground_truth"] == problem.ground_truth
        assert row["prompt"] == list(problem.prompt)


def test_gsm8k_from_files_of_its_own_format_has_its_published_counts(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines = []
        for problem in load_problems(DATA / f"gsm8k/{split}.parquet"):
            question = problem.prompt[0]["content"].removesuffix(f" {gsm8k.INSTRUCTION}")
            lines.append(json.dumps({"question": question, "answer": problem.extra["answer"]}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    written = prepare("gsm8k", tmp_path / "out", tmp_path)
    assert [(w.rows, w.as_published) for w in written] == [(7473, True), (1319, True)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_ground_truth_of_math_is_what_its_solutions_box(split: str) -> None:
    for problem in load_problems(DATA / f"math/{split}.parquet"):
        statement = problem.prompt[0]["content"].removesuffix(f" {math.INSTRUCTION}")
        row = math.convert({"problem": statement, "solution": problem.extra["answer"]}, split, 0)
        assert row["reward_model"]["ground_truth"] == problem.ground_truth
        assert row["prompt"] == list(problem.prompt)
