"""Evaluation of every task while a model learns."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from point_mass import GOALS, HORIZON, PointMass, make_point_mass_env
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_softmod import ConfigurationError, MultiTaskVecNormalize, SoftModSAC, TaskEnv
from sb3_softmod.evaluation import MultiTaskEvalCallback

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


def test_tasks_that_speak_of_success_alone(tmp_path: Path) -> None:
    """Who once reported success fails where he is silent; means of before all were known do not stand in the way."""

    class Terse(PointMass):
        def step(self, action: np.ndarray) -> Any:
            *out, info = super().step(action)
            return (*out, info if info["success"] else {})

    def play(evaluation: int, positions: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Nothing succeeds, then one task, all but one, one again."""
        chosen = np.isin(tasks, ([], [0], [0, 1, 2], [0])[evaluation])
        return np.where(chosen[:, None], GOALS[tasks] - positions, -GOALS[tasks])

    def make(task: int) -> TaskEnv:
        return TaskEnv(gym.wrappers.TimeLimit(Terse(task), HORIZON), task, [f"corner-{i}" for i in range(M)])

    callback = MultiTaskEvalCallback(
        DummyVecEnv([partial(make, task) for task in range(M)]),
        n_eval_episodes=20, eval_freq=5, log_path=str(tmp_path), best_model_save_path=str(tmp_path),
    )  # fmt: skip
    make_model(make_point_mass_env(M), play, learning_starts=100).learn(20 * M, callback)
    assert SoftModSAC.load(tmp_path / "best_model").num_timesteps == 15 * M
    assert (callback.best_success_rate, callback.last_success_rate) == (1.0, pytest.approx(1 / 3))
    nan = np.nan
    expected = [[nan] * 4, [1, nan, nan, nan], [1, 1, 1, nan], [1, 0, 0, nan]]
    np.testing.assert_array_equal(np.load(tmp_path / "evaluations.npz")["successes"], expected)


class Staged(gym.Env[np.ndarray, np.ndarray]):
    """Its first episodes belong to the first evaluation, and so on, two to each: of each ``(successes, return)``."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, stages: list[tuple[int, float]]) -> None:
        self.stages, self.episode = stages, -1

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode += 1
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        stage, episode = divmod(self.episode, 3)  # one more begins, which nobody plays
        successes, reward = self.stages[stage]
        return np.zeros(1, np.float32), reward, True, False, {"success": episode < successes}


def staged(stages: list[tuple[int, float]]) -> VecEnv:
    return DummyVecEnv([lambda: TaskEnv(Staged(stages), 0, ["a"])])


def evaluations(stages: list[tuple[int, float]], **kwargs: Any) -> MultiTaskEvalCallback:
    """As many as took place before a callback ended the training."""
    callback = MultiTaskEvalCallback(staged(stages), n_eval_episodes=2, eval_freq=1, verbose=0, **kwargs)
    model = SoftModSAC("SoftModPolicy", staged([(0, 0.0)] * 99), policy_kwargs=SMALL, device="cpu")
    model.learn(len(stages), CallbackList([callback]))
    return callback


IMPROVING = [(0, 0.0), (1, -1.0), (1, -0.5), (2, -2.0), (2, -1.5)]
WORSE = [(2, 0.0), (1, 1.0), (0, 2.0), (1, 3.0), (0, 4.0)]


def test_a_later_model_that_is_as_good_is_the_best(tmp_path: Path) -> None:
    """At most two standard errors below the highest rate: of 1.0 there is none, of 0.5 in two episodes 0.35."""
    best = Counter()
    options: dict[str, Any] = dict(best_model_save_path=str(tmp_path), callback_on_new_best=best)
    found = evaluations([(1, 0.0), (0, 9.0), (1, -1.0)], **options)
    assert SoftModSAC.load(tmp_path / "best_model").num_timesteps == 3
    assert best.calls == 3
    assert (found.best_success_rate, found.best_mean_reward) == (0.5, 9.0)
    evaluations([(1, 0.0), (2, 0.0), (1, 5.0), (2, -1.0)], **options)
    assert SoftModSAC.load(tmp_path / "best_model").num_timesteps == 2


def test_the_margin_holds_over_a_break(tmp_path: Path) -> None:
    """A callback that goes on from a checkpoint knows how sure its best evaluation was."""
    before = evaluations([(1, 0.0)])
    after = MultiTaskEvalCallback(staged([(0, 0.0)]), n_eval_episodes=2, eval_freq=1, verbose=0)
    after.best_model_save_path = str(tmp_path)
    after.set_progress({**before.progress(), "envs": None})
    SoftModSAC("SoftModPolicy", staged([(0, 0.0)] * 9), policy_kwargs=SMALL, device="cpu").learn(1, after)
    assert (tmp_path / "best_model.zip").exists()


@pytest.mark.parametrize("wrap", [lambda callback: callback, lambda callback: CallbackList([Counter(), callback])])
def test_no_model_improvement_is_no_new_best_model(wrap: Callable[[BaseCallback], BaseCallback]) -> None:
    """SB3's callback goes by what decides here, not by returns."""
    assert evaluations(IMPROVING, callback_after_eval=wrap(StopTrainingOnNoModelImprovement(0))).num_evaluations == 5
    assert evaluations(WORSE, callback_after_eval=wrap(StopTrainingOnNoModelImprovement(0))).num_evaluations == 2
    assert evaluations(WORSE, callback_after_eval=wrap(StopTrainingOnNoModelImprovement(1))).num_evaluations == 3
    patient = StopTrainingOnNoModelImprovement(0, min_evals=3)
    assert evaluations(WORSE, callback_after_eval=wrap(patient)).num_evaluations == 4


@pytest.mark.parametrize(
    ("stages", "threshold", "ended"),
    [(WORSE, 2.5, 4), (WORSE, 3.0, 4), (WORSE, 5.0, 5), (IMPROVING, -0.1, 1), ([(2, -9.0), *WORSE], 0.5, 3)],
)
def test_a_reward_threshold_is_one_of_mean_returns(
    stages: list[tuple[int, float]], threshold: float, ended: int
) -> None:
    """Of any evaluation, whether or not its model is the best."""
    callback = evaluations(stages, callback_after_eval=StopTrainingOnRewardThreshold(threshold))
    assert callback.num_evaluations == ended
    assert callback.best_mean_reward == max(reward for _, reward in stages[:ended])


def test_the_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    """Whoever opened one before an evaluation reads what was there, whole; and no draft stays behind."""
    names = ("evaluations.npz", "evaluations.csv")

    class Keeps(BaseCallback):
        def _on_step(self) -> bool:
            for name in names:
                os.link(tmp_path / name, tmp_path / f"{self.n_calls}-{name}")
            return True

    evaluations(IMPROVING, log_path=str(tmp_path), callback_after_eval=Keeps())
    for number in range(1, 6):
        returns = [reward for _, reward in IMPROVING[:number]]
        assert np.load(tmp_path / f"{number}-evaluations.npz")["results"][:, 0].tolist() == returns
        with open(tmp_path / f"{number}-evaluations.csv") as file:
            assert [float(row["mean_return"]) for row in csv.DictReader(file)] == returns
    assert len(list(tmp_path.iterdir())) == 12


def test_files_of_an_earlier_run_are_replaced_and_a_lost_one_begins_anew(tmp_path: Path) -> None:
    class Loses(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 1:
                assert len((tmp_path / "evaluations.csv").read_text().splitlines()) == 2
                (tmp_path / "evaluations.csv").unlink()
            return True

    for name in ("evaluations.npz", "evaluations.csv"):
        (tmp_path / name).write_text("of an earlier run\n")
    evaluations(IMPROVING, log_path=str(tmp_path), callback_after_eval=Loses())
    with open(tmp_path / "evaluations.csv") as file:
        assert [row["timesteps"] for row in csv.DictReader(file)] == ["2", "3", "4", "5"]
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [1, 2, 3, 4, 5]


def test_one_task_of_a_set_is_evaluated_alone() -> None:
    """What is not played makes no mean unknown, which would be above every threshold."""
    envs = make_point_mass_env(M).envs  # type: ignore[attr-defined]
    stop = StopTrainingOnRewardThreshold(0.0)
    callback = MultiTaskEvalCallback(
        DummyVecEnv([lambda: envs[2]]), n_eval_episodes=1, eval_freq=5, verbose=0, callback_after_eval=stop
    )
    make_model(make_point_mass_env(M), learning_starts=100).learn(10 * M, callback)
    assert callback.num_evaluations == 2
    assert callback.last_success_rate in (0.0, 1.0)
    assert -40 < callback.best_mean_reward < 0
