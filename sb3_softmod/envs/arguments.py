"""What a :class:`.MultiTaskVecEnv` refuses before it does anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sb3_softmod.errors import ConfigurationError, NonFiniteError


def number_of_envs(num_tasks: int, envs_per_task: int, n_envs: int | None) -> int:
    """How many envs a user asks for.

    :param n_envs: None for ``envs_per_task`` of each
    :raises ConfigurationError: for impossible numbers
    """
    if num_tasks < 1:
        raise ConfigurationError("The list of tasks is empty.")
    if envs_per_task < 1:
        raise ConfigurationError(f"envs_per_task must be at least 1, not {envs_per_task}.")
    if n_envs is None:
        return num_tasks * envs_per_task
    if envs_per_task > 1 or not 1 <= n_envs <= num_tasks:
        raise ConfigurationError(
            f"n_envs must be from 1 to the number of tasks, {num_tasks}, not {n_envs}; for more envs use envs_per_task "
            "instead."
        )
    return n_envs


def check_actions(actions: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, name: Callable[[int], object]) -> None:
    """Refuse what is no action for each env.

    :param shape: ``[n_envs, *action shape]``
    :param name: of the task that an env plays
    :raises ConfigurationError: for another shape, or numbers that are no actions
    :raises NonFiniteError: for NaN or infinity
    """
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
