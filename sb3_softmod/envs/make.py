"""Multi-task environments for SB3 in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np

from sb3_softmod.envs.gymnasium_tasks import TaskSource, common_width, make_gymnasium_task, name_tasks, resolve
from sb3_softmod.envs.metaworld import NUM_GOALS, Goals, RenderMode, make_task_env, resolve_task_names
from sb3_softmod.envs.vec_env import MultiTaskVecEnv
from sb3_softmod.errors import ConfigurationError, nearest

#: Meta-World's simulators raise past this step.
MAX_HORIZON = 500


def make_metaworld_env(
    tasks: str | Sequence[str],
    *,
    goals: Goals = "random",
    seed: int | None = None,
    max_episode_steps: int = 200,
    reward_version: Literal["v1", "v2"] = "v2",
    envs_per_task: int = 1,
    terminate_on_success: bool = False,
    render_mode: RenderMode | None = None,
    camera_name: str = "corner2",
    n_envs: int | None = None,
    n_workers: int | None = None,
    restart_failed: bool = False,
) -> MultiTaskVecEnv:
    """Meta-World tasks as one vectorised environment, task by task.

    :param tasks: a task set ("MT3", "MT10", "MT25", "MT50"), a task ("reach-v3"), or a list of tasks
    :param goals: "random": each episode draws one of the benchmark's 50 goals of its task (the paper's
        "Conditioned"); "fixed": one goal a task, the same every episode; "each-once" (for evaluation): the 50 in turn,
        in an order that depends on ``seed`` alone. k copies of a task share them: together their first episodes have
        each goal once, 50 // k or 50 // k + 1 a copy, as :func:`.evaluate_tasks` with 50 episodes plays them, and then
        each copy begins its share again.
    :param seed: of the goals and their order; different tasks and copies get different sequences. None draws one.
    :param max_episode_steps: the horizon, 200 in the paper, at most 500; an episode that ends there is truncated
    :param reward_version: Meta-World's reward functions, "v1" or "v2"
    :param envs_per_task: copies of each task
    :param terminate_on_success: end an episode at its first success
    :param render_mode: as in gymnasium ("rgb_array" for pictures)
    :param camera_name: Meta-World's camera for rendering
    :param n_envs: fewer envs than tasks, which then take turns; see :class:`.MultiTaskVecEnv`
    :param n_workers: processes that step the envs; default one for each core; 0: everything in this process
    :param restart_failed: build the envs of a worker that fails anew instead of raising
    :return: ``envs_per_task * M`` envs with float32 observations ``[39 + M]``; copies of a task stand together
    :raises ConfigurationError: for an unknown name (with the nearest known) or an impossible number
    """
    names = resolve_task_names(tasks)
    for option, value, known in (
        ("goals", goals, get_args(Goals)),
        ("reward_version", reward_version, ("v1", "v2")),
    ):
        if value not in known:
            raise ConfigurationError(f"Unknown {option} {value!r}: {nearest(value, known)}")
    if not 1 <= max_episode_steps <= MAX_HORIZON:
        raise ConfigurationError(f"max_episode_steps must be from 1 to {MAX_HORIZON}, not {max_episode_steps}.")
    if goals == "each-once":
        _check_each_once(len(names), envs_per_task, n_envs, terminate_on_success)
    if seed is None:  # one for all envs: copies of a task have the same 50 goals
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    return MultiTaskVecEnv(
        [
            partial(
                make_task_env,
                name,
                task_id,
                names,
                goals=goals,
                seed=seed,
                max_episode_steps=max_episode_steps,
                reward_version=reward_version,
                terminate_on_success=terminate_on_success,
                render_mode=render_mode,
                camera_name=camera_name,
                copies=envs_per_task,
            )
            for task_id, name in enumerate(names)
        ],
        envs_per_task=envs_per_task,
        n_envs=n_envs,
        n_workers=n_workers,
        restart_failed=restart_failed,
    )


def _check_each_once(num_tasks: int, envs_per_task: int, n_envs: int | None, terminate_on_success: bool) -> None:
    """Refuse envs that would not play each goal once."""
    if envs_per_task > NUM_GOALS:
        raise ConfigurationError(
            f'envs_per_task must be at most {NUM_GOALS} with goals="each-once", one env for each goal, not '
            f"{envs_per_task}."
        )
    if n_envs and (num_tasks % n_envs or terminate_on_success):  # then a task goes from env to env
        raise ConfigurationError(
            'goals="each-once" needs every task to stay with one env: an n_envs that divides the number of tasks, '
            f"{num_tasks}, and no terminate_on_success."
        )


def make_multitask_env(
    tasks: Sequence[TaskSource] | Mapping[str, TaskSource],
    *,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    envs_per_task: int = 1,
    terminate_on_success: bool = False,
    n_envs: int | None = None,
    n_workers: int | None = None,
    restart_failed: bool = False,
) -> MultiTaskVecEnv:
    """Any gymnasium environments as the tasks of one vectorised environment.

    Observations that are not a 1-D Box are flattened, and all are padded with zeros to the widest. Each task is made
    once in this process to learn its spaces. An env of the old gym API becomes a task through Shimmy:
    ``{"old": lambda: shimmy.GymV26CompatibilityV0(env=OldEnv())}`` (``GymV21CompatibilityV0`` for gym before 0.26).

    :param tasks: gymnasium ids, functions ``() -> gym.Env``, or both, named by the id or the function; or a mapping
        from names to those
    :param seed: an env that is reset without a seed gets one at its first reset, its own for each task and copy, that
        depends on this alone; None draws one
    :param max_episode_steps: a horizon for all tasks, in place of the one that an id was registered with; a function's
        env keeps a shorter one of its own. Default: each task's own
    :param envs_per_task: copies of each task
    :param terminate_on_success: end an episode at its first ``info["success"]``
    :param n_envs: fewer envs than tasks, which then take turns; see :class:`.MultiTaskVecEnv`
    :param n_workers: processes that step the envs; default one for each core; 0: everything in this process
    :param restart_failed: build the envs of a worker that fails anew instead of raising
    :return: ``envs_per_task * M`` envs with float32 observations ``[O + M]``; copies of a task stand together
    :raises ConfigurationError: for an unknown id (with the nearest known), a repeated name, tasks of different action
        spaces, or an impossible number
    """
    sources = name_tasks(tasks)
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ConfigurationError(f"max_episode_steps must be at least 1, not {max_episode_steps}.")
    width = common_width(sources)
    return MultiTaskVecEnv(
        [
            partial(
                make_gymnasium_task,
                resolve(source),
                task_id,
                tuple(sources),
                width=width,
                seed=seed,
                max_episode_steps=max_episode_steps,
                terminate_on_success=terminate_on_success,
            )
            for task_id, source in enumerate(sources.values())
        ],
        envs_per_task=envs_per_task,
        n_envs=n_envs,
        n_workers=n_workers,
        restart_failed=restart_failed,
    )
