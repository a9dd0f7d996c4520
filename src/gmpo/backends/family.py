"""Whether a model computes the same in every way in which it is used here: found out by asking it, before a run starts.

A token's log-prob is what one plain pass over its row gives. Training takes it from padded rows, and sampling from a
cache
that grows by a token at a time. For most families the three are equal; a layer with a state of its own that reads
padding,
a position that is counted from the wrong end, or noise in training mode make them differ, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmpo.backends.decoding import LibraryDecoder
from gmpo.backends.devices import Device
from gmpo.backends.products import product_of
from gmpo.backends.trainable import training_mode
from gmpo.errors import BackendError
from gmpo.records.batch import pad_left, pad_right

LENGTHS = ((7, 4), (3, 4), (5, 2))
"""Prompt and answer of each row of the probe, in tokens: paddings of every kind on either side."""
EXACT, ROUNDED = 2e-3, 0.1
"""Nats by which a log-prob may differ: the largest difference in float32, the mean one in a shorter dtype, in which a
router may send a token elsewhere."""


def require_family(model: PreTrainedModel, device: Device, name: str, *, critic: bool = False) -> None:
    """Compare padded, cached and plain passes over a few short rows, and two passes in training mode. A critic's head
    may be zero, so its hidden states are compared; nobody decodes with it, but a value must not know what comes later.

    Raises:
        BackendError: they differ, or one of them fails; it names the model's type and the use.
    """
    if (reason := unlike(model, device, critic=critic)) is not None:
        raise BackendError(
            f"model {name!r} (model_type {model.config.model_type!r}) cannot be trained here: {reason}. Its "
            f"{'values' if critic else 'log-probs'} would not be those of the answers that were sampled. Take a model "
            "of another family, or another version of transformers, whose code of this family may differ."
        )


def unlike(model: PreTrainedModel, device: Device, *, critic: bool = False) -> str | None:
    """In which use the model computes something else than one plain pass a row, and by how much; None where in none.

    Of a critic the final hidden states are read as if they were logits.
    """
    rows, read = _rows(model), _hidden if critic else _logits
    kind = "hidden states" if critic else "log-probs"
    training = model.training
    try:
        # Whether the uses agree is a matter of the code, and shows best in the exact product.
        with device.autocast(), product_of("highest"):
            model.eval()
            with torch.no_grad():
                plain = _named("one plain pass over a row", lambda: _plain(read, model, device, rows))
                uses: list[tuple[str, Callable[[], list[Tensor]]]] = [
                    ("rows of several lengths in one padded pass", lambda: _padded(read, model, device, rows))
                ]
                if critic:
                    uses.append(("the beginning of a row alone", lambda: _beginnings(read, model, device, rows)))
                else:
                    uses.append(("decoding with a cache", lambda: _cached(model, device, rows)))
                for use, compute in uses:
                    if (apart := _apart(plain, _named(use, compute), device)) is not None:
                        return f"{use} gives other {kind} than one pass over each row, {apart}"
                training_mode(model)
                return _named("a pass in training mode", lambda: _draws(read, model, device, rows))
    except _FailedError as error:
        return str(error)
    finally:
        model.train(training)


Row = tuple[Sequence[int], Sequence[int]]
Read = Callable[..., Tensor]
"""Model and inputs by name -> `[B, S, ..]` of every place."""
Found = TypeVar("Found")


class _FailedError(Exception):
    """A use that ends in an error of the model's code."""


def _named(use: str, compute: Callable[[], Found]) -> Found:
    try:
        return compute()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise _FailedError(f"{use} ends in an error of its own code ({type(error).__name__}: {text})") from error


def _rows(model: PreTrainedModel) -> list[Row]:
    """Ids that differ from row to row, all of them in the vocabulary and none of them the padding's."""
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index,union-attr]
    special = {getattr(model.config.get_text_config(), name, None) for name in ("pad_token_id", "bos_token_id")}
    usable = [token for token in range(1, min(size, 64)) if token not in special] or [0]
    rows: list[Row] = []
    for number, (prompt, answer) in enumerate(LENGTHS):
        ids = [usable[(5 * number + 3 * place) % len(usable)] for place in range(prompt + answer)]
        rows.append((ids[:prompt], ids[prompt:]))
    return rows


def _logits(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    found: Tensor = model(**inputs, use_cache=False).logits
    return found


def _hidden(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    found: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return found


def _answers(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs of the tokens, each predicted by the logits of its place. Hidden states are narrow: an id stands for
    its remainder there."""
    places = ids % logits.shape[-1]
    return torch.log_softmax(logits.float(), -1).gather(-1, places.unsqueeze(-1)).squeeze(-1)


def _plain(read: Read, model: PreTrainedModel, device: Device, rows: Sequence[Row]) -> list[Tensor]:
    found = []
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]], device=device.torch)
        logits = read(model, input_ids=ids)[0, len(prompt) - 1 : -1]
        found.append(_answers(logits, ids[0, len(prompt) :]))
    return found


def _padded(read: Read, model: PreTrainedModel, device: Device, rows: Sequence[Row]) -> list[Tensor]:
    prompts, prompt_mask = pad_left([prompt for prompt, _ in rows], 0)
    answers, answer_mask = pad_right([answer for _, answer in rows], 0)
    ids = torch.cat([prompts, answers], 1).to(device.torch)
    real = torch.cat([prompt_mask, answer_mask], 1).to(device.torch).long()
    positions = (real.cumsum(1) - 1).clamp(min=0)
    logits = read(model, input_ids=ids, attention_mask=real, position_ids=positions)
    width = prompts.shape[1]
    found = _answers(logits[:, width - 1 : -1], ids[:, width:])
    return [values[: len(answer)] for values, (_, answer) in zip(found, rows, strict=True)]


def _beginnings(read: Read, model: PreTrainedModel, device: Device, rows: Sequence[Row]) -> list[Tensor]:
    """Every answer token predicted from what stands before it, with nothing behind: a value knows no more."""
    found = []
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]], device=device.torch)
        ends = range(len(prompt), len(prompt) + len(answer))
        last = torch.stack([read(model, input_ids=ids[:, :end])[0, -1] for end in ends])
        found.append(_answers(last, ids[0, len(prompt) :]))
    return found


def _cached(model: PreTrainedModel, device: Device, rows: Sequence[Row]) -> list[Tensor]:
    """All prompts twice, of which one copy is dropped after the first token, and the shortest answer at its end."""
    decoder = LibraryDecoder(model, device.torch)
    logits = decoder.enter([prompt for prompt, _ in rows], 2)[::2].clone()
    decoder.keep(torch.arange(0, 2 * len(rows), 2, device=device.torch))
    found: list[list[Tensor]] = [[] for _ in rows]
    running = list(range(len(rows)))
    for place in range(max(len(answer) for _, answer in rows)):
        staying = [row for row in running if place < len(rows[row][1])]
        kept = torch.tensor([running.index(row) for row in staying], device=device.torch)
        if len(staying) < len(running):
            decoder.keep(kept)
            logits = logits[kept]
        running = staying
        tokens = torch.tensor([rows[row][1][place] for row in running], device=device.torch)
        for row, value in zip(running, _answers(logits, tokens), strict=True):
            found[row].append(value)
        if any(place + 1 < len(rows[row][1]) for row in running):
            logits = decoder.step(tokens).clone()
    return [torch.stack(values) for values in found]


def _draws(read: Read, model: PreTrainedModel, device: Device, rows: Sequence[Row]) -> str | None:
    """What a pass in training mode has of chance."""
    ids = torch.tensor([rows[0][0]], device=device.torch)
    first, second = (read(model, input_ids=ids) for _ in range(2))
    if not torch.equal(first, second):
        return "two passes in training mode differ: it draws random numbers (noise in a router, dropout of its own)"
    return None


def _apart(plain: Sequence[Tensor], other: Sequence[Tensor], device: Device) -> str | None:
    """By how much, where it is too much."""
    differences = (torch.cat(list(plain)) - torch.cat(list(other))).abs()
    if not bool(differences.isfinite().all()):
        return "which are not finite"
    exact = device.compute == torch.float32
    size = float(differences.max() if exact else differences.mean())
    return f"by {size:.2g} nats" if size > (EXACT if exact else ROUNDED) else None
