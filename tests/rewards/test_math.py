"""Which answers are equal under which convention. More of the general one: `test_reading`."""

from __future__ import annotations

import pytest

from gmpo.rewards.math import (
    normalize_hendrycks,
    normalize_minerva,
    same_as_written,
    same_hendrycks,
    same_minerva,
    same_number,
)
from gmpo.rewards.reading.judge import Judgement, judge


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "$1000"),
        ("4.00", "4"),
        ("$1,000", "1000.0"),
        ("-3.50", "-3.5"),
        (".5", "0.50"),
        ("-0.0", "0"),
        ("007", "7"),
        ("0." + "3" * 60 + "0", "0." + "3" * 60),
    ],
)
def test_plain_decimal_numbers_are_compared_by_value(one: str, other: str) -> None:
    assert same_number(one, other)
    assert same_number(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("4.01", "4"),
        ("4.", "4"),
        ("4.0.0", "4"),
        ("1e1", "10"),
        ("４２", "42"),
        ("-4", "4"),
        ("", "0"),
        ("nan", "NaN"),
        # Neighbours that are one number in float64.
        ("0.3", "0.30000000000000001"),
        ("9007199254740993", "9007199254740992.0"),
    ],
)
def test_what_is_no_plain_decimal_number_is_compared_as_a_string(one: str, other: str) -> None:
    assert not same_number(one, other)
    assert not same_number(other, one)


def test_as_written_commas_stay_in_a_number() -> None:
    assert same_as_written("6250.0", "6250")
    assert not same_as_written("6,250", "6250")
    assert same_as_written("6,250", "6,250")


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", r"\frac{1}{2}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"\$10", "10"),
        (r"50\%", "50"),
        (r"10\text{ cm}", "10"),
        ("k = 3", "3"),
        ("area = 3", "area=3"),
        ("x/2", "x/2"),
        (r"\frac", r"\frac"),
        (r"\frac1", r"\frac1"),
        ("", ""),
    ],
)
def test_hendrycks_normal_form(written: str, normal: str) -> None:
    assert normalize_hendrycks(written) == normal


def test_hendrycks_equality_is_of_strings_not_of_values() -> None:
    assert same_hendrycks(r"\tfrac{1}{2} +\! \frac1{72}", r"\dfrac{1}{2} +\frac{1}{72}")
    assert not same_hendrycks(r"\frac{2}{4}", r"\frac{1}{2}")
    assert not same_hendrycks("10, 4, -2", "4, 10, -2")


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("$1,000$ dollars", "1000"),
        ("x = 5", "5"),
        (r"\text{yes}", "yes"),
        (r"\boxed{7}", "7"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"45^{\circ}", "45"),
        ("the value $33$ is it", "33"),
        (r"12 \text{m}", "12"),
    ],
)
def test_minerva_normal_form(written: str, normal: str) -> None:
    assert normalize_minerva(written) == normal


def test_minerva_equality_ignores_units_and_not_leading_zeros() -> None:
    assert same_minerva("34 dollars", "34")
    assert not same_minerva("034", "34")


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        ("1/2", r"\frac{2}{4}"),
        ("(1,2)", "(1, 2)"),
        ("x^2+2x+1", "x^2 + 2*x - (-1)"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\$36", "36"),
        ("3.83e35", r"3.83 \times 10^{35}"),
        ("1000000", "1e6"),
        (r"1 \pm \sqrt{19}", r"1 - \sqrt{19}, 1 + \sqrt{19}"),
        ("Evelyn", r"\text{evelyn}"),
        ("xy", "yx"),
    ],
)
def test_algebra_sees_through_the_way_an_answer_is_written(gold: str, pred: str) -> None:
    assert judge(gold, pred) is Judgement.EQUAL


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        ("1/2", "1/3"),
        ("x^2+1", "x^2+2"),
        ("yes", "sye"),
        ("Tom", "mot"),
        ("3.83e35", "3.83e34"),
        ("42", ""),
        ("42", "}{"),
    ],
)
def test_algebra_equates_neither_anagrams_nor_other_values_nor_what_cannot_be_read(gold: str, pred: str) -> None:
    assert judge(gold, pred) is not Judgement.EQUAL
