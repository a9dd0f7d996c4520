"""Keys that are not in the tree: verl's keys under other names, verl's keys without a counterpart, and slips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher

_ACTOR = "actor_rollout_ref.actor"
_REF = "actor_rollout_ref.ref"
_ROLLOUT = "actor_rollout_ref.rollout"
_MODEL = "actor_rollout_ref.model"

MOVED: Mapping[str, str] = {
    "reward.reward_manager.name": "reward_model.reward_manager",
    "reward.reward_manager": "reward_model.reward_manager",
    "reward.reward_kwargs": "reward_model.reward_kwargs",
    "reward.custom_reward_function": "custom_reward_function",
    "reward_model.reward_manager.name": "reward_model.reward_manager",
    f"{_ACTOR}.optim.clip_grad": f"{_ACTOR}.grad_clip",
    f"{_ACTOR}.optim.warmup_style": f"{_ACTOR}.optim.lr_scheduler_type",
    f"{_ACTOR}.fsdp_config.strategy": f"{_ACTOR}.strategy",
    f"{_ACTOR}.policy_loss.rollout_correction": "algorithm.rollout_correction",
    "critic.optim.clip_grad": "critic.grad_clip",
    "critic.optim.warmup_style": "critic.optim.lr_scheduler_type",
    "critic.model.fsdp_config.strategy": "critic.strategy",
    "critic.forward_micro_batch_size": "critic.forward_micro_batch_size_per_gpu",
    f"{_ROLLOUT}.log_prob_micro_batch_size": f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu",
    f"{_REF}.log_prob_micro_batch_size": f"{_REF}.log_prob_micro_batch_size_per_gpu",
}
"""Other spellings of verl -> ours. A section moves with all that is below it. Longer spellings come first."""

SFT_MOVED: Mapping[str, str] = {
    "model.partial_pretrain": "model.path",
    "optim.lr_warmup_steps_ratio": "optim.warmup_steps_ratio",
    "optim.lr_scheduler": "optim.lr_scheduler_type",
    "data.micro_batch_size": "data.micro_batch_size_per_gpu",
}

_MEGATRON = "Megatron is not a backend of gmpo; fsdp2 is the way to shard, see fsdp_config"
_ADAMW = "AdamW is the optimizer; its settings are lr, weight_decay, betas and eps"
_PROFILER = "verl's profiler has no counterpart here; remove the key"
_LORA = "LoRA is not available; all weights are trained"
_TURNS = "answers of several turns and tools are not available"
_FSDP = "this version trains in one process, so there is nothing to shard; remove the key"
_ENGINE = "belongs to verl's worker engine, which has no counterpart here"

_MEGATRON_EQUIVALENTS: Mapping[str, str] = {
    "": "{1}.fsdp_config shards instead",
    ".tensor_model_parallel_size": "{1}.fsdp_config.fsdp_size shards the weights instead",
    ".pipeline_model_parallel_size": "{1}.fsdp_config.fsdp_size shards the weights instead",
    ".virtual_pipeline_model_parallel_size": "{1}.fsdp_config.fsdp_size shards the weights instead",
    ".expert_model_parallel_size": "{1}.fsdp_config.fsdp_size shards the experts' weights too",
    ".expert_tensor_parallel_size": "{1}.fsdp_config.fsdp_size shards the experts' weights too",
    ".context_parallel_size": "{0}.ulysses_sequence_parallel_size splits long sequences instead",
    ".sequence_parallel": "{0}.ulysses_sequence_parallel_size splits long sequences instead",
    ".param_offload": "{1}.fsdp_config.param_offload is FSDP's key",
    ".optimizer_offload": "{1}.fsdp_config.optimizer_offload is FSDP's key",
    ".grad_offload": "{1}.fsdp_config.optimizer_offload moves what can be moved",
    ".use_mbridge": "Hugging Face weights are read as they are",
    ".use_dist_checkpointing": "{0}.checkpoint.save_contents says what is saved",
    ".dist_checkpointing_path": "{0}.checkpoint.save_contents says what is saved",
    ".override_transformer_config": f"{_MODEL}.override_config changes the model, and "
    f"{_MODEL}.enable_gradient_checkpointing recomputes activations",
    ".seed": "trainer.seed is the root of all random streams",
}
"""Key below a `megatron` section -> what there is for it here; `{0}` is the section that holds `megatron`,
`{1}` the one that holds `fsdp_config`."""

_MEGATRON_KEYS: Mapping[str, str] = {
    f"{section}.megatron{key}": f"Megatron is not a backend of gmpo; {equivalent.format(section, fsdp)}"
    for section, fsdp in ((_ACTOR, _ACTOR), (_REF, _REF), ("critic", "critic.model"))
    for key, equivalent in _MEGATRON_EQUIVALENTS.items()
}

UNSUPPORTED: Mapping[str, str] = {
    **_MEGATRON_KEYS,
    "critic.model.lora": _LORA,
    "critic.model.target_modules": _LORA,
    "critic.model.external_lib": "no module is imported by name; model.trust_remote_code loads code of the model",
    "critic.optim.optimizer": _ADAMW,
    "critic.optim.override_optimizer_config": _ADAMW,
    "algorithm.rollout_correction.rollout_token_veto_threshold": "no code of verl reads it either; "
    "rollout_rs=token_k1 rejects tokens",
    "algorithm.rollout_is": "verl moved it: algorithm.rollout_correction.rollout_is takes token or sequence",
    f"{_ACTOR}.tis_imp_ratio_cap": "verl moved it: algorithm.rollout_correction.rollout_is=token with "
    "rollout_is_threshold",
    f"{_ROLLOUT}.over_sample_rate": "all sampled answers are used",
    f"{_ROLLOUT}.skip_rollout": "answers are always sampled",
    f"{_ROLLOUT}.multi_stage_wake_up": "nothing sleeps in one process",
    f"{_ROLLOUT}.limit_images": "only text is supported",
    f"{_ROLLOUT}.repetition_penalty": "it makes the sampled distribution another one than the learner's",
    f"{_ROLLOUT}.do_sample": "temperature=0 is greedy",
    f"{_ROLLOUT}.quantization": "weights are sampled from as they are trained",
    "reward_model.micro_batch_size_per_gpu": "reward models are not available; rewards come from scorers",
    "reward_model.enable_resource_pool": "reward models are not available; rewards come from scorers",
    "reward.reward_model": "reward models are not available; rewards come from scorers or custom_reward_function",
    "data.tokenizer": "is actor_rollout_ref.model.tokenizer_path here",
    "data.trust_remote_code": "is actor_rollout_ref.model.trust_remote_code here",
    "data.datagen": "rows are not made while training",
    "algorithm.use_pf_ppo": "preference-feedback resampling is not available",
    f"{_MODEL}.lora": _LORA,
    f"{_MODEL}.target_modules": _LORA,
    f"{_MODEL}.exclude_modules": _LORA,
    f"{_MODEL}.external_lib": "no module is imported by name; model.trust_remote_code loads code of the model",
    f"{_ACTOR}.router_replay": "routing replay for mixtures of experts is not available yet",
    f"{_ROLLOUT}.enable_rollout_routing_replay": "routing replay for mixtures of experts is not available yet",
    f"{_ACTOR}.optim.optimizer": _ADAMW,
    f"{_ACTOR}.optim.override_optimizer_config": _ADAMW,
    f"{_ACTOR}.fsdp_config.mixed_precision": "fsdp_config.dtype and fsdp_config.model_dtype set the precision",
    f"{_ROLLOUT}.multi_turn": _TURNS,
    f"{_ROLLOUT}.agent": _TURNS,
    f"{_ROLLOUT}.trace": "traces are not written; trainer.rollout_data_dir keeps all answers",
    f"{_ROLLOUT}.pipeline_model_parallel_size": "pipeline parallelism is not available",
    "reward_model.enable": "reward models are not available; rewards come from scorers or custom_reward_function",
    "reward_model.model": "reward models are not available; rewards come from scorers or custom_reward_function",
    "reward_model.strategy": "reward models are not available; rewards come from scorers or custom_reward_function",
    "reward_model.sandbox_fusion": "code is not executed; custom_reward_function can call a sandbox",
    "data.custom_cls": "data classes of your own are not loaded; gmpo.train(config, rows=...) takes any rows",
    "data.sampler": "samplers of your own are not loaded; gmpo.train(config, rows=...) takes any rows",
    "data.image_key": "only text is supported",
    "data.video_key": "only text is supported",
    "trainer.default_hdfs_dir": "HDFS is not supported; trainer.default_local_dir may be a mounted folder",
    "trainer.del_local_ckpt_after_load": "checkpoints are never deleted on loading; see trainer.max_actor_ckpt_to_keep",
    "trainer.esi_redundant_time": _ENGINE,
    "transfer_queue": _ENGINE,
}
"""Prefixes of keys that verl has and gmpo has not, with the reason: refused, unless the value asks for nothing (`OFF`).
The longest prefix that fits speaks."""

SFT_UNSUPPORTED: Mapping[str, str] = {
    "data.prompt_dict_keys": "write the path with dots: data.prompt_key=extra_info.question",
    "data.response_dict_keys": "write the path with dots: data.response_key=extra_info.answer",
    "data.multiturn": _TURNS,
    "data.custom_cls": "data classes of your own are not loaded",
    "model.lora": _LORA,
    "model.target_modules": _LORA,
    "model.use_liger": "fused kernels are not available yet; the results are the same without",
    "model.fsdp_config": "this version trains in one process, so there is nothing to shard; remove the key",
    "model.strategy": "this version trains in one process, so there is nothing to shard; remove the key",
    "ulysses_sequence_parallel_size": "this version trains in one process; remove the key",
    "use_remove_padding": "packed wherever the model and device allow; same results; remove the key",
    "trainer.default_hdfs_dir": "HDFS is not supported; trainer.default_local_dir may be a mounted folder",
}

NO_COUNTERPART: Mapping[str, str] = {
    f"{_ACTOR}.fsdp_config.wrap_policy": "how layers are wrapped changes no result; each layer is a unit",
    f"{_ACTOR}.fsdp_config.offload_policy": "fsdp_config.param_offload and optimizer_offload say what is moved",
    f"{_ACTOR}.fsdp_config.reshard_after_forward": "a matter of speed; nothing is sharded in one process",
    f"{_ACTOR}.fsdp_config.use_orig_params": "a detail of FSDP1",
    f"{_ACTOR}.fsdp_config.entropy_checkpointing": "another place of actor.entropy_checkpointing",
    f"{_ACTOR}.fsdp_config.entropy_from_logits_with_chunking": "another place of "
    "actor.entropy_from_logits_with_chunking",
    f"{_ACTOR}.fsdp_config.use_torch_compile": "another place of actor.use_torch_compile",
    f"{_REF}.fsdp_config.wrap_policy": "how layers are wrapped changes no result; each layer is a unit",
    f"{_REF}.fsdp_config.reshard_after_forward": "a matter of speed; nothing is sharded in one process",
    f"{_REF}.fsdp_config.model_dtype": "the reference is kept in float32",
    "critic.model.fsdp_config": "this version trains in one process, so there is nothing to shard or to move",
    "critic.model.enable_activation_offload": "activations are not moved; enable_gradient_checkpointing saves more",
    "critic.model.use_shm": "a matter of loading",
    "critic.model.use_remove_padding": "packed wherever the model and device allow; same results",
    "critic.profiler": "verl's profiler has no counterpart here; gmpo train --profile profiles a step",
    f"{_ACTOR}.profiler": "verl's profiler has no counterpart here; gmpo train --profile profiles a step",
    f"{_REF}.profiler": "verl's profiler has no counterpart here; gmpo train --profile profiles a step",
    f"{_ROLLOUT}.profiler": "verl's profiler has no counterpart here; gmpo train --profile profiles a step",
    "global_profiler": "verl's profiler has no counterpart here; gmpo train --profile profiles a step",
    f"{_MODEL}.use_liger": "a matter of speed; the results are the same without",
    f"{_MODEL}.use_fused_kernels": "a matter of speed; the results are the same without",
    f"{_MODEL}.fused_kernel_options": "a matter of speed; the results are the same without",
    f"{_MODEL}.enable_activation_offload": "activations are not moved; model.enable_gradient_checkpointing saves more",
    f"{_MODEL}.use_shm": "a matter of loading",
    f"{_ROLLOUT}.agent.num_workers": "the sampler needs no workers",
    f"{_ROLLOUT}.update_weights_bucket_megabytes": "weights are not copied between processes",
    f"{_ROLLOUT}.checkpoint_engine": "weights are not copied between processes",
    f"{_ROLLOUT}.prometheus": "the engine's statistics are not served; metrics.jsonl holds the run's",
    f"{_ACTOR}.calculate_entropy": "the entropy is always reported",
    f"{_REF}.entropy_checkpointing": "the reference's entropy is never computed",
    f"{_REF}.entropy_from_logits_with_chunking": "the reference's entropy is never computed",
    f"{_ROLLOUT}.layered_summon": "weights are not copied between processes",
    f"{_ROLLOUT}.skip_dump_dir": "only rollout.skip_rollout reads it, which is not supported",
    f"{_ROLLOUT}.cudagraph_capture_sizes": "the vllm sampler reads it, which is not available yet",
    f"{_ROLLOUT}.logprobs_mode": "log-probs are always those of the distribution that was sampled from",
    f"{_ROLLOUT}.scheduling_policy": "the vllm sampler reads it, which is not available yet",
    "critic.rollout_n": "follows rollout.n",
    "reward_model.n_gpus_per_node": "rewards are computed on the CPU",
    "reward_model.nnodes": "rewards are computed on the CPU",
    "reward_model.data_source_key": "is data.reward_fn_key here",
    "algorithm.pf_ppo": "only algorithm.use_pf_ppo reads it, which is not supported",
    "trainer.log_train_freq": "every step is recorded",
    "data.return_raw_input_ids": "rows keep messages and token ids",
    "data.return_full_prompt": "rows keep messages and token ids",
    "data.return_multi_modal_inputs": "only text is supported",
    "data.validation_shuffle": "validation sees all its problems, in their order",
    "data.use_shm": "a matter of loading",
    "reward_model.num_workers": "is reward_model.grader_workers here",
    "reward_model.use_reward_loop": "rewards always come from bounded worker processes",
    "reward_model.launch_reward_fn_async": "rewards always come from bounded worker processes",
    "reward.num_workers": "is reward_model.grader_workers here",
    "trainer.ray_wait_register_center_timeout": "Ray is not used",
    "trainer.use_legacy_worker_impl": "there is one implementation",
    "trainer.use_v1": "there is one implementation",
    "trainer.npu_profile": "verl's profiler has no counterpart here",
    "trainer.profile_steps": "verl's profiler has no counterpart here; gmpo train --profile profiles a step",
    "actor_rollout_ref.hybrid_engine": "sampler and learner always share their devices",
    "ray_kwargs": "Ray is not used",
    "ray_init": "Ray is not used",
}
"""Prefixes of keys of verl that gmpo has not and that change no result: accepted with any value, and reported."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    f"{_MODEL}.lora_alpha": (16, 32),
    f"{_MODEL}.target_modules": ("all-linear",),
    f"{_ROLLOUT}.agent.default_agent_loop": ("single_turn_agent",),
    f"{_ROLLOUT}.pipeline_model_parallel_size": (1,),
    f"{_ROLLOUT}.repetition_penalty": (1, 1.0),
    f"{_ROLLOUT}.do_sample": (True,),
    "reward_model.strategy": ("fsdp", "fsdp2"),
    "data.image_key": ("images", "image"),
    "data.video_key": ("videos", "video"),
}
"""Unsupported key -> further values that ask for nothing, because they are verl's defaults or the neutral ones."""

OFF = (None, False, 0, 0.0, (), "", "disable", "disabled", "none", "null", "NONE")
"""Values that ask an unsupported key for nothing: accepted, and reported."""

_TOKEN_BASELINE = "verl has it, and its trainer calls it with arguments that it does not take; it is not available here"

REFUSED_VALUES: Mapping[tuple[str, str], str] = {
    ("algorithm.adv_estimator", "grpo_vectorized"): "it is another implementation of grpo; write grpo",
    ("algorithm.adv_estimator", "optimal_token_baseline"): _TOKEN_BASELINE,
    ("algorithm.adv_estimator", "tir_optimal_token_baseline"): _TOKEN_BASELINE,
    (f"{_ACTOR}.policy_loss.loss_mode", "bypass_mode"): "it is a mode of the corrections; write "
    "algorithm.rollout_correction.bypass_mode=True",
    (f"{_ACTOR}.kl_loss_type", "full"): "the KL over the whole vocabulary is not implemented, in verl neither; "
    "low_var_kl is the usual choice",
    (f"{_ACTOR}.strategy", "megatron"): _MEGATRON,
    ("critic.strategy", "megatron"): _MEGATRON,
    (f"{_ROLLOUT}.name", "sglang"): "SGLang is not a sampler of gmpo",
    (f"{_ROLLOUT}.name", "trtllm"): "TensorRT-LLM is not a sampler of gmpo",
    ("trainer.logger", "tracking"): "is verl's old name of wandb; write wandb",
}
"""Values that verl knows and gmpo refuses, with the reason."""


def moved(path: str, table: Mapping[str, str]) -> tuple[str, str] | None:
    """The entry's old name and the path under its name here; None when it is not a moved one."""
    for old, new in table.items():
        if path == old or path.startswith(f"{old}."):
            return old, new + path.removeprefix(old)
    return None


def unsupported(path: str, table: Mapping[str, str]) -> str | None:
    """Why a key of verl is not in the tree, or None when it is no key of verl.

    A prefix that is itself longer than the path's section also fits `lora_rank` for `lora`.
    """
    fitting = [prefix for prefix in table if path == prefix or path.startswith((f"{prefix}.", f"{prefix}_"))]
    return table[max(fitting, key=len)] if fitting else None


def without_counterpart(
    path: str, value: object, any_value: Mapping[str, str], refused: Mapping[str, str]
) -> str | None:
    """Why an unknown key of verl can be accepted without effect, or None when it cannot.

    Args:
        any_value: prefixes that change no result; refused: prefixes that are accepted at a value of `OFF` alone.
    """
    if reason := unsupported(path, any_value):
        return reason
    reason = unsupported(path, refused)
    if reason is None or ".megatron" in path or not asks_nothing(path, value):
        return None
    return f"the value asks for nothing ({reason})"


def asks_nothing(path: str, value: object) -> bool:
    """Whether the value of a key of verl that is not in the tree leaves things as they are without the key."""
    if isinstance(value, list | dict):
        return not value
    return value in NEUTRAL.get(path, ()) or (value is not True and value in OFF)


def nearest(path: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known paths most like an unknown one, best first; empty when none is close.

    Two things speak for a candidate: that it ends in the same names (`clip_ratio`, `actor.optim.lr`), and that it is
    spelled alike, as a whole or over as many names as the unknown path has (`loss_mod`).
    """
    names = path.split(".")
    scored = []
    for candidate in known:
        others = candidate.split(".")
        same = 0
        while same < min(len(names), len(others)) and names[-1 - same] == others[-1 - same]:
            same += 1
        tail = ".".join(others[-len(names) :])
        likeness = max(_likeness(path, candidate), _likeness(path, tail))
        if same or likeness >= 0.75:
            scored.append(((same, likeness, _likeness(path, candidate)), candidate))
    if not scored:
        return []
    scored.sort(key=lambda entry: entry[0], reverse=True)
    (_, best, _), _ = scored[0]
    return [candidate for (_, likeness, _), candidate in scored if likeness >= best - 0.1][:count]


def _likeness(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() >= 0.6 else 0.0
