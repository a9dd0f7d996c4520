"""Checkpoints of a run, in verl's folder names:

    <root>/latest_checkpointed_iteration.txt     the newest step, written last
    <root>/global_step_<N>/state.json            step, KL coefficient, what the position in the data depends on
    <root>/global_step_<N>/actor/                what the learner wrote

A checkpoint appears under its name only when it is complete: it is written beside it and renamed. Random streams and
the order of problems are functions of seed and step, so there is nothing of them to save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gmpo.errors import CheckpointError
from gmpo.ports import Learner

LATEST = "latest_checkpointed_iteration.txt"
PREFIX = "global_step_"
UNFINISHED = ".unfinished_"


@dataclass(frozen=True, slots=True)
class State:
    """Everything of a run that is neither weights nor optimizer."""

    step: int
    """Training steps done."""
    kl_coef: float
    """Coefficient of the KL penalty in the reward for the next step."""


class Store:
    """Checkpoints below `root`.

    Args:
        save_contents, load_contents: of model, optimizer, extra, hf_model.
        resume: `auto` takes the newest checkpoint below root if there is one, `disable` starts anew, a path takes that
            `global_step_N` folder.
        keep: number of newest checkpoints that stay, those of earlier processes included; None keeps all.
        position: what the position in the data depends on (rows, batch size, seed ..); a checkpoint made under other
            values is refused, because its step would mean other problems.
        warn: receives a line for the user.
    """

    def __init__(
        self,
        root: Path,
        *,
        save_contents: Sequence[str],
        load_contents: Sequence[str],
        resume: Path | str,
        keep: int | None,
        position: Mapping[str, int | bool | str],
        warn: Callable[[str], None],
    ) -> None:
        self.root = root
        self.save_contents = save_contents
        self.load_contents = load_contents
        self.resume = resume
        self.keep = keep
        self.position = dict(position)
        self.warn = warn

    def save(self, learner: Learner, state: State) -> Path:
        """Write a checkpoint of `state`; the newest-step file points at it afterwards."""
        self.root.mkdir(parents=True, exist_ok=True)
        target = self.root / f"{PREFIX}{state.step}"
        unfinished = self.root / f"{UNFINISHED}{PREFIX}{state.step}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
            learner.save(unfinished / "actor", self.save_contents)
            _write_json(unfinished / "state.json", {**asdict(state), "position": self.position})
            if target.exists():
                shutil.rmtree(target)
            os.replace(unfinished, target)
            latest = self.root / f"{UNFINISHED}{LATEST}"
            latest.write_text(str(state.step))
            os.replace(latest, self.root / LATEST)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"cannot write checkpoint {target}: {error}. Earlier checkpoints are intact."
            ) from error
        self._rotate()
        return target

    def restore(self, learner: Learner) -> State | None:
        """Load the checkpoint that `resume` names into `learner`; None where the run starts anew.

        Raises:
            CheckpointError: it is incomplete, unreadable, or belongs to another run.
        """
        folder = self._chosen()
        if folder is None:
            return None
        state, position = _read_state(folder)
        if position != self.position:
            raise CheckpointError(_other_position(folder, position, self.position))
        contents = self._present(folder)
        learner.load(folder / "actor", contents)
        if "optimizer" not in contents:
            self.warn(
                f"{folder.name} holds no optimizer state (save_contents={list(self.save_contents)}): weights are "
                "resumed, AdamW's moments start at zero. Save ['model','optimizer','extra'] for an exact resume."
            )
        return state

    def _present(self, folder: Path) -> list[str]:
        """Of what may be loaded, what the checkpoint has.

        Raises:
            CheckpointError: no weights among it: going on would restart from the base model under a later step's name.
        """
        files = {
            "model": folder / "actor" / "model.safetensors",
            "optimizer": folder / "actor" / "optimizer.safetensors",
            "hf_model": folder / "actor" / "huggingface" / "config.json",
        }
        has_export = any((folder / "actor" / "huggingface").glob("*.safetensors"))
        contents = [c for c in self.load_contents if c in files and files[c].is_file()]
        contents = [c for c in contents if c != "hf_model" or has_export]
        if "model" not in contents and "hf_model" not in contents:
            raise CheckpointError(
                f"{folder} holds no weights that load_contents={list(self.load_contents)} allows to load, so the run "
                "would restart from the base model. Start anew with trainer.resume_mode=disable, or allow 'model' or "
                "'hf_model' in actor_rollout_ref.actor.checkpoint.load_contents."
            )
        return contents

    def _chosen(self) -> Path | None:
        if self.resume == "disable":
            return None
        if self.resume != "auto":
            folder = Path(self.resume)
            if not (folder / "state.json").is_file():
                raise CheckpointError(f"trainer.resume_from_path={folder}: no checkpoint there (no state.json)")
            return folder
        latest = self.root / LATEST
        if not latest.is_file():
            return None
        text = latest.read_text().strip()
        folder = self.root / f"{PREFIX}{text}"
        if not folder.is_dir():
            raise CheckpointError(
                f"{latest} names step {text}, but {folder} does not exist. Correct the number, or start anew with "
                "trainer.resume_mode=disable."
            )
        return folder

    def _rotate(self) -> None:
        if self.keep is None:
            return
        numbered = [(int(p.name.removeprefix(PREFIX)), p) for p in self.root.glob(f"{PREFIX}[0-9]*") if p.is_dir()]
        for _, folder in sorted(numbered)[: -self.keep]:
            shutil.rmtree(folder)


def _read_state(folder: Path) -> tuple[State, dict[str, object]]:
    """The state and what its position in the data depends on."""
    try:
        saved = json.loads((folder / "state.json").read_text())
        return State(step=int(saved["step"]), kl_coef=float(saved["kl_coef"])), dict(saved["position"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {folder / 'state.json'}: {error!r}") from error


def _other_position(folder: Path, then: Mapping[str, object], now: Mapping[str, object]) -> str:
    changes = [f"  {k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in now if then.get(k) != now.get(k)]
    return (
        f"{folder} was made with other data or batches, so its step number would mean other problems:\n"
        + "\n".join(changes)
        + "\nUse the same settings to go on, or trainer.resume_mode=disable to start anew (weights of the checkpoint "
        "can be the new model.path: see its actor/huggingface)."
    )


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1))
