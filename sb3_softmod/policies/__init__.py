"""Actor and critics around a network, as policies of SB3's SAC by name, and extractors. May import networks, common."""

from sb3_softmod.policies.actor_critic import MultiTaskActor, MultiTaskCritic
from sb3_softmod.policies.base import MultiTaskSACPolicy, network_options, policy_options
from sb3_softmod.policies.extractors import SoftModularExtractor
from sb3_softmod.policies.named import (
    POLICIES,
    BROPolicy,
    CAREPolicy,
    FiLMPolicy,
    HardRoutingPolicy,
    MixtureOfExpertsPolicy,
    MOOREPolicy,
    MTMlpPolicy,
    MultiHeadPolicy,
    PaCoPolicy,
    SingleTaskPolicy,
    SoftModPolicy,
)

__all__ = [
    "POLICIES",
    "BROPolicy",
    "CAREPolicy",
    "FiLMPolicy",
    "HardRoutingPolicy",
    "MOOREPolicy",
    "MTMlpPolicy",
    "MixtureOfExpertsPolicy",
    "MultiHeadPolicy",
    "MultiTaskActor",
    "MultiTaskCritic",
    "MultiTaskSACPolicy",
    "PaCoPolicy",
    "SingleTaskPolicy",
    "SoftModPolicy",
    "SoftModularExtractor",
    "network_options",
    "policy_options",
]
