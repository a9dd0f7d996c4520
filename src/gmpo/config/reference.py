"""The reference of all settings as Markdown, generated from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from gmpo.config.fields import Section
from gmpo.config.keys import MOVED, NO_COUNTERPART, SFT_MOVED, SFT_UNSUPPORTED, UNSUPPORTED
from gmpo.config.layers import recipes
from gmpo.config.schema import Config
from gmpo.config.schema_sft import SftConfig
from gmpo.config.tree import Leaf, leaves

_INTRODUCTION = """\
# Configuration

This file is generated from the schema: `python -m gmpo.config.reference > docs/configuration.md`.

`gmpo train` takes verl's keys as `KEY=VALUE`, and the same tree as YAML with `--config FILE.yaml`. What wins, from weak
to strong: defaults, the file's recipe, file, the command line's recipe, command line; of two equal keys the later one.

- **Forms.** `key=value`, `+key=value` and `++key=value` mean the same. Lists are `['a','b']`, `["a","b"]` or `[a,b]`;
  mappings `{a: 1}`; also `True`, `null`, `3e-4`. YAML keys may be nested or dotted, and `${data.max_prompt_length}`
  stands for another setting.
- **Nothing is silently ignored.** An unknown key, a wrong type and an impossible combination are errors, all listed
  together. `gmpo check KEY=VALUE ...` shows which given keys are honoured, which have no effect and why, and which ask
  for something that is not available yet.
- **Derived** settings follow from others when they are not given (or given as null).
- **Role** says what a changed value means to a run that goes on in its folder. *identity*: it would be another run, so
  it is refused, unless `trainer.allow_changed_config=True`. *execution*: the same is computed elsewhere or in other
  pieces; it goes on, is recorded, and says that rounding may differ (not with *exact*). *bookkeeping*: what is recorded
  and when the run ends; it goes on. Paths are *exact* because what lies there is compared by content: base model,
  tokenizer and chat template, problems, reward functions. The length of the run counts as *identity* where the learning
  rate or another schedule depends on it.
- *own*: the key is not one of verl's. *no effect*: accepted so that verl's commands run; the reason is given.

What differs from verl: `rollout.n` is 5 for group estimators when it is not given; no `data.val_files` means no
validation; `rollout.name` is `hf`; `algorithm.adv_estimator` is `grpo`; `clip_ratio` alone sets both bounds;
`total_training_steps` alone sets the length of the run; `val_kwargs.do_sample=False` is greedy; `data.truncation` means
what it says; seeds follow `trainer.seed`; devices are those present; loggers are console and TensorBoard.
"""

_RECIPES = """\
`recipe=NAME` lays a recipe below the file or command line that names it, and above everything before that: with
`--config FILE.yaml recipe=grpo` GRPO is trained, whatever objective the file has. A recipe states a whole objective:
estimator, loss, bounds, average and KL terms of the file that it does not give go back to their defaults, and a warning
names each. A recipe that changes nothing is an error, and so are two in one place; `recipe=null` takes the file's
recipe away.

The `config.yaml` of a run may be such a file. It holds the complete tree, and under `given` what was set, keys and
values: only that, and what was changed in the tree, count as set again. The rest follows from them, also from what is
changed in the tree or on the command line: with `trainer.seed=3` all seeds that followed it still do. A recipe is laid
over such a file on the command line; in the file itself it is refused: the objective that was set would lie above it.
"""


def markdown() -> str:
    """The whole reference, as `docs/configuration.md` holds it."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield "## Recipes\n"
    yield _RECIPES
    for name, path in recipes().items():
        comment = [line.removeprefix("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
        yield f"- `{name}`: {' '.join(comment)}"
    yield "\n## `gmpo train`\n"
    yield from _tables(Config)
    yield "## `gmpo sft`\n"
    yield from _tables(SftConfig)
    yield "## Other names\n"
    yield "Accepted and reported. A section moves with all that is below it.\n"
    yield "| Given | Taken as |\n|---|---|"
    yield from (f"| `{old}` | `{new}` |" for old, new in {**MOVED, **SFT_MOVED}.items())
    yield "\n## Without counterpart\n"
    yield "Keys of verl that change no result: accepted with any value, and reported, with all below them.\n"
    yield "| Key | Reason |\n|---|---|"
    yield from (f"| `{key}` | {reason} |" for key, reason in NO_COUNTERPART.items())
    yield "\n## Not supported\n"
    yield "Refused with the reason, unless the value asks for nothing: `False`, `0`, `null`, an empty list or a default"
    yield "of verl. An entry stands for all keys that begin with it.\n"
    yield "| Key | Reason |\n|---|---|"
    yield from (f"| `{key}` | {reason} |" for key, reason in {**UNSUPPORTED, **SFT_UNSUPPORTED}.items())
    yield ""


def _tables(root: type[Section]) -> Iterator[str]:
    for (owner, prefix), group in groupby(
        leaves(root).values(), key=lambda leaf: (leaf.owner, leaf.path.rpartition(".")[0])
    ):
        yield f"### `{prefix}`\n"
        yield f"{owner.__doc__}\n"
        yield "| Key | Type | Default | Role | Meaning |\n|---|---|---|---|---|"
        yield from (_row(leaf) for leaf in group)
        yield ""


def _row(leaf: Leaf) -> str:
    default = f"derived: {leaf.derived}" if leaf.derived else f"`{_shown(leaf.field.default)}`"
    marks = " *own*" if leaf.own else ""
    inert = f" *no effect*: {leaf.inert}." if leaf.inert else ""
    role = "-" if leaf.inert else f"{leaf.role}{', exact' * leaf.exact}"
    cells = (f"`{leaf.name}`{marks}", leaf.allowed, default, role, f"{leaf.field.description}{inert}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "''" if value == "" else str(value)


if __name__ == "__main__":
    print(markdown(), end="")
