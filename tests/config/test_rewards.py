"""Settings of rewards: DAPO's penalty under verl's keys, and further rewards."""

from __future__ import annotations

import pytest

from gmpo.config import load
from gmpo.errors import ConfigError

KWARGS = "reward_model.reward_kwargs"
BUFFER = f"{KWARGS}.overlong_buffer_cfg"
PUBLISHED = [
    "data.max_response_length=8192",
    "reward_model.reward_manager=dapo",
    f"+{BUFFER}.enable=True",
    f"+{BUFFER}.len=4096",
    f"+{BUFFER}.penalty_factor=1.0",
    f"+{BUFFER}.log=False",
    f"+{KWARGS}.max_resp_len=8192",
]


def test_the_published_keys_of_the_penalty_are_in_effect() -> None:
    resolved = load(PUBLISHED)
    buffer = resolved.config.reward_model.reward_kwargs.overlong_buffer_cfg
    assert (buffer.enable, buffer.len, buffer.penalty_factor) == (True, 4096, 1.0)
    assert {note.path for note in resolved.inert} == {f"{BUFFER}.log"}
    assert not [note for note in resolved.warnings if note.path.startswith("reward_model")]


def test_the_newer_spelling_of_the_same_keys_means_the_same() -> None:
    newer = [w.replace("reward_model.reward_manager", "reward.reward_manager.name") for w in PUBLISHED]
    newer = [w.replace("reward_model.reward_kwargs", "reward.reward_kwargs") for w in newer]
    assert load(newer).config == load(PUBLISHED).config


def test_without_the_manager_the_penalty_is_reported_as_without_effect() -> None:
    resolved = load([word for word in PUBLISHED if "reward_manager" not in word])
    assert {note.path for note in resolved.inert} == {
        f"{BUFFER}.{name}" for name in ("enable", "len", "penalty_factor", "log")
    } | {f"{KWARGS}.max_resp_len"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{BUFFER}.enable=True"], "must be given: the tokens over which the penalty grows"),
        (
            [f"{BUFFER}.enable=True", f"{BUFFER}.len=600"],
            "is larger than reward_model.reward_kwargs.max_resp_len = 512",
        ),
        (["reward_model.extra_rewards=[{path: a.py}, {path: b.py}]"], "several rewards called compute_score"),
        (["reward_model.extra_rewards=[{path: a.py, label: main}]"], "means another one"),
        (["reward_model.extra_rewards=[{weight: 2}]"], "path"),
        (["reward_model.extra_rewards=[{path: a.py, wieght: 2}]"], "wieght"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(["reward_model.reward_manager=dapo", *words])


@pytest.mark.parametrize(("longest", "reason"), [(400, "lose more than the factor"), (700, "reaches the penalty")])
def test_a_penalty_that_does_not_fit_the_answers_is_a_warning(longest: int, reason: str) -> None:
    words = ["reward_model.reward_manager=dapo", f"{BUFFER}.enable=True", f"{BUFFER}.len=100"]
    (note,) = [n for n in load([*words, f"{KWARGS}.max_resp_len={longest}"]).warnings if "max_resp_len" in n.path]
    assert reason in note.reason


def test_further_rewards_survive_the_resolved_file(tmp_path: object) -> None:
    words = ["reward_model.extra_rewards=[{path: a.py, weight: 0.5, label: short, reward_kwargs: {limit: 3}}]"]
    (extra,) = load(words).config.reward_model.extra_rewards
    assert (extra.path, extra.name, extra.label, extra.weight, extra.reward_kwargs) == (
        "a.py",
        "compute_score",
        "short",
        0.5,
        {"limit": 3},
    )
