"""What a :class:`.MultiTaskVecEnv` refuses before it does anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sb3_softmod.common.checks import require_choice, require_integer
from sb3_softmod.common.errors import ConfigurationError, NonFiniteError

#: Of one task. Each is a simulator: a slip of the keyboard must not fill the memory.
MOST_ENVS = 1000


def as_names(tasks: object, kind: str, known: Iterable[str]) -> tuple[str, ...]:
    """The names of tasks that a user passed, one or a list.

    :param kind: of the tasks, for errors
    :param known: all names of that kind
    :raises ConfigurationError: for something else, or an unknown or repeated name, with the nearest known ones
    """
    if not isinstance(tasks, Sequence):
        raise ConfigurationError(f"tasks must be a name or a list of names, not {tasks!r}.")
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise ConfigurationError("The list of tasks is empty.")
    for name in names:
        require_choice(kind, name, known)
        if names.count(name) > 1:
            raise ConfigurationError(
                f"The task {name!r} is listed {names.count(name)} times: use envs_per_task instead."
            )
    return names


def check_copies(envs_per_task: object) -> None:
    """:raises ConfigurationError: for a number of envs of one task that there cannot be"""
    require_integer("envs_per_task", envs_per_task, 1)
    require_integer("envs_per_task", envs_per_task, 1, MOST_ENVS)


def number_of_envs(num_tasks: int, envs_per_task: int, n_envs: int | None) -> int:
    """How many envs a user asks for.

    :param n_envs: None for ``envs_per_task`` of each
    :raises ConfigurationError: for impossible numbers
    """
    if num_tasks < 1:
        raise ConfigurationError("The list of tasks is empty.")
    check_copies(envs_per_task)
    if n_envs is None:
        return num_tasks * envs_per_task
    require_integer("n_envs", n_envs)
    if envs_per_task > 1 or not 1 <= n_envs <= num_tasks:
        raise ConfigurationError(
            f"n_envs must be from 1 to the number of tasks, {num_tasks}, not {n_envs}; for more envs use envs_per_task "
            "instead."
        )
    return n_envs


def check_makers(task_makers: object) -> None:
    """Refuse what is no list of functions that make an env.

    :raises ConfigurationError: naming what is none
    """
    if not isinstance(task_makers, Sequence) or isinstance(task_makers, str):
        raise ConfigurationError(f"task_makers must be a list of functions, not {task_makers!r}.")
    for maker in task_makers:
        if not callable(maker):
            raise ConfigurationError(f"A task maker must be a function, make(copy) -> TaskEnv, not {maker!r}.")


def as_actions(actions: Any, shape: tuple[int, ...], dtype: np.dtype, name: Callable[[int], object]) -> np.ndarray:
    """An array with an action for each env; refuses what is none.

    :param shape: ``[n_envs, *action shape]``
    :param name: of the task that an env plays
    :raises ConfigurationError: for another shape, or numbers that are no actions
    :raises NonFiniteError: for NaN or infinity
    """
    try:
        actions = np.asarray(actions)
    except ValueError as error:  # of lists that differ in length
        raise ConfigurationError(f"A step needs actions {shape} of {dtype}, a row for each env: {error}") from error
    if actions.shape != shape or not np.can_cast(actions.dtype, dtype, "same_kind"):
        raise ConfigurationError(
            f"A step needs actions {shape} of {dtype}, a row for each env, not {actions.shape} of {actions.dtype}."
        )
    finite = np.isfinite(actions).reshape(len(actions), -1).all(1)
    if not finite.all():
        env = int(np.flatnonzero(~finite)[0])
        raise NonFiniteError(
            f"The action for env {env} (task {name(env)!r}) holds NaN or infinity: "
            f"{np.array2string(actions[env], precision=4, threshold=12)}."
        )
    return actions
