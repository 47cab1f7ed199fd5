"""Evaluation covers every task the same number of times."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from point_mass import GOALS, HORIZON, PointMass, make_point_mass_env, make_task
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import ConfigurationError, GymnasiumVecEnv, MultiTaskVecEnv, TaskEnv
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.envs.registered import TasksInTurn
from sb3_softmod.envs.some_tasks import SomeTasks
from sb3_softmod.evaluation import evaluate
from sb3_softmod.evaluation.evaluate import act, evaluate_tasks, rollout
from sb3_softmod.evaluation.result import TaskEvaluation


class Expert:
    """Moves to the goal of its task; of the tasks in ``lazy`` not at all."""

    def __init__(self, *lazy: int) -> None:
        self.lazy = lazy

    def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
        tasks = observation[:, 2:].argmax(1)
        actions = np.clip((GOALS[tasks % 4] - observation[:, :2]) / 0.2, -1, 1)
        actions[np.isin(tasks, self.lazy)] = 0
        return actions, None


@pytest.mark.parametrize("envs_per_task", [1, 3])
def test_every_task_counts_the_same(envs_per_task: int) -> None:
    result = evaluate_tasks(Expert(1, 3), make_point_mass_env(4, envs_per_task), n_eval_episodes=7)
    assert result.task_names == [f"corner-{i}" for i in range(4)]
    assert result.episodes == [7] * 4
    assert result.success_rate == [1.0, 0.0, 1.0, 0.0]
    assert result.success_at_end_rate == [1.0, 0.0, 1.0, 0.0]
    assert result.length == [HORIZON] * 4
    assert result.mean_return[0] > result.mean_return[1]


def test_some_tasks_of_a_policy_in_another_order() -> None:
    names = [f"corner-{i}" for i in range(4)]
    goals = DummyVecEnv([partial(_of, goal, index) for index, goal in enumerate((2, 0))])
    result = evaluate_tasks(Expert(2), SomeTasks(goals, names), n_eval_episodes=2)
    assert result.task_names == names
    assert result.episodes == [2, 0, 2, 0]
    assert result.success_rate[::2] == [1.0, 0.0]


def _of(goal: int, index: int) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(goal), HORIZON), index, ["corner-2", "corner-0"])


@pytest.mark.parametrize("deterministic", [False, True])
def test_acts_by_the_mean_or_by_a_sample(deterministic: bool) -> None:
    asked = set()

    class Actor(Expert):
        def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
            asked.add(deterministic)
            return super().predict(observation)

    evaluate_tasks(Actor(), make_point_mass_env(2), n_eval_episodes=1, deterministic=deterministic)
    assert asked == {deterministic}


def test_an_episode_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_ENDLESS", 50)
    env = DummyVecEnv([partial(TaskEnv, PointMass(0), 0, ["endless"])])
    with pytest.raises(ConfigurationError, match="An episode of task 'endless' had 50 steps and no end: give its env"):
        evaluate_tasks(Expert(), env, n_eval_episodes=1)
    assert evaluate_tasks(Expert(), make_point_mass_env(2), n_eval_episodes=3).episodes == [3, 3]  # of 20 steps each


def test_short_episodes_do_not_count_more_often() -> None:
    """Two envs of one task, of which one ends five times as often: each plays its half."""
    envs = [partial(_task, length) for length in (2, 10)]
    result = evaluate_tasks(Expert(), DummyVecEnv(envs), n_eval_episodes=6)  # type: ignore[arg-type]
    assert result.episodes == [6]
    assert result.length == [pytest.approx((3 * 2 + 3 * 10) / 6)]


def _task(length: int) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(0), length), 0, ["only"])


@pytest.mark.parametrize("n_eval_episodes", [1, 4])
@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_envs_that_go_from_task_to_task(n_envs: int, n_eval_episodes: int) -> None:
    horizons = [3, 5, 11, 20]
    makers = [partial(_copy, task, horizon=horizon) for task, horizon in enumerate(horizons)]
    env = MultiTaskVecEnv(makers, n_envs=n_envs, n_workers=0)
    for _ in range(2):  # the second time it begins with other tasks
        result = evaluate_tasks(Expert(1), env, n_eval_episodes=n_eval_episodes)
        assert result.episodes == [n_eval_episodes] * 4
        assert result.length == horizons
        assert result.success_rate[1:] == [0.0, 1.0, 1.0]


def _copy(task: int, copy: int, *, horizon: int) -> TaskEnv:
    return make_task(task, 4, horizon)


def test_the_episodes_that_began_first_count() -> None:
    """The first env plays one long episode of the first task; the second soon plays a short one, which ends earlier."""
    makers = [lambda copy, task=task: make_task(task, 3, 30 if copy == 0 else 1) for task in range(3)]
    env = MultiTaskVecEnv(makers, n_envs=2, n_workers=0)
    assert evaluate_tasks(Expert(), env, n_eval_episodes=1).length == [30, 1, 1]
    env = MultiTaskVecEnv(makers, n_envs=2, n_workers=0)
    assert evaluate_tasks(Expert(), env, n_eval_episodes=4).length == [pytest.approx((30 + 3) / 4), 1, 1]


@pytest.mark.parametrize("kind", [DummyVecEnv, lambda envs: GymnasiumVecEnv(SyncVectorEnv(envs))])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_envs_that_go_to_another_task_at_reset(n_envs: int, kind: Any) -> None:
    horizons = [3, 5, 11, 20]
    makers = [partial(_copy, task, horizon=horizon) for task, horizon in enumerate(horizons)]
    env = kind([lambda: TasksInTurn(makers)] * n_envs)
    result = evaluate_tasks(Expert(), env, n_eval_episodes=2)
    assert result.episodes == [2] * 4
    assert result.length == horizons


def test_one_task_of_a_set() -> None:
    result = evaluate_tasks(Expert(), DummyVecEnv([partial(make_task, 2, 4)]), n_eval_episodes=2)
    assert result.episodes == [0, 0, 2, 0]
    assert result.success_rate[2] == 1.0
    assert np.isnan(result.success_rate[:2]).all()


def test_rollout() -> None:
    seen, actions = rollout(Expert(), make_point_mass_env(4), steps=HORIZON)
    assert seen.shape == (HORIZON, 4, 6)
    assert np.abs(seen[-1, :, :2] - GOALS).max() < 1e-3
    np.testing.assert_array_equal(seen[:, :, 2:], np.broadcast_to(np.eye(4), (HORIZON, 4, 4)))
    # The actions are those that led from each observation to the next.
    np.testing.assert_allclose(seen[1:, :, :2], np.clip(seen[:-1, :, :2] + 0.2 * actions[:-1], -1, 1), atol=1e-6)


def test_act_says_where_episodes_begin() -> None:
    env = make_point_mass_env(2, horizon=3)
    begins = [begin.all() for _, _, begin in islice(act(Expert(), env), 7)]
    assert begins == [True, False, False, True, False, False, True]


def test_standard_error() -> None:
    missing = [np.nan] * 3
    found = TaskEvaluation(["a", "b", "c"], [4, 16, 0], [0.5, 0.25, np.nan], missing, missing, missing)
    assert found.standard_error == pytest.approx(np.sqrt(0.25 / 4 + 0.1875 / 16) / 2)
    assert np.isnan(TaskEvaluation(["c"], [5], [np.nan], missing, missing, missing).standard_error)


def test_no_episodes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="n_eval_episodes must be at least 1, not 0"):
        evaluate_tasks(Expert(), make_point_mass_env(4), n_eval_episodes=0)


def test_statistics_keep_the_last_episodes_of_each_task() -> None:
    statistics = EpisodeStatistics(2, window=2)

    def end(task: int, value: float, **info: Any) -> dict[str, Any]:
        return {"task_id": task, "episode": {"r": value, "l": 10, "t": 0.0}, **info}

    statistics.add([end(0, 1.0, is_success=True), {"task_id": 1}])
    assert statistics.num_episodes() == [1, 0]
    statistics.add([end(0, 2.0, is_success=False)])
    statistics.add([end(0, 4.0, is_success=False), end(1, 8.0)])
    means = statistics.means()
    assert means["return"].tolist() == [3.0, 8.0]
    assert means["success_rate"][0] == 0.0
    assert np.isnan(means["success_rate"][1])  # reports no success
    assert "success_at_end_rate" not in means


def test_as_a_table_on_the_terminal_and_in_notebooks() -> None:
    env = make_point_mass_env(2)
    result = evaluate_tasks(Expert(1), env, n_eval_episodes=4)
    first, *_ = [line.split() for line in str(result).splitlines() if "corner-0" in line]
    assert first[:3] == ["corner-0", "100", "%"]
    html = result._repr_html_()
    assert "<caption>4 episodes a task</caption><tr><th>task</th><th>success</th>" in html
    assert "<tr><td>corner-1</td><td>0 %</td><td>0 % to 49 %</td>" in html
    assert html.count("<tr>") == 4  # header, tasks, mean
    assert "push[left]" in str(TaskEvaluation(["push[left]"], [1], [1.0], [1.0], [0.0], [5.0]))
    hostile = TaskEvaluation(["<script>"], [1], [1.0], [1.0], [0.0], [5.0])
    assert "<script>" not in hostile._repr_html_()
    assert "<caption>1 episode a task<" in hostile._repr_html_()
