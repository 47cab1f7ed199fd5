"""Bad inputs of evaluations for :mod:`bad_inputs`: envs that do not fit the model, and what names no task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from bad_inputs import BadInput, later
from bad_values import JUNK, SMALL, M, model, point_mass
from gymnasium import spaces
from point_mass import PointMass, make_point_mass_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_softmod import MultiTaskSAC, MultiTaskVecEnv, MultiTaskVecNormalize, TaskEnv
from sb3_softmod.evaluation import MultiTaskEvalCallback, evaluate_tasks, rollout

NAMES = [f"corner-{i}" for i in range(M)]


def every() -> list[BadInput]:
    """All of them."""
    return [*observations(), *envs(), *callbacks(), *successes()]


# ------------------------------------------------------------------------------------------ predict


def observations() -> Iterator[BadInput]:
    """None at all, and those that name no task."""
    for text, empty in (
        ("no row", np.zeros((0, 2 + M), np.float32)),
        ("a list of none", np.zeros((0, 2 + M)).tolist()),
    ):
        mentions = "at least one observation" if isinstance(empty, np.ndarray) else "(n, 4)"
        yield BadInput("evaluation", f"predict: {text}", later(model().predict, empty), mentions)
    tasks: dict[str, list[float]] = {
        "no task": [0, 0],
        "two tasks": [1, 1],
        "half a task": [0.5, 0],
        "a task and minus another": [2, -1],
        "a normalised task": [1.4, -0.6],
        "NaN for a task": [np.nan, 0],
        "infinity for a task": [np.inf, 0],
    }
    for text, task in tasks.items():
        row = np.array([0.1, 0.2, *task], np.float32)
        batch = np.stack([[0.1, 0.2, 1, 0], row, row]).astype(np.float32)
        for what, given, mentions in (
            ("", row, "Observation 0 ends in no task"),
            (" in a batch", batch, "Observation 1"),
        ):
            yield BadInput("evaluation", f"predict: {text}{what}", later(model().predict, given), mentions)


# ------------------------------------------------------------------------------------------ envs


class Odd(PointMass):
    """Other actions, or wider observations."""

    def __init__(self, goal: int, low: float = -1.0, width: int = 2) -> None:
        super().__init__(goal)
        self.action_space = spaces.Box(low, 1.0, (2,), np.float32)
        self.observation_space = spaces.Box(-1.0, 1.0, (width,), np.float32)


class Unreported(PointMass):
    """Knows its task, but is no TaskEnv: nobody reports its episodes."""

    num_tasks, task_names, width = M, NAMES, 2 + M

    def __init__(self, goal: int) -> None:
        super().__init__(goal)
        self.task_id = goal
        self.observation_space = spaces.Box(-np.inf, np.inf, (2 + M,), np.float32)

    def reset(self, **kwargs: Any) -> Any:
        return np.concatenate([super().reset(**kwargs)[0], np.eye(M)[self.task_id]]).astype(np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        position, reward, *_ = super().step(action)
        return np.concatenate([position, np.eye(M)[self.task_id]]).astype(np.float32), reward, False, True, {}


def odd(names: list[str] = NAMES, **kwargs: Any) -> VecEnv:
    """An env of its own, with something other than that of the model."""

    def make(task: int) -> TaskEnv:
        return TaskEnv(gym.wrappers.TimeLimit(Odd(task, **kwargs), 5), task, names)

    return DummyVecEnv([partial(make, task) for task in range(len(names))])


def closed() -> VecEnv:
    env = MultiTaskVecEnv([lambda copy, task=task: _task(task) for task in range(M)], n_workers=0)
    env.close()
    return env


def _task(task: int) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(task), 5), task, NAMES)


#: Of an env that the model, which learned in ``make_point_mass_env(M)``, cannot be evaluated in, and the reason.
UNFIT: dict[str, tuple[Callable[[], VecEnv], str]] = {
    "tasks of other names": (lambda: odd(["here", "there"]), "here, there"),
    "tasks in another order": (lambda: odd(NAMES[::-1]), "in this order"),
    "more tasks": (lambda: odd([*NAMES, "corner-2"]), "corner-2"),
    "wider observations": (lambda: odd(width=3), "(5,)"),
    "other actions": (lambda: odd(low=-2.0), "-2.0"),
    "normalised observations": (lambda: MultiTaskVecNormalize(make_point_mass_env(M)), "raw observations"),
    "normalised tasks": (lambda: VecNormalize(make_point_mass_env(M)), "one-hot"),
    "closed simulators": (closed, "closed"),
}


def in_new(play: Callable[[VecEnv], Any], make: Callable[[], VecEnv]) -> Callable[[Path], Any]:
    return lambda folder: play(make())


def made(make: Callable[[], VecEnv]) -> Callable[[VecEnv], VecEnv]:
    return lambda training_env: make()


def envs() -> Iterator[BadInput]:
    """Those that do not fit the model are refused by all that plays in them."""
    for text, (make, mentions) in UNFIT.items():
        for what, play in (
            ("evaluate_tasks", lambda env: evaluate_tasks(model(), env, n_eval_episodes=1)),
            ("rollout", lambda env: rollout(model(), env, 1)),
        ):
            yield BadInput("evaluation", f"{what}: an env with {text}", in_new(play, make), mentions)
    unreported = DummyVecEnv([partial(Unreported, task) for task in range(M)])
    yield BadInput(
        "evaluation",
        "evaluate_tasks: an env that reports no episode",
        later(evaluate_tasks, model(), unreported, n_eval_episodes=1),
        "TaskEnv",
    )
    for what in ("zero", "minus one", "one and a half", "a word", "None"):
        yield BadInput(
            "evaluation", f"rollout of {what} steps", later(rollout, model(), point_mass(), JUNK[what]), "steps"
        )


# ------------------------------------------------------------------------------------------ callbacks


def begins(
    make: Callable[[VecEnv], VecEnv], wrap: Callable[[VecEnv], VecEnv] = lambda env: env
) -> Callable[[Path], Any]:
    """A training with an evaluation after its first step; no step may be taken.

    :param make: the evaluation env, of the training env
    :param wrap: the training env
    """

    def run(folder: Path) -> None:
        env = make_point_mass_env(M)
        learner = MultiTaskSAC("MTMlpPolicy", wrap(env), **SMALL)
        try:
            callback = MultiTaskEvalCallback(make(env), eval_freq=1, log_path=str(folder / "log"), verbose=0)
            learner.learn(2 * M, callback)
        finally:
            assert learner.num_timesteps == 0

    return run


def in_folder(name: str) -> BadInput:
    """A folder stands where a file is to be written."""

    def run(folder: Path) -> None:
        place = str(folder / "log")
        callback = MultiTaskEvalCallback(make_point_mass_env(M), log_path=place, best_model_save_path=place)
        callback.init_callback(model())

    return BadInput(
        "evaluation", f"a folder {name}", run, name, lambda folder: (folder / "log" / name).mkdir(parents=True)
    )


def _again(env: Any) -> list[TaskEnv]:
    """Other TaskEnvs around the simulators of an env."""
    return [TaskEnv(each.env, each.task_id, NAMES) for each in env.envs]


#: Makes an evaluation env that steps the envs of a training env.
SHARED: dict[str, Callable[[Any], VecEnv]] = {
    "the training env": lambda env: env,
    "the training env with statistics": lambda env: MultiTaskVecNormalize(env, norm_obs=False),
    "the training env with a monitor": lambda env: VecMonitor(env),
    "the envs of the training env": lambda env: DummyVecEnv([partial(_same, each) for each in env.envs]),
    "the simulators of the training env": lambda env: DummyVecEnv([partial(_same, each) for each in _again(env)]),
    "the simulators in a MultiTaskVecEnv": lambda env: MultiTaskVecEnv(
        [partial(_same, each) for each in _again(env)], n_workers=0
    ),
}


def _same(env: Any, copy: int = 0) -> Any:
    return env


def callbacks() -> Iterator[BadInput]:
    """What the first evaluation would refuse is refused when the training begins."""
    for text, (make, mentions) in UNFIT.items():
        yield BadInput("evaluation", f"callback: {text}", begins(made(make)), mentions)
    normalised = partial(MultiTaskVecNormalize, norm_reward=False)
    yield BadInput(
        "evaluation", "callback: raw observations", begins(lambda _: odd(), normalised), "MultiTaskVecNormalize"
    )
    for text, share in SHARED.items():
        yield BadInput("evaluation", f"callback: {text}", begins(share), "envs of the training env")
    for name in ("evaluations.npz", "evaluations.csv", "best_model.zip"):
        yield in_folder(name)
    for name in ("callback_on_new_best", "callback_after_eval"):
        for what in ("True", "a word", "an empty list", "a list", "a thing"):
            make_callback = partial(MultiTaskEvalCallback, make_point_mass_env(M), **{name: JUNK[what]})
            yield BadInput("evaluation", f"callback: {name} is {what}", later(make_callback), name)


# ------------------------------------------------------------------------------------------ success


class Reports(PointMass):
    """Says of its success what it is told to say."""

    def __init__(self, info: dict[str, Any]) -> None:
        super().__init__(0)
        self.info = info

    def step(self, action: np.ndarray) -> Any:
        return (*super().step(action)[:4], self.info)


def successes() -> Iterator[BadInput]:
    """Texts and the like, which Python takes for true."""
    for key in ("success", "is_success"):
        for text, value in {
            "a word": "False",
            "no word": "",
            "bytes": b"False",
            "NaN": np.nan,
            "a list": [],
            "several": np.zeros(2, bool),
            "a dictionary": {},
        }.items():

            def run(_: Path, info: dict[str, Any] = {key: value}) -> None:  # noqa: B006
                env = TaskEnv(Reports(info), 0, ["reach"])
                env.reset()
                env.step(np.zeros(2, np.float32))

            yield BadInput("evaluation", f"{key} is {text}", run, "'reach'")
