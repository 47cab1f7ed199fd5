"""Options that make the networks of every policy tiny."""

from __future__ import annotations

from typing import Any

from sb3_softmod.policies import POLICIES

_MODULAR: dict[str, Any] = dict(embedding_dim=6, module_dim=4, num_modules=2, num_layers=2)

#: ``policy_kwargs`` by the name of a policy.
TINY: dict[str, dict[str, Any]] = {
    **{policy: dict(net_arch=[6, 5]) for policy in POLICIES},
    "SoftModPolicy": _MODULAR,
    "HardRoutingPolicy": _MODULAR,
    "MixtureOfExpertsPolicy": dict(net_arch=[6, 5], gating_arch=[4], num_experts=2),
    "CAREPolicy": dict(net_arch=[6, 5], encoder_arch=[4], embedding_dim=3, num_encoders=2),
    "FiLMPolicy": dict(net_arch=[6, 5], embedding_dim=3),
    "BROPolicy": dict(width=6, num_blocks=1, embedding_dim=3),
}
