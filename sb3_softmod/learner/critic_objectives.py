"""What the critics are trained to predict, and what missing it costs."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from torch import Tensor

from sb3_softmod.policies import MultiTaskCritic
from sb3_softmod.policies.value_atoms import ValueAtoms, expectation

CriticKind = Literal["mse", "categorical"]
CRITICS: tuple[CriticKind, ...] = get_args(CriticKind)

CriticTarget = Literal["min", "mean"]
CRITIC_TARGETS: tuple[CriticTarget, ...] = get_args(CriticTarget)


class CriticObjective(Protocol):
    """One way to train critics; predictions are what the critics' networks give, for each of E members."""

    def predict(self, critic: ContinuousCritic, obs: Tensor, actions: Tensor) -> Tensor:
        """The predictions, ``[E, B]`` or ``[E, B, K]``.

        :param obs: ``[B, O + M]``
        :param actions: ``[B, action_dim]``, scaled to [-1, 1]
        """

    def q_values(self, predictions: Tensor) -> Tensor:
        """Their expectations, ``[E, B]``."""

    def target(
        self, predictions: Tensor, over: CriticTarget, entropy_cost: Tensor, rewards: Tensor, discounts: Tensor
    ) -> Tensor:
        r"""What the members are to predict.

        :param predictions: of the target critics at the next state and action
        :param over: how one value, or one distribution, is made of the members'
        :param entropy_cost: ``[B]``, :math:`\alpha \log \pi(a'|s')` there
        :param rewards: ``[B]``
        :param discounts: ``[B]``, of what comes after; 0 where the episode terminated
        :return: ``[B]`` or ``[B, K]``
        """

    def losses(self, predictions: Tensor, target: Tensor) -> Tensor:
        """What each sample costs each member, ``[E, B]``."""

    def least(self, target: Tensor) -> Tensor:
        """What each sample costs where the prediction is the target, ``[B]``: no loss is smaller."""


def over_members(q_values: Tensor, how: CriticTarget) -> Tensor:
    """One value of the members': the least, against overestimation, or the mean.

    :param q_values: ``[E, B]``
    :return: ``[B]``
    """
    return q_values.amin(0) if how == "min" else q_values.mean(0)


class SquaredError:
    """Half the squared distance to the soft Bellman target: SAC's."""

    def predict(self, critic: ContinuousCritic, obs: Tensor, actions: Tensor) -> Tensor:
        """See :class:`CriticObjective`; here Q-values."""
        return th.cat(critic(obs, actions), 1).T

    def q_values(self, predictions: Tensor) -> Tensor:
        """The predictions."""
        return predictions

    def target(
        self, predictions: Tensor, over: CriticTarget, entropy_cost: Tensor, rewards: Tensor, discounts: Tensor
    ) -> Tensor:
        """See :class:`CriticObjective`; ``[B]``."""
        return rewards + discounts * (over_members(predictions, over) - entropy_cost)

    def losses(self, predictions: Tensor, target: Tensor) -> Tensor:
        """See :class:`CriticObjective`."""
        return 0.5 * (predictions - target).square()

    def least(self, target: Tensor) -> Tensor:
        """See :class:`CriticObjective`."""
        return th.zeros_like(target)


class CrossEntropy:
    r"""The cross-entropy of a distribution on the atoms :math:`z_k`, whose expectation is the Q-value.

    The predictions are logits. The target is the distribution of the member of least expectation, or the mean of the
    members' distributions, at :math:`r + \gamma (z_k - \alpha \log \pi)`, each atom's mass divided linearly between the
    two atoms next to it (C51, Bellemare et al. 2017, with SAC's soft value).

    :param atoms: of the critics
    :param device: where the learner is
    """

    def __init__(self, atoms: ValueAtoms, device: th.device) -> None:
        self._atoms = atoms
        self._values = atoms.values(device)

    def predict(self, critic: ContinuousCritic, obs: Tensor, actions: Tensor) -> Tensor:
        """See :class:`CriticObjective`; here logits ``[E, B, K]``."""
        assert isinstance(critic, MultiTaskCritic)
        return critic.predictions(obs, actions)

    def q_values(self, predictions: Tensor) -> Tensor:
        """See :class:`CriticObjective`."""
        return expectation(predictions, self._values)

    def target(
        self, predictions: Tensor, over: CriticTarget, entropy_cost: Tensor, rewards: Tensor, discounts: Tensor
    ) -> Tensor:
        """See :class:`CriticObjective`; probabilities ``[B, K]``."""
        probabilities = predictions.softmax(-1)
        if over == "mean":
            probabilities = probabilities.mean(0)
        else:
            least = self.q_values(predictions).argmin(0)  # [B]
            probabilities = probabilities.gather(0, least.view(1, -1, 1).expand_as(probabilities[:1])).squeeze(0)
        shifted = rewards.unsqueeze(-1) + discounts.unsqueeze(-1) * (self._values - entropy_cost.unsqueeze(-1))
        return project(probabilities, self._atoms.position(shifted))

    def losses(self, predictions: Tensor, target: Tensor) -> Tensor:
        """See :class:`CriticObjective`."""
        return -(target * predictions.log_softmax(-1)).sum(-1)

    def least(self, target: Tensor) -> Tensor:
        """See :class:`CriticObjective`; the entropy of the target."""
        return th.special.entr(target).sum(-1)


def project(probabilities: Tensor, positions: Tensor) -> Tensor:
    """Move masses to whole positions: each is divided linearly between the two next to it.

    :param probabilities: ``[B, K]``
    :param positions: ``[B, K]``, where each mass is now, from 0 to K - 1
    :return: ``[B, K]``, the mass at 0, 1, ..., K - 1
    """
    lower = positions.floor()
    upper_share = positions - lower
    index = lower.long().clamp_(0, probabilities.shape[-1] - 1)  # NaN is no index; its share makes the loss NaN
    out = th.zeros_like(probabilities).scatter_add_(-1, index, probabilities * (1 - upper_share))
    # The last position has none above it, and gives nothing to one.
    return out.scatter_add_(-1, (index + 1).clamp_(max=probabilities.shape[-1] - 1), probabilities * upper_share)


def make_objective(kind: CriticKind, atoms: tuple[int, float, float] | None, device: th.device) -> CriticObjective:
    """The objective of a name.

    :param atoms: those of a :class:`.ValueAtoms`, where the critics predict distributions
    :param device: where the learner is
    """
    if kind == "mse":
        return SquaredError()
    assert atoms is not None
    return CrossEntropy(ValueAtoms(*atoms), device)
