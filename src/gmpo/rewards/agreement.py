r"""Do the prompts ask for what the scorer reads? A run whose prompts want `\boxed{}` while the scorer looks for an
`Answer:` line gives every answer the reward of a wrong one, and nothing says why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gmpo.errors import DataError
from gmpo.rewards.scorers import Scoring

FORMS: Mapping[str, re.Pattern[str]] = {
    "boxed": re.compile(r"\\boxed|\\fbox"),
    "hash": re.compile(r"####"),
    "answer_line": re.compile(r"answer\s*:", re.IGNORECASE),
    "tag": re.compile(r"<answer>"),
}
"""Form of an answer -> how a prompt that asks for it is known."""
SHOWN = {
    "boxed": "\\boxed{}",
    "hash": "#### and the answer",
    "answer_line": "a line `Answer: ..`",
    "tag": "<answer> tags",
}


_BY_SOURCE = Scoring()


def asked_for(prompt: str) -> frozenset[str]:
    """The forms of answers that a prompt names; none where it leaves the form open."""
    return frozenset(form for form, pattern in FORMS.items() if pattern.search(prompt))


def check_agreement(
    problems: Iterable[tuple[str, str]], lenient: frozenset[str] = frozenset(), scoring: Scoring = _BY_SOURCE
) -> None:
    """Refuse problems whose prompts name other forms than their scorer reads.

    Args:
        problems: data source and text of the prompt of each.
        lenient: data sources whose scorer was set to read any form.
        scoring: how the scorers are chosen.

    Raises:
        DataError: most prompts of a source that name a form name none that the scorer reads.
    """
    naming: dict[str, int] = {}
    disagreeing: dict[str, list[str]] = {}
    for source, prompt in problems:
        reads = scoring.scorer_for(source).reads
        asked = asked_for(prompt)
        if source in lenient or not reads or not asked:
            continue
        naming[source] = naming.get(source, 0) + 1
        if not asked & reads:
            disagreeing.setdefault(source, []).append(prompt)
    for source, prompts in disagreeing.items():
        if 2 * len(prompts) > naming[source]:
            raise DataError(_message(source, prompts, naming[source], scoring.scorer_for(source).reads))


def _message(source: str, prompts: list[str], naming: int, reads: frozenset[str]) -> str:
    wanted = " or ".join(SHOWN[form] for form in sorted(asked_for(prompts[0])))
    read = " or ".join(SHOWN[form] for form in sorted(reads))
    return (
        f"prompts and scorer disagree: {len(prompts)} of {naming} prompts of data_source {source!r} that name a form "
        f"of answer ask for {wanted}, and its scorer reads {read}, so right answers would count as wrong.\n"
        f"For example: {prompts[0][-200:]!r}\n"
        "Rewrite the prompts with `gmpo data NAME --from FILE --out DIR`, name another scorer with "
        "reward_model.scorer (math_verify reads boxes and formulas), or set custom_reward_function.path."
    )
