"""A run folder is read in every state that it can be found in, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmpo.errors import DataError
from gmpo.records.run_folder import KILLED, RUN, read_run, write_run
from gmpo.report.build import page, read_report, run_findings, summary
from gmpo.report.reading import modified, read_answers, read_data


def kinds(folder: Path) -> set[str]:
    return {finding.kind for finding in run_findings(read_data(folder))}


def test_a_finished_run_has_its_steps_settings_and_answers(run: Path) -> None:
    data = read_data(run)
    assert (data.status, data.step, data.total_steps, data.notices) == ("finished", 3, 3, [])
    assert len(data.steps) == 3
    assert [m["training/global_step"] for m in data.validations] == [0, 1, 2, 3]
    assert data.settings["actor_rollout_ref.rollout.n"] == 4
    assert data.given["actor_rollout_ref.actor.optim.lr"] == 1e-3
    assert [(step, len(rows)) for step, rows in read_answers(data, "samples")] == [(1, 16), (2, 16), (3, 16)]


def test_a_killed_run_has_its_steps_and_is_called_broken_off(run: Path) -> None:
    """Its record still says that it runs, its last line is cut short, and nobody holds the lock."""
    record = read_run(run)
    assert record is not None
    saved = json.loads((run / RUN).read_text())
    saved["status"] = saved["legs"][-1]["status"] = "running"
    (run / RUN).write_text(json.dumps(saved))
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-400])
    data = read_data(run)
    assert (data.status, data.reason, data.notices) == ("failed", KILLED, [])
    assert len(data.steps) == 2
    assert "crashed" in kinds(run)


def test_a_run_without_a_step_is_empty_and_not_an_error(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    for kind in ("samples", "validation"):
        for file in (run / kind).glob("*.jsonl"):
            file.unlink()
    assert kinds(run) == {"empty"}
    report = read_report([run])
    assert report.values["runs"][0]["curves"] == {"steps": [], "columns": {}}
    assert "</html>" in page(report)


def test_a_folder_of_an_older_version_has_no_record_and_a_report_all_the_same(run: Path) -> None:
    (run / RUN).unlink()
    data = read_data(run)
    assert data.status == "unknown"
    assert data.step == data.total_steps == 3
    assert data.settings["actor_rollout_ref.actor.policy_loss.loss_mode"] == "geo_mean"
    assert "there is no run.json" in data.notices[0]
    assert "</html>" in page(read_report([run]))


def test_a_record_of_a_later_version_and_damaged_lines_are_said(run: Path) -> None:
    saved = json.loads((run / RUN).read_text())
    (run / RUN).write_text(json.dumps({**saved, "format": 99}))
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], "no JSON", *lines[1:]]) + "\n")
    (run / "samples" / "2.jsonl").write_bytes(b"\xff\xfe\n" + (run / "samples" / "2.jsonl").read_bytes())
    report = read_report([run])
    (one,) = report.values["runs"]
    assert any("format 99" in notice for notice in one["notices"])
    assert "metrics.jsonl: lines that are no JSON are left out, 1 of 6" in one["notices"]
    assert any(notice.startswith("2.jsonl") for notice in one["notices"])
    assert one["step"] == 3
    assert one["samples"]["columns"]["step"].count(2) == 16 + 8 // 4


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"none of run\.json, metrics\.jsonl and config\.yaml"):
        read_data(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        read_data(tmp_path / "missing")


def test_the_folder_of_a_quickstart_leads_to_its_run(run: Path) -> None:
    assert read_data(run.parent).folder == run


def test_files_that_did_not_change_are_told_from_those_that_did(run: Path) -> None:
    before = modified(run)
    assert modified(run) == before
    with (run / "metrics.jsonl").open("a") as out:
        out.write("{}\n")
    assert modified(run) != before


def test_nothing_of_a_run_is_changed_by_reading_it(run: Path) -> None:
    before = {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
    page(read_report([run]))
    assert {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()} == before


def test_a_running_run_is_called_so_while_its_lock_is_held(run: Path) -> None:
    from gmpo.records.run_folder import claimed

    record = read_run(run)
    assert record is not None
    saved = json.loads((run / RUN).read_text())
    (run / RUN).write_text(json.dumps({**saved, "status": "running"}))
    with claimed(run):
        assert read_data(run).status == "running"
    assert read_data(run).status == "failed"
    write_run(run, record)


def test_figures_as_json_say_what_the_page_says(run: Path) -> None:
    (one,) = summary(read_report([run], answers=False))["runs"]
    assert one["status"] == "finished"
    assert one["summary"]["pass"][0][0] == 0.5 * round(2 * one["summary"]["pass"][0][0])
    assert one["findings"]
    assert all(found["title"] for found in one["findings"])
    assert json.loads(json.dumps(one, allow_nan=False)) == one
