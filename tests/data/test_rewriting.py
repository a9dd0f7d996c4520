"""Rows of verl's schema get the instruction of their scorer; repetitions and contamination are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gmpo.data import countdown
from gmpo.data.catalogue import PUBLISHED
from gmpo.data.files import write_parquet
from gmpo.data.instructions import ANSWER_LINE, BOXED, HASH, INSTRUCTIONS, TAG, bare_question
from gmpo.data.overlap import duplicates, most_alike, overlaps, words
from gmpo.data.prepare import prepare
from gmpo.data.problems import load_problems
from gmpo.data.rows import math_row
from gmpo.errors import DataError
from gmpo.rewards.agreement import asked_for
from gmpo.rewards.scorers import scorer_for

QUESTION = "What is $1+1$?"
DICE = "Two fair dice are thrown and their numbers of points are added up; find the most probable sum of both."


@pytest.mark.parametrize("form", INSTRUCTIONS)
def test_a_question_comes_back_from_under_its_instruction(form: str) -> None:
    assert bare_question(INSTRUCTIONS[form].ask(QUESTION)) == (QUESTION, form)


def test_a_prompt_without_a_known_instruction_stays_as_it_is() -> None:
    assert bare_question(f" {QUESTION} Reply in French.") == (f"{QUESTION} Reply in French.", None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_data_set_asks_for_what_its_scorer_reads(name: str) -> None:
    entry = PUBLISHED[name]
    reads = scorer_for(entry.data_source).reads
    assert asked_for(INSTRUCTIONS[entry.form].ask(QUESTION)) == {entry.form}
    assert not reads or entry.form in reads


def test_a_boxed_row_becomes_a_row_that_asks_for_an_answer_line(tmp_path: Path) -> None:
    boxed = math_row("someone's", INSTRUCTIONS[BOXED].ask(QUESTION), "2", {"index": 3, "level": None})
    (written,) = prepare("aime24", tmp_path / "out", write_parquet([boxed], tmp_path / "rows.parquet"))
    (problem,) = load_problems(written.path)
    assert problem.prompt[0]["content"] == INSTRUCTIONS[ANSWER_LINE].ask(QUESTION)
    assert (problem.data_source, problem.ground_truth) == ("aime24", "2")
    assert problem.extra == {"ability": "math", "index": 3, "question": QUESTION}


def test_a_system_message_survives(tmp_path: Path) -> None:
    row = math_row("x", INSTRUCTIONS[HASH].ask(QUESTION), "2", {"index": 0})
    row["prompt"] = [{"role": "system", "content": "Be brief."}, *row["prompt"]]
    (written,) = prepare("math500", tmp_path / "out", write_parquet([row], tmp_path / "rows.parquet"))
    (problem,) = load_problems(written.path)
    assert [m["role"] for m in problem.prompt] == ["system", "user"]
    assert problem.prompt[1]["content"].endswith("\\boxed{}.")


def test_the_hundredfold_repetition_of_dapo_is_undone(tmp_path: Path) -> None:
    rows = [
        math_row("math_dapo", INSTRUCTIONS[ANSWER_LINE].ask(f"q{i}"), str(i), {"index": f"id{i}"}) for i in range(7)
    ]
    source = write_parquet(rows * 100, tmp_path / "dapo.parquet")
    (written,) = prepare("dapo_math_17k", tmp_path / "out", source)
    assert (written.rows, written.source_rows, written.repeats, written.published) == (7, 7, 693, 17917)


@pytest.mark.parametrize(
    ("name", "row", "question", "truth"),
    [
        ("amc23", {"question": QUESTION, "answer": 27.0}, QUESTION, "27"),
        ("olympiadbench", {"question": QUESTION, "final_answer": ["$\\frac{1}{2}$"]}, QUESTION, "\\frac{1}{2}"),
        ("aime25", {"problem": QUESTION, "answer": "70"}, QUESTION, "70"),
        ("aime24", {"problem": QUESTION, "answer": "033"}, QUESTION, "33"),
        ("aime24", {"problem": QUESTION, "answer": "000"}, QUESTION, "0"),
        ("olympiadbench", {"question": QUESTION, "final_answer": ["$69$,$84$"]}, QUESTION, "69,84"),
        ("olympiadbench", {"question": QUESTION, "final_answer": ["$-1$, $2$"]}, QUESTION, "-1, 2"),
        (
            "olympiadbench",
            {"question": QUESTION, "final_answer": ["$f(x)=x$, where $x>0$"]},
            QUESTION,
            "$f(x)=x$, where $x>0$",
        ),
        ("minerva", {"question": QUESTION, "answer": "\\$36"}, QUESTION, "\\$36"),
        ("math500", {"problem": QUESTION, "answer": "(3, 1)", "subject": "Algebra", "level": 2}, QUESTION, "(3, 1)"),
    ],
)
def test_rows_of_the_sets_own_formats_are_read(
    tmp_path: Path, name: str, row: dict[str, Any], question: str, truth: str
) -> None:
    source = tmp_path / "test.jsonl"
    source.write_text(json.dumps(row) + "\n")
    (problem,) = load_problems(prepare(name, tmp_path / "out", source)[0].path)
    assert bare_question(problem.prompt[0]["content"])[0] == question
    assert problem.ground_truth == truth


# --- the countdown game


def test_made_games_can_be_won_and_no_test_game_is_trained_on() -> None:
    test = countdown.make_rows(50, seed=1, split="test")
    train = countdown.make_rows(200, seed=1, split="train", exclude=countdown.keys_of(test))
    assert not countdown.keys_of(test) & countdown.keys_of(train)
    assert len(countdown.keys_of(train)) == 200
    score = scorer_for("countdown").score
    for row in train + test:
        truth = row["reward_model"]["ground_truth"]
        assert score(f"<answer>{row['extra_info']['answer']}</answer>", truth, {}).score == 1.0
        assert bare_question(row["prompt"][0]["content"])[1] == TAG
    assert countdown.make_rows(50, seed=1, split="test") == test
    assert countdown.make_rows(50, seed=2, split="test") != test


# --- overlap


def test_capitals_punctuation_and_spacing_make_no_other_question() -> None:
    assert words("Find $x$, if\\, $\\dfrac12 x=3$!") == words("find x if \\frac12 x = 3")
    assert words("2 + 3") != words("2 - 3")
    assert duplicates([DICE, DICE.upper(), "another", "another."]) == 2


def test_a_question_is_found_word_for_word_nearly_or_not_at_all() -> None:
    tokens = DICE.split()
    changed = " ".join([*tokens[:-4], "greatest", *tokens[-3:]])
    elsewhere = "something else entirely that nobody has asked before in this way at all"
    half = " ".join([*tokens[:9], elsewhere])
    (exact,) = overlaps(["a b c", DICE.replace(";", ",")], [DICE])
    assert (exact.train, exact.evaluation, exact.exact) == (1, 0, True)
    (near,) = overlaps([changed], [DICE])
    assert not near.exact
    assert overlaps([half], [DICE]) == []
    assert overlaps(["short question"], ["short question"])[0].exact
    assert overlaps(["short question one"], ["short question two"]) == []


def test_the_most_similar_training_problem_is_named_and_an_exact_one_beats_a_near_one() -> None:
    near = DICE.replace("most probable", "least probable")
    assert [(o.train, o.exact) for o in most_alike(overlaps([near, DICE], [DICE]))] == [(1, True)]
    assert [(o.train, o.exact) for o in most_alike(overlaps([DICE, near], [DICE]))] == [(0, True)]


def test_contamination_is_reported_and_on_demand_removed(tmp_path: Path) -> None:
    def rows(*questions: str) -> list[dict[str, Any]]:
        return [math_row("x", INSTRUCTIONS[BOXED].ask(q), "7", {"index": i}) for i, q in enumerate(questions)]

    source = write_parquet(rows(DICE, "free", DICE.upper()), tmp_path / "train.parquet")
    held = write_parquet(rows("unknown", DICE), tmp_path / "eval.parquet")
    (written,) = prepare("math_lvl3to5", tmp_path / "out", source, against=[held])
    (found,) = written.against
    assert (found.problems, found.exact, found.near, found.dropped) == (2, 1, 0, 0)
    assert found.examples == (DICE,)
    assert (written.rows, written.duplicates) == (3, 1)
    (cleaned,) = prepare("math_lvl3to5", tmp_path / "clean", source, against=[held], drop=True)
    assert (cleaned.rows, cleaned.against[0].dropped) == (1, 2)
    assert [p.extra["question"] for p in load_problems(cleaned.path)] == ["free"]
    with pytest.raises(DataError, match="--against looks into the train file, and there is none: test"):
        prepare("aime24", tmp_path / "none", held, against=[held])
