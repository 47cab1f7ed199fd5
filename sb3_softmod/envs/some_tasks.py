"""Envs of some of a policy's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import make_space, num_tasks_of, split, task_names_of
from sb3_softmod.envs.progress import progress_of, set_progress_of


class SomeTasks(VecEnvWrapper):
    """Lets envs of K tasks name these among all M tasks of a policy, in observations and infos.

    :param venv: whose tasks are some of these, in any order
    :param task_names: of all M tasks
    :raises ConfigurationError: for a task that is none of them, or an env that normalises its observations by itself
    """

    def __init__(self, venv: VecEnv, task_names: Sequence[str]) -> None:
        own = task_names_of(venv)
        unknown = [name for name in own if name not in task_names]
        if unknown:
            raise ConfigurationError(f"The task {unknown[0]!r} is none of {', '.join(task_names)}.")
        if unwrap_vec_normalize(venv) is not None:
            raise ConfigurationError(
                f"An env of some of the tasks {', '.join(task_names)} must not be normalised by itself: leave out its "
                f"{type(unwrap_vec_normalize(venv)).__name__}; the statistics of the model go around it."
            )
        self._num_own = num_tasks_of(venv)
        self.task_names = list(task_names)
        self.num_tasks = len(self.task_names)
        self._ids = np.array([self.task_names.index(name) for name in own])  # of the env's tasks among all
        self._width = venv.observation_space.shape[0] - self._num_own  # type: ignore[index]
        super().__init__(venv, observation_space=make_space(self._width, self.num_tasks))

    def __deepcopy__(self, memo: dict[int, Any]) -> SomeTasks:
        return SomeTasks(deepcopy(self.venv, memo), self.task_names)

    def reset(self) -> np.ndarray:
        """Reset the envs."""
        return self._among_all(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Step the envs."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "task_id" in info:
                info["task_id"] = int(self._ids[info["task_id"]])
            if "terminal_observation" in info:
                info["terminal_observation"] = self._among_all(info["terminal_observation"])
        return self._among_all(observations), rewards, dones, infos

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """As in SB3; of the tasks, among all of them."""
        found = self.venv.get_attr(attr_name, indices)
        if attr_name == "task_id":
            return [int(self._ids[task]) for task in found]
        if attr_name == "tasks_in_turn":
            return [tuple(int(self._ids[task]) for task in tasks) for tasks in found]
        if attr_name in ("num_tasks", "task_names"):
            return [getattr(self, attr_name)] * len(found)
        return found

    def progress(self) -> dict[str, Any]:
        """That of the envs."""
        return {"of_some_tasks": progress_of(self.venv)}

    def set_progress(self, progress: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`.MultiTaskVecEnv.set_progress`."""
        if "of_some_tasks" not in progress:
            raise ConfigurationError("The progress is of envs of all tasks, but these are of some of them.")
        observations, strayed = set_progress_of(self.venv, progress["of_some_tasks"])
        return self._among_all(observations), strayed

    def _among_all(self, observations: Any) -> np.ndarray:
        """``[..., O + K]`` to ``[..., O + M]``."""
        states, task = split(np.asarray(observations), self._num_own)
        out = np.zeros((*states.shape[:-1], self._width + self.num_tasks), np.float32)
        out[..., : self._width] = states
        out[..., self._width + self._ids] = task
        return out


def among(env: VecEnv, task_names: Any) -> VecEnv:
    """An env of the last of some tasks as one of all of them, as a model learns in that was adapted to these; another
    env as it is.

    :param task_names: of all tasks, as far as a file tells
    :raises ConfigurationError: for an env without tasks
    """
    num_tasks = num_tasks_of(env)
    if not isinstance(task_names, list) or len(task_names) <= num_tasks:
        return env
    return SomeTasks(env, task_names) if task_names_of(env) == task_names[-num_tasks:] else env
