"""A small multi-task set without a simulator: point masses whose goals conflict between the tasks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_softmod import TaskEnv

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

GOALS = np.array([[0.7, 0.7], [-0.7, 0.7], [-0.7, -0.7], [0.7, -0.7]], np.float32)
HORIZON = 20


class PointMass(gym.Env[np.ndarray, np.ndarray]):
    """A point in the plane moves to a goal that its observation, its position, does not show.

    :param goal: index of its goal
    """

    def __init__(self, goal: int) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.goal = GOALS[goal % len(GOALS)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.3, 0.3, 2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + 0.2 * np.clip(action, -1, 1), -1, 1).astype(np.float32)
        distance = float(np.linalg.norm(self.position - self.goal))
        return self.position.copy(), -distance, False, False, {"success": distance < 0.15}


def make_task(goal: int, num_tasks: int, horizon: int = HORIZON) -> TaskEnv:
    names = [f"corner-{i}" for i in range(num_tasks)]
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(goal), horizon), goal, names)


def make_point_mass_env(num_tasks: int = 4, envs_per_task: int = 1, horizon: int = HORIZON) -> VecEnv:
    from stable_baselines3.common.vec_env import DummyVecEnv  # not above: worker processes import this module

    return DummyVecEnv(
        [partial(make_task, goal, num_tasks, horizon) for goal in range(num_tasks) for _ in range(envs_per_task)]
    )
