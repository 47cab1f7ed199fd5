"""Observations of another shape than declared, and which env an error is about."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from point_mass import make_point_mass_env
from sending_envs import GOOD, Cuts, Sends
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_softmod import ConfigurationError, MultiTaskSAC, NonFiniteError, SoftModSAC, TaskEnv, make_multitask_env
from sb3_softmod.routing.routes import sample_routing

SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), buffer_size=50, batch_size=4, device="cpu")


def test_the_message() -> None:
    env = TaskEnv(Sends(GOOD[:3]), 0, ["short", "other"], width=6)
    env.reset()
    with pytest.raises(ConfigurationError) as raised:
        env.step(np.zeros(2))
    assert str(raised.value) == (
        "The observation of task 'short' has the shape (3,), but the observation space declares (4,). Correct the "
        "observation_space of that env, or what it sends."
    )


def test_a_list_of_the_right_length_is_an_observation() -> None:
    observation, _ = TaskEnv(Sends(at_reset=[0.1, 0.2, 0.3, 0.4]), 1, ["a", "b"], width=5).reset()
    np.testing.assert_array_equal(observation, np.array([0.1, 0.2, 0.3, 0.4, 0, 0, 1], np.float32))


@pytest.mark.parametrize("when", ["at_reset", "at_step", "ends_with"])
def test_in_a_worker(when: str) -> None:
    sent: dict[str, Any] = {when: np.zeros(5)}
    tasks: dict[str, Any] = {"good": Sends, "bad": partial(Sends, **sent)}
    env = make_multitask_env(tasks, n_workers=1)

    def play() -> None:
        env.reset()
        for _ in range(3):
            env.step(np.zeros((2, 2)))

    with pytest.raises(ConfigurationError, match=r"task 'bad' has the shape \(5,\), but .* declares \(4,\)"):
        play()


def test_the_number_is_that_of_the_env_in_the_vector() -> None:
    """Of two workers the second has the envs 1 and 3."""

    def cut(env: gym.Env) -> gym.Env:
        return Cuts(env, 1) if env.get_wrapper_attr("task_id") == 3 else env

    env = make_multitask_env(dict.fromkeys("abcd", Sends), n_workers=2, wrapper=cut)
    with pytest.raises(ConfigurationError, match=r"task 'd' \(env 3\) has the shape \(1,\), but .* declares \(8,\)"):
        env.reset()


def test_the_last_observation_is_no_array_of_the_env() -> None:
    class Reuses(gym.ObservationWrapper):
        """Sends the same array each time, in float64."""

        def observation(self, observation: Any) -> Any:
            self.sent = getattr(self, "sent", np.zeros(observation.shape))
            self.sent[:] = observation
            return self.sent

    env = make_multitask_env({"a": lambda: Sends(2 * GOOD, GOOD)}, n_workers=0, wrapper=Reuses)
    env.reset()
    for _ in range(3):
        observations, _, _, infos = env.step(np.zeros((1, 2)))
    np.testing.assert_array_equal(infos[0]["terminal_observation"], np.array([1, 1, 1, 1, 1], np.float32))
    assert infos[0]["terminal_observation"].dtype == np.float32
    np.testing.assert_array_equal(np.asarray(observations)[0], np.array([0.5, 0.5, 0.5, 0.5, 1], np.float32))


def learn(env: Any) -> None:
    MultiTaskSAC("MTMlpPolicy", env, **SMALL, learning_starts=1000).learn(30)


def test_an_observation_of_another_vec_env() -> None:
    class Narrow(VecEnvWrapper):
        """Sends all observations without their first number, from some step on."""

        def __init__(self, venv: Any, since: int) -> None:
            super().__init__(venv)
            self.since = since

        def reset(self) -> Any:
            return self.venv.reset()[:, self.since <= 0 :]  # type: ignore[call-overload, index]

        def step_wait(self) -> Any:
            self.since -= 1
            observations, *rest = self.venv.step_wait()
            return observations[:, self.since <= 0 :], *rest  # type: ignore[call-overload, index]

    for since in (0, 3):
        with pytest.raises(ConfigurationError, match=r"of all 2 envs has the shape \(2, 3\), but .* declares \(2, 4\)"):
            learn(Narrow(make_point_mass_env(2), since))


def test_a_last_observation_of_another_vec_env() -> None:
    class Ends(gym.Wrapper):
        """Ends with a number, which SB3's DummyVecEnv spreads over an observation."""

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return np.zeros(1) if truncated else observation, reward, terminated, truncated, info

    def make(task: int) -> gym.Env:
        env = TaskEnv(Sends(length=3), task, ["a", "b"])
        return Ends(env) if task else env

    with pytest.raises(ConfigurationError, match=r"task 'b' \(env 1\) at the end of its episode has the shape \(1,\)"):
        learn(DummyVecEnv([partial(make, task) for task in range(2)]))


def test_a_last_observation_that_is_not_finite() -> None:
    """Of four envs the last two end at once, and the last one badly."""
    lengths = {"a": 9, "b": 9, "c": 2, "d": 2}
    tasks = {
        name: partial(Sends, ends_with=np.full(4, np.nan) if name == "d" else None, length=length)
        for name, length in lengths.items()
    }
    with pytest.raises(NonFiniteError, match=r"The last observation of task 'd' \(env 3\) holds NaN"):
        learn(make_multitask_env(tasks, n_workers=0))


def test_a_row_of_a_batch_is_no_env() -> None:
    model = SoftModSAC(
        "SoftModPolicy",
        make_point_mass_env(2),
        policy_kwargs=dict(num_layers=2, num_modules=2, module_dim=4, embedding_dim=4),
        device="cpu",
    )
    observations = np.tile(np.array([0, 0, 1, 0], np.float32), (5, 1))
    observations[3, 2:] = 0.5
    with pytest.raises(ConfigurationError, match="The observation of row 3 does not end in a one-hot task"):
        sample_routing(model, observations, None, ["a", "b"])
