"""Small models of point masses, and new tasks for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from point_mass import PointMass, make_point_mass_env
from small_networks import TINY
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_softmod import (
    MultiTaskSAC,
    TaskEnv,
)

M = 3
NEW = ("new-0", "new-1")


def make_new(index: int, names: Sequence[str], goals: Sequence[int], copy: int = 0) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(goals[index]), 20), index, list(names))


def new_env(names: Sequence[str] = NEW, goals: Sequence[int] = (3, 1)) -> VecEnv:
    return DummyVecEnv([partial(make_new, index, names, goals) for index in range(len(names))])


def trained(policy: str = "SoftModPolicy", env: VecEnv | None = None, steps: int = 60, **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(batch_size=4 * M, learning_starts=15, buffer_size=600, seed=0, device="cpu")
    env = make_point_mass_env(M) if env is None else env
    return MultiTaskSAC(policy, env, **{**options, "policy_kwargs": TINY[policy], **kwargs}).learn(steps)


def old_observations(extra: int = 0) -> np.ndarray:
    rng = np.random.default_rng(0)
    tasks = np.eye(M + extra, dtype=np.float32)[np.arange(9) % M]
    return np.concatenate([rng.uniform(-1, 1, (9, 2)).astype(np.float32), tasks], 1)


def of_old_tasks(model: MultiTaskSAC) -> list[np.ndarray]:
    """Actions, Q-values and temperatures."""
    observations = old_observations(model.num_tasks - M)
    model.policy.set_training_mode(False)
    actions = model.predict(observations, deterministic=True)[0]
    with th.no_grad():
        q_values = [q.numpy() for q in model.critic(th.tensor(observations), th.tensor(actions))]
    assert model.log_ent_coef is not None
    return [actions, *q_values, model.log_ent_coef.detach().numpy()[:M].copy()]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
