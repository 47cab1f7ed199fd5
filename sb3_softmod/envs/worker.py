"""What a worker process does: step some of the envs of a :class:`.MultiTaskVecEnv`.

A worker stays small because nothing here, nor anything imported here, imports torch or SB3.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_softmod.common.errors import ConfigurationError, EnvError, SoftModError
from sb3_softmod.common.task_observation import check_common, require_shape
from sb3_softmod.envs.origin import Origin, origin_of, restore, settings_of
from sb3_softmod.envs.tasks import TaskEnv, success_of

Env = gym.Env[np.ndarray, Any]
#: Makes one copy of a task: ``make(copy) -> TaskEnv``; with the keyword ``seed`` if that is in the TaskEnv's settings.
TaskMaker = Callable[..., Env]
#: An episode to begin: its task, and seed and options of the reset.
Episode = tuple[int, "int | None", dict[str, Any]]
#: An episode to play again: its actions, None if they are not all known, and the env's row of its last step.
Replay = tuple[Episode, "np.ndarray | None", np.ndarray]

#: What a vector must know of every env.
FACTS = ("observation_space", "action_space", "num_tasks", "task_names", "task_id", "render_mode")

#: By how much a worker's process is nicer (``os.nice``) than its parent: it does not take the core of one that learns
#: while the envs step, and has that core when the parent waits.
NICENESS = 5

#: In place of a success, for an env that reports none.
NO_SUCCESS = -1


def step_dtype(observation_space: spaces.Space, action_space: spaces.Space) -> np.dtype:
    """One env's part of a vector step, as it lies in shared memory.

    :raises ConfigurationError: for spaces whose elements are not arrays of one shape
    """
    for space in (observation_space, action_space):
        if space.shape is None or space.dtype is None:
            raise ConfigurationError(f"{space} is no space of arrays: flatten it first (gymnasium.wrappers).")
    return np.dtype(
        [
            ("action", action_space.dtype, action_space.shape),
            ("observation", observation_space.dtype, observation_space.shape),
            ("reward", np.float32),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("success", np.int8),
        ],
        align=True,
    )


def check_task(task: int, facts: Mapping[str, Any], names: Sequence[str], num_makers: int) -> None:
    """Refuse what a maker made of another task than its own.

    :param facts: :data:`FACTS` of what it made
    :param names: of all tasks, by some other env
    :raises ConfigurationError: naming the task
    """
    if facts["task_id"] != task or facts["task_names"] != names or len(names) != num_makers:
        raise ConfigurationError(
            f"The maker of task {task} made a TaskEnv with task_id {facts['task_id']} of the tasks "
            f"{list(facts['task_names'])}, but there are {num_makers} makers: one is needed for each task, in their "
            "order."
        )


class EnvGroup:
    """The envs of one worker, each known by its index in the whole vector.

    An env plays one task at a time; the simulator of a task is built when the env first plays it.

    :param makers: one for each task
    :param copies: for each env of this group which copy of its tasks it plays
    :param auto_reset: whether an env goes on to its next episode by itself, or waits to be told a task
    """

    def __init__(self, makers: Sequence[TaskMaker], copies: dict[int, int], *, auto_reset: bool) -> None:
        self._makers = makers
        self._copies = copies
        self._auto_reset = auto_reset
        self._rows = {index: row for row, index in enumerate(copies)}
        self._tasks: dict[int, int] = {}  # what each env plays now
        self._built: dict[tuple[int, int], Env] = {}  # by env and task
        self._origins: dict[tuple[int, int], Origin] = {}  # for those that are not built yet,
        self._seed: dict[str, int] = {}  # as this seed, if it is not that of the makers
        self._known: dict[str, Any] = {}

    def build(self, tasks: dict[int, int]) -> dict[int, dict[str, Any]]:
        """Build the task that each env plays first.

        :return: for each env its :data:`FACTS` and ``settings``
        """
        return {index: self._build(index, task) for index, task in tasks.items()}

    def attach(self, dtype: np.dtype, known: dict[str, Any], memory: str | None) -> None:
        """Exchange steps through an array with a row for each env.

        :param dtype: from :func:`step_dtype`
        :param known: the :data:`FACTS` of some env; those that are built later must have the same tasks and spaces
        :param memory: name of the shared memory; None for memory of this process
        """
        size = len(self._copies)
        self._known = known
        self._memory = None if memory is None else _shared(memory)
        self.steps = np.zeros(size, dtype) if self._memory is None else np.ndarray(size, dtype, self._memory.buf)
        # Looking up a field of a structured array costs more than writing to it.
        self._fields = tuple(self.steps[name] for name in dtype.names or ())
        self._shape = dtype["observation"].shape

    def begin(self, episodes: dict[int, Episode]) -> dict[int, tuple[Origin, dict[str, Any]]]:
        """Begin an episode in some envs.

        :return: for each of them what it begins from, and the info of its reset
        """
        begun = {}
        for index, episode in episodes.items():
            self._play(index, episode[0])
            try:
                begun[index] = origin_of(self._now(index)), self._reset(index, episode)
            except Exception as error:
                raise self._blamed(error, index) from error
        return begun

    def resume(
        self, origins: dict[tuple[int, int], Origin], replays: dict[int, Replay], seed: dict[str, int]
    ) -> dict[int, tuple[bool, Origin, dict[str, Any]]]:
        """Go on where the envs of another group were: begin their last episodes again, and take the same actions.

        :param origins: what those episodes began from, and the next ones of other tasks; by env and task
        :param replays: the episode of each env that is to play
        :param seed: for the makers of tasks that nobody played yet: the keyword and its value, or nothing
        :return: for each replayed env whether it is bit for bit where it was; an env that is not began another
            episode. And what its episode began from, and the info of its reset.
        """
        self._origins, self._seed = dict(origins), seed
        for key in self._built.keys() - origins.keys():  # not played there yet: their first episodes are still to come
            self._built.pop(key).close()
        for key in origins.keys() & self._built.keys():
            restore(self._built[key], self._origins.pop(key))
        resumed = {}
        for index, (episode, actions, last) in replays.items():
            self._play(index, episode[0])
            try:
                origin = origin_of(self._now(index))
                info = self._reset(index, episode)
                same = self._repeat(index, actions, last)
                if not same:
                    origin, info = origin_of(self._now(index)), self._reset(index)
                resumed[index] = same, origin, info
            except Exception as error:
                raise self._blamed(error, index) from error
        return resumed

    def step(self) -> tuple[dict[int, dict[str, Any]], dict[int, Origin], dict[int, dict[str, Any]]] | None:
        """Take one step in every env.

        :return: for each env whose episode ended its last info and what the next episode of its task begins from, and
            for each that began another the info of the reset; None if no episode ended
        """
        actions, observations, rewards, terminations, truncations, successes = self._fields
        infos, origins, reset_infos = {}, {}, {}
        for index, row in self._rows.items():
            try:
                env = self._now(index)
                observation, reward, terminated, truncated, info = env.step(actions[row].copy())
                if getattr(observation, "shape", None) != self._shape:  # numpy would spread a smaller one over the row
                    self._check_shape(index, observation)
                observations[row] = observation
                rewards[row] = reward
                terminations[row] = terminated
                truncations[row] = truncated
                successes[row] = self._success(index, info)
                if terminated or truncated:
                    infos[index] = info | {
                        "terminal_observation": observations[row].copy(),  # as float32, and not the env's own array
                        "TimeLimit.truncated": truncated and not terminated,
                    }
                    origins[index] = origin_of(env)
                    if self._auto_reset:
                        reset_infos[index] = self._reset(index)
            except Exception as error:
                raise self._blamed(error, index) from error
        return (infos, origins, reset_infos) if infos else None

    def apply(self, function: Callable[..., Any], indices: Iterable[int], *arguments: Any) -> dict[int, Any]:
        """``function(env, *arguments)`` for some envs, each with the task that it plays now."""
        values = {}
        for index in indices:
            try:
                values[index] = function(self._now(index), *arguments)
            except Exception as error:
                raise self._blamed(error, index) from error
        return values

    def close(self) -> None:
        """Close all envs."""
        for env in self._built.values():
            env.close()
        self._built.clear()

    def _now(self, index: int) -> Env:
        return self._built[index, self._tasks[index]]

    def _build(self, index: int, task: int) -> dict[str, Any]:
        self._tasks[index] = task
        try:
            env = self._built[index, task] = self._makers[task](self._copies[index], **self._seed)
            _leave_reports_to_wrapper(env)
            missing = [fact for fact in FACTS if not (isinstance(env, gym.Env) and env.has_wrapper_attr(fact))]
            if missing:
                raise ConfigurationError(f"{env} is no task, it lacks {missing}: wrap it in sb3_softmod.TaskEnv.")
            if (index, task) in self._origins:
                restore(env, self._origins.pop((index, task)))
            return {**{fact: env.get_wrapper_attr(fact) for fact in FACTS}, "settings": settings_of(env)}
        except gym.error.UnregisteredEnv as error:
            raise ConfigurationError(
                f"Task {self._name(task)!r} (env {index}): {error} A process that makes envs has to import what "
                "registers the id: do so inside the function that makes this one."
            ) from error
        except Exception as error:
            raise self._blamed(error, index) from error

    def _play(self, index: int, task: int) -> None:
        """Let an env play a task from now on."""
        if (index, task) not in self._built:
            facts = self._build(index, task)
            check_task(task, facts, self._known["task_names"], len(self._makers))
            for space in ("observation_space", "action_space"):
                names = [self._name(self._known["task_id"]), self._name(task)]
                check_common(space, names, [self._known[space], facts[space]])
        self._tasks[index] = task

    def _reset(self, index: int, episode: Episode | None = None) -> dict[str, Any]:
        """Begin an episode; return the info of the reset."""
        keywords: dict[str, Any] = {}
        if episode is not None:
            _, seed, options = episode
            keywords = dict(seed=seed, options=options) if options else dict(seed=seed)
        observation, info = self._now(index).reset(**keywords)
        self._check_shape(index, observation)
        self.steps["observation"][self._rows[index]] = observation
        return info

    def _repeat(self, index: int, actions: np.ndarray | None, last: np.ndarray) -> bool:
        """Take the actions of an episode that has just begun again; whether that leads to its last step."""
        if actions is None:
            return False
        env, here = self._now(index), self.steps[self._rows[index]]
        for action in actions:
            observation, here["reward"], here["terminated"], here["truncated"], info = env.step(action.copy())
            self._check_shape(index, observation)
            here["observation"] = observation
            here["success"] = self._success(index, info)
            if here["terminated"] or here["truncated"]:
                return False
        fields = ("observation", "reward", "success") if len(actions) else ("observation",)
        return all(here[field].tobytes() == last[field].tobytes() for field in fields)

    def _success(self, index: int, info: dict[str, Any]) -> int:
        success = success_of(info, self._name(self._tasks[index]))
        return NO_SUCCESS if success is None else success

    def _check_shape(self, index: int, observation: Any) -> None:
        require_shape(observation, self._shape, f"task {self._name(self._tasks[index])!r} (env {index})")

    def _blamed(self, error: Exception, index: int) -> SoftModError:
        """An error that names the env; those of this package, which speak for themselves, stay as they are."""
        if isinstance(error, SoftModError):
            return error
        return EnvError(
            f"Env {index} (task {self._name(self._tasks[index])!r}) raised {type(error).__name__}: {error}\n\n"
            f"{traceback.format_exc()}"
        )

    def _name(self, task: int) -> str | int:
        """The name of a task, or its id as long as no env was built that knows the name."""
        names = self._known.get("task_names")
        return names[task] if names else task


def _leave_reports_to_wrapper(env: Env) -> None:
    """Let a task that is wrapped in gymnasium's RecordEpisodeStatistics not report its episodes: that would raise."""
    layer: Any = env
    recorded = False
    while isinstance(layer, gym.Wrapper) and not isinstance(layer, TaskEnv):
        if isinstance(layer, gym.wrappers.RecordEpisodeStatistics):
            recorded |= getattr(layer, "_stats_key", "episode") == "episode"
        layer = layer.env
    if recorded and isinstance(layer, TaskEnv):
        layer.reports_episodes = False


# What apply() calls, as functions of a module: a process gets them by name.


def call_method(env: Env, name: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    return env.get_wrapper_attr(name)(*arguments, **keywords)


def is_wrapped(env: Env, module: str, qualified_name: str) -> bool:
    """Whether a wrapper of that name is around an env. By name: SB3's wrappers would bring torch with them."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if any((cls.__module__, cls.__qualname__) == (module, qualified_name) for cls in type(layer).__mro__):
            return True
        layer = layer.env
    return False


def serve(connection: Connection) -> None:
    """The life of a worker process: answer until the other end of the connection is closed, by whatever cause.

    A message is a pickled (name of a method of :class:`EnvGroup`, arguments), or empty for the most frequent, ``step``.
    An answer is a pickled value, which an exception may be, or empty for None.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the parent, as Ctrl-C is, which then hangs up
    if hasattr(os, "nice"):  # not on Windows
        os.nice(NICENESS)
    group: EnvGroup | None = None
    with suppress(EOFError, ConnectionError):
        while True:
            message = connection.recv_bytes()
            try:
                if message:
                    command, arguments = pickle.loads(message)
                    if command == "set_up":
                        group, answer = EnvGroup(*arguments[:2], auto_reset=arguments[2]), None
                    else:
                        answer = getattr(group, command)(*arguments)
                    if command == "attach":
                        gc.freeze()  # the simulators live as long as the process: no collection need look at them
                else:
                    answer = group.step()  # type: ignore[union-attr]  # after set_up
                packed = b"" if answer is None else cloudpickle.dumps(answer)
            except SoftModError as error:
                packed = cloudpickle.dumps(error)
            except Exception as error:  # a maker, an argument or an answer that cannot be pickled
                text = f"A worker process raised {type(error).__name__}: {error}\n\n{traceback.format_exc()}"
                packed = cloudpickle.dumps(EnvError(text))
            connection.send_bytes(packed)
    if group is not None:
        group.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # nobody listens, or there is none
            stream.flush()
    os._exit(0)  # what Python does at its end is of no use to envs that are closed, and graphics drivers fail in it


def _shared(name: str) -> SharedMemory:
    """Shared memory that the other end made, and removes."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    # Before, Python has a second process watch over it, to remove it once more at the end of this one.
    register, resource_tracker.register = resource_tracker.register, lambda *_: None
    try:
        return SharedMemory(name)
    finally:
        resource_tracker.register = register
