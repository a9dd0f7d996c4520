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
from gmpo.errors import DataError
from gmpo.rewards.agreement import check_agreement

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


PREPARED = {
    "gsm8k": ("gsm8k", [7473, 1319]),
    "math": ("math", [7500, 5000]),
    "math_lvl3to5": ("math_lvl3to5_8k.parquet", [8523]),
    "dapo_math_17k": ("dapo_math_17k.parquet", [17917]),
    "math500": ("math500.parquet", [500]),
    "aime24": ("aime24.parquet", [30]),
    "aime25": ("aime25.parquet", [30]),
    "amc23": ("amc23.parquet", [40]),
    "minerva": ("minerva_math.parquet", [272]),
    "olympiadbench": ("olympiadbench.parquet", [675]),
    "countdown": ("countdown", [10240, 1024]),
}


@pytest.mark.parametrize("name", PREPARED)
def test_every_known_data_set_has_its_published_count_and_prompts_that_its_scorer_reads(
    name: str, tmp_path: Path
) -> None:
    source, counts = PREPARED[name]
    written = prepare(name, tmp_path, DATA / source)
    assert [(w.rows, w.as_published) for w in written] == [(count, True) for count in counts]
    problems = [problem for w in written for problem in load_problems(w.path)]
    check_agreement([(p.data_source, p.prompt[-1]["content"]) for p in problems])


def test_dapos_rows_as_they_lie_here_disagree_with_their_scorer() -> None:
    problems = load_problems(DATA / "dapo_math_17k.parquet")
    with pytest.raises(DataError, match="17897 of 17917 prompts of data_source 'math_dapo'"):
        check_agreement([(p.data_source, p.prompt[-1]["content"]) for p in problems])


def test_dapo_holds_problems_of_maths_test_part(tmp_path: Path) -> None:
    (written,) = prepare(
        "dapo_math_17k", tmp_path, DATA / "dapo_math_17k.parquet", against=[DATA / "math/test.parquet"]
    )
    (found,) = written.against
    assert found.problems == 5000
    assert found.exact > 900
