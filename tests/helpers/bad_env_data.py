"""Bad data of envs, and bad envs, for :mod:`bad_inputs`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3.sac
from bad_inputs import BadInput, later
from gymnasium import spaces
from point_mass import make_point_mass_env
from sending_envs import DECLARED, GOOD, Cuts, Sends
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_softmod import MultiTaskSAC, MultiTaskVecNormalize, TaskEnv, make_multitask_env

gym.register("raises-v0", entry_point=lambda: 1 / 0)  # type: ignore[arg-type]

SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), buffer_size=50, batch_size=4, device="cpu")

#: Not of the shape (4,).
SHAPES: dict[str, Any] = {
    "short": GOOD[:3],
    "long": np.full(5, 0.5, np.float32),
    "of one number": GOOD[:1],
    "empty": GOOD[:0],
    "a column": GOOD[:, None],
    "a row": GOOD[None],
    "a number": np.float32(0.5),
    "a short list": [0.5] * 3,
    "of lists that differ in length": [[0.5], [0.5, 0.5]],
    "a dictionary": {"position": GOOD},
    "nothing": None,
}

_PARTS = spaces.Dict({"place": DECLARED, "turn": spaces.Box(-1, 1, (2, 3)), "goal": spaces.Discrete(3)})
_WHOLE: dict[str, Any] = {"place": GOOD, "turn": np.zeros((2, 3)), "goal": 1}
#: What becomes flat: what is wrong, the space, what is sent instead, and the part that is wrong.
STRUCTURES: list[tuple[str, spaces.Space, Any, str]] = [
    (
        "a part and another one differ by the same",
        _PARTS,
        {**_WHOLE, "place": GOOD[:3], "turn": np.zeros(7)},
        "'place'",
    ),
    ("a part is short", _PARTS, {**_WHOLE, "turn": np.zeros((2, 2))}, "'turn'"),
    ("a part is missing", _PARTS, {"place": GOOD, "turn": np.zeros((2, 3))}, "dict"),
    ("a choice is negative", _PARTS, {**_WHOLE, "goal": -1}, "'goal'"),
    ("a choice is too large", _PARTS, {**_WHOLE, "goal": 3}, "'goal'"),
    ("it is an array", _PARTS, np.zeros(13), "ndarray"),
    ("a matrix is short", spaces.Box(-1, 1, (2, 2)), np.zeros((1, 2)), "(1, 2)"),
    ("a tuple is long", spaces.Tuple([DECLARED, DECLARED]), (GOOD, GOOD, GOOD), "tuple"),
    ("a choice lies in another one", spaces.MultiDiscrete([2, 3]), np.array([2, 0]), "[2, 0]"),
    ("bits are missing", spaces.MultiBinary(4), np.array([1, 0]), "(2,)"),
]


def every() -> list[BadInput]:
    """All of them."""
    return [*observations(), *actions(), *kinds()]


def play(**sent: Any) -> None:
    """Two tasks whose second one sends something else, for two episodes."""
    env = make_multitask_env({"good": Sends, "bad": partial(Sends, **sent)}, n_workers=0)
    env.reset()
    for _ in range(4):
        env.step(np.zeros((2, 2)))


def play_alone(observation: Any, at_reset: bool) -> None:
    env = TaskEnv(Sends(observation, observation if at_reset else GOOD), 0, ["bad"])
    env.reset()
    env.step(np.zeros(2))


def observations() -> Iterator[BadInput]:
    for text, observation in SHAPES.items():
        for when in ("at_reset", "at_step", "ends_with"):
            if (text, when) != ("nothing", "ends_with"):  # which stands for what was sent before
                yield BadInput("env data", f"{when}: {text}", later(play, **{when: observation}), "'bad'")
        for at_reset in (True, False):
            call = later(play_alone, observation, at_reset)
            yield BadInput("env data", f"TaskEnv by hand, at_reset={at_reset}: {text}", call, "'bad'")
    for text, space, observation, part in STRUCTURES:
        sent = dict(space=space, at_reset=space.sample(), at_step=observation)
        yield BadInput("env data", f"flattened: {text}", later(play, **sent), part)
    for size in range(4):

        def cut(size: int = size) -> None:
            tasks = {"good": Sends, "bad": Sends}
            make_multitask_env(tasks, n_workers=0, wrapper=lambda env: Cuts(env, size)).reset()

        yield BadInput("env data", f"a wrapper leaves {size} numbers", later(cut), "env 0")


def actions() -> Iterator[BadInput]:
    low, high = -np.ones(4, np.float32), np.ones(4, np.float32)
    fixed, wide = high.copy(), high.copy()
    fixed[[1, 3]], wide[2] = -1, np.finfo(np.float32).max
    for text, space, mentions in (
        ("constant in two dimensions", spaces.Box(low, fixed), "dimension 1, 3 of"),
        ("constant in all", spaces.Box(low, low), "constant"),
        ("constant in a matrix", spaces.Box(low.reshape(2, 2), fixed.reshape(2, 2)), "(0, 1), (1, 1)"),
        ("wider than their type", spaces.Box(-wide, wide), "dimension 2 of"),
        ("integers", spaces.Box(-3, 3, (2,), np.int64), "int64"),
        ("bytes", spaces.Box(0, 255, (2,), np.uint8), "uint8"),
        ("truth values", spaces.Box(0, 1, (2,), np.bool_), "bool"),  # type: ignore[arg-type]
        ("without bounds", spaces.Box(-np.inf, np.inf, (2,)), "finite bounds"),
        ("choices", spaces.Discrete(3), "Discrete(3)"),
    ):

        def make(space: spaces.Space = space) -> None:
            class Acts(Sends):
                action_space = space  # type: ignore[assignment]

            MultiTaskSAC("MTMlpPolicy", make_multitask_env({"a": Acts}, n_workers=0), **SMALL)

        yield BadInput("env data", f"actions: {text}", later(make), mentions)


def kinds() -> Iterator[BadInput]:
    def make(env: Any, policy: Any = "MTMlpPolicy") -> Any:
        return MultiTaskSAC(policy, env() if callable(env) else env, **SMALL)

    def of_tasks(**kwargs: Any) -> Any:
        makers = [partial(TaskEnv, Sends(), task, names) for task, names in enumerate(kwargs.pop("names"))]
        return gym.vector.SyncVectorEnv(makers, **kwargs)

    two = [["a", "b"], ["a", "b"]]
    for text, env, mentions in (
        ("needs arguments", "Meta-World/MT1", "'reach-v3'"),
        ("is a vector env", "Meta-World/MT10", "'MT10'"),
        ("raises", "raises-v0", "ZeroDivisionError"),
        ("a vector env without tasks", lambda: gym.make_vec("Pendulum-v1", num_envs=2), "make_multitask_env"),
        ("a vector env of pictures", lambda: gym.vector.SyncVectorEnv([lambda: Sends(space=_IMAGE)]), "1-D"),
        ("tasks that disagree", lambda: of_tasks(names=[["a", "b"], ["b", "a"]]), "disagree"),
        (
            "wrapped envs that do not begin by themselves",
            lambda: gym.wrappers.vector.RecordEpisodeStatistics(of_tasks(names=two)),
            "SAME_STEP",
        ),
        ("a stack of normalised ones", lambda: VecFrameStack(MultiTaskVecNormalize(_tasks()), 2), "VecFrameStack"),
        ("a stack of SB3's", lambda: VecFrameStack(VecNormalize(_tasks(), norm_obs=False), 2), "VecFrameStack"),
    ):
        yield BadInput("env data", f"env: {text}", later(make, env), mentions)
        yield BadInput("env data", f"set_env: {text}", later(_set_env, env), mentions)
    for name in ("CnnPolicy", "MultiInputPolicy"):
        for policy in (name, getattr(stable_baselines3.sac, name)):
            yield BadInput("env data", f"policy={policy!r}", later(make, _tasks, policy), name)


_IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)


def _tasks() -> Any:
    return make_point_mass_env(2)


def _set_env(env: Any) -> None:
    MultiTaskSAC("MTMlpPolicy", _tasks(), **SMALL).set_env(env() if callable(env) else env)
