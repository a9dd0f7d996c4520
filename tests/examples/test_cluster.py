"""The examples for clusters: the Slurm script runs with stand-ins for the scheduler's commands, the manifest keeps to
KubeRay's documented fields."""

from __future__ import annotations

import contextlib
import copy
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gmpo.config import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
STANDS_IN = {
    "srun": 'echo "srun $*" >>"$CALLS"; case "$*" in *hostname*) echo "10.0.0.7 fe80::1" ;; *) sleep 60 ;; esac',
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "scontrol $*" >>"$CALLS"; fi',
    "python": 'echo "python $*" >>"$CALLS"',
    # A run that takes a moment for its last step after it was told to end.
    "gmpo": 'echo "gmpo $*; $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >>"$CALLS"\n'
    'told=0; trap "told=1" USR1; echo up >"$CALLS.up"\n'
    "for _ in $(seq 600); do if [ $told = 1 ]; then sleep 0.5; exit 75; fi; sleep 0.1; "
    'if [ -n "${ENDS:-}" ]; then exit "$ENDS"; fi; done',
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STANDS_IN.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {"JOB_ID": "12345", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8", "JOB_NODELIST": "node[7-8]",
             "SUBMIT_DIR": str(ROOT)}  # fmt: skip
    given = {f"SLURM_{name}": value for name, value in slurm.items()}
    return {**os.environ, **given, "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


def submitted(job: dict[str, str]) -> subprocess.Popen[bytes]:
    words = ["bash", str(CLUSTER / "slurm.sh"), "recipe=gmpo"]
    return subprocess.Popen(words, env=job, start_new_session=True, stdout=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the stand-ins that are left, if any
            os.killpg(process.pid, signal.SIGKILL)


def test_the_slurm_script_starts_ray_everywhere_and_queues_a_run_that_was_told_to_end_again(
    job: dict[str, str],
) -> None:
    calls = Path(job["CALLS"])
    process = submitted(job)
    until = time.monotonic() + 30
    while not calls.with_name("calls.up").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGUSR1)  # as `--signal=B:USR1@300` does
    assert ended(process) == 75
    said = calls.read_text()
    assert "--nodelist=node7 ray start --head --node-ip-address=10.0.0.7 --port=22345 --num-gpus=8" in said
    assert "--nodes=1 --ntasks=1 --exclude=node7 ray start --address=10.0.0.7:22345 --num-gpus=8 --block" in said
    assert f"python {CLUSTER}/wait_for_ray.py 16\n" in said
    assert "scontrol requeue 12345\n" in said
    (trained,) = [line for line in said.splitlines() if line.startswith("gmpo ")]
    words, _, environment = trained.partition("; ")
    assert environment == "10.0.0.7:22345 token 64"
    resolved = load(shlex.split(words)[2:])
    assert (resolved.config.trainer.nnodes, resolved.config.trainer.n_gpus_per_node) == (2, 8)
    assert resolved.config.trainer.default_local_dir == str(ROOT / "runs" / "12345")


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_run_that_ends_by_itself_is_not_queued_again(job: dict[str, str], status: int) -> None:
    assert ended(submitted({**job, "ENDS": str(status)})) == status
    assert "requeue" not in Path(job["CALLS"]).read_text()


def test_the_slurm_script_is_bash_and_asks_for_the_signal() -> None:
    script = CLUSTER / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0
    asked = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--gpus-per-node=8", "--signal=B:USR1@300", "--requeue"} <= set(asked)


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with these fields and no other, as the API server prunes or refuses what a CRD does not name."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
AMOUNT = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[kMGTPE]i?)?$"}
AMOUNTS = {"type": "object", "additionalProperties": AMOUNT}


def items(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


CONTAINER = closed(
    ("name", "image"),
    name=TEXT, image=TEXT, command=items(TEXT), args=items(TEXT), env=items({"type": "object"}),
    resources=closed(requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=items(closed(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)  # fmt: skip
VOLUME = closed(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT, readOnly=FLAG),
    emptyDir=closed(medium={"enum": ["", "Memory"]}, sizeLimit=AMOUNT),
)
POD = closed(
    ("containers",),
    containers=items(CONTAINER), volumes=items(VOLUME), terminationGracePeriodSeconds=COUNT, nodeSelector=TEXTS,
    tolerations=items({"type": "object"}), serviceAccountName=TEXT,
)  # fmt: skip
TEMPLATE = closed(("spec",), metadata={"type": "object"}, spec=POD)
GROUP = closed(
    ("groupName", "maxReplicas", "minReplicas", "template"),
    groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT, rayStartParams=TEXTS,
    template=TEMPLATE,
)  # fmt: skip
RAY_CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    headGroupSpec=closed(("template",), rayStartParams=TEXTS, serviceType=TEXT, template=TEMPLATE),
    workerGroupSpecs=items(GROUP),
)
RAY_JOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(("name",), name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
    spec=closed(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT, submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT, activeDeadlineSeconds=COUNT, shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=COUNT,
        runtimeEnvYAML=TEXT, suspend=FLAG, rayClusterSpec=RAY_CLUSTER,
    ),
)  # fmt: skip
"""The documented fields of a RayJob (ray.io/v1) that an example may use, by hand."""


@pytest.fixture
def manifest() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())


def test_the_manifest_has_fields_that_kuberay_documents(manifest: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(RAY_JOB)
    assert not [error.message for error in checker.iter_errors(manifest)]
    wrong = copy.deepcopy(manifest)
    cluster = wrong["spec"]["rayClusterSpec"]
    cluster["workerGroupSpec"] = cluster.pop("workerGroupSpecs")
    cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] = 8
    said = [error.message for error in checker.iter_errors(wrong)]
    assert any("'workerGroupSpec' was unexpected" in message for message in said)
    assert any("8 is not of type 'string'" in message for message in said)


def test_the_manifest_has_the_gpus_that_its_command_asks_for(manifest: Any) -> None:
    spec = manifest["spec"]
    program, command, *words = shlex.split(spec["entrypoint"])
    assert (program, command) == ("gmpo", "train")
    trainer = load(words).config.trainer
    cluster = spec["rayClusterSpec"]
    groups = [(1, cluster["headGroupSpec"]), *((g["replicas"], g) for g in cluster["workerGroupSpecs"])]
    assert sum(count for count, _ in groups) == trainer.nnodes
    for _, group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == trainer.n_gpus_per_node
        assert int(group["rayStartParams"]["num-gpus"]) == trainer.n_gpus_per_node
        assert any(trainer.default_local_dir.startswith(m["mountPath"]) for m in container["volumeMounts"])
    held = (ROOT / "constraints" / "cuda.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in held
