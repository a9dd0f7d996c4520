"""The data sets that `gmpo data` knows: where to find them, their sizes, and how their rows become verl's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gmpo.data import countdown, gsm8k, math, stories
from gmpo.data.files import Row
from gmpo.data.instructions import ANSWER_LINE, BOXED, HASH, INSTRUCTIONS, TAG, bare_question
from gmpo.data.rows import math_row, text_field
from gmpo.errors import DataError

APART = frozenset({gsm8k.DATA_SOURCE, countdown.DATA_SOURCE, stories.DATA_SOURCE})
"""Data sets that nobody publishes under another one's name, as is usual among those of competition mathematics."""


def plain_name(source: object) -> str:
    """A `data_source` without who published it, capitals and signs: `HuggingFaceH4/MATH-500` -> `math500`."""
    return "".join(sign for sign in str(source).rpartition("/")[2].casefold() if sign.isalnum())


@dataclass(frozen=True, slots=True)
class Published:
    """A published data set."""

    about: str
    data_source: str
    """The name in the rows' `data_source`, which selects the scorer."""
    form: str
    """The answer format that its prompts ask for and its scorer reads, a name of `INSTRUCTIONS`."""
    splits: Mapping[str, int]
    """Split -> number of problems as published."""
    hub_id: str | None
    """Name on the Hugging Face hub; None where no copy with these rows was found there."""
    hub_config: str | None = None
    hub_splits: Mapping[str, str] | None = None
    """Split here -> split on the hub, where they differ."""
    question: str = "problem"
    answer: str = "answer"
    """Columns of its own format."""
    integers: bool = False
    """Its references are integers; leading zeros, as AIME writes them, are taken off."""
    repeats: bool = False
    """The published file repeats its problems, which have a number in `extra_info.index`; one of each is kept."""
    other_names: tuple[str, ...] = ()
    """What copies of it carry in `data_source` beside it; capitals, signs and who published do not count."""
    note: str = ""
    """What to know before training or measuring with it."""

    def convert(self, row: Mapping[str, Any], split: str, index: int) -> Row:
        """A row of its own format, or of verl's schema, as a row of verl's schema with the instruction of its scorer.

        Raises: DataError for a malformed row.
        """
        self._refuse_foreign(row.get("data_source"))
        if "prompt" in row and "reward_model" in row:
            return self._rewritten(row)
        if self.data_source == countdown.DATA_SOURCE:
            return countdown.convert(row, split, index)
        own = {gsm8k.DATA_SOURCE: gsm8k.convert, math.DATA_SOURCE: math.convert}.get(self.data_source)
        if own is not None:
            return own(row, split, index)
        question = text_field(row, self.question)
        return math_row(
            self.data_source,
            INSTRUCTIONS[self.form].ask(question.strip()),
            self._reference(_one_answer(row, self.answer)),
            {
                "split": split,
                "index": index,
                "answer": _text_or_none(row.get("solution")),
                "question": question,
                "level": _text_or_none(row.get("level")),
                "type": _text_or_none(row.get("type", row.get("subject"))),
            },
        )

    def _refuse_foreign(self, source: Any) -> None:
        """Raise DataError for the name of another data set in a row's `data_source`."""
        if source is None or plain_name(source) in self.names:
            return
        if APART & {source, self.data_source} or plain_name(source) in KNOWN_NAMES:
            raise DataError(
                f"`data_source` is {source!r}, another data set than {self.data_source!r}: name its own, or correct "
                "the column. Rows of one are not made into rows of the other"
            )

    @property
    def names(self) -> frozenset[str]:
        """What its rows carry in `data_source`, as `plain_name` spells it."""
        return frozenset(map(plain_name, (self.data_source, *self.other_names)))

    def _reference(self, answer: str) -> str:
        """A reference as its scorer reads it: without dollar signs, and without the zeros before an integer."""
        bare = without_dollars(answer)
        return str(int(bare)) if self.integers and bare.isdecimal() else bare

    def _rewritten(self, row: Mapping[str, Any]) -> Row:
        """A row that is in verl's schema already, with its instruction and data source replaced."""
        prompt, truth = row["prompt"], row["reward_model"]
        if not isinstance(prompt, list) or not prompt or not isinstance(prompt[-1], Mapping):
            raise DataError(f"`prompt` must be a list of messages, found {prompt!r}")
        if not isinstance(truth, Mapping) or not isinstance(truth.get("ground_truth"), str):
            raise DataError("`reward_model` must hold the string `ground_truth`")
        question, _ = bare_question(text_field(prompt[-1], "content"))
        extra = {key: value for key, value in (row.get("extra_info") or {}).items() if value is not None}
        asked = math_row(
            self.data_source,
            INSTRUCTIONS[self.form].ask(question),
            self._reference(truth["ground_truth"]),
            {**extra, "question": question},
        )
        return {**asked, "prompt": [*map(dict, prompt[:-1]), *asked["prompt"]]}


def _one_answer(row: Mapping[str, Any], column: str) -> str:
    """The reference answer; a list of answers must hold one, a number becomes its digits."""
    value = row.get(column)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(f"`{column}` must be one answer, found {value!r}")
    return str(value).strip()


def without_dollars(answer: str) -> str:
    """`$69$,$84$` -> `69,84`: the dollar signs of formulas go where nothing but commas stands between them."""
    text = answer.strip()
    parts = text.split("$")
    between = parts[::2]
    if len(parts) % 2 == 0 or len(parts) == 1 or "\\" in "".join(p[-1:] for p in parts[:-1]):
        return text
    if any(part.strip(" ,;") for part in between):
        return text
    return "".join(part if place % 2 == 0 else part.strip() for place, part in enumerate(parts)).strip()


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


PUBLISHED: Mapping[str, Published] = {
    "gsm8k": Published(
        about="word problems of primary school with integer answers",
        data_source=gsm8k.DATA_SOURCE,
        form=HASH,
        splits={"train": 7473, "test": 1319},
        hub_id="openai/gsm8k",
        hub_config="main",
    ),
    "math": Published(
        about="competition problems with answers in LaTeX",
        data_source=math.DATA_SOURCE,
        other_names=("lighteval/MATH", "hendrycks_math"),
        form=BOXED,
        splits={"train": 7500, "test": 5000},
        hub_id="DigitalLearningGmbH/MATH-lighteval",
    ),
    "math_lvl3to5": Published(
        about="MATH's problems of level 3 to 5 without those of MATH-500",
        data_source="lighteval/MATH",
        other_names=(math.DATA_SOURCE, "math_lvl3to5", "math_lvl3to5_8k", "simplelr_math_35"),
        form=BOXED,
        splits={"train": 8523},
        hub_id=None,
        note="from MATH's train and test parts: do not measure on MATH's test part after training on it",
    ),
    "dapo_math_17k": Published(
        about="DAPO's problems with integer answers",
        data_source="math_dapo",
        other_names=("math_dapo_reasoning", "DAPO-Math-17k"),
        form=ANSWER_LINE,
        splits={"train": 17917},
        hub_id="BytedTsinghua-SIA/DAPO-Math-17k",
        repeats=True,
        note="holds problems of MATH's test part: see --against",
    ),
    "math500": Published(
        about="500 problems of MATH's test part, for evaluation",
        data_source="HuggingFaceH4/MATH-500",
        other_names=("math500", math.DATA_SOURCE, "lighteval/MATH"),  # a part of MATH
        form=BOXED,
        splits={"test": 500},
        hub_id="HuggingFaceH4/MATH-500",
    ),
    "aime24": Published(
        about="AIME 2024, I and II",
        data_source="aime24",
        other_names=("aime2024", "aime_2024_dapo", "math_dapo"),
        form=ANSWER_LINE,
        integers=True,
        splits={"test": 30},
        hub_id="HuggingFaceH4/aime_2024",
        hub_splits={"test": "train"},
    ),
    "aime25": Published(
        about="AIME 2025, I and II",
        data_source="aime25",
        other_names=("aime2025",),
        form=ANSWER_LINE,
        integers=True,
        splits={"test": 30},
        hub_id="math-ai/aime25",
    ),
    "amc23": Published(
        about="AMC 12 of 2023",
        data_source="amc23",
        other_names=("amc2023",),
        form=BOXED,
        splits={"test": 40},
        hub_id="math-ai/amc23",
        question="question",
    ),
    "minerva": Published(
        about="Minerva Math: undergraduate problems of MIT's courses",
        data_source="minerva_math",
        other_names=("minervamath", "minerva"),
        form=BOXED,
        splits={"test": 272},
        hub_id="math-ai/minervamath",
        question="question",
    ),
    "olympiadbench": Published(
        about="OlympiadBench: English mathematical problems in text with open answers",
        data_source="olympiadbench",
        other_names=("olympiad_bench",),
        form=BOXED,
        splits={"test": 675},
        hub_id="math-ai/olympiadbench",
        question="question",
        answer="final_answer",
        note="copies with 674 rows go around",
    ),
    "countdown": Published(
        about="reach a number with others; made here unless --from names a file",
        data_source=countdown.DATA_SOURCE,
        form=TAG,
        splits={"train": 10240, "test": 1024},
        hub_id=None,
    ),
}
"""Name -> data set."""

_UNPUBLISHED = ("aime_1983_2023", "amc_2022_2023", "svamp", "asdiv", "gmpo/stories")
KNOWN_NAMES = frozenset(map(plain_name, _UNPUBLISHED)).union(*(entry.names for entry in PUBLISHED.values()))
"""The names in `data_source` that are known to be of one data set, or of those that share its problems."""
