"""The numbers of the routing are those of the network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from known_routing import ACTOR, CRITICS, NAMES, model, states
from point_mass import PointMass, make_point_mass_env
from small_networks import TINY
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import ConfigurationError, MultiTaskSAC, SoftModPolicy, SoftModularExtractor, TaskEnv
from sb3_softmod.evaluation.evaluate import rollout
from sb3_softmod.routing.figures import plot_routing
from sb3_softmod.routing.routes import RoutingSamples, RoutingStatistics, sample_routing

EVEN = np.full((2, 2), 0.5)


def test_mean_and_spread_of_known_probabilities() -> None:
    # Task 0 as the actor says and evenly in equal parts; task 1 in two of three states as it says.
    observations = np.concatenate([states([1, 0], 0), states([1, -1, 1], 1)])
    actor = RoutingStatistics.of(sample_routing(model(), observations, None, NAMES)[0])
    np.testing.assert_allclose(actor.mean["corner-0"][0], (ACTOR[0] + EVEN) / 2, atol=1e-6)
    np.testing.assert_allclose(actor.std["corner-0"][0], np.abs(ACTOR[0] - EVEN) / 2, atol=1e-6)
    np.testing.assert_allclose(actor.mean["corner-1"][0], (2 * ACTOR[1] + EVEN) / 3, atol=1e-6)
    np.testing.assert_allclose(actor.std["corner-1"][0], np.abs(ACTOR[1] - EVEN) * np.sqrt(2) / 3, atol=1e-6)


def test_a_mixture_beside_the_tasks_that_it_is_of(tmp_path: Path) -> None:
    """In one figure, each task over its own states."""
    options: dict[str, Any] = dict(policy_kwargs=TINY["SoftModPolicy"], buffer_size=100, seed=0, device="cpu")
    trained = MultiTaskSAC("SoftModPolicy", make_point_mass_env(2), **options)
    both = trained.with_route({"corner-0": 0.25, "corner-1": 0.75}, as_task="new")
    names = [*NAMES, "new"]
    env = DummyVecEnv([partial(_task, goal, names) for goal in range(3)])
    observations, actions = rollout(both, env, 4)
    actor, critic, _ = sample_routing(both, observations, actions, names)
    assert [name for name, _ in actor.tasks()] == names
    inputs = th.as_tensor(observations[:, 2, :2])
    scaled = th.cat([inputs, th.as_tensor(actions[:, 2])], -1)  # the point masses take actions from -1 to 1
    for samples, network, rows in ((actor, trained.actor.network, inputs), (critic, trained.critic.network, scaled)):
        expected = network.routing(rows, th.tensor([[0.25, 0.75]]).expand(4, 2))[0][0]  # type: ignore[operator, union-attr]
        np.testing.assert_allclose(samples.layers[0][samples.task_ids == 2], expected.detach(), atol=1e-6)
    assert RoutingStatistics.of(actor).similarity.shape == (3, 3)
    assert "routing-actor-map.svg" in [path.name for path in plot_routing(both, env, tmp_path, steps=4)]


def _task(goal: int, names: list[str]) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(goal), 5), goal, names)


def test_critics_route_by_the_action_too() -> None:
    observations = np.concatenate([states([-1, -1], 0), states([-1, -1], 1)]).reshape(2, 2, 4)  # steps, envs
    actions = np.array([[[1, 0], [1, 0]], [[1, 0], [-1, 0]]], np.float32)
    samples = sample_routing(model(), observations, actions, NAMES)
    assert [one.network for one in samples] == ["actor", "critic 1", "critic 2"]
    for critic, known in zip(samples[1:], CRITICS, strict=True):
        mean = RoutingStatistics.of(critic).mean
        np.testing.assert_allclose(mean["corner-0"][0], known[0], atol=1e-6)
        np.testing.assert_allclose(mean["corner-1"][0], (known[1] + EVEN) / 2, atol=1e-6)


def test_actions_are_scaled_as_in_training() -> None:
    known = model()
    known.policy.action_space.low[:] = -4
    known.policy.action_space.high[:] = 4
    _, critic, _ = sample_routing(known, states([0], 0), np.array([[4.0, 0.0]]), NAMES)  # 4 of 4 is 1
    np.testing.assert_allclose(critic.layers[0][0], CRITICS[0, 0], atol=1e-6)


def test_official_variant_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_softmod.routing.routes._CHUNK", 3)
    env = make_point_mass_env(4)
    official = SAC(SoftModPolicy, env, policy_kwargs=dict(num_tasks=4, variant="official", num_layers=3), seed=0)
    ids = np.arange(8) % 3  # no state of the fourth task
    observations = np.concatenate([np.random.default_rng(0).normal(size=(8, 2)), np.eye(4)[ids]], 1).astype(np.float32)
    samples = sample_routing(official, observations, None, list("abcd"))[0]
    assert [layer.shape for layer in samples.layers] == [(8, 2, 2), (8, 2, 2), (8, 2)]
    assert samples.routes().shape == (8, 10)
    statistics = RoutingStatistics.of(samples)
    assert statistics.task_names == list("abc")
    expected = official.actor.network.routing(*th.as_tensor(observations[ids == 1]).split([2, 4], 1))  # type: ignore[union-attr, operator]
    for found, layer in zip(statistics.mean["b"], expected, strict=True):
        np.testing.assert_allclose(found, layer[0].mean(0).detach(), atol=1e-6)


def statistics_of(*tasks: list[np.ndarray]) -> RoutingStatistics:
    mean = {f"task-{i}": layers for i, layers in enumerate(tasks)}
    return RoutingStatistics("actor", mean, {name: [0 * p for p in layers] for name, layers in mean.items()})


def test_similarity_by_hand() -> None:
    first = [np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([1.0, 0.0])]
    second = [np.array([[0.5, 0.5], [0.3, 0.7]]), np.array([0.0, 1.0])]
    # Distances of the three targets: 0.4, 0 and 1.
    one = 1 - 1.4 / 3
    found = statistics_of(first, second, first)
    np.testing.assert_allclose(found.similarity, [[1, one, 1], [one, 1, one], [1, one, 1]])
    assert found.most_similar(2) == [("task-0", "task-2"), ("task-0", "task-1")]


def test_shared_connections_are_strong_in_both() -> None:
    first, second = np.array([[0.8, 0.2], [0.74, 0.26]]), np.array([[0.76, 0.24], [0.9, 0.1]])
    found = statistics_of([first], [second])  # strong: from 1.5 / 2
    np.testing.assert_array_equal(found.strong("task-1")[0], [[True, False], [True, False]])
    np.testing.assert_array_equal(found.shared("task-0", "task-1")[0], [[True, False], [False, False]])


def test_entropy() -> None:
    layers = [np.stack([np.eye(2), EVEN, EVEN]), np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])]
    samples = RoutingSamples("actor", ["sure", "even", "absent"], np.array([0, 1, 1]), layers)
    assert samples.entropy() == pytest.approx({"sure": 0, "even": 1})
    one_module = RoutingSamples("actor", ["a"], np.array([0]), [np.ones((1, 1, 1))])
    assert one_module.entropy() == {"a": 0}


def test_routing_of_a_features_extractor() -> None:
    options = dict(features_extractor_class=SoftModularExtractor, features_extractor_kwargs=dict(num_tasks=2))
    ppo = PPO("MlpPolicy", make_point_mass_env(2), policy_kwargs=options, device="cpu")
    (samples,) = sample_routing(ppo, states([0.1, 0.2], 1), np.zeros((2, 2)), NAMES)
    assert samples.network == "policy"
    assert samples.layers[0].shape == (2, 2, 2)


def test_a_model_without_routing_is_refused() -> None:
    plain = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(2), buffer_size=100)
    with pytest.raises(ConfigurationError, match=r"MTMlpPolicy has no routing to show: .* trained with SoftModPolicy"):
        sample_routing(plain, states([1], 0), None, NAMES)
