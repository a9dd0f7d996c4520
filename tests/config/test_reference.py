"""The written reference and the names that other packages share with the schema."""

from __future__ import annotations

from pathlib import Path

from gmpo.config import Config
from gmpo.config.reference import markdown
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import leaves

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_what_the_schema_says() -> None:
    assert DOCUMENT.read_text("utf-8") == markdown(), "run: python -m gmpo.config.reference > docs/configuration.md"


def test_every_setting_has_a_row_in_the_reference() -> None:
    text = markdown()
    for root in (Config, SftConfig):
        for path, leaf in leaves(root).items():
            assert f"### `{path.rpartition('.')[0]}`" in text
            assert f"| `{leaf.name}`" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 2  # tables of five and of two columns


def test_every_setting_has_a_role_and_the_reference_shows_it() -> None:
    """`identity` unless the schema says otherwise: a setting that nobody thought about is refused when it changes."""
    rows = iter(line for line in markdown().splitlines() if line.startswith("| `") and line.count(" | ") >= 4)
    for root in (Config, SftConfig):
        for path, leaf in leaves(root).items():
            assert leaf.role in ("identity", "execution", "bookkeeping"), path
            assert leaf.role == "execution" or not leaf.exact, path
            shown = "-" if leaf.inert else leaf.role + ", exact" * leaf.exact
            row = next(rows)
            assert row.startswith(f"| `{leaf.name}`")
            assert f" | {shown} | " in row, path


def test_what_decides_what_is_learned_is_identity_and_paths_go_by_their_content() -> None:
    roles = {path: leaf.role for path, leaf in leaves(Config).items()}
    for path in (
        "actor_rollout_ref.actor.policy_loss.loss_mode",
        "actor_rollout_ref.actor.optim.lr",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "actor_rollout_ref.model.custom_chat_template",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.rollout.temperature",
        "algorithm.adv_estimator",
        "data.train_batch_size",
        "reward_model.grader_timeout_s",
        "trainer.seed",
    ):
        assert roles[path] == "identity", path
    paths = [path for path, leaf in leaves(Config).items() if path.endswith((".path", "tokenizer_path", "_files"))]
    assert len(paths) == 8
    assert all(roles[path] == "execution" for path in paths)
