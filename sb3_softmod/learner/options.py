"""What a gradient step is told, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor

from sb3_softmod.learner.aggregators import GradientSurgery, Surgery
from sb3_softmod.learner.critic_objectives import CriticKind, CriticTarget
from sb3_softmod.learner.learned_weights import LearnedWeights
from sb3_softmod.learner.loss_weights import LossWeighting
from sb3_softmod.learner.reward_scale import RewardScale
from sb3_softmod.learner.temperatures import Temperatures

Precision = Literal["auto", "fastest", "fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

OnNonFinite = Literal["raise", "skip"]
ON_NONFINITE: tuple[OnNonFinite, ...] = get_args(OnNonFinite)


@dataclass(frozen=True)
class LearnerOptions:
    """All that a gradient step depends on besides networks, temperatures and batches.

    The fields but ``task_names`` are arguments of :class:`.MultiTaskSAC`, and documented there; ``critic`` and
    ``critic_target`` are ``critic_kind`` and ``critic_target_kind`` here, as they are attributes of the model.
    """

    task_names: tuple[str, ...]
    gamma: float
    tau: float
    target_entropy: float
    critic_kind: CriticKind
    critic_target_kind: CriticTarget
    policy_delay: int
    loss_weighting: LossWeighting
    max_grad_norm: float | list[float] | tuple[float, float] | None
    gradient_surgery: GradientSurgery | None
    gradient_surgery_kwargs: Mapping[str, Any] | None
    on_nonfinite: OnNonFinite
    precision: Precision
    compile: bool | Literal["auto"]
    cuda_graphs: bool | Literal["auto"]
    use_sde: bool
    v_max: float

    @property
    def num_tasks(self) -> int:
        """M"""
        return len(self.task_names)


@dataclass
class LearnerState:
    """What a gradient step changes, and what it is told.

    :param policy: actor, critics and target critics, with their optimizers
    :param temperatures: of the tasks
    :param options: may be replaced between two steps, but for ``task_names``, ``critic_kind`` and what the
        acceleration was decided by
    :param folder: for dumps of updates that are not finite
    :param surgery: combines the gradients of the tasks; None for the gradient of their mean loss
    :param reward_scale: what rewards are divided by; None to take them as they are
    :param learned_weights: of the critics' losses; None where ``loss_weighting`` says all
    :param success_rates: ``[M]``, of the tasks' last episodes, where ``loss_weighting`` goes by them; stays in place
    """

    policy: SACPolicy
    temperatures: Temperatures
    options: LearnerOptions
    folder: Path = Path()
    reward_scale: RewardScale | None = None
    surgery: Surgery | None = None
    learned_weights: LearnedWeights | None = None
    success_rates: Tensor | None = None
