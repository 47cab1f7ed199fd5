"""Tuning the routing for a task between known ones takes a third of the steps that a new policy takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_softmod import SoftModSAC, TaskEnv

#: How much the angle turns by which actions are turned, from one end of the plane to the other.
TWIST = 3.0


def moved(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where actions lead, ``[..., 2]``: turned by an angle that depends on the position."""
    angle = TWIST * position.sum(-1)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = np.moveaxis(action, -1, 0)
    step = np.stack([cos * x - sin * y, sin * x + cos * y], -1)
    return np.clip(position + 0.2 * step, -1, 1).astype(np.float32)


class TwistedPlane(gym.Env[np.ndarray, np.ndarray]):
    """A point moves to a goal, wherever it starts."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, goal: np.ndarray) -> None:
        self.goal = goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.9, 0.9, 2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = moved(self.position, np.clip(action, -1, 1))
        distance = float(np.linalg.norm(self.position - self.goal))
        return self.position.copy(), -distance, False, False, {"success": distance < 0.15}


def goal_at(degrees: float) -> np.ndarray:
    return 0.7 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


OLD, NEW = [goal_at(60 * index) for index in range(6)], goal_at(30)


def make_env(goals: Sequence[np.ndarray], prefix: str) -> VecEnv:
    names = [f"{prefix}-{index}" for index in range(len(goals))]

    def make(index: int) -> TaskEnv:
        return TaskEnv(gym.wrappers.TimeLimit(TwistedPlane(goals[index]), 20), index, names)

    return DummyVecEnv([partial(make, index) for index in range(len(goals))])


class UntilSolved(BaseCallback):
    """Ends the training once the last task's goal is reached from 95 % of 100 starts; tested every 20 steps."""

    def _on_step(self) -> bool:
        if self.n_calls % 20:
            return True
        position = np.random.default_rng(0).uniform(-0.9, 0.9, (100, 2)).astype(np.float32)
        task = np.eye(self.model.num_tasks, dtype=np.float32)[[-1] * 100]  # type: ignore[attr-defined]
        solved = np.zeros(100, bool)
        for _ in range(20):
            action = self.model.predict(np.concatenate([position, task], 1), deterministic=True)[0]
            position = moved(position, action)
            solved |= np.linalg.norm(position - NEW, axis=1) < 0.15
        return bool(solved.mean() < 0.95)


@pytest.mark.slow
def test_tuning_the_routing_takes_a_third_of_the_steps() -> None:
    options: dict[str, Any] = dict(ent_coef="auto_0.1", gamma=0.9, seed=0, device="cpu")
    options["policy_kwargs"] = dict(embedding_dim=32, module_dim=32, num_layers=2, num_modules=4)
    anew: dict[str, Any] = dict(learning_starts=20, gradient_steps=4)
    old = SoftModSAC(
        "SoftModPolicy", make_env(OLD, "old"), learning_rate=3e-3, batch_size=192, learning_starts=300, **options
    )
    old.learn(7200)
    new = old.adapt(make_env([NEW], "new"), tune="routing", learning_rate=1e-2, batch_size=126, **anew)
    new.learn(1000, UntilSolved())
    scratch = []
    for rate in (3e-3, 1e-2):
        model = SoftModSAC(
            "SoftModPolicy", make_env([NEW], "new"), learning_rate=rate, batch_size=128, **anew, **options
        )
        scratch.append(model.learn(1000, UntilSolved()).num_timesteps)
    assert new.num_timesteps * 3 <= min(scratch)
