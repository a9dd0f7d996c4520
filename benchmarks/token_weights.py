"""The picture of the GMPO guide: what one outlier does to the gradient of an answer, measured on the package's losses.

    python benchmarks/token_weights.py --svg docs/assets/token_weights.svg

An answer of 100 tokens, 99 of which have the probability they had when it was sampled; the log-ratio of the last one
varies. Drawn is the weight of a token's gradient, `-|o| / A` times the derivative by its log-prob: 1 for every token
of an answer that was just sampled. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gmpo.algo.losses import POLICY_LOSSES

TOKENS = 100
OBJECTIVES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "GRPO, ratio 0.8 to 1.2": ("vanilla", {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}),
    "GMPO, log-ratio ±0.4": ("geo_mean", {"clip_low": 0.4, "clip_high": 0.4}),
}
"""Label -> name of the loss, its numbers."""


def weights(label: str, log_ratio: float, advantage: float) -> tuple[float, float]:
    """Gradient weights of the outlier and of each other token.

    Args:
        log_ratio: log-ratio of the outlier; that of the others is 0.
        advantage: of the answer; its sign decides which bound can cut.
    """
    name, numbers = OBJECTIVES[label]
    loss = POLICY_LOSSES[name]
    old = torch.zeros(1, TOKENS, dtype=torch.float64)
    new = old.clone()
    new[0, -1] = log_ratio
    new.requires_grad_()
    values = loss.fn(new, old, torch.full_like(old, advantage), torch.ones_like(old, dtype=torch.bool), **numbers)
    # The mean over the answer's tokens is part of geo_mean; for losses per token it is `seq-mean-token-mean`.
    total = values.values.sum() if loss.traits.per_sequence else values.values.mean()
    (gradient,) = torch.autograd.grad(total, new)
    each = -gradient[0] * TOKENS / advantage
    return float(each[-1]), float(each[0])


def draw(file: Path) -> None:
    """Weights over the outlier's log-ratio, for a good and for a bad answer."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    pyplot.rcParams.update({"svg.hashsalt": "gmpo", "svg.fonttype": "none", "font.size": 9})
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.2), sharey=True, layout="constrained")
    grid = [i / 100 for i in range(-200, 201)]
    sides = ((1.0, "A > 0: the answer was good"), (-1.0, "A < 0: the answer was bad"))
    for panel, (advantage, title) in zip(panels, sides, strict=True):
        for label, colour in zip(OBJECTIVES, ("tab:orange", "tab:blue"), strict=True):
            drawn = [weights(label, d, advantage) for d in grid]
            panel.plot(grid, [own for own, _ in drawn], color=colour, label=f"{label}: the outlier")
            panel.plot(grid, [other for _, other in drawn], color=colour, linestyle=":", label="the other 99 tokens")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("log-ratio of the outlier, log π/π_old")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("gradient weight")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    for label in OBJECTIVES:
        for advantage in (1.0, -1.0):
            for log_ratio in (-1.0, -0.3, 0.3, 1.0):
                own, other = weights(label, log_ratio, advantage)
                shown = f"{label:24} A {advantage:+.0f}  log-ratio {log_ratio:+.1f}"
                print(f"{shown}  outlier {own:.3f}  others {other:.3f}")
    if arguments.svg:
        draw(arguments.svg)


if __name__ == "__main__":
    main()
