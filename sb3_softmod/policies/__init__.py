"""Actor and critics around a network, as policies of SB3's SAC by name, and extractors. May import networks, common."""

from sb3_softmod.policies.actor_critic import (
    POLICIES,
    CAREPolicy,
    FiLMPolicy,
    HardRoutingPolicy,
    MixtureOfExpertsPolicy,
    MOOREPolicy,
    MTMlpPolicy,
    MultiHeadPolicy,
    MultiTaskActor,
    MultiTaskCritic,
    MultiTaskSACPolicy,
    PaCoPolicy,
    SingleTaskPolicy,
    SoftModPolicy,
    policy_options,
)
from sb3_softmod.policies.extractors import SoftModularExtractor

__all__ = [
    "POLICIES",
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
    "policy_options",
]
