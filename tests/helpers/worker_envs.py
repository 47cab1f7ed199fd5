"""Tasks that worker processes make. They import this module, so that it loads neither torch nor SB3."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from point_mass import HORIZON, PointMass, make_task

from sb3_softmod import TaskEnv

if TYPE_CHECKING:
    from sb3_softmod import MultiTaskVecEnv

M = 3
NAMES = [f"corner-{i}" for i in range(M)]


def make_copy(task: int, copy: int, *, num_tasks: int = M, horizon: int = HORIZON) -> TaskEnv:
    return make_task(task, num_tasks, horizon)


class Troubled(PointMass):
    """Raises, or ends its process, when the first action is 1."""

    trouble = "raise"

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action[0] == 1:
            if self.trouble == "raise":
                raise ZeroDivisionError("the simulation is unstable")
            os._exit(3)
        return super().step(action)

    def pid(self) -> int:
        return os.getpid()

    def options(self) -> Any:
        return self.reset_with

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.reset_with = (seed, options)
        return super().reset(seed=seed)[0], {"seed": seed, "options": options}


def make_troubled(task: int, copy: int, names: list[str] = NAMES) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(Troubled(task), HORIZON), task, names)


def make_troubled_env(**kwargs: Any) -> MultiTaskVecEnv:
    from sb3_softmod import MultiTaskVecEnv  # not above: worker processes import this module

    return MultiTaskVecEnv([partial(make_troubled, task) for task in range(M)], **kwargs)


def make_odd(task: int, copy: int, *, what: str) -> Any:
    env = PointMass(task)
    if what == "actions" and task == 1:
        env.action_space = spaces.Box(-1, 1, (5,), np.float32)
    if what == "observations" and task == 1:
        env.observation_space = spaces.Box(-1, 1, (7,), np.float32)
    if what == "no task":
        return env
    return TaskEnv(env, 0 if what == "ids" else task, NAMES)


class Nested(PointMass):
    """Shows its goal too, in a dictionary: 5 numbers when flat."""

    def __init__(self, goal: int = 2) -> None:
        super().__init__(goal)
        self.observation_space = spaces.Dict({"goal": spaces.Discrete(3), "position": self.observation_space})  # type: ignore[assignment]

    def reset(self, **kwargs: Any) -> Any:
        position, info = super().reset(**kwargs)
        return {"goal": 2, "position": position}, info

    def step(self, action: np.ndarray) -> Any:
        position, *rest = super().step(action)
        return {"goal": 2, "position": position}, *rest


def short() -> gym.Env:
    return gym.wrappers.TimeLimit(PointMass(1), 6)


class Drawn(PointMass):
    """Draws itself: a picture of 16 x 16 in which the first row is white."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def render(self) -> Any:
        picture = np.full((16, 16, 3), 20, np.uint8)
        picture[0] = 255
        return picture


class Restless(PointMass):
    """Moves by itself, and ends its episodes when it likes."""

    def reset(self, **kwargs: Any) -> Any:
        self.length = 0
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = self.position + self.np_random.normal(0, 0.05, 2).astype(np.float32)
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.np_random.random() < 0.08, False, info


class Weather(gym.Wrapper):
    """Rewards less from episode to episode, and by chance."""

    def __init__(self, env: gym.Env, seed: int) -> None:
        super().__init__(env)
        self.wind = np.random.RandomState(seed)
        self.episodes = 0

    def reset(self, **kwargs: Any) -> Any:
        self.episodes += 1
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) / self.episodes + self.wind.normal(), *rest

    def progress(self) -> int:
        return self.episodes

    def set_progress(self, progress: int) -> None:
        self.episodes = progress


def make_restless(task: int, copy: int, *, num_tasks: int = 5) -> TaskEnv:
    env = Weather(gym.wrappers.TimeLimit(Restless(task), HORIZON), seed=10 * task + copy)
    return TaskEnv(env, task, [f"corner-{i}" for i in range(num_tasks)])


def make_seeded(task: int, copy: int) -> TaskEnv:
    """All of its random numbers follow from the seed of a reset."""
    return TaskEnv(gym.wrappers.TimeLimit(Restless(task), HORIZON), task, NAMES)


class Secretive(Restless):
    """Draws from a generator that nobody finds."""

    def __init__(self, goal: int) -> None:
        super().__init__(goal)
        self.hidden = [np.random.default_rng()]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + self.hidden[0].random(), terminated, truncated, info


def make_secretive(task: int, copy: int, *, num_tasks: int = M) -> TaskEnv:
    """Of the tasks only the second has secrets."""
    env = (Secretive if task == 1 else Restless)(task)
    return TaskEnv(gym.wrappers.TimeLimit(env, HORIZON), task, [f"corner-{i}" for i in range(num_tasks)])


class Says(PointMass):
    """Reports at each step the infos that it was told, in each episode anew."""

    def __init__(self, *infos: dict[str, Any]) -> None:
        super().__init__(0)
        self.infos = infos

    def reset(self, **kwargs: Any) -> Any:
        self.t = 0
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        return (*super().step(action)[:3], self.t == len(self.infos), dict(self.infos[self.t - 1]))


def make_saying(copy: int, *, infos: list[dict[str, Any]], **kwargs: Any) -> TaskEnv:
    return TaskEnv(Says(*infos), 0, ["a"], **kwargs)
