"""Model shapes count what the model classes have, and memory follows from formulas that a reader can redo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gmpo.build.simulation import configuration_of
from gmpo.check.memory import Devices, Item, amount, estimate, micro_batch_tokens, totals
from gmpo.check.model_shapes import SHAPES, shape_by_name, shape_of_folder
from gmpo.config import load

A, R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "llama-3-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-llm-7b": 6_910_365_696,
    "gemma-2-2b": 2_614_341_888,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_those_that_the_models_publish(name: str) -> None:
    assert SHAPES[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith(("gemma", "qwen3-235b"))])
def test_the_parameters_are_those_of_the_model_class(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration_of(name, SHAPES[name]))
    assert sum(p.numel() for p in model.parameters()) == SHAPES[name].parameters


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-Math-7B", "qwen2.5-7b"),
        ("/data/models/Qwen2.5-7B-Instruct/", "qwen2.5-7b"),
        ("Qwen/Qwen2-7B-Instruct", "qwen2.5-7b"),
        ("Qwen/Qwen2.5-Coder-1.5B", "qwen2.5-1.5b"),
        ("~/verl/models/Qwen3-30B-A3B-Base", "qwen3-30b-a3b"),
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-70B", "llama-3-70b"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2.5-7b"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-r1-distill-qwen-1.5b"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama-3-8b"),
        ("deepseek-ai/deepseek-llm-7b-chat", "deepseek-llm-7b"),
        ("google/gemma-2-2b-it", "gemma-2-2b"),
    ],
)
def test_a_model_is_known_by_the_last_part_of_its_path(path: str, name: str) -> None:
    found = shape_by_name(path)
    assert found is not None
    assert found == (name, SHAPES[name])


@pytest.mark.parametrize("path", ["my-model", "Qwen2.5-9B", "qwen", "gpt2", "", "/"])
def test_an_unknown_model_has_no_shape(path: str) -> None:
    assert shape_by_name(path) is None


def test_a_folder_on_this_disk_is_read(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration_of("qwen3-0.6b", SHAPES["qwen3-0.6b"]))
    model.config.save_pretrained(tmp_path)
    assert shape_of_folder(tmp_path) == SHAPES["qwen3-0.6b"]
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    assert shape_of_folder(tmp_path) is None
    assert shape_of_folder(tmp_path / "nowhere") is None


# --- memory

SEVEN = SHAPES["qwen2.5-7b"]
GMPO_7B = [
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-7B",
    "data.train_batch_size=1024",
    "data.max_prompt_length=1024",
    "data.max_response_length=1024",
    f"{A}.ppo_mini_batch_size=256",
    f"{A}.ppo_micro_batch_size_per_gpu=16",
    f"{R}.name=vllm",
    f"{R}.tensor_model_parallel_size=2",
    f"{R}.gpu_memory_utilization=0.6",
    f"{R}.n=5",
    "trainer.nnodes=1",
    "trainer.n_gpus_per_node=8",
]


def items(*words: str) -> dict[str, Item]:
    return {item.name: item for item in estimate(load([*GMPO_7B, *words]).config, SEVEN)}


def test_weights_gradients_and_moments_are_spread_over_the_shards() -> None:
    found = items()
    assert found["weights"].gigabytes == pytest.approx(7_615_616_512 * 4 / 8 / 1e9)  # 3.81
    assert found["gradients"].gigabytes == found["weights"].gigabytes
    assert found["optimizer"].gigabytes == 2 * found["weights"].gigabytes
    assert found["weights"].formula == "7,615,616,512 parameters x 4 B / 8 shards"
    hybrid = items("trainer.nnodes=8", f"{A}.fsdp_config.fsdp_size=32")
    assert hybrid["optimizer"].gigabytes == pytest.approx(7_615_616_512 * 8 / 32 / 1e9)
    assert items("trainer.nnodes=8")["optimizer"].gigabytes == pytest.approx(7_615_616_512 * 8 / 64 / 1e9)


def test_adapters_are_what_is_trained_and_need_no_reference_beside_them() -> None:
    """Qwen2.5-7B on 8: 28 layers, width 3584 with 512 of keys and 18944 inside; rank 16 on 7 products each."""
    whole = items(f"{A}.use_kl_loss=True")
    found = items(f"{A}.use_kl_loss=True", "actor_rollout_ref.model.lora_rank=16")
    assert SHAPES["qwen2.5-7b"].adapter_parameters(16) == 40_370_176
    assert found["gradients"].gigabytes == pytest.approx(40_370_176 * 4 / 8 / 1e9)
    assert found["optimizer"].gigabytes == pytest.approx(40_370_176 * 8 / 8 / 1e9)
    assert found["weights"].gigabytes == pytest.approx(whole["weights"].gigabytes + 40_370_176 * 4 / 8 / 1e9)
    assert "reference" in whole
    assert "reference" not in found


def test_offloaded_parts_take_nothing_of_the_device() -> None:
    found = items(f"{A}.fsdp_config.param_offload=True", f"{A}.fsdp_config.optimizer_offload=True")
    assert found["weights"].gigabytes == found["optimizer"].gigabytes == 0
    assert found["gradients"].gigabytes > 0
    assert "optimizer_offload" in found["optimizer"].formula


def test_logits_and_activations_are_those_of_one_micro_batch() -> None:
    found = items()
    tokens = 16 * 2048
    assert found["logits"].gigabytes == 0.25
    assert f"{16 * 1024 * 152064 * 4 / 1e9:.1f}" in found["logits"].formula, "what all logits would take"
    kept = 4 * 3584 + 2 * 28 * 128 + 2 * 4 * 128 + 3 * 18944
    assert found["activations"].gigabytes == pytest.approx(tokens * 2 * (28 * 3584 + kept) / 1e9)
    stored = items("actor_rollout_ref.model.enable_gradient_checkpointing=False")
    assert stored["activations"].gigabytes == pytest.approx(tokens * 2 * 28 * kept / 1e9)


def test_a_token_budget_and_sequence_parallelism_set_the_tokens_of_a_micro_batch() -> None:
    dynamic = [f"{A}.use_dynamic_bsz=True", f"{A}.ppo_max_token_len_per_gpu=20480"]
    base = [word for word in GMPO_7B if "micro_batch" not in word]
    long = ["data.max_prompt_length=2048", "data.max_response_length=8192"]
    config = load([*base, *dynamic, *long, f"{A}.ulysses_sequence_parallel_size=4"]).config
    assert micro_batch_tokens(config, Devices.of(config))[:2] == (20480, 16384)
    rows = load([*base, *long, f"{A}.ppo_micro_batch_size_per_gpu=2", f"{A}.ulysses_sequence_parallel_size=4"]).config
    assert micro_batch_tokens(rows, Devices.of(rows))[:2] == (2 * 10240 // 4, 2 * 8192 // 4)


def test_reference_and_critic_are_counted_where_they_exist() -> None:
    assert "reference" not in items()
    found = items(f"{A}.use_kl_loss=True")
    assert found["reference"].gigabytes == found["weights"].gigabytes
    assert (
        items(f"{A}.use_kl_loss=True", "actor_rollout_ref.ref.fsdp_config.param_offload=True")["reference"].gigabytes
        == 0
    )
    critic = items("algorithm.adv_estimator=gae", f"{R}.n=1")
    assert critic["critic optimizer"].gigabytes == critic["optimizer"].gigabytes


def test_the_sampler_takes_its_share_of_the_card_or_its_rows() -> None:
    found = items()
    assert found["sampler weights"].gigabytes == pytest.approx(7_615_616_512 * 2 / 2 / 1e9)
    assert found["key-value cache"].gigabytes == pytest.approx(48 - found["sampler weights"].gigabytes)
    embedded = items(f"{R}.name=hf", f"{R}.max_num_seqs=64")
    assert embedded["key-value cache"].gigabytes == pytest.approx(64 * 2048 * 2 * 28 * 4 * 128 * 2 / 1e9)


def test_what_stays_is_in_both_totals() -> None:
    found = items()
    total = totals(list(found.values()))
    sampling = {"weights", "optimizer", "sampler weights", "key-value cache"}
    assert total["sampling"] == pytest.approx(sum(found[name].gigabytes for name in sampling))
    updating = set(found) - {"sampler weights", "key-value cache"}
    assert total["update"] == pytest.approx(sum(found[name].gigabytes for name in updating))


@pytest.mark.parametrize(
    ("gigabytes", "shown"),
    [
        (64.0, "64.0 GB"),
        (1.04, "1.0 GB"),
        (0.95, "0.9 GB"),
        (0.124, "124 MB"),
        (0.00996, "10 MB"),
        (0.0013, "1.3 MB"),
        (0.000565, "565 kB"),
        (0.0, "0 GB"),
    ],
)
def test_an_amount_is_told_in_a_unit_in_which_it_is_not_nothing(gigabytes: float, shown: str) -> None:
    assert amount(gigabytes) == shown
