"""Two processes that share a policy under FSDP, each with its part of the rows: the gradient of one process.

They run the learner's own `prepare`, `accumulate` and `step`. The processes are started by the name of this file, since
a spawned one could not import a test module.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Qwen3Config,
)

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import LossRecord, Objective, joined
from gmpo.backends.critic import Critic, CriticSettings
from gmpo.backends.devices import Device
from gmpo.backends.learner import LocalLearner
from gmpo.backends.mini_batch import MiniBatch, every_row
from gmpo.backends.passes import BatchModule
from gmpo.backends.tiny_model import word_tokenizer
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.records.batch import Batch, pad_left, pad_right

GEO = Objective(
    POLICY_LOSSES["geo_mean"], {"clip_low": 0.1, "clip_high": 0.15}, "token-mean", loss_scale=9.0, temperature=0.8
)
WITH_TERMS = replace(GEO, kl_coef=0.3, entropy_coef=0.05)
CHOOSING = replace(GEO, policy_loss=POLICY_LOSSES["kl_cov"], loss_numbers={"kl_cov_share": 0.2, "kl_coef": 1.0})
CASES: dict[str, tuple[bool, str, Objective]] = {
    "tied head, packed rows": (True, "sdpa", GEO),
    "own head, packed rows": (False, "sdpa", GEO),
    "tied head, padded rows": (True, "eager", WITH_TERMS),
    "own head, padded rows": (False, "eager", WITH_TERMS),
    "a loss that chooses its tokens": (True, "sdpa", CHOOSING),
}
"""Whether the head is the embedding, the attention, which decides between packed and padded rows, and the objective."""
PARTS = ((slice(0, 2), slice(2, 4)), (slice(4, 6), slice(0, 0)))
"""Of the rows with signal, what each process computes: twice two, and the rest and none."""
OPTIMIZER = OptimizerSettings(
    lambda step: 1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, max_norm=0.05, max_nonfinite=3
)
CPU = Device(torch.device("cpu"), torch.float32)


WORDS = word_tokenizer([f"w{i}" for i in range(28)])
SHAPE: dict[str, Any] = {
    "vocab_size": 33,  # does not divide by two
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def redraw(model: PreTrainedModel) -> None:
    """The same matrices for every model of a shape, large enough for a wrong one to show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15, generator=generator)


def make_learner(tied: bool, attention: str, objective: Objective) -> LocalLearner:
    config = Qwen3Config(**SHAPE, tie_word_embeddings=tied)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    redraw(model)
    split = MicroBatching(rows=2)
    return LocalLearner(
        model, WORDS, device=CPU, objective=objective, optimizer=OPTIMIZER, update_split=split, score_split=split
    )


def batch_of() -> Batch:
    """Seven ragged answers to three problems; one has no advantage and one no token."""
    g = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 32, (length,), generator=g).tolist()

    group, lengths = [0, 0, 0, 1, 1, 2, 2], [5, 1, 9, 0, 4, 7, 2]
    prompts = [draw(n) for n in (3, 6, 2)]
    prompt_ids, prompt_mask = pad_left([prompts[i] for i in group], 0)
    response_ids, mask = pad_right([draw(n) for n in lengths], 0)
    advantage = torch.tensor([1.0, -0.5, 0.7, 2.0, 0.0, -1.2, 2.0]).unsqueeze(1) * mask
    old, ref = (-3.5 + 0.3 * torch.randn(mask.shape, generator=g) for _ in range(2))
    return Batch(
        prompt_ids,
        prompt_mask,
        response_ids,
        mask,
        mask,
        group=torch.tensor(group),
        index=torch.arange(7),
        rewards=torch.zeros(7),
        rollout_logp=torch.zeros(mask.shape),
        advantage=advantage,
        learner_logp=old * mask,
        ref_logp=ref * mask,
    )


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def whole(x: Any) -> Tensor:
    found: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return found.detach()


def shard(module: BatchModule) -> None:
    """Gradients are summed: the counts in the denominators are those of all ranks."""
    mesh, layers = init_device_mesh("cpu", (dist.get_world_size(),)), module.model.base_model.layers
    for part in (*layers, module):  # type: ignore[misc, not-iterable]
        fully_shard(part, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def apart(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each, relative to the largest entry."""
    assert wanted.keys() == got.keys()
    return {name: float((got[name] - g).abs().max() / g.abs().max()) for name, g in wanted.items()}


def accumulated(learner: LocalLearner, mini: MiniBatch, parts: tuple[slice, ...]) -> list[LossRecord]:
    learner.policy.begin()
    numbers = torch.arange(len(mini.rows))
    return [record for part in parts for record in learner.accumulate(mini.part(numbers[part]))]


def compare(case: str, rank: int) -> dict[str, Any]:
    """Largest differences between the shared and the single policy, relative to the largest entry."""
    alone, shared, batch = make_learner(*CASES[case]), make_learner(*CASES[case]), batch_of()
    shard(shared.module)
    # An optimizer belongs to the parameters as they are now.
    shared.policy = Trainable(shared.model, shared.tokenizer, OPTIMIZER, lr_key="lr")
    found: dict[str, Any] = {}
    minis = [learner.prepare(batch, step=0) for learner in (alone, shared)]
    found["rows"] = minis[0].rows.tolist()
    expected = accumulated(alone, minis[0], (slice(None),))
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, accumulated(shared, minis[1], PARTS[rank]))
    wanted, got = gradients(alone.model), gradients(shared.model)
    found["gradient"] = apart(got, wanted)
    for name, records in (("alone", expected), ("shared", [record for part in gathered for record in part])):
        record = joined(records, minis[0].width)
        found[name] = {"rows": sorted(record.rows.tolist()), **{k: float(x) for k, x in record.scalars.items()}}
    found["norms"] = [learner.policy.step(0).norm for learner in (alone, shared)]
    weights = dict(alone.model.named_parameters())
    found["weights"] = max(float((whole(p) - weights[n]).abs().max()) for n, p in shared.model.named_parameters())
    return found


def make_critic() -> Critic:
    config = Qwen3Config(**SHAPE, num_labels=1, classifier_dropout=0.0)
    model: PreTrainedModel = AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")
    redraw(model)
    settings = CriticSettings(1.0, 1.0, 10.0, "token-mean", 9.0, mini_batch_problems=3, epochs=1, shuffle_seed=None)
    split = MicroBatching(rows=2)
    trainable = Trainable(model, WORDS, OPTIMIZER, lr_key="lr")
    return Critic(trainable, device=CPU, settings=settings, update_split=split, score_split=split)


def compare_critics(rank: int) -> dict[str, float]:
    """The same for the critic, which computes every row; differences of its gradient."""
    alone, shared, batch = make_critic(), make_critic(), batch_of()
    shard(shared.module)
    batch = batch.replace(values=0.1 * batch.response_mask, returns=batch.advantage)
    mini, numbers = every_row(batch, 0), torch.arange(batch.rows)
    alone.trainable.begin()
    alone.accumulate(mini)
    shared.trainable.begin()
    for part in ((slice(0, 3), slice(3, 6)), (slice(6, 7), slice(0, 0)))[rank]:
        shared.accumulate(mini.part(numbers[part]))
    return apart(gradients(shared.trainable.model), gradients(alone.trainable.model))


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store, patience = f"file://{folder / 'store'}", timedelta(minutes=3)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    found = {case: compare(case, rank) for case in CASES} | {"critic": {"gradient": compare_critics(rank)}}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=400)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    content: dict[str, dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return content


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradient_of_one_process(found: dict[str, dict[str, Any]], case: str) -> None:
    """With unequal parts, one of them empty."""
    assert max(found[case]["gradient"].values()) < 1e-5, found[case]["gradient"]
    alone, shared = found[case]["norms"]
    assert shared == pytest.approx(alone, rel=1e-5)
    assert alone > OPTIMIZER.max_norm, "the example must reach the bound"


def test_two_ranks_have_the_critics_gradient_of_one_process(found: dict[str, dict[str, Any]]) -> None:
    assert max(found["critic"]["gradient"].values()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_make_the_update_and_the_record_of_one_process(found: dict[str, dict[str, Any]], case: str) -> None:
    alone, shared = found[case]["alone"], found[case]["shared"]
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        assert shared[name] == pytest.approx(value, rel=1e-5), name
    # AdamW divides by the root of its own square: rounding of a component near 0 moves its weight by a part of lr.
    assert found[case]["weights"] < 5e-5


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
