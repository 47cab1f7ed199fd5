"""A model that acts by a mixture of its tasks."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from corner_model import BETWEEN, corner_model, task_between
from point_mass import GOALS, PointMass, make_point_mass_env
from small_networks import TINY
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize, TaskEnv
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.evaluation.evaluate import rollout
from sb3_softmod.policies import POLICIES

M = 4
HALVES = {"corner-0": 0.5, "corner-3": 0.5}
STATES = np.random.default_rng(0).uniform(-1, 1, (6, 2)).astype(np.float32)


def with_row(row: Any) -> np.ndarray:
    """The states, with the same task or mixture in each."""
    return np.concatenate([STATES, np.broadcast_to(np.float32(row), (len(STATES), np.size(row)))], 1)


def untrained(policy: str, env: Any = None) -> MultiTaskSAC:
    env = make_point_mass_env(M) if env is None else env
    return MultiTaskSAC(policy, env, policy_kwargs=TINY[policy], buffer_size=100, seed=0, device="cpu")


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "SingleTaskPolicy"])
def test_acts_by_the_mixture(policy: str) -> None:
    model = untrained(policy)

    def actions(mixture: dict[str, float]) -> np.ndarray:
        return model.with_route(mixture).predict(with_row(1), deterministic=True)[0]

    one = actions({"corner-2": 1.0})
    np.testing.assert_array_equal(one, model.predict(with_row([0, 0, 1, 0]), deterministic=True)[0])
    half = actions(HALVES)
    np.testing.assert_array_equal(half, model.predict(with_row([0.5, 0, 0, 0.5]), deterministic=True)[0])
    if policy != "HardRoutingPolicy":  # which takes the most probable route of the mixture: that may be one of the two
        assert all(np.abs(half - actions({task: 1.0})).max() > 1e-4 for task in HALVES)


def test_of_a_linear_policy_it_goes_between() -> None:
    model = corner_model()
    mixed = model.with_route(HALVES)
    end = rollout(mixed, task_between(3), steps=19)[0][-1, :, :2]
    np.testing.assert_allclose(end, np.broadcast_to(BETWEEN, (3, 2)), atol=0.01)
    assert evaluate_tasks(mixed, task_between(), n_eval_episodes=5).success_rate == [1.0]
    assert evaluate_tasks(model.with_route({"corner-0": 1}), task_between(), n_eval_episodes=5).success_rate == [0.0]
    single = mixed.predict(np.array([0.1, 0.2, 1], np.float32), deterministic=True)[0]
    np.testing.assert_allclose(single, np.tanh(5 * (BETWEEN - [0.1, 0.2])), rtol=1e-5)


def test_own_tasks_stay_beside_the_new_one() -> None:
    model = untrained("SoftModPolicy")
    both = model.with_route(HALVES, as_task="between")
    assert both.task_names == [*model.task_names, "between"]
    assert both.observation_space.shape == (2 + M + 1,)
    for task in range(M):
        old = both.predict(with_row(np.eye(M + 1)[task]), deterministic=True)[0]
        np.testing.assert_array_equal(old, model.predict(with_row(np.eye(M)[task]), deterministic=True)[0])
    new = both.predict(with_row(np.eye(M + 1)[M]), deterministic=True)[0]
    np.testing.assert_array_equal(new, model.with_route(HALVES).predict(with_row(1), deterministic=True)[0])
    with pytest.raises(ConfigurationError, match=r"The model knows the tasks corner-0, .*, between, in this order"):
        evaluate_tasks(both, task_between())


def test_samples_and_sb3s_evaluation() -> None:
    mixed = corner_model().with_route(HALVES)
    assert np.ptp([mixed.predict(with_row(1))[0] for _ in range(3)], axis=0).min() > 0
    mean_return, _ = evaluate_policy(mixed, VecMonitor(task_between(2)), n_eval_episodes=4)
    assert -5 < np.mean(mean_return) < 0


@pytest.mark.parametrize("statistics", ["pooled", "per-task"])
def test_normalised_observations(statistics: Any) -> None:
    training = MultiTaskVecNormalize(make_point_mass_env(M), obs_statistics=statistics)
    model = untrained("MTMlpPolicy", training)
    training.reset()
    for _ in range(10):
        training.step(GOALS)
    found = model.with_route({"corner-0": 0.25, "corner-3": 0.75}, as_task="between").normalization
    assert found is not None
    mean, var = (np.stack([getattr(rms, name) for rms in training.obs_rms]) for name in ("mean", "var"))
    new_mean, new_var = (np.stack([getattr(rms, name) for rms in found["obs_rms"]]) for name in ("mean", "var"))
    np.testing.assert_array_equal(new_mean[: len(mean)], mean)
    np.testing.assert_array_equal(new_var[: len(var)], var)
    if statistics == "per-task":  # those of observations of which a quarter is of the one task
        np.testing.assert_allclose(new_mean[M], 0.25 * mean[0] + 0.75 * mean[3])
        square = 0.25 * (var[0] + mean[0] ** 2) + 0.75 * (var[3] + mean[3] ** 2)
        np.testing.assert_allclose(new_var[M], square - new_mean[M] ** 2)
    assert len(new_mean) == (M + 1 if statistics == "per-task" else 1)
    # An evaluation normalises with them, and refuses an env that does not.
    mixed = model.with_route(HALVES)
    raw = task_between()
    raw.seed(3)
    venv = MultiTaskVecNormalize(task_between(), training=False)
    venv.seed(3)
    seen = rollout(mixed, venv, steps=1)[0][0]
    expected = mixed.normalization
    assert expected is not None
    centre, spread = expected["obs_rms"][0].mean, np.sqrt(expected["obs_rms"][0].var + 1e-8)
    first = np.asarray(raw.reset())
    np.testing.assert_allclose(seen[:, :2], (first[:, :2] - centre) / spread, rtol=1e-4)
    with pytest.raises(ConfigurationError, match="trained on normalised observations, and the env sends raw ones"):
        evaluate_tasks(mixed, task_between())


def test_its_envs_may_be_those_of_the_model() -> None:
    """A model of one task plays its mixture in the env that it learns in, and the next ``learn`` begins anew."""
    env = make_point_mass_env(1)
    options: dict[str, Any] = dict(policy_kwargs=TINY["MTMlpPolicy"], learning_starts=5, batch_size=2)
    model = MultiTaskSAC("MTMlpPolicy", env, buffer_size=100, seed=0, device="cpu", **options)
    model.learn(7)
    evaluate_tasks(model.with_route({"corner-0": 1}), env, n_eval_episodes=1)
    assert model._last_obs is None


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"corner-0": 0.5, "corner-9": 0.5}, r"Unknown task 'corner-9': did you mean 'corner-"),
        ({"corner-0": 1.5, "corner-1": -0.5}, r"The share of 'corner-1' must be at least 0, not -0\.5"),
        ({"corner-0": 0.5, "corner-1": 0.4}, r"The shares of a mixture must sum to 1, not to 0\.9"),
        ({}, "The shares of a mixture must sum to 1, not to 0"),
        ({"corner-0": float("nan")}, "The share of 'corner-0' must be a finite number"),
        ({"corner-0": True}, "The share of 'corner-0' must be a finite number"),
        (["corner-0"], "A mixture must map names to values"),
        ({0: 1.0}, "A mixture must map names to values"),
    ],
)
def test_bad_mixtures(mixture: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        corner_model().with_route(mixture)


@pytest.mark.parametrize(
    ("as_task", "message"),
    [("corner-1", "knows a task 'corner-1' already"), (3, "must be the name of a task, not 3"), ("a,b", "'a,b'")],
)
def test_bad_names(as_task: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        corner_model().with_route(HALVES, as_task=as_task)


def test_a_policy_without_mixtures() -> None:
    message = "SingleTaskPolicy cannot act by a mixture of tasks: SingleTaskNetwork takes one at a time"
    with pytest.raises(ConfigurationError, match=message):
        untrained("SingleTaskPolicy").with_route(HALVES)


def test_other_observations() -> None:
    mixed = corner_model().with_route(HALVES)
    with pytest.raises(ConfigurationError, match=r"predict needs an observation \(3,\) or a batch"):
        mixed.predict(with_row([1, 0, 0, 0]))
    with pytest.raises(ConfigurationError, match="Observation 0 ends in no task"):
        mixed.predict(with_row(0))
    two = DummyVecEnv([partial(TaskEnv, PointMass(task), task, ["a", "b"]) for task in range(2)])
    with pytest.raises(ConfigurationError, match=r"learned from observations \(3,\), but the env has \(4,\)"):
        evaluate_tasks(mixed, two)
    assert isinstance(mixed.action_space, gym.spaces.Box)
