"""Where a step's memory is: what is held throughout, and what was allocated on top of it at the step's peak."""

from __future__ import annotations

import gc
import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile

from gmpo.tracking.tracker import PHASE

MIB = 2**20
SHOWN = 12
"""Rows of what was allocated."""
PLAIN = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::resize_")
"""What allocates for its caller, which is named in its place."""


def held(device: torch.device) -> dict[str, int]:
    """Bytes of the tensors that Python's objects hold on a device, by what they are."""
    objects = gc.get_objects()
    optimizers = [one for one in objects if issubclass(type(one), torch.optim.Optimizer)]
    moments = {id(t) for one in optimizers for state in one.state.values() for t in state.values()}
    tensors = [one for one in objects if issubclass(type(one), Tensor) and one.device.type == device.type]
    slopes = {id(one.grad) for one in tensors if isinstance(one, torch.nn.Parameter) and one.grad is not None}
    sizes = dict.fromkeys(("weights", "frozen weights", "gradients", "moments", "other tensors"), 0)
    seen: set[int] = set()
    for one in sorted(tensors, key=lambda t: not isinstance(t, torch.nn.Parameter)):
        storage = one.untyped_storage()
        if storage.data_ptr() in seen or not storage.nbytes():
            continue
        seen.add(storage.data_ptr())
        kind = "other tensors"
        if isinstance(one, torch.nn.Parameter):
            kind = "weights" if one.requires_grad else "frozen weights"
        elif id(one) in slopes:
            kind = "gradients"
        elif id(one) in moments:
            kind = "moments"
        sizes[kind] += storage.nbytes()
    return sizes


@dataclass(frozen=True, slots=True)
class Peak:
    """The moment of a profiled stretch at which most was allocated beyond what there was at its beginning."""

    phase: str
    total: int
    """Bytes more than at the beginning."""
    parts: Sequence[tuple[str, int, int]]
    """What was allocated and not yet freed: by which operation, bytes, how many tensors; the largest first."""


@dataclass(frozen=True, slots=True)
class _Change:
    """An allocation, or with a negative size the end of one."""

    time: int
    pointer: int
    size: int
    maker: str
    phase: str


def peak(profiler: profile, device: torch.device) -> Peak | None:
    """The peak in what a profiler with `profile_memory` saw; None where this version of torch does not tell."""
    try:
        tree = profiler.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
        changes = sorted(_changes(tree, device, (), ""), key=lambda change: change.time)
    except AttributeError:  # it is torch's own to change
        return None
    if not changes:
        return None
    level = most = at = 0
    for i, change in enumerate(changes):
        level += change.size
        if level > most:
            most, at = level, i
    live: dict[int, _Change] = {}
    for change in changes[: at + 1]:
        if change.size > 0:
            live[change.pointer] = change
        else:
            live.pop(change.pointer, None)
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for change in live.values():
        sizes[change.maker] += change.size
        counts[change.maker] += 1
    return Peak(changes[at].phase, most, [(name, size, counts[name]) for name, size in sizes.most_common()])


def _changes(events: Iterable[Any], device: torch.device, path: tuple[str, ...], phase: str) -> Iterator[_Change]:
    for event in events:
        kind, fields = event.typed
        if kind.name == "Allocation":
            if fields.device.type == device.type:
                yield _Change(event.start_time_ns, fields.ptr, fields.alloc_size, _maker(path), phase)
            continue
        name = str(event.name)
        inside = name.removeprefix(PHASE) if name.startswith(PHASE) else phase
        further = path if name.startswith(PHASE) else (*path, name)
        yield from _changes(event.children, device, further, inside)


def _maker(path: Sequence[str]) -> str:
    """The operation, and the function or derivative that it is a part of."""
    own = next((name for name in reversed(path) if name not in PLAIN), "outside of operations")
    around = next((name for name in reversed(path) if not name.startswith("aten::")), own)
    around = around.removeprefix("autograd::engine::evaluate_function: ")
    return own if own == around else f"{own} in {around}"


def memory_table(before: Mapping[str, int], resident: int, found: Peak | None) -> str:
    """Both as text, in MiB.

    Args:
        before: `held` when the step began; resident: the process's memory then, bytes.
    """
    lines = [f"held when the step began: {resident / MIB:,.0f} MiB of the process"]
    libraries = resident - sum(before.values())
    for name, size in (*before.items(), ("libraries and what the allocator keeps", libraries)):
        if size > 0:
            lines.append(f"{size / MIB:12,.1f}  {name}")
    if found is None:
        return "\n".join([*lines, "what was allocated in the step: this version of torch does not tell"])
    lines.append(f"at the peak, in phase {found.phase or 'none'}: {found.total / MIB:,.1f} MiB more, by operation")
    shown = [part for part in found.parts[:SHOWN] if part[1] >= 0.05 * MIB]  # what is not 0.0 as it is printed
    lines += [f"{size / MIB:12,.1f}  {name} ({count})" for name, size, count in shown]
    if rest := sum(size for _, size, _ in found.parts[len(shown) :]):
        lines.append(f"{rest / MIB:12,.1f}  {len(found.parts) - len(shown)} others")
    return "\n".join(lines)


def resident_now() -> int:
    """Bytes of this process in memory; where the system does not tell, the most it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
