"""Built-in problems: short stories about a running total, and pupils who solve them with more or less care.

A story has two to four sentences, each one step of arithmetic on a total that stays between 2 and 99:

    max has 2 3 pens . doubles it . gets 7 more . gives 8 away . how many pens ?
    2 3 * 2 = 4 6 ; 4 6 + 7 = 5 3 ; 5 3 - 8 = 4 5 #### 4 5

Numbers are written as digits separated by blanks, so a vocabulary of some forty words is enough. The pupils' mistakes
leave room for reinforcement learning, however long the model was trained to imitate them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from gmpo.data.files import Row
from gmpo.data.rows import math_row
from gmpo.errors import DataError

DATA_SOURCE = "gmpo/stories"
NAMES = ("ann", "eva", "leo", "max", "mia", "tom")
ITEMS = ("cups", "eggs", "hats", "keys", "nuts", "pens")
SMALLEST, LARGEST = 2, 99
"""Bounds of the true total, start included."""
SENTENCES = (2, 3, 4)
DISTINCT = 32_518 + 600_760 + 11_138_352
"""Stories of 2, 3 and 4 sentences that there are, apart from names and items."""
_TRIES = 100
"""Draws before a story may repeat the numbers of another: by then nearly all of the space is taken."""
_PATIENCE = 100_000
"""Draws after which it is an error that each of them was excluded."""


@dataclass(frozen=True, slots=True)
class Step:
    """One sentence: an operation on the total, for example `Step("+", 7)`."""

    sign: str
    operand: int
    """1 to 9; 2 for `*` and `/`."""


@dataclass(frozen=True, slots=True)
class Story:
    """Example: `Story("max", "pens", 23, (Step("*", 2), Step("+", 7)))`."""

    name: str
    item: str
    start: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """What a sign means in a story, and how two kinds of pupils compute it."""

    sentence: str
    """The sentence; `{}` stands for the operand."""
    operands: Callable[[int], range]
    """True total -> operands that keep it between 2 and 99; empty when there are none."""
    exact: Callable[[int, int], int]
    """Total, operand -> new total."""
    without_carry: Callable[[int, int], int]
    """The same for a pupil who computes tens and ones separately and never carries or borrows. Maps
    0..99 to 0..99, and is exact whenever nothing is to be carried."""


OPERATIONS: Mapping[str, Operation] = {
    "+": Operation(
        "gets {} more",
        lambda total: range(1, min(9, LARGEST - total) + 1),
        lambda total, k: total + k,
        lambda total, k: total // 10 * 10 + (total + k) % 10,
    ),
    "-": Operation(
        "gives {} away",
        lambda total: range(1, min(9, total - SMALLEST) + 1),
        lambda total, k: total - k,
        lambda total, k: total // 10 * 10 + (total - k) % 10,
    ),
    "*": Operation(
        "doubles it",
        lambda total: range(2, 3 if 2 * total <= LARGEST else 2),
        lambda total, k: total * k,
        lambda total, k: total // 10 * k % 10 * 10 + total * k % 10,
    ),
    "/": Operation(
        "sells half",
        lambda total: range(2, 3 if total % 2 == 0 and total >= 2 * SMALLEST else 2),
        lambda total, k: total // k,
        lambda total, k: total // 10 // k * 10 + total % 10 // k,
    ),
}


@dataclass(frozen=True, slots=True)
class Pupil:
    """A way of solving stories, and how often it occurs in the class."""

    share: float
    overlooks_last: bool
    """Answers as though the story ended one sentence earlier."""
    carries: bool


PUPILS: Mapping[str, Pupil] = {
    "careful": Pupil(0.35, overlooks_last=False, carries=True),
    "hasty": Pupil(0.65 * 0.70, overlooks_last=True, carries=True),
    "hasty_without_carry": Pupil(0.65 * 0.30, overlooks_last=True, carries=False),
}
"""The class whose answers are the demonstrations. Most mistakes are of procedure: were most of the arithmetic
wrong instead, there would be too few right answers to reinforce."""


def story_text(story: Story) -> str:
    """The story and its question, in words and single digits."""
    sentences = [OPERATIONS[step.sign].sentence.format(step.operand) for step in story.steps]
    parts = [f"{story.name} has {_digits(story.start)} {story.item}", *sentences, f"how many {story.item} ?"]
    return " . ".join(parts)


def true_answer(story: Story) -> int:
    """The total after the last sentence."""
    total = story.start
    for step in story.steps:
        total = OPERATIONS[step.sign].exact(total, step.operand)
    return total


def demonstration(story: Story, pupil: Pupil) -> str:
    """What the pupil writes: each step, then the last total after `####`. At most 34 words."""
    total = story.start
    lines = []
    for step in story.steps[:-1] if pupil.overlooks_last else story.steps:
        operation = OPERATIONS[step.sign]
        result = (operation.exact if pupil.carries else operation.without_carry)(total, step.operand)
        lines.append(f"{_digits(total)} {step.sign} {step.operand} = {_digits(result)}")
        total = result
    return f"{' ; '.join(lines)} #### {_digits(total)}"


def problem_key(story: Story) -> str:
    """Hash of the story's numbers (start, operations, operands). Names and items do not count."""
    numbers = [str(story.start), *(f"{step.sign}{step.operand}" for step in story.steps)]
    return hashlib.sha256(" ".join(numbers).encode()).hexdigest()[:16]


def draw_stories(
    n: int,
    *,
    seed: int,
    split: str,
    exclude: Collection[str] = frozenset(),
    progress: Callable[[int], object] = lambda done: None,
) -> list[Story]:
    """`n` random stories, a function of (seed, split). None has a key in `exclude`, and no two share one.

    Each has 2, 3 or 4 sentences with equal chances. There are 32,518 stories of two sentences (600,760 of three,
    11,138,352 of four) apart from names and items; where nearly all of a length are taken, numbers repeat.
    `progress` is told how many there are, after each.
    Raises: DataError for n below 1, and when `exclude` leaves no story.
    """
    if n < 1:
        raise DataError(f"{n} stories of split {split!r}: ask for at least 1")
    rng = random.Random(f"{DATA_SOURCE}:{split}:{seed}")
    stories: list[Story] = []
    seen: set[str] = set()
    for _ in range(n):
        story = _fresh_story(rng, rng.choice(SENTENCES), seen, exclude)
        seen.add(problem_key(story))
        stories.append(story)
        progress(len(stories))
    return stories


def story_rows(
    n: int,
    *,
    seed: int,
    split: str,
    exclude: Collection[str] = frozenset(),
    progress: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """`n` stories in verl's schema; `extra_info` has the worked right answer in `answer` and the problem's `key`."""
    stories = draw_stories(n, seed=seed, split=split, exclude=exclude, progress=progress)
    return [_row(story, split, i, demonstration(story, PUPILS["careful"])) for i, story in enumerate(stories)]


def demonstration_rows(
    n: int, *, seed: int, split: str = "demonstrations", exclude: Collection[str] = frozenset()
) -> list[Row]:
    """Stories whose `extra_info.answer` was written by a pupil of the class, named in `extra_info.pupil`.

    The ground truth stays the true answer. Draws of pupils and of stories are independent.
    """
    stories = draw_stories(n, seed=seed, split=split, exclude=exclude)
    rng = random.Random(f"{DATA_SOURCE}:{split}:pupils:{seed}")
    names = rng.choices(list(PUPILS), weights=[pupil.share for pupil in PUPILS.values()], k=n)
    rows = []
    for index, (story, name) in enumerate(zip(stories, names, strict=True)):
        row = _row(story, split, index, demonstration(story, PUPILS[name]))
        row["extra_info"]["pupil"] = name
        rows.append(row)
    return rows


def keys_of(rows: Iterable[Row]) -> frozenset[str]:
    """Problem keys of rows of stories, to exclude from other splits."""
    return frozenset(row["extra_info"]["key"] for row in rows)


def vocabulary() -> list[str]:
    """Every word that stories and answers consist of, in a fixed order. Special tokens are the tokenizer's own."""
    sentences = " ".join(operation.sentence.format("") for operation in OPERATIONS.values())
    words = ["####", ";", "=", *OPERATIONS, ".", "?", "has", "how", "many", *sentences.split(), *NAMES, *ITEMS]
    return [*"0123456789", *dict.fromkeys(words)]


def _digits(number: int) -> str:
    return " ".join(str(number))


def _row(story: Story, split: str, index: int, answer: str) -> Row:
    extra_info = {"split": split, "index": index, "answer": answer, "key": problem_key(story)}
    return math_row(DATA_SOURCE, story_text(story), str(true_answer(story)), extra_info)


def _fresh_story(rng: random.Random, sentences: int, seen: Collection[str], exclude: Collection[str]) -> Story:
    """A story with numbers that are neither seen nor excluded; after `_TRIES` draws one that is not excluded."""
    for attempt in range(_PATIENCE):
        story = _draw_story(rng, sentences)
        key = problem_key(story)
        if key not in exclude and (key not in seen or attempt >= _TRIES):
            return story
    raise DataError(f"the {len(exclude)} excluded problems leave no story of {sentences} sentences: exclude fewer")


def _draw_story(rng: random.Random, sentences: int) -> Story:
    """Uniform start; each step uniform over the possible operations, then over the operands of the drawn one."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    start = total = rng.randint(SMALLEST, LARGEST)
    steps = []
    for _ in range(sentences):
        possible = {sign: operands for sign, op in OPERATIONS.items() if (operands := op.operands(total))}
        sign = rng.choice(list(possible))
        step = Step(sign, rng.choice(possible[sign]))
        total = OPERATIONS[sign].exact(total, step.operand)
        steps.append(step)
    return Story(name, item, start, tuple(steps))
