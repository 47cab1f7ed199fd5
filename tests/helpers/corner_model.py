"""A model that moves point masses to their corners, set by hand; and a task between the corners."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from point_mass import GOALS, HORIZON, PointMass, make_point_mass_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_softmod import MultiTaskSAC, TaskEnv

#: Where the unseen task ends: half way between the corners 0 and 3, on no way to a corner.
BETWEEN = np.array([0.7, 0.0], np.float32)


def corner_model() -> MultiTaskSAC:
    """Four corners, by a linear policy: of any mixture of them, it moves to the mean of the corners."""
    options: dict[str, Any] = dict(buffer_size=100, seed=0, device="cpu")
    model = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(4), policy_kwargs=dict(net_arch=[]), **options)
    network: Any = model.actor.network
    layer = network.mlp.layers[0]
    with th.no_grad():
        layer.bias.zero_()
        layer.weight.zero_()
        layer.weight[0, :2, :2] = -5 * th.eye(2)
        layer.weight[0, :2, 2:] = 5 * th.as_tensor(GOALS).T
    return model


def task_between(copies: int = 1, goal: np.ndarray = BETWEEN) -> VecEnv:
    """The unseen task, in some envs."""
    return DummyVecEnv([partial(_task, goal)] * copies)


def _task(goal: np.ndarray) -> TaskEnv:
    env = PointMass(0)
    env.goal = goal
    return TaskEnv(gym.wrappers.TimeLimit(env, HORIZON), 0, ["between"])
