"""Tasks of dm_control's suite, through Shimmy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from sb3_softmod.envs.make import make_multitask_env
from sb3_softmod.envs.vec_env import MultiTaskVecEnv
from sb3_softmod.errors import ConfigurationError, nearest


def make_dm_control_env(tasks: Sequence[str], *, max_episode_steps: int = 1000, **kwargs: Any) -> MultiTaskVecEnv:
    """Tasks of dm_control's suite as one vectorised environment; needs the extra ``dm-control``.

    Observations are flattened and, where the tasks differ, padded. dm_control reports no success.

    :param tasks: ``domain-task``, for instance "walker-walk"
    :param max_episode_steps: the horizon, dm_control's 1000; an episode that ends there is truncated
    :param kwargs: ``seed``, ``envs_per_task``, ``n_envs``, ``n_workers``, ``restart_failed``, as in
        :func:`.make_multitask_env`
    :return: float32 observations ``[O + M]``
    :raises ConfigurationError: for an unknown name (with the nearest known), tasks of different action spaces, or if
        dm_control or Shimmy is not installed
    """
    try:
        import dm_control.suite
        import shimmy
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"dm_control's tasks need packages that are not installed ({error}): pip install sb3-softmod[dm-control]"
        ) from error
    gym.register_envs(shimmy)  # its import did that already
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    known = ["-".join(task) for task in dm_control.suite.ALL_TASKS]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"Unknown task of dm_control {name!r}: {nearest(name, known)}")
        if names.count(name) > 1:
            raise ConfigurationError(
                f"The task {name!r} is listed {names.count(name)} times: use envs_per_task instead."
            )
    return make_multitask_env(
        {name: f"dm_control/{name}-v0" for name in names}, max_episode_steps=max_episode_steps, **kwargs
    )
