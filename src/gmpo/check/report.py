"""The report of `gmpo check`: what follows from the settings, an account of every given key, and whether a run starts.

The short form leaves out what nobody asked for: the tree of all settings, what follows from others, formulas of the
memory, and empty lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gmpo.check.memory import CARD_GB, Devices, Item, amount, estimate, totals
from gmpo.check.model_shapes import ModelShape, shape_by_name, shape_of_folder
from gmpo.config import Config, Resolved, load
from gmpo.config.numbers import Number, counted, numbers
from gmpo.config.resolved import Note
from gmpo.config.tree import get

CountRows = Callable[[Sequence[str]], int | None]
WHOLE = 20
"""A list of so many given keys is shown whole in the short form too; of a longer one, those that differ from the
default."""


def check_report(
    resolved: Resolved[Config],
    count_rows: CountRows,
    absent: Sequence[Note] | None = None,
    *,
    everything: bool = False,
) -> RenderableType:
    """The report, with the sizes of the data sets.

    Args:
        count_rows: number of rows in some files, or None when it cannot be known, for example because they are on
            another machine.
        absent: what is not here; what this version cannot run when None.
        everything: also the whole configuration, what follows from other settings, and the memory item by item.

    Raises:
        ConfigError: a batch is larger than the data set.
    """
    data = resolved.config.data
    train_rows = count_rows(data.train_files) if data.train_files else None
    val_rows = count_rows(data.val_files) if data.val_files else None
    derived = numbers(resolved.config, train_rows, val_rows)
    table = derived.table(resolved.config, train_rows, val_rows)
    shown = [*table, *_per_device(resolved.config, derived.max_tokens_per_step)]
    return render(resolved, shown, absent, everything=everything)


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
    resolved: Resolved[Config],
    derived: Sequence[Number],
    absent: Sequence[Note] | None = None,
    *,
    everything: bool = False,
) -> RenderableType:
    """Everything, or the short form, as one renderable, readable from 80 columns on. The verdict is its last line."""
    config = resolved.config
    missing = resolved.unavailable if absent is None else absent

    def notes(found: Sequence[Note]) -> list[Row]:
        return [(note.path, _value(get(config, note.path)), note.reason) for note in found]

    inert = [*notes(resolved.inert), *((i.path, _value(i.value), i.reason) for i in resolved.ignored)]
    lists = (
        ("honoured", "given, and in effect", _honoured(resolved), "green"),
        ("derived", "not given; follows from other settings", _follows(resolved), "cyan"),
        ("without effect", "given, and changes nothing", inert, "yellow"),
        ("warnings", "trains, and may surprise", notes(resolved.warnings), "yellow"),
        ("not here", "`gmpo train` would not start", notes(missing), "red"),
    )
    numbers_of: list[RenderableType] = [
        Rule("derived numbers", align="left"),
        _numbers(derived),
        *_memory(config, everything),
    ]
    verdict: list[RenderableType] = [Rule("verdict", align="left"), _verdict(len(missing), len(resolved.warnings))]
    if everything:
        tree = Syntax(resolved.tree_yaml(), "yaml", background_color="default", word_wrap=True)
        sections = [_section(title, meaning, rows, len(rows), colour) for title, meaning, rows, colour in lists]
        return Group(Rule("configuration", align="left"), tree, *numbers_of, *sections, *verdict)
    usual = {"honoured": _usual(resolved), "without effect": resolved.idle}
    sections = []
    for title, meaning, rows, colour in lists:
        if rows and title != "derived":
            shown = _short(rows, usual.get(title, frozenset()))
            sections.append(_section(title, meaning, shown, len(rows), colour))
    more = (
        f"With --all also the whole configuration, {counted(len(resolved.derived), 'key')} that follow from others, "
        "and the memory item by item."
    )
    return Group(*numbers_of, *sections, *verdict, Padding(Text(more, style="dim"), (0, 0, 0, 2)))


Row = tuple[str, ...]
"""A key, its value and, where there is one, the reason."""


def _honoured(resolved: Resolved[Config]) -> list[Row]:
    return [(path, _value(get(resolved.config, path))) for path in sorted(resolved.honoured)]


def _follows(resolved: Resolved[Config]) -> list[Row]:
    return [(item.path, _value(item.value), item.why) for item in resolved.derived]


def _usual(resolved: Resolved[Config]) -> frozenset[str]:
    """Given keys at the value that they would have without."""
    default = load([]).config
    same = (path for path in resolved.honoured if get(resolved.config, path) == get(default, path))
    return frozenset(same)


def _short(rows: Sequence[Row], usual: frozenset[str]) -> list[Row]:
    """A long list without what is as usual, and how much that is."""
    left = [row for row in rows if row[0] not in usual]
    if len(rows) <= WHOLE or len(left) == len(rows):
        return list(rows)
    return [*left, (f"and {counted(len(rows) - len(left), 'key')} at the default value",)]


def _verdict(missing: int, warnings: int) -> RenderableType:
    beside = f"; {counted(warnings, 'warning')} above" if warnings else ""
    if missing:
        what = "what is listed" if missing == 1 else f"the {missing:,} things listed"
        said = Text(f"not ready: `gmpo train` would not start here, for {what} under `not here`{beside}", "bold red")
    else:
        said = Text(f"ready: `gmpo train` would start with these settings{beside}", "bold green")
    return Padding(said, (0, 0, 0, 2))


def _numbers(derived: Sequence[Number]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for number in derived:
        table.add_row(number.name, "?" if number.value is None else f"{number.value:,}", Text(number.formula))
    return table


def _memory(config: Config, items_too: bool) -> list[RenderableType]:
    """What the estimate rests on, its sums and, if asked for, the items with their formulas."""
    model = config.actor_rollout_ref.model.source
    found = find_shape(model)
    title = Rule("memory of each device, estimated", align="left")
    if found is None:
        reason = (
            f"model {model!r} is not on this disk and not among the built-in shapes" if model else "no model is given"
        )
        return [title, Text(f"  unknown: {reason}", style="dim")]
    source, shape = found
    devices, items = Devices.of(config), estimate(config, shape)
    lines: list[RenderableType] = [title, Text(f"  {shape.parameters:,} parameters ({source})")]
    if devices.world > 1:
        lines.append(
            Text(f"  {devices.world} devices, weights over {devices.shards}, sequences over {devices.sequence}")
        )
    if items_too:
        lines += [_memory_item(item) for phase in ("update", "sampling") for item in items if item.phase == phase]
    for phase, gigabytes in totals(items).items():
        over = gigabytes > CARD_GB
        note = f", more than a card of {CARD_GB:.0f} GB" if over else ""
        name = phase.replace("update", "updating")
        lines.append(Text(f"  while {name}: {amount(gigabytes)}{note}", "red" if over else "bold"))
    return lines


def _memory_item(item: Item) -> RenderableType:
    head = Text(f"  {item.name:<22}{amount(item.gigabytes):>11}")
    return Group(head, Padding(Text(item.formula, style="dim"), (0, 0, 0, 6)))


def _section(title: str, meaning: str, rows: Sequence[Row], number: int, colour: str) -> RenderableType:
    """A titled list of `number` keys. Each reason stands below its key, so that long keys never squeeze the text."""
    lines: list[RenderableType] = [Rule(f"{title} ({number}): {meaning}", align="left")]
    for path, *rest in rows:
        value = f" = {rest[0]}" if rest else ""
        lines.append(Padding(Text.assemble((path, colour if rest else "dim"), value), (0, 0, 0, 2)))
        lines += [Padding(Text(text, style="dim"), (0, 0, 0, 6)) for text in rest[1:]]
    if not rows:
        lines.append(Text("  none", style="dim"))
    return Group(*lines)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value) or '""'
