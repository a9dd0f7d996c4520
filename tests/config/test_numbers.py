"""Derived numbers of known runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gmpo.check.report import check_report
from gmpo.config import load
from gmpo.config.numbers import Length, numbers, run_length
from gmpo.errors import ConfigError

A = "actor_rollout_ref.actor"
# verl's published GMPO command on GSM8K + MATH: 14,973 training rows.
RUN = (
    "recipe=gmpo",
    "data.train_files=[a.parquet,b.parquet]",
    "data.val_files=v.parquet",
    "data.train_batch_size=1024",
    "data.max_prompt_length=1024",
    "data.max_response_length=1024",
    f"{A}.ppo_mini_batch_size=256",
    f"{A}.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.n=5",
    "trainer.total_epochs=15",
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B",
    "trainer.critic_warmup=0",
)


def test_the_published_run_has_4_updates_per_step_and_210_steps() -> None:
    found = numbers(load(RUN).config, 14973, 6319)
    assert (found.prompts_per_step, found.responses_per_step) == (1024, 5120)
    assert (found.updates_per_step, found.mini_batch_responses, found.micro_batches_per_update) == (4, 1280, 80)
    assert found.max_tokens_per_step == 5120 * 2048
    assert (found.steps_per_epoch, found.total_steps, found.epochs) == (14, 210, 15)
    assert found.validation_responses == 6319


def test_a_last_short_mini_batch_is_an_update_and_epochs_multiply() -> None:
    config = load([f"{A}.ppo_mini_batch_size=300", f"{A}.ppo_epochs=2"]).config
    assert numbers(config, 2000, None).updates_per_step == 8  # 300 + 300 + 300 + 124, twice


def test_a_critic_has_updates_of_its_own_number_and_a_line_in_the_table() -> None:
    config = load(["recipe=ppo", "critic.ppo_mini_batch_size=512", "critic.ppo_epochs=3"]).config
    found = numbers(config, 2000, None)
    assert (found.updates_per_step, found.critic_updates_per_step) == (4, 6)
    line = next(number for number in found.table(config, 2000, None) if number.name == "critic updates per step")
    assert (line.value, line.formula) == (6, "ceil(1024 / critic.ppo_mini_batch_size 512) x critic.ppo_epochs 3")
    without = numbers(load().config, 2000, None)
    assert without.critic_updates_per_step == 0
    assert all("critic" not in number.name for number in without.table(load().config, 2000, None))


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        (15, None, Length(7, 105, 15)),
        (None, 80, Length(7, 80, 12)),
        (10, 200, Length(7, 70, 10)),
        (100, 14, Length(7, 14, 2)),
    ],
)
def test_a_run_ends_at_the_smaller_of_its_bounds(epochs: int | None, steps: int | None, expected: Length) -> None:
    length = run_length(rows=7473, batch_size=1024, total_epochs=epochs, total_training_steps=steps, key="k")
    assert length == expected


def test_a_batch_larger_than_the_data_set_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"data.train_batch_size = 1024 .* 64 rows.* at most 64"):
        numbers(load().config, 64, None)


def test_the_number_of_samples_bounds_the_rows() -> None:
    config = load(["data.train_max_samples=2048", "data.val_max_samples=10", "data.val_files=v"]).config
    found = numbers(config, 7473, 500)
    assert (found.steps_per_epoch, found.validation_responses) == (2, 10)


def test_unknown_row_counts_leave_only_what_depends_on_them_open() -> None:
    found = numbers(load(["trainer.total_training_steps=80"]).config, None, None)
    assert (found.steps_per_epoch, found.total_steps, found.validation_responses) == (None, 80, 0)
    assert numbers(load().config, None, None).total_steps is None


def _printed(width: int, *overrides: str, everything: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(check_report(load([*RUN, *overrides]), _rows, everything=everything))
    return out.getvalue()


def _rows(files: object) -> int:
    assert isinstance(files, tuple)
    return {"a.parquet": 14973, "b.parquet": 0, "v.parquet": 6319}[files[0]]


def test_the_report_shows_the_tree_the_numbers_and_every_list_with_reasons() -> None:
    text = _printed(100, "actor_rollout_ref.rollout.name=vllm", f"{A}.checkpoint.save_contents=['hf_model']")
    for words in (
        "loss_mode: geo_mean",
        "steps per epoch x total_epochs 15",
        "210",
        "10,485,760",
        f"{A}.clip_ratio_low = 0.4",
        f"follows {A}.clip_ratio",
        "trainer.critic_warmup = 0",
        "algorithm.adv_estimator=grpo needs no critic",
        "actor_rollout_ref.rollout.name = vllm",
        "comes with multi-GPU support",
        "fresh optimizer",
    ):
        assert words in " ".join(text.split()), words
    for title in ("honoured (", "derived (", "without effect (1)", "not here (1)", "warnings (1)"):
        assert title in text


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("width", [80, 100])
def test_the_report_fits_its_width_and_cuts_nothing(width: int, everything: bool) -> None:
    text = _printed(width, everything=everything)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_one_row_is_one_row() -> None:
    words = ["data.train_batch_size=1", f"{A}.ppo_mini_batch_size=1", "data.train_files=a", "data.val_files=v"]
    config = load(words).config
    formulas = " ".join(number.formula for number in numbers(config, 1, 1).table(config, 1, 1))
    assert "1 rows" not in formulas
    assert "floor(1 row / 1)" in formulas
    assert "1 problem x rollout.n 5" in formulas


def test_an_unknown_row_count_is_shown_as_a_question_mark() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(check_report(load(RUN), lambda files: None))
    assert "an unknown number of rows" in " ".join(out.getvalue().split())
