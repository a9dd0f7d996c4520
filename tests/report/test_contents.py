"""What a page holds: answers within a size, tokens with their texts, documentation, a library as it was published."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gmpo.backends.tiny_model import bpe_tokenizer
from gmpo.cli import app
from gmpo.report.build import MOST, PAGE, SCRIPTS, page, read_report
from gmpo.report.compare import compared, difference
from gmpo.report.metric_docs import describe
from gmpo.report.panels import metrics_of
from gmpo.report.reading import read_data
from gmpo.report.samples import gather, packed, spread
from gmpo.report.tokens import _pieces, token_texts, token_weights
from gmpo.report.watch import band, sparkline, time_left

LIBRARY = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""Files of npm's uplot 1.6.32 with their SHA-256."""


def opened(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def answers(steps: int, each: int, length: int) -> list[tuple[int, list[dict[str, Any]]]]:
    """Recorded answers of random words, which no compression makes small, with token records for a quarter."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{rng.integers(10**6)}" for _ in range(5000)])
    found = []
    for step in range(1, steps + 1):
        rows = []
        for k in range(each):
            ids = rng.integers(0, 5000, length)
            row: dict[str, Any] = {
                "problem": f"p{step}-{k // 8}",
                "answer": k % 8,
                "input": [{"role": "user", "content": f"question {step} {k // 8}"}],
                "output": " ".join(words[ids]),
                "verdict": ("correct", "wrong")[k % 2],
                "reward": float(k % 2),
                "tokens": length,
                "finish_reason": "stop",
            }
            if k < each // 4:
                d = rng.normal(0, 0.1, length)
                update = {"update": 0, "logp": (d - 1).tolist(), "bound": (d > 0.2).astype(int).tolist()}
                row |= {
                    "response_ids": ids.tolist(),
                    "rollout_logp": [-1.0] * length,
                    "old_logp": [-1.0] * length,
                    "advantage": [0.5] * length,
                    "updates": [update],
                }
            rows.append(row)
        found.append((step, rows))
    return found


def test_every_beginning_of_the_order_lies_over_the_whole_run() -> None:
    assert spread([1, 2, 3, 4, 5]) == [1, 5, 3, 2, 4]
    assert sorted(spread(list(range(100)))) == list(range(100))
    first = sorted(spread(list(range(1000)))[:17])
    assert max(np.diff(first)) <= 63


def test_answers_fill_the_room_and_no_more_and_what_is_left_out_is_counted() -> None:
    found = answers(20, 32, 60)
    room = 150_000
    kept = gather(found, [], room=room, texts_of=lambda ids: ["w"] * len(ids), loss="geo_mean", bounds=(0.4, 0.4))
    used = sum(map(len, (*kept.texts, *kept.tokens))) + len(packed([kept.columns, kept.problems]))
    assert 0.9 * room < used <= room + 2000  # columns name the blocks only once these are made
    assert kept.left_out["answers"] == 640
    assert 0 < kept.left_out["texts"] == kept.columns["text"].count(-1) < 640
    with_text = {step for step, block in zip(kept.columns["step"], kept.columns["text"], strict=True) if block >= 0}
    assert with_text == set(range(1, 21))  # a problem of every step before the second of any
    number = next(n for n, block in enumerate(kept.columns["text"]) if block >= 0)
    block = opened(kept.texts[kept.columns["text"][number]])
    row = [row for _, rows in found for row in rows][number]
    assert block[kept.columns["at"][number]]["o"] == row["output"]


def test_a_token_record_says_what_the_learner_computed() -> None:
    found = answers(1, 8, 6)
    kept = gather(
        found, [], room=10**6, texts_of=lambda ids: [f"<{i}>" for i in ids], loss="geo_mean", bounds=(0.4, 0.4)
    )
    assert kept.left_out == {"answers": 8, "texts": 0, "tokens": 0}
    assert kept.columns["token"] == [0, 0, -1, -1, -1, -1, -1, -1]
    record, row = opened(kept.tokens[0])[0], found[0][1][0]
    assert record["t"] == [f"<{i}>" for i in row["response_ids"]]
    expected = [logp + 1.0 for logp in row["updates"][0]["logp"]]
    assert record["d"] == pytest.approx(expected, abs=1e-4)
    assert record["c"] == [i for i, d in enumerate(expected) if d > 0.2]
    assert record["a"] == 0.5


def test_the_weight_of_a_token_is_the_ratio_that_its_loss_takes() -> None:
    d, cut = np.array([0.2, 0.9, -0.5]), np.array([False, True, False])
    # Geometric mean with the bound 0.4 above: exp((0.2 + 0.4 - 0.5) / 3), and 0 where it cut.
    assert token_weights("geo_mean", d, cut, 1.0, (0.4, 0.4)) == pytest.approx([1.0339, 0, 1.0339], abs=1e-4)
    # A < 0: the lower bound holds the last one, exp((0.2 + 0.9 - 0.4) / 3).
    below = token_weights("geo_mean", d, np.array([False, False, True]), -1.0, (0.4, 0.4))
    assert below == pytest.approx([1.2628, 1.2628, 0], abs=1e-4)
    assert token_weights("vanilla", d, cut, 1.0, None) == pytest.approx([1.2214, 0, 0.6065], abs=1e-4)
    assert token_weights("sapo", d, cut, 1.0, None) is None


def test_the_texts_of_tokens_together_are_the_text(made: Path) -> None:
    tokenizer = bpe_tokenizer(["the the cat sat"], 280).backend_tokenizer
    text = "the cat: 42 × 三只猫 😀 é"
    ids = tokenizer.encode(text).ids
    assert len(ids) > len(text)  # signs of several tokens
    assert "".join(_pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=False)
    data = read_data(made)
    recorded = [json.loads(line) for line in (made / "samples" / "1.jsonl").read_text().splitlines()]
    row = next(row for row in recorded if "response_ids" in row)
    written = re.sub(r"<\w+>", "", "".join(token_texts(data)(row["response_ids"])))
    assert written.split() == row["output"].split()


def test_every_metric_of_a_page_is_described_in_both_languages() -> None:
    assert not [name for name in metrics_of() for language in ("en", "zh") if describe(name, language) is None]
    found = describe("actor/log_ratio/q99.9", "en")
    assert found is not None
    assert found.formula == "quantiles of d, in percent"


def test_the_library_is_the_published_one() -> None:
    assert {name: hashlib.sha256((PAGE / name).read_bytes()).hexdigest() for name in LIBRARY} == LIBRARY


def test_code_and_library_take_at_most_150_kb() -> None:
    files = (*SCRIPTS, "page.html", "page.css", *LIBRARY)
    assert sum((PAGE / name).stat().st_size for name in files) <= 150_000
    assert {file.name for file in PAGE.iterdir()} == set(files)


def test_a_page_is_one_file_that_may_ask_for_nothing(made: Path) -> None:
    text = page(read_report([made]))
    assert "default-src 'none'" in text
    assert len(text.encode()) < MOST
    outside = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", outside)
    assert "{{" not in text


def test_what_a_model_writes_cannot_leave_its_block(run: Path) -> None:
    file = run / "samples" / "3.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["output"] = "</script><img src=x onerror=alert(1)>"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "onerror" not in page(read_report([run]))


def test_the_same_run_gives_the_same_blocks(made: Path) -> None:
    one, other = (read_report([made]).samples[0] for _ in range(2))
    assert (one.texts, one.tokens) == (other.texts, other.tokens)


def test_differences_are_paired_by_seed() -> None:
    """1, 2 and 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees of freedom 4.303."""
    found = difference({1: 0.0, 2: 1.0, 3: 5.0, 9: 7.0}, {3: 8.0, 2: 3.0, 1: 1.0})
    assert found is not None
    assert (found["mean"], found["pairs"]) == (2.0, 3)
    assert (found["low"], found["high"]) == (pytest.approx(-0.4841, abs=1e-3), pytest.approx(4.4841, abs=1e-3))
    assert difference({1: 0.0}, {2: 1.0}) is None
    assert difference({1: 0.0}, {1: 1.0}) == {"mean": 1.0, "low": None, "high": None, "pairs": 1}


def test_runs_of_one_kind_are_a_group_and_what_differs_is_listed(made: Path, run: Path) -> None:
    saved = json.loads((run / "run.json").read_text())
    saved["identity"]["trainer.seed"] = 2
    (run / "run.json").write_text(json.dumps(saved))
    runs = [read_data(made), read_data(run)]
    assert [group["runs"] for group in compared(runs, ["a", "b"])["groups"]] == [[0, 1]]
    saved["identity"]["actor_rollout_ref.actor.optim.lr"] = 0.5
    (run / "run.json").write_text(json.dumps(saved))
    found = compared([runs[0], read_data(run)], ["a", "b"])
    assert [group["runs"] for group in found["groups"]] == [[0], [1]]
    assert found["changed"] == [{"key": "actor_rollout_ref.actor.optim.lr", "values": ["0.001", "0.5"]}]


def test_a_sparkline_goes_from_the_least_to_the_greatest() -> None:
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1.0, None, float("nan"), 1.0], 4) == "▄  ▄"
    assert sparkline([], 4) == ""


def test_the_band_stands_between_the_bounds() -> None:
    """From -0.5 to 0.5 in 21 places of 0.05."""
    assert band(-0.2, -0.1, 0.1, 0.3, (0.4, 0.4), 21) == "  |   ──━━·━━──── |  "
    assert band(-9.0, -0.1, 0.1, 9.0, (0.4, 0.4), 21)[0] == "<"


def test_the_time_left_is_that_of_the_newest_steps(made: Path) -> None:
    data = read_data(made)
    assert time_left(data) is None
    data.status = "running"
    data.history = [{"timing_s/step": 2.0, "timing_s/testing": 1.0, "training/global_step": k} for k in (1, 2)]
    assert data.record is not None
    assert time_left(data) is None  # 3 of 3 steps
    object.__setattr__(data.record, "total_steps", 13)
    assert time_left(data) == 30.0


def test_the_commands_show_a_run_and_leave_other_files_alone(run: Path, tmp_path: Path) -> None:
    shell = CliRunner()
    shown = shell.invoke(app, ["watch", str(run)])
    assert shown.exit_code == 0
    assert "step 3 of 3" in shown.output
    assert "reward" in shown.output
    assert shell.invoke(app, ["report", str(run)]).exit_code == 0
    assert shell.invoke(app, ["report", str(run)]).exit_code == 0  # a report is replaced
    assert (run / "report.html").stat().st_size > 100_000
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    refused = shell.invoke(app, ["report", str(run), "--out", str(mine)])
    assert refused.exit_code == 2
    assert mine.read_text() == "mine"
    as_json = shell.invoke(app, ["report", str(run), "--json"])
    assert json.loads(as_json.stdout)["runs"][0]["step"] == 3
