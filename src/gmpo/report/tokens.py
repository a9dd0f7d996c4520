"""What the learner computed for each token of an answer, and the text of the token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gmpo.records.run_folder import MODEL
from gmpo.report.reading import RunData

Array = NDArray[np.float64]
Answer = Mapping[str, Any]
TokenTexts = Callable[[Sequence[int]], list[str]]
DIGITS = 4
"""Decimals of log-ratios and log-probs; a log-ratio is shown with three."""


def token_texts(data: RunData) -> TokenTexts:
    """Ids -> texts by the run's tokenizer; `#17` where it is not found or cannot be read."""
    named = data.settings.get("actor_rollout_ref.model.tokenizer_path") or data.settings.get(
        "actor_rollout_ref.model.path"
    )
    saved = sorted(data.folder.glob("global_step_*/actor/huggingface"))
    for place in (data.folder / MODEL, *saved, *([Path(named)] if isinstance(named, str) else [])):
        file = place / "tokenizer.json"
        if file.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception:  # the library raises no kind of its own
                continue
            return lambda ids: _pieces(tokenizer, ids)
    return lambda ids: [f"#{number} " for number in ids]


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; empty for one that ends within a sign."""
    texts: list[str] = []
    start = shown = 0
    before = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
        if text.endswith("\ufffd"):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        # A window of a few tokens: whether a token begins with a blank depends on the one before it.
        start, shown = max(shown, start), end - 1
        before = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
    return texts


def token_record(row: Answer, texts_of: TokenTexts, loss: str, bounds: tuple[float, float] | None) -> dict[str, Any]:
    """Of the newest update that computed an answer: texts `t`, log-ratios `d`, log-probs when sampled `p`, places
    that a bound cut `c`, advantage `a` (a number where all tokens have one), weights `w` where the loss is known."""
    update = row["updates"][-1]
    logp = np.asarray(update["logp"], dtype=float)
    old = row.get("old_logp")
    d = np.zeros_like(logp) if old is None else logp - np.asarray(old, dtype=float)
    cut = np.asarray(update["bound"], dtype=bool)
    advantage = row.get("advantage")
    found: dict[str, Any] = {
        "t": texts_of(row["response_ids"]),
        "d": _rounded(d),
        "p": _rounded(np.asarray(row["rollout_logp"], dtype=float)),
        "c": np.flatnonzero(cut).tolist(),
        "u": update.get("update"),
    }
    if advantage is not None:
        alike = len(set(advantage)) == 1
        found["a"] = round(advantage[0], 4) if alike else _rounded(np.asarray(advantage, dtype=float))
        weight = token_weights(loss, d, cut, advantage[0] if alike else math.nan, bounds)
        if weight is not None:
            found["w"] = [round(float(x), 3) for x in weight] if weight.ndim else round(float(weight), 4)
    if "sampled" in row:
        found["n"] = [i for i, sampled in enumerate(row["sampled"]) if not sampled]
    return found


def token_weights(
    loss: str, d: Array, cut: NDArray[np.bool_], advantage: float, bounds: tuple[float, float] | None
) -> Array | None:
    """What multiplies the gradient of each token's log-prob beside the advantage and the normalisation: 0 where a bound
    cut, else the ratio that the loss takes. None for a loss of which that is not so simple.

    Args:
        loss: `loss_mode`.
        d: log-ratios of the answer's tokens.
        cut: where a bound cut.
        bounds: of log-ratios, below and above.
    """
    free: Array = (~cut).astype(np.float64)
    if loss == "vanilla":
        return np.asarray(free * np.exp(np.clip(d, -20, 20)))
    if loss == "geo_mean" and bounds is not None and not math.isnan(advantage):
        held = np.minimum(d, bounds[1]) if advantage > 0 else np.maximum(d, -bounds[0])
        return np.asarray(free * math.exp(min(20.0, float(held.mean()))))
    if loss in ("gspo", "gspo_token"):
        return np.asarray(free * math.exp(min(20.0, float(d.mean()))))
    return None


def _rounded(values: Array) -> list[float]:
    return [0.0 if x == 0 or not math.isfinite(x) else round(x, DIGITS) for x in values.tolist()]
