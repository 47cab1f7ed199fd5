"""A policy for each network, by name."""

from __future__ import annotations

from sb3_softmod.networks import (
    CARENetwork,
    FiLMNetwork,
    HardRoutingNetwork,
    MixtureOfExpertsNetwork,
    MlpNetwork,
    MOORENetwork,
    MultiHeadNetwork,
    PaCoNetwork,
    SingleTaskNetwork,
    SoftModularNetwork,
)
from sb3_softmod.policies.base import MultiTaskSACPolicy


class SoftModPolicy(MultiTaskSACPolicy):
    """Soft modularization (Yang et al. 2020) in actor and critics; options: :class:`.SoftModularNetwork`."""

    network_class = SoftModularNetwork


class MTMlpPolicy(MultiTaskSACPolicy):
    """MT-SAC: the one-hot task beside the state; options: :class:`.MlpNetwork`."""

    network_class = MlpNetwork


class MultiHeadPolicy(MultiTaskSACPolicy):
    """MT-MH-SAC: a shared trunk and a head for each task; options: :class:`.MultiHeadNetwork`."""

    network_class = MultiHeadNetwork


class SingleTaskPolicy(MultiTaskSACPolicy):
    """Single-task SAC: a network for each task, nothing shared; options: :class:`.SingleTaskNetwork`."""

    network_class = SingleTaskNetwork


class MixtureOfExpertsPolicy(MultiTaskSACPolicy):
    """Mix-Expert: experts mixed by a gating network; options: :class:`.MixtureOfExpertsNetwork`."""

    network_class = MixtureOfExpertsNetwork


class HardRoutingPolicy(MultiTaskSACPolicy):
    """Hard Routing: one module a layer, chosen for each task; options: :class:`.HardRoutingNetwork`.

    Its controller needs the loss of every sample, which plain SAC does not tell: there it stays as it was drawn.
    """

    network_class = HardRoutingNetwork


class CAREPolicy(MultiTaskSACPolicy):
    """CARE: state encoders attended by a task context; options: :class:`.CARENetwork`."""

    network_class = CARENetwork


class PaCoPolicy(MultiTaskSACPolicy):
    """PaCo: parameters combined from shared sets; options: :class:`.PaCoNetwork`."""

    network_class = PaCoNetwork


class MOOREPolicy(MultiTaskSACPolicy):
    """MOORE: orthogonal experts and a head for each task; options: :class:`.MOORENetwork`."""

    network_class = MOORENetwork


class FiLMPolicy(MultiTaskSACPolicy):
    """FiLM: hidden layers scaled and shifted by the task; options: :class:`.FiLMNetwork`."""

    network_class = FiLMNetwork


#: The policies by the name that :class:`.MultiTaskSAC` knows them under.
POLICIES: dict[str, type[MultiTaskSACPolicy]] = {
    policy.__name__: policy
    for policy in (
        SoftModPolicy,
        MTMlpPolicy,
        MultiHeadPolicy,
        SingleTaskPolicy,
        MixtureOfExpertsPolicy,
        HardRoutingPolicy,
        CAREPolicy,
        PaCoPolicy,
        MOOREPolicy,
        FiLMPolicy,
    )
}
