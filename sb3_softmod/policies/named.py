"""A policy for each network, by name."""

from __future__ import annotations

from stable_baselines3.common.type_aliases import Schedule

from sb3_softmod import networks
from sb3_softmod.networks.adapted import groups_of
from sb3_softmod.policies.base import MultiTaskSACPolicy


class SoftModPolicy(MultiTaskSACPolicy):
    """Soft modularization (Yang et al. 2020) in actor and critics; options: :class:`.SoftModularNetwork`."""

    network_class = networks.SoftModularNetwork


class MTMlpPolicy(MultiTaskSACPolicy):
    """MT-SAC: the one-hot task beside the state; options: :class:`.MlpNetwork`."""

    network_class = networks.MlpNetwork


class MultiHeadPolicy(MultiTaskSACPolicy):
    """MT-MH-SAC: a shared trunk and a head for each task; options: :class:`.MultiHeadNetwork`."""

    network_class = networks.MultiHeadNetwork


class SingleTaskPolicy(MultiTaskSACPolicy):
    """Single-task SAC: a network for each task, nothing shared; options: :class:`.SingleTaskNetwork`."""

    network_class = networks.SingleTaskNetwork


class MixtureOfExpertsPolicy(MultiTaskSACPolicy):
    """Mix-Expert: experts mixed by a gating network; options: :class:`.MixtureOfExpertsNetwork`."""

    network_class = networks.MixtureOfExpertsNetwork


class HardRoutingPolicy(MultiTaskSACPolicy):
    """Hard Routing: one module a layer, chosen for each task; options: :class:`.HardRoutingNetwork`.

    Its controller needs the loss of every sample, which plain SAC does not tell: there it stays as it was drawn.
    """

    network_class = networks.HardRoutingNetwork


class CAREPolicy(MultiTaskSACPolicy):
    """CARE: state encoders attended by a task context; options: :class:`.CARENetwork`."""

    network_class = networks.CARENetwork


class PaCoPolicy(MultiTaskSACPolicy):
    """PaCo: parameters combined from shared sets; options: :class:`.PaCoNetwork`."""

    network_class = networks.PaCoNetwork


class MOOREPolicy(MultiTaskSACPolicy):
    """MOORE: orthogonal experts and a head for each task; options: :class:`.MOORENetwork`."""

    network_class = networks.MOORENetwork


class FiLMPolicy(MultiTaskSACPolicy):
    """FiLM: hidden layers scaled and shifted by the task; options: :class:`.FiLMNetwork`."""

    network_class = networks.FiLMNetwork


class BROPolicy(MultiTaskSACPolicy):
    """BRC: residual networks with layer normalisation; options: :class:`.BroNetwork`.

    The critics' loss alone trains the task embedding: the actor reads the first critic's, without gradient.
    """

    network_class = networks.BroNetwork

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        for actor, critic in zip(groups_of(self.actor.network), groups_of(self.critic.network), strict=True):
            assert isinstance(actor, networks.BroNetwork)
            assert isinstance(critic, networks.BroNetwork)
            actor.read_embedding_of(critic)
        # Anew, without the embedding that the actor owned until now.
        self.actor.optimizer = self._make_optimizer(self.actor, lr_schedule)


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
        BROPolicy,
    )
}
