"""Fine-tuning on several ranks is that of one process."""

from __future__ import annotations

from typing import Any

import pytest

import gmpo


@pytest.mark.usefixtures("cluster")
def test_fine_tuning_on_two_ranks_has_the_losses_and_the_model_of_one_process(bench: Any, weights: Any) -> None:
    """Batches of 4, of which each rank takes its share; and the loss on what is held out."""
    rows = [{**row, "extra_info": {"answer": row["extra_info"]["answer"]}} for row in bench.rows]
    held_out = bench.write_rows(rows[:3], "held.parquet")

    def tuned(ranks: int) -> gmpo.Run:
        return gmpo.sft(
            {
                "model.path": str(bench.model),
                "data.train_batch_size": 4,
                "data.micro_batch_size_per_gpu": 2,
                "data.val_files": held_out,
                "optim.lr": 1e-4,
                "trainer.total_epochs": 2,
                "trainer.device": "cpu",
                "trainer.n_gpus_per_node": ranks,
                "trainer.logger": [],
                "trainer.default_local_dir": str(bench.folder / f"tuned{ranks}"),
            },
            rows=rows,
            console=bench.console,
        )

    one, two = tuned(1), tuned(2)
    assert one.steps == two.steps == 6
    for alone, spread in zip(one.history, two.history, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss"):
            if name in alone:
                assert spread[name] == pytest.approx(alone[name], rel=2e-5), name
    ours, theirs = weights(one.model), weights(two.model)
    start = weights(bench.model)
    moved = max(float((ours[n] - start[n]).abs().max()) for n in start)
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 0.05 * moved
