"""Keys of verl's FSDP and vLLM scripts: each is honoured, without effect for a reason, or refused with a remedy."""

from __future__ import annotations

import pytest

from gmpo.config import load
from gmpo.config.keys import NEUTRAL, NO_COUNTERPART, UNSUPPORTED
from gmpo.errors import ConfigError

A, R, REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
MODEL = "actor_rollout_ref.model"

HARMLESS = [
    *(f"{A}.fsdp_config.wrap_policy.min_num_params=0", f"{A}.fsdp_config.reshard_after_forward=True"),
    *(f"{A}.calculate_entropy=True", f"{A}.router_replay.mode=disabled", f"{A}.profiler.enable=False"),
    *(f"{MODEL}.use_liger=True", f"{MODEL}.use_fused_kernels=True", f"{MODEL}.fused_kernel_options.impl_backend=torch"),
    f"{MODEL}.use_shm=True",
    *(f"{MODEL}.external_lib=null", f"{R}.agent.num_workers=8", f"{R}.multi_turn.enable=False"),
    *(f"{R}.agent.default_agent_loop=single_turn_agent", f"{R}.layered_summon=True", f"{R}.over_sample_rate=0"),
    *(f"{R}.skip_rollout=False", f"{R}.cudagraph_capture_sizes=null", f"{R}.repetition_penalty=1.0"),
    *(f"{R}.do_sample=True", f"{R}.quantization=null", f"{R}.pipeline_model_parallel_size=1"),
    *(f"{REF}.entropy_checkpointing=True", f"{REF}.fsdp_config.wrap_policy.min_num_params=0"),
    *("critic.rollout_n=5", "reward_model.enable=False"),
    *("reward_model.strategy=fsdp", "reward_model.sandbox_fusion.url=null", "reward_model.model.path=null"),
    *("reward_model.use_reward_loop=True", "reward_model.launch_reward_fn_async=False", "reward.num_workers=8"),
    *("algorithm.use_pf_ppo=False", "algorithm.pf_ppo.reweight_method=pow"),
    *("trainer.del_local_ckpt_after_load=False", "trainer.default_hdfs_dir=null"),
    *("trainer.profile_steps=null", "ray_kwargs.ray_init.num_cpus=16", "global_profiler.tool=null"),
    *(
        "transfer_queue.enable=False",
        "data.custom_cls.path=null",
        "data.sampler.class_path=null",
        "data.image_key=images",
    ),
    *("data.return_raw_input_ids=False", "data.validation_shuffle=False", "data.trust_remote_code=False"),
]

KNOWN = [
    *(f"{A}.entropy_checkpointing=True", f"{A}.entropy_from_logits_with_chunking=True", f"{A}.use_torch_compile=False"),
    *(f"{A}.fsdp_config.forward_prefetch=True", f"{A}.optim.num_cycles=0.5", f"{A}.optim.betas=[0.9,0.95]"),
    *(f"{R}.load_format=safetensors", f"{R}.max_model_len=4096", f"{R}.enforce_eager=False", f"{R}.mode=async"),
    *(f"{R}.free_cache_engine=True", f"{R}.enable_prefix_caching=True", f"{R}.dtype=bfloat16", f"{R}.ignore_eos=False"),
    *(f"{R}.engine_kwargs.vllm.disable_mm_preprocessor_cache=True", f"{REF}.strategy=fsdp2", "trainer.device=cuda"),
    *("trainer.use_legacy_worker_impl=auto", "critic.model.fsdp_config.param_offload=True"),
    *("trainer.balance_batch=False", "trainer.max_actor_ckpt_to_keep=3", "data.return_raw_chat=True"),
    *("data.filter_overlong_prompts_workers=4", "data.apply_chat_template_kwargs.enable_thinking=False"),
]

REFUSED = {
    f"{A}.megatron.tensor_model_parallel_size=2": f"{A}.fsdp_config.fsdp_size shards the weights instead",
    f"{A}.megatron.expert_model_parallel_size=4": f"{A}.fsdp_config.fsdp_size shards the experts",
    f"{A}.megatron.context_parallel_size=2": f"{A}.ulysses_sequence_parallel_size splits long sequences",
    f"{A}.megatron.param_offload=True": f"{A}.fsdp_config.param_offload is FSDP's key",
    f"{REF}.megatron.param_offload=False": f"{REF}.fsdp_config.param_offload is FSDP's key",
    f"{A}.megatron.override_transformer_config.recompute_method=uniform": "enable_gradient_checkpointing recomputes",
    "critic.megatron.pipeline_model_parallel_size=2": "critic.model.fsdp_config.fsdp_size shards",
    f"{MODEL}.lora_adapter_path=a": "merge it into its base first",
    f"{R}.multi_turn.enable=True": "several turns and tools are not available",
    f"{R}.agent.default_agent_loop=tool_agent": "several turns and tools are not available",
    f"{R}.repetition_penalty=1.1": "another one than the learner's",
    f"{R}.pipeline_model_parallel_size=2": "pipeline parallelism is not available",
    f"{A}.router_replay.mode=R3": "routing replay",
    "reward_model.enable=True": "reward models are not available",
    "algorithm.use_pf_ppo=True": "preference-feedback resampling",
    "data.custom_cls.path=mine.py": "gmpo.train(config, rows=...) takes any rows",
    "trainer.default_hdfs_dir=hdfs://x": "HDFS is not supported",
}


@pytest.mark.parametrize("word", HARMLESS)
def test_a_key_that_changes_nothing_is_accepted_and_reported_with_its_reason(word: str) -> None:
    (ignored,) = load([word]).ignored
    assert ignored.path == word.partition("=")[0]
    assert ignored.reason


@pytest.mark.parametrize("word", KNOWN)
def test_a_key_of_the_tree_is_accounted_for(word: str) -> None:
    resolved = load([word])
    path = word.partition("=")[0]
    found = resolved.honoured | {n.path for n in (*resolved.inert, *resolved.unavailable)}
    assert any(path == other or path.startswith(f"{other}.") for other in found)


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_honoured_is_refused_with_the_way_out(word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load([word])
    assert REFUSED[word] in str(raised.value)


def test_reported_keys_stand_in_the_report_with_their_values() -> None:
    resolved = load(["ray_kwargs.ray_init.num_cpus=16", "+actor_rollout_ref.model.use_liger=True"])
    assert [(i.path, i.value) for i in resolved.ignored] == [
        ("ray_kwargs.ray_init.num_cpus", 16),
        ("actor_rollout_ref.model.use_liger", True),
    ]


def test_every_neutral_value_belongs_to_a_key_that_is_refused_otherwise() -> None:
    assert all(any(key == p or key.startswith((f"{p}.", f"{p}_")) for p in UNSUPPORTED) for key in NEUTRAL)
    assert not NO_COUNTERPART.keys() & UNSUPPORTED.keys()
