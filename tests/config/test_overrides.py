"""Override arguments mean what they mean to verl."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmpo.config.overrides import Kind, Override, parse_override, parse_value
from gmpo.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("10_000", 10000),
        ("1e-6", 1e-6),
        ("3e-4", 3e-4),
        ("0.80", 0.8),
        (".5", 0.5),
        ("True", True),
        ("false", False),
        ("null", None),
        ("", ""),
        ("low_var_kl", "low_var_kl"),
        ("k3+", "k3+"),
        ("007", "007"),
        ("'12'", "12"),
        ('"a b"', "a b"),
        (r"'it\'s'", "it's"),
        ("['hf_model']", ["hf_model"]),
        ('["console","wandb"]', ["console", "wandb"]),
        ("[console,wandb]", ["console", "wandb"]),
        ("['/a b/x.parquet', '/c/y.parquet']", ["/a b/x.parquet", "/c/y.parquet"]),
        ("[0.9, 0.999]", [0.9, 0.999]),
        ("['a,b', 'c]d']", ["a,b", "c]d"]),
        ("[[1,2],['x]']]", [[1, 2], ["x]"]]),
        ("[]", []),
        ("{}", {}),
        ("{a:1}", {"a": 1}),
        ("None", "None"),
        ("[none]", ["none"]),
        ("{a: 1, b: {c: [x, null]}}", {"a": 1, "b": {"c": ["x", None]}}),
        ("{url:http://h:80/p}", {"url": "http://h:80/p"}),
        ("data/*.parquet", "data/*.parquet"),
        ("a: b", "a: b"),
        ("step #3", "step #3"),
        ("${data.max_prompt_length}", "${data.max_prompt_length}"),
    ],
)
def test_a_value_is_read_as_verl_reads_it(written: str, value: Any) -> None:
    found = parse_value(written)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_plus_signs_change_nothing(prefix: str) -> None:
    assert parse_override(f"{prefix}trainer.seed=3") == Override("trainer.seed", 3)


def test_only_the_first_equals_sign_divides_key_and_value() -> None:
    assert parse_override("trainer.experiment_name=lr=3") == Override("trainer.experiment_name", "lr=3")


def test_a_text_setting_takes_its_value_as_written() -> None:
    for written in ("007", "1e-6", "True", "[draft]", "{{ bos }}", "5", "none", "None"):
        assert parse_override(f"trainer.experiment_name={written}", lambda path: "text").value == written
    assert parse_override("trainer.experiment_name='null'", lambda path: "text").value == "null"
    assert parse_override("trainer.experiment_name=null", lambda path: "text").value is None


@pytest.mark.parametrize(
    ("kind", "value", "noted"),
    [
        ("text", "None", False),
        ("free", "None", False),
        ("text or null", None, True),
        ("texts or null", None, True),
        ("other", None, False),
    ],
)
def test_none_is_null_only_where_null_may_stand_and_that_is_noted_where_a_text_may_stand_too(
    kind: Kind, value: str | None, noted: bool
) -> None:
    assert parse_override("a.b=None", lambda path: kind) == Override("a.b", value, noted)
    assert parse_override("a.b='None'", lambda path: kind) == Override("a.b", "None")
    assert parse_override("a.b=null", lambda path: kind) == Override("a.b", None)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("trainer.seed", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("+++trainer.seed=3", "KEY=VALUE"),
        ("--resume", "KEY=VALUE"),
        ("~trainer.seed", "cannot be deleted"),
        ("--config-name=ppo_megatron_trainer", "--config FILE.yaml"),
        ("--config-path", "--config FILE.yaml"),
        ("hydra.run.dir=x", "Hydra is not used"),
        ("a.b=['x'", "does not end in ]"),
        ("a.b='x", "not closed"),
        ("a.b={x}", "key: value"),
        ("a.b=[[1,2]", "not balanced"),
    ],
)
def test_a_malformed_argument_is_named_with_the_remedy(argument: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(argument)
    assert repr(argument) in str(caught.value)
    assert words in str(caught.value)


def _written(value: Any) -> str:
    """A value in quotes and brackets, as a careful user writes it."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(key)}: {_written(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(_VALUES)
def test_every_value_survives_being_written_and_read(value: Any) -> None:
    assert parse_override(f"a.b={_written(value)}") == Override("a.b", value)


@given(st.text())
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        parse_override(text)
    with suppress(ConfigError):
        parse_override(f"a.b={text}")
