r"""Answers that a policy may stumble upon, or write on purpose, to hang, flood or fool a grader.

Every one is put to every scorer, in a real worker with a memory limit and a time limit that no answer comes near, on
however slow a machine: what is too large is refused by its size. None may count as correct that is not, and none may
count as a failure of the grader.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gmpo.rewards.failures import failed_share
from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec
from gmpo.rewards.reading.limits import MAX_STEPS, Steps
from gmpo.rewards.scorers import SCORERS
from gmpo.rewards.verdict import Grade, Verdict

TRUTH = "42"
LIMIT_S, MEMORY_MB = 600.0, 512

NUMBERS = {
    "a tower of powers": "9^{9^{9^{9}}}",
    "a tower without braces": "9^9^9^9",
    "a huge power": "10^{1000000000}",
    "a power of a huge power": "3^{10^{10}}",
    "powers of powers": "((((99^{99})^{99})^{99})^{99})^{99}",
    "a negative tower": "2^{-2^{-2^{9999999}}}",
    "huge terms that cancel": "10^{100000000}-10^{100000000}+42",
    "a huge factorial": "100000000!",
    "factorials of factorials": "5" + "!" * 50,
    "a huge binomial": r"\binom{10^{9}}{5\cdot 10^{8}}",
    "an exponent in e-notation": "1e999999999",
    "ten thousand digits": "9" * 10_000,
    "a hundred thousand digits": "9" * 100_000,
    "fifty thousand decimals": "42." + "3" * 50_000,
}
SHAPES = {
    "deep parentheses": "(" * 5_000 + "42" + ")" * 5_000,
    "deep braces": "{" * 20_000 + "42" + "}" * 20_000,
    "deep fractions": r"\frac{1}{" * 500 + "1" + "}" * 500,
    "deep roots": r"\sqrt{" * 300 + "2" + "}" * 300,
    "deep sines": r"\sin(" * 200 + "1" + ")" * 200,
    "deep logarithms": r"\log(" * 100 + "10^{100}" + ")" * 100,
    "a power of a sum": "(x+y+z+w)^{200}",
    "a sum to a trillion": r"\sum_{n=1}^{10^{12}} n^{-2}",
    "a product of a hundred thousand": r"\prod_{n=1}^{100000} n",
    "an integral of a tower": r"\int_0^1 x^{x^{x^x}} dx",
    "a limit": r"\lim_{x\to 0} \frac{\sin(\sin(\sin(x)))^{20}}{x^{20}}",
    "a large matrix": r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 100)] * 100) + r"\end{pmatrix}",
    "two thousand intervals": r"\cup".join(f"({i},{i + 1})" for i in range(2_000)),
    "a large set": r"\{" + ",".join(map(str, range(20_000))) + r"\}",
    "a hundred thousand letters": "a+" * 50_000 + "a",
    "equals signs": "=" * 50_000 + "42",
    "per cent signs": "%" * 50_000 + "42",
    "dots": "." * 100_000,
}
CODE = {
    "an import": "__import__('os').system('touch owned')",
    "an evaluation": "eval('2**99999999')",
    "a lambda": "(lambda f: f(f))(lambda f: f(f))",
    "a constructor": "Integer('4')*10+Symbol('x')",
    "dunder": "().__class__.__bases__[0].__subclasses__()",
}
SIGNS = {
    "a superscript": "4\u00b2",
    "a null byte": "4\x002",
    "right to left": "\u202e24",
    "a blank of no width": "4\u200b2",
    "half of a surrogate pair": "\ud800",
    "emojis": "\U0001f600" * 20_000,
    "not a number": "nan",
    "infinity": r"\infty",
    "sympy's infinity": "oo",
    "a truth": "True",
    "everything": r"(-\infty,\infty)",
    "a choice": "1,2,3,42",
    "nothing": "",
}
INSIDE = {**NUMBERS, **SHAPES, **CODE, **SIGNS}
"""Wrong answers, to be put where an answer is looked for."""

WHOLE = {
    "an open box": r"\boxed{42",
    "an open box with open braces": r"\boxed{" + "{" * 1_000 + "42",
    "twenty thousand boxes": r"\boxed{1} " * 20_000,
    "unclosed boxes in a row": r"\boxed{x^2+y " * 3_000,
    "nested boxes": r"\boxed{" * 3_000 + "1" + "}" * 3_000,
    "a hundred thousand letters without an answer": "a" * 100_000,
    "fifty thousand dollar signs": "$" * 50_000,
    "twenty thousand hash marks": "#### " * 20_000 + "4",
    "twenty thousand answers": "Answer: " * 20_000,
    "an answer behind a hundred thousand blanks": "Answer:" + " " * 100_000 + "4",
    "commas": "#### " + "," * 100_000,
    "backslashes": "\\" * 100_000,
    "open answer tags": "<answer>" * 20_000,
    "no text": "",
}
"""Whole texts that hold no right answer."""

FORMS = ("\\boxed{{{}}}", "#### {}", "Answer: {}", "<answer>{}</answer>", "so it is ${}$")
DISTINCT = ("math_verify", "openai/gsm8k", "lighteval/MATH", "math_dapo", "gmpo/stories")
"""A data source for each scorer that grades texts."""


@pytest.fixture(scope="module", params=DISTINCT)
def scored(request: pytest.FixtureRequest) -> Iterator[tuple[str, Grader]]:
    with Grader(GraderSpec(workers=2, timeout_s=LIMIT_S, memory_mb=MEMORY_MB)) as grader:
        grader.start([request.param])
        yield request.param, grader


def grade(source: str, grader: Grader, texts: list[str]) -> list[Grade]:
    return grader.grade([GradeRequest(source, "?", text, TRUTH, {}, group=i) for i, text in enumerate(texts)])


def is_refused_or_judged(grade: Grade) -> bool:
    """Neither correct, nor killed by the clock, nor an error."""
    return grade.verdict in (Verdict.WRONG, Verdict.UNPARSED) or (grade.verdict is Verdict.TIMEOUT and grade.refused)


def form_of(source: str) -> list[str]:
    """Where the scorer looks for an answer."""
    if source == "math_verify":
        return [FORMS[0], FORMS[3], FORMS[4]]
    return {"lighteval/MATH": [FORMS[0]], "math_dapo": [FORMS[2]]}.get(source, [FORMS[1]])


def test_the_corpus_covers_every_scorer() -> None:
    covered = {SCORERS[source].score for source in DISTINCT}
    own = {"score_countdown"}  # its answers are expressions and have a corpus of their own
    assert {scorer.score for scorer in SCORERS.values() if scorer.score.__name__ not in own} == covered


def test_a_hostile_answer_is_refused_wrong_or_unparsed_and_no_failure_of_the_grader(
    scored: tuple[str, Grader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, grader = scored
    cases = [(name, form.format(text)) for form in form_of(source) for name, text in INSIDE.items()]
    grades = grade(source, grader, [text for _, text in cases])
    for (name, text), found in zip(cases, grades, strict=True):
        assert is_refused_or_judged(found), f"{source}: {name}: {found.verdict} for {text[:60]!r}: {found.reason}"
    assert failed_share(grades) == 0.0
    assert not Path("owned").exists()


def test_a_hostile_text_is_wrong_or_unparsed(scored: tuple[str, Grader]) -> None:
    source, grader = scored
    for name, found in zip(WHOLE, grade(source, grader, list(WHOLE.values())), strict=True):
        assert is_refused_or_judged(found), f"{source}: {name}: {found.verdict}"


def test_among_hostile_answers_the_right_one_is_still_right(scored: tuple[str, Grader]) -> None:
    source, grader = scored
    texts = []
    for name in ("a tower of powers", "a huge binomial", "deep braces", "an import", "emojis"):
        texts += [form_of(source)[0].format(INSIDE[name]), form_of(source)[0].format(TRUTH)]
    assert [found.verdict for found in grade(source, grader, texts)[1::2]] == [Verdict.CORRECT] * 5


def test_the_right_answer_behind_a_long_text_is_found(scored: tuple[str, Grader]) -> None:
    source, grader = scored
    (found,) = grade(source, grader, ["a" * 100_000 + "\n" + form_of(source)[0].format(TRUTH)])
    assert found.verdict is Verdict.CORRECT


@pytest.mark.parametrize("name", list(INSIDE))
def test_a_hostile_answer_takes_a_bounded_number_of_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of comparing and characters read, whatever the machine: the bound of time that does not look at a clock."""
    taken = [0]
    take = Steps.take

    def counted(steps: Steps, count: int = 1) -> None:
        taken[0] += count
        take(steps, count)

    monkeypatch.setattr(Steps, "take", counted)
    for truth in (TRUTH, r"\sqrt{2}+x", "1,2"):
        SCORERS["math_verify"].score(f"\\boxed{{{INSIDE[name]}}}", truth, {})
    assert taken[0] < 3 * 3 * MAX_STEPS
