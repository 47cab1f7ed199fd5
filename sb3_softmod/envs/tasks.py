"""One task of a set, in the form that every part of the package reads."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_softmod.common.checks import require_flag, require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import append_task, check_task_names, make_space, require_shape


def seed_or_drawn(seed: int | None) -> int:
    """The seed that a user gives envs, or one that is drawn."""
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed


def success_of(info: Mapping[str, Any], task: str | int) -> bool | None:
    """Whether a task succeeded at a step.

    :param info: of that step, as the task gives it: ``success``, or else ``is_success`` (gymnasium-robotics, panda-gym,
        SB3)
    :param task: for the error
    :return: None if it reports neither
    :raises ConfigurationError: for what is neither a boolean nor a number, such as the text ``"False"``
    """
    found = info.get("success")
    if found is None:
        found = info.get("is_success")
    if found is None or isinstance(found, bool):
        return found
    value = np.asarray(found)
    if value.size != 1 or value.dtype.kind not in "biuf" or value != value:
        raise ConfigurationError(
            f"The task {task!r} reports {found!r} as its success: info['success'] (or info['is_success']) must be a "
            "boolean or a number."
        )
    return bool(value)


def _as_names(names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"task_names must be a list of names, not {names!r}.")
    if len(set(names)) < len(names):
        raise ConfigurationError(f"task_names holds a name twice: {list(names)}.")
    check_task_names(names)
    return tuple(names)


class TaskEnv(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Makes any env with flat observations one task of a multi-task set.

    Observations become ``[observation | zeros up to O | one-hot task (M)]`` in float32. Every ``info`` gains
    ``task_id`` and ``task_name``. At the end of an episode ``info["episode"]`` holds its return ``r``, length ``l``
    and time ``t`` (seconds since the env was made).

    An env reports whether it succeeds at a step as ``info["success"]``, or else as ``info["is_success"]``; here it is
    ``success``. At the end of an episode ``is_success`` says whether it succeeded at any of its steps (the field's
    convention), ``is_success_at_end`` at its last. A step that reports nothing after one that does is no success; an
    episode that reports nothing has none of these.

    :param env: the env to wrap, with a 1-D Box observation
    :param task_id: this task's index in ``task_names``
    :param task_names: the names of all tasks of the set
    :param width: O, at least the width of this env's observation; default is that width
    :param terminate_on_success: end the episode at its first success; warns where an episode ends without a report
    :raises ConfigurationError: for an observation that is no 1-D Box, or wider than ``width``; by ``reset`` and
        ``step`` for one of another shape than the space of ``env`` declares
    """

    #: Whether ``info["episode"]`` is reported; gymnasium's RecordEpisodeStatistics takes no second report.
    reports_episodes = True

    def __init__(
        self,
        env: gym.Env[np.ndarray, np.ndarray],
        task_id: int,
        task_names: Sequence[str],
        *,
        width: int | None = None,
        terminate_on_success: bool = False,
    ) -> None:
        if not isinstance(env, gym.Env):
            raise ConfigurationError(f"TaskEnv wraps a gymnasium.Env, not {env!r}.")
        super().__init__(env)
        self.task_id = task_id
        self.task_names = _as_names(task_names)
        require_integer("task_id", task_id, 0)
        if not task_id < len(self.task_names):
            raise ConfigurationError(f"task_id {task_id} is not an index of the {len(self.task_names)} task names.")
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigurationError(
                f"The observation of task {self.task_name!r} must be a 1-D Box, not {space}: flatten it first "
                "(gymnasium.wrappers.FlattenObservation)."
            )
        self._width = space.shape[0] if width is None else width
        require_integer("width", self._width, 1)
        require_flag("terminate_on_success", terminate_on_success)
        if space.shape[0] > self._width:
            raise ConfigurationError(
                f"The observation of task {self.task_name!r} has {space.shape[0]} entries, more than width={width}."
            )
        self._shape = space.shape
        self.observation_space = make_space(self._width, self.num_tasks)
        #: What an env must have in common with one that it goes on for; of the ``seed`` it takes over that one's.
        self.settings: dict[str, Any] = {"terminate_on_success": terminate_on_success}
        self._terminate_on_success = terminate_on_success
        self._made_at = time.perf_counter()
        self._begin_episode()

    @property
    def num_tasks(self) -> int:
        """M, the number of tasks of the set."""
        return len(self.task_names)

    @property
    def tasks_in_turn(self) -> tuple[int, ...]:
        """The tasks that this env plays in its episodes; an env that goes on to other tasks lists all of them."""
        return (self.task_id,)

    @property
    def task_name(self) -> str:
        """The name of this task."""
        return self.task_names[self.task_id]

    @property
    def simulator(self) -> tuple[int, int]:
        """Which env is wrapped here, among those of all processes."""
        return os.getpid(), id(self.unwrapped)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; arguments as in gymnasium."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._begin_episode()
        return self._canonical(observation), self._described(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; see the class for what ``info`` holds."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = self._described(info)
        self._return += float(reward)
        self._length += 1
        success = success_of(info, self.task_name)
        info.pop("is_success", None)  # here the word is for whole episodes
        self._reported |= success is not None
        if self._reported:
            info["success"] = bool(success)
            self._succeeded |= info["success"]
            terminated = terminated or (self._terminate_on_success and info["success"])
        if terminated or truncated:
            if self.reports_episodes:
                info["episode"] = {
                    "r": self._return,
                    "l": self._length,
                    "t": round(time.perf_counter() - self._made_at, 6),
                }
            if self._reported:
                info["is_success"] = self._succeeded
                info["is_success_at_end"] = info["success"]
            elif self._terminate_on_success:
                warnings.warn(
                    f"terminate_on_success has no success to act on: an episode of the task {self.task_name!r} ended, "
                    "and its infos held neither 'success' nor 'is_success'.",
                    stacklevel=2,
                )
        return self._canonical(observation), float(reward), bool(terminated), bool(truncated), info

    def _begin_episode(self) -> None:
        self._return = 0.0
        self._length = 0
        self._succeeded = False
        self._reported = False  # whether the env said anything of success

    def _canonical(self, observation: np.ndarray) -> np.ndarray:
        # It would be padded, or written into the task.
        if getattr(observation, "shape", None) != self._shape:
            require_shape(observation, self._shape, f"task {self.task_name!r}")
        return append_task(observation, self.task_id, self._width, self.num_tasks)

    def _described(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "task_id": self.task_id, "task_name": self.task_name}
