"""Which of the tasks that a policy knows is most like a new one, by how far its actions get there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_softmod.common.task_observation import num_tasks_of, split, task_ids, task_names_of, tasks_in_turn
from sb3_softmod.envs.normalization_statistics import normalize_observations

#: Episodes of each new task that are played as each known one.
EPISODES = 3
#: Steps after which an episode that has not ended counts as it is.
LONGEST = 1000


def nearest_tasks(model: Any, env: VecEnv, names: Sequence[str], num_known: int) -> list[int]:
    """For each new task the known one whose policy earns the largest mean return in it.

    :param model: whose first tasks are the known ones
    :param env: of the new tasks; it is reset
    :param names: of the new tasks, in the order of the result
    :param num_known: how many of the model's tasks are asked
    :return: ``[K]``, indices of the model's tasks
    """
    normalized = unwrap_vec_normalize(env)
    if normalized is not None:
        env = normalized.venv  # the model has statistics of its own, and returns are compared as they are
    returns = np.stack([_returns(model, env, known) for known in range(num_known)])  # [known, tasks of the env]
    own = task_names_of(env)
    best = np.where(np.isnan(returns), -np.inf, returns).argmax(0)
    return [int(best[own.index(name)]) for name in names]


def _returns(model: Any, env: VecEnv, known: int) -> np.ndarray:
    """The mean return of each task of the env, acting as in a known one; NaN for a task that is not played."""
    num_tasks, statistics = num_tasks_of(env), model.observation_statistics()
    sums, counts = np.zeros(num_tasks), np.zeros(num_tasks)
    observations = np.asarray(env.reset())
    one_hot = np.eye(model.num_tasks, dtype=np.float32)[[known] * env.num_envs]
    running, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    goal = tasks_in_turn(env, num_tasks) * EPISODES
    for _ in range(LONGEST * int(goal.sum())):
        if (counts >= goal).all():
            break
        tasks = task_ids(observations, num_tasks)
        asked = np.concatenate([split(observations, num_tasks)[0], one_hot], 1)
        if statistics is not None:
            asked = normalize_observations(statistics, asked)
        actions = model.predict(asked, deterministic=True)[0]
        observations, rewards, dones, _ = env.step(actions)  # type: ignore[assignment]
        running, lengths = running + rewards, lengths + 1
        over = np.flatnonzero(dones | (lengths >= LONGEST))
        np.add.at(sums, tasks[over], running[over])
        np.add.at(counts, tasks[over], 1)
        running[over], lengths[over] = 0.0, 0
    return np.divide(sums, counts, out=np.full(num_tasks, np.nan), where=counts > 0)
