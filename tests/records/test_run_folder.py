"""The record of a run and its readers, which work without torch; and fingerprints, which know content and no place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gmpo.errors import BackendError, DataError
from gmpo.records import fingerprint
from gmpo.records.durable import write_atomically
from gmpo.records.run_folder import (
    Difference,
    Leg,
    RunRecord,
    StepMetrics,
    checkpoints,
    claimed,
    holds_run,
    is_open,
    read_answers,
    read_metrics,
    read_pass_rates,
    read_run,
    read_val_only,
    write_run,
)

RECORD = RunRecord(
    program="train",
    status="running",
    steps=2,
    total_steps=4,
    identity={"data.train_batch_size": 64, "actor_rollout_ref.actor.optim.betas": [0.9, 0.95]},
    execution={"trainer.device": "cpu"},
    bookkeeping={"trainer.logger": []},
    idle={"trainer.nnodes": 1},
    content={"base model": "0123456789abcdef"},
    legs=(Leg(1, start=0, steps=2, status="failed", reason="BackendError: out of memory"),),
)


def _write(file: Path, *lines: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    leg = Leg(
        2,
        start=2,
        steps=2,
        status="running",
        differences=(Difference("optim.lr", 1e-6, 5e-6),),
        checkpoint="global_step_2",
    )
    record = RECORD.with_leg(leg)
    assert (record.status, record.reason, len(record.legs)) == ("running", "", 2)
    write_run(tmp_path, record)
    assert read_run(tmp_path) == record
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    ended = record.with_leg(replace(leg, status="interrupted", reason="a signal", steps=3))
    assert (ended.status, ended.reason, ended.steps, len(ended.legs)) == ("interrupted", "a signal", 3, 2)


def test_a_folder_without_a_record_has_none_and_a_later_format_names_its_version(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    write_run(tmp_path, replace(RECORD, format=7, gmpo="9.1.0"))
    with pytest.raises(DataError, match=r"was written by gmpo 9\.1\.0 in format 7"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="not the record of a run"):
        read_run(tmp_path)


def test_a_running_run_has_done_the_steps_of_its_newest_line(tmp_path: Path) -> None:
    write_run(tmp_path, RECORD)
    _write(tmp_path / "metrics.jsonl", *({"step": step, "data": {}} for step in range(4)))
    record = read_run(tmp_path)
    assert record is not None
    assert record.steps == 3
    write_run(tmp_path, replace(RECORD, status="failed"))
    failed = read_run(tmp_path)
    assert failed is not None
    assert failed.steps == 2


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_atomically(file, "whole")
    (tmp_path / ".unfinished_run.json").mkdir()  # cannot be opened for writing
    with pytest.raises(OSError, match="directory"):
        write_atomically(file, "half")
    assert file.read_text() == "whole"


def test_metrics_leave_out_a_last_line_that_was_cut_short_and_refuse_another(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert list(read_metrics(tmp_path)) == []
    _write(file, {"step": 1, "data": {"x": 0.5}}, {"step": 2, "data": {"x": 0.75}})
    with file.open("a") as out:
        out.write('{"step": 3, "da')
    assert list(read_metrics(tmp_path)) == [StepMetrics(1, {"x": 0.5}), StepMetrics(2, {"x": 0.75})]
    with file.open("a") as out:
        out.write("\n{}\n")
    with pytest.raises(DataError, match="line 3: not a line of JSON"):
        list(read_metrics(tmp_path))


def test_answers_are_read_by_step_whatever_separators_their_text_holds(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"  # JSON leaves them as they are
    _write(tmp_path / "samples" / "10.jsonl", {"output": "ten"})
    _write(tmp_path / "samples" / "9.jsonl", {"output": text}, {"output": "b"})
    answers = {step: [row["output"] for row in rows] for step, rows in read_answers(tmp_path, "samples")}
    assert answers == {9: [text, "b"], 10: ["ten"]}
    assert list(answers) == [9, 10]
    assert list(read_answers(tmp_path, "validation")) == []


def test_pass_rates_are_counts_by_problem(tmp_path: Path) -> None:
    file = tmp_path / "pass_rates.jsonl"
    _write(file, {"step": 1, "rates": {"a": [2, 4]}}, {"step": 2, "rates": {"b": [0, 3]}})
    assert list(read_pass_rates(file)) == [(1, {"a": (2, 4)}), (2, {"b": (0, 3)})]
    _write(file, {"step": 1, "rates": {"a": 2}}, {"step": 2, "rates": {}})
    with pytest.raises(DataError, match="line 1: not a line of pass rates"):
        list(read_pass_rates(file))


def test_validations_on_their_own_come_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    for number in (10, 2):
        _write(tmp_path / "val_only" / str(number) / "metrics.jsonl", {"step": number, "data": {"val/pass@1": 0.5}})
    assert [(place.name, line.step) for place, line in read_val_only(tmp_path)] == [("2", 2), ("10", 10)]


def test_a_checkpoint_is_complete_with_its_state_and_they_come_by_number(tmp_path: Path) -> None:
    for name in ("global_step_10", "global_step_9", ".unfinished_global_step_11"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    (tmp_path / "global_step_12").mkdir()
    assert list(checkpoints(tmp_path).items()) == [(9, tmp_path / "global_step_9"), (10, tmp_path / "global_step_10")]


def test_a_folder_holds_a_run_when_something_could_be_lost(tmp_path: Path) -> None:
    write_run(tmp_path, RECORD)
    (tmp_path / "metrics.jsonl").touch()
    assert not holds_run(tmp_path)
    for name in ("global_step_1/state.json", "huggingface/config.json", "samples/1.jsonl", "validation/0.jsonl"):
        folder = tmp_path / name.partition("/")[0]
        folder.mkdir()
        (tmp_path / name).touch()
        assert holds_run(tmp_path)
        shutil.rmtree(folder)
    _write(tmp_path / "metrics.jsonl", {"step": 0, "data": {}})
    assert holds_run(tmp_path)


def test_a_folder_is_open_while_a_process_has_it(tmp_path: Path) -> None:
    assert not is_open(tmp_path)
    with claimed(tmp_path):
        assert is_open(tmp_path)
        with pytest.raises(BackendError, match="another run writes there"), claimed(tmp_path):
            pass
    assert not is_open(tmp_path)


def test_reading_a_run_needs_no_torch() -> None:
    program = "import sys, gmpo.records.run_folder, gmpo.records.fingerprint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_is_known_by_its_bytes_and_not_by_its_place(tmp_path: Path, tiny_folder: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    (moved / "README.md").write_text("another file")
    assert fingerprint.of_model(moved) == fingerprint.of_model(tiny_folder)
    for name in ("config.json", "model.safetensors"):
        changed = tmp_path / f"changed {name}"
        shutil.copytree(tiny_folder, changed)
        content = bytearray((changed / name).read_bytes())
        content[-2] ^= 1
        (changed / name).write_bytes(bytes(content))
        assert fingerprint.of_model(changed) != fingerprint.of_model(tiny_folder)


def test_of_a_large_weight_file_size_beginning_end_and_blocks_between_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = fingerprint.WHOLE * 4

    def changed(place: int | None, length: int = size) -> str:
        with file.open("wb") as out:
            out.truncate(length)
            if place is not None:
                out.seek(place)
                out.write(b"x" * fingerprint.BLOCK * 5)
                out.truncate(length)
        return fingerprint.of_model(tmp_path)

    same = changed(None)
    assert changed(None) == same
    # 256 blocks of 64 KiB in 64 MiB leave gaps of 192 KiB, so that a change of 320 KiB is always met.
    places = (0, size // 3, size // 2 + 12_345, size - 5 * fingerprint.BLOCK)
    assert len({same, changed(None, size + 1), *(changed(place) for place in places)}) == 6


def test_a_missing_file_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def compute_score(): ...")
    assert fingerprint.of_file(tmp_path / "reward.py") != fingerprint.of_file(tmp_path / "nothing") == "missing"
    assert fingerprint.of_json({"a": 1, "b": os}) == fingerprint.of_json({"b": os, "a": 1})
