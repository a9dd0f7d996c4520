"""Where each convention finds the answer, and where it finds none."""

from __future__ import annotations

import time

import pytest

from gmpo.rewards import answers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("6 * 7 = 42\n#### 42", "42"),
        ("#### 1\nno, #### -1,250", "-1250"),
        ("#### 42.", "42."),
        ("#### $42", None),
        ("####42", None),
        ("The answer is 42", None),
        ("#### 42" + " " * 300, None),
        ("#### ４２", None),
        ("", None),
    ],
)
def test_the_strict_gsm8k_answer_is_the_last_number_after_four_hashes_in_the_last_300_characters(
    text: str, found: str | None
) -> None:
    assert answers.hash_number(text) == found


@pytest.mark.parametrize(
    ("text", "as_written", "plain"),
    [
        ("A: 6250", "6250", "6250"),
        ("so 6,250.", "6,250.", "6250"),
        ("18 eggs, or so", ",", "18"),
        ("3.5 . ", "3.5", "3.5"),
        ("-7", "-7", "-7"),
        ("costs .5", ".5", ".5"),
        ("none", None, None),
        ("٤٢", None, None),
    ],
)
def test_the_flexible_rule_of_verl_keeps_commas_and_ours_removes_them(
    text: str, as_written: str | None, plain: str | None
) -> None:
    assert answers.last_number_as_written(text) == as_written
    assert answers.last_number(text) == plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 42$ is it", "42"),
        ("\\boxed 42\nis it", "42"),
        (r"\boxed {42}", "42"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed", None),
        (r"\boxedtext{3}", None),
        ("42", None),
    ],
)
def test_the_boxed_answer_is_what_the_last_box_holds_up_to_its_own_brace(text: str, found: str | None) -> None:
    assert answers.last_boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: 4\nI mean ANSWER : $5$ \nbye", "$5$"),
        ("The answer is 4", None),
        ("Answer: 4" + "." * 300, None),
        (r"\boxed{4}", None),
    ],
)
def test_the_dapo_answer_is_the_line_after_the_last_answer_colon(text: str, found: str | None) -> None:
    assert answers.answer_line(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 5 + 7 = 4 2 ; #### 4 2", "42"),
        ("#### 42", "42"),
        ("#### 1 \n#### 4 2 \nmore", "42"),
        ("4 2", None),
        ("#### 4 2 ; 3", None),
        ("####", None),
        ("#### - 4", None),
        ("#### ４ ２", None),
    ],
)
def test_the_story_answer_is_the_digits_after_the_hashes_without_their_blanks(text: str, found: str | None) -> None:
    assert answers.story_answer(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer>1</answer> <answer> 2 </answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1", None),
        ("</answer>1<answer>", None),
        ("<answer></answer>", None),
    ],
)
def test_the_tagged_answer_is_what_the_last_whole_pair_of_tags_encloses(text: str, found: str | None) -> None:
    assert answers.tagged_answer(text) == found


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "}", "\\boxed", "#### ", "1,", "-", "Answer:", "<answer>", "</answer>"]
)
def test_no_search_is_more_than_linear_in_a_text_of_repeated_markers(piece: str) -> None:
    text = piece * 100_000
    begin = time.process_time()
    for find in (
        answers.hash_number,
        answers.last_number_as_written,
        answers.last_number,
        answers.last_boxed,
        answers.answer_line,
        answers.story_answer,
        answers.tagged_answer,
    ):
        find(text)
    assert time.process_time() - begin < 2.0  # Quadratic would take minutes.
