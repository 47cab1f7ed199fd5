"""Where the task sits in an observation, and how many tasks there are; the only module that knows.

An observation is ``[observation (O) | one-hot task (M)]`` in float32. Nothing here imports torch, so that a worker
process that steps environments stays small; :func:`split` works on arrays and tensors alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from sb3_softmod.checks import require_integer
from sb3_softmod.errors import ConfigurationError, NonFiniteError

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


def make_space(width: int, num_tasks: int) -> spaces.Box:
    """The one observation space of a task set.

    :param width: O, entries of the widest observation
    :param num_tasks: M
    :return: an unbounded float32 box of shape ``(O + M,)``
    """
    return spaces.Box(-np.inf, np.inf, (width + num_tasks,), np.float32)


def append_task(observation: np.ndarray, task_id: int, width: int, num_tasks: int) -> np.ndarray:
    """Zero-pad an observation and append its one-hot task.

    :param observation: ``[<= O]``, of any float type
    :param task_id: from 0 to M - 1
    :param width: O
    :param num_tasks: M
    :return: ``[O + M]`` float32
    """
    out = np.zeros(width + num_tasks, np.float32)
    out[: len(observation)] = observation
    out[width + task_id] = 1.0
    return out


def split(observation: Any, num_tasks: int) -> tuple[Any, Any]:
    """Cut ``[..., O + M]`` into the observation ``[..., O]`` and the task ``[..., M]``; arrays or tensors."""
    return observation[..., :-num_tasks], observation[..., -num_tasks:]


def task_ids(observations: np.ndarray, num_tasks: int) -> np.ndarray:
    """The integer task of each observation.

    :param observations: ``[B, O + M]``
    :param num_tasks: M
    :return: ``[B]`` integers
    :raises ConfigurationError: if the last M entries of a row are not a one-hot task
    """
    one_hot = split(observations, num_tasks)[1]
    ids = one_hot.argmax(-1)
    if not ((one_hot.sum(-1) == 1) & (one_hot.max(-1) == 1)).all():
        row = int(np.flatnonzero((one_hot.sum(-1) != 1) | (one_hot.max(-1) != 1))[0])
        raise ConfigurationError(
            f"The observation of env {row} does not end in a one-hot task of {num_tasks} entries but in "
            f"{np.array2string(one_hot[row], precision=3, threshold=12)}. Wrap each env in sb3_softmod.TaskEnv, and do "
            "not normalise the task (VecNormalize does)."
        )
    return ids


def check_space(space: spaces.Space, num_tasks: int) -> None:
    """Refuse an observation space that cannot hold M tasks.

    :raises ConfigurationError: naming the space and M
    """
    require_integer("num_tasks", num_tasks, 1)
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.shape[0] <= num_tasks:
        raise ConfigurationError(
            f"The observation space {space} cannot be an observation followed by a one-hot task of {num_tasks} "
            f"entries: a flat Box with more than {num_tasks} entries is needed (see sb3_softmod.TaskEnv)."
        )


def num_tasks_of(env: VecEnv) -> int:
    """M, as the envs themselves say.

    :param env: a VecEnv whose envs have ``num_tasks``, ``task_names`` and ``task_id``, as :class:`.TaskEnv` does
    :raises ConfigurationError: if they have none, disagree, or differ in their action spaces
    """
    said = {}
    for attribute in ("num_tasks", "task_names", "task_id"):
        try:
            said[attribute] = env.get_attr(attribute)
        except AttributeError as error:
            raise ConfigurationError(
                f"The environment has no tasks: it lacks the attribute {attribute!r}. Make it with "
                "make_metaworld_env(...) or make_multitask_env(...), or wrap each env in sb3_softmod.TaskEnv."
            ) from error
    found = said["num_tasks"]
    if len(set(found)) != 1:
        raise ConfigurationError(f"The envs disagree on the number of tasks: {sorted(set(found))}.")
    names, ids = said["task_names"][0], said["task_id"]
    for attribute in ("action_space", "observation_space"):
        check_common(attribute, [names[task] for task in ids], env.get_attr(attribute))
    return int(found[0])


def check_common(attribute: str, names: Sequence[str | int], values: Sequence[Any]) -> None:
    """Refuse tasks that differ in a space.

    :param attribute: "action_space" or "observation_space"
    :param names: the task of each value
    :param values: the spaces
    :raises ConfigurationError: naming the first two tasks that differ
    """
    what = attribute.replace("_", " ")
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise ConfigurationError(
                f"The tasks {names[0]!r} and {name!r} differ in their {what}: {values[0]} and {value}. One policy "
                f"needs one {what} for all tasks."
            )


def tasks_in_turn(env: VecEnv, num_tasks: int) -> np.ndarray:
    """Which tasks the envs play, now or in a later episode.

    :param env: whose envs list them as ``tasks_in_turn``, as :class:`.TaskEnv` does; without, those that they play now
    :param num_tasks: M
    :return: ``[M]`` booleans
    """
    if env.has_attr("tasks_in_turn"):
        ids = [task for tasks in env.get_attr("tasks_in_turn") for task in tasks]
    else:
        ids = env.get_attr("task_id")
    return np.isin(range(num_tasks), ids)


def task_names_of(env: VecEnv) -> list[str]:
    """The names of all tasks, by task id."""
    return list(env.get_attr("task_names")[0])


def resolve_tasks(env: VecEnv | None, by_hand: set[int], known: list[str]) -> tuple[int, list[str]]:
    """The tasks of a model.

    :param env: what it learns in, if there is one
    :param by_hand: numbers of tasks that the user passed
    :param known: the names of its tasks so far; a warning where the env has others
    :return: M, and the names of all tasks
    :raises ConfigurationError: if the number is contradictory or unknown
    """
    if env is not None:
        found = num_tasks_of(env)
        for wrong in by_hand - {found}:
            raise ConfigurationError(f"The env has {found} tasks, but the model {wrong}.")
        names = task_names_of(env)
        if known and names != known:
            warnings.warn(f"The model knows the tasks {known}, in this order; the env has {names}.", stacklevel=5)
        return found, names
    if len(by_hand) != 1:
        raise ConfigurationError(f"The number of tasks is {'contradictory' if by_hand else 'unknown'}: pass an env.")
    (num_tasks,) = by_hand
    return num_tasks, known or [f"task-{i}" for i in range(num_tasks)]


def check_finite(what: str, values: np.ndarray, ids: np.ndarray, names: list[str], step: int) -> None:
    """Refuse NaN and infinity in what the envs sent.

    :param what: "observation" or "reward"
    :param values: ``[n_envs, ...]``
    :param ids: ``[n_envs]``, the task of each env
    :param names: the names of all tasks
    :param step: environment steps so far
    :raises NonFiniteError: naming the task, the env and the step
    """
    if np.isfinite(values).all():
        return
    env = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0])
    raise NonFiniteError(
        f"The {what} of task {names[ids[env]]!r} (env {env}) holds NaN or infinity at environment step {step}: "
        f"{np.array2string(values[env], precision=4, threshold=12)}. Nothing of this step was learned from; look at "
        "that task's reward and simulation."
    )


def check_transition(
    obs: np.ndarray,
    new_obs: np.ndarray,
    reward: np.ndarray,
    dones: np.ndarray,
    infos: Sequence[dict[str, Any]],
    names: list[str],
    step: int,
) -> None:
    """Refuse NaN and infinity in one step of the envs.

    :param obs: ``[n_envs, O + M]``, before the step
    :param new_obs: ``[n_envs, O + M]``, after it; an env may have gone on to another task
    :param reward: ``[n_envs]``
    :param dones: ``[n_envs]``
    :param infos: of each env, with the last observation of an episode that ended
    :param names: the names of all tasks
    :param step: environment steps so far
    :raises NonFiniteError: naming the task, the env and the step
    """
    ids = task_ids(obs, len(names))
    ends = [info["terminal_observation"] for info, done in zip(infos, dones, strict=True) if done]
    check_finite("reward", reward, ids, names, step)
    check_finite("observation", new_obs, task_ids(new_obs, len(names)), names, step)
    check_finite("last observation", np.array(ends), ids[dones.astype(bool)], names, step)
