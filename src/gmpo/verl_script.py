"""verl's shell scripts: run them with verl's program replaced by gmpo's.

The script's own shell runs, so that variables, conditions and quoting mean what they mean. What would start verl's
trainer starts gmpo in its place, with the arguments that arrived, wherever in the script it stands: two folders go in
front of the search paths of the script's commands. One has stand-ins for launchers (`uv run`, `torchrun`, `ray job
submit`) and for commands that change something, the other a `sitecustomize` by which every Python interpreter, also one
under a full path, hands verl's programs over. Each stand-in leaves a note, from which the end is told.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gmpo.errors import ConfigError

TRAINERS = ("verl.trainer.main_ppo", "verl.trainer.main_ppo_v0", "recipe.dapo.main_dapo")
"""Programs of verl that take the keys of `gmpo train`."""
LAUNCHERS = ("uv", "uvx", "torchrun", "accelerate", "deepspeed", "srun", "mpirun", "ray")
INSTALLERS = ("pip", "pip3", "conda", "mamba", "apt", "apt-get", "sudo")
CHANGES = ("rm", "mv", "cp", "mkdir", "ln", "touch", "tee", "tar", "unzip", "rsync", "chmod")
DOWNLOADS = ("wget", "curl", "git", "huggingface-cli", "hf", "modelscope", "aws", "gsutil", "hdfs", "sbatch")
ENVIRONMENT = "GMPO_VERL_SCRIPT"
INTERRUPTED = (75, 130, 143)

Mode = Literal["train", "check", "print"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a script."""

    code: int
    """Exit status: that of the first training that failed, else the script's."""
    calls: int
    """How often the script reached verl's trainer."""
    skipped: tuple[str, ...]
    """Commands of the script that were not run, with the reason."""


def run_script(script: Path, mode: Mode, overrides: Sequence[str], arguments: Sequence[str] = ()) -> Outcome:
    """Run a script of verl's with gmpo in the trainer's place.

    Args:
        mode: `train` runs the script and trains where it would train; `check` and `print` run only its shell: commands
            that change, download or compute something are left out and named.
        overrides: `KEY=VALUE`; they win over the script's.
        arguments: the script's own positional arguments.

    Raises:
        ConfigError: there is no such script, no bash, or the script ends without reaching verl's trainer.
    """
    _require_script(script)
    with tempfile.TemporaryDirectory(prefix="gmpo-verl-") as folder:
        place = Path(folder)
        read_end, write_end = os.pipe()
        terminal = os.dup(1)
        plan = {"mode": mode, "overrides": list(overrides), "folder": folder, "terminal": terminal}
        _write_stand_ins(place)
        environment = {**os.environ, ENVIRONMENT: json.dumps(plan)}
        environment["PATH"] = os.pathsep.join([str(place / "bin"), os.environ.get("PATH", os.defpath)])
        paths = [str(place / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            code = _wait_for(["bash", str(script), *arguments], environment, place, (write_end, terminal), read_end)
        except FileNotFoundError as error:
            raise ConfigError("gmpo verl runs the script in bash, which is not on this machine's PATH.") from error
        finally:
            os.close(terminal)
        notes = [json.loads(note.read_text("utf-8")) for note in sorted((place / "notes").iterdir())]
    ended = [note["code"] for note in notes if note["kind"] == "call"]
    skipped = tuple(dict.fromkeys(note["words"] for note in notes if note["kind"] == "skipped"))
    outcome = Outcome(next((one for one in ended if one), code), len(ended), skipped)
    if not ended:
        what = f"ended with exit status {code} (what it printed is above)" if code else "ended"
        raise ConfigError(
            f"{script}: {what} without reaching {TRAINERS[0]}, so there is nothing to train. Give a script that starts "
            "it, or the settings themselves: gmpo train KEY=VALUE..."
            + "".join(f"\n  not run: {line}" for line in skipped)
        )
    return outcome


def _require_script(script: Path) -> None:
    """
    Raises:
        ConfigError: bash would find no commands in it.
    """
    wanted = "give the path of a shell script that starts verl's trainer"
    if script.is_dir():
        held = sorted(str(file.relative_to(script)) for file in script.rglob("*.sh"))
        there = f"it holds {', '.join(held[:5])}{', ..' * (len(held) > 5)}; name one" if held else f"{wanted}"
        raise ConfigError(f"{script}: a folder, not a script; {there}.")
    if not script.exists():
        raise ConfigError(f"{script}: there is no such file; {wanted}.")
    if script.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{script}: settings, not a script; gmpo train --config {script} reads them.")
    if script.suffix == ".py":
        raise ConfigError(f"{script}: a program in Python, not a shell script; {wanted}.")
    try:
        content = script.read_bytes() if script.is_file() else b"\0"
    except OSError as error:
        raise ConfigError(f"{script}: cannot be read: {error.strerror}.") from error
    if b"\0" in content:
        raise ConfigError(f"{script}: not a text, so no shell script; {wanted}.")
    lines = (line.strip() for line in content.splitlines())
    if not any(line and not line.startswith(b"#") for line in lines):
        raise ConfigError(f"{script}: holds no command; {wanted}.")


def _wait_for(
    command: Sequence[str], environment: Mapping[str, str], place: Path, inherited: tuple[int, int], read_end: int
) -> int:
    """The exit status of the script, when it and all that it left in the background have ended."""
    write_end = inherited[0]
    interrupts = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # The terminal tells the training, which finishes its step.
    terminates = signal.signal(signal.SIGTERM, lambda *_: _forward(place))
    try:
        process = subprocess.Popen(command, env=dict(environment), pass_fds=inherited, preexec_fn=_hears_interrupts)
        os.close(write_end)
        write_end = -1
        code = process.wait()
        while os.read(read_end, 1):
            pass
    finally:
        if write_end >= 0:
            os.close(write_end)
        os.close(read_end)
        signal.signal(signal.SIGINT, interrupts)
        signal.signal(signal.SIGTERM, terminates)
    return code if code >= 0 else 128 - code


def _hears_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _forward(place: Path) -> None:
    for file in (place / "running").iterdir():
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(file.name), signal.SIGTERM)


def _write_stand_ins(place: Path) -> None:
    for name in ("bin", "python", "notes", "running"):
        (place / name).mkdir()
    package = Path(__file__).parents[1]
    stand_in = place / "stand_in.py"
    stand_in.write_text(
        f"import sys\nsys.path.insert(0, {str(package)!r})\nfrom gmpo.verl_script import stand_in\n"
        "raise SystemExit(stand_in(sys.argv[1], sys.argv[2:]))\n",
        "utf-8",
    )
    for name in (*LAUNCHERS, *INSTALLERS, *CHANGES, *DOWNLOADS):
        file = place / "bin" / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -E {stand_in} {name} "$@"\n', "utf-8")
        file.chmod(0o755)
    hook = _HOOK.format(here=str(place / "python"), runner=sys.executable, stand_in=str(stand_in), variable=ENVIRONMENT)
    (place / "python" / "sitecustomize.py").write_text(hook, "utf-8")


_HOOK = """\
import importlib.machinery
import importlib.util
import os
import sys

HERE = {here!r}
words = getattr(sys, "orig_argv", [])[1:]
first = next((index for index, word in enumerate(words) if word == "-m" or not word.startswith("-")), len(words))
rest = [] if "-c" in words[:first] else words[first:]
named = rest[1:2] if rest[:1] == ["-m"] else rest[:1]
computes = '"mode": "train"' not in os.environ.get({variable!r}, "") and named
verls = any(name.startswith(("verl.", "recipe.")) or name.endswith("verl/trainer/main_ppo.py") for name in named)
if os.environ.get({variable!r}) and (verls or computes):
    os.execv({runner!r}, [{runner!r}, "-E", {stand_in!r}, "python", *rest])
sys.path[:] = [path for path in sys.path if path != HERE]
own = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
if own is not None and own.loader is not None:
    own.loader.exec_module(importlib.util.module_from_spec(own))
"""


def stand_in(name: str, words: Sequence[str]) -> int:
    """What runs in a command's place: the trainer, the command itself, or nothing. Returns the exit status."""
    plan = json.loads(os.environ[ENVIRONMENT])
    arrived = trainer_arguments(words)
    if arrived is not None:
        return _hand_over(plan, arrived)
    line = shlex.join([name, *words])
    if name == "python":
        program = words[1] if words[:1] == ["-m"] else (words or ["python"])[0]
        verls = program.startswith(("verl.", "recipe."))
        return _skip(plan, line, f"{program} is verl's" if verls else f"--{plan['mode']} computes nothing")
    if name == "ray":
        return _skip(plan, line, "one process needs no cluster")
    if name in INSTALLERS or (name in ("uv", "uvx") and "run" not in words):
        return _skip(plan, line, "the environment is left as it is")
    if plan["mode"] != "train":
        if name == "tee":
            sys.stdout.buffer.write(sys.stdin.buffer.read())
        return _skip(plan, line, f"--{plan['mode']} changes nothing")
    environment = {key: value for key, value in os.environ.items() if key != "_"}
    inner = Path(plan["folder"]) / "bin"
    search = os.pathsep.join(one for one in environment["PATH"].split(os.pathsep) if one != str(inner))
    found = next((Path(one) / name for one in search.split(os.pathsep) if os.access(Path(one) / name, os.X_OK)), None)
    if found is None:
        print(f"{name}: command not found", file=sys.stderr)
        return 127
    os.execve(found, [name, *words], environment)


def trainer_arguments(words: Sequence[str]) -> list[str] | None:
    """The arguments that verl's trainer would get from a command line; None when it does not start it.

    A whole command in one word (`ray job submit -- bash -c "python3 -m verl.trainer.main_ppo .."`) is looked into.
    """
    for index, word in enumerate(words):
        if word in TRAINERS or word.endswith("verl/trainer/main_ppo.py"):
            return list(words[index + 1 :])
        if " " in word and any(trainer in word for trainer in TRAINERS) and "=" not in word.split(" ")[0]:
            with suppress(ValueError):
                return trainer_arguments(shlex.split(word))
    return None


def _hand_over(plan: Mapping[str, Any], arrived: Sequence[str]) -> int:
    folder, mode = Path(plan["folder"]), plan["mode"]
    words = [*arrived, *plan["overrides"]]
    stopped = [note for note in _notes(folder) if note["kind"] == "call" and note["code"] in INTERRUPTED]
    if stopped:
        return _skip(plan, shlex.join(["gmpo", "train", *words])[:200], "the training before it was interrupted") or 130
    if mode == "print":
        os.write(plan["terminal"], (shlex.join(["gmpo", "train", *words]) + "\n").encode())
        _note(folder, kind="call", code=0)
        return 0
    environment = _own_environment(folder)
    target = plan["terminal"] if mode == "check" else None
    command = [sys.executable, "-m", "gmpo", mode, *words]
    # Ctrl-C reaches the training by the terminal; whoever waits for it stays.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, env=environment, stdout=target, preexec_fn=_hears_interrupts)
    running = folder / "running" / str(process.pid)
    running.touch()
    code = process.wait()
    running.unlink(missing_ok=True)
    code = code if code >= 0 else 128 - code
    _note(folder, kind="call", code=code)
    return code


def _own_environment(folder: Path) -> dict[str, str]:
    """The environment of the script without what the stand-ins put into it."""
    environment = {key: value for key, value in os.environ.items() if key != ENVIRONMENT}
    for key in ("PATH", "PYTHONPATH"):
        kept = [one for one in environment.get(key, "").split(os.pathsep) if one and not one.startswith(str(folder))]
        environment[key] = os.pathsep.join(kept)
    package = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment["PYTHONPATH"]]))
    return environment


def _skip(plan: Mapping[str, Any], line: str, reason: str) -> int:
    _note(Path(plan["folder"]), kind="skipped", words=f"{line} ({reason})")
    return 0


def _note(folder: Path, **content: Any) -> None:
    file = folder / "notes" / f"{time.monotonic_ns():020d}-{os.getpid()}.json"
    partial = folder / file.name
    partial.write_text(json.dumps(content), "utf-8")
    partial.rename(file)


def _notes(folder: Path) -> list[Any]:
    return [json.loads(file.read_text("utf-8")) for file in sorted((folder / "notes").iterdir())]
