"""How well a model does on each task."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_softmod.envs.vec_env import MultiTaskVecEnv
from sb3_softmod.episode_statistics import EpisodeStatistics
from sb3_softmod.errors import ConfigurationError
from sb3_softmod.task_observation import num_tasks_of, task_ids, task_names_of


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

    Short episodes do not count more often than long ones: each env of a task plays a fixed share of its episodes, and
    where the envs go from task to task, the episodes that began first count.

    :param model: anything with ``predict``
    :param env: a multi-task env; it is reset
    :param n_eval_episodes: episodes of each task
    :param deterministic: act by the mean instead of a sample
    :raises ConfigurationError: for fewer than one episode, or if the model was trained on normalised observations and
        the env has no ``VecNormalize``
    """
    _check_normalised(model, env)
    if n_eval_episodes < 1:
        raise ConfigurationError(f"n_eval_episodes must be at least 1, not {n_eval_episodes}.")
    num_tasks = num_tasks_of(env)
    statistics = EpisodeStatistics(num_tasks, window=n_eval_episodes)
    with _frozen_normalization(env):
        _play(model, env, statistics, num_tasks, n_eval_episodes, deterministic)
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


def _play(
    model: Any, env: VecEnv, statistics: EpisodeStatistics, num_tasks: int, n_eval_episodes: int, deterministic: bool
) -> None:
    """Play the episodes that count, and hand them to ``statistics``."""
    observations = np.asarray(env.reset())
    tasks = task_ids(observations, num_tasks)
    rotates = isinstance(env.unwrapped, MultiTaskVecEnv) and env.num_envs < num_tasks
    # How many episodes that count may still begin: by task where the envs rotate, otherwise by env.
    to_begin = np.full(num_tasks, n_eval_episodes) if rotates else _shares(tasks, n_eval_episodes)
    counts = np.zeros(env.num_envs, bool)  # whether the episode that an env plays now counts
    begins = np.ones(env.num_envs, bool)
    while True:
        for index in np.flatnonzero(begins):
            key = tasks[index] if rotates else index
            counts[index] = to_begin[key] > 0
            to_begin[key] -= counts[index]
        if not counts.any() and not to_begin.any():
            break
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, begins, infos = env.step(actions)  # type: ignore[assignment]
        tasks = task_ids(observations, num_tasks)
        statistics.add(info for info, ended in zip(infos, begins & counts, strict=True) if ended)


def _check_normalised(model: Any, env: VecEnv) -> None:
    trained_so = getattr(model, "normalization", None) is not None or (
        getattr(model, "get_vec_normalize_env", lambda: None)() is not None
    )
    if trained_so and unwrap_vec_normalize(env) is None:
        raise ConfigurationError(
            "The model was trained on normalised observations, and the env sends raw ones: evaluate it on the env of "
            "load(path, env=...).get_env(), or wrap the env in MultiTaskVecNormalize with the same statistics."
        )


@contextmanager
def _frozen_normalization(env: VecEnv) -> Iterator[None]:
    """Leave the statistics of a ``VecNormalize`` as training made them."""
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        yield
        return
    training, normalize.training = normalize.training, False
    try:
        yield
    finally:
        normalize.training = training


def _shares(tasks: np.ndarray, episodes: int) -> np.ndarray:
    """Deal out the episodes of each task to its envs.

    :param tasks: ``[n_envs]``, the task of each env
    :param episodes: of each task
    :return: ``[n_envs]``
    """
    shares = np.empty(len(tasks), int)
    for task in np.unique(tasks):
        copies = np.flatnonzero(tasks == task)
        shares[copies] = [episodes // len(copies) + (i < episodes % len(copies)) for i in range(len(copies))]
    return shares


def act(model: Any, env: VecEnv) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """Act by the deterministic policy, without end; the env takes its step when the next item is asked for.

    :param model: anything with ``predict``
    :param env: it is reset
    :return: for each step the observations ``[n_envs, O + M]``, the actions ``[n_envs, action_dim]`` that answer them,
        and ``[n_envs]`` whether an episode begins with them
    :raises ConfigurationError: if the model was trained on normalised observations and the env has no ``VecNormalize``
    """
    _check_normalised(model, env)
    with _frozen_normalization(env):
        observations, begins = np.asarray(env.reset()), np.ones(env.num_envs, bool)
        while True:
            actions = model.predict(observations, deterministic=True)[0]
            yield observations, actions, begins
            observations, _, begins, _ = env.step(actions)  # type: ignore[assignment]


def rollout(model: Any, env: VecEnv, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What the deterministic policy meets and does.

    :param model: anything with ``predict``
    :param env: it is reset
    :param steps: steps of each env
    :return: observations ``[steps, n_envs, O + M]`` and actions ``[steps, n_envs, action_dim]``
    """
    with closing(act(model, env)) as playing:
        observations, actions, _ = zip(*islice(playing, steps), strict=True)
    return np.stack(observations), np.stack(actions)
