"""Where the task sits in an observation, and how many tasks there are.

An observation is ``[observation (O) | one-hot task (M)]`` in float32. Nothing here imports torch, so that a worker
process that steps environments stays small; :func:`split` works on arrays and tensors alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from sb3_softmod.common.checks import require_choice, require_integer
from sb3_softmod.common.errors import ConfigurationError, NonFiniteError

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


def make_space(width: int, num_tasks: int) -> spaces.Box:
    """The one observation space of a task set.

    :param width: O, entries of the widest observation
    :param num_tasks: M
    :return: an unbounded float32 box of shape ``(O + M,)``
    """
    return spaces.Box(-np.inf, np.inf, (width + num_tasks,), np.float32)


def require_shape(observation: Any, shape: tuple[int, ...], whose: str) -> None:
    """Refuse an observation of another shape than its space declares.

    :param whose: the task, and the env where that is known
    :raises ConfigurationError: naming both shapes
    """
    try:
        found: object = np.shape(observation)
    except ValueError:
        found = "(lists that differ in length)"
    if found != shape:
        kind = "" if isinstance(observation, np.ndarray) else f" (a {type(observation).__name__})"
        raise ConfigurationError(
            f"The observation of {whose} has the shape {found}{kind}, but the observation space declares {shape}. "
            "Correct the observation_space of that env, or what it sends."
        )


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


def task_ids(observations: np.ndarray, num_tasks: int, row_of: str = "env") -> np.ndarray:
    """The integer task of each observation.

    :param observations: ``[B, O + M]``
    :param num_tasks: M
    :param row_of: what a row is numbered by, if the rows are not those of all envs
    :return: ``[B]`` integers
    :raises ConfigurationError: if the last M entries of a row are not a one-hot task
    """
    one_hot = split(observations, num_tasks)[1]
    ids = one_hot.argmax(-1)
    if not ((one_hot.sum(-1) == 1) & (one_hot.max(-1) == 1)).all():
        row = int(np.flatnonzero((one_hot.sum(-1) != 1) | (one_hot.max(-1) != 1))[0])
        raise ConfigurationError(
            f"The observation of {row_of} {row} does not end in a one-hot task of {num_tasks} entries but in "
            f"{np.array2string(one_hot[row], precision=3, threshold=12)}. Wrap each env in sb3_softmod.TaskEnv, and do "
            "not normalise the task (VecNormalize does)."
        )
    return ids


def one_hot_tasks(task: Any, names: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """Tasks as observations have them.

    :param task: the name of a task, or one for each row; or such rows already, or one for all of them
    :param names: of all M tasks, by task id
    :param shape: ``()`` for one observation, ``(B,)`` for a batch
    :return: ``[*shape, M]`` float32; the rows are not tested to be tasks
    :raises ConfigurationError: for an unknown name, or another number of rows
    """
    given = np.asarray(task)
    if given.dtype.kind in "US":
        for name in given.ravel().tolist():
            require_choice("task", name, names)
        ids = np.reshape([list(names).index(name) for name in given.ravel().tolist()], given.shape)
        given = np.eye(len(names), dtype=np.float32)[ids.astype(int)]
    if given.dtype.kind not in "fiub" or given.shape not in ((len(names),), (*shape, len(names))):
        rows = f" or {shape[0]} of them" if shape else ""
        raise ConfigurationError(
            f"A task is a name{rows}, or an array {(len(names),)}{f' or {(*shape, len(names))}' if shape else ''}, "
            f"not {task!r}."
        )
    return np.broadcast_to(given.astype(np.float32), (*shape, len(names)))


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


def check_task_names(names: Iterable[object]) -> None:
    """Refuse names that would break a line or a column of a log file: SB3's CSV does not quote its header.

    :raises ConfigurationError: naming the task
    """
    for name in names:
        if isinstance(name, str) and (not name.isprintable() or not name or set(name) & set(',"')):
            raise ConfigurationError(
                f"The task name {name!r} cannot head a column of a log file: leave out commas, double quotes and line "
                "breaks, as in 'swing-up'."
            )


def num_tasks_of(env: VecEnv) -> int:
    """M, as the envs themselves say.

    :param env: a VecEnv whose envs have ``num_tasks``, ``task_names`` and ``task_id``, as :class:`.TaskEnv` does
    :raises ConfigurationError: if they have none, disagree, or differ in their spaces
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


def turns_of(env: VecEnv) -> list[Sequence[int]]:
    """The tasks that each env plays, now or in a later episode.

    :param env: whose envs list them as ``tasks_in_turn``, as :class:`.TaskEnv` does; without, those that they play now
    """
    if env.has_attr("tasks_in_turn"):
        return env.get_attr("tasks_in_turn")
    return [(task,) for task in env.get_attr("task_id")]


def tasks_in_turn(env: VecEnv, num_tasks: int) -> np.ndarray:
    """Which tasks the envs play, now or in a later episode.

    :param env: see :func:`turns_of`
    :param num_tasks: M
    :return: ``[M]`` booleans
    """
    return np.isin(range(num_tasks), [task for tasks in turns_of(env) for task in tasks])


def task_names_of(env: VecEnv) -> list[str]:
    """The names of all tasks, by task id."""
    return list(env.get_attr("task_names")[0])


def resolve_tasks(env: VecEnv | None, by_hand: set[int], known: list[str]) -> tuple[int, list[str]]:
    """The tasks of a model.

    :param env: what it learns in, if there is one
    :param by_hand: numbers of tasks that the user passed
    :param known: the names of its tasks so far; a warning where the env has others
    :return: M, and the names of all tasks
    :raises ConfigurationError: if the number is contradictory or unknown, or the tasks are in another order
    """
    if env is not None:
        found = num_tasks_of(env)
        for wrong in by_hand - {found}:
            raise ConfigurationError(f"The env has {found} tasks, but the model {wrong}.")
        names = task_names_of(env)
        check_task_names(names)
        check_order(names, known)
        if known and names != known:
            warnings.warn(f"The model knows the tasks {known}, in this order; the env has {names}.", stacklevel=5)
        return found, names
    if len(by_hand) != 1:
        raise ConfigurationError(f"The number of tasks is {'contradictory' if by_hand else 'unknown'}: pass an env.")
    (num_tasks,) = by_hand
    return num_tasks, known or [f"task-{i}" for i in range(num_tasks)]


def check_order(names: list[str], known: list[str]) -> None:
    """Refuse the tasks of a model in another order.

    :param names: of the tasks of an env
    :param known: of those of the model
    :raises ConfigurationError: saying in which order
    """
    if names != known and set(names) == set(known):
        raise ConfigurationError(
            f"The model knows the tasks in another order than the env has them: pass {', '.join(known)}, in this "
            f"order, not {', '.join(names)}."
        )


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
    """Refuse NaN, infinity and other shapes than before in one step of the envs.

    :param obs: ``[n_envs, O + M]``, before the step
    :param new_obs: ``[n_envs, O + M]``, after it; an env may have gone on to another task
    :param reward: ``[n_envs]``
    :param dones: ``[n_envs]``
    :param infos: of each env, with the last observation of an episode that ended
    :param names: the names of all tasks
    :param step: environment steps so far
    :raises NonFiniteError: naming the task, the env and the step
    :raises ConfigurationError: for an observation of another shape
    """
    ids = task_ids(obs, len(names))
    check_finite("reward", reward, ids, names, step)
    if new_obs.shape != obs.shape:
        require_shape(new_obs, obs.shape, f"all {len(obs)} envs")
    check_finite("observation", new_obs, task_ids(new_obs, len(names)), names, step)
    if dones.any():
        last = new_obs.copy()
        for env in np.flatnonzero(dones).tolist():
            end = infos[env]["terminal_observation"]
            require_shape(end, obs.shape[1:], f"task {names[ids[env]]!r} (env {env}) at the end of its episode")
            last[env] = end
        check_finite("last observation", last, ids, names, step)
