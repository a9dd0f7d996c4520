"""Processes that share a policy under FSDP, each with its part of the rows: the gradient of one process. So it is where
they compute the sequences of all of them together.

They run the learner's own `prepare`, `accumulate` and `step`. The processes are started by the name of this file, since
a spawned one could not import a test module.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gmpo.algo.losses import POLICY_LOSSES
from gmpo.algo.objective import LossRecord, Objective, joined
from gmpo.backends.critic import Critic, CriticSettings, load_value_model
from gmpo.backends.devices import Device
from gmpo.backends.learner import LocalLearner
from gmpo.backends.mini_batch import MiniBatch, every_row, prepare
from gmpo.backends.models import ModelSource, checkpoint_activations, load_model
from gmpo.backends.passes import BatchModule
from gmpo.backends.ranks.handing_out import hand_out, kept_whole, placeholder_model
from gmpo.backends.ranks.sharding import make_mesh, sequence_group, shard
from gmpo.backends.storage import Share
from gmpo.backends.tiny_model import word_tokenizer
from gmpo.backends.trainable import MicroBatching, OptimizerSettings, Trainable
from gmpo.build.simulation import Collectives, OnePass, causal_model, own, simulate
from gmpo.errors import CheckpointError
from gmpo.records.batch import Batch, pad_left, pad_right

GEO = Objective(
    POLICY_LOSSES["geo_mean"], {"clip_low": 0.1, "clip_high": 0.15}, "token-mean", loss_scale=9.0, temperature=0.8
)
WITH_TERMS = replace(GEO, kl_coef=0.3, entropy_coef=0.05)
CHOOSING = replace(GEO, policy_loss=POLICY_LOSSES["kl_cov"], loss_numbers={"kl_cov_share": 0.2, "kl_coef": 1.0})


@dataclass(frozen=True)
class Case:
    tied: bool
    """The head is the embedding."""
    attention: str
    """It decides between packed and padded rows."""
    objective: Objective
    world: int = 2
    together: int = 1
    """Ranks that compute sequences together."""
    copy: int = -1
    """Ranks that share one copy of the parameters."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """To the model's shape."""
    recompute: bool = False


MANY_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {**MANY_HEADS, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES: Mapping[str, Case] = {
    "tied head, packed rows": Case(True, "sdpa", GEO),
    "own head, packed rows": Case(False, "sdpa", GEO),
    "tied head, padded rows": Case(True, "eager", WITH_TERMS),
    "own head, padded rows": Case(False, "eager", WITH_TERMS),
    "a loss that chooses its tokens": Case(True, "sdpa", CHOOSING),
    "experts": Case(False, "sdpa", GEO, changes=EXPERTS),
    "sequences of two, one key head": Case(True, "sdpa", WITH_TERMS, together=2),
    "sequences of two, recomputed": Case(False, "sdpa", GEO, together=2, changes=MANY_HEADS, recompute=True),
    "sequences of two, experts": Case(False, "sdpa", GEO, together=2, changes=EXPERTS),
    "two copies of two shards": Case(True, "sdpa", GEO, world=4, copy=2),
    "sequences of two on four": Case(True, "sdpa", CHOOSING, world=4, together=2),
    "sequences of two on two copies": Case(False, "sdpa", GEO, world=4, together=2, copy=2, changes=MANY_HEADS),
    "sequences of four, two key heads": Case(True, "sdpa", GEO, world=4, together=4, changes=MANY_HEADS),
}
CRITICS = {"critic": (2, 1), "critic, sequences of two": (2, 2), "critic, sequences of two on four": (4, 2)}
"""World, and ranks that compute sequences together."""
PARTS = {2: ((0, 2), (2, 4)), 4: ((0, 1), (1, 1), (1, 4), (4, 6))}, {2: ((4, 6), (0, 0)), 4: ((0, 0),) * 4}
"""Of the rows with signal, what each process computes in two passes: none of them, too."""
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


def make_learner(case: Case) -> LocalLearner:
    make = Qwen3MoeConfig if "num_experts" in case.changes else Qwen3Config
    config = make(**{**SHAPE, **case.changes}, tie_word_embeddings=case.tied)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=case.attention)
    redraw(model)
    if case.recompute:
        checkpoint_activations(model)
    split = MicroBatching(rows=2)
    return LocalLearner(
        model, WORDS, device=CPU, objective=case.objective, optimizer=OPTIMIZER, update_split=split, score_split=split
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


def spread(module: BatchModule, together: int, copy: int = -1) -> None:
    where, world = torch.device("cpu"), dist.get_world_size()
    group = sequence_group(where, world, dist.get_rank(), together)
    shard(module, make_mesh(where, world, copy), CPU, group)


def apart(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each, relative to the largest entry."""
    assert wanted.keys() == got.keys()
    return {name: float((got[name] - g).abs().max() / g.abs().max()) for name, g in wanted.items()}


def accumulated(learner: LocalLearner, mini: MiniBatch, parts: Sequence[tuple[int, int]]) -> list[LossRecord]:
    learner.policy.begin()
    numbers = torch.arange(len(mini.rows))
    return [record for part in parts for record in learner.accumulate(mini.part(numbers[slice(*part)]))]


def compare(case: Case, rank: int) -> dict[str, Any]:
    """Largest differences between the shared and the single policy, relative to the largest entry."""
    alone, shared, batch = make_learner(case), make_learner(case), batch_of()
    spread(shared.module, case.together, case.copy)
    shared.policy = shared.policy.anew()
    found: dict[str, Any] = {}
    # Every rank scores rows of its own, of which it makes another number of passes than the others.
    rows = [torch.arange(7)[r :: case.world] for r in range(case.world)][rank]
    scored = shared.score(batch.select(rows), old=True).learner_logp
    wanted_logp = alone.score(batch, old=True).learner_logp
    assert scored is not None
    assert wanted_logp is not None
    away = (scored - wanted_logp[rows][:, : scored.shape[1]]).abs()
    found["logp"] = float(torch.cat([away.flatten(), torch.zeros(1)]).max())  # one rank's rows have no tokens
    minis = [prepare(alone.objective, batch, 0, wanted_logp) for _ in range(2)]
    found["rows"] = minis[0].rows.tolist()
    expected = accumulated(alone, minis[0], ((0, 6),))
    gathered: list[Any] = [None] * case.world
    dist.all_gather_object(gathered, accumulated(shared, minis[1], [part[case.world][rank] for part in PARTS]))
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


def compare_critics(world: int, together: int, rank: int) -> dict[str, float]:
    """The same for the critic, which computes every row; differences of its gradient."""
    alone, shared, batch = make_critic(), make_critic(), batch_of()
    spread(shared.module, together)
    batch = batch.replace(values=0.1 * batch.response_mask, returns=batch.advantage)
    mini, numbers = every_row(batch, 0), torch.arange(batch.rows)
    alone.trainable.begin()
    alone.accumulate(mini)
    shared.trainable.begin()
    for part in (((0, 3), (3, 6)), ((6, 7), (0, 0)), ((0, 0), (0, 0)), ((0, 0), (0, 0)))[rank]:
        shared.accumulate(mini.part(numbers[slice(*part)]))
    return apart(gradients(shared.trainable.model), gradients(alone.trainable.model))


def merged(folder: Path, stem: str) -> dict[str, Tensor]:
    """What all parts of a file hold."""
    return {name: t for file in sorted(folder.glob(f"{stem}*.safetensors")) for name, t in load_file(file).items()}


def read_back(learner: LocalLearner, folder: Path) -> bool:
    """Whether a checkpoint is read bit for bit, weights and moments."""
    learner.load(folder, ("model", "optimizer"))
    saved, moments = merged(folder / "actor", "model"), merged(folder / "actor", "optimizer")
    named = dict(learner.model.named_parameters())
    state = {f"{k}.{n}": v for n, p in named.items() for k, v in learner.policy.optimizer.state[p].items()}
    assert (named.keys(), state.keys()) == (saved.keys(), moments.keys())
    # Every rank makes the same calls.
    same = [torch.equal(whole(p), saved[n]) for n, p in named.items()]
    return all(same + [torch.equal(whole(v), moments[n]) for n, v in state.items()])


def written_and_read(world: int, rank: int, folder: Path) -> dict[str, Any]:
    """A checkpoint of these ranks, and those of fewer, read by learners of as many ranks, sharded and in two copies."""
    case = CASES["own head, packed rows"]

    def learner(copy: int) -> LocalLearner:
        made = make_learner(case)
        made.spread(lambda module, _: spread(module, 1, copy))
        return made

    trained = learner(-1)
    mini = prepare(trained.objective, batch_of(), 0)
    trained.update_part(mini.part(torch.arange(len(mini.rows))[rank::world]))
    own = folder.parent / f"checkpoint of {world}"
    write = trained.snapshot(("model", "optimizer", "hf_model"), copy=True, share=Share(rank, world))
    trained.update_part(mini.part(torch.arange(len(mini.rows))[rank::world]))  # later than what is written
    write(own)
    dist.barrier()
    folders = sorted(folder.parent.glob("checkpoint of *"))
    copies = (-1, 2) if world > 2 else (-1,)
    return {f"{f.name}, {copy}": read_back(learner(copy), f) for f in folders for copy in copies}


def traffic(world: int, copy: int) -> dict[str, Any]:
    """Bytes that a rank holds, and the collectives of a micro-batch, of a real model on real ranks."""
    module = OnePass(causal_model(Qwen3Config(**SHAPE), torch.float32), CPU)
    spread(module, 1, copy)
    with Collectives() as seen:
        module(12).backward()
    optimizer = torch.optim.AdamW(module.parameters())
    optimizer.step()
    moments = sum(own(v) for state in optimizer.state.values() for k, v in state.items() if k != "step")
    return {
        "weights": sum(own(p) for p in module.parameters()),
        "gradients": sum(own(p.grad) for p in module.parameters() if p.grad is not None),
        "moments": moments,
        "counts": dict(seen.counts),
        "sizes": dict(seen.sizes),
    }


LOADED: Mapping[str, dict[str, Any]] = {"dense": {}, "tied": {"tie_word_embeddings": True}, "experts": EXPERTS}


def read_by_the_first(rank: int, folder: Path) -> dict[str, bool]:
    """Models whose weights the first rank alone can find: whether all have them bit for bit, buffers too."""
    same: dict[str, bool] = {}
    for kind, load in (("policy", load_model), ("critic", load_value_model)):
        for name, changes in LOADED.items():
            files = folder / f"{kind} {name}"
            if rank == 0:
                made = (Qwen3MoeConfig if "num_experts" in changes else Qwen3Config)(**{**SHAPE, **changes})
                written: PreTrainedModel = AutoModelForCausalLM.from_config(made)
                redraw(written)
                written.save_pretrained(files)
                ignore = shutil.ignore_patterns("*.safetensors")
                shutil.copytree(files, folder / f"{kind} {name}, no weights", ignore=ignore)
            dist.barrier()
            source, bare = ModelSource(str(files)), ModelSource(f"{files}, no weights")
            model = load(source, CPU.torch) if rank == 0 else placeholder_model(bare, torch.float32, kind)
            wanted = load(source, CPU.torch)
            module = OnePass(model, CPU)
            before = kept_whole(model)
            spread(module, 1)
            hand_out(model, before)
            got, expected = dict(model.named_parameters()), dict(wanted.named_parameters())
            assert (got.keys(), before) == (expected.keys(), {})
            own = [torch.equal(whole(got[n]), p) for n, p in expected.items()]
            rest = dict(wanted.named_buffers())
            own += [torch.equal(b, rest[n]) for n, b in model.named_buffers()]
            same[f"{kind}, {name}"] = bool(rest) and all(own)
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, same)
    return {name: all(each[name] for each in gathered) for name in same}


def passes_of_a_group() -> list[list[int]]:
    """Rows of each pass of two ranks with micro-batches of 5, 2 and of 3, 3, 1 tokens, 6 tokens a pass."""
    group = sequence_group(torch.device("cpu"), 2, dist.get_rank(), 2)
    assert group is not None
    costs = ([5, 2], [3, 3, 1])[group.rank]
    return [rows.tolist() for rows in group.passes([torch.tensor([i]) for i in range(len(costs))], costs, 6)]


def main(world: int, rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store, patience = f"file://{folder / 'store'}", timedelta(minutes=3)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=patience)
    found: dict[str, Any] = {name: compare(case, rank) for name, case in CASES.items() if case.world == world}
    for name, (size, together) in CRITICS.items():
        if size == world:
            found[name] = {"gradient": compare_critics(world, together, rank)}
    if world == 2:
        found["passes"] = [None, None]
        dist.all_gather_object(found["passes"], passes_of_a_group())
        found["read by the first"] = read_by_the_first(rank, folder)
    copies = (-1, 2) if world > 2 else (-1,)
    found |= {f"traffic on {world}, {copy}": traffic(world, copy) for copy in copies}
    found[f"checkpoints on {world}"] = written_and_read(world, rank, folder)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the ranks of each world found, and their checkpoints."""
    outer = tmp_path_factory.mktemp("ranks")
    for world in (2, 4):
        folder = outer / str(world)
        folder.mkdir()
        commands = [[sys.executable, __file__, str(world), str(rank), str(folder)] for rank in range(world)]
        ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
        try:
            errors = [process.communicate(timeout=400)[1] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        assert [process.returncode for process in ranks] == [0] * world, "\n".join(errors)
    return outer


@pytest.fixture(scope="module")
def found(ran: Path) -> dict[str, Any]:
    return {name: value for file in ran.glob("*/found.json") for name, value in json.loads(file.read_text()).items()}


@pytest.mark.parametrize("case", CASES)
def test_ranks_have_the_gradient_of_one_process(found: dict[str, Any], case: str) -> None:
    """With unequal parts, one of them empty; and the log-probs, for which each makes another number of passes."""
    assert found[case]["logp"] < 1e-5
    assert max(found[case]["gradient"].values()) < 1e-5, found[case]["gradient"]
    alone, shared = found[case]["norms"]
    assert shared == pytest.approx(alone, rel=1e-5)
    assert alone > OPTIMIZER.max_norm, "the example must reach the bound"


@pytest.mark.parametrize("case", CRITICS)
def test_ranks_have_the_critics_gradient_of_one_process(found: dict[str, Any], case: str) -> None:
    assert max(found[case]["gradient"].values()) < 1e-5


def test_a_checkpoint_of_ranks_is_read_by_any_number_of_ranks(ran: Path, found: dict[str, Any]) -> None:
    """Bit for bit, each tensor once, about as many bytes in each part."""
    assert found["checkpoints on 2"] == {"checkpoint of 2, -1": True}
    assert found["checkpoints on 4"] == {f"checkpoint of {n}, {copy}": True for n in (2, 4) for copy in (-1, 2)}
    for ranks in (2, 4):
        folder = ran / f"checkpoint of {ranks}"
        alone = make_learner(CASES["own head, packed rows"])
        assert read_back(alone, folder)
        parts = [load_file(f) for f in sorted((folder / "actor").glob("model-*.safetensors"))]
        assert len(parts) == ranks
        assert sum(map(len, parts)) == len(dict(alone.model.named_parameters()))
        bytes_of = [sum(t.nbytes for t in part.values()) for part in parts]
        assert max(bytes_of) < 1.3 * sum(bytes_of) / ranks
        exported = AutoModelForCausalLM.from_pretrained(folder / "actor" / "huggingface")
        assert all(torch.equal(p, dict(alone.model.named_parameters())[n]) for n, p in exported.named_parameters())


def test_a_lost_part_of_a_checkpoint_is_named(ran: Path, tmp_path: Path) -> None:
    shutil.copytree(ran / "checkpoint of 2", tmp_path, dirs_exist_ok=True)
    other = tmp_path / "actor" / "model-00002-of-00002.safetensors"
    content = other.read_bytes()
    for harm in (other.unlink, lambda: other.write_bytes(content[: len(content) // 2])):
        harm()
        with pytest.raises(CheckpointError, match=f"cannot read .*{other.name}"):
            make_learner(CASES["own head, packed rows"]).load(tmp_path, ("model", "optimizer"))
    save_file({"other": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match=f"{other.name} is without 'lm_head.weight'"):
        make_learner(CASES["own head, packed rows"]).load(tmp_path, ("model", "optimizer"))


@pytest.mark.parametrize(("world", "copy"), [(2, -1), (4, -1), (4, 2)])
def test_a_simulation_is_what_real_ranks_hold_and_send(found: dict[str, Any], world: int, copy: int) -> None:
    """To the byte, on fake tensors in one process: shards of weights, gradients and moments, and each collective."""
    run = simulate(Qwen3Config(**SHAPE), world=world, shards=copy, tokens=12, device=CPU, recompute=False)
    real = found[f"traffic on {world}, {copy}"]
    assert {name: getattr(run, name) for name in real} == real
    layers = SHAPE["num_hidden_layers"]
    assert real["counts"]["all-gather"] == 2 * layers + 1
    assert real["counts"]["reduce-scatter"] == layers + 1


def test_a_group_makes_passes_of_what_its_ranks_may_hold(found: dict[str, Any]) -> None:
    """5 + 1, 3 + 3 and 2 tokens."""
    assert found["passes"] == [[[0], [], [1]], [[2], [0, 1], []]]


def test_the_first_rank_alone_reads_a_model_and_all_have_it(found: dict[str, Any]) -> None:
    """The other has no weight files. Parameters and buffers, bit for bit, of tied and own heads, experts and values."""
    assert found["read by the first"] == {f"{k}, {n}": True for k in ("policy", "critic") for n in LOADED}


@pytest.mark.parametrize("case", CASES)
def test_ranks_make_the_update_and_the_record_of_one_process(found: dict[str, Any], case: str) -> None:
    alone, shared = found[case]["alone"], found[case]["shared"]
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        assert shared[name] == pytest.approx(value, rel=1e-5), name
    # AdamW divides by the root of its own square: rounding of a component near 0 moves its weight by a part of lr.
    assert found[case]["weights"] < 5e-5


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
