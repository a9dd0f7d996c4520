"""Bounded grading: whatever one answer does, it has its own verdict and the others keep theirs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmpo.errors import BackendError, ConfigError, DataError
from gmpo.rewards.grader import Grader, GradeRequest, GraderSpec
from gmpo.rewards.portable import FunctionFile
from gmpo.rewards.verdict import Grade, Verdict

CORRECT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED
TIMEOUT, GRADER_ERROR = Verdict.TIMEOUT, Verdict.GRADER_ERROR


def requests(
    texts: Sequence[str], data_source: str = "gmpo/stories", gold: str = "42", group_size: int = 1, **extra: Any
) -> list[GradeRequest]:
    prompt = [{"role": "user", "content": "?"}]
    return [GradeRequest(data_source, prompt, text, gold, extra, i // group_size) for i, text in enumerate(texts)]


def grade(function: Callable[..., Any] | None, texts: Sequence[str], **spec: Any) -> list[Grade]:
    with Grader(GraderSpec(function=function, **spec)) as grader:
        return grader.grade(requests(texts))


def verdicts(grades: Sequence[Grade]) -> list[Verdict]:
    return [grade.verdict for grade in grades]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_grades_come_in_the_order_of_the_requests() -> None:
    texts = [f"#### {' '.join(str(i))}" for i in range(500)]
    with Grader(GraderSpec()) as grader:
        for _ in range(2):
            grades = grader.grade(requests(texts))
            assert [g.pred for g in grades] == [str(i) for i in range(500)]
            assert [i for i, g in enumerate(grades) if g.verdict is CORRECT] == [42]
        assert grader.grade([]) == []


def test_one_batch_may_mix_data_sources_and_options_reach_their_scorer() -> None:
    mixed = [
        *requests(["#### 42", "42"], "openai/gsm8k"),
        *requests([r"\boxed{42}"], "lighteval/MATH"),
        *requests([r"\boxed{\frac{84}{2}}"], "math_verify"),
        *requests(["Answer: 41"], "aime24"),
    ]
    with Grader(GraderSpec(options={"openai/gsm8k": {"method": "flexible"}})) as grader:
        grades = grader.grade(mixed)
    assert verdicts(grades) == [CORRECT, CORRECT, CORRECT, CORRECT, WRONG]
    assert grades[-1].score == -1.0


def test_a_timeout_is_the_verdict_of_the_slow_answer_alone() -> None:
    def compute_score(solution_str: str) -> float:
        while solution_str == "spin":
            pass
        return float(solution_str)

    grades = grade(compute_score, ["1", "0", "spin", "1", "0", "spin", "1"], timeout_s=1)
    assert verdicts(grades) == [CORRECT, WRONG, TIMEOUT, CORRECT, WRONG, TIMEOUT, CORRECT]
    assert grades[2].reason == "no result within 1 s of computing"
    assert (grades[2].score, grades[2].extra) == (0.0, {"acc": 0})


def test_waiting_uses_up_no_limit_of_computing_and_ends_by_the_clock_as_an_error_of_the_grader() -> None:
    """The limit is 0.2 s of the processor; a wait of 0.3 s costs none of it, one of a minute is ended after 0.8 s."""

    def compute_score(solution_str: str) -> float:
        import time

        time.sleep(float(solution_str))
        return 1.0

    start = time.monotonic()
    grades = grade(compute_score, ["0.3", "60"], workers=1, timeout_s=0.2)
    assert time.monotonic() - start < 30
    assert verdicts(grades) == [CORRECT, GRADER_ERROR]
    assert (grades[1].reason or "").startswith("no result within 0.8 s, in which it hardly computed")


def test_the_limit_is_per_answer_and_not_per_batch() -> None:
    def compute_score(solution_str: str) -> float:
        import time

        time.sleep(0.1)
        return 1.0

    assert verdicts(grade(compute_score, ["x"] * 12, workers=1, timeout_s=0.8)) == [CORRECT] * 12


def test_a_function_that_ignores_sigterm_is_killed_all_the_same() -> None:
    def compute_score(solution_str: str) -> float:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    assert verdicts(grade(compute_score, ["x"], timeout_s=0.2)) == [TIMEOUT]


def crash(solution_str: str) -> float:
    if solution_str == "exit":
        os._exit(3)
    if solution_str == "segfault":
        import ctypes

        ctypes.string_at(0)
    if solution_str == "sysexit":
        sys.exit("enough")
    if solution_str == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if solution_str == "recursion":

        def forever() -> None:
            forever()

        forever()
    return 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exit", "the grading worker died: exit code 3"),
        ("segfault", "the grading worker died: signal SIGSEGV"),
        ("kill", "the grading worker died: signal SIGKILL"),
        ("sysexit", "SystemExit: enough"),
        ("recursion", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_crash_is_a_grader_error_of_the_answer_that_caused_it(text: str, reason: str) -> None:
    grades = grade(crash, ["ok", "ok", text, "ok", "ok"], workers=1)
    assert verdicts(grades) == [CORRECT, CORRECT, GRADER_ERROR, CORRECT, CORRECT]
    assert (grades[2].reason or "").startswith(reason)


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux only")
def test_too_much_memory_is_a_grader_error_and_the_worker_is_replaced() -> None:
    def compute_score(solution_str: str) -> dict[str, Any]:
        import os

        if solution_str == "big":
            bytearray(10**9)
        return {"score": 1, "pid": os.getpid()}

    grades = grade(compute_score, ["x", "big", "x"], workers=1, memory_mb=200)
    assert verdicts(grades) == [CORRECT, GRADER_ERROR, CORRECT]
    assert grades[1].reason == "out of memory: the grader needs more than its 200 MiB"
    assert grades[0].extra["pid"] != grades[2].extra["pid"]


def test_prints_of_a_user_function_neither_disturb_the_grades_nor_reach_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def compute_score(solution_str: str) -> float:
        import os

        print('{"grades": []}')
        os.write(1, b"raw\n")
        return 1.0

    assert verdicts(grade(compute_score, ["x"] * 3)) == [CORRECT] * 3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count('{"grades": []}') == 3
    assert err.count("raw") == 3


def test_lambdas_closures_and_functions_of_a_test_module_travel_to_the_workers() -> None:
    gold = {"x"}
    assert verdicts(grade(lambda solution_str: solution_str in gold, ["x", "y"])) == [CORRECT, WRONG]
    assert verdicts(grade(crash, ["ok"])) == [CORRECT]


def test_a_function_of_a_module_that_cannot_be_imported_by_name_travels_by_value(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere_rewards.py"
    file.write_text("RIGHT = 'x'\ndef compute_score(solution_str):\n    return solution_str == RIGHT\n")
    spec = importlib.util.spec_from_file_location("elsewhere_rewards", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["elsewhere_rewards"] = module
    spec.loader.exec_module(module)
    try:
        assert verdicts(grade(module.compute_score, ["x", "y"])) == [CORRECT, WRONG]
    finally:
        del sys.modules["elsewhere_rewards"]


def test_a_function_of_the_main_program_grades_without_running_the_program_again(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from gmpo.rewards.grader import *\n"
        "print('started')\n"
        "BONUS = 2.0\n"
        "def compute_score(solution_str): return BONUS\n"
        "with Grader(GraderSpec(function=compute_score)) as grader:\n"
        "    print(grader.grade([GradeRequest('s', '', 't', 'g', {}, 0)])[0].score)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "started\n2.0\n"


def test_what_cannot_be_sent_to_a_worker_is_an_error_that_says_so() -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to a grading worker"):
        Grader(GraderSpec(function=lambda solution_str: bool(lock)))
    with Grader(GraderSpec()) as grader, pytest.raises(DataError, match="extra_info of answer 0"):
        grader.grade(requests(["x"], lock=lock))


def test_trl_functions_are_called_once_per_group_wherever_its_answers_stand() -> None:
    def reward(completions: Any, **columns: Any) -> list[dict[str, Any]]:
        texts = [completion[0]["content"] for completion in completions]
        return [{"score": 1.0, "together": texts} for _ in texts]

    mixed = [GradeRequest("s", [], text, "g", {}, group) for text, group in [("a", 0), ("b", 7), ("c", 0)]]
    with Grader(GraderSpec(function=reward)) as grader:
        grades = grader.grade(mixed)
    assert [g.extra["together"] for g in grades] == [["a", "c"], ["b"], ["a", "c"]]


def test_a_trl_call_may_take_the_limit_of_all_its_answers() -> None:
    def reward(completions: Any, **columns: Any) -> list[float]:
        import time

        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        return [1.0] * len(completions)

    with Grader(GraderSpec(function=reward, timeout_s=0.3)) as grader:
        assert verdicts(grader.grade(requests(["x"] * 4, group_size=4))) == [CORRECT] * 4
        assert verdicts(grader.grade(requests(["x"] * 2, group_size=1))) == [TIMEOUT] * 2


def test_the_file_named_by_the_configuration_grades_with_its_kwargs(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        "async def score(data_source, solution_str, ground_truth, extra_info, bonus=0):\n"
        "    return {'score': extra_info['index'] + bonus, 'acc': solution_str == ground_truth}\n"
    )
    spec = GraderSpec(function=FunctionFile(str(file), "score"), kwargs={"bonus": 0.5})
    with Grader(spec) as grader:
        grades = grader.grade(requests(["42", "41"], index=3))
    assert [(g.verdict, g.score) for g in grades] == [(CORRECT, 3.5), (WRONG, 3.5)]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, ConfigError, "there is no file"),
        ("x = 1", ConfigError, "has no function 'compute_score'"),
        ("import no_such_library", ConfigError, "line 1.*No module named 'no_such_library'"),
        ("def compute_score(a, b): return 1", ConfigError, "must have a parameter solution_str"),
        ("import os; os._exit(5)", BackendError, "did not start: exit code 5"),
        ("while True: pass", BackendError, "did not start: no result within 1 s"),
    ],
)
def test_a_worker_that_cannot_start_is_a_clear_error_before_any_grading(
    tmp_path: Path, source: str | None, error: type[Exception], message: str
) -> None:
    file = tmp_path / "reward.py"
    if source is not None:
        file.write_text(source)
    spec = GraderSpec(function=FunctionFile(str(file)), workers=2, start_timeout_s=1.0)
    with Grader(spec) as grader, pytest.raises(error, match=f"(?s){message}"):
        grader.start()


def test_an_unknown_data_source_is_known_at_the_start() -> None:
    with Grader(GraderSpec()) as grader, pytest.raises(DataError, match="No scorer for data_source 'mine'"):
        grader.start(["gmpo/stories", "mine"])


def test_settings_without_meaning_are_refused() -> None:
    for wrong in ({"workers": 0}, {"timeout_s": 0.0}, {"memory_mb": -1}, {"timeout_s": float("nan")}):
        with pytest.raises(ConfigError, match="must be greater than 0"):
            GraderSpec(**wrong)
    with pytest.raises(ConfigError, match="has no effect without"):
        GraderSpec(kwargs={"bonus": 1})
    with pytest.raises(ConfigError, match="no option 'methd'"):
        GraderSpec(options={"openai/gsm8k": {"methd": "strict"}})


def forking(solution_str: str, extra_info: Mapping[str, Any]) -> float:
    child = os.fork()
    if child == 0 and solution_str == "return":
        return 0.0
    if child == 0:
        while True:
            time.sleep(1)
    with open(extra_info["pids"], "a") as file:
        file.write(f"{child}\n")
    if solution_str == "die":
        os._exit(1)
    if solution_str == "hang":
        time.sleep(60)
    return 1.0


@pytest.mark.parametrize(
    ("text", "verdict"), [("", CORRECT), ("die", GRADER_ERROR), ("hang", GRADER_ERROR), ("return", CORRECT)]
)
def test_what_a_user_function_forks_ends_with_its_worker_and_does_not_grade(
    tmp_path: Path, text: str, verdict: Verdict
) -> None:
    pids = tmp_path / "pids"
    # Only the one that hangs waits for its limit: a death is noticed although a child holds the socket open.
    limit = 0.25 if text == "hang" else 300.0
    with Grader(GraderSpec(function=forking, timeout_s=limit, workers=1)) as grader:
        grades = grader.grade(requests([text, ""], pids=str(pids)))
    assert verdicts(grades) == [verdict, CORRECT]
    children = [int(line) for line in pids.read_text().split()]
    assert len(children) == 2
    assert wait_until(lambda: not any(is_running(child) for child in children))


@pytest.mark.parametrize(
    "reply", ['{"grades": [{}]}', "[]", "not json", '{"grades": []}', "[" * 10_000, "x" * 5_000_000]
)
def test_a_forged_reply_judges_nobody(reply: str) -> None:
    def compute_score(solution_str: str, extra_info: Mapping[str, Any]) -> float:
        import os
        import socket

        if solution_str == "forge":
            for descriptor in range(3, 200):
                try:
                    end = socket.socket(fileno=os.dup(descriptor))
                    end.sendall(extra_info["reply"].encode() + b"\n")
                except OSError:
                    continue
        return 1.0

    with Grader(GraderSpec(function=compute_score, workers=1, timeout_s=3.0)) as grader:
        grades = grader.grade(requests(["ok", "forge", "ok"], reply=reply))
    assert verdicts(grades) == [CORRECT, GRADER_ERROR, CORRECT]


def test_large_answers_and_large_replies_do_not_block_either_side() -> None:
    def compute_score(solution_str: str) -> dict[str, Any]:
        return {"score": 1, "echo": solution_str if len(solution_str) < 2_000_000 else solution_str * 3}

    texts = ["x" * 1_000_000] * 40 + ["y" * 2_000_000]
    grades = grade(compute_score, texts, timeout_s=20.0)
    assert verdicts(grades) == [CORRECT] * 40 + [GRADER_ERROR]
    assert [len(g.extra["echo"]) for g in grades[:40]] == [1_000_000] * 40
    assert "at most" in (grades[40].reason or "")


def test_a_worker_that_reads_nothing_more_does_not_block_the_trainer() -> None:
    def compute_score(solution_str: str) -> float:
        import time

        time.sleep(60 if solution_str[0] == "z" else 0)
        return 1.0

    texts = ["z" * 2_000_000, *["x" * 2_000_000] * 4]
    assert verdicts(grade(compute_score, texts, workers=1, timeout_s=1.0)) == [GRADER_ERROR] + [CORRECT] * 4


def test_workers_stay_between_calls_and_a_worker_that_died_meanwhile_is_replaced() -> None:
    def compute_score(solution_str: str) -> dict[str, Any]:
        import os

        return {"score": 1, "pid": os.getpid()}

    with Grader(GraderSpec(function=compute_score, workers=1)) as grader:
        [first], [second] = grader.grade(requests(["x"])), grader.grade(requests(["x"]))
        assert first.extra["pid"] == second.extra["pid"]
        os.kill(first.extra["pid"], signal.SIGKILL)
        assert wait_until(lambda: not is_running(first.extra["pid"]))
        [third] = grader.grade(requests(["x"]))
        assert third.extra["pid"] != first.extra["pid"]
        grader.close()
        assert wait_until(lambda: not is_running(third.extra["pid"]))
        assert verdicts(grader.grade(requests(["x"]))) == [CORRECT]


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_closed_grader_leaves_no_descriptor_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    assert verdicts(grade(crash, ["ok", "exit", "ok"])) == [CORRECT, GRADER_ERROR, CORRECT]
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_call_from_another_thread_works_after_the_first_thread_has_ended() -> None:
    results: list[list[Verdict]] = []
    with Grader(GraderSpec()) as grader:
        for _ in range(3):
            thread = threading.Thread(target=lambda: results.append(verdicts(grader.grade(requests(["#### 42"])))))
            thread.start()
            thread.join()
    assert results == [[CORRECT]] * 3


SPINNING_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in a shell's background
from gmpo.rewards.grader import *
def compute_score(solution_str):
    print(os.getpid(), file=sys.stderr, flush=True)
    while True: pass
with Grader(GraderSpec(function=compute_score, workers=1, timeout_s=60)) as grader:
    grader.grade([GradeRequest('s', '', 't', 'g', {}, 0)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a busy worker is told of its parent's death on Linux only")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_busy_workers_end_with_the_trainer_however_it_ends(how: signal.Signals) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", SPINNING_PROGRAM], stderr=subprocess.PIPE, text=True)
    assert trainer.stderr is not None
    worker = int(trainer.stderr.readline())
    assert is_running(worker)
    trainer.send_signal(how)
    trainer.wait(10)
    assert wait_until(lambda: not is_running(worker))
    trainer.stderr.close()


def test_ctrl_c_in_the_terminal_does_not_reach_the_workers() -> None:
    def compute_score(solution_str: str) -> dict[str, Any]:
        import os

        return {"score": 1, "session": os.getsid(0), "pid": os.getpid()}

    [graded] = grade(compute_score, ["x"])
    assert graded.extra["session"] == graded.extra["pid"] != os.getsid(0)


def test_grading_stories_imports_neither_torch_nor_math_verify_nor_numpy() -> None:
    program = (
        "import json, sys, gmpo.rewards.worker, gmpo.rewards.failures; "
        "print(json.dumps([m for m in ('torch', 'math_verify', 'sympy', 'numpy', 'pydantic') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == []


def test_hostile_mathematics_neither_hangs_nor_counts_as_correct() -> None:
    hostile = [
        r"\boxed{\binom{10^{9}}{5\cdot 10^{8}}}",
        r"\boxed{(10^8)!}",
        "(" * 5000 + "1" + ")" * 5000,
        r"\boxed{" + "9" * 100_000 + "}",
        "\\boxed{" * 2000,
        r"\boxed{__import__('os')._exit(0)}",
        r"\sum_{k=1}^{10^8} \sin k",
    ]
    good = [r"\boxed{42}", r"\boxed{84/2}"]
    with Grader(GraderSpec(timeout_s=1.0)) as grader:
        grades = grader.grade(requests([good[0], *hostile, good[1]], "math_verify"))
    assert [grades[0].verdict, grades[-1].verdict] == [CORRECT, CORRECT]
    assert CORRECT not in verdicts(grades[1:-1])
    assert grades[1].verdict is TIMEOUT
    assert grades[2].verdict is TIMEOUT


# --- gradings beside other work


@pytest.mark.parametrize("size", [1, 3, 20])
def test_answers_added_bit_by_bit_get_the_grades_of_one_call(size: int) -> None:
    texts = [f"so it is #### {n}" if n % 3 else "no idea" for n in range(36, 48)]
    with Grader(GraderSpec(workers=2)) as grader:
        asked = requests(texts)
        grading = grader.begin()
        for start in range(0, len(asked), size):
            grading.add(asked[start : start + size])
        bit_by_bit = grading.finish()
        assert bit_by_bit == grader.grade(asked)
    assert len(set(verdicts(bit_by_bit))) > 1


def test_grading_goes_on_while_the_caller_does_something_else(tmp_path: Path) -> None:
    """Nobody waits for the grades, and they are made: each leaves a file."""

    def note(data_source: str, solution_str: str, ground_truth: str, extra_info: Any) -> float:
        (tmp_path / solution_str).touch()
        return 1.0

    with Grader(GraderSpec(function=note, workers=2)) as grader:
        grader.start()
        grading = grader.begin()
        grading.add(requests(list("abcd")))
        assert wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
        assert [g.score for g in grading.finish()] == [1.0] * 4


def test_answers_to_one_problem_stay_together_for_a_function_that_compares_them() -> None:
    def most_frequent(completions: list[str], **columns: Any) -> list[float]:
        return [float(completions.count(c) > 1) for c in completions]

    with Grader(GraderSpec(function=most_frequent, workers=2)) as grader:
        grading = grader.begin()
        grading.add(requests(["a", "a", "b"], group_size=3))
        grading.add(requests(["b", "b", "a"], group_size=3))
        assert [g.score for g in grading.finish()] == [1, 1, 0, 1, 1, 0]


def test_a_batch_that_was_given_up_owes_nothing_to_the_next() -> None:
    def slow(data_source: str, solution_str: str, ground_truth: str, extra_info: Any) -> float:
        time.sleep(30 if solution_str == "given up" else 0)
        return float(solution_str == "next")

    with Grader(GraderSpec(function=slow, workers=1)) as grader:
        with grader.begin() as abandoned:
            abandoned.add(requests(["given up"] * 5))
        assert [g.score for g in grader.grade(requests(["next"]))] == [1.0]


def labelled(solution_str: str) -> dict[str, Any]:
    return {"score": 1.0, "said": solution_str}


def said(grades: Sequence[Grade]) -> list[str]:
    return [grade.extra["said"] for grade in grades]


def test_two_open_batches_each_get_their_own_grades_whichever_ends_first() -> None:
    with Grader(GraderSpec(function=labelled, workers=1)) as grader:
        for first_ends_first in (True, False):
            one, two = grader.begin(), grader.begin()
            one.add(requests(["a0", "a1", "a2", "a3"]))
            two.add(requests(["b0", "b1"]))
            if first_ends_first:
                assert said(one.finish()) == ["a0", "a1", "a2", "a3"]
            assert said(two.finish()) == ["b0", "b1"]
            if not first_ends_first:
                assert said(one.finish()) == ["a0", "a1", "a2", "a3"]


@pytest.fixture(scope="module")
def labelling() -> Iterator[Grader]:
    with Grader(GraderSpec(function=labelled, workers=2)) as grader:
        yield grader


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.sampled_from(["add", "finish", "close"]))))
def test_any_interleaving_of_three_open_batches_gives_each_its_own_grades(
    labelling: Grader, events: list[tuple[int, int, str]]
) -> None:
    """`add` hands over answers, `finish` and `close` end a batch, and the next event opens another in its place."""
    gradings: dict[int, Any] = {}
    asked: dict[int, list[str]] = {}
    for time_, (place, count, event) in enumerate(events):
        if place not in gradings:
            gradings[place], asked[place] = labelling.begin(), []
        if event == "add":
            texts = [f"{time_} {place} {i}" for i in range(count)]
            gradings[place].add(requests(texts))
            asked[place] += texts
        elif event == "finish":
            assert said(gradings.pop(place).finish()) == asked[place]
        elif count < 3:  # seldom: it may cost a worker
            gradings.pop(place).close()
    for place in list(gradings):
        assert said(gradings.pop(place).finish()) == asked[place]
    assert not labelling._open


def gated(solution_str: str, extra_info: dict[str, Any]) -> float:
    """Waits until the gate is there, then says in a file that this answer is graded."""
    while not os.path.exists(extra_info["gate"]):
        time.sleep(0.01)
    with open(extra_info["graded"], "a") as out:
        out.write(f"{solution_str}\n")
    return 1.0


def test_a_later_batch_does_not_wait_for_the_whole_of_an_earlier_one(tmp_path: Path) -> None:
    gate, graded = tmp_path / "gate", tmp_path / "graded"
    asked = {"gate": str(gate), "graded": str(graded)}
    with Grader(GraderSpec(function=gated, workers=2)) as grader:
        one, two = grader.begin(), grader.begin()
        one.add(requests(["long"] * 300, **asked))
        two.add(requests(["short"] * 3, **asked))
        gate.touch()  # nothing was graded before, however fast the workers are
        assert len(two.finish()) == 3
        assert len(one.finish()) == 300
    order = graded.read_text().split()
    assert order.count("long") == 300
    # Two workers held up to 16 of the first batch; behind these the batches take turns.
    assert len(order) - order[::-1].index("short") < 100


def test_an_error_in_one_batch_ends_it_alone() -> None:
    with Grader(GraderSpec(workers=1)) as grader:
        one, two = grader.begin(), grader.begin()
        one.add(requests(["#### 42"] * 40))
        with pytest.raises(DataError, match="No scorer for data_source 'mine'"):
            two.add(requests(["x"], "mine"))
        assert verdicts(one.finish()) == [CORRECT] * 40
        with pytest.raises(ValueError, match="this batch of gradings is closed"):
            two.finish()


def test_a_worker_that_dies_with_answers_of_two_batches_costs_one_answer() -> None:
    with Grader(GraderSpec(function=crash, workers=1)) as grader:
        one, two = grader.begin(), grader.begin()
        one.add(requests(["ok", "exit", "ok"]))
        two.add(requests(["ok", "ok", "ok"]))
        assert verdicts(two.finish()) == [CORRECT] * 3
        assert verdicts(one.finish()) == [CORRECT, GRADER_ERROR, CORRECT]


def test_closing_the_grader_loses_no_open_batch() -> None:
    with Grader(GraderSpec(function=labelled, workers=1)) as grader:
        one = grader.begin()
        one.add(requests(list("abc")))
        grader.close()
        assert said(one.finish()) == ["a", "b", "c"]
