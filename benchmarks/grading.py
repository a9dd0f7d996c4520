"""Agreement of the scorers with labelled answers, and answers per second through the bounded workers.

    python benchmarks/grading.py [--data DIR] [--json FILE]

Without the folder of labelled answers only the throughput is measured. `grading_cases.jsonl` there holds answers with
labels by kind: the table gives false positives and false negatives, and Math-Verify's beside them.

`model_outputs_dev.parquet` holds model outputs with labels, `grading_dev.jsonl` assertions of other projects' test
suites about their own graders. Those projects disagree about conventions (is an unreduced fraction right? does the
order of a list matter?), so no scorer meets every row. Each row is graded by the scorer here whose convention is
nearest to that of the upstream grader (`CONVENTIONS`), and by Math-Verify alone (the reference put between dollar
signs when it is bare, default options, in the same bounded workers).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import logging
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peers
import pyarrow.parquet as pq

from gmpo.rewards.failures import failed_share
from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec
from gmpo.rewards.verdict import Grade, Verdict

CONVENTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "is_equiv": ("lighteval/MATH", {}),
    "grade_answer_verl": ("lighteval/MATH", {}),
    "is_correct_minerva": ("math_dapo", {}),
    "compute_score": ("math_dapo", {"strict_box_verify": True}),
    "env.step": ("math_dapo", {}),
}
"""Upstream grader -> our scorer and its options; every other row is graded by `math_verify`. None of ours reads answers
in square brackets (`geometry3k_reward_fn`) or countdown expressions, wants `<answer>` tags (`reward`, `custom_reward`),
or asks where thinking ends (`reasoning_accuracy_reward`)."""
BARE_ANSWERS = ("is_equiv",)
"""Upstream graders that compare bare answers, while our scorer wants a box: the prediction is put into one."""
GSM8K = "openai/gsm8k"
GSM8K_METHODS = ("strict", "flexible", "flexible_no_commas")


def math_verify_alone(solution_str: str, ground_truth: str) -> float:
    """What Math-Verify says without anything of ours but the bounded worker around it."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of its switched-off time limits
    from math_verify import parse, verify

    gold = ground_truth if "$" in ground_truth or "\\boxed" in ground_truth else f"${ground_truth}$"
    parsed = parse(gold, parsing_timeout=None), parse(solution_str, parsing_timeout=None)
    return float(verify(*parsed, timeout_seconds=None))


def graded(spec: GraderSpec, data_source: str, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Grade], float]:
    """The grades of all rows under one data source, and the seconds without the start of the workers."""
    requests = [GradeRequest(data_source, "", row["prediction"], row["gold"], {}, i) for i, row in enumerate(rows)]
    with Grader(spec) as grader:
        grader.start([data_source])
        begin = time.perf_counter()
        return grader.grade(requests), time.perf_counter() - begin


def met(grades: Sequence[Grade], rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each grade is the label; an answer that nobody could judge counts as not correct."""
    return [(g.verdict is Verdict.CORRECT) == row["expected"] for g, row in zip(grades, rows, strict=True)]


def measured(spec: GraderSpec, data_source: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Labels met, verdicts, and answers per second."""
    grades, seconds = graded(spec, data_source, rows)
    verdicts = {str(name): count for name, count in Counter(grade.verdict for grade in grades).items()}
    return {
        "rows": len(rows),
        "met": sum(met(grades, rows)),
        "answers_per_second": round(len(rows) / seconds),
        "verdicts": verdicts,
    }


def model_outputs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """GSM8K by each of its rules; MATH by its scorer, by the general one and by Math-Verify alone."""
    word_problems = [row for row in rows if row["source"].startswith("openai/grade-school-math")]
    formulas = [row for row in rows if not row["source"].startswith("openai/grade-school-math")]
    result = {
        f"gsm8k {method}": measured(GraderSpec(options={GSM8K: {"method": method}}), GSM8K, word_problems)
        for method in GSM8K_METHODS
    }
    result["MATH scorer"] = measured(GraderSpec(), "lighteval/MATH", formulas)
    result["MATH math_verify"] = measured(GraderSpec(), "math_verify", formulas)
    result["MATH Math-Verify alone"] = measured(GraderSpec(function=math_verify_alone), "any", formulas)
    return result


def scorer_of(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The scorer of ours whose convention is nearest to a row's upstream grader, and its options."""
    if row["grader"] == "env.step" and "gsm8k" in row["source"]:
        return GSM8K, {}
    return CONVENTIONS.get(row["grader"], ("math_verify", {}))


def by_our_scorers(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether the nearest scorer of ours meets each row."""
    batches: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        batches[json.dumps(scorer_of(row))].append(i)
    result = [False] * len(rows)
    for key, members in batches.items():
        data_source, options = json.loads(key)
        chosen = [rows[i] for i in members]
        boxed = [
            {**row, "prediction": f"\\boxed{{{row['prediction']}}}"} if row["grader"] in BARE_ANSWERS else row
            for row in chosen
        ]
        grades, _ = graded(GraderSpec(options={data_source: options}), data_source, boxed)
        for i, is_met in zip(members, met(grades, chosen), strict=True):
            result[i] = is_met
    return result


def agreement(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, int]]:
    """Rows met by each column, by source and in all. A row that several projects share counts for the first."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("rows", *columns), 0))
    for i, row in enumerate(rows):
        for name in (row["source"].split(":")[0], "all"):
            table[name]["rows"] += 1
            for column, values in columns.items():
                table[name][column] += values[i]
    return dict(sorted(table.items()))


def grading_table(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """Agreement by source, and the rows that the nearest scorer of ours does not meet."""
    nearest = by_our_scorers(rows)
    general = met(graded(GraderSpec(), "math_verify", rows)[0], rows)
    alone = met(graded(GraderSpec(function=math_verify_alone), "any", rows)[0], rows)
    columns = {"nearest scorer": nearest, "math_verify": general, "Math-Verify alone": alone}
    missed = [dict(row) for row, is_met in zip(rows, nearest, strict=True) if not is_met]
    return agreement(rows, columns), missed


def stories(count: int = 256, repeats: int = 10) -> dict[str, float]:
    """Milliseconds to grade a step's worth of story answers with two warm workers: median and best."""
    requests = [GradeRequest("gmpo/stories", "", "3 5 + 7 = 4 2 ; #### 4 2", "42", {}, i // 8) for i in range(count)]
    times = []
    with Grader(GraderSpec()) as grader:
        grader.start(["gmpo/stories"])
        for _ in range(repeats):
            begin = time.perf_counter()
            grader.grade(requests)
            times.append(1000 * (time.perf_counter() - begin))
    return {"answers": count, "median_ms": round(statistics.median(times), 2), "best_ms": round(min(times), 2)}


def _corpus() -> Any:
    """The tests' hostile answers."""
    file = Path(__file__).resolve().parents[1] / "tests" / "rewards" / "test_hostile_answers.py"
    spec = importlib.util.spec_from_file_location("hostile_answers", file)
    assert spec is not None
    assert spec.loader is not None
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    return corpus


def throughput(count: int = 1000, repeats: int = 5) -> dict[str, Any]:
    """Seconds that two workers take for as many ordinary answers, and for as many hostile ones, under `math_verify`.

    Ordinary answers are the tests' own by kind; hostile ones are their corpus. Best of several.
    """
    corpus = _corpus()
    cases = (Path(__file__).resolve().parents[1] / "tests" / "rewards" / "graded_answers.jsonl").read_text("utf-8")
    ordinary = [(row["answer"], row["reference"]) for row in map(json.loads, cases.splitlines())]
    inside = [f"\\boxed{{{text}}}" for text in corpus.INSIDE.values()]
    hostile = [(text, corpus.TRUTH) for text in (*inside, *corpus.WHOLE.values())]
    result: dict[str, Any] = {"answers": count}
    with Grader(GraderSpec(workers=2, timeout_s=5.0, memory_mb=512)) as grader:
        grader.start(["math_verify"])
        for name, pairs in (("ordinary", ordinary), ("hostile", hostile)):
            chosen = list(itertools.islice(itertools.cycle(pairs), count))
            requests = [GradeRequest("math_verify", "", text, gold, {}, i) for i, (text, gold) in enumerate(chosen)]
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                grades = grader.grade(requests)
                times.append(time.perf_counter() - begin)
            verdicts = dict(Counter(str(grade.verdict) for grade in grades))
            result[name] = {"seconds": round(min(times), 3), "verdicts": verdicts, "failures": failed_share(grades)}
    result["hostile_to_ordinary"] = round(result["hostile"]["seconds"] / result["ordinary"]["seconds"], 2)
    return result


def by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """False positives and false negatives of answers with a label, by kind, of ours and of Math-Verify alone.

    Rows that are marked doubtful are left out. `general` counts the rows of the general scorer alone.
    """
    clear = [row for row in rows if not row["doubtful"]]
    asked = [{**row, "prediction": row["answer"], "gold": row["ground_truth"]} for row in clear]
    ours: list[bool] = [False] * len(asked)
    for source in dict.fromkeys(row["data_source"] for row in asked):
        members = [i for i, row in enumerate(asked) if row["data_source"] == source]
        grades, _ = graded(GraderSpec(), source, [asked[i] for i in members])
        for i, grade in zip(members, grades, strict=True):
            ours[i] = grade.verdict is Verdict.CORRECT
    alone = [g.verdict is Verdict.CORRECT for g in graded(GraderSpec(function=math_verify_alone), "any", asked)[0]]
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_COUNTS, 0))
    for row, mine, theirs in zip(asked, ours, alone, strict=True):
        right = row["expected"] == "correct"
        general = row["data_source"] == "math_verify"
        for name in (row["kind"], *(("general", "all") if general else ("all",))):
            counts = table[name]
            counts["right" if right else "wrong"] += 1
            counts["false_negatives"] += right and not mine
            counts["false_positives"] += mine and not right
            counts["their_false_negatives"] += right and not theirs
            counts["their_false_positives"] += theirs and not right
    return dict(table)


_COUNTS = (*("right", "wrong", "false_positives", "false_negatives", "their_false_positives", "their_false_negatives"),)


def print_kinds(table: Mapping[str, Mapping[str, int]]) -> None:
    """One line a kind."""
    print(f"{'kind':44} {'wrong':>6} {'FP':>4} {'MV':>4} {'right':>6} {'FN':>4} {'MV':>4}")
    for name, c in table.items():
        print(f"{name:44} {c['wrong']:6} {c['false_positives']:4} {c['their_false_positives']:4} ", end="")
        print(f"{c['right']:6} {c['false_negatives']:4} {c['their_false_negatives']:4}")


def main() -> None:
    """Print the tables, and write them as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--json", type=Path, help="also write the figures, and the rows not met, to this file")
    arguments = parser.parse_args()
    resisted = throughput()
    print(f"throughput: {resisted}")
    if not arguments.data.exists():
        print(f"{arguments.data} is not here: the labelled answers are left out")
        return
    kinds: dict[str, dict[str, int]] = {}
    if (cases := arguments.data / "grading_cases.jsonl").exists():
        kinds = by_kind([json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()])
        print_kinds(kinds)
    outputs = model_outputs(pq.read_table(arguments.data / "model_outputs_dev.parquet").to_pylist())
    lines = (arguments.data / "grading_dev.jsonl").read_text(encoding="utf-8").splitlines()
    table, missed = grading_table([json.loads(line) for line in lines])
    speed = stories()
    for name, figures in outputs.items():
        print(f"{name:24} {figures}")
    print(f"{'source':36} {'rows':>5} {'nearest scorer':>15} {'math_verify':>12} {'Math-Verify alone':>18}")
    for name, counts in table.items():
        print(f"{name:36} {counts['rows']:5} {counts['nearest scorer']:15} ", end="")
        print(f"{counts['math_verify']:12} {counts['Math-Verify alone']:18}")
    print(f"stories: {speed}")
    if arguments.json:
        figures = {
            "model_outputs": outputs,
            "grading_table": table,
            "not_met": missed,
            "stories": speed,
            "throughput": resisted,
            "kinds": kinds,
        }
        peers.record(arguments.json, figures)


if __name__ == "__main__":
    main()
