"""SAC with soft modularization, as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium.vector import VectorEnv
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.learner.loss_weights import LossWeighting


class SoftModSAC(MultiTaskSAC):
    """:class:`.MultiTaskSAC` with the defaults of Yang et al. 2020: losses weighted by Eq. 10.

    Of the paper's schedule, :class:`.MultiTaskSAC` already has 128 samples a task in each gradient step, one gradient
    step for each step of the envs, discount 0.99, target rate 0.005 and learning rates 3e-4; warm-up and clipping as
    its authors' code has them are in :meth:`.Method.make`.

    :param policy: "SoftModPolicy", or any other ``SACPolicy``
    :param env: a multi-task env, or the name of a Meta-World task or set
    :param args: ``learning_rate`` and what follows, see :class:`.MultiTaskSAC`
    :param loss_weighting: see :func:`.loss_weights`
    :param kwargs: those of :class:`.MultiTaskSAC`
    """

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | VectorEnv | str | Sequence[str] | None,
        *args: Any,
        loss_weighting: LossWeighting = "alpha",
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, *args, loss_weighting=loss_weighting, **kwargs)
