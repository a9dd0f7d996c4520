"""Dynamic sampling, the history of pass rates, and groups without variance, through whole runs of a tiny model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from gmpo.data.problems import Problem
from gmpo.errors import ConfigError, DataError
from gmpo.records.rollout import Completion, Graded, Group, group_records, groups_from_records
from gmpo.rewards.verdict import Grade, Verdict
from gmpo.training.gather import histogram

TEACHES_IN_PART = '''"""Every second problem has answers that differ; all answers to the others are right."""


def compute_score(data_source, solution_str, ground_truth, extra_info):
    if extra_info["place"] % 2:
        return {"score": 1.0, "acc": 1, "style": 0.5}
    return {"score": (len(solution_str) % 97) / 97, "acc": 0, "style": len(solution_str)}
'''

FILTER = {"algorithm.filter_groups.enable": True}


def settings(bench: Any, changes: Mapping[str, Any] | None = None, *, code: str = TEACHES_IN_PART) -> dict[str, Any]:
    reward = bench.folder / "teaches.py"
    reward.write_text(code)
    bench.rows = [{**row, "extra_info": {**row["extra_info"], "place": i}} for i, row in enumerate(bench.rows)]
    return {"custom_reward_function.path": str(reward), "data.shuffle": False, **(changes or {})}


def asked(folder: Path, step: int, lines: Callable[[Path], list[dict[str, Any]]]) -> list[int]:
    """Places of the problems a step learned from."""
    samples = [line for line in lines(folder / "samples" / f"{step}.jsonl") if line["answer"] == 0]
    return [int(line["problem"].rpartition("row ")[2].rpartition(":")[2]) - 1 for line in samples]


KEEP_ALL = {"trainer.sample_groups": -1}


def test_sampling_goes_on_until_the_batch_is_full_of_groups_that_differ(bench: Any) -> None:
    run = bench.train(settings(bench, FILTER))
    for metrics in run.history:
        # 12 rows in order, 4 a round, of which 2 teach: two rounds make a batch of 4, exactly.
        assert metrics["train/num_gen_batches"] == 2
        assert metrics["train/sampled_groups"] == 8
        assert metrics["train/dropped_groups"] == 4
        assert metrics["train/discarded_groups"] == metrics["train/waiting_groups"] == 0
        assert metrics["rollout/zero_variance_groups"] == 0
        assert metrics["train/sampled_pass_rate"] == 0.5
    # Two rounds a step: the second step is in the second pass over the three batches of the data.
    assert [metrics["training/epoch"] for metrics in run.history] == [0, 1]


def test_what_must_differ_may_be_any_number_of_the_grading(bench: Any) -> None:
    changes = settings(bench, FILTER)
    with pytest.raises(DataError, match=r"a whole pass over the data gave 0 groups whose answers differ in acc"):
        bench.train({**changes, "algorithm.filter_groups.metric": "acc"}, run="acc")
    run = bench.train({**changes, "algorithm.filter_groups.metric": "style"}, run="style")
    assert run.history[0]["train/dropped_groups"] == 4
    with pytest.raises(DataError, match=r"gives no such number\. There are acc, score, seq_reward, style"):
        bench.train({**changes, "algorithm.filter_groups.metric": "taste"}, run="taste")


def test_at_the_limit_of_rounds_the_error_shows_the_pass_rates(bench: Any) -> None:
    changes = settings(bench, {**FILTER, "algorithm.filter_groups.max_num_gen_batches": 1})
    with pytest.raises(DataError) as raised:
        bench.train(changes)
    message = str(raised.value)
    assert "max_num_gen_batches=1 rounds of sampling gave 2 groups whose answers differ in seq_reward" in message
    assert "a step needs 4" in message
    assert "none right      2  ####" in message
    assert "all right       2  ####" in message


def test_surplus_groups_are_discarded_or_wait_and_every_group_is_accounted_for(bench: Any) -> None:
    changes = settings(bench, {**FILTER, "data.gen_batch_size": 6, "trainer.total_training_steps": 4})
    discarded = bench.train(changes, run="discarded").history
    # 3 of 6 teach: two rounds make 6, of which 4 are used and 2 thrown away.
    assert [m["train/num_gen_batches"] for m in discarded] == [2, 2, 2, 2]
    assert [m["train/discarded_groups"] for m in discarded] == [2, 2, 2, 2]
    kept = bench.train({**changes, "algorithm.filter_groups.max_staleness": 1}, run="kept").history
    assert [m["train/num_gen_batches"] for m in kept] == [2, 1, 1, 2]
    assert [m["train/reused_groups"] for m in kept] == [0, 2, 1, 0]
    assert [m["train/waiting_groups"] for m in kept] == [2, 1, 0, 2]
    assert [m["train/discarded_groups"] for m in kept] == [0, 0, 0, 0]
    stale = "training/off_policy/trajectory_staleness"
    assert [m[f"{stale}/max"] for m in kept] == [0, 1, 1, 0]
    assert [m[f"{stale}/mean"] for m in kept] == [0, 2 / 4, 1 / 4, 0]  # so many of four groups had waited
    assert all(m[f"{stale}/max"] == 0 for m in discarded)
    # What waited was sampled by older weights: sampler and learner now differ.
    assert kept[1]["rollout_corr/kl"] != 0
    assert abs(kept[0]["rollout_corr/kl"]) < 1e-6


def test_a_run_with_waiting_groups_goes_on_bit_for_bit(bench: Any, same_run: Callable[[Path, Path, int], None]) -> None:
    own = {**FILTER, **KEEP_ALL, "data.gen_batch_size": 6, "algorithm.filter_groups.max_staleness": 1}
    changes = settings(bench, {**own, "data.pass_rate_range": [0.0, 1.0]})
    bench.train({**changes, "trainer.total_training_steps": 4}, run="whole")
    part = {**changes, "trainer.save_freq": 1}
    bench.train({**part, "trainer.total_training_steps": 2}, run="parts")
    state = json.loads((bench.folder / "parts" / "global_step_2" / "state.json").read_text())
    gather = state["parts"]["gather"]
    assert (state["parts"]["producer"]["position"], len(gather["waiting"])) == (18, 1)
    assert "token_ids" not in json.dumps(state)
    waiting = load_file(bench.folder / "parts" / "global_step_2" / "state.safetensors")
    assert {name: len(t) for name, t in waiting.items()} == {
        f"gather/{name}": sum(answer["tokens"] for answer in gather["waiting"][0]["graded"])
        for name in ("token_ids", "logprobs", "sampled")
    }
    run = bench.train({**part, "trainer.total_training_steps": 4}, run="parts")
    assert [m["training/global_step"] for m in run.history] == [3, 4]
    same_run(bench.folder / "parts", bench.folder / "whole", 4)
    rates = [(bench.folder / name / "pass_rates.jsonl").read_bytes() for name in ("parts", "whole")]
    assert rates[0] == rates[1]


def test_a_checkpoint_of_the_first_format_with_waiting_groups_goes_on_bit_for_bit(
    bench: Any, same_run: Callable[[Path, Path, int], None]
) -> None:
    own = {**FILTER, **KEEP_ALL, "data.gen_batch_size": 6, "algorithm.filter_groups.max_staleness": 1}
    changes = settings(bench, own)
    bench.train({**changes, "trainer.total_training_steps": 4}, run="whole")
    part = {**changes, "trainer.save_freq": 1}
    bench.train({**part, "trainer.total_training_steps": 2}, run="parts")
    in_the_first_format(bench.folder / "parts" / "global_step_2")
    run = bench.train({**part, "trainer.total_training_steps": 4}, run="parts")
    assert [m["training/global_step"] for m in run.history] == [3, 4]
    same_run(bench.folder / "parts", bench.folder / "whole", 4)


def in_the_first_format(folder: Path) -> None:
    """Rewrite a state as version 0.1 wrote it: no number of the format, and the tokens of waiting groups in JSON."""
    (folder / "files.json").unlink()  # which it did not write
    state = json.loads((folder / "state.json").read_text())
    arrays = load_file(folder / "state.safetensors")
    (folder / "state.safetensors").unlink()
    ids, logprobs = (arrays[f"gather/{name}"].tolist() for name in ("token_ids", "logprobs"))
    assert arrays["gather/sampled"].all()

    def answer(new: dict[str, Any]) -> dict[str, Any]:
        n, versions = new.pop("tokens"), new.pop("weight_versions")
        taken = {"token_ids": [ids.pop(0) for _ in range(n)], "logprobs": [logprobs.pop(0) for _ in range(n)]}
        return {
            "completion": {**taken, "finish_reason": new.pop("finish_reason"), "weight_version": versions[0]},
            **new,
        }

    gather = state["parts"]["gather"]
    surplus = [{**group, "graded": [answer(a) for a in group["graded"]]} for group in gather["waiting"]]
    kl_coef, position = state["parts"]["credit"]["kl_coef"], state["parts"]["producer"]["position"]
    old = {"step": state["step"], "kl_coef": kl_coef, "position": position, "surplus": surplus}
    (folder / "state.json").write_text(json.dumps({**old, "data": state["data"]}))


def test_solved_problems_are_left_out_once_their_pass_rate_is_known_and_in_the_next_run_from_the_start(
    bench: Any, lines: Callable[[Path], list[dict[str, Any]]]
) -> None:
    changes = settings(bench, {**KEEP_ALL, "data.pass_rate_range": [0.0, 0.9], "trainer.total_training_steps": 4})
    bench.train(changes, run="first")
    assert [asked(bench.folder / "first", s, lines) for s in (1, 2, 3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert asked(bench.folder / "first", 4, lines) == [0, 2, 4, 6]  # the odd ones were all answered right
    rates = lines(bench.folder / "first" / "pass_rates.jsonl")
    assert [line["step"] for line in rates] == [1, 2, 3, 4]
    assert sorted(rates[0]["rates"].values()) == [[0, 4], [0, 4], [4, 4], [4, 4]]
    bench.train({**changes, "data.pass_rate_history": str(bench.folder / "first")}, run="next")
    assert asked(bench.folder / "next", 1, lines) == [0, 2, 4, 6]
    with pytest.raises(DataError, match=r"there is no pass_rates\.jsonl"):
        bench.train({**changes, "data.pass_rate_history": str(bench.folder)}, run="lost")


def test_dropped_groups_leave_the_denominator_so_that_the_loss_is_that_of_the_others_alone(bench: Any) -> None:
    """With one update a step and no clipping in force, the policy loss is the mean of -A over responses in the loss."""
    changes = settings(bench, {"actor_rollout_ref.actor.ppo_mini_batch_size": 4, "trainer.total_training_steps": 1})
    counted = bench.train(changes, run="counted").history[0]
    dropped = bench.train({**changes, "algorithm.drop_zero_variance": True}, run="dropped").history[0]
    assert counted["rollout/zero_variance_groups"] == dropped["rollout/zero_variance_groups"] == 0.5
    # Half of the groups have no signal: leaving them out of the denominator doubles the gradient.
    assert dropped["actor/grad_norm"] == pytest.approx(2 * counted["actor/grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**FILTER, "actor_rollout_ref.rollout.n": 1, "algorithm.adv_estimator": "reinforce_plus_plus"}, "is 1, so no"),
        (
            {**FILTER, "algorithm.filter_groups.metric": "seq_final_reward", "algorithm.use_kl_in_reward": True},
            "less the",
        ),
        ({"algorithm.drop_zero_variance": True, "algorithm.adv_estimator": "remax"}, "so they do teach it"),
        ({"data.pass_rate_range": [0.9, 0.1]}, "0 <= low <= high <= 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(bench: Any, changes: dict[str, Any], message: str) -> None:
    vanilla = {"actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla"}
    with pytest.raises(ConfigError, match=message):
        bench.train({**vanilla, **changes})


def test_groups_survive_their_records_bit_for_bit() -> None:
    """Numbers and text in JSON, tokens in arrays; the second group has another length and no greedy answer."""
    answer = Graded(
        Completion((3, 1, 2), (-0.1, -1e-17, -3.3333333333333335), "length", (6, 7), sampled=(True, False, True)),
        'a "text"\n',
        Grade(Verdict.UNPARSED, 0.1 + 0.2, extra={"acc": 0, "words": [1, None]}),
        reward=1 / 3,
        parts={"main": 0.1},
    )
    other = Graded(Completion((4,), (-2.5,), "stop", (7, 7)), "", Grade(Verdict.CORRECT, 1.0), 1.0)
    problem = sum_problem()
    groups = [Group(problem, (5, 6), (answer, other), baseline=answer), Group(problem, (5, 6), (other, other))]
    records, arrays = group_records(groups)
    assert [len(array) for array in arrays.values()] == [9, 9, 9]
    records = json.loads(json.dumps(records))
    assert groups_from_records(records, arrays, {"rows:1": (problem, (5, 6))}.__getitem__) == groups
    with pytest.raises(ValueError, match="7 tokens are named"):
        groups_from_records(
            [records[0] | {"baseline": records[1]["graded"][0]}, records[1]], arrays, lambda _: (problem, ())
        )
    assert group_records([]) == ([], {})


def sum_problem() -> Problem:
    return Problem("rows:1", ({"role": "user", "content": "1+1?"},), "gmpo/stories", "2", {})


def test_the_histogram_puts_each_pass_rate_into_its_range() -> None:
    def group(right: int, of: int) -> Group:
        verdicts = [Verdict.CORRECT] * right + [Verdict.WRONG] * (of - right)
        answers = tuple(Graded(Completion((1,), (0.0,), "stop", (0, 0)), "", Grade(v, 0.0), 0.0) for v in verdicts)
        return Group(sum_problem(), (1,), answers)

    table = histogram([group(0, 8), group(0, 8), group(1, 8), group(2, 8), group(3, 8), group(7, 8), group(8, 8)])
    counts = [int(line[12:].split()[0]) for line in table.splitlines()]
    assert counts == [2, 2, 1, 0, 1, 1]


ONE_TEACHES = '''"""The answers to the first problem differ; all others are wrong."""


def compute_score(data_source, solution_str, ground_truth, extra_info):
    return float(len(solution_str) % 97) if extra_info["place"] == 0 else 0.0
'''


def test_without_a_limit_sampling_ends_a_pass_after_the_last_group_that_teaches(bench: Any) -> None:
    """One useful group of the four that a step needs: it comes again in every pass, so the pass behind it counts. 12
    rows, 4 a round: the one in the first round, again in the fourth, so that no whole pass is without; a step is full
    after 10 rounds. Once it is hopeless too, the run ends."""
    run = bench.train(settings(bench, {**FILTER, "trainer.total_training_steps": 1}, code=ONE_TEACHES))
    assert run.history[0]["train/num_gen_batches"] == 10
    gone = settings(bench, {**FILTER, "trainer.total_training_steps": 1}, code=ONE_TEACHES.replace("== 0", "== 99"))
    with pytest.raises(DataError, match="a whole pass over the data gave 0 groups"):
        bench.train(gone, run="gone")


def test_a_stop_is_heard_while_sampling_and_the_steps_that_are_done_are_kept(
    bench: Any, same_run: Callable[[Path, Path, int], None]
) -> None:
    """The signal comes while the second step is sampled: that step is given up, and the run goes on as if "
    "uninterrupted."""
    changes = {**FILTER, "trainer.total_training_steps": 2}
    whole = bench.train(settings(bench, changes), run="whole")
    code = TEACHES_IN_PART.replace(
        '    if extra_info["place"] % 2:',
        "    flag = pathlib.Path(__file__).with_name('stop')\n"
        "    if flag.exists() and (flag.parent / 'parted' / 'metrics.jsonl').exists():\n"
        "        if (flag.parent / 'parted' / 'metrics.jsonl').read_text():\n"
        "            flag.unlink(missing_ok=True)\n"
        "            os.kill(int(os.environ['RUN_OF_THE_TEST']), signal.SIGTERM)\n"
        '    if extra_info["place"] % 2:',
    ).replace("def compute", "import os\nimport pathlib\nimport signal\n\n\ndef compute")
    (bench.folder / "stop").touch()
    os.environ["RUN_OF_THE_TEST"] = str(os.getpid())
    parted = settings(bench, changes, code=code)
    stopped = bench.train(parted, run="parted")
    assert (stopped.steps, stopped.finished) == (1, False)
    assert (stopped.folder / "global_step_1").is_dir()
    assert bench.train(parted, run="parted").steps == 2
    same_run(whole.folder, stopped.folder, 2)
