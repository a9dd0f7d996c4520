"""A chat template that writes the time writes one moment in the whole run: at a resume, in a validation, in a fork."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

import gmpo
from gmpo.build.identity import MOMENT
from gmpo.data.stories import demonstration_rows
from gmpo.records.run_folder import RunRecord, read_run

MODEL = "actor_rollout_ref.model"
KEPT = {"trainer.token_record_groups": 1, "trainer.sample_groups": 1, "trainer.save_freq": 1}
Train = Callable[..., str]


@pytest.fixture
def template(bench: Any) -> str:
    """Writes hour, minute and second, digit by digit, before the model's own."""
    own = AutoTokenizer.from_pretrained(bench.model).chat_template
    return "{% for c in strftime_now('%H%M%S') %}{{ c }} {% endfor %}" + own


@pytest.fixture
def train(bench: Any, template: str) -> Train:
    """Makes a run under the template; returns what it said."""

    def run(changes: Mapping[str, Any], **arguments: Any) -> str:
        said = Console(file=io.StringIO(), width=400)
        own = {f"{MODEL}.custom_chat_template": template, "data.max_prompt_length": 64, **KEPT}
        bench.train({**own, **changes}, console=said, **arguments)
        assert isinstance(said.file, io.StringIO)
        return said.file.getvalue()

    return run


def _record(folder: Path) -> RunRecord:
    record = read_run(folder)
    assert record is not None
    return record


def _written(bench: Any, file: Path) -> str:
    """The six digits before the first prompt of a file of answers."""
    ids = json.loads(file.read_text().splitlines()[0])["prompt_ids"]
    return "".join(AutoTokenizer.from_pretrained(bench.model).decode(ids[:6]).split())


def _wait_for_another_second(moment: datetime) -> None:
    while datetime.now().replace(microsecond=0) <= moment:
        time.sleep(0.05)


def test_a_run_writes_the_moment_of_its_first_start_to_its_end(bench: Any, train: Train) -> None:
    """Resumed a second later, in a fork and in a validation the prompts are those of the first start; a run of its own
    has a moment of its own."""
    folder = bench.folder / "run"
    said = train({"trainer.total_training_steps": 1})
    kept = _record(folder).content[MOMENT]
    moment = datetime.fromisoformat(kept)
    assert f"note: the chat template writes the time: {kept}, of the run's first start" in said
    assert _written(bench, folder / "samples/1.jsonl") == moment.strftime("%H%M%S")
    _wait_for_another_second(moment)
    said = train({"trainer.total_training_steps": 2})
    assert "not bit for bit" not in said
    assert _written(bench, folder / "samples/2.jsonl") == moment.strftime("%H%M%S")
    record = _record(folder)
    assert record.content[MOMENT] == kept
    assert record.legs[-1].exact
    fork = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(folder / "global_step_1")}
    train({"trainer.total_training_steps": 2, **fork}, run="fork")
    assert _written(bench, bench.folder / "fork/samples/2.jsonl") == moment.strftime("%H%M%S")
    said = train({"trainer.val_only": True}, rows=None, val_rows=bench.rows)
    assert f"the chat template writes the time: {kept}" in said
    train({"trainer.total_training_steps": 1}, run="other")
    own = datetime.fromisoformat(_record(bench.folder / "other").content[MOMENT])
    assert own > moment
    assert _written(bench, bench.folder / "other/samples/1.jsonl") == own.strftime("%H%M%S")


def test_the_derived_folder_that_holds_the_run_keeps_its_moment(
    bench: Any, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs under one name the resumed one is found by its settings."""
    monkeypatch.chdir(bench.folder)
    derived = {"trainer.default_local_dir": None, "trainer.total_training_steps": 1}
    train({**derived, "actor_rollout_ref.actor.optim.lr": 1e-3})
    first = next(iter(bench.folder.glob("**/run.json"))).parent
    _wait_for_another_second(datetime.fromisoformat(_record(first).content[MOMENT]))
    train(derived)
    second = first.with_name(f"{first.name}-2")
    kept = _record(second).content[MOMENT]
    _wait_for_another_second(datetime.fromisoformat(kept))
    train({**derived, "trainer.total_training_steps": 2})
    assert _record(second).content[MOMENT] == kept > _record(first).content[MOMENT]
    assert _record(second).legs[-1].exact


def test_a_template_without_the_time_has_no_moment(bench: Any) -> None:
    bench.train({"trainer.total_training_steps": 1})
    assert MOMENT not in _record(bench.folder / "run").content


def test_demonstrations_are_rendered_with_one_moment_too(bench: Any, template: str) -> None:
    said = Console(file=io.StringIO(), width=400)
    settings = {
        "model.path": str(bench.model),
        "model.custom_chat_template": template,
        "data.train_batch_size": 8,
        "trainer.total_training_steps": 1,
        "trainer.device": "cpu",
        "trainer.default_local_dir": str(bench.folder / "sft"),
        "trainer.logger": [],
    }
    gmpo.sft(settings, rows=demonstration_rows(8, seed=0), console=said)
    kept = _record(bench.folder / "sft").content[MOMENT]
    assert isinstance(said.file, io.StringIO)
    assert f"the chat template writes the time: {kept}" in said.file.getvalue()
