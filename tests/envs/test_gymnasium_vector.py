"""Gymnasium's vector envs in a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import metaworld
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from point_mass import PointMass, make_task
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import (
    ConfigurationError,
    GymnasiumVecEnv,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    NonFiniteError,
    SoftModSAC,
)
from sb3_softmod.evaluation import MultiTaskEvalCallback, evaluate_tasks

SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), buffer_size=200, batch_size=6, device="cpu", seed=0)
MT3 = ["reach-v3", "drawer-close-v3", "button-press-topdown-v3"]

#: Envs whose episodes end at different times.
MAKERS = [partial(make_task, task, 3, horizon) for task, horizon in enumerate((3, 5, 20))]


def play(env: Any, steps: int = 25) -> list[Any]:
    """All that SB3 learns from, with the clocks left out."""
    env.seed(3)
    seen: list[Any] = [env.reset()]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        observations, rewards, dones, infos = env.step(rng.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32))
        for info in infos:
            info.get("episode", {}).pop("t", None)
        seen.append((observations, rewards, dones, infos))
    env.close()
    return seen


def vector_env(kind: str) -> gym.vector.VectorEnv:
    if kind == "async":
        return AsyncVectorEnv(MAKERS, autoreset_mode=AutoresetMode.SAME_STEP)
    if kind == "recorded":
        return RecordEpisodeStatistics(SyncVectorEnv(MAKERS, autoreset_mode=AutoresetMode.SAME_STEP))
    return SyncVectorEnv(MAKERS, autoreset_mode=kind)


@pytest.mark.parametrize("kind", [*AutoresetMode, "async", "recorded"])
def test_the_same_as_those_of_sb3(kind: str) -> None:
    first, *seen = play(GymnasiumVecEnv(vector_env(kind)))
    expected_first, *expected = play(DummyVecEnv(MAKERS))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first, expected_first)
    ends = 0
    for ours, theirs in zip(seen, expected, strict=True):
        for own, other in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(own, other)
            assert own.dtype == other.dtype
        for own, other in zip(ours[3], theirs[3], strict=True):
            assert own.keys() == other.keys()
            assert ("terminal_observation" in own) == own["TimeLimit.truncated"]
            ends += "terminal_observation" in own
            for key, value in own.items():
                if key == "episode":
                    assert value == pytest.approx(other[key])
                else:
                    np.testing.assert_array_equal(value, other[key])
    assert ends == 8 + 5 + 1


def test_the_largest_seed() -> None:
    env = GymnasiumVecEnv(gym.make_vec("SoftMod/MT3-v3"))
    assert env.seed(2**32 - 1) == [2**32 - 1, 0, 1]
    env.close()


def test_statistics_of_a_wrapper_are_right_too() -> None:
    wrapped: Any = vector_env("recorded")
    seen = play(GymnasiumVecEnv(wrapped))
    ends = [info["episode"] for *_, infos in seen[1:] for info in infos if "episode" in info]
    np.testing.assert_allclose(wrapped.return_queue, [end["r"] for end in ends], rtol=1e-6)
    assert list(wrapped.length_queue) == [end["l"] for end in ends]


@pytest.mark.parametrize("use_one_hot", [False, True])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_metaworlds_own(use_one_hot: bool, mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld, "_N_GOALS", 1)  # to be made quickly
    names = ["reach-v3", "push-v3"]
    envs = gym.make_vec(
        "Meta-World/custom-mt-envs",
        vector_strategy="sync",
        envs_list=names,
        use_one_hot=use_one_hot,
        autoreset_mode=mode,
        max_episode_steps=3,
    )
    env: Any = GymnasiumVecEnv(envs)
    assert env.task_names == names
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (39 + 2,), np.float32)
    assert env.get_attr("task_id") == [0, 1]
    observations = env.reset()
    np.testing.assert_array_equal(observations[:, 39:], np.eye(2))
    assert observations.dtype == np.float32
    for step in range(7):
        observations, rewards, dones, infos = env.step(np.zeros((2, 4), np.float32))
        np.testing.assert_array_equal(observations[:, 39:], np.eye(2))
        assert dones.tolist() == [step in (2, 5)] * 2
        for index, info in enumerate(infos):
            assert (info["task_id"], info["task_name"]) == (index, names[index])
            assert info["success"] is False
            if dones[index]:
                np.testing.assert_array_equal(info["terminal_observation"][39:], np.eye(2)[index])
                assert np.any(info["terminal_observation"] != observations[index])
                assert info["TimeLimit.truncated"]
                assert (info["episode"]["l"], info["is_success"], info["is_success_at_end"]) == (3, False, False)
    assert (rewards > 0).all()
    model = MultiTaskSAC("MTMlpPolicy", envs, **SMALL, learning_starts=4)
    assert model.learn(12)._n_updates > 0
    env.close()


def test_ours_in_a_model() -> None:
    envs = gym.make_vec("SoftMod/MT3-v3", horizon=3, seed=0)
    model = SoftModSAC("MTMlpPolicy", envs, **SMALL, learning_starts=6)
    assert model.task_names == MT3
    model.learn(30)
    assert model.replay_buffer.size_per_task().tolist() == [10, 10, 10]  # type: ignore[union-attr]
    assert model.episode_statistics.num_episodes() == [3, 3, 3]
    assert model.episode_statistics.means()["length"].tolist() == [3, 3, 3]
    assert [episode["l"] for episode in model.ep_info_buffer] == [3] * 9  # type: ignore[union-attr]


def test_wherever_an_env_is_passed(tmp_path: Path) -> None:
    envs = SyncVectorEnv(MAKERS)
    normalised = MultiTaskVecNormalize(envs)
    assert isinstance(normalised.venv, GymnasiumVecEnv)
    model = MultiTaskSAC("MTMlpPolicy", normalised, **SMALL)
    model.learn(30, MultiTaskEvalCallback(MultiTaskVecNormalize(SyncVectorEnv(MAKERS)), n_eval_episodes=1, eval_freq=5))
    model.save(tmp_path / "model")
    plain = MultiTaskSAC("MTMlpPolicy", envs, **SMALL)
    plain.set_env(SyncVectorEnv(MAKERS))
    result = evaluate_tasks(plain, SyncVectorEnv(MAKERS), n_eval_episodes=2)
    assert result.length == [3, 5, 20]
    assert MultiTaskSAC.load(tmp_path / "model", env=SyncVectorEnv(MAKERS)).num_tasks == 3
    callback = MultiTaskEvalCallback(SyncVectorEnv(MAKERS), n_eval_episodes=1, eval_freq=5)
    plain.learn(30, callback)
    assert callback.num_evaluations == 2


def test_talking_to_the_envs() -> None:
    env = GymnasiumVecEnv(vector_env("async"))
    assert env.get_attr("num_tasks") == [3, 3, 3]
    np.testing.assert_array_equal(env.get_attr("goal", indices=[2, 0]), [PointMass(2).goal, PointMass(0).goal])
    assert env.has_attr("goal")
    assert not env.has_attr("nothing")
    with pytest.raises(AttributeError, match="have an attribute 'nothing'"):
        env.get_attr("nothing")
    with pytest.raises(AttributeError, match="have an attribute 'nothing'"):
        env.env_method("nothing")
    with pytest.raises(ConfigurationError, match="calls get_wrapper_attr of all envs, not of some"):
        env.env_method("get_wrapper_attr", "task_name", indices=0)
    assert env.env_method("get_wrapper_attr", "task_name") == ["corner-0", "corner-1", "corner-2"]
    env.set_attr("goal", 7, indices=1)
    assert env.get_attr("goal")[1] == 7
    env.set_options([{"a": 1}, {}, {}])
    with pytest.raises(ConfigurationError, match="the same options for all envs"):
        env.reset()
    env.set_options({"a": 1})
    env.reset()
    with pytest.raises(NonFiniteError, match=r"The action for env 2 \(task 'corner-2'\)"):
        env.step(np.array([[0, 0], [0, 0], [0, np.nan]], np.float32))
    env.close()
    monitored = GymnasiumVecEnv(SyncVectorEnv([lambda: Monitor(make_task(0, 1))]))
    assert monitored.env_is_wrapped(Monitor) == [True]
    assert monitored.env_is_wrapped(gym.wrappers.FlattenObservation) == [False]
