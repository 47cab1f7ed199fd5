"""Evaluation of every task while a model learns."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from point_mass import GOALS, HORIZON, PointMass, make_point_mass_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_softmod import ConfigurationError, MultiTaskVecNormalize, SoftModSAC, TaskEnv
from sb3_softmod.callbacks import MultiTaskEvalCallback

M = 4
SMALL: dict[str, Any] = dict(embedding_dim=12, module_dim=8)


#: What plays in an evaluation: ``script(which, positions, tasks)``.
Script = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


class Scripted(SoftModSAC):
    """Follows a script in the evaluations, one every five steps."""

    script: ClassVar[Script]

    def predict(self, observation: Any, *args: Any, deterministic: bool = False, **kwargs: Any) -> tuple[Any, Any]:
        if not deterministic:  # in training
            return super().predict(observation, *args, **kwargs)
        which = self.num_timesteps // (5 * M) - 1
        return type(self).script(which, observation[:, :2], observation[:, 2:].argmax(1)), None


def make_model(env: VecEnv, script: Script | None = None, **kwargs: Any) -> SoftModSAC:
    model_class = SoftModSAC if script is None else type("Player", (Scripted,), dict(script=staticmethod(script)))
    return model_class("SoftModPolicy", env, batch_size=2 * M, policy_kwargs=SMALL, seed=0, **kwargs)


class Counter(BaseCallback):
    calls = 0

    def _on_step(self) -> bool:
        self.calls += 1
        return True


def test_files_logs_and_the_best_model(tmp_path: Path) -> None:
    solved = [[0], [0, 1, 2], [2], [1, 2]]  # in each evaluation

    def script(evaluation: int, positions: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        actions = np.clip((GOALS[tasks] - positions) / 0.2, -1, 1)
        actions[~np.isin(tasks, solved[evaluation])] = 0
        return actions

    best, after = Counter(), Counter()
    callback = MultiTaskEvalCallback(
        make_point_mass_env(M),
        callback_on_new_best=best,
        callback_after_eval=after,
        n_eval_episodes=3,
        eval_freq=5,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = make_model(make_point_mass_env(M), script, tensorboard_log=str(tmp_path / "tb"))
    model.learn(20 * M, CallbackList([callback]))

    rates = np.array([np.isin(range(M), tasks) for tasks in solved], float)
    log = np.load(tmp_path / "evaluations.npz")
    assert log["timesteps"].tolist() == [20, 40, 60, 80]
    assert log["task_names"].tolist() == [f"corner-{i}" for i in range(M)]
    np.testing.assert_array_equal(log["successes"], rates)
    np.testing.assert_array_equal(log["ep_lengths"], np.full((4, M), HORIZON))
    assert (log["results"][:, :3][rates[:, :3] == 1].min()) > log["results"][:, 3].max()

    with open(tmp_path / "evaluations.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["timesteps"], row["task"]) for row in rows[3:5]] == [("20", "corner-3"), ("40", "corner-0")]
    assert [float(row["success_rate"]) for row in rows] == rates.flatten().tolist()
    np.testing.assert_allclose([float(row["mean_return"]) for row in rows], log["results"].flatten())
    assert {row["episodes"] for row in rows} == {"3"}

    assert (best.calls, after.calls) == (2, 4)
    assert SoftModSAC.load(tmp_path / "best_model").num_timesteps == 40
    assert callback.summary() == dict(
        last_success_rate=0.5,
        last_mean_reward=log["results"][3].mean(),
        best_success_rate=0.75,
        best_mean_reward=log["results"][1].mean(),
    )

    events = EventAccumulator(str(tmp_path / "tb" / "Player_1")).Reload()
    for task in range(M):
        values = [event.value for event in events.Scalars(f"eval_success_rate/corner-{task}")]
        assert values == rates[:, task].tolist()
    assert [event.value for event in events.Scalars("eval/success_rate")] == rates.mean(1).tolist()


def drift(evaluation: int, positions: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Never succeeds; the second evaluation comes nearest."""
    return (0.0, 0.06, 0.02)[evaluation] * np.sign(GOALS[tasks])


def test_returns_break_ties(tmp_path: Path) -> None:
    callback = MultiTaskEvalCallback(
        make_point_mass_env(M), n_eval_episodes=20, eval_freq=5, best_model_save_path=str(tmp_path)
    )
    make_model(make_point_mass_env(M), drift, learning_starts=100).learn(15 * M, callback)
    assert callback.best_success_rate == 0
    assert SoftModSAC.load(tmp_path / "best_model").num_timesteps == 10 * M


def test_tasks_that_report_no_success(tmp_path: Path) -> None:
    """Returns alone decide, and no success is made up."""

    class Silent(PointMass):
        def step(self, action: np.ndarray) -> Any:
            return (*super().step(action)[:4], {})

    def make(task: int) -> TaskEnv:
        return TaskEnv(gym.wrappers.TimeLimit(Silent(task), HORIZON), task, [f"corner-{i}" for i in range(M)])

    envs = DummyVecEnv([partial(make, task) for task in range(M)])
    callback = MultiTaskEvalCallback(
        envs, n_eval_episodes=20, eval_freq=5, log_path=str(tmp_path), best_model_save_path=str(tmp_path)
    )
    make_model(make_point_mass_env(M), drift, learning_starts=100).learn(15 * M, callback)
    assert SoftModSAC.load(tmp_path / "best_model").num_timesteps == 10 * M
    assert "successes" not in np.load(tmp_path / "evaluations.npz")
    assert callback.summary()["best_success_rate"] is None


def test_statistics_go_to_the_evaluation_env() -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(M), norm_reward=False)
    eval_env = MultiTaskVecNormalize(make_point_mass_env(M), training=False, norm_reward=False)
    callback = MultiTaskEvalCallback(eval_env, n_eval_episodes=1, eval_freq=10, verbose=0)
    make_model(env).learn(10 * M, callback)
    assert eval_env.obs_rms[0].count == env.obs_rms[0].count > 10 * M
    np.testing.assert_array_equal(eval_env.obs_rms[0].mean, env.obs_rms[0].mean)


def test_an_evaluation_env_that_is_not_normalised_is_refused_at_once() -> None:
    model = make_model(MultiTaskVecNormalize(make_point_mass_env(M)))
    with pytest.raises(ConfigurationError, match="the env sends raw ones: wrap it in MultiTaskVecNormalize"):
        model.learn(10 * M, MultiTaskEvalCallback(make_point_mass_env(M), eval_freq=5))
    assert model.num_timesteps == 0
