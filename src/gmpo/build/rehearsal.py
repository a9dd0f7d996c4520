"""The start of a training up to the point where it would load weights: `gmpo check --ready` makes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gmpo.backends.model_files import require_weights
from gmpo.backends.models import resolve
from gmpo.build.learner import require_divisible_sequences
from gmpo.build.programs import TrainingData, ValidationData, read_training, read_validation
from gmpo.build.rewards import build_rewards, check_run_references, hidden_thinking
from gmpo.build.start import FOLDER, candidates, check_writable
from gmpo.config import Config, Resolved
from gmpo.config.resolved import Note
from gmpo.errors import BackendError, ConfigError, DataError

KEYS = {BackendError: "actor_rollout_ref.model.path", DataError: "data.train_files", ConfigError: FOLDER}
"""What an error of a kind is told under, where it names no setting that is given."""


def what_stops(resolved: Resolved[Config]) -> list[Note]:
    """What would stop the start, by the functions that the start itself calls. Nobody's code is run: a reward function
    of the user's is not asked."""
    return list(_stopping(resolved))


def _stopping(resolved: Resolved[Config]) -> Iterator[Note]:
    config = resolved.config
    own = config.custom_reward_function.path is not None or bool(config.reward_model.extra_rewards)
    try:
        check_writable(next(candidates(resolved)))
        data: TrainingData | ValidationData
        if config.trainer.val_only:
            data = read_validation(resolved, None, [], None, "check")
        else:
            data = read_training(resolved, None, None, [], None, "check")
        require_divisible_sequences(config)
        require_weights(Path(resolve(config.actor_rollout_ref.model.source)))
        if own:
            return
        with build_rewards(config, [], None, data.asked) as rewards:
            rewards.start([problem.data_source for problem in data.asked])
            hidden_thinking(config, rewards, data.tokenizer)
            check_run_references(config, rewards, data.asked)
    except (BackendError, DataError, ConfigError) as error:
        kind = next(kind for kind in KEYS if isinstance(error, kind))
        named = [key for key in resolved.given if isinstance(error, ConfigError) and key in str(error)]
        yield Note(min(named, key=str(error).index, default=KEYS[kind]), str(error))
