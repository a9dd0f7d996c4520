"""The table `data_source` -> scorer, as verl's `default_compute_score` chooses.

A scorer is `(text, ground_truth, extra_info, **options) -> Grade`. It runs in a worker process of `rewards.grader`,
because a malformed or huge answer may keep it busy for ever.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gmpo.errors import ConfigError, DataError
from gmpo.rewards import algebra, answers
from gmpo.rewards.bounds import MAX_CHARS, beyond_reason
from gmpo.rewards.countdown import score_countdown
from gmpo.rewards.math import same_hendrycks, same_minerva, same_number
from gmpo.rewards.verdict import Grade, Verdict

BARE_ANSWER_CHARS = 200
"""Longest response that `score_math_verify` also tries as a bare answer; it must be one line without `$`."""
_STRICT_BOX_CHARS = 100
_TEXT_CHARS = 10_000
"""Math-Verify searches this many characters at the end of a response: a hundred thousand would take it seconds."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer and what its callers must know."""

    score: Callable[..., Grade]
    """`(text, ground_truth, extra_info, **options) -> Grade`."""
    options: Mapping[str, tuple[Any, ...]]
    """Option -> the values it may have."""
    reads: frozenset[str] = frozenset()
    """Forms of answers it reads, names of `gmpo.rewards.agreement.FORMS`; empty where it reads any."""
    load: Callable[[], None] | None = None
    """Imports what the scorer needs, so that the import does not count against the first answer's time limit."""


def judged(correct: bool, pred: str | None, *, right: float = 1.0, wrong: float = 0.0) -> Grade:
    """A grade in verl's terms: unparsed when no answer was found, `acc` 1 or 0 beside the score."""
    if pred is None:
        return Grade(Verdict.UNPARSED, wrong, extra={"acc": 0})
    verdict = Verdict.CORRECT if correct else Verdict.WRONG
    return Grade(verdict, right if correct else wrong, pred=pred, extra={"acc": int(correct)})


_GSM8K_METHODS: Mapping[str, tuple[Callable[[str], str | None], Callable[[str, str], bool]]] = {
    "strict": (answers.hash_number, same_number),
    "flexible": (answers.last_number_as_written, str.__eq__),
    "flexible_no_commas": (answers.last_number, same_number),
}


def score_gsm8k(text: str, ground_truth: str, extra_info: Mapping[str, Any], *, method: str = "strict") -> Grade:
    """GSM8K, 0 or 1: the number after the last `####` (`strict`, verl's default) or the last number of the response.

    `flexible` is verl's rule, for which `6,250` is not `6250`; `flexible_no_commas` removes commas and a full stop at
    the end.
    """
    find, same = _GSM8K_METHODS[method]
    pred = find(text)
    return judged(pred is not None and same(pred, ground_truth), pred)


def score_math(text: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Grade:
    """MATH, 0 or 1: the last box and the reference are one string after the normalisation of the MATH authors."""
    pred = answers.last_boxed(text)
    return judged(pred is not None and same_hendrycks(pred, ground_truth), pred)


def score_dapo(
    text: str, ground_truth: str, extra_info: Mapping[str, Any], *, strict_box_verify: bool = False
) -> Grade:
    """DAPO and AIME, -1 or +1: the last `Answer:` line after Minerva's normalisation; a box alone is no answer.

    With `strict_box_verify` the answer is the last box within the last 100 characters, compared as it stands.
    """
    if strict_box_verify:
        pred = answers.last_boxed(text[-_STRICT_BOX_CHARS:])
        return judged(pred == ground_truth, pred, wrong=-1.0)
    pred = answers.answer_line(text)
    return judged(pred is not None and same_minerva(pred, ground_truth), pred, wrong=-1.0)


def score_story(text: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Grade:
    """The built-in stories, 0 or 1: the digits after the last `####`, blanks between them removed."""
    pred = answers.story_answer(text)
    return judged(pred == ground_truth, pred)


def score_math_verify(text: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Grade:
    """Any mathematical answer, 0 or 1: equal as strings or by algebra.

    The answer is the last box, else what `<answer>` tags enclose, else what Math-Verify finds in the response (which
    reads several boxes of one sentence together), else a short response as a whole. An answer beyond the limits of
    `rewards.bounds` is wrong without being computed.
    """
    gold = _only_box(ground_truth) or ground_truth
    boxed = answers.last_boxed(text)
    pred = boxed if boxed is not None else answers.tagged_answer(text)
    likely = pred if pred is not None else answers.last_formula(text)
    if likely is not None and beyond_reason(likely) and not beyond_reason(gold):
        return judged(False, likely[:MAX_CHARS])
    if pred is not None and same_hendrycks(pred, gold):
        return judged(True, pred)
    if pred is not None and text.count("\\boxed") <= 1:
        return judged(algebra.equal_by_math_verify(gold, pred), pred)
    found = algebra.compare_text(gold, text[-_TEXT_CHARS:])
    if found.equal or pred is not None:
        return judged(found.equal, found.pred or pred)
    bare = text.strip()
    if bare and len(bare) <= BARE_ANSWER_CHARS and not {"\n", "$"} & set(bare):
        equal = same_hendrycks(bare, gold) or algebra.equal_by_math_verify(gold, bare)
        return judged(equal, bare if equal else found.pred)
    return judged(False, found.pred)


def _only_box(text: str) -> str | None:
    return answers.last_boxed(text) if text.count("\\boxed") == 1 else None


_GSM8K = Scorer(score_gsm8k, {"method": tuple(_GSM8K_METHODS)}, frozenset({"hash"}))
_MATH = Scorer(score_math, {}, frozenset({"boxed"}))
_DAPO = Scorer(score_dapo, {"strict_box_verify": (False, True)}, frozenset({"answer_line"}))
_STORY = Scorer(score_story, {}, frozenset({"hash"}))
_COUNTDOWN = Scorer(score_countdown, {"format_score": (0.0, 0.1)}, frozenset({"tag", "boxed"}))
_MATH_VERIFY = Scorer(score_math_verify, {}, load=algebra.load)

SCORERS: Mapping[str, Scorer] = {
    "openai/gsm8k": _GSM8K,
    "lighteval/MATH": _MATH,
    "DigitalLearningGmbH/MATH-lighteval": _MATH,
    "HuggingFaceH4/MATH-500": _MATH,
    "math_dapo": _DAPO,
    "math": _DAPO,
    "math_dapo_reasoning": _DAPO,
    "aime*": _DAPO,
    "gmpo/stories": _STORY,
    "countdown": _COUNTDOWN,
    "math_verify": _MATH_VERIFY,
    "AIME*": _MATH_VERIFY,
    "amc*": _MATH_VERIFY,
    "AMC*": _MATH_VERIFY,
    "minerva*": _MATH_VERIFY,
    "olympiad*": _MATH_VERIFY,
    "numina_*": _MATH_VERIFY,
    "svamp": _MATH_VERIFY,
    "asdiv": _MATH_VERIFY,
}
"""Name, or prefix and `*`, -> scorer. An exact name takes precedence over a prefix."""

_OWN_FUNCTION = (
    "set custom_reward_function.path to a Python file and custom_reward_function.name to a function "
    "compute_score(data_source, solution_str, ground_truth, extra_info), or use data_source=math_verify for answers "
    "that are numbers or formulas"
)


def scorer_for(data_source: str) -> Scorer:
    """The scorer of a data source. Raises DataError, with the known names and the remedy, when there is none."""
    if data_source in SCORERS and not data_source.endswith("*"):
        return SCORERS[data_source]
    for pattern, scorer in SCORERS.items():
        if pattern.endswith("*") and data_source.startswith(pattern[:-1]):
            return scorer
    near = difflib.get_close_matches(data_source, SCORERS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"No scorer for data_source {data_source!r}.{hint} Known: {', '.join(SCORERS)}. To grade other data, "
        f"{_OWN_FUNCTION}."
    )


def check_options(data_source: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError when the scorer of a data source does not know an option or its value."""
    known = scorer_for(data_source).options
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"The scorer of {data_source!r} has no option {name!r}; its options: {listed}.")
        if value not in known[name]:
            allowed = ", ".join(repr(allowed) for allowed in known[name])
            raise ConfigError(f"Option {name} of the scorer of {data_source!r} is {value!r}; allowed: {allowed}.")
