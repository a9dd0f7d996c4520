"""Prompts become ids through a real tokenizer's chat template; the length limit does what its name says."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from gmpo.data.problems import Problem
from gmpo.data.prompts import TRUNCATIONS, encode_prompts, writes_the_time
from gmpo.errors import ConfigError, DataError

WORDS = ["<pad>", "<eos>", "<unk>", "<user>", "<answer>", "<think>", "a", "b", "c", "d", "e"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<user> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<answer>{% if thinking %} <think>{% endif %}{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """A word-level tokenizer: an id is the position in WORDS."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = template
    return fast


def problem(content: str, number: int = 1, role: str = "user") -> Problem:
    return Problem(f"t:{number}", ({"role": role, "content": content},), "s", "4")


def words(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[i] for i in ids)


def encode(problems: list[Problem], limit: int, **options: Any) -> Any:
    return encode_prompts(problems, options.pop("tokenizer", tokenizer()), max_prompt_length=limit, **options)


def test_a_prompt_is_the_templated_messages_and_the_opening_of_the_answer() -> None:
    result = encode([problem("a b")], 4)
    assert words(result.items[0].prompt_ids) == "<user> a b <answer>"
    assert all(type(i) is int for i in result.items[0].prompt_ids)
    assert (result.dropped, result.truncated) == (0, 0)


def test_a_moment_is_what_the_template_writes_by_every_code_and_leaves_its_layout() -> None:
    """Against `datetime.strftime`, with flags, doubled and single percent signs, from within a macro, with arguments of
    the user's; a first line with indentation stays what it was."""
    moment = datetime(2024, 7, 6, 5, 4, 3)
    formats = ["%d %b %Y", "%-d|%%d|100% ", "%A %B %j %H:%M:%S %p %y", "%c", "", "%"]
    body = "".join(f"{{{{ strftime_now('{one}') }}}};" for one in formats)
    template = (
        "  {% if strftime_now is defined %}\n" + "{% macro m() %}" + body + "{% endmacro %}{{ x }}{{ m() }}{% endif %}"
    )
    seen = tokenizer(template)
    seen.backend_tokenizer.pre_tokenizer = None  # one word, looked up whole
    expected = "x" + "".join(f"{moment.strftime(one)};" for one in formats)
    seen.add_tokens([expected])
    (item,) = encode([problem("a")], 4, tokenizer=seen, moment=moment, chat_template_kwargs={"x": "x"}).items
    assert seen.convert_ids_to_tokens(item.prompt_ids) == [expected]
    assert writes_the_time(seen)
    assert not writes_the_time(tokenizer())


def test_template_arguments_reach_the_template() -> None:
    result = encode([problem("a")], 4, chat_template_kwargs={"thinking": True})
    assert words(result.items[0].prompt_ids) == "<user> a <answer> <think>"


@pytest.mark.parametrize(
    ("truncation", "remains"),
    [("left", "c d e <answer>"), ("right", "<user> a b c"), ("middle", "<user> a e <answer>")],
)
def test_truncation_cuts_where_its_name_says_and_leaves_short_prompts_alone(truncation: str, remains: str) -> None:
    result = encode([problem("a b c d e"), problem("a b")], 4, truncation=truncation)
    assert [words(item.prompt_ids) for item in result.items] == [remains, "<user> a b <answer>"]
    assert (result.dropped, result.truncated) == (0, 1)


@given(st.integers(2, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))))
def test_every_truncation_keeps_exactly_the_limit_in_the_order_of_the_prompt(sizes: tuple[int, int]) -> None:
    n, limit = sizes
    ids = tuple(range(n))
    kept = {name: cut(ids, limit) for name, cut in TRUNCATIONS.items()}
    assert all(len(k) == limit and list(k) == sorted(set(k)) for k in kept.values())
    assert kept["left"][-1] == n - 1
    assert kept["right"][0] == 0
    assert kept["middle"] == ids[: limit // 2] + ids[n - (limit - limit // 2) :]


def test_filtering_drops_only_prompts_longer_than_the_limit_and_counts_them() -> None:
    problems = [problem("a b c", 1), problem("a b", 2), problem("a b c d", 3), problem("a", 4)]
    result = encode(problems, 4, filter_overlong=True)
    assert [item.problem.id for item in result.items] == ["t:2", "t:4"]
    assert (result.dropped, result.truncated) == (2, 0)


def test_the_error_mode_names_problem_lengths_and_the_three_remedies() -> None:
    with pytest.raises(DataError) as raised:
        encode([problem("a", 1), problem("a b c", 2), problem("a b c d", 3)], 4, truncation="error")
    text = str(raised.value)
    assert text.startswith(
        "t:2: the prompt has 5 tokens, more than data.max_prompt_length=4; 2 of 3 prompts are longer"
    )
    for remedy in ("data.filter_overlong_prompts=True", "data.truncation=left", "data.max_prompt_length to 6"):
        assert remedy in text


def test_nothing_left_after_filtering_names_the_shortest() -> None:
    with pytest.raises(
        DataError, match=r"leaves nothing: all 2 prompts .*max_prompt_length=2 tokens, the shortest has 3"
    ):
        encode([problem("a"), problem("a b")], 2, filter_overlong=True)
    with pytest.raises(DataError, match="the data set is empty"):
        encode([], 4)


def test_a_tokenizer_without_chat_template_is_refused_with_the_setting_that_gives_one() -> None:
    with pytest.raises(DataError, match=r"no chat template.*actor_rollout_ref\.model\.custom_chat_template"):
        encode([problem("a")], 4, tokenizer=tokenizer(None))


def test_a_row_that_the_template_refuses_is_named_with_the_templates_words() -> None:
    with pytest.raises(DataError, match=r"t:2: the chat template fails .*roles: system\): System role not supported"):
        encode([problem("a", 1), problem("a", 2, role="system")], 4)


@pytest.mark.parametrize("broken", ["{% for %}", "{{ messages[5].content }}", "{{ 1 + 'a' }}"])
def test_a_broken_template_is_a_data_error(broken: str) -> None:
    with pytest.raises(DataError, match="t:1: the chat template fails"):
        encode([problem("a")], 4, tokenizer=tokenizer(broken))


def test_a_template_that_writes_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="t:1: the chat template renders this row as an empty prompt"):
        encode([problem("a")], 4, tokenizer=tokenizer("{% if false %}x{% endif %}"))


def test_the_package_loads_neither_torch_nor_transformers() -> None:
    modules = "files, gsm8k, math, prepare, problems, prompts, rows, stories"
    code = f"import sys; from gmpo.data import {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"limit": 0}, "at least 1 token"),
        ({"truncation": "mid"}, "must be one of error, left, right, middle"),
        ({"chat_template_kwargs": {"tokenize": False, "padding": True}}, "sets padding, tokenize, which gmpo decides"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        encode([problem("a")], options.pop("limit", 4), **options)
