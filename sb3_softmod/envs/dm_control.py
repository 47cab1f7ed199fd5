"""Tasks of dm_control's suite, through Shimmy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import gymnasium as gym

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs import gymnasium_tasks
from sb3_softmod.envs.arguments import as_names
from sb3_softmod.envs.gymnasium_tasks import TaskSource
from sb3_softmod.envs.task_sets import DM_CONTROL_HORIZON
from sb3_softmod.envs.worker import TaskMaker


def make_task_makers(
    tasks: str | Sequence[str],
    *,
    seed: int | None = None,
    max_episode_steps: int = DM_CONTROL_HORIZON,
    render_mode: str | None = None,
    copies: int = 1,
) -> list[TaskMaker]:
    """What makes the envs of a task set; arguments as in :func:`.make_dm_control_env`.

    :param copies: its ``envs_per_task``, which dm_control's tasks need not know
    :return: one maker for each task
    :raises ConfigurationError: as there
    """
    sources = _sources(tasks, render_mode)
    endless = all(name.startswith("lqr-") for name in sources)  # the only tasks that dm_control ends at no step
    require_integer("max_episode_steps", max_episode_steps, 1, None if endless else DM_CONTROL_HORIZON)
    return gymnasium_tasks.make_task_makers(sources, seed=seed, max_episode_steps=max_episode_steps)


def _sources(tasks: str | Sequence[str], render_mode: str | None) -> dict[str, TaskSource]:
    try:
        import dm_control.suite
        import shimmy
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"dm_control's tasks need packages that are not installed ({error}): pip install 'sb3-softmod[dm-control]'"
        ) from error
    gym.register_envs(shimmy)  # its import did that already
    names = as_names(tasks, "task of dm_control", ["-".join(task) for task in dm_control.suite.ALL_TASKS])
    # By spec, not by id: a worker process need not know what Shimmy registered here.
    return {name: partial(gym.make, gym.spec(f"dm_control/{name}-v0"), render_mode=render_mode) for name in names}
