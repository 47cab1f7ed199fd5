"""Who reports an episode: a task, or gymnasium's and SB3's wrappers around it."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from point_mass import PointMass, make_task
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecEnv, TaskEnv, make_multitask_env
from sb3_softmod.evaluation import evaluate_tasks

Recorded = gym.wrappers.RecordEpisodeStatistics


class Doubled(gym.RewardWrapper):
    """Rewards twice as much."""

    def reward(self, reward: Any) -> float:
        return 2 * float(reward)


def last_infos(env: Any, steps: int = 4) -> list[dict[str, Any]]:
    env.reset()
    for _ in range(steps):
        *_, infos = env.step(np.zeros((env.num_envs, 2)))
    env.close()
    return infos


@pytest.mark.parametrize("n_workers", [0, 1])
def test_recorded_by_a_wrapper(n_workers: int) -> None:
    def wrapper(env: gym.Env) -> gym.Env:
        return Recorded(Doubled(env))

    tasks = {"a": partial(PointMass, 0), "b": partial(PointMass, 1)}
    env = make_multitask_env(tasks, seed=0, max_episode_steps=4, wrapper=wrapper, n_workers=n_workers)
    plain = make_multitask_env(tasks, seed=0, max_episode_steps=4, n_workers=0)
    for info, expected in zip(last_infos(env), last_infos(plain), strict=True):
        assert isinstance(info["episode"]["r"], float)
        assert info["episode"]["r"] == pytest.approx(2 * expected["episode"]["r"], rel=1e-6)
        assert info["episode"]["l"] == expected["episode"]["l"] == 4
        assert info["is_success"] is False
    means = [row["return"] for row in env.episode_table()]
    np.testing.assert_allclose(means, [2 * row["return"] for row in plain.episode_table()], rtol=1e-6)


def test_recorded_under_another_key() -> None:
    env = make_multitask_env(
        {"a": partial(PointMass, 0)}, max_episode_steps=4, wrapper=partial(Recorded, stats_key="mine"), n_workers=0
    )
    (info,) = last_infos(env)
    assert info["mine"]["r"] == pytest.approx(info["episode"]["r"])


def test_recorded_inside_of_a_task() -> None:
    """Which ends sooner than the env that was recorded."""

    class Succeeds(PointMass):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"success": True}

    def make(copy: int) -> TaskEnv:
        return TaskEnv(Recorded(gym.wrappers.TimeLimit(Succeeds(0), 9)), 0, ["a"], terminate_on_success=True)

    (info,) = last_infos(MultiTaskVecEnv([make], n_workers=0), steps=1)
    assert info["episode"]["l"] == 1


def test_a_recorded_task_of_another_maker() -> None:
    (info,) = last_infos(MultiTaskVecEnv([lambda copy: Recorded(make_task(0, 1, 4))], n_workers=0))
    assert info["episode"]["l"] == 4


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_gymnasiums_vector_wrapper_around_ours(mode: AutoresetMode) -> None:
    env: Any = gym.make_vec("SoftMod/MT3-v3", horizon=2, seed=0, autoreset_mode=mode)
    env = gym.wrappers.vector.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    rewards = [env.step(env.action_space.sample())[1] for _ in range(2)]
    np.testing.assert_allclose(env.return_queue, np.sum(rewards, 0))
    assert list(env.length_queue) == [2, 2, 2]


def test_gymnasiums_wrapper_around_one_of_ours() -> None:
    env = Recorded(gym.make("SoftMod/MT3-v3", horizon=2, seed=0))
    for _ in range(2):
        env.reset()
        rewards = [float(env.step(env.action_space.sample())[1]) for _ in range(2)]
        assert env.return_queue[-1] == pytest.approx(sum(rewards))


def test_successes_count_without_a_report() -> None:
    """An env of gymnasium.make in SB3's DummyVecEnv, as it is or under SB3's own report."""
    make = partial(gym.make, "SoftMod/reach-v3", horizon=3, seed=0)
    settings: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), buffer_size=50, device="cpu")
    model = MultiTaskSAC("MTMlpPolicy", DummyVecEnv([make]), **settings, learning_starts=100)
    model.learn(9)
    assert model.episode_statistics.num_episodes() == [3]
    assert set(model.episode_statistics.means()) == {"success_rate", "success_at_end_rate"}
    with pytest.raises(ConfigurationError, match=r"No episode was reported: .* 'episode' .*Monitor and VecMonitor"):
        evaluate_tasks(model, model.get_env(), n_eval_episodes=1)  # type: ignore[arg-type]
    result = evaluate_tasks(model, VecMonitor(DummyVecEnv([make])), n_eval_episodes=2)
    assert result.length == [3]
