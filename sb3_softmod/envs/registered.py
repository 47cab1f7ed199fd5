"""What ``gymnasium.make`` and ``gymnasium.make_vec`` make of a task set. Nothing here imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sb3_softmod.common.errors import ConfigurationError, nearest
from sb3_softmod.envs import dm_control, metaworld
from sb3_softmod.envs.task_sets import TaskSet, get_task_set
from sb3_softmod.envs.worker import TaskMaker


class TasksInTurn(gym.Env[np.ndarray, np.ndarray]):
    """One env that plays another task in each episode, all in turn; a task is built when its turn first comes.

    :param makers: one for each task
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"]}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, makers: Sequence[TaskMaker]) -> None:
        self._makers = makers
        self._built: dict[int, gym.Env[np.ndarray, Any]] = {}
        self._turns = itertools.cycle(range(len(makers)))
        self._seeds: dict[int, int] = {}  # for the next reset of a task, of those that were not reset since a seed
        self._now = self._build(0)
        self.observation_space = self._now.observation_space
        self.action_space = self._now.action_space
        self.render_mode = self._now.render_mode
        self.task_names: tuple[str, ...] = self._now.get_wrapper_attr("task_names")
        self.num_tasks = len(self.task_names)

    @property
    def task_id(self) -> int:
        """The task of this episode."""
        return self._now.get_wrapper_attr("task_id")

    @property
    def tasks_in_turn(self) -> tuple[int, ...]:
        """The tasks that the episodes are of."""
        return tuple(range(self.num_tasks))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode of the next task.

        :param seed: begins with task ``seed % M``, so that episodes of ascending seeds are of all tasks, and gives each
            task a seed of its own for its next episode
        :param options: as in gymnasium
        """
        super().reset(seed=seed)
        if seed is not None:
            self._turns = itertools.cycle((seed + task) % self.num_tasks for task in range(self.num_tasks))
            self._seeds = {task: (seed + task) % 2**32 for task in range(self.num_tasks)}
        task = next(self._turns)
        self._now = self._build(task)
        return self._now.reset(seed=self._seeds.pop(task, None), options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; see :class:`.TaskEnv` for what ``info`` holds."""
        return self._now.step(action)  # type: ignore[return-value]

    def render(self) -> Any:
        """A frame of the task of this episode."""
        return self._now.render()

    def close(self) -> None:
        """Close all tasks."""
        for env in self._built.values():
            env.close()

    def _build(self, index: int) -> gym.Env[np.ndarray, Any]:
        if index not in self._built:
            self._built[index] = self._makers[index](0)
        return self._built[index]


def task_names(task_set: TaskSet) -> tuple[str, ...]:
    """The names of the tasks of a set, by task id."""
    if task_set.suite == "metaworld":
        return metaworld.resolve_task_names(task_set.tasks)
    return tuple(task_set.tasks)


def make_env(name: str, *, task: str | None = None, **options: Any) -> gym.Env:
    """One env that plays the tasks of a set in turn, or one of them.

    :param name: of a task set
    :param task: the name of the only task to play
    :param options: see :meth:`.TaskSet.arguments`
    :raises ConfigurationError: for an unknown task or option, with the nearest known
    """
    makers = _task_makers(name, options)
    names = task_names(get_task_set(name))
    if task is not None and task not in names:
        raise ConfigurationError(f"Unknown task {task!r} of {name}: {nearest(task, names)}")
    if len(makers) == 1:
        return makers[0](0)
    return TasksInTurn(makers) if task is None else makers[names.index(task)](0)


def make_vector_env(
    name: str, num_envs: int = 1, *, autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP, **options: Any
) -> SyncVectorEnv:
    """The tasks of a set side by side, in this process.

    :param name: of a task set
    :param num_envs: a multiple of the number of tasks, M; 1, which is gymnasium's default, stands for M
    :param autoreset_mode: as in gymnasium
    :param options: see :meth:`.TaskSet.arguments`
    :return: copies of a task stand together
    :raises ConfigurationError: for another number of envs, or an unknown option
    """
    num_tasks = len(task_names(get_task_set(name)))
    copies, rest = divmod(num_tasks if num_envs == 1 else num_envs, num_tasks)
    if rest or not copies:
        raise ConfigurationError(f"num_envs must be a multiple of the {num_tasks} tasks of {name}, not {num_envs}.")
    makers = _task_makers(name, options, copies)
    return SyncVectorEnv(
        [partial(maker, copy) for maker in makers for copy in range(copies)], autoreset_mode=autoreset_mode
    )


def _task_makers(name: str, options: Mapping[str, Any], copies: int = 1) -> list[TaskMaker]:
    task_set = get_task_set(name)
    suite = metaworld if task_set.suite == "metaworld" else dm_control
    makers = suite.make_task_makers(task_set.tasks, **task_set.arguments(options), copies=copies)
    return [partial(_without_reports, maker) for maker in makers]


def _without_reports(maker: TaskMaker, copy: int) -> gym.Env[np.ndarray, Any]:
    """A task that leaves ``info["episode"]`` to gymnasium's RecordEpisodeStatistics and SB3's Monitor, as envs do."""
    env = maker(copy)
    env.set_wrapper_attr("reports_episodes", False)
    return env
