"""Run folders -> what a page shows, as JSON values, and the page itself."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gmpo.config.layers import RECIPES
from gmpo.config.resolved import as_tree
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig
from gmpo.errors import BackendError, ConfigError
from gmpo.metrics.collapse import STEP
from gmpo.objectives import ESTIMATORS
from gmpo.records.run_folder import SAMPLES, VALIDATION
from gmpo.report.compare import compared
from gmpo.report.metric_docs import describe
from gmpo.report.panels import drawn, metrics_of
from gmpo.report.ratio import bounds_of, loss_of, ratio_sentences
from gmpo.report.reading import RunData, read_answers, read_data
from gmpo.report.samples import COLUMNS, Samples, gather, packed
from gmpo.report.tokens import token_texts
from gmpo.report.verdicts import Finding, findings
from gmpo.report.wording import LANGUAGES, sentences
from gmpo.version import __version__

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("words.js", "core.js", "plots.js", "curves.js", "samples.js", "main.js")
LIBRARY = "uPlot.iife.min.js"
MARK = '<meta name="generator" content="gmpo report">'
"""By which a report is told from other files, which are not replaced."""
MOST = 4_900_000
"""Bytes of a report, about; answers that do not fit are left out and counted."""
DIGITS = 5
"""Significant digits of a curve."""
PLACES = ("trainer.default_local_dir", "trainer.logger", "trainer.project_name", "trainer.experiment_name")
"""Settings that say nothing of what a run does."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was made."""

    runs: tuple[RunData, ...]
    values: Mapping[str, Any]
    """What the page shows, without answers."""
    samples: tuple[Samples, ...]


def read_report(folders: Sequence[Path], *, most: int = MOST, answers: bool = True) -> Report:
    """Read runs for a report.

    Args:
        folders: run folders, or those of a quickstart.
        most: bytes of the page; answers get what is left of it.
        answers: read them too.

    Raises:
        DataError: one of them is no run folder.
    """
    runs = tuple(read_data(folder) for folder in folders)
    names = _names(runs)
    values = [_run(run, name) for run, name in zip(runs, names, strict=True)]
    shown = _shown_metrics(values)
    panels = drawn(list(shown), shown)
    documented = {name: _documentation(name) for name in metrics_of() if name in shown}
    report = {
        "gmpo": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "runs": values,
        "panels": [
            {
                "id": p.id,
                "title": p.title,
                "series": p.series,
                "band": p.band,
                "unit": p.unit,
                "stacked": p.stacked,
                "points": p.points,
                "log": p.log,
            }
            for p in panels
        ],
        "docs": documented,
        "comparison": compared(runs, names) if len(runs) > 1 else None,
    }
    room = (most - _size_of_code() - len(packed(_finite(report)))) // len(runs)
    samples = tuple(_samples(run, room) if answers else Samples({name: [] for name in COLUMNS}) for run in runs)
    for one, run, found in zip(values, runs, samples, strict=True):
        one["samples"] = {"columns": found.columns, "problems": found.problems, "left_out": found.left_out}
        one["notices"] = list(dict.fromkeys(run.notices))
    return Report(runs, report, samples)


def write_report(report: Report, out: Path) -> int:
    """Write the page; returns its bytes. A report that is there is replaced, another file is not.

    Raises:
        ConfigError: another file has this name.
        BackendError: it cannot be written.
    """
    try:
        if out.is_dir() or (out.exists() and MARK not in out.read_text("utf-8", errors="replace")[:2000]):
            raise ConfigError(f"--out {out} is there and is no report: name another file with --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        text = page(report)
        beside = out.with_name(f".unfinished_{out.name}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        raise BackendError(f"cannot write {out}: {error.strerror}. Name a place with --out FILE.") from error
    return len(text.encode())


def page(report: Report) -> str:
    """The whole HTML file."""
    blocks = [_block("report", packed(_finite(report.values)))]
    for number, samples in enumerate(report.samples):
        blocks += [_block(f"r{number}t{k}", text) for k, text in enumerate(samples.texts)]
        blocks += [_block(f"r{number}k{k}", text) for k, text in enumerate(samples.tokens)]
    title = html.escape("gmpo: " + ", ".join(one["name"] for one in report.values["runs"]))
    parts = {"title": title, "data": "\n".join(blocks), **_code()}
    text = (PAGE / "page.html").read_text("utf-8")
    for name, value in parts.items():
        text = text.replace("{{" + name + "}}", value, 1)
    return text


def summary(report: Report) -> dict[str, Any]:
    """What `--json` prints: each run's verdicts in words, its figures, the comparison."""
    kept = ("name", "folder", "status", "reason", "step", "total", "summary", "notices")
    runs = [
        {
            **{key: one[key] for key in kept},
            "findings": [{"kind": f["kind"], "level": f["level"], **f["words"]["en"]} for f in one["findings"]],
            "ratio": [said["en"] for said in one["ratio"]],
        }
        for one in report.values["runs"]
    ]
    found: dict[str, Any] = _finite({"runs": runs, "comparison": report.values["comparison"]})
    return found


def run_findings(run: RunData) -> list[Finding]:
    """The findings of a run, with what its settings say."""
    estimator = ESTIMATORS.get(str(run.settings.get("algorithm.adv_estimator")))
    compares = estimator is None or estimator.needs_groups
    rate = run.settings.get("actor_rollout_ref.actor.optim.lr", run.settings.get("optim.lr"))
    return findings(run.history, status=run.status, reason=run.reason, compares=compares, rate=rate)


def _run(run: RunData, name: str) -> dict[str, Any]:
    recipe, rows = _settings(run)
    loss, bounds = loss_of(run), bounds_of(run)
    legs = run.record.legs if run.record is not None else ()
    return {
        "name": name,
        "folder": str(run.folder),
        "status": run.status,
        "reason": run.reason,
        "step": run.step,
        "total": run.total_steps,
        "findings": [
            {"kind": f.kind, "level": f.level, "panel": f.panel, "step": f.numbers.get("step"), "words": sentences(f)}
            for f in run_findings(run)
        ],
        "summary": _summary(run),
        "curves": _curves(run),
        "ratio": ratio_sentences(run.history, loss, bounds),
        "bounds": bounds,
        "recipe": recipe,
        "settings": rows,
        "legs": [
            {
                "number": leg.number,
                "start": leg.start,
                "steps": leg.steps,
                "status": leg.status,
                "reason": leg.reason,
                "exact": leg.exact,
                "differences": [str(d) for d in leg.differences],
                "gmpo": leg.gmpo,
            }
            for leg in legs
        ],
        "environment": run.environment,
        "notices": run.notices,
    }


def _names(runs: Sequence[RunData]) -> list[str]:
    """The shortest endings of the folders that tell them apart; of a quickstart's run that of its folder."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, 6):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names) and not (length == 1 and "run" in names):
            return names
    return ["/".join(p) for p in parts]


def _summary(run: RunData) -> dict[str, Any]:
    steps, checks = run.steps, run.validations
    found: dict[str, Any] = {}
    if checks:
        rates = [[m["val/pass@1"], m.get("val/pass@1_low", 0.0), m.get("val/pass@1_high", 1.0)] for m in checks]
        found["pass"] = [rates[0], rates[-1] if len(rates) > 1 else None]
    names = {
        "reward": "critic/score/mean",
        "entropy": "actor/entropy",
        "length": "response_length/mean",
        "cut": "response_length/clip_ratio",
        "right": "reward/correct_share",
        "completed": "reward/completed_share",
    }
    for key, name in names.items():
        values = [m[name] for m in steps if name in m]
        if values:
            found[key] = [values[0], values[-1]]
    found["seconds"] = sum(m.get("timing_s/step", 0.0) for m in steps)
    return found


def _curves(run: RunData) -> dict[str, Any]:
    """Columns over the recorded steps; lines of the same step are one."""
    by_step: dict[int, dict[str, float]] = {}
    for metrics in run.history:
        by_step.setdefault(int(metrics[STEP]), {}).update(metrics)
    steps = sorted(by_step)
    columns = {}
    for name in metrics_of():
        values = [_digits(by_step[step].get(name)) for step in steps]
        if any(value is not None for value in values):
            columns[name] = values
    return {"steps": steps, "columns": columns}


def _digits(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short


def _shown_metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Metric -> whether it never changes."""
    found: dict[str, bool] = {}
    for run in runs:
        for name, values in run["curves"]["columns"].items():
            alike = len({v for v in values if v is not None}) <= 1
            found[name] = found.get(name, True) and alike
    return found


def _documentation(name: str) -> dict[str, list[str]]:
    rows = {language: describe(name, language) for language in LANGUAGES}
    return {language: [doc.formula, doc.expect] for language, doc in rows.items() if doc is not None}


def _settings(run: RunData) -> tuple[str | None, list[dict[str, Any]]]:
    """The recipe that comes nearest, and what was set, with its default and the recipe's value."""
    root: Any = SftConfig if run.record is not None and run.record.program == "sft" else Config
    known = dict(_flat(as_tree(root())))
    name, recipe = _nearest_recipe(run.given)
    rows = []
    for key, value in run.given.items():
        if key in PLACES:
            continue
        row = {"key": key, "value": value}
        if key in known:
            row["default"] = known[key]
        if key in recipe:
            row["recipe"] = recipe[key]
        if key not in recipe and row.get("default", ...) == value:
            continue
        rows.append(row)
    return name, rows


def _nearest_recipe(given: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    best: tuple[int, str | None, dict[str, Any]] = (0, None, {})
    for file in sorted(RECIPES.glob("*.yaml")):
        flat = dict(_flat(yaml.safe_load(file.read_text("utf-8")) or {}))
        if flat and all(given.get(key) == value for key, value in flat.items()) and len(flat) > best[0]:
            best = (len(flat), file.stem, flat)
    return best[1], best[2]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _samples(run: RunData, room: int) -> Samples:
    return gather(
        read_answers(run, SAMPLES),
        read_answers(run, VALIDATION),
        room=room,
        texts_of=token_texts(run),
        loss=loss_of(run),
        bounds=bounds_of(run),
    )


def _code() -> dict[str, str]:
    style = "".join((PAGE / name).read_text("utf-8") for name in ("uPlot.min.css", "page.css"))
    script = "(()=>{" + "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS) + "})();"
    licence = (PAGE / "uPlot.LICENSE").read_text("utf-8")
    return {"style": style, "library": f"/*{licence}*/{(PAGE / LIBRARY).read_text('utf-8')}", "script": script}


def _size_of_code() -> int:
    return sum(len(text.encode()) for text in _code().values()) + 4096


def _block(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN, and dates of a configuration are texts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)
