"""TaskEnv: any env as one task of a set."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from point_mass import GOALS, PointMass
from worker_envs import Says, make_saying

from sb3_softmod import ConfigurationError, MultiTaskVecEnv, TaskEnv
from sb3_softmod.envs.episode_statistics import EpisodeStatistics


class Scripted(gym.Env[np.ndarray, np.ndarray]):
    """Succeeds at the steps that it was told; float64 observations, as Meta-World sends them."""

    observation_space = spaces.Box(-1, 1, (3,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, successes: list[bool]) -> None:
        self.successes = successes

    def reset(self, **kwargs):
        self.t = 0
        return np.zeros(3), {}

    def step(self, action):
        self.t += 1
        success = self.successes[self.t - 1]
        return np.full(3, self.t / 10), float(self.t), False, self.t == len(self.successes), {"success": float(success)}


def test_observation_is_padded_float32_with_the_task() -> None:
    env = TaskEnv(Scripted([False] * 4), 1, ["a", "b", "c"], width=5)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (8,), np.float32)
    obs, info = env.reset()
    assert obs.dtype == np.float32
    assert obs.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    obs, *_ = env.step(np.zeros(1))
    np.testing.assert_array_equal(obs, np.array([0.1, 0.1, 0.1, 0, 0, 0, 1, 0], np.float32))
    assert obs in env.observation_space
    assert (info["task_id"], info["task_name"]) == (1, "b")
    assert (env.num_tasks, env.task_names, env.task_name) == (3, ("a", "b", "c"), "b")


@pytest.mark.parametrize(
    ("successes", "any_step", "at_end"),
    [([False] * 3, False, False), ([False, True, False], True, False), ([False, False, True], True, True)],
)
def test_success_of_an_episode(successes: list[bool], any_step: bool, at_end: bool) -> None:
    env = TaskEnv(Scripted(successes), 0, ["a"])
    for _ in range(2):  # nothing is carried into the next episode
        env.reset()
        infos = [env.step(np.zeros(1))[-1] for _ in successes]
        assert [bool(info["success"]) for info in infos] == successes
        assert all("is_success" not in info for info in infos[:-1])
        assert infos[-1]["is_success"] is any_step
        assert infos[-1]["is_success_at_end"] is at_end
        assert (infos[-1]["episode"]["r"], infos[-1]["episode"]["l"]) == (6.0, 3)


def test_terminate_on_success() -> None:
    env = TaskEnv(Scripted([False, True, True]), 0, ["a"], terminate_on_success=True)
    env.reset()
    assert env.step(np.zeros(1))[2:4] == (False, False)
    *_, terminated, truncated, info = env.step(np.zeros(1))
    assert terminated
    assert not truncated
    assert info["episode"]["l"] == 2


def played(env: TaskEnv) -> list[dict[str, Any]]:
    """The infos of an episode."""
    env.reset()
    infos, ends = [], False
    while not ends:
        *_, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        infos.append(info)
        ends = terminated or truncated
    return infos


YES, NO = {"is_success": True}, {"is_success": False}


@pytest.mark.parametrize(
    ("infos", "steps", "any_step", "at_end"),
    [
        ([NO, YES, NO], [False, True, False], True, False),  # gymnasium-robotics, panda-gym
        ([NO, NO, NO], [False, False, False], False, False),
        ([{"is_success": np.float32(0)}, {"is_success": np.array([1.0])}], [False, True], True, True),
        ([{"is_success": np.bool_(True)}, {"is_success": 0}], [True, False], True, False),
        ([{}, {}, YES], [None, None, True], True, True),  # at the end alone
        ([{}, YES, {}], [None, True, False], True, False),  # only when there is one
        ([{"success": False, "is_success": True}] * 2, [False, False], False, False),  # success comes first
        ([{"success": None, "is_success": True}], [True], True, True),
    ],
)
def test_is_success_counts_as_success_at_that_step(
    infos: list[dict[str, Any]], steps: list[bool | None], any_step: bool, at_end: bool
) -> None:
    env = TaskEnv(Says(*infos), 0, ["a"])
    for _ in range(2):
        found = played(env)
        assert [info.get("success") for info in found] == steps
        assert all("is_success" not in info for info in found[:-1])
        assert (found[-1]["is_success"], found[-1]["is_success_at_end"]) == (any_step, at_end)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_is_success_in_a_vector(n_workers: int) -> None:
    env = MultiTaskVecEnv([partial(make_saying, infos=[NO, YES, NO])], n_workers=n_workers)
    env.reset()
    infos = [env.step(np.zeros((1, 2), np.float32))[-1][0] for _ in range(3)]
    assert [info["success"] for info in infos] == [False, True, False]
    assert [info.get("is_success") for info in infos] == [None, None, True]
    assert env.episode_table()[0]["success_rate"] == 1.0
    assert env.episode_table()[0]["success_at_end_rate"] == 0.0
    env.close()


def test_an_env_that_speaks_of_success_alone_fails_otherwise() -> None:
    """Its other episodes count too, in whatever order."""
    statistics = EpisodeStatistics(1, window=4)
    quiet, loud = TaskEnv(Says({}, {}), 0, ["a"]), TaskEnv(Says({}, YES), 0, ["a"])
    for env, rate in ((quiet, None), (loud, 0.5), (quiet, 1 / 3), (quiet, 0.25), (quiet, 0.25), (quiet, None)):
        statistics.add(played(env))
        found = statistics.means().get("success_rate")
        assert (found if found is None else found.tolist()) == (rate if rate is None else [pytest.approx(rate)])


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_terminate_on_either_success(key: str) -> None:
    env = TaskEnv(Says({key: False}, {key: 1.0}, {key: True}), 0, ["a"], terminate_on_success=True)
    assert played(env)[-1]["episode"]["l"] == 2


def test_terminate_on_a_success_that_nobody_reports_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    expected = "terminate_on_success has no success to act on: an episode of the task 'a' ended, and its infos held"
    with pytest.warns(UserWarning, match=expected):
        played(TaskEnv(Says({}, {}), 0, ["a"], terminate_on_success=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(TaskEnv(Says({}, NO), 0, ["a"], terminate_on_success=True))
        played(TaskEnv(Says({}, {}), 0, ["a"]))
    maker = partial(make_saying, infos=[{}, {}], terminate_on_success=True)
    env = MultiTaskVecEnv([maker], n_workers=1)
    env.reset()
    for _ in range(6):
        env.step(np.zeros((1, 2), np.float32))
    env.close()
    assert capfd.readouterr().err.count(expected) == 1  # of the worker


def test_env_without_success_reports_none() -> None:
    class Silent(PointMass):
        def step(self, action):
            *rest, _ = super().step(action)
            return (*rest, {})

    env = TaskEnv(gym.wrappers.TimeLimit(Silent(0), 1), 0, ["a"])
    env.reset()
    info = env.step(GOALS[0])[-1]
    assert "episode" in info
    assert "is_success" not in info


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="observation of task 'a' has 3 entries, more than width=2"):
        TaskEnv(Scripted([True]), 0, ["a"], width=2)
    with pytest.raises(ConfigurationError, match="task_id 2 is not an index of the 1 task names"):
        TaskEnv(Scripted([True]), 2, ["a"])
    nested = gym.wrappers.ReshapeObservation(Scripted([True]), (1, 3))
    with pytest.raises(ConfigurationError, match="must be a 1-D Box"):
        TaskEnv(nested, 0, ["a"])
