"""What RL Zoo must know of us before its scripts run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gymnasium as gym

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs.task_sets import TASK_SETS, register
from sb3_softmod.methods import METHODS

try:
    from rl_zoo3.utils import ALGOS
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"This needs packages that are not installed ({error}): pip install 'sb3-softmod[zoo]'"
    ) from error


def register_methods(modules: Sequence[str] = ()) -> None:
    """Make every method of the registry an algorithm of RL Zoo: they differ in their hyperparameters alone.

    :param modules: Python modules to import first, which may add methods to the registry
    :raises ConfigurationError: for a module that there is not
    """
    for module in modules:
        if not all(name.isidentifier() for name in module.split(".")):
            raise ConfigurationError(f"--gym-packages {module!r}: a module has a name such as mine or mine.methods.")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"--gym-packages {module}: {error}") from error
    ALGOS.update(dict.fromkeys(METHODS, MultiTaskSAC))


@contextmanager
def short_env_ids() -> Iterator[None]:
    """Let RL Zoo know the task sets by their names, which are the names of its folders.

    Not for good: elsewhere in the package "MT10" is a set of tasks, not an id of gymnasium.
    """
    for task_set in TASK_SETS.values():
        register(task_set, task_set.name)
    try:
        yield
    finally:
        for name in TASK_SETS:
            del gym.registry[name]
