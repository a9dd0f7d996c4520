"""Which layer wins, what a recipe does to the layers below it, and what a saved configuration says of itself."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gmpo.config import Config, Resolved, load, load_sft
from gmpo.config.tree import get
from gmpo.errors import ConfigError

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
LOSS, BOUND = f"{A}.policy_loss.loss_mode", f"{A}.clip_ratio"
OBJECTIVES = ("dr_grpo", "gmpo", "grpo", "gspo", "ppo", "rloo")
"""The recipes that are an objective and nothing else."""


def saved(folder: Path, *overrides: str) -> Path:
    """The `config.yaml` of a run with these settings."""
    file = folder / "config.yaml"
    file.write_text(load(overrides).to_yaml())
    return file


@functools.cache
def alone(recipe: str) -> Config:
    return load([f"recipe={recipe}"]).config


def refused(*overrides: str, **layers: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides, **layers)
    assert str(caught.value).startswith("1 problem in the configuration:")
    return str(caught.value)


def account(resolved: Resolved[Config]) -> tuple[Any, ...]:
    """All that is said of a configuration."""
    return resolved.config, resolved.given, resolved.derived, resolved.inert, resolved.warnings, resolved.idle


# --- recipes -----------------------------------------------------------------------------------------------------


def test_the_recipe_of_the_command_line_wins_over_the_file_and_loses_to_the_command_line(tmp_path: Path) -> None:
    """It was ignored, so that a comparison of GMPO with GRPO trained GMPO twice."""
    file = tmp_path / "run.yaml"
    file.write_text(f"recipe: gmpo\n{BOUND}: 0.3\ntrainer.seed: 2\n")
    values = [get(load(words, file=file).config, BOUND) for words in ([], ["recipe=grpo"])]
    assert values == [0.3, 0.2]
    config = load([f"{BOUND}=0.1", "recipe=grpo"], file=file).config
    assert (get(config, BOUND), get(config, LOSS), config.trainer.seed) == (0.1, "vanilla", 2)


def test_each_layer_lies_above_its_recipe_and_that_above_the_layer_before(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: gspo\n")
    assert get(load(tree={"recipe": "gmpo"}, file=file).config, LOSS) == "geo_mean"
    assert get(load(tree={LOSS: "cispo", "recipe": "gmpo"}, file=file).config, LOSS) == "cispo"
    assert get(load(["recipe=grpo"], tree={LOSS: "cispo", "recipe": "gmpo"}).config, LOSS) == "vanilla"


@pytest.mark.parametrize("words", [["gspo", "gmpo"], ["gmpo", "gspo", "gmpo"], ["gspo", "null"], ["null", "gspo"]])
def test_two_recipes_in_one_place_are_refused_and_both_named(words: list[str]) -> None:
    """The first was dropped without a word, though each states a whole objective."""
    message = refused(*(f"recipe={word}" for word in words))
    assert "different recipes in one place" in message
    assert all(word in message for word in words)


def test_a_recipe_given_twice_is_one_recipe() -> None:
    assert load(["recipe=gmpo", "recipe=gmpo"]).config == alone("gmpo")
    assert load(["recipe=null", "recipe=null"], tree={"recipe": "gmpo"}).config == load().config


@pytest.mark.parametrize("first", OBJECTIVES)
def test_over_the_saved_run_of_one_objective_another_is_trained_as_it_is_alone(tmp_path: Path, first: str) -> None:
    """GSPO's bounds of 3e-4 must not stay under GMPO's loss, nor GRPO's KL term."""
    file = saved(tmp_path, f"recipe={first}")
    for second in OBJECTIVES:
        if second != first:
            assert load([f"recipe={second}"], file=file).config == alone(second), second


def test_what_a_recipe_sets_back_is_warned_of_unless_it_is_given_beside_it(tmp_path: Path) -> None:
    file = saved(tmp_path, "recipe=grpo")
    path = f"{A}.use_kl_loss"
    note = next(note for note in load(["recipe=gmpo"], file=file).warnings if note.path == path)
    assert note.reason.startswith(f"was True ({file}); recipe gmpo, which states a whole objective, sets it back")
    kept = load(["recipe=gmpo", f"{path}=True"], file=file)
    assert get(kept.config, path) is True
    assert path not in {note.path for note in kept.warnings}


@pytest.mark.parametrize(
    ("below", "beside"),
    [
        (["recipe=gmpo"], []),
        (["recipe=gmpo", "trainer.seed=2"], [f"{BOUND}=0.3"]),
        ([], [f"{BOUND}=0.3", f"{LOSS}=vanilla", "algorithm.adv_estimator=rloo"]),
    ],
)
def test_a_recipe_that_changes_nothing_is_refused(tmp_path: Path, below: list[str], beside: list[str]) -> None:
    """Its values were given already, or are overridden beside it."""
    message = refused("recipe=gmpo", *beside, file=saved(tmp_path, *below))
    assert "recipe = gmpo (command line)\n      changes nothing" in message
    assert all(word.partition("=")[0] in message for word in beside)


def test_a_recipe_that_only_sets_something_back_changes_something(tmp_path: Path) -> None:
    file = saved(tmp_path, "recipe=gmpo", f"{A}.use_kl_loss=True")
    assert load(["recipe=gmpo"], file=file).config == alone("gmpo")


def test_a_recipe_that_states_what_is_the_default_is_no_mistake() -> None:
    """Of `grpo` the KL term alone is no default, and the recipe itself says how to leave it out."""
    assert get(load(["recipe=grpo", f"{A}.use_kl_loss=False"]).config, LOSS) == "vanilla"


def test_the_files_recipe_may_be_overridden_whole_by_a_later_layer(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: gmpo\n")
    everything = [f"{BOUND}=0.3", f"{LOSS}=cispo", "algorithm.adv_estimator=rloo"]
    assert get(load(everything, file=file).config, LOSS) == "cispo"


# --- saved configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("recipe=gmpo", "trainer.critic_warmup=3", "trainer.total_training_steps=80", "data.shuffle=True"),
        ("recipe=ppo", "critic.ppo_micro_batch_size=16", f"{A}.ppo_micro_batch_size=16"),
        ("algorithm.rollout_correction.preset=bypass_pg_geo_rs_seq_tis", f"{R}.log_prob_max_token_len_per_gpu=2000"),
        ("+actor_rollout_ref.model.override_config.a=1", "reward_model.extra_rewards=[{path: r.py, weight: 0.5}]"),
    ],
)
def test_a_saved_configuration_gives_the_same_configuration_and_the_same_account_of_it(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """131 keys that nobody had set were reported to have no effect."""
    assert account(load(file=saved(tmp_path, *overrides))) == account(load(overrides))


def test_what_followed_goes_on_following_what_is_changed(tmp_path: Path) -> None:
    file = saved(tmp_path, "recipe=gmpo", f"{R}.seed=9", "trainer.experiment_name=a")
    config = load(["trainer.seed=3", f"{BOUND}=0.3", "trainer.experiment_name=b"], file=file).config
    assert (config.data.seed, get(config, f"{R}.seed")) == (3, 9)
    assert get(config, f"{A}.clip_ratio_high") == 0.3
    assert config.trainer.default_local_dir == "checkpoints/gmpo/b"


@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_a_recipe_written_into_a_saved_file_is_refused_with_the_way_to_apply_it(tmp_path: Path, recipe: str) -> None:
    """GMPO's loss and bounds had been set, so they stayed above GSPO's recipe, whose other bounds were taken."""
    file = saved(tmp_path, "recipe=gmpo")
    file.write_text(f"recipe: {recipe}\n{file.read_text()}")
    assert f"Give recipe={recipe} on the command line" in refused(file=file)
    file.write_text(file.read_text().replace(f"recipe: {recipe}\n", "recipe: null\n"))
    assert load(file=file).config == alone("gmpo")


def edited(file: Path, **changes: Any) -> Resolved[Config]:
    """A saved file read again with other values in its tree, `section__key=value`; `...` removes the line."""
    tree = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(tree, dict)
    for name, value in changes.items():
        *sections, key = name.split("__")
        node = functools.reduce(lambda inner, section: inner[section], sections, tree)
        node[key] = value
        if value is ...:
            del node[key]
    OmegaConf.save(OmegaConf.create(tree), file)
    return load(file=file)


@pytest.mark.parametrize("overrides", [["recipe=gmpo"], ["recipe=gmpo", "trainer.seed=2"]])
def test_what_followed_follows_what_is_edited_in_the_file(tmp_path: Path, overrides: list[str]) -> None:
    """The seed of the data stayed at the old value, so half of the run had the new one."""
    again = edited(saved(tmp_path, *overrides), trainer__seed=3, data__train_batch_size=512)
    assert again.config == load(["recipe=gmpo", "trainer.seed=3", "data.train_batch_size=512"]).config
    assert again.given == load(["recipe=gmpo", "trainer.seed=3", "data.train_batch_size=512"]).given
    # What had been set and now is other than the record says is named, since either may have been edited.
    named = [note.path for note in again.warnings if "was 2 when" in note.reason]
    assert named == ["trainer.seed"] * (len(overrides) - 1)


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ([], {"algorithm__rollout_correction__preset": "decoupled_token_is"}, ["+preset=decoupled_token_is"]),
        (["+preset=decoupled_token_is"], {"algorithm__rollout_correction__preset": "decoupled_seq_is_rs"}, None),
        ([], {"trainer__total_training_steps": 7}, ["trainer.total_training_steps=7"]),
        (["trainer.total_training_steps=7"], {"trainer__total_training_steps": ...}, []),
        (["trainer.total_training_steps=7"], {"trainer__total_epochs": 30}, None),
        (["trainer.seed=2"], {"trainer__seed": ...}, []),
        (["trainer.seed=2"], {"data__seed": 1}, ["trainer.seed=2", "data.seed=1"]),
        ([], {"data__seed": 7}, ["data.seed=7"]),
        ([f"{BOUND}=0.3"], {"actor_rollout_ref__actor__clip_ratio": 0.1}, [f"{BOUND}=0.1"]),
        ([f"{BOUND}=0.3"], {"actor_rollout_ref__actor__clip_ratio_low": 0.1}, [f"{BOUND}=0.3", f"{BOUND}_low=0.1"]),
    ],
)
def test_an_edit_has_the_effect_of_the_same_words_on_the_command_line(
    tmp_path: Path, before: list[str], changes: dict[str, Any], after: list[str] | None
) -> None:
    """Where `after` is None the edit is a word more: also one to the default of what was derived otherwise."""
    section = "+algorithm.rollout_correction."
    if after is None:
        after = [*before, *(f"{name.replace('__', '.')}={value}" for name, value in changes.items())]
    before, after = ([word.replace("+", section) for word in words] for words in (before, after))
    assert load(before).config != load(after).config
    assert edited(saved(tmp_path, *before), **changes).config == load(after).config


def test_a_saved_file_keeps_its_values_where_defaults_have_changed_since(tmp_path: Path) -> None:
    """As if seed 1 had not been the default when it was saved: what follows it stands in the file too."""
    file = saved(tmp_path)
    file.write_text(file.read_text().replace("seed: 1\n", "seed: 4\n"))
    config = load(file=file).config
    assert (config.trainer.seed, config.data.seed, get(config, f"{R}.seed")) == (4, 4, 4)


def test_what_is_wrong_in_a_saved_file_is_reported(tmp_path: Path) -> None:
    file = saved(tmp_path)
    text = file.read_text()
    file.write_text(text.replace("train_batch_size: 1024", "train_batch_size: many"))
    assert "data.train_batch_size = 'many'" in refused(file=file)
    file.write_text(text.replace("train_batch_size: 1024", "train_batch_sizes: 1024"))
    assert "Did you mean data.train_batch_size" in refused(file=file)
    for wrong in ("3", "[trainer.seed]"):
        file.write_text(text.replace("given: {}", f"given: {wrong}"))
        assert "must hold the keys that were set, with their values" in refused(file=file)


def test_the_saved_configuration_of_supervised_learning_says_what_was_set_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    first = load_sft(["data.train_batch_size=100", "model.path=m", "trainer.seed=2"])
    file.write_text(first.to_yaml())
    again = load_sft(file=file)
    assert (again.config, again.given, again.derived) == (first.config, first.given, first.derived)


# --- what is said of keys without effect ---------------------------------------------------------------------------


def test_keys_without_effect_are_told_apart_by_whether_they_ask_for_something() -> None:
    resolved = load(
        tree={
            "trainer": {"balance_batch": False},
            "data": {"return_raw_chat": True},
            A: {"kl_loss_coef": 0.001, "kl_loss_type": "k2"},
            "actor_rollout_ref.model": {"use_shm": False, "use_liger": True},
        }
    )
    assert resolved.idle == {"data.return_raw_chat", f"{A}.kl_loss_coef", "actor_rollout_ref.model.use_shm"}
    assert [note.path for note in resolved.without_effect] == [
        "trainer.balance_batch",
        f"{A}.kl_loss_type",
        "actor_rollout_ref.model.use_liger",
    ]


def test_a_complete_tree_of_defaults_has_nothing_to_say_but_how_many_keys_have_no_effect() -> None:
    tree = OmegaConf.to_container(OmegaConf.create(load().tree_yaml()))
    assert isinstance(tree, dict)
    resolved = load(tree={str(key): value for key, value in tree.items()})
    assert resolved.without_effect == ()
    assert len(resolved.idle) > 100
