"""What makes a start of the program another run: settings that have an effect, and the content behind paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gmpo.build.identity import RENDERED, VALIDATION, compare, describe_run
from gmpo.config import load, load_sft
from gmpo.config.roles import length_matters
from gmpo.records.run_folder import Difference, RunRecord

A = "actor_rollout_ref.actor"
CONTENT = {"tokenizer": "t", "chat template": "c", RENDERED: "r", "content of data.train_files": "d"}
Record = Callable[..., RunRecord]


def _record(*words: str, content: Any = CONTENT, steps: int = 10) -> RunRecord:
    return describe_run(load(list(words), rows=True, val_rows=True), "train", content, steps)


def _compare(then: RunRecord, *words: str, **changes: Any) -> Any:
    return compare(then, _record(*words, **changes), load(list(words), rows=True, val_rows=True))


def test_equal_starts_differ_in_nothing() -> None:
    assert _compare(_record("recipe=gmpo"), "recipe=gmpo").all == ()


def test_a_template_that_writes_the_date_goes_on_and_is_not_bit_exact() -> None:
    """As in runs of versions that let it: the text of the template is the same, what it renders is not."""
    changes = _compare(_record(), content={**CONTENT, RENDERED: "of another day"})
    assert changes.identity == ()
    assert changes.inexact == (Difference(RENDERED, "r", "of another day"),)
    other = _compare(_record(), content={**CONTENT, RENDERED: "s", "chat template": "d"})
    assert [d.key for d in other.identity] == ["chat template"]
    assert other.inexact == ()


def test_a_validation_may_be_added_or_left_out_and_no_curve_mixes_two_sets() -> None:
    with_one = _record(content={**CONTENT, VALIDATION: "v"})
    assert _compare(_record(), content={**CONTENT, VALIDATION: "v"}).identity == ()
    assert _compare(with_one).identity == ()
    mixed = _compare(with_one, content={**CONTENT, VALIDATION: "w"})
    assert [str(d) for d in mixed.identity] == [f'{VALIDATION}: "v" -> "w"']


def test_a_setting_without_effect_makes_no_other_run() -> None:
    assert _compare(_record(), f"{A}.kl_loss_coef=0.5").all == ()
    taken = _compare(_record(), f"{A}.use_kl_loss=True", f"{A}.kl_loss_coef=0.5")
    assert [d.key for d in taken.identity] == [f"{A}.use_kl_loss", f"{A}.kl_loss_coef"]


def test_one_setting_in_two_forms_is_the_same_setting() -> None:
    """Both bounds given hide the bound they would be derived from."""
    derived = _record(f"{A}.clip_ratio=0.4")
    given = (f"{A}.clip_ratio=0.4", f"{A}.clip_ratio_low=0.4", f"{A}.clip_ratio_high=0.4")
    assert _compare(derived, *given).identity == ()
    assert _compare(_record(*given), f"{A}.clip_ratio=0.4").identity == ()


def test_a_setting_that_the_version_of_then_did_not_know_counts_where_it_is_given() -> None:
    old = _record()
    old = replace(old, identity={k: v for k, v in old.identity.items() if k != f"{A}.entropy_coeff"})
    assert _compare(old).identity == ()
    assert _compare(old, f"{A}.entropy_coeff=0.0").identity == ()
    assert _compare(old, f"{A}.entropy_coeff=0.1").identity == (Difference(f"{A}.entropy_coeff", None, 0.1),)


@pytest.mark.parametrize(
    ("words", "matters"),
    [
        ((), False),
        ((f"{A}.optim.lr_warmup_steps=3",), False),
        ((f"{A}.optim.lr_warmup_steps_ratio=0.1",), True),
        ((f"{A}.optim.lr_scheduler_type=cosine",), True),
        ((f"{A}.optim.lr_scheduler_type=cosine", f"{A}.optim.total_training_steps=50"), False),
        ((f"{A}.policy_loss.loss_mode=power_mean", f"{A}.policy_loss.power=[1,0]"), True),
        (("algorithm.adv_estimator=gae", "critic.optim.lr_scheduler_type=linear"), True),
    ],
)
def test_the_length_belongs_to_the_run_where_a_schedule_depends_on_it(words: tuple[str, ...], matters: bool) -> None:
    assert length_matters(load(list(words)).config) is matters
    keys = [d.key for d in _compare(_record(*words), *words, steps=20).identity]
    assert keys == (["steps of the run"] if matters else [])


def test_supervised_fine_tuning_has_a_schedule_unless_it_is_constant() -> None:
    assert length_matters(load_sft().config)
    constant = ["optim.lr_scheduler_type=constant", "optim.warmup_steps_ratio=0"]
    assert not length_matters(load_sft(constant).config)
