"""TaskEnv: any env as one task of a set."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from point_mass import GOALS, PointMass

from sb3_softmod import ConfigurationError, TaskEnv


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
