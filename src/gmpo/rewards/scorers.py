"""The table `data_source` -> scorer, as verl's `default_compute_score` chooses, and how a run chooses otherwise.

A scorer is `(text, ground_truth, extra_info, **options) -> Grade`. It runs in a worker of `rewards.grader`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gmpo.errors import ConfigError, DataError
from gmpo.rewards import answers
from gmpo.rewards.countdown import score_countdown
from gmpo.rewards.finding import (
    REQUIRE,
    THINKING,
    THINKING_TAGS,
    Require,
    Thinking,
    candidates,
    without_thinking,
)
from gmpo.rewards.math import same_as_written, same_hendrycks, same_minerva, same_number
from gmpo.rewards.reading.judge import Judgement, judge, readable, reference_text
from gmpo.rewards.reading.limits import MAX_CHARS, TooLarge
from gmpo.rewards.verdict import Grade, Verdict

_STRICT_BOX_CHARS = 100
_SHOWN = 200
"""Characters that are kept of an answer that was refused."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer and what its callers must know."""

    score: Callable[..., Grade]
    """`(text, ground_truth, extra_info, **options) -> Grade`."""
    options: Mapping[str, tuple[Any, ...]]
    """Option -> the values it may have."""
    reads: frozenset[str] = frozenset()
    """Forms of answers it reads, names of `gmpo.rewards.agreement.FORMS`; empty where it reads any."""
    present: Callable[[str], str] | None = None
    """Reference -> an answer that gives it in the form that the scorer reads; None where a reference is no answer."""
    load: Callable[[], None] | None = None
    """Imports what the scorer needs, so that the import does not count against the first answer's time limit."""


def judged(correct: bool, pred: str | None, *, right: float = 1.0, wrong: float = 0.0) -> Grade:
    """A grade in verl's terms: unparsed when no answer was found, `acc` 1 or 0 beside the score."""
    if pred is None:
        return Grade(Verdict.UNPARSED, wrong, extra={"acc": 0})
    verdict = Verdict.CORRECT if correct else Verdict.WRONG
    return Grade(verdict, right if correct else wrong, pred=pred, extra={"acc": int(correct)})


def _after_thinking(score: Callable[..., Grade]) -> Callable[..., Grade]:
    """The scorer with the options `thinking` and `thinking_tags`, see `finding.without_thinking`.

    Where the thinking does not end, or is missing though required, there is no answer.
    """

    @functools.wraps(score)
    def scored(
        text: str,
        ground_truth: str,
        extra_info: Mapping[str, Any],
        *,
        thinking: Thinking = "strip",
        thinking_tags: tuple[str, str] = THINKING_TAGS,
        **options: Any,
    ) -> Grade:
        rest = without_thinking(text, thinking, thinking_tags)
        return score("" if rest is None else rest, ground_truth, extra_info, **options)

    return scored


_GSM8K_METHODS: Mapping[str, tuple[Callable[[str], str | None], Callable[[str, str], bool]]] = {
    "strict": (answers.hash_number, same_number),
    "flexible": (answers.last_number_as_written, same_as_written),
    "flexible_no_commas": (answers.last_number, same_number),
}


@_after_thinking
def score_gsm8k(text: str, ground_truth: str, extra_info: Mapping[str, Any], *, method: str = "strict") -> Grade:
    """GSM8K, 0 or 1: the number after the last `####` (`strict`, verl's default) or the last number of the response.

    Places and spellings are verl's; two plain decimal numbers are compared by value, where verl compares strings and
    refuses `4.00` for `4`. `flexible` is verl's rule, for which `6,250` is not `6250`; `flexible_no_commas` removes
    commas and a full stop at the end.
    """
    find, same = _GSM8K_METHODS[method]
    pred = find(text)
    return judged(pred is not None and same(pred, ground_truth), pred)


@_after_thinking
def score_math(text: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Grade:
    """MATH, 0 or 1: the last box and the reference are one string after the normalisation of the MATH authors."""
    pred = answers.last_boxed(text)
    return judged(pred is not None and same_hendrycks(pred, ground_truth), pred)


@_after_thinking
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
    right = pred is not None and any(same_minerva(pred, gold) for gold in (ground_truth, _unpadded(ground_truth)))
    return judged(right, pred, wrong=-1.0)


def _unpadded(ground_truth: str) -> str:
    """AIME's own way to write an answer, `033`, is the number 33; other references stay as they are."""
    bare = ground_truth.strip()
    return str(int(bare)) if re.fullmatch("0[0-9]{1,2}", bare) else ground_truth


@_after_thinking
def score_story(text: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Grade:
    """The built-in stories, 0 or 1: the digits after the last `####`, blanks between them removed."""
    pred = answers.story_answer(text)
    return judged(pred == ground_truth, pred)


@_after_thinking
def score_math_verify(
    text: str, ground_truth: str, extra_info: Mapping[str, Any], *, require: Require = "any"
) -> Grade:
    """Any mathematical answer, 0 or 1: both are read whole and say the same (`rewards.reading`).

    Where the answer is: `rewards.finding`. An answer that cannot be read as a whole is unparsed; one that would cost
    too much to read or to compute is refused.

    Args:
        require: `boxed` takes only a box, `phrase` also `<answer>` tags, `####`, "the answer is" and a final count in
            bold, `any` also a last formula and a short text as a whole.
    """
    first: str | None = None
    try:
        for candidate in candidates(text, require):
            first = candidate if first is None else first
            judgement = judge(ground_truth, candidate)
            if judgement is Judgement.EQUAL:
                return judged(True, candidate)
            if judgement is Judgement.DIFFERENT and readable(candidate):
                return judged(False, candidate)
    except TooLarge as error:
        return refused(str(error), first)
    return judged(False, None) if first is None else _unread(ground_truth, first)


def _unread(ground_truth: str, answer: str) -> Grade:
    """The grade of an answer that was found and is not one that can be read, or is words."""
    words = judge(ground_truth, answer) is Judgement.DIFFERENT
    return Grade(Verdict.WRONG if words else Verdict.UNPARSED, 0.0, pred=answer[:MAX_CHARS], extra={"acc": 0})


def refused(why: str, pred: str | None) -> Grade:
    """The grade of an answer that would cost too much: nobody judged it, and that is its own fault."""
    shown = None if pred is None else pred[:_SHOWN]
    return Grade(Verdict.TIMEOUT, 0.0, pred=shown, extra={"acc": 0}, reason=f"refused: {why}", refused=True)


def _boxed(reference: str) -> str:
    return f"\\boxed{{{reference}}}"


def _presented(reference: str) -> str:
    """A reference of the general scorer as an answer: only the values of a list, only what a solution's box holds."""
    return _boxed(reference_text(reference))


_GSM8K = Scorer(score_gsm8k, {"method": tuple(_GSM8K_METHODS)}, frozenset({"hash"}), "#### {}".format)
_MATH = Scorer(score_math, {}, frozenset({"boxed"}), _boxed)
_DAPO = Scorer(score_dapo, {"strict_box_verify": (False, True)}, frozenset({"answer_line"}), "Answer: {}".format)
_STORY = Scorer(score_story, {}, frozenset({"hash"}), "#### {}".format)
_COUNTDOWN = Scorer(_after_thinking(score_countdown), {"format_score": (0.0, 0.1)}, frozenset({"tag", "boxed"}))
_MATH_VERIFY = Scorer(score_math_verify, {"require": REQUIRE}, present=_presented)

NAMED: Mapping[str, Scorer] = {
    "gsm8k": _GSM8K,
    "math": _MATH,
    "math_dapo": _DAPO,
    "aime": _DAPO,
    "math_verify": _MATH_VERIFY,
    "countdown": _COUNTDOWN,
    "stories": _STORY,
}
"""Name of a scorer -> it, for `reward_model.scorer` and `.scorers`."""

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
    "name a scorer with reward_model.scorer or, for this source alone, reward_model.scorers (math_verify reads "
    "numbers, formulas and words), or set custom_reward_function.path to a Python file and "
    "custom_reward_function.name to a function compute_score(data_source, solution_str, ground_truth, extra_info)"
)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a run chooses its scorers, and what it sets for all of them."""

    scorer: str | None = None
    """Name of the scorer of all data sources; None leaves it to `SCORERS`."""
    scorers: Mapping[str, str] = field(default_factory=dict)
    """Data source -> name of its scorer; goes before `scorer`."""
    thinking: Thinking | None = None
    """What becomes of thinking. None: the scorers' own way, which is `strip`."""
    thinking_tags: tuple[str, str] = THINKING_TAGS
    """What begins and ends it."""
    require: Require | None = None
    """Where the general scorer looks for an answer. None: its own way, which is `any`."""

    def scorer_for(self, data_source: str) -> Scorer:
        """The scorer of a data source. Raises ConfigError, DataError for a name or a source without one."""
        name = self.scorers.get(data_source, self.scorer)
        return scorer_for(data_source) if name is None else named_scorer(name)

    def options_for(self, data_source: str) -> dict[str, Any]:
        """Options of the scorer of a data source."""
        options: dict[str, Any] = {} if self.thinking is None else {"thinking": self.thinking}
        if self.thinking_tags != THINKING_TAGS:
            options["thinking_tags"] = self.thinking_tags
        if self.require is not None and "require" in self.scorer_for(data_source).options:
            options["require"] = self.require
        return options

    def check(self) -> None:
        """Raises ConfigError for a name that no scorer has, and for tags that are none."""
        for name in (*([] if self.scorer is None else [self.scorer]), *self.scorers.values()):
            named_scorer(name)
        if not all(tag.strip() for tag in self.thinking_tags) or len(set(self.thinking_tags)) != 2:
            raise ConfigError(
                f"reward_model.thinking_tags is {list(self.thinking_tags)}; it takes two texts, what begins thinking "
                "and what ends it."
            )


def named_scorer(name: str) -> Scorer:
    """A scorer by its name, or by the name of a data source. Raises ConfigError for another name."""
    found = NAMED.get(name)
    if found is None and name in SCORERS and not name.endswith("*"):
        found = SCORERS[name]
    if found is None:
        near = difflib.get_close_matches(name, NAMED, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no scorer {name!r}.{hint} reward_model.scorer takes {', '.join(NAMED)}.")
    return found


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


def check_options(data_source: str, options: Mapping[str, Any], scorer: Scorer | None = None) -> None:
    """Raise ConfigError when the scorer of a data source does not know an option or its value."""
    known = {**(scorer or scorer_for(data_source)).options, "thinking": THINKING}
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(known)
            raise ConfigError(f"The scorer of {data_source!r} has no option {name!r}; its options: {listed}.")
        if value not in known[name]:
            allowed = ", ".join(repr(allowed) for allowed in known[name])
            raise ConfigError(f"Option {name} of the scorer of {data_source!r} is {value!r}; allowed: {allowed}.")
