"""A cluster that is there already, or should be."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

A = "actor_rollout_ref.actor"
RANKS = {"trainer.n_gpus_per_node": 2, "trainer.logger": "[console]"}


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


def started(
    bench: Any, run: str, changes: Mapping[str, Any] = RANKS, **environment: str
) -> subprocess.CompletedProcess[str]:
    words = bench.arguments(changes, run=run)
    command = [sys.executable, "-m", "gmpo", "train", *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A cluster of its own with a token, as `ray start` makes it: a head and a second node, of 2 CPUs each, on this
    machine. The environment that joins it."""
    folder = tempfile.mkdtemp(prefix="gmpo-", dir="/tmp")  # sockets need a short path
    token, port = secrets.token_hex(32), free_port()
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    ray = str(Path(sys.executable).with_name("ray"))
    for words in (head, [f"--address=127.0.0.1:{port}"]):
        done = subprocess.run(
            [ray, "start", "--num-cpus=2", *words],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    try:
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if folder in (process / "cmdline").read_text():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_joins_a_cluster_that_runs_and_only_with_its_token(bench: Any, head: dict[str, str]) -> None:
    joined = started(bench, "joined", **head)
    assert joined.returncode == 0, joined.stderr
    assert "2 ranks under Ray" in joined.stdout
    refused = started(bench, "refused", **{**head, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert refused.returncode == 1
    flat = " ".join(refused.stderr.split())
    assert f"the Ray cluster at {head['RAY_ADDRESS']} cannot be reached" in flat
    assert "RAY_AUTH_TOKEN must be its token" in flat
    assert "Traceback" not in flat


def test_a_run_of_two_nodes_has_its_ranks_on_both_and_is_the_run_of_one_process(
    bench: Any, weights: Any, head: dict[str, str]
) -> None:
    changes = {"trainer.nnodes": 2, f"{A}.fsdp_config.fsdp_size": 2, f"{A}.optim.lr": 1e-4}
    done = started(bench, "nodes", {**RANKS, **changes}, **head)
    assert done.returncode == 0, done.stderr
    assert "4 ranks under Ray on 2 nodes" in done.stdout  # a node alone has places for 2
    (leg,) = json.loads((bench.folder / "nodes" / "run.json").read_text())["legs"]
    assert len({place["pid"] for place in leg["ranks"]}) == 4
    alone = bench.train({f"{A}.optim.lr": 1e-4}, run="alone")
    ours, theirs = weights(alone.model), weights(bench.folder / "nodes" / "huggingface")
    start = weights(bench.model)
    moved = max(float((ours[n] - start[n]).abs().max()) for n in ours)
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 0.05 * moved
    small = started(bench, "small", {**RANKS, "trainer.nnodes": 2, "trainer.n_gpus_per_node": 3}, **head)
    assert small.returncode == 1
    flat = " ".join(small.stderr.split())
    host = socket.gethostname()
    assert "2 nodes with 3 CPUs each are needed (trainer.nnodes, trainer.n_gpus_per_node)" in flat
    assert f"the Ray cluster's nodes have: {host} 2, {host} 2." in flat


def test_a_cluster_that_nobody_runs_is_told_at_once(bench: Any) -> None:
    """Ray itself would wait for it without an end."""
    address = f"127.0.0.1:{free_port()}"
    refused = started(bench, "nobody", RAY_ADDRESS=address)
    assert refused.returncode == 1
    flat = " ".join(refused.stderr.split())
    assert f"the Ray cluster at {address} cannot be reached: [Errno 111] Connection refused" in flat
    assert not (bench.folder / "nobody").exists(), "a start that failed leaves nothing"
