"""How well a model does on each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.episode_statistics import EpisodeStatistics
from sb3_softmod.errors import ConfigurationError
from sb3_softmod.task_observation import num_tasks_of, task_names_of


@dataclass(frozen=True)
class TaskEvaluation:
    """What :func:`evaluate_tasks` found; every list has an entry for each task.

    :param task_names: the tasks
    :param episodes: how many episodes were played
    :param success_rate: share of episodes that succeeded at any step; NaN for a task that reports no success
    :param success_at_end_rate: share that succeeded at the last step
    :param mean_return: mean undiscounted return
    :param length: mean length
    """

    task_names: list[str]
    episodes: list[int]
    success_rate: list[float]
    success_at_end_rate: list[float]
    mean_return: list[float]
    length: list[float]


def evaluate_tasks(model: Any, env: VecEnv, *, n_eval_episodes: int = 50, deterministic: bool = True) -> TaskEvaluation:
    """Play the same number of episodes of every task, all envs at once.

    Each env of a task plays a fixed share of its episodes, so that short episodes do not count more often.

    :param model: anything with ``predict``
    :param env: a multi-task env; it is reset
    :param n_eval_episodes: episodes of each task
    :param deterministic: act by the mean instead of a sample
    :raises ConfigurationError: for fewer than one episode
    """
    if n_eval_episodes < 1:
        raise ConfigurationError(f"n_eval_episodes must be at least 1, not {n_eval_episodes}.")
    num_tasks = num_tasks_of(env)
    ids = np.array(env.get_attr("task_id"))
    left = np.empty(env.num_envs, int)
    for task in range(num_tasks):
        copies = np.flatnonzero(ids == task)
        left[copies] = [
            n_eval_episodes // len(copies) + (i < n_eval_episodes % len(copies)) for i in range(len(copies))
        ]
    statistics = EpisodeStatistics(num_tasks, window=n_eval_episodes)
    observations = env.reset()
    while left.any():
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, dones, infos = env.step(actions)
        ended = dones & (left > 0)
        statistics.add(info for info, counts in zip(infos, ended, strict=True) if counts)
        left -= ended
    means = statistics.means()
    missing = np.full(num_tasks, np.nan)
    return TaskEvaluation(
        task_names=task_names_of(env),
        episodes=statistics.num_episodes(),
        success_rate=means.get("success_rate", missing).tolist(),
        success_at_end_rate=means.get("success_at_end_rate", missing).tolist(),
        mean_return=means["return"].tolist(),
        length=means["length"].tolist(),
    )


def rollout_observations(model: Any, env: VecEnv, steps: int) -> np.ndarray:
    """The observations that the deterministic policy meets.

    :param model: anything with ``predict``
    :param env: it is reset
    :param steps: steps of each env
    :return: ``[steps, n_envs, O + M]``
    """
    observations = np.asarray(env.reset())
    seen = []
    for _ in range(steps):
        seen.append(observations)
        observations = np.asarray(env.step(model.predict(observations, deterministic=True)[0])[0])
    return np.stack(seen)
