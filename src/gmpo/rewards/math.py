r"""Decide whether two answers are equal, as strings under three conventions. By algebra: `rewards.algebra`.

- `same_number`: GSM8K, two numbers by their value, without commas and dollar signs; `same_as_written` leaves both in.
- `same_hendrycks`: MATH, two LaTeX strings after the normalisation of Hendrycks et al. 2021 (arXiv 2103.03874).
- `same_minerva`: DAPO and AIME, two strings after the normalisation of Lewkowycz et al. 2022 (arXiv 2206.14858),
  appendix D.
"""

from __future__ import annotations

import re
from decimal import Decimal

_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_SIMPLE_FRACTION = re.compile(rf"({_INTEGER})/({_INTEGER})")


def same_number(answer: str, gold: str) -> bool:
    """Whether two numbers are the same once commas and dollar signs are removed: `"1,000"` is `"1000.0"`."""
    return same_as_written(_bare_number(answer), _bare_number(gold))


def same_as_written(answer: str, gold: str) -> bool:
    """Whether two texts are one string or, both being plain decimal numbers, exactly one value: `"4.00"` is `"4"`.

    A number with a comma, a sign of money, an exponent or a full stop at its end is not plain: `"4."` is not `"4"`.
    """
    plain = _DECIMAL.fullmatch(answer) and _DECIMAL.fullmatch(gold)
    return answer == gold or (plain is not None and Decimal(answer) == Decimal(gold))


def _bare_number(text: str) -> str:
    return text.strip().replace(",", "").replace("$", "")


def same_hendrycks(answer: str, gold: str) -> bool:
    r"""Whether two LaTeX answers are the same string after `normalize_hendrycks`: `\dfrac12` is `\frac{1}{2}`."""
    return normalize_hendrycks(answer) == normalize_hendrycks(gold)


_HENDRYCKS_REPLACED = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)


def normalize_hendrycks(text: str) -> str:
    r"""The MATH authors' form of an answer: no blanks, units, percent signs and sizes of brackets; full fractions.

    What is left of a lone `x = ...` is its right side, `.5` is `0.5`, `0.5` and `1/2` are `\frac{1}{2}`.
    """
    for before, after in _HENDRYCKS_REPLACED:
        text = text.replace(before, after)
    text = _without_unit(text).replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    text = _without_short_left_side(text)
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _with_braced_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    simple = _SIMPLE_FRACTION.fullmatch(text)
    return f"\\frac{{{simple[1]}}}{{{simple[2]}}}" if simple else text


def _without_unit(text: str) -> str:
    r"""Cut `\text{ cm}` at the end: a `\text` that starts with a blank holds a unit, if there is just one."""
    before, marker, after = text.partition("\\text{ ")
    return text if not marker or "\\text{ " in after else before


def _without_short_left_side(text: str) -> str:
    """`"k = 3"` -> `" 3"`: the left side of a single equation goes when it has at most two characters."""
    left, sign, right = text.partition("=")
    return right if sign and "=" not in right and len(left) <= 2 else text


def _with_braced_fractions(text: str) -> str:
    r"""`\frac12` and `\frac1{72}` with all their braces. What cannot be read so stays as it is."""
    head, *parts = text.split("\\frac")
    fixed = [head]
    for part in parts:
        if part.startswith("{"):
            fixed.append(part)
        elif len(part) < 2:
            return text
        else:
            denominator = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            fixed.append(f"{{{part[0]}}}{denominator}")
    return "\\frac".join(fixed)


def same_minerva(answer: str, gold: str) -> bool:
    """Whether two answers are the same string after `normalize_minerva`: `"$1,000 dollars$"` is `"1000"`."""
    return normalize_minerva(answer) == normalize_minerva(gold)


# The published lists, in their order: a later entry sees what the earlier ones left.
_MINERVA_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_MINERVA_UNITS = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points"),
    *("feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students"),
    *("childrentickets", "multiples"),
)
_MINERVA_MARKUP = (
    *("\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}"),
    *("\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)


def normalize_minerva(text: str) -> str:
    """Minerva's form of an answer: the right side of the last `=`, no articles, units, blanks, text macros and `$`."""
    text = text.rsplit("=", 1)[-1]
    for before, after in _MINERVA_REPLACED:
        text = text.replace(before, after)
    for removed in (*_MINERVA_UNITS, *_MINERVA_MARKUP):
        text = text.replace(removed, "")
    inside = text.split("$", 2)
    if len(inside) == 3:
        text = inside[1]
    for macro in ("text", "textbf", "overline"):
        text = re.sub(rf"\\{macro}\{{([^}}]*)\}}", r"\1", text)
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt([^{])", r"sqrt{\1}", text).replace("$", "")
    digits = text.replace(",", "")
    return digits if digits.isdigit() else text.strip()
