r"""Answers that a policy may stumble upon, or write on purpose, to hang, flood or fool a grader.

Every one is put to every scorer, in a real worker with a time limit and a memory limit. None may count as correct that
is not, none may take longer than its limit, and only the few named here may take it at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gmpo.rewards.bounds import beyond_reason
from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec
from gmpo.rewards.scorers import SCORERS
from gmpo.rewards.verdict import Verdict

TRUTH = "42"
LIMIT_S, MEMORY_MB = 1.0, 512

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
    "Arabic digits": "\u0664\u0662",
    "full-width digits": "\uff14\uff12",
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

TAKES_ITS_TIME = {"a huge binomial", "a power of a sum"}
"""Left to the time limit: nothing in their form says how much they cost."""

FORMS = ("\\boxed{{{}}}", "#### {}", "Answer: {}", "<answer>{}</answer>", "so it is ${}$")
DISTINCT = ("math_verify", "openai/gsm8k", "lighteval/MATH", "math_dapo", "gmpo/stories")
"""A data source for each scorer that grades texts."""


@pytest.fixture(scope="module", params=DISTINCT)
def scored(request: pytest.FixtureRequest) -> Iterator[tuple[str, Grader]]:
    with Grader(GraderSpec(workers=2, timeout_s=LIMIT_S, memory_mb=MEMORY_MB)) as grader:
        grader.start([request.param])
        yield request.param, grader


def grade(source: str, grader: Grader, texts: list[str]) -> list[Verdict]:
    requests = [GradeRequest(source, "?", text, TRUTH, {}, group=i) for i, text in enumerate(texts)]
    return [grade.verdict for grade in grader.grade(requests)]


def form_of(source: str) -> list[str]:
    """Where the scorer looks for an answer."""
    if source == "math_verify":
        return [FORMS[0], FORMS[3], FORMS[4]]
    return {"lighteval/MATH": [FORMS[0]], "math_dapo": [FORMS[2]]}.get(source, [FORMS[1]])


def test_the_corpus_covers_every_scorer() -> None:
    covered = {SCORERS[source].score for source in DISTINCT}
    own = {"score_countdown"}  # its answers are expressions and have a corpus of their own
    assert {scorer.score for scorer in SCORERS.values() if scorer.score.__name__ not in own} == covered


def test_a_hostile_answer_is_wrong_or_unparsed_and_never_correct(
    scored: tuple[str, Grader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, grader = scored
    cases = [(name, form.format(text)) for form in form_of(source) for name, text in INSIDE.items()]
    start = time.perf_counter()
    verdicts = grade(source, grader, [text for _, text in cases])
    seconds = time.perf_counter() - start
    judged = {Verdict.WRONG, Verdict.UNPARSED}
    for (name, text), verdict in zip(cases, verdicts, strict=True):
        allowed = judged | {Verdict.TIMEOUT} if name in TAKES_ITS_TIME else judged
        assert verdict in allowed, f"{source}: {name}: {verdict} for {text[:60]!r}"
    assert seconds < 10 + len(TAKES_ITS_TIME) * len(form_of(source)) * 3 * LIMIT_S
    assert not Path("owned").exists()


def test_a_hostile_text_is_wrong_or_unparsed(scored: tuple[str, Grader]) -> None:
    source, grader = scored
    for name, verdict in zip(WHOLE, grade(source, grader, list(WHOLE.values())), strict=True):
        assert verdict in (Verdict.WRONG, Verdict.UNPARSED), f"{source}: {name}: {verdict}"


def test_among_hostile_answers_the_right_one_is_still_right(scored: tuple[str, Grader]) -> None:
    source, grader = scored
    texts = []
    for name in ("a tower of powers", "a huge binomial", "deep braces", "an import", "emojis"):
        texts += [form_of(source)[0].format(INSIDE[name]), form_of(source)[0].format(TRUTH)]
    assert grade(source, grader, texts)[1::2] == [Verdict.CORRECT] * 5


def test_the_right_answer_behind_a_long_text_is_found(scored: tuple[str, Grader]) -> None:
    source, grader = scored
    assert grade(source, grader, ["a" * 100_000 + "\n" + form_of(source)[0].format(TRUTH)]) == [Verdict.CORRECT]


@pytest.mark.parametrize(
    "answer",
    [
        *("2^{100}", "10^{100}-1", "e^{-x^{2}}", "2^{2^{3}}", "(1+\\sqrt{2})^{50}", "100!", "1e-30", "1" * 500),
        *("\\frac{1}{1+\\frac{1}{1+x}}", "(x+1)^{10}(x-1)^{20}", "x^{y^{z}}", "\\binom{2024}{1012}", "f(g(h(x)))"),
    ],
)
def test_results_that_people_write_are_within_reason(answer: str) -> None:
    assert not beyond_reason(answer)


def test_bounds_take_time_linear_in_the_length() -> None:
    def seconds(size: int) -> float:
        texts = [sign * size for sign in ("(", "^", "{^", "9^", "!", ")^9", "9^{9", " ")]
        start = time.perf_counter()
        for text in texts:
            beyond_reason(text[:1_900] if size < 2_000 else text)
        return time.perf_counter() - start

    assert seconds(1_000_000) < 2.0


def test_an_answer_beyond_reason_is_still_right_where_it_is_the_reference() -> None:
    truth = "10^{1000000}"
    with Grader(GraderSpec(workers=1, timeout_s=5.0)) as grader:
        (found,) = grader.grade([GradeRequest("math_verify", "?", f"\\boxed{{{truth}}}", truth, {}, group=0)])
    assert found.verdict == Verdict.CORRECT
