"""The envs of an evaluation: they send what the policy learned from, and the model stores nothing false of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from point_mass import make_point_mass_env
from small_networks import TINY
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from worker_envs import M as WORKER_TASKS
from worker_envs import make_troubled_env

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecEnv, MultiTaskVecNormalize, TaskEnv
from sb3_softmod.evaluation import MultiTaskEvalCallback, evaluate_tasks, rollout

M = 3


class Level(gym.Env[np.ndarray, np.ndarray]):
    """Observations of another size and spread in each task."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, task: int) -> None:
        self.task = task

    def _observe(self) -> np.ndarray:
        return self.np_random.normal(10 * self.task, 1 + self.task, 2).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        return self._observe(), float(self.task), False, False, {"success": False}


class Raw(DummyVecEnv):
    """Keeps the observations that it sends."""

    sent: list[Any]

    def reset(self) -> Any:
        self.sent = [super().reset()]
        return self.sent[0]

    def step_wait(self) -> Any:
        found = super().step_wait()
        self.sent.append(found[0])
        return found


def levels(cls: type[DummyVecEnv] = DummyVecEnv) -> Any:
    def make(task: int) -> TaskEnv:
        return TaskEnv(gym.wrappers.TimeLimit(Level(task), 4), task, [f"level-{i}" for i in range(M)])

    env = cls([partial(make, task) for task in range(M)])
    env.seed(0)
    return env


class Seeing(MultiTaskSAC):
    """Keeps the observations that it is asked about in an evaluation."""

    def predict(self, observation: Any, *args: Any, deterministic: bool = False, **kwargs: Any) -> Any:
        if deterministic:
            self.seen = [*vars(self).get("seen", []), np.array(observation)]
        return super().predict(observation, *args, deterministic=deterministic, **kwargs)


def learner(env: VecEnv, cls: type[MultiTaskSAC] = MultiTaskSAC, **kwargs: Any) -> Any:
    small: dict[str, Any] = dict(policy_kwargs=TINY["MTMlpPolicy"], batch_size=12, buffer_size=3000, device="cpu")
    return cls("MTMlpPolicy", env, seed=0, **{**small, **kwargs})


# ------------------------------------------------------------------------------------------ statistics

NORMALISED: dict[str, dict[str, Any]] = {
    "pooled": {},
    "per task": dict(obs_statistics="per-task"),
    "clipped": dict(clip_obs=0.5, epsilon=0.1),
    "rewards alone": dict(norm_obs=False),
}


def check_seen(model: Any, env: Raw) -> None:
    """What the policy saw of an evaluation is what the model's own statistics make of it, by hand."""
    own = model.get_vec_normalize_env()
    raw = np.stack(env.sent[: len(model.seen)])
    expected = raw.copy()
    for task in range(M if own.norm_obs else 0):
        rms = own.obs_rms[task if own.obs_statistics == "per-task" else 0]
        assert rms.count > 1
        scaled = (raw[:, task, :2] - rms.mean) / np.sqrt(rms.var + own.epsilon)
        expected[:, task, :2] = np.clip(scaled, -own.clip_obs, own.clip_obs)
    np.testing.assert_allclose(np.stack(model.seen), expected, atol=1e-5)


@pytest.mark.parametrize("of_evaluation", NORMALISED)
@pytest.mark.parametrize("of_training", NORMALISED)
def test_the_policy_sees_what_it_learned_from(of_training: str, of_evaluation: str) -> None:
    """Whatever the evaluation env was made with: by the callback, and by evaluate_tasks, which leaves the env alone."""
    model = learner(MultiTaskVecNormalize(levels(), **NORMALISED[of_training]), Seeing)
    raw = levels(Raw)
    env = MultiTaskVecNormalize(raw, training=False, **NORMALISED[of_evaluation])
    model.learn(5 * M, MultiTaskEvalCallback(env, n_eval_episodes=1, eval_freq=5, verbose=0))
    check_seen(model, raw)

    model.seen = []
    raw = levels(Raw)
    env = MultiTaskVecNormalize(raw, **NORMALISED[of_evaluation])
    before = env.statistics()
    found = evaluate_tasks(model, env, n_eval_episodes=1)
    check_seen(model, raw)
    assert found.mean_return == [0.0, 4.0, 8.0]
    after = env.statistics()
    assert env.training
    for name in ("obs_statistics", "norm_obs", "clip_obs", "epsilon"):
        assert after[name] == before[name]
    assert [rms.count for rms in after["obs_rms"]] == [rms.count for rms in before["obs_rms"]]


@pytest.mark.parametrize("normalize", [VecNormalize, MultiTaskVecNormalize])
def test_rewards_alone_need_no_normalised_evaluation(normalize: Any) -> None:
    model = learner(normalize(levels(), norm_obs=False), Seeing)
    raw = levels(Raw)
    model.learn(5 * M, MultiTaskEvalCallback(raw, n_eval_episodes=1, eval_freq=5, verbose=0))
    np.testing.assert_array_equal(model.seen, raw.sent[: len(model.seen)])
    assert evaluate_tasks(model, levels(), n_eval_episodes=1).mean_return == [0.0, 4.0, 8.0]


def test_statistics_of_an_env_are_kept_where_the_model_has_none_of_its_own(tmp_path: Any) -> None:
    """Parameters from a file, and statistics from another; SB3's models know none without an env."""
    trained = MultiTaskVecNormalize(levels(), obs_statistics="per-task")
    learner(trained).learn(20 * M)
    raw = levels(Raw)
    env = MultiTaskVecNormalize(raw, training=False)
    env.set_statistics(trained.statistics())
    fresh = learner(MultiTaskVecNormalize(levels()), Seeing)
    evaluate_tasks(fresh, env, n_eval_episodes=1)
    np.testing.assert_allclose(fresh.seen, [trained.normalize_obs(sent) for sent in raw.sent[: len(fresh.seen)]], 1e-5)
    SAC("MlpPolicy", trained, device="cpu").save(tmp_path / "sac")
    assert evaluate_tasks(SAC.load(tmp_path / "sac"), env, n_eval_episodes=1).episodes == [1] * M


# ------------------------------------------------------------------------------------------ the training env


def moving(num_tasks: int = 2) -> Any:
    return make_point_mass_env(num_tasks, horizon=7)


def check_stored(model: MultiTaskSAC, least: int) -> None:
    """Every transition of the point masses follows their law."""
    buffer: Any = model.replay_buffer
    assert buffer.added_per_task.sum() >= least
    batch = buffer.sample(3600)
    position, action = batch.observations[:, :2], batch.actions
    expected = (position + 0.2 * action.clip(-1, 1)).clip(-1, 1)
    np.testing.assert_allclose(batch.next_observations[:, :2], expected, atol=1e-5)


def rotating() -> VecEnv:
    return MultiTaskVecEnv([lambda copy, task=task: _point_mass(task) for task in range(3)], n_envs=2, n_workers=0)


def _point_mass(task: int) -> TaskEnv:
    return make_point_mass_env(3, horizon=7).envs[task]  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[MultiTaskSAC, VecEnv], Any]] = {
    "get_env": lambda model, env: evaluate_tasks(model, model.get_env(), n_eval_episodes=1),  # type: ignore[arg-type]
    "the env as it was made": lambda model, env: evaluate_tasks(model, env, n_eval_episodes=2),
    "another wrapper": lambda model, env: evaluate_tasks(model, VecMonitor(env), n_eval_episodes=1),
    "rollout": lambda model, env: rollout(model, env, 3),
}


def moving_normalised() -> VecEnv:
    return MultiTaskVecNormalize(moving())


@pytest.mark.parametrize("make", [moving, rotating, moving_normalised])
@pytest.mark.parametrize("way", WAYS)
def test_an_evaluation_in_the_training_env_leaves_nothing_false(way: str, make: Callable[[], VecEnv]) -> None:
    env = make()
    tasks = env.get_attr("num_tasks")[0]
    model = learner(env, batch_size=8 * tasks, learning_starts=1000)
    for _ in range(4):  # breaks in the middle of episodes
        model.learn(5 * env.num_envs, reset_num_timesteps=False)
        WAYS[way](model, env)
    model.learn(10 * env.num_envs, reset_num_timesteps=False)
    check_stored(model, 30 * env.num_envs)


def test_statistics_go_on_after_an_evaluation_in_the_training_env() -> None:
    env = MultiTaskVecNormalize(moving())
    model = learner(env, batch_size=8, learning_starts=1000)
    model.learn(20)
    count = env.obs_rms[0].count
    evaluate_tasks(model, env, n_eval_episodes=2)
    assert (env.training, env.obs_rms[0].count) == (True, count)
    model.learn(20, reset_num_timesteps=False)
    assert env.obs_rms[0].count == count + 22  # the observations of the reset, too


@pytest.mark.parametrize("moment", ["_on_step", "_on_rollout_end", "_on_training_start"])
def test_the_envs_that_a_model_is_learning_in_are_refused(moment: str) -> None:
    class Evaluates(BaseCallback):
        def _on_step(self) -> bool:
            return True

    def evaluate(self: BaseCallback) -> bool:
        evaluate_tasks(self.model, self.training_env, n_eval_episodes=1)
        return True

    model = learner(moving(), batch_size=8, learning_starts=1000)
    with pytest.raises(ConfigurationError, match=r"is learning in these envs.*evaluate in envs of their own"):
        model.learn(20, type("Now", (Evaluates,), {moment: evaluate})())
    model.learn(20)  # nothing of the refusal remains
    evaluate_tasks(model, model.get_env(), n_eval_episodes=1)
    check_stored(model, 20)


def test_a_model_that_was_saved_while_it_learned_is_not_learning(tmp_path: Any) -> None:
    class Saves(BaseCallback):
        def _on_step(self) -> bool:
            self.model.save(tmp_path / "model")
            return True

    learner(moving(), batch_size=8, learning_starts=1000).learn(4, Saves())
    env = moving()
    assert evaluate_tasks(MultiTaskSAC.load(tmp_path / "model", env=env), env, n_eval_episodes=1).episodes == [1, 1]


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_other_envs_of_the_same_tasks_are_other_envs(n_workers: int) -> None:
    """Those of other processes too, where an env may lie at the same place in memory."""
    env, other = (make_troubled_env(n_workers=n_workers) for _ in range(2))
    try:
        model = learner(env, learning_starts=1000, batch_size=4 * WORKER_TASKS)
        callback = MultiTaskEvalCallback(other, n_eval_episodes=1, eval_freq=3, verbose=0)
        model.learn(3 * WORKER_TASKS, callback)
        assert callback.num_evaluations == 1
        assert model._last_obs is not None  # it goes on with its episodes
        with pytest.raises(ConfigurationError, match="steps the envs of the training env"):
            model.learn(3, MultiTaskEvalCallback(VecMonitor(env), eval_freq=3))
    finally:
        env.close()
    assert evaluate_tasks(model, other, n_eval_episodes=1).episodes == [1] * WORKER_TASKS  # the training env is closed
    other.close()
