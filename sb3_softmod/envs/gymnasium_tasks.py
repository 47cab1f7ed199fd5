"""Any gymnasium environments as one task set."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from sb3_softmod.common.checks import require_flag, require_integer, require_names, require_seed
from sb3_softmod.common.errors import ConfigurationError, EnvError, SoftModError, nearest
from sb3_softmod.common.task_observation import check_common, check_task_names
from sb3_softmod.envs.tasks import TaskEnv, seed_or_drawn
from sb3_softmod.envs.worker import TaskMaker

#: A gymnasium id, or a function that makes an env.
TaskSource = str | Callable[[], gym.Env]


class FirstSeed(gym.Wrapper):
    """Seeds an env at its first reset, unless that reset brings a seed of its own.

    :param env: the env to wrap
    :param seed: for its first reset
    """

    def __init__(self, env: gym.Env, seed: int) -> None:
        super().__init__(env)
        self._seed: int | None = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; arguments as in gymnasium."""
        seed, self._seed = self._seed if seed is None else seed, None
        return self.env.reset(seed=seed, options=options)

    def progress(self) -> int | None:
        """The seed, as long as it is not used."""
        return self._seed

    def set_progress(self, progress: int | None) -> None:
        """Take over the seed of another one, or that it is used."""
        self._seed = progress


class FlatObservation(gym.wrappers.FlattenObservation):
    """Makes observations flat, after a look at their parts: one of another size would shift those behind it.

    :param env: the env to wrap
    :param task: its name, for errors
    """

    def __init__(self, env: gym.Env, task: str) -> None:
        super().__init__(env)
        self._task = task

    def observation(self, observation: Any) -> np.ndarray:
        """The flat observation.

        :raises ConfigurationError: for a part that is not what its space declares
        """
        self._check(self.env.observation_space, observation, ())
        return super().observation(observation)

    def _check(self, space: spaces.Space, value: Any, path: tuple[str | int, ...]) -> None:
        parts: Mapping[Any, spaces.Space] = {}
        if isinstance(space, (spaces.Box, spaces.MultiBinary)):
            fits = getattr(value, "shape", None) == space.shape or np.size(value) == spaces.flatdim(space)
        elif isinstance(space, spaces.Dict):
            parts = space.spaces
            fits = isinstance(value, Mapping) and parts.keys() <= value.keys()
        elif isinstance(space, spaces.Tuple):
            parts = dict(enumerate(space.spaces))
            fits = isinstance(value, (tuple, list)) and len(value) == len(parts)
        else:  # an integer, whose one-hot entry could lie in another part, or a text
            fits = value in space
        if not fits:
            part = "".join(f"[{key!r}]" for key in path)
            shape = f" of shape {np.shape(value)}" if isinstance(space, (spaces.Box, spaces.MultiBinary)) else ""
            raise ConfigurationError(
                f"The observation{part} of task {self._task!r} is a {type(value).__name__}{shape}, {value!r:.100}, but "
                f"the observation space declares {space}. Correct the observation_space of that env, or what it sends."
            )
        for key, part_space in parts.items():
            self._check(part_space, value[key], (*path, key))


def name_tasks(tasks: Sequence[TaskSource] | Mapping[str, TaskSource]) -> dict[str, TaskSource]:
    """The tasks by name: the key of a mapping, a gymnasium id, or the name of a function.

    :param tasks: gymnasium ids, functions that make an env, or both
    :raises ConfigurationError: for something else, or a task without a name of its own
    """
    if isinstance(tasks, str):
        tasks = [tasks]
    if isinstance(tasks, Mapping):
        require_names("tasks", tasks)
    elif not isinstance(tasks, Sequence):
        raise ConfigurationError(f"tasks must be a list, or a mapping from names, not {tasks!r}.")
    for source in tasks.values() if isinstance(tasks, Mapping) else tasks:
        if not isinstance(source, str) and not callable(source):
            raise ConfigurationError(
                f"A task must be a gymnasium id or a function that makes an env (lambda: ...), not {source!r}."
            )
    if isinstance(tasks, Mapping):
        check_task_names(tasks)
        return dict(tasks)
    named: dict[str, TaskSource] = {}
    for source in tasks:
        name = source if isinstance(source, str) else getattr(source, "__name__", "<partial>")
        if name.startswith("<") or name in named:  # a lambda is called "<lambda>"
            what = "has the name of another task" if name in named else "has no name"
            raise ConfigurationError(
                f"The task {source!r} {what}: give each task a name with a mapping, {{name: id or function}}."
            )
        named[name] = source
    return named


def resolve(source: TaskSource) -> EnvSpec | TaskSource:
    """What a worker process makes the env from: it need not know what this process registered."""
    spec = gym.registry.get(source.removeprefix("__main__:"), source) if isinstance(source, str) else source
    if isinstance(spec, EnvSpec) and isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        # Of the user's script, which worker processes do not run: what it names goes to them by value.
        return dataclasses.replace(spec, entry_point=load_env_creator(spec.entry_point))  # type: ignore[arg-type]
    return spec


def make_registered(spec: EnvSpec, source: Callable[[], gym.Env]) -> gym.Env:
    """What a function makes by an id that only the process of the user may know."""
    gym.registry.setdefault(spec.id, spec)
    return source()


def survey(tasks: Mapping[str, TaskSource]) -> tuple[list[EnvSpec | TaskSource], int]:
    """Check that tasks fit together, by making each once.

    :param tasks: by name
    :return: what a worker process makes each from, and the entries of the widest observation, once it is flat
    :raises ConfigurationError: for an unknown id, something that is no env, or different action spaces
    """
    sources: list[EnvSpec | TaskSource] = []
    action_spaces, widths = [], []
    for name, source in tasks.items():
        try:
            env = make_flat(resolve(source), name)
        except gym.error.UnregisteredEnv as error:
            if callable(source):
                raise ConfigurationError(f"The function of task {name!r} asks for an unknown id: {error}") from error
            raise ConfigurationError(
                f"The task {name!r} has the unknown gymnasium id {source!r}: {nearest(str(source), gym.registry)}"
            ) from error
        except (gym.error.Error, ImportError) as error:
            raise ConfigurationError(f"The task {name!r} cannot be made from {source!r}: {error}") from error
        except SoftModError:
            raise
        except Exception as error:  # whatever the function of a user raises
            raise EnvError(
                f"The task {name!r} raised {type(error).__name__}: {error}\n\n{traceback.format_exc()}"
            ) from error
        spec = resolve(env.unwrapped.spec.id) if env.unwrapped.spec else None
        if callable(source) and isinstance(spec, EnvSpec):
            sources.append(partial(make_registered, spec, source))
        else:
            sources.append(resolve(source))
        action_spaces.append(env.action_space)
        widths.append(spaces.flatdim(env.observation_space))
        env.close()
    check_common("action_space", list(tasks), action_spaces)
    return sources, max(widths, default=0)


def make_flat(source: EnvSpec | TaskSource, task: str, max_episode_steps: int | None = None) -> gym.Env:
    """An env whose observation is a 1-D Box.

    :param source: what to make it from
    :param task: its name, for errors
    :param max_episode_steps: a horizon; default is the env's own
    """
    if callable(source):
        env = source()
        if not isinstance(env, gym.Env):
            raise ConfigurationError(
                f"{source} made {env}, which is no gymnasium.Env: an env of the old gym API needs a wrapper "
                "(shimmy.GymV26CompatibilityV0 or GymV21CompatibilityV0)."
            )
        if max_episode_steps is not None:
            env = gym.wrappers.TimeLimit(env, max_episode_steps)
    else:
        env = gym.make(source, max_episode_steps=max_episode_steps)
    space = env.observation_space
    if not space.is_np_flattenable:
        raise ConfigurationError(
            f"The observation space {space} of {source} has no fixed size: it cannot be flattened."
        )
    is_flat = isinstance(space, spaces.Box) and len(space.shape) == 1
    return env if is_flat else FlatObservation(env, task)


def make_gymnasium_task(
    source: EnvSpec | TaskSource,
    task_id: int,
    task_names: Sequence[str],
    copy: int,
    *,
    width: int,
    seed: int,
    max_episode_steps: int | None,
    terminate_on_success: bool,
) -> TaskEnv:
    """One copy of a task of a set, ready for a VecEnv."""
    first_seed = np.random.SeedSequence(seed, spawn_key=(task_id, copy)).generate_state(1)[0]
    simulator = FirstSeed(make_flat(source, task_names[task_id], max_episode_steps), int(first_seed))
    env = TaskEnv(simulator, task_id, task_names, width=width, terminate_on_success=terminate_on_success)
    env.settings["seed"] = seed
    return env


def make_task_makers(
    tasks: Sequence[TaskSource] | Mapping[str, TaskSource],
    *,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    terminate_on_success: bool = False,
) -> list[TaskMaker]:
    """What makes the envs of a task set; arguments as in :func:`.make_multitask_env`.

    :return: one maker for each task
    :raises ConfigurationError: as there
    """
    named = name_tasks(tasks)
    if max_episode_steps is not None:
        require_integer("max_episode_steps", max_episode_steps, 1)
    require_seed(seed)
    require_flag("terminate_on_success", terminate_on_success)
    sources, width = survey(named)
    seed = seed_or_drawn(seed)
    return [
        partial(
            make_gymnasium_task,
            source,
            task_id,
            tuple(named),
            width=width,
            seed=seed,
            max_episode_steps=max_episode_steps,
            terminate_on_success=terminate_on_success,
        )
        for task_id, source in enumerate(sources)
    ]
