r"""Check that prompts ask for the answer format that the scorer reads. Where prompts ask for `\boxed{}` and the scorer
looks for an `Answer:` line, every answer would get the reward of a wrong one, and no metric would say why."""

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
"""Format of an answer -> pattern that recognises a prompt asking for it."""
SHOWN = {
    "boxed": "\\boxed{}",
    "hash": "#### and the answer",
    "answer_line": "a line `Answer: ..`",
    "tag": "<answer> tags",
}


_BY_SOURCE = Scoring()


def asked_for(prompt: str) -> frozenset[str]:
    """The answer formats that a prompt asks for; none where it leaves the format open."""
    return frozenset(form for form, pattern in FORMS.items() if pattern.search(prompt))


def check_agreement(
    problems: Iterable[tuple[str, str]], lenient: frozenset[str] = frozenset(), scoring: Scoring = _BY_SOURCE
) -> None:
    """Refuse problems whose prompts ask for other answer formats than their scorer reads.

    Args:
        problems: data source and prompt of each.
        lenient: data sources whose scorer was set to read any format.
        scoring: how the scorers are chosen.

    Raises:
        DataError: most prompts of a source that ask for a format ask for none that the scorer reads.
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
        f"prompts and scorer disagree: {len(prompts)} of {naming} prompts of data_source {source!r} that ask for an "
        f"answer format ask for {wanted}, but its scorer reads {read}, so right answers would count as wrong.\n"
        f"For example: {prompts[0][-200:]!r}\n"
        "Rewrite the prompts with `gmpo data NAME --from FILE --out DIR`, name another scorer with "
        "reward_model.scorer (math_verify reads boxes and formulas), or set custom_reward_function.path."
    )
