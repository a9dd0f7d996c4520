"""The report of `gmpo check`: the complete configuration, what follows from it, and an account of every given key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gmpo.check.memory import CARD_GB, Devices, Item, estimate, totals
from gmpo.check.model_shapes import ModelShape, shape_by_name, shape_of_folder
from gmpo.config import Config, Resolved
from gmpo.config.numbers import Number, numbers
from gmpo.config.resolved import Note
from gmpo.config.tree import get

CountRows = Callable[[Sequence[str]], int | None]


def check_report(
    resolved: Resolved[Config], count_rows: CountRows, absent: Sequence[Note] | None = None
) -> RenderableType:
    """The report, with the sizes of the data sets.

    Args:
        count_rows: number of rows in some files, or None when it cannot be known, for example because they are on
            another machine.
        absent: what is not here; what this version cannot run when None.

    Raises:
        ConfigError: a batch is larger than the data set.
    """
    data = resolved.config.data
    train_rows = count_rows(data.train_files) if data.train_files else None
    val_rows = count_rows(data.val_files) if data.val_files else None
    derived = numbers(resolved.config, train_rows, val_rows)
    table = derived.table(resolved.config, train_rows, val_rows)
    return render(resolved, [*table, *_per_device(resolved.config, derived.max_tokens_per_step)], absent)


def _per_device(config: Config, tokens: int) -> list[Number]:
    world = Devices.of(config).world
    if world == 1:
        return []
    return [Number("tokens per step and device", -(-tokens // world), f"{tokens:,} / {world} devices")]


def find_shape(model: str | None) -> tuple[str, ModelShape] | None:
    """Where the shape of a model comes from, and the shape: its folder on this disk, else the built-in ones."""
    if not model:
        return None
    folder = Path(model).expanduser()
    if (shape := shape_of_folder(folder)) is not None:
        return f"{folder / 'config.json'}", shape
    known = shape_by_name(model)
    return None if known is None else (f"the built-in shape of {known[0]}", known[1])


def render(
    resolved: Resolved[Config], derived: Sequence[Number], absent: Sequence[Note] | None = None
) -> RenderableType:
    """Everything as one renderable, readable from 80 columns on."""
    config = resolved.config
    honoured = [(path, _value(get(config, path))) for path in sorted(resolved.honoured)]

    def notes(found: Sequence[Note]) -> list[tuple[str, ...]]:
        return [(note.path, _value(get(config, note.path)), note.reason) for note in found]

    follows = [(item.path, _value(item.value), item.why) for item in resolved.derived]
    return Group(
        Rule("configuration", align="left"),
        Syntax(resolved.tree_yaml(), "yaml", background_color="default", word_wrap=True),
        Rule("derived numbers", align="left"),
        _numbers(derived),
        *_memory(config),
        _section("honoured", "given, and in effect", honoured, "green"),
        _section("derived", "not given; follows from other settings", follows, "cyan"),
        _section(
            "without effect",
            "given, and changes nothing",
            [*notes(resolved.inert), *((i.path, _value(i.value), i.reason) for i in resolved.ignored)],
            "yellow",
        ),
        _section(
            "not here", "`gmpo train` would not start", notes(resolved.unavailable if absent is None else absent), "red"
        ),
        _section("warnings", "trains, and may surprise", notes(resolved.warnings), "yellow"),
    )


def _numbers(derived: Sequence[Number]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for number in derived:
        table.add_row(number.name, "?" if number.value is None else f"{number.value:,}", Text(number.formula))
    return table


def _memory(config: Config) -> list[RenderableType]:
    """The estimate, item by item with its formula, the sums, and what it rests on."""
    model = config.actor_rollout_ref.model.path
    found = find_shape(model)
    title = Rule("memory of each device, estimated", align="left")
    if found is None:
        reason = (
            f"model {model!r} is not on this disk and not among the built-in shapes" if model else "no model is given"
        )
        return [title, Text(f"  unknown: {reason}", style="dim")]
    source, shape = found
    devices, items = Devices.of(config), estimate(config, shape)
    spread = f"{devices.world} devices, weights over {devices.shards}, sequences over {devices.sequence}"
    lines: list[RenderableType] = [title, Text(f"  {shape.parameters:,} parameters ({source}); {spread}")]
    for phase in ("update", "sampling"):
        lines += [_memory_item(item) for item in items if item.phase == phase]
    for phase, gigabytes in totals(items).items():
        over = gigabytes > CARD_GB
        note = f", more than a card of {CARD_GB:.0f} GB" if over else ""
        lines.append(
            Text(f"  while {phase.replace('update', 'updating')}: {gigabytes:.1f} GB{note}", "red" if over else "bold")
        )
    return lines


def _memory_item(item: Item) -> RenderableType:
    head = Text(f"  {item.name:<22}{item.gigabytes:>8.1f} GB")
    return Group(head, Padding(Text(item.formula, style="dim"), (0, 0, 0, 6)))


def _section(title: str, meaning: str, rows: Sequence[tuple[str, ...]], colour: str) -> RenderableType:
    """A titled list. Each reason stands below its key, so that long keys never squeeze the text."""
    lines: list[RenderableType] = [Rule(f"{title} ({len(rows)}): {meaning}", align="left")]
    for path, value, *reason in rows:
        lines.append(Padding(Text.assemble((path, colour), f" = {value}"), (0, 0, 0, 2)))
        lines += [Padding(Text(text, style="dim"), (0, 0, 0, 6)) for text in reason]
    if not rows:
        lines.append(Text("  none", style="dim"))
    return Group(*lines)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
