"""Multi-task environments for SB3 in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common.base_class import maybe_make_env

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs import dm_control, gymnasium_tasks, metaworld
from sb3_softmod.envs.gymnasium_tasks import TaskSource
from sb3_softmod.envs.gymnasium_vector import GymnasiumVecEnv
from sb3_softmod.envs.metaworld import NUM_GOALS, Goals, RenderMode
from sb3_softmod.envs.registered import task_names
from sb3_softmod.envs.task_sets import DM_CONTROL_HORIZON, METAWORLD_HORIZON, NAMESPACE, TASK_SETS, TaskSet
from sb3_softmod.envs.vec_env import MultiTaskVecEnv
from sb3_softmod.envs.worker import Env, TaskMaker

#: Wraps an env that is a task already.
Wrapper = Callable[[Env], gym.Env]


def make_metaworld_env(
    tasks: str | Sequence[str],
    *,
    goals: Goals | None = None,
    seed: int | None = None,
    max_episode_steps: int = METAWORLD_HORIZON,
    reward_version: Literal["v1", "v2"] = "v2",
    envs_per_task: int = 1,
    terminate_on_success: bool = False,
    render_mode: RenderMode | None = None,
    camera_name: str = "corner2",
    wrapper: Wrapper | None = None,
    n_envs: int | None = None,
    n_workers: int | None = None,
    restart_failed: bool = False,
) -> MultiTaskVecEnv:
    """Meta-World tasks as one vectorised environment, task by task.

    :param tasks: a task set ("MT3", "MT10", "MT25", "MT50"; "MT10-Fixed" and "MT10-Conditioned" name its goals too;
        Meta-World's splits "ML10-train", "ML10-test", "ML45-train", "ML45-test"), a task ("reach-v3"), or a list of
        tasks
    :param goals: default those that the name of the set says, else "random". "random": each episode draws one of the
        benchmark's 50 goals of its task (the paper's "Conditioned"); "fixed": one goal a task, the same every episode;
        "each-once" (for evaluation): the 50 in turn, in an order that depends on ``seed`` alone. k copies of a task
        share them: together their first episodes have each goal once, 50 // k or 50 // k + 1 a copy, as
        :func:`.evaluate_tasks` with 50 episodes plays them, and then each copy begins its share again.
    :param seed: of the goals and their order; different tasks and copies get different sequences. None draws one.
    :param max_episode_steps: the horizon, 200 in the paper, at most 500; an episode that ends there is truncated
    :param reward_version: Meta-World's reward functions, "v1" or "v2"
    :param envs_per_task: copies of each task
    :param terminate_on_success: end an episode at its first success
    :param render_mode: as in gymnasium ("rgb_array" for pictures)
    :param camera_name: Meta-World's camera for rendering
    :param wrapper: wraps each env, ``env -> env``; it must leave the one-hot task at the end of the observation
    :param n_envs: fewer envs than tasks, which then take turns; see :class:`.MultiTaskVecEnv`
    :param n_workers: processes that step the envs; 0: everything in this process. Default one for each core, but none
        in a daemonic process, such as those of a ``multiprocessing.Pool``.
    :param restart_failed: build the envs of a worker that fails anew instead of raising
    :return: ``envs_per_task * M`` envs with float32 observations ``[39 + M]``; copies of a task stand together
    :raises ConfigurationError: for an unknown name (with the nearest known) or an impossible number
    """
    if goals is None:
        named = TASK_SETS.get(tasks) if isinstance(tasks, str) else None
        goals = "random" if named is None else named.options.get("goals", "random")
    makers = metaworld.make_task_makers(
        tasks,
        goals=goals,
        seed=seed,
        max_episode_steps=max_episode_steps,
        reward_version=reward_version,
        terminate_on_success=terminate_on_success,
        render_mode=render_mode,
        camera_name=camera_name,
        copies=envs_per_task,
    )
    if goals == "each-once":
        _check_each_once(len(makers), envs_per_task, n_envs, terminate_on_success)
    return _vec_env(
        makers, wrapper, envs_per_task=envs_per_task, n_envs=n_envs, n_workers=n_workers, restart_failed=restart_failed
    )


def _check_each_once(num_tasks: int, envs_per_task: int, n_envs: int | None, terminate_on_success: bool) -> None:
    """Refuse envs that would not play each goal once."""
    if envs_per_task > NUM_GOALS:
        raise ConfigurationError(
            f'envs_per_task must be at most {NUM_GOALS} with goals="each-once", one env for each goal, not '
            f"{envs_per_task}."
        )
    if n_envs is not None:
        require_integer("n_envs", n_envs, 1)
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
    wrapper: Wrapper | None = None,
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
    :param terminate_on_success: end an episode at its first ``info["success"]`` or, without that,
        ``info["is_success"]``; warns where an episode of a task ends without either
    :param wrapper: this and all that follow: as in :func:`make_metaworld_env`
    :return: ``envs_per_task * M`` envs with float32 observations ``[O + M]``; copies of a task stand together
    :raises ConfigurationError: for an unknown id (with the nearest known), a repeated name, tasks of different action
        spaces, or an impossible number
    """
    makers = gymnasium_tasks.make_task_makers(
        tasks, seed=seed, max_episode_steps=max_episode_steps, terminate_on_success=terminate_on_success
    )
    return _vec_env(
        makers, wrapper, envs_per_task=envs_per_task, n_envs=n_envs, n_workers=n_workers, restart_failed=restart_failed
    )


def make_dm_control_env(
    tasks: str | Sequence[str],
    *,
    seed: int | None = None,
    max_episode_steps: int = DM_CONTROL_HORIZON,
    envs_per_task: int = 1,
    render_mode: str | None = None,
    wrapper: Wrapper | None = None,
    n_envs: int | None = None,
    n_workers: int | None = None,
    restart_failed: bool = False,
) -> MultiTaskVecEnv:
    """Tasks of dm_control's suite as one vectorised environment; needs the extra ``dm-control``.

    Observations are flattened and, where the tasks differ, padded. dm_control reports no success.

    :param tasks: ``domain-task``, for instance "walker-walk"
    :param seed: as in :func:`make_multitask_env`
    :param max_episode_steps: the horizon, at most dm_control's own of 1000; an episode that ends there is truncated
    :param envs_per_task: copies of each task
    :param render_mode: this and all that follow: as in :func:`make_metaworld_env`
    :return: ``envs_per_task * M`` envs with float32 observations ``[O + M]``; copies of a task stand together
    :raises ConfigurationError: for an unknown name (with the nearest known), tasks of different action spaces, or if
        dm_control or Shimmy is not installed
    """
    makers = dm_control.make_task_makers(
        tasks, seed=seed, max_episode_steps=max_episode_steps, render_mode=render_mode, copies=envs_per_task
    )
    return _vec_env(
        makers, wrapper, envs_per_task=envs_per_task, n_envs=n_envs, n_workers=n_workers, restart_failed=restart_failed
    )


def make_task_set_env(task_set: TaskSet, n_envs: int, *, options: Mapping[str, Any], **kwargs: Any) -> MultiTaskVecEnv:
    """The envs of a named task set.

    :param n_envs: a multiple of the number of tasks, or fewer than that, which then take turns
    :param options: of the envs, see :meth:`.TaskSet.arguments`
    :param kwargs: ``wrapper``, ``n_workers`` and ``restart_failed`` of :func:`make_metaworld_env`
    :raises ConfigurationError: for another number of envs, or as that function
    """
    num_tasks = len(task_names(task_set))
    require_integer("n_envs", n_envs, 1)
    if n_envs > num_tasks and n_envs % num_tasks:
        raise ConfigurationError(
            f"n_envs must be at most the number of tasks of {task_set.name}, {num_tasks}, or a multiple of it, not "
            f"{n_envs}."
        )
    make = make_metaworld_env if task_set.suite == "metaworld" else make_dm_control_env
    return make(
        task_set.tasks,
        n_envs=n_envs if n_envs < num_tasks else None,
        envs_per_task=max(n_envs // num_tasks, 1),
        **task_set.arguments(options),
        **kwargs,
    )


def as_env(env: Any, seed: int | None) -> Any:
    """What an algorithm learns in, of what a user passed for it.

    :param env: an env, or a vector env of gymnasium; the name of a task or set, see :data:`.TASK_SETS`, or a list of
        Meta-World's tasks, made with ``seed``; an id of gymnasium, with it if the id is of a task set; or None
    :raises ConfigurationError: for something else, or an unknown name
    """
    if isinstance(env, gym.vector.VectorEnv):
        return GymnasiumVecEnv(env)
    if isinstance(env, (list, tuple)) and env and all(isinstance(name, str) for name in env):
        return make_metaworld_env(env, seed=seed)
    if not isinstance(env, str):
        if env is not None and not all(hasattr(env, name) for name in ("reset", "step", "action_space")):
            raise ConfigurationError(f"env must be an environment or the name of one, not {env!r}.")
        return env
    if env in TASK_SETS and TASK_SETS[env].suite != "metaworld":
        task_set = TASK_SETS[env]
        return make_task_set_env(task_set, len(task_names(task_set)), options={"seed": seed})
    if env not in gym.registry and ":" not in env:
        return make_metaworld_env(env, seed=seed)
    try:
        if env.rpartition(":")[2].startswith(f"{NAMESPACE}/"):
            return gym.make(env, render_mode="rgb_array", seed=seed)
        return maybe_make_env(env, 0)
    except Exception as error:  # whatever the function behind an id raises
        own = (
            "; Meta-World's tasks and sets go by their own names here, such as 'reach-v3' and 'MT10'"
            if env.startswith("Meta-World/")
            else ""
        )
        raise ConfigurationError(
            f"gymnasium cannot make {env!r} by its name alone{own}: {type(error).__name__}: {error}"
        ) from error


def _vec_env(makers: Sequence[TaskMaker], wrapper: Wrapper | None, **options: Any) -> MultiTaskVecEnv:
    if wrapper is not None and not callable(wrapper):
        raise ConfigurationError(f"wrapper must be a function, env -> env, not {wrapper!r}.")
    if wrapper is not None:
        makers = [partial(_make_wrapped, maker, wrapper) for maker in makers]
    return MultiTaskVecEnv(makers, **options)


def _make_wrapped(maker: TaskMaker, wrapper: Wrapper, copy: int, **seed: int) -> Env:
    return wrapper(maker(copy, **seed))
