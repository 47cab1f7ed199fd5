"""The statistics by which observations and rewards are normalised, apart from the env that gathers them.

Models keep them, files and deployed policies hold them. They are what :meth:`.MultiTaskVecNormalize.statistics` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_softmod.common.checks import require_choice, require_flag, require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import split

#: Whose observations a mean and a variance are of: all tasks', or those of each task.
KINDS = ("pooled", "per-task")
#: Settings, and running means.
SETTINGS = ("obs_statistics", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
MEANS = ("obs_rms", "ret_rms")


def mixed_statistics(statistics: Mapping[str, Any], routes: np.ndarray) -> dict[str, Any]:
    """The statistics for tasks that are mixtures of others: mean and variance of what is, in parts, of each.

    :param statistics: of :meth:`.MultiTaskVecNormalize.statistics`, of M tasks
    :param routes: ``[K, M]``, the shares of the M tasks in each of the K
    :return: the same of K tasks
    """
    out = {**deepcopy(dict(statistics)), "num_tasks": len(routes)}
    for name in MEANS:
        if name == "ret_rms" or statistics["obs_statistics"] == "per-task":
            out[name] = [_mixed(statistics[name], shares) for shares in routes.astype(np.float64)]
    return out


def _mixed(parts: list[RunningMeanStd], shares: np.ndarray) -> RunningMeanStd:
    means, variances = (np.stack([getattr(rms, name) for rms in parts]) for name in ("mean", "var"))
    out = RunningMeanStd(shape=means.shape[1:])
    out.mean = np.tensordot(shares, means, 1)
    out.var = np.tensordot(shares, variances + np.square(means - out.mean), 1)
    out.count = float(shares @ [rms.count for rms in parts])
    return out


def normalize_observations(statistics: Mapping[str, Any], obs: Any) -> np.ndarray:
    """Normalise observations as a :class:`.MultiTaskVecNormalize` of these statistics does.

    :param statistics: of :meth:`.MultiTaskVecNormalize.statistics`
    :param obs: ``[..., O + M]``
    :return: the same shape, float32
    """
    out = unclipped(statistics, obs)
    states = split(out, statistics["num_tasks"])[0]
    if statistics["norm_obs"]:
        states[...] = clip(states, statistics["clip_obs"])
    return out


def unclipped(statistics: Mapping[str, Any], obs: Any) -> np.ndarray:
    """As :func:`normalize_observations`, without the clipping."""
    return affine(statistics, obs, lambda x, mean, std: (x - mean) / std)


def obs_mean_and_std(statistics: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """As :meth:`.MultiTaskVecNormalize.obs_mean_and_std`, of its statistics alone."""
    mean, var = (np.stack([getattr(rms, name) for rms in statistics["obs_rms"]]) for name in ("mean", "var"))
    return mean, np.sqrt(var + statistics["epsilon"])


def affine(
    statistics: Mapping[str, Any], obs: Any, function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Apply a function to the observations without their one-hot task, where they are normalised.

    :param obs: ``[..., O + M]``
    :param function: of observations, means and standard deviations, ``[..., O]`` each
    :return: the same shape as ``obs``, float32
    """
    out = np.array(obs, np.float32)
    if statistics["norm_obs"]:
        states, one_hot = split(out, statistics["num_tasks"])
        by_task = statistics["obs_statistics"] == "per-task"
        groups = one_hot.argmax(-1) if by_task else np.zeros(one_hot.shape[:-1], int)
        mean, std = obs_mean_and_std(statistics)
        states[...] = function(states, mean[groups], std[groups])
    return out


def plain_statistics(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics as JSON has them, to the last bit, for files.

    :param statistics: of :meth:`.MultiTaskVecNormalize.statistics`
    """
    plain = dict(statistics)
    for name in MEANS:
        plain[name] = [
            {"mean": np.asarray(rms.mean).tolist(), "var": np.asarray(rms.var).tolist(), "count": float(rms.count)}
            for rms in statistics[name]
        ]
    return plain


def statistics_from_plain(plain: Any) -> dict[str, Any]:
    """What :meth:`.MultiTaskVecNormalize.set_statistics` takes, of what :func:`plain_statistics` gave.

    :param plain: from a file, so that anything may be in it
    :raises ConfigurationError: saying what is wrong with it
    """
    if not isinstance(plain, Mapping) or set(plain) != {*SETTINGS, *MEANS, "num_tasks"}:
        raise ConfigurationError("its statistics of the observations are incomplete.")
    require_integer("num_tasks of the statistics", plain["num_tasks"], 1)
    require_choice("obs_statistics", plain["obs_statistics"], KINDS)
    for name in ("norm_obs", "norm_reward"):
        require_flag(name, plain[name])
    for name in ("clip_obs", "clip_reward", "gamma", "epsilon"):
        if not isinstance(plain[name], (int, float)) or not plain[name] >= 0:
            raise ConfigurationError(f"{name} of the statistics must be a number of at least 0, not {plain[name]!r}.")
    num_tasks, by_task = plain["num_tasks"], plain["obs_statistics"] == "per-task"
    groups = {"obs_rms": num_tasks if by_task else 1, "ret_rms": num_tasks}
    means = {
        name: _running_means(name, plain[name], groups[name], dims) for name, dims in (("obs_rms", 1), ("ret_rms", 0))
    }
    return {**plain, **means}


def _running_means(name: str, plain: Any, groups: int, dims: int) -> list[RunningMeanStd]:
    """Running means of a file, all of one shape with so many axes."""
    found = []
    try:
        for each in plain:
            mean, var = (np.array(each[key], np.float64) for key in ("mean", "var"))
            rms = RunningMeanStd(shape=mean.shape)
            rms.mean, rms.var, rms.count = mean, var, float(each["count"])
            found.append(rms)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} of the statistics are no means and variances ({error}).") from error
    shapes = {array.shape for rms in found for array in (rms.mean, rms.var)}
    finite = all(np.isfinite([*np.ravel(rms.mean), *np.ravel(rms.var), rms.count]).all() for rms in found)
    if len(found) != groups or len(shapes) != 1 or len(min(shapes)) != dims or not finite:
        raise ConfigurationError(f"{name} of the statistics are not {groups} finite means and variances.")
    return found


def clip(values: np.ndarray, limit: float) -> np.ndarray:
    """Clip what is finite: an infinity stays one, for the algorithm to find."""
    return np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
