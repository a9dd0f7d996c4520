"""The stories' arithmetic against an evaluator that reads only the English, and the habits of the pupils."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.data.problems import problems_from_rows
from gmpo.data.stories import (
    OPERATIONS,
    PUPILS,
    Step,
    Story,
    demonstration,
    demonstration_rows,
    draw_stories,
    keys_of,
    problem_key,
    story_rows,
    story_text,
    true_answer,
    vocabulary,
)
from gmpo.errors import DataError

MAX = Story("max", "pens", 23, (Step("*", 2), Step("+", 7), Step("-", 8)))
STORIES = st.integers(0, 10**6).map(lambda seed: draw_stories(1, seed=seed, split="property")[0])


def totals_in_english(text: str) -> list[int]:
    """Running totals of a story, start first, from its words alone."""
    opening, *sentences, _ = text.split(" . ")
    totals = [int("".join(re.findall(r"\d", opening)))]
    for sentence in sentences:
        total, operand = totals[-1], int(next(iter(re.findall(r"\d", sentence)), 0))
        meanings = {"gets": total + operand, "gives": total - operand, "doubles": 2 * total, "sells": total / 2}
        totals.append(int(meanings[sentence.split()[0]]))
        assert totals[-1] == meanings[sentence.split()[0]], f"half of an odd number in {text!r}"
    return totals


def answer_of(worked: str) -> int:
    return int(worked.split("####")[1].replace(" ", ""))


# --- text and right answers


def test_the_story_of_max_reads_as_documented() -> None:
    assert story_text(MAX) == "max has 2 3 pens . doubles it . gets 7 more . gives 8 away . how many pens ?"
    assert demonstration(MAX, PUPILS["careful"]) == "2 3 * 2 = 4 6 ; 4 6 + 7 = 5 3 ; 5 3 - 8 = 4 5 #### 4 5"
    assert true_answer(MAX) == 45
    half = Story("ann", "cups", 12, (Step("/", 2), Step("+", 1)))
    assert story_text(half) == "ann has 1 2 cups . sells half . gets 1 more . how many cups ?"
    assert demonstration(half, PUPILS["careful"]) == "1 2 / 2 = 6 ; 6 + 1 = 7 #### 7"


@given(STORIES)
def test_the_careful_pupil_is_always_right_step_by_step(story: Story) -> None:
    totals = totals_in_english(story_text(story))
    worked = demonstration(story, PUPILS["careful"])
    equations = worked.split(" #### ")[0].replace(" ", "").split(";")
    assert len(equations) == len(story.steps) == len(totals) - 1
    for equation, before, after in zip(equations, totals, totals[1:], strict=False):
        left, right = equation.split("=")
        assert int(re.split(r"[-+*/]", left)[0]) == before
        assert eval(left) == int(right) == after
    assert answer_of(worked) == totals[-1] == true_answer(story)


@given(STORIES)
def test_totals_stay_between_2_and_99_and_stories_have_2_to_4_sentences(story: Story) -> None:
    totals = totals_in_english(story_text(story))
    assert all(2 <= total <= 99 for total in totals)
    assert 2 <= len(story.steps) <= 4


# --- the class


@given(STORIES)
def test_the_hasty_pupil_answers_the_story_without_its_last_sentence_and_is_always_wrong(story: Story) -> None:
    worked = demonstration(story, PUPILS["hasty"])
    assert answer_of(worked) == totals_in_english(story_text(story))[-2] != true_answer(story)
    assert worked.count("=") == len(story.steps) - 1


@pytest.mark.parametrize(
    ("total", "sign", "operand", "written"),
    [
        (47, "+", 6, 43),  # 7 + 6 = 13: the ten is lost
        (95, "+", 7, 92),
        (42, "+", 6, 48),  # nothing to carry
        (52, "-", 7, 55),  # 12 - 7 = 5: the ten is not paid for
        (58, "-", 7, 51),
        (47, "*", 2, 84),  # 2 * 7 = 14: the ten is lost
        (34, "*", 2, 68),
        (36, "/", 2, 13),  # 3 / 2 = 1: the half ten is not handed down
        (48, "/", 2, 24),
        (12, "/", 2, 1),
    ],
)
def test_without_carrying_the_digits_are_computed_apart(total: int, sign: str, operand: int, written: int) -> None:
    assert OPERATIONS[sign].without_carry(total, operand) == written


def test_without_carrying_results_stay_in_0_to_99_and_are_right_exactly_when_nothing_is_to_be_carried() -> None:
    for total in range(100):
        ones, tens = total % 10, total // 10
        for k in range(1, 10):
            assert (OPERATIONS["+"].without_carry(total, k) == total + k) == (ones + k < 10)
            assert (OPERATIONS["-"].without_carry(total, k) == total - k) == (ones >= k)
        assert (OPERATIONS["*"].without_carry(total, 2) == 2 * total) == (ones < 5 and tens < 5)
        if total % 2 == 0:
            assert (OPERATIONS["/"].without_carry(total, 2) == total // 2) == (tens % 2 == 0)
        for sign, operands in (("+", range(1, 10)), ("-", range(1, 10)), ("*", (2,)), ("/", (2,))):
            assert all(0 <= OPERATIONS[sign].without_carry(total, k) <= 99 for k in operands)


def test_the_hasty_pupil_without_carry_goes_on_from_the_wrong_total() -> None:
    # 23 doubled needs no carry; 46 + 7 loses one and becomes 43; the last sentence is overlooked
    assert demonstration(MAX, PUPILS["hasty_without_carry"]) == "2 3 * 2 = 4 6 ; 4 6 + 7 = 4 3 #### 4 3"


def test_a_third_of_the_class_is_careful_and_three_tenths_of_the_others_forget_to_carry() -> None:
    kinds = Counter(row["extra_info"]["pupil"] for row in demonstration_rows(6000, seed=0))
    assert kinds.keys() == PUPILS.keys()
    assert sum(pupil.share for pupil in PUPILS.values()) == pytest.approx(1)
    assert kinds["careful"] / 6000 == pytest.approx(0.35, abs=0.02)
    assert kinds["hasty_without_carry"] / (6000 - kinds["careful"]) == pytest.approx(0.30, abs=0.025)


def test_the_ground_truth_of_a_demonstration_is_right_whatever_the_pupil_wrote() -> None:
    rows = demonstration_rows(500, seed=3)
    for row in rows:
        assert row["reward_model"]["ground_truth"] == str(totals_in_english(row["prompt"][0]["content"])[-1])
    right = [answer_of(r["extra_info"]["answer"]) == int(r["reward_model"]["ground_truth"]) for r in rows]
    assert all(ok for ok, r in zip(right, rows, strict=True) if r["extra_info"]["pupil"] == "careful")
    assert 0.25 < sum(right) / 500 < 0.45


# --- what a model must read and write


def test_every_word_is_in_the_vocabulary_and_every_word_of_the_vocabulary_occurs() -> None:
    rows = demonstration_rows(3000, seed=1)
    used = {w for r in rows for text in (r["prompt"][0]["content"], r["extra_info"]["answer"]) for w in text.split()}
    assert used == set(vocabulary())
    assert len(vocabulary()) == len(used) == 42


def test_answers_with_their_end_token_fit_into_48_tokens_and_prompts_into_32() -> None:
    rows = demonstration_rows(5000, seed=2)
    longest = Story("ann", "cups", 99, (Step("-", 9), Step("-", 9), Step("+", 9), Step("+", 9)))
    assert len(demonstration(longest, PUPILS["careful"]).split()) == 34
    assert max(len(row["extra_info"]["answer"].split()) for row in rows) == 34 <= 47
    assert max(len(row["prompt"][0]["content"].split()) for row in rows) <= 32


# --- splits


def test_the_key_is_of_the_numbers_and_operations_alone() -> None:
    keys = {
        problem_key(MAX),
        problem_key(Story("ann", "cups", MAX.start, MAX.steps)),
        problem_key(Story("max", "pens", 24, MAX.steps)),
        problem_key(Story("max", "pens", 23, MAX.steps[:2])),
        problem_key(Story("max", "pens", 23, (MAX.steps[0], MAX.steps[2], MAX.steps[1]))),
    }
    assert len(keys) == 4


def test_no_held_out_problem_has_the_numbers_of_a_training_problem_and_no_two_are_alike() -> None:
    test = story_rows(512, seed=0, split="test")
    held_out = keys_of(test)
    assert len(held_out) == 512
    train = story_rows(3000, seed=0, split="train", exclude=held_out)
    shown = demonstration_rows(3000, seed=0, exclude=held_out)
    assert not held_out & (keys_of(train) | keys_of(shown))
    # without the exclusion they would meet: the check above is able to fail
    assert held_out & keys_of(story_rows(3000, seed=0, split="train"))


def test_rows_are_a_function_of_seed_and_split() -> None:
    assert story_rows(50, seed=1, split="a") == story_rows(50, seed=1, split="a")
    assert demonstration_rows(50, seed=1) == demonstration_rows(50, seed=1)
    drawn = [keys_of(story_rows(50, seed=s, split=p)) for s, p in ((1, "a"), (2, "a"), (1, "b"))]
    assert len(set(drawn)) == 3


def test_drawing_stories_leaves_the_global_random_numbers_alone() -> None:
    random.seed(0)
    expected = random.random()
    random.seed(0)
    demonstration_rows(5, seed=1)
    assert random.random() == expected


def test_the_stories_of_seed_0_are_fixed_for_good() -> None:
    assert story_text(draw_stories(1, seed=0, split="test")[0]) == (
        "mia has 4 3 pens . gives 8 away . gives 1 away . gives 8 away . how many pens ?"
    )


def test_the_lengths_are_equally_frequent() -> None:
    lengths = Counter(len(story.steps) for story in draw_stories(3000, seed=0, split="x"))
    assert all(abs(count - 1000) < 100 for count in lengths.values())
    assert set(lengths) == {2, 3, 4}


def test_rows_are_problems_of_verls_schema() -> None:
    problem = problems_from_rows(story_rows(1, seed=0, split="test"))[0]
    assert problem.data_source == "gmpo/stories"
    assert set(problem.extra) == {"ability", "split", "index", "answer", "key"}
    assert answer_of(problem.extra["answer"]) == int(problem.ground_truth)


def test_when_everything_is_taken_numbers_repeat_but_excluded_ones_never_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmpo.data.stories.SENTENCES", (1,))
    every = keys_of(story_rows(2400, seed=0, split="all"))
    # 98 starts; gets 1-9 (45 too large), gives 1-9 (45 too small), doubles 2-49, sells half of 4, 6, .., 98
    assert len(every) == (98 * 9 - 45) + (98 * 9 - 45) + 48 + 48 == 1770
    some = frozenset(sorted(every)[:-5])
    assert keys_of(story_rows(20, seed=9, split="rest", exclude=some)) <= every - some
    with pytest.raises(DataError, match="excluded problems leave no story of 1 sentences"):
        story_rows(1, seed=9, split="rest", exclude=every)


def test_no_stories_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        story_rows(0, seed=0, split="test")
