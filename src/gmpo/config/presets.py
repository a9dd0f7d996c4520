"""verl's named settings of `algorithm.rollout_correction`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TOKEN_IS: Mapping[str, Any] = {"rollout_is": "token", "rollout_is_threshold": 2.0}
_SEQUENCE_IS: Mapping[str, Any] = {"rollout_is": "sequence", "rollout_is_threshold": 2.0}
_ICEPOP: Mapping[str, Any] = {"icepop": (0.5, 5.0)}
_RATIO_RS: Mapping[str, Any] = {"rollout_rs": ("seq_sum_k1",), "rollout_rs_threshold": "0.5_2.0"}
_GEO_RS: Mapping[str, Any] = {"rollout_rs": ("seq_mean_k1",), "rollout_rs_threshold": "0.999_1.001"}
_K3_RS: Mapping[str, Any] = {"rollout_rs": ("seq_mean_k3",), "rollout_rs_threshold": "0.01"}
_CLIP: Mapping[str, Any] = {"bypass_mode": True, "loss_type": "ppo_clip"}
_REINFORCE: Mapping[str, Any] = {"bypass_mode": True, "loss_type": "reinforce"}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Three policies: weights pi_old / mu, and rejection.
    "decoupled_token_is": _TOKEN_IS,
    "decoupled_seq_is": _SEQUENCE_IS,
    "decoupled_token_icepop": _ICEPOP,
    "decoupled_seq_is_rs": {**_SEQUENCE_IS, **_RATIO_RS},
    "decoupled_geo_rs": _GEO_RS,
    "decoupled_geo_rs_seq_tis": {**_SEQUENCE_IS, **_GEO_RS},
    "decoupled_geo_rs_token_tis": {**_TOKEN_IS, **_GEO_RS},
    "decoupled_k3_rs": _K3_RS,
    "decoupled_k3_rs_seq_tis": {**_SEQUENCE_IS, **_K3_RS},
    "decoupled_k3_rs_token_tis": {**_TOKEN_IS, **_K3_RS},
    # Two policies, the sampler's being the old one: a clipped ratio, or the policy gradient with weights.
    "bypass_ppo_clip": _CLIP,
    "bypass_ppo_clip_geo_rs": {**_CLIP, **_GEO_RS},
    "bypass_ppo_clip_k3_rs": {**_CLIP, **_K3_RS},
    "bypass_pg_is": {**_REINFORCE, **_SEQUENCE_IS},
    "bypass_pg_token_icepop": {**_REINFORCE, **_ICEPOP},
    "bypass_pg_geo_rs": {**_REINFORCE, **_GEO_RS},
    "bypass_pg_geo_rs_seq_tis": {**_REINFORCE, **_SEQUENCE_IS, **_GEO_RS},
    "bypass_pg_geo_rs_token_tis": {**_REINFORCE, **_TOKEN_IS, **_GEO_RS},
}
"""`preset` -> keys of the section -> values."""
