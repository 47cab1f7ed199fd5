"""Meta-World's tasks as one multi-task environment."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np

from sb3_softmod.common.checks import require_choice, require_flag, require_integer, require_seed
from sb3_softmod.common.errors import RENDERING_ADVICE, ConfigurationError, nearest
from sb3_softmod.envs.arguments import as_names, check_copies
from sb3_softmod.envs.task_sets import METAWORLD_HORIZON, SHORT_NAMES, TASK_SETS
from sb3_softmod.envs.tasks import TaskEnv, seed_or_drawn
from sb3_softmod.envs.worker import TaskMaker

try:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML10_V3, ML45_V3, MT10_V3, MT25_V3
    from metaworld.sawyer_xyz_env import RenderMode, SawyerXYZEnv
    from metaworld.types import Task
except (AttributeError, RuntimeError) as error:  # PyOpenGL's, under MUJOCO_GL=osmesa; MuJoCo's, of a bad MUJOCO_GL
    raise ConfigurationError(f"MuJoCo finds no OpenGL library ({error}). {RENDERING_ADVICE}") from error

from sb3_softmod.envs import metaworld_fast  # after the message about OpenGL

metaworld_fast.speed_up_modules()  # of this process, with the same numbers

Goals = Literal["random", "fixed", "each-once"]

#: The tasks of the named sets. MT3 is the set of the demo: three tasks that a laptop learns in minutes. Those of ML10
#: and ML45 have the tasks of Meta-World's meta-learning benchmarks, which hide the goals: here they are seen.
MEMBERS: dict[str, tuple[str, ...]] = {
    "MT3": ("reach-v3", "drawer-close-v3", "button-press-topdown-v3"),
    "MT10": tuple(MT10_V3),
    "MT25": tuple(MT25_V3),
    "MT50": tuple(ALL_V3_ENVIRONMENTS),
    **{
        f"{benchmark}-{part}": tuple(tasks)
        for benchmark, parts in (("ML10", ML10_V3), ("ML45", ML45_V3))
        for part, tasks in parts.items()
    },
}

#: Goals of a task in Meta-World's benchmarks.
NUM_GOALS = 50

#: The goals that were drawn last in this process, by task and seed; and how many of these are kept.
_DRAWN: dict[tuple[str, int], list[Task]] = {}
_MOST_DRAWN = 500
_lock = threading.Lock()

#: Meta-World's simulators raise past this step.
MAX_HORIZON = 500


def resolve_task_names(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """The task names that a user means.

    :param tasks: a task set, see :data:`MEMBERS`, a task ("reach-v3"), or a list of these
    :raises ConfigurationError: for an unknown or repeated name, with the nearest known ones
    """
    if isinstance(tasks, str):
        named = {name: task_set for name, task_set in TASK_SETS.items() if task_set.suite == "metaworld"}
        if tasks in named:
            tasks = str(named[tasks].tasks)
        if tasks in MEMBERS:
            return MEMBERS[tasks]
        if tasks not in ALL_V3_ENVIRONMENTS:
            found = nearest(tasks, [*MEMBERS, *named], SHORT_NAMES)
            raise ConfigurationError(f"Unknown task or task set {tasks!r}: {found}")
        return (tasks,)
    if isinstance(tasks, (list, tuple)):
        tasks = [name for task in tasks for name in (MEMBERS.get(task, (task,)) if isinstance(task, str) else (task,))]
    return as_names(tasks, "task", ALL_V3_ENVIRONMENTS)


def draw_goals(env: SawyerXYZEnv, name: str, seed: int) -> list[Task]:
    """The 50 goals of a task, the same as ``metaworld.MT1(name, seed).train_tasks``.

    A goal is drawn by a reset, whose simulation (it settles the arm, 50 steps) has no part in the draw and is
    replaced by the kinematics alone: milliseconds instead of most of a second.

    :param env: an env of that task, not yet used
    :param name: the task's name
    :param seed: what the goals depend on
    """
    env._freeze_rand_vec = False
    env._set_task_called = True
    goals = []
    with metaworld_fast.kinematics_alone(env), _own_generator(env, seed):
        for _ in range(NUM_GOALS):
            env.reset()
            data = dict(rand_vec=env._last_rand_vec, env_cls=type(env), partially_observable=False)
            goals.append(Task(env_name=name, data=pickle.dumps(data)))
    return goals


def _goals_of(env: SawyerXYZEnv, name: str, seed: int) -> list[Task]:
    """As :func:`draw_goals`, but drawn once: the copies of a task, and the envs of its evaluation, have the same."""
    with _lock:
        goals = _DRAWN.get((name, seed))
    if goals is None:
        goals = draw_goals(env, name, seed)
        with _lock:
            _DRAWN[name, seed] = goals
            if len(_DRAWN) > _MOST_DRAWN:
                del _DRAWN[next(iter(_DRAWN))]
    return goals


@contextmanager
def _own_generator(env: SawyerXYZEnv, seed: int) -> Iterator[None]:
    """Let an env draw what Meta-World would draw from numpy's global generator, which all threads share."""
    before = env._np_random
    env.np_random = np.random.RandomState(seed)  # type: ignore[assignment]  # that old one, whose numbers they are
    env.seeded_rand_vec = True
    try:
        yield
    finally:
        env._np_random, env.seeded_rand_vec = before, False


class MetaWorldEnv(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """One Meta-World task whose goal is one of the benchmark's 50: drawn at each reset, each in turn, or fixed.

    ``reset(seed=...)`` restarts the sequence of goals; which 50 they are depends on ``seed`` alone.

    :param name: for instance "reach-v3"
    :param goals: "random"; "each-once": all in turn, in an order that depends on ``seed`` and ``task_id``, and again;
        "fixed": the first of the 50, every episode
    :param seed: of the goals and of their order
    :param task_id: tells apart the tasks of one set, and
    :param copy: the envs of one task: two envs never share a sequence
    :param copies: how many envs share the goals of "each-once": env c takes those at c, c + copies, ... of the order
    :param reward_version: Meta-World's reward functions, "v1" or "v2"
    :param render_mode: as in gymnasium
    :param camera_name: Meta-World's camera for rendering
    """

    def __init__(
        self,
        name: str,
        *,
        goals: Goals = "random",
        seed: int | None = None,
        task_id: int = 0,
        copy: int = 0,
        copies: int = 1,
        reward_version: Literal["v1", "v2"] = "v2",
        render_mode: RenderMode | None = None,
        camera_name: str = "corner2",
    ) -> None:
        env = ALL_V3_ENVIRONMENTS[name](
            reward_function_version=reward_version, render_mode=render_mode, camera_name=camera_name
        )
        super().__init__(env)
        metaworld_fast.speed_up(env)
        cameras = [env.model.camera(index).name for index in range(env.model.ncam)]
        require_choice("camera_name", camera_name, cameras)
        self._name, self._mode = name, goals
        self._task_id, self._copy, self._copies = task_id, copy, copies
        self._seed = seed_or_drawn(seed)
        self._goals = _goals_of(env, name, self._seed)
        self._start_order(self._seed)
        #: What an env must have in common with one whose :meth:`progress` it takes up.
        self.settings = {"goals": goals, "copies": copies, "reward_version": reward_version}
        # Most of Meta-World's cameras hang upside down: their y axis, which is up in the picture, points down.
        self._upside_down = env.model.cam_mat0[cameras.index(camera_name)][7] < 0
        env.set_task(self._goals[0])  # so that the declared observation space is that of the multi-task mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with the next goal.

        :param seed: restarts the sequence of goals
        :param options: not used
        """
        if seed is not None:
            self._start_order(seed)
        self._episodes += 1
        self.unwrapped.set_task(self._goals[next(self._order)])  # type: ignore[attr-defined]
        return metaworld_fast.reset(self.unwrapped)  # type: ignore[arg-type]

    def render(self) -> Any:
        """A frame, upright.

        :raises ConfigurationError: if OpenGL does not work
        """
        try:
            frame = self.env.render()
        except Exception as error:  # each of MuJoCo's three ways to OpenGL has exceptions of its own
            raise ConfigurationError(
                f"Rendering failed ({type(error).__name__}: {error}). {RENDERING_ADVICE}"
            ) from error
        return np.ascontiguousarray(frame[::-1, ::-1]) if self._upside_down and isinstance(frame, np.ndarray) else frame

    def progress(self) -> dict[str, int]:
        """Where the sequence of goals stands."""
        return {"seed": self._seed, "order_seed": self._order_seed, "episodes": self._episodes}

    def set_progress(self, progress: Mapping[str, int]) -> None:
        """Go on with the sequence of goals of another env of this task, whatever its seed."""
        if progress["seed"] != self._seed:
            self._seed = progress["seed"]
            self._goals = _goals_of(self.unwrapped, self._name, self._seed)  # type: ignore[arg-type]
        self._start_order(progress["order_seed"], progress["episodes"])

    def _start_order(self, seed: int, episodes: int = 0) -> None:
        """Take the sequence of goals that a seed stands for, after its first episodes."""
        self._order_seed, self._episodes = seed, episodes
        self._order = itertools.islice(self._make_order(seed), episodes, None)

    def _make_order(self, seed: int) -> Iterator[int]:
        """The goals of the episodes, as indices."""
        if self._mode == "fixed":
            return itertools.repeat(0)
        if self._mode == "each-once":  # the copies share one order, whatever seeds their resets bring
            order = _generator(self._seed, self._task_id).permutation(NUM_GOALS)
            return itertools.cycle(order[self._copy % self._copies :: self._copies])
        rng = _generator(seed, self._task_id, self._copy)
        return (int(rng.integers(NUM_GOALS)) for _ in itertools.count())


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def make_task_env(
    name: str,
    task_id: int,
    task_names: Sequence[str],
    copy: int,
    *,
    seed: int,
    max_episode_steps: int,
    terminate_on_success: bool,
    **kwargs: Any,
) -> TaskEnv:
    """One copy of a task of a set, ready for a VecEnv; ``kwargs`` go to :class:`MetaWorldEnv`."""
    simulator = MetaWorldEnv(name, seed=seed, task_id=task_id, copy=copy, **kwargs)
    env = TaskEnv(
        gym.wrappers.TimeLimit(simulator, max_episode_steps),
        task_id,
        task_names,
        terminate_on_success=terminate_on_success,
    )
    env.settings["seed"] = seed
    return env


def make_task_makers(
    tasks: str | Sequence[str],
    *,
    goals: Goals = "random",
    seed: int | None = None,
    max_episode_steps: int = METAWORLD_HORIZON,
    reward_version: Literal["v1", "v2"] = "v2",
    terminate_on_success: bool = False,
    render_mode: RenderMode | None = None,
    camera_name: str = "corner2",
    copies: int = 1,
) -> list[TaskMaker]:
    """What makes the envs of a task set; arguments as in :func:`.make_metaworld_env`.

    :param copies: its ``envs_per_task``
    :return: one maker for each task
    :raises ConfigurationError: as there
    """
    names = resolve_task_names(tasks)
    require_choice("goals", goals, get_args(Goals))
    require_choice("reward_version", reward_version, ("v1", "v2"))
    if render_mode is not None:
        require_choice("render_mode", render_mode, SawyerXYZEnv.metadata["render_modes"])
    require_integer("max_episode_steps", max_episode_steps, 1, MAX_HORIZON)
    check_copies(copies)
    require_flag("terminate_on_success", terminate_on_success)
    require_seed(seed)
    seed = seed_or_drawn(seed)  # one for all envs: copies of a task have the same 50 goals
    return [
        partial(
            make_task_env,
            name,
            task_id,
            names,
            goals=goals,
            seed=seed,
            max_episode_steps=max_episode_steps,
            reward_version=reward_version,
            terminate_on_success=terminate_on_success,
            render_mode=render_mode,
            camera_name=camera_name,
            copies=copies,
        )
        for task_id, name in enumerate(names)
    ]
