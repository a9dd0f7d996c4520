"""Checkpoints: which are kept, which are taken, which are refused, and that a failed one harms nobody."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import gmpo
from gmpo.backends.tiny_model import make_model, word_tokenizer
from gmpo.data.stories import vocabulary
from gmpo.errors import BackendError, CheckpointError, ConfigError, GmpoError
from gmpo.records.run_folder import read_run
from gmpo.training import final_model

CHECKPOINT = "actor_rollout_ref.actor.checkpoint"
Weights = Callable[[Path], dict[str, torch.Tensor]]


def _steps(run: gmpo.Run) -> list[float]:
    return [metrics["training/global_step"] for metrics in run.history]


def _checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*global_step_*"))


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[[Path], Any]) -> Path:
    """The folder of a whole run of 4 steps with a checkpoint after each. Nobody writes to it."""
    bench = new_bench(tmp_path_factory.mktemp("whole"))
    bench.train({"trainer.total_training_steps": 4, "trainer.save_freq": 1})
    return bench.folder / "run"


@pytest.fixture
def copy(four_steps: Path, bench: Any) -> Path:
    """The same, as the run folder of the test's own runs."""
    shutil.copytree(four_steps, bench.folder / "run")
    return bench.folder / "run"


def test_a_checkpoint_has_verls_names_and_nothing_that_runs_code(four_steps: Path) -> None:
    assert (four_steps / "latest_checkpointed_iteration.txt").read_text() == "4"
    assert _checkpoints(four_steps) == [f"global_step_{n}" for n in (1, 2, 3, 4)]
    files = {p.relative_to(four_steps).as_posix() for p in (four_steps / "global_step_4").rglob("*") if p.is_file()}
    assert {"global_step_4/state.json", "global_step_4/actor/model.safetensors"} <= files
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".jinja", ".yaml"}


def test_the_number_of_checkpoints_to_keep_counts_those_of_earlier_processes(bench: Any) -> None:
    keep_two = {"trainer.save_freq": 1, "trainer.max_actor_ckpt_to_keep": 2}
    bench.train({**keep_two, "trainer.total_training_steps": 2})
    assert _checkpoints(bench.folder / "run") == ["global_step_1", "global_step_2"]
    bench.train({**keep_two, "trainer.total_training_steps": 3})
    assert _checkpoints(bench.folder / "run") == ["global_step_2", "global_step_3"]


def test_the_checkpoint_of_the_best_validation_stays_across_a_resume(bench: Any) -> None:
    """Steps 1 to 5; right is who says most digits, so that pass@1 of the validations differs."""
    best = {
        "custom_reward_function.path": str(_judge(bench.folder)),
        "trainer.keep_best": True,
        "trainer.test_freq": 1,
        "trainer.save_freq": 1,
        "trainer.max_actor_ckpt_to_keep": 1,
    }
    curve: list[float] = []
    for last in (3, 5):
        run = bench.train({**best, "trainer.total_training_steps": last}, val_rows=bench.rows[:6])
        curve += [m["val/pass@1"] for m in run.history if m["training/global_step"] > 0]
        step = 1 + curve.index(max(curve))
        assert _checkpoints(run.folder) == [f"global_step_{n}" for n in sorted({step, last})]
    assert len(set(curve)) > 1


def _judge(folder: Path) -> Path:
    place = folder / "judge.py"
    place.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    words = solution_str.split()\n"
        "    share = sum(word.isdigit() for word in words) / max(1, len(words))\n"
        "    return {'score': share, 'acc': share > 0.3}\n"
    )
    return place


def test_a_path_resumes_from_that_checkpoint_into_another_folder_bit_for_bit(
    bench: Any, four_steps: Path, weights: Weights
) -> None:
    run = bench.train(
        {
            "trainer.resume_mode": "resume_path",
            "trainer.resume_from_path": str(four_steps / "global_step_1"),
            "trainer.total_training_steps": 4,
        },
        run="other",
    )
    assert _steps(run) == [2, 3, 4]
    whole = weights(four_steps / "huggingface")
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights(run.model).items())


def test_a_finished_run_started_again_makes_no_step_says_so_and_keeps_its_model(
    bench: Any, copy: Path, command: Callable[..., Any]
) -> None:
    before = (copy / "huggingface" / "model.safetensors").read_bytes()
    metrics = (copy / "metrics.jsonl").read_text()
    arguments = bench.arguments({"trainer.total_training_steps": 4, "trainer.save_freq": 1})
    outcome = command("train", *arguments)
    assert outcome.code == 0
    assert f"{copy} holds this run, which is finished after 4 steps: nothing is left to do." in outcome.out
    assert f"nothing was left to do: the run is done after 4 steps; model: {copy / 'huggingface'}" in outcome.out
    assert (copy / "huggingface" / "model.safetensors").read_bytes() == before
    assert (copy / "metrics.jsonl").read_text() == metrics


def test_a_finished_run_can_be_made_longer(bench: Any, copy: Path) -> None:
    assert _steps(bench.train({"trainer.total_training_steps": 5})) == [5]


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"data.train_batch_size": 2}, ["data.train_batch_size: 4 -> 2"]),
        ({"data.shuffle": False, "data.seed": 7}, ["data.shuffle: true -> false", "data.seed: 1 -> 7"]),
    ],
)
def test_a_checkpoint_of_other_batches_is_refused_with_the_differences(
    bench: Any, four_steps: Path, changes: dict[str, Any], differences: list[str]
) -> None:
    resume = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(four_steps / "global_step_2")}
    with pytest.raises(CheckpointError) as error:
        bench.train({**resume, **changes}, run="other")
    assert all(line in str(error.value) for line in differences)
    assert "start a new run in another trainer.default_local_dir" in str(error.value)
    assert "trainer.allow_changed_config=True goes on at the same position of the new stream" in str(error.value)


def test_a_checkpoint_of_other_problems_is_refused_even_when_they_are_as_many(bench: Any, four_steps: Path) -> None:
    resume = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(four_steps / "global_step_2")}
    with pytest.raises(CheckpointError, match="problems: 12 -> 8"):
        bench.train(resume, rows=bench.rows[:8], run="fewer")
    with pytest.raises(CheckpointError, match="content of the problems") as error:
        bench.train(resume, rows=bench.rows[::-1], run="reversed")
    assert "problems: 12" not in str(error.value)


def test_a_refused_start_leaves_the_records_of_the_run_as_they_were(bench: Any, copy: Path) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError):
        bench.train({"data.train_batch_size": 2})
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_weights_without_optimizer_are_resumed_with_a_warning(bench: Any, weights: Weights) -> None:
    only = {f"{CHECKPOINT}.save_contents": ["hf_model"], "trainer.save_freq": 1}
    first = bench.train({**only, "trainer.total_training_steps": 1})
    console = Console(file=io.StringIO())
    changed = {"trainer.allow_changed_config": True}
    frozen = {**changed, "actor_rollout_ref.actor.optim.lr": 0.0, "trainer.total_training_steps": 2}
    second = bench.train({**only, **frozen}, console=console)
    assert _steps(second) == [2]
    assert "global_step_1: the weights are resumed and no optimizer state" in console.file.getvalue()
    # A learning rate of 0 moves nothing: what comes out is what the checkpoint held, and not the base model.
    base, resumed = weights(bench.model), weights(second.model)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights(first.model).items())
    assert not all(torch.equal(resumed[name], tensor) for name, tensor in base.items())


def _without_seal(checkpoint: Path) -> None:
    """As versions wrote it that kept no hashes."""
    (checkpoint / "files.json").unlink()
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "format": 2}))


def test_a_run_never_restarts_from_the_base_model_under_a_later_steps_name(bench: Any, copy: Path) -> None:
    longer = {"trainer.total_training_steps": 5}
    with pytest.raises(CheckpointError, match=r"no weights that .*load_contents=\['optimizer'\] allows") as caught:
        bench.train({**longer, f"{CHECKPOINT}.load_contents": ["optimizer"]})
    assert f"Give {CHECKPOINT}.load_contents=['model', 'optimizer'], or start a new run" in str(caught.value)
    for file in (copy / "global_step_4" / "actor").rglob("*.safetensors"):
        file.unlink()
    _without_seal(copy / "global_step_4")
    with pytest.raises(CheckpointError, match="holds no weights at all") as caught:
        bench.train(longer)
    assert "load_contents" not in str(caught.value)
    assert "remove global_step_4 so that an earlier one is taken" in str(caught.value)
    shutil.rmtree(copy / "global_step_4")
    run = bench.train({**longer, f"{CHECKPOINT}.load_contents": ["model", "optimizer"]})
    assert (_steps(run)[-1], len(_steps(run)) < 5) == (5, True)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
@pytest.mark.parametrize(
    "name", ["state.json", "actor/model.safetensors", "actor/optimizer.safetensors", "actor/optimizer.json"]
)
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(bench: Any, copy: Path, name: str, damage: str) -> None:
    file = copy / "global_step_4" / name
    content = file.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\xff" * len(content)}
    file.write_bytes(damaged[damage])
    named = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(copy / "global_step_4")}
    with pytest.raises(
        CheckpointError, match=rf"{file.name}.*The newest intact checkpoint before it is .*global_step_3"
    ):
        bench.train({"trainer.total_training_steps": 5, **named})
    console = Console(file=io.StringIO(), width=1000)
    assert _steps(bench.train({"trainer.total_training_steps": 5}, console=console)) == [4, 5]
    said = console.file.getvalue()
    assert file.name in said
    assert "and stays as global_step_4.damaged: the run goes on from" in said
    assert (copy / "global_step_4.damaged" / name).read_bytes() == damaged[damage]


@pytest.mark.parametrize(("size", "cause"), [({"layers": 2}, "no weights for"), ({"hidden": 64}, "another model")])
def test_a_checkpoint_of_another_model_is_refused(
    bench: Any, four_steps: Path, size: dict[str, int], cause: str
) -> None:
    sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 64, **size}
    make_model(bench.folder / "other", word_tokenizer(vocabulary()), seed=0, **sizes)
    resume = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(four_steps / "global_step_2")}
    with pytest.raises(CheckpointError, match=cause):
        bench.train({**resume, "actor_rollout_ref.model.path": str(bench.folder / "other")})


def test_a_missing_checkpoint_is_named(bench: Any, copy: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            bench.train({"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(path)})
        assert f"trainer.resume_from_path={path}: " in str(caught.value)
        return str(caught.value)

    earlier = copy / "earlier"
    assert f"no checkpoint there (no state.json). There is no folder {earlier}." in said(earlier / "global_step_9")
    earlier.mkdir()
    assert f"{earlier} holds no complete checkpoint" in said(earlier / "global_step_9")
    for step in range(1, 8):
        shutil.copytree(copy / "global_step_4", earlier / f"global_step_{step}")
    newest = ", ".join(f"global_step_{step}" for step in (7, 6, 5, 4, 3))
    assert f"{earlier} holds {newest} and 2 older." in said(earlier / "global_step_9")
    assert "cannot be reached: File name too long." in said(earlier / f"global_step_{'9' * 300}")


def test_a_folder_that_was_not_finished_is_ignored_and_replaced(bench: Any, copy: Path) -> None:
    for step in (5, 9):
        shutil.copytree(copy / "global_step_4", copy / f".unfinished_global_step_{step}")
        (copy / f".unfinished_global_step_{step}" / "state.json").unlink()
    run = bench.train({"trainer.total_training_steps": 5, "trainer.save_freq": 1})
    assert _steps(run) == [5]
    assert list(copy.glob(".unfinished*")) == []
    assert json.loads((copy / "global_step_5" / "state.json").read_text())["step"] == 5


@contextmanager
def _room(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the system refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_leaves_the_checkpoints_and_the_model_that_were_there(
    bench: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_model, "PATIENCE_S", 0.0)
    before = {p: p.read_bytes() for p in copy.rglob("global_step_*/**/*") if p.is_file()}
    model = (copy / "huggingface" / "model.safetensors").read_bytes()
    waits = {f"{CHECKPOINT}.async_save": False}
    with _room(22_000), pytest.raises(CheckpointError, match=r"cannot write checkpoint .*global_step_5"):
        bench.train({"trainer.total_training_steps": 5, "trainer.save_freq": 1, **waits})
    with _room(22_000), pytest.raises(CheckpointError, match="cannot write the model"):
        bench.train({"trainer.total_training_steps": 5})
    assert {p: p.read_bytes() for p in copy.rglob("global_step_*/**/*") if p.is_file()} == before
    assert (copy / "huggingface" / "model.safetensors").read_bytes() == model
    assert [p.name for p in copy.glob(".unfinished*")] == []
    assert _steps(bench.train({"trainer.total_training_steps": 5, "trainer.save_freq": 1})) == [5]


def _obstruct(folder: Path) -> Path:
    """Have every export into the folder fail, as long as this file is there."""
    folder.mkdir()
    obstacle = folder / ".unfinished_export"
    obstacle.touch()
    return obstacle


def test_a_model_that_cannot_be_written_goes_to_another_file_system_and_is_named(
    bench: Any, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == bench.folder.stat().st_dev:
        pytest.skip("there is no second file system")
    monkeypatch.setattr(final_model.tempfile, "tempdir", str(other))
    whole = bench.train(run="whole")
    _obstruct(bench.folder / "run")
    with pytest.raises(CheckpointError, match=r"cannot write the model .* is in /dev/shm/.* instead") as raised:
        bench.train()
    rescued = Path(str(raised.value).split("The trained model is in ")[1].split(" instead")[0])
    try:
        found, expected = weights(rescued), weights(whole.model)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    finally:
        shutil.rmtree(rescued.parent)


def test_a_training_that_a_checkpoint_ends_leaves_the_model_of_its_last_step(
    bench: Any, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_model, "PATIENCE_S", 0.0)
    waits = {f"{CHECKPOINT}.async_save": False, "trainer.save_freq": 2}
    shorter = bench.train({"trainer.total_training_steps": 2}, run="shorter")
    size = max(file.stat().st_size for file in shorter.model.glob("*.safetensors"))
    with (
        _room(size),
        pytest.raises(CheckpointError, match=r"global_step_2: .* The model after step 2 is in ") as raised,
    ):
        bench.train(waits)
    rescued = Path(str(raised.value).split("The model after step 2 is in ")[1].removesuffix("."))
    found, expected = weights(rescued), weights(shorter.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_can_be_written_nowhere_is_held_until_there_is_room(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_model, "_elsewhere", lambda folder: [])
    monkeypatch.setattr(final_model, "RETRY_S", 0.01)
    obstacle = _obstruct(bench.folder / "run")

    class Room(io.StringIO):
        """Makes room when it reads that this is needed."""

        def write(self, text: str) -> int:
            if "Make room now" in text:
                obstacle.unlink()
            return super().write(text)

    console = Console(file=Room(), width=1000)
    run = bench.train(console=console)
    assert "The trained model is nowhere else" in console.file.getvalue()
    assert (run.model / "model.safetensors").is_file()


def test_what_is_written_has_the_permissions_of_new_files(bench: Any) -> None:
    before = os.umask(0o027)
    try:
        run = bench.train({"trainer.save_freq": 2, f"{CHECKPOINT}.save_contents": ["model", "optimizer", "hf_model"]})
    finally:
        os.umask(before)
    files = [p for place in (run.model, run.folder / "global_step_2") for p in place.rglob("*") if p.is_file()]
    assert len([p for p in files if p.suffix == ".safetensors"]) == 4
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o640}


def test_a_checkpoint_that_fails_behind_the_training_costs_neither_the_steps_nor_the_model(
    bench: Any, weights: Weights
) -> None:
    console = Console(file=io.StringIO(), width=1000)
    two = {"trainer.total_training_steps": 2, "trainer.save_freq": 2}
    enough_for_the_model_alone = (bench.model / "model.safetensors").stat().st_size * 3 // 2
    with _room(enough_for_the_model_alone), pytest.raises(CheckpointError, match=r"cannot write .*global_step_2"):
        bench.train(two, console=console)
    folder = bench.folder / "run"
    assert "global_step_2: " in console.file.getvalue()
    assert _checkpoints(folder) == []
    trained = weights(folder / "huggingface")
    run = bench.train(two)
    assert _steps(run) == [1, 2]
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights(run.model).items())


def _full_from_the_first_answer(bench: Any, *, free_at: int) -> dict[str, Any]:
    """Settings with a reward that puts a full disk in the place of metrics.jsonl, and the file back at a later call."""
    place, file = bench.folder / "full.py", bench.folder / "run" / "metrics.jsonl"
    place.write_text(
        "import os\ncalls = 0\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    global calls\n    calls += 1\n"
        f"    file, aside = {str(file)!r}, {str(bench.folder / 'aside')!r}\n"
        "    if calls == 1:\n        os.rename(file, aside); os.symlink('/dev/full', file)\n"
        f"    if calls == {free_at}:\n        os.replace(aside, file)\n"
        "    return float(len(solution_str) % 2)\n"
    )
    return {"custom_reward_function.path": str(place), "trainer.total_training_steps": 4}


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")


@FULL
def test_records_wait_in_memory_while_the_disk_is_full(bench: Any) -> None:
    """16 answers a step: the disk is full in steps 1 and 2, and has room from the third on. No line is missing."""
    console = Console(file=io.StringIO(), width=10_000)
    run = bench.train(_full_from_the_first_answer(bench, free_at=2 * 16 + 1), console=console)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["data"] for line in lines] == [dict(one) for one in run.history]
    said = console.file.getvalue()
    assert said.count(f"warning: cannot write {run.folder / 'metrics.jsonl'}: [Errno 28] No space left") == 1
    assert said.count("records are written again") == 1


@FULL
def test_records_that_are_not_written_at_the_end_fail_the_run_after_its_model_is_saved(bench: Any) -> None:
    with pytest.raises(
        BackendError, match=r"cannot write \S*/run/metrics.jsonl: .*No space left.* bytes of records are"
    ):
        bench.train(_full_from_the_first_answer(bench, free_at=10**6))
    assert (bench.folder / "run" / "huggingface" / "model.safetensors").is_file()
    assert read_run(bench.folder / "run").status == "failed"
    assert (bench.folder / "run" / "samples" / "4.jsonl").is_file()  # other files do not wait for it


def test_records_for_which_waiting_would_not_help_stop_the_run_with_their_place(bench: Any) -> None:
    (bench.folder / "file").touch()
    with pytest.raises(GmpoError, match=r"cannot write .*file/answers/1.jsonl"):
        bench.train({"trainer.rollout_data_dir": str(bench.folder / "file" / "answers")})


@pytest.mark.parametrize(
    ("contents", "finished", "named"),
    [
        (["model", "hf_model"], True, "run/global_step_1/actor/huggingface"),
        (["model"], True, "run/huggingface"),
        (["model"], False, None),
    ],
)
def test_where_other_data_are_refused_a_model_folder_is_named_only_if_it_has_weights(
    bench: Any, contents: list[str], finished: bool, named: str | None
) -> None:
    run = bench.train({"trainer.save_freq": 1, f"{CHECKPOINT}.save_contents": contents})
    if not finished:
        shutil.rmtree(run.model)
    fork = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(run.folder / "global_step_1")}
    with pytest.raises(CheckpointError, match="was made with other data or batches") as raised:
        bench.train(fork, rows=bench.rows[:8], run="fork")
    assert ("its model.path can be" in str(raised.value)) == (named is not None)
    if named is not None:
        assert f"its model.path can be {bench.folder / named}, " in str(raised.value)
        assert list((bench.folder / named).glob("*.safetensors"))
