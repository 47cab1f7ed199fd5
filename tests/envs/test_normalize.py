"""MultiTaskVecNormalize: statistics of each task, in training, in the replay buffer and in files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from point_mass import PointMass, make_point_mass_env
from stable_baselines3 import SAC
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, sync_envs_normalization

from sb3_softmod import ConfigurationError, MultiTaskVecEnv, MultiTaskVecNormalize, SoftModSAC, TaskEnv
from sb3_softmod.evaluation import evaluate_tasks

SMALL: dict[str, Any] = dict(embedding_dim=12, module_dim=8)


class Scaled(PointMass):
    """The same task with other units of reward and place."""

    def __init__(self, goal: int) -> None:
        super().__init__(goal)
        self.scale = 10.0**goal

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return obs * self.scale, info

    def step(self, action: np.ndarray) -> Any:
        obs, reward, *rest = super().step(action)
        return obs * self.scale, reward * self.scale, *rest


def make_env(num_tasks: int = 3) -> DummyVecEnv:
    names = [f"scale-{i}" for i in range(num_tasks)]
    return DummyVecEnv([partial(TaskEnv, gym.wrappers.TimeLimit(Scaled(i), 20), i, names) for i in range(num_tasks)])


def play(env: Any, steps: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    rng = np.random.default_rng(seed)
    env.seed(seed)
    env.reset()
    return [env.step(rng.uniform(-1, 1, (env.num_envs, 2))) for _ in range(steps)]


def test_the_last_state_of_an_episode_is_stored_as_it_was() -> None:
    """Though SB3 makes it of the normalised one, which is clipped."""
    raw = play(make_env(), 20)
    env = MultiTaskVecNormalize(make_env(), clip_obs=0.1)
    normalised = play(env, 20)
    assert np.abs(normalised[-2][0][:, :2]).max() == np.float32(0.1)
    for one, other in zip(normalised[-1][3], raw[-1][3], strict=True):
        assert np.abs(one["terminal_observation"][:2]).max() <= np.float32(0.1)
        back = env.unnormalize_obs(env.to_store(one)["terminal_observation"])
        np.testing.assert_allclose(back, other["terminal_observation"], rtol=1e-4, atol=1e-4)


def test_what_the_replay_buffer_has_of_the_last_states() -> None:
    """Observations as they are, clipped by no normalisation."""
    seen: list[np.ndarray] = []

    class Recorded(Scaled):
        def step(self, action: np.ndarray) -> Any:
            obs, *rest = super().step(action)
            seen.append(obs.astype(np.float32))
            return obs, *rest

    names = [f"scale-{i}" for i in range(3)]
    envs = DummyVecEnv([partial(TaskEnv, gym.wrappers.TimeLimit(Recorded(i), 5), i, names) for i in range(3)])
    env = MultiTaskVecNormalize(envs, clip_obs=0.1)
    model = SoftModSAC("SoftModPolicy", env, batch_size=30, learning_starts=300, policy_kwargs=SMALL, seed=0)
    model.learn(150)
    assert model.replay_buffer is not None
    stored = model.replay_buffer.sample(600).next_observations[:, :2].numpy()
    known = np.array(seen)
    distances = np.abs(stored[:, None] - known[None]).max(-1).min(1)
    assert distances.max() < 1e-3
    assert len(np.unique(stored, axis=0)) > 100


@pytest.mark.parametrize("obs_statistics", ["pooled", "per-task"])
def test_statistics_are_those_of_the_data(obs_statistics: Any) -> None:
    env = MultiTaskVecNormalize(make_env(), obs_statistics=obs_statistics, gamma=0.9)
    env.seed(0)
    raw = [np.asarray(env.venv.reset())]
    env.seed(0)
    env.reset()
    returns, all_returns = np.zeros(3), []
    rng = np.random.default_rng(0)
    for _ in range(50):
        env.step(rng.uniform(-1, 1, (3, 2)))
        raw.append(np.asarray(env.get_original_obs()))
        returns = 0.9 * returns + env.get_original_reward()
        all_returns.append(returns.copy())
        returns[np.array([len(all_returns) % 20 == 0] * 3)] = 0
    states = np.stack(raw)[:, :, :2]
    if obs_statistics == "pooled":
        np.testing.assert_allclose(env.obs_rms[0].mean, states.reshape(-1, 2).mean(0), rtol=1e-3)
        np.testing.assert_allclose(env.obs_rms[0].var, states.reshape(-1, 2).var(0), rtol=1e-2)
    else:
        for task in range(3):
            np.testing.assert_allclose(env.obs_rms[task].mean, states[:, task].mean(0), rtol=1e-2, atol=1e-4)
            np.testing.assert_allclose(env.obs_rms[task].var, states[:, task].var(0), rtol=1e-2)
    for task in range(3):
        np.testing.assert_allclose(env.ret_rms[task].var, np.stack(all_returns)[:, task].var(), rtol=1e-2)


def test_the_task_stays_and_each_task_has_its_scale() -> None:
    env = MultiTaskVecNormalize(make_env(), obs_statistics="per-task")
    steps = play(env, 200)
    obs = np.stack([step[0] for step in steps])
    rewards = np.stack([step[1] for step in steps])
    np.testing.assert_array_equal(obs[:, :, 2:], np.broadcast_to(np.eye(3), (200, 3, 3)))
    spread = obs[100:, :, :2].std((0, 2))
    assert spread.max() / spread.min() < 1.5  # raw: a factor of 100
    sizes = np.abs(rewards[100:]).mean(0)
    assert sizes.max() / sizes.min() < 1.5


class Pays(PointMass):
    """An episode is a step, which pays what the task does."""

    def step(self, action: np.ndarray) -> Any:
        obs, _, _, truncated, info = super().step(action)
        return obs, 100.0**self.task, True, truncated, info

    def __init__(self, task: int) -> None:
        super().__init__(task)
        self.task = task


def test_rewards_are_of_the_task_that_acted() -> None:
    """Where an env goes on to another task, the next observation is of that one."""
    makers = [lambda copy, task=task: TaskEnv(Pays(task), task, ["little", "much"]) for task in range(2)]
    env = MultiTaskVecNormalize(MultiTaskVecEnv(makers, n_envs=1, n_workers=0), clip_reward=1e9)
    play(env, 200)
    assert [rms.mean for rms in env.ret_rms] == pytest.approx([1, 100], rel=1e-3)
    seen = set()
    for _ in range(20):
        scaled, raw = env.step(np.zeros((1, 2)))[1][0], env.get_original_reward()[0]
        task = int(raw > 1)
        seen.add(task)
        assert raw / scaled == pytest.approx(np.sqrt(env.ret_rms[task].var + env.epsilon), rel=1e-5)
    assert seen == {0, 1}


def test_inverse() -> None:
    env = MultiTaskVecNormalize(make_env(), obs_statistics="per-task", clip_obs=1e9, clip_reward=1e9)
    play(env, 60)
    raw, rewards = np.asarray(env.get_original_obs()), env.get_original_reward()
    np.testing.assert_allclose(env.unnormalize_obs(env.normalize_obs(raw)), raw, rtol=1e-4, atol=1e-5)
    ids = np.arange(3)
    np.testing.assert_allclose(env.unnormalize_reward(env.normalize_reward(rewards, ids), ids), rewards, rtol=1e-5)


@pytest.mark.parametrize("obs_statistics", ["pooled", "per-task"])
def test_replay_scales_each_row_by_its_own_task(obs_statistics: Any) -> None:
    env = MultiTaskVecNormalize(make_env(), obs_statistics=obs_statistics, clip_obs=1.5)
    model = SoftModSAC("SoftModPolicy", env, batch_size=30, learning_starts=30, policy_kwargs=SMALL, seed=0)
    model.learn(300)
    assert model.replay_buffer is not None
    set_random_seed(0)
    raw = model.replay_buffer.sample(300)
    set_random_seed(0)
    scaled = model.replay_buffer.sample(300, env=env)
    ids = raw.observations[:, 2:].argmax(1).numpy()
    scale = np.sqrt(np.array([rms.var for rms in env.ret_rms]) + env.epsilon)[ids]
    expected = np.clip(raw.rewards.numpy()[:, 0] / scale, -10, 10)
    np.testing.assert_allclose(scaled.rewards.numpy()[:, 0], expected, rtol=1e-6)
    for name in ("observations", "next_observations"):  # to the last bit what the policy acts on
        expected = env.normalize_obs(getattr(raw, name).numpy())
        np.testing.assert_array_equal(getattr(scaled, name).numpy(), expected)
        assert np.abs(expected).max() == 1.5
    assert np.abs(raw.observations[:, :2].numpy()).max() > 20  # the buffer holds what the envs sent


def test_other_envs_see_what_the_model_was_trained_on() -> None:
    env = MultiTaskVecNormalize(make_env())
    model = SoftModSAC("SoftModPolicy", env, batch_size=30, learning_starts=30, policy_kwargs=SMALL, seed=0)
    model.learn(90)
    mean = env.obs_rms[0].mean.copy()
    for other in (make_env(), MultiTaskVecNormalize(make_env())):
        model.set_env(other)
        found = model.get_vec_normalize_env()
        assert isinstance(found, MultiTaskVecNormalize)
        np.testing.assert_array_equal(found.obs_rms[0].mean, mean)


def test_a_model_of_raw_observations_is_not_given_others(tmp_path: Path) -> None:
    model = SoftModSAC("SoftModPolicy", make_env(), batch_size=30, learning_starts=30, policy_kwargs=SMALL, seed=0)
    model.learn(90)
    model.save(tmp_path / "model")
    message = "The model was trained on observations as they are, and this MultiTaskVecNormalize would normalise them"
    with pytest.raises(ConfigurationError, match=message):
        model.set_env(MultiTaskVecNormalize(make_env()))
    with pytest.raises(ConfigurationError, match=message):
        SoftModSAC.load(tmp_path / "model", env=MultiTaskVecNormalize(make_env()))
    SoftModSAC.load(tmp_path / "model", env=MultiTaskVecNormalize(make_env(), norm_obs=False))


@pytest.mark.parametrize("env_on_load", ["raw", "normalised"])
def test_statistics_travel_with_the_model(env_on_load: str, tmp_path: Path) -> None:
    env = MultiTaskVecNormalize(make_env(), obs_statistics="per-task", clip_obs=7.0)
    model = SoftModSAC("SoftModPolicy", env, batch_size=30, learning_starts=30, policy_kwargs=SMALL, seed=0)
    model.learn(300)
    model.save(tmp_path / "model")
    fresh = make_env() if env_on_load == "raw" else MultiTaskVecNormalize(make_env())
    loaded = SoftModSAC.load(tmp_path / "model", env=fresh)
    normalised = loaded.get_vec_normalize_env()
    assert isinstance(normalised, MultiTaskVecNormalize)
    assert loaded.get_env() is normalised
    assert normalised.clip_obs == 7.0
    obs = np.asarray(env.get_original_obs())
    np.testing.assert_array_equal(normalised.normalize_obs(obs), env.normalize_obs(obs))
    loaded.learn(100)
    again = tmp_path / "again"
    SoftModSAC.load(tmp_path / "model").save(again)  # without an env they are kept
    kept = SoftModSAC.load(again, env=make_env()).get_vec_normalize_env()
    assert kept is not None
    np.testing.assert_array_equal(kept.normalize_obs(obs), env.normalize_obs(obs))


def test_save_and_load_as_in_sb3(tmp_path: Path) -> None:
    env = MultiTaskVecNormalize(make_env())
    play(env, 30)
    env.save(str(tmp_path / "vecnormalize.pkl"))
    loaded = MultiTaskVecNormalize.load(str(tmp_path / "vecnormalize.pkl"), make_env())
    obs = np.asarray(env.get_original_obs())
    np.testing.assert_array_equal(loaded.normalize_obs(obs), env.normalize_obs(obs))
    assert isinstance(loaded, MultiTaskVecNormalize)


def test_set_env_hands_the_statistics_on(tmp_path: Path) -> None:
    env = MultiTaskVecNormalize(make_env())
    model = SoftModSAC("SoftModPolicy", env, batch_size=30, learning_starts=30, policy_kwargs=SMALL, seed=0)
    model.learn(150)
    model.save(tmp_path / "model")
    model.learn(150, reset_num_timesteps=False)
    count = env.obs_rms[0].count
    model.set_env(env)  # not those of the last save
    assert env.obs_rms[0].count == count
    model.set_env(make_env())
    handed = model.get_vec_normalize_env()
    assert isinstance(handed, MultiTaskVecNormalize)
    assert handed is not env
    assert handed.obs_rms[0].count == count


def test_evaluation_envs_of_sb3_get_the_statistics() -> None:
    train, evaluate = MultiTaskVecNormalize(make_env()), MultiTaskVecNormalize(make_env(), training=False)
    play(train, 40)
    sync_envs_normalization(train, evaluate)
    obs = np.asarray(train.get_original_obs())
    np.testing.assert_array_equal(evaluate.normalize_obs(obs), train.normalize_obs(obs))
    rewards = train.get_original_reward()
    ids = np.arange(3)
    np.testing.assert_array_equal(evaluate.normalize_reward(rewards, ids), train.normalize_reward(rewards, ids))


def test_evaluation_neither_changes_the_statistics_nor_does_without_them() -> None:
    env = MultiTaskVecNormalize(make_env())
    model = SoftModSAC("SoftModPolicy", env, batch_size=30, learning_starts=30, policy_kwargs=SMALL, seed=0)
    model.learn(150)
    count = env.obs_rms[0].count
    evaluate_tasks(model, env, n_eval_episodes=2)
    assert env.obs_rms[0].count == count
    assert env.training
    with pytest.raises(ConfigurationError, match="trained on normalised observations, and the env sends raw ones"):
        evaluate_tasks(model, make_env(), n_eval_episodes=2)


@pytest.mark.parametrize("obs_statistics", ["pooled", "per-task"])
@pytest.mark.parametrize("copies", [1, 3, 20])
def test_statistics_are_sb3s_of_the_rows_of_each_task(obs_statistics: Any, copies: int) -> None:
    """To the bit, also where a row that is not finite leaves a task with fewer."""
    makers: list[Any] = [
        partial(TaskEnv, PointMass(task), task, ["a", "b", "c"]) for task in range(3) for _ in range(copies)
    ]
    env = MultiTaskVecNormalize(DummyVecEnv(makers), obs_statistics=obs_statistics)
    env.reset()
    expected = [rms.copy() for rms in env.obs_rms]
    rng = np.random.default_rng(copies)
    observations = np.asarray(env.get_original_obs()).copy()
    tasks = np.arange(3).repeat(copies)
    env.venv.step_wait = lambda: (observations, np.zeros(len(tasks)), np.zeros(len(tasks), bool), [{}] * len(tasks))  # type: ignore[method-assign]
    for step in range(4):
        observations[:, :2] = rng.normal(rng.normal(), rng.uniform(0.1, 10), (len(tasks), 2))
        if step == 2:
            observations[1, 0] = np.inf
        env.step_wait()
        rows = observations[:, :2], np.isfinite(observations).all(1)
        for task, rms in enumerate(expected):
            mine = rows[1] & ((tasks == task) | (obs_statistics == "pooled"))
            if mine.any():
                rms.update(rows[0][mine])
    for ours, theirs in zip(env.obs_rms, expected, strict=True):
        assert ours.mean.tobytes() == theirs.mean.tobytes()
        assert ours.var.tobytes() == theirs.var.tobytes()
        assert ours.count == theirs.count


@pytest.mark.parametrize("training", [True, False])
def test_infinity_is_not_clipped_away(training: bool) -> None:
    env = MultiTaskVecNormalize(make_env(), training=training)
    play(env, 5)
    before = [rms.mean.copy() for rms in env.obs_rms]
    obs = np.asarray(env.get_original_obs()).copy()
    obs[1, 0] = np.inf
    assert np.isinf(env.normalize_obs(obs)[1, 0])
    env.venv.step_wait = lambda: (obs, np.array([0.0, np.nan, 0.0]), np.zeros(3, bool), [{}] * 3)  # type: ignore[method-assign]
    seen, rewards, *_ = env.step_wait()
    assert np.isinf(np.asarray(seen)[1, 0])
    assert np.isnan(rewards[1])
    assert all(np.isfinite(rms.mean).all() for rms in env.obs_rms)
    assert np.isfinite([rms.var for rms in env.ret_rms]).all()
    assert (env.obs_rms[0].mean != before[0]).any() == training  # of the finite rows


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Unknown obs_statistics 'pool': did you mean 'pooled'"):
        MultiTaskVecNormalize(make_env(), obs_statistics="pool")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="The statistics are of 3 tasks, but the env has 2"):
        MultiTaskVecNormalize(make_env(2)).set_statistics(MultiTaskVecNormalize(make_env(3)).statistics())
    with pytest.raises(ConfigurationError, match="use MultiTaskVecNormalize"):
        SoftModSAC("SoftModPolicy", VecNormalize(make_point_mass_env(2)))


@pytest.mark.parametrize("batch_size", [3, 8])  # as many as envs, and more
def test_rewards_of_unknown_tasks_are_refused(batch_size: int) -> None:
    options: dict[str, Any] = dict(batch_size=batch_size, learning_starts=9, buffer_size=100)
    model = SAC("MlpPolicy", MultiTaskVecNormalize(make_env()), policy_kwargs=dict(net_arch=[4]), **options)
    with pytest.raises(
        ConfigurationError, match=r"scales rewards by their tasks.* Pass norm_reward=False to it, learn"
    ):
        model.learn(30)
    raw = MultiTaskVecNormalize(make_env(), norm_reward=False)
    assert SAC("MlpPolicy", raw, policy_kwargs=dict(net_arch=[4]), **options).learn(30)._n_updates > 0


def test_taken_statistics_are_a_copy() -> None:
    given = MultiTaskVecNormalize(make_env())
    play(given, 10)
    statistics = given.statistics()
    counts = [rms.count for rms in (*statistics["obs_rms"], *statistics["ret_rms"])]
    env = MultiTaskVecNormalize(make_env())
    env.set_statistics(statistics)
    play(env, 10)
    assert [rms.count for rms in (*statistics["obs_rms"], *statistics["ret_rms"])] == counts
    assert env.obs_rms[0].count > counts[0]
