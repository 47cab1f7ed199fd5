"""Learning, on point masses whose goals conflict between tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from point_mass import HORIZON, make_point_mass_env
from torch import Tensor

from sb3_softmod import MultiTaskSACPolicy, SoftModSAC, SoftModularNetwork
from sb3_softmod.evaluation import evaluate_tasks

SMALL: dict[str, Any] = dict(embedding_dim=32, module_dim=32)


class BlindNetwork(SoftModularNetwork):
    """Sees the same task always."""

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        return super().forward(inputs, task.mean(-1, keepdim=True).expand_as(task))


class BlindPolicy(MultiTaskSACPolicy):
    network_class = BlindNetwork


def learn(policy: Any, steps_per_task: int = 2000, **policy_kwargs: Any) -> SoftModSAC:
    model = SoftModSAC(
        policy,
        make_point_mass_env(4),
        learning_rate=3e-3,
        gamma=0.9,
        batch_size=128,
        policy_kwargs={**SMALL, **policy_kwargs},
        seed=0,
    )
    return model.learn(4 * steps_per_task)


@pytest.mark.parametrize("kwargs", [dict(), dict(variant="official", preset="deep", module_dim=16)])
def test_soft_modularization_solves_conflicting_tasks(kwargs: dict[str, Any]) -> None:
    model = learn("SoftModPolicy", **kwargs)
    env = make_point_mass_env(4)
    env.seed(100)
    result = evaluate_tasks(model, env, n_eval_episodes=50)
    assert result.episodes == [50] * 4
    assert min(result.success_rate) >= 0.95
    assert np.mean(result.length) == HORIZON


def test_a_policy_that_cannot_see_the_task_cannot() -> None:
    model = learn(BlindPolicy)
    result = evaluate_tasks(model, make_point_mass_env(4), n_eval_episodes=20)
    assert np.mean(result.success_rate) <= 0.5
