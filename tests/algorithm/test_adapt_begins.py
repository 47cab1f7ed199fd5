"""What the new tasks of an adapted model begin with: parameters, statistics, temperatures, transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from adapted_models import NEW, M, assert_same, new_env, of_old_tasks, old_observations, trained
from point_mass import make_point_mass_env
from small_networks import TINY
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

from sb3_softmod import (
    ConfigurationError,
    MultiTaskReplayBuffer,
    MultiTaskVecNormalize,
)
from sb3_softmod.networks import SoftModularNetwork
from sb3_softmod.networks.adapted import groups_of


def test_begins_as_the_nearest_task(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(env=make_point_mass_env(4), policy_kwargs=TINY["SoftModPolicy"], batch_size=16)
    assert model.log_ent_coef is not None
    model.log_ent_coef.data = th.arange(4.0)
    towards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)
    monkeypatch.setattr(model, "predict", lambda obs, **_: (obs[:, -4:] @ towards, None))
    new = model.adapt(new_env(goals=(3, 1)))
    assert new.adapted_from == {
        "tasks": model.task_names,
        "env_steps": 60,
        "new_tasks": list(NEW),
        "tune": "routing",
        "keep_tasks": True,
        "init": {"new-0": "corner-3", "new-1": "corner-1"},
    }
    assert new.log_ent_coef is not None
    assert new.log_ent_coef.tolist() == [0, 1, 2, 3, 3, 1]
    states = np.random.default_rng(1).uniform(-1, 1, (2, 2)).astype(np.float32)
    as_new, as_old = (np.concatenate([states, np.eye(6, dtype=np.float32)[ids]], 1) for ids in ([4, 5], [3, 1]))
    actions = [new.predict(obs, deterministic=True)[0] for obs in (as_new, as_old)]
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-6)


def test_begins_as_the_mean() -> None:
    model = trained()
    assert model.log_ent_coef is not None
    model.log_ent_coef.data = th.arange(3.0)
    new = model.adapt(new_env(), init="mean")
    assert new.log_ent_coef is not None
    assert new.log_ent_coef.tolist() == [0, 1, 2, 1, 1]


def test_the_nearest_task_of_a_normalised_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model sees and the returns that are compared are those without the normalisation."""
    model = trained(env=MultiTaskVecNormalize(make_point_mass_env(4)), batch_size=16)
    towards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)
    asked: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for normalized, seen in asked.items():

        def act(obs: np.ndarray, seen: list[np.ndarray] = seen, **_: Any) -> Any:
            seen.append(obs)
            return obs[:, -4:] @ towards, None

        monkeypatch.setattr(model, "predict", act)
        env = new_env(goals=(3, 1))
        env.seed(0)
        new = model.adapt(MultiTaskVecNormalize(env) if normalized else env, keep_tasks=False)
        assert new.adapted_from is not None
        assert new.adapted_from["init"] == {"new-0": "corner-3", "new-1": "corner-1"}
    assert asked[True]
    np.testing.assert_array_equal(asked[True], asked[False])


def test_fresh_routing_is_another() -> None:
    model = trained()
    th.manual_seed(1)
    fresh, mean = (groups_of(model.adapt(new_env(), init=init).actor.network)[1] for init in ("fresh", "mean"))
    assert isinstance(fresh, SoftModularNetwork)
    assert isinstance(mean, SoftModularNetwork)
    assert not th.equal(fresh.get_parameter("routing_down.0.weight"), mean.get_parameter("routing_down.0.weight"))
    assert th.equal(fresh.get_parameter("module_layers.0.weight"), mean.get_parameter("module_layers.0.weight"))
    (network,) = groups_of(model.actor.network)
    assert isinstance(network, SoftModularNetwork)
    old = network.task_encoder.weight
    th.testing.assert_close(mean.task_encoder.weight, old.mean(-1, keepdim=True).expand(-1, -1, 2))


def test_again() -> None:
    model = trained()
    before = of_old_tasks(model)
    second = model.adapt(new_env(), init="mean").learn(60)
    observations = np.concatenate([old_observations(0)[:, :2], np.eye(5, dtype=np.float32)[[3, 4, 3] * 3]], 1)
    actions = second.predict(observations, deterministic=True)[0]
    third = second.adapt(new_env(("later",), (2,)), tune="heads").learn(60)
    assert third.task_names == [*model.task_names, *NEW, "later"]
    assert_same(of_old_tasks(third), before)
    more = np.concatenate([observations, np.zeros((9, 1), np.float32)], 1)
    np.testing.assert_array_equal(third.predict(more, deterministic=True)[0], actions)


@pytest.mark.parametrize(("tune", "sizes"), [("routing", [(20, 10), (12, 5)]), ("all", [(50, 10), (60, 5)])])
def test_again_with_as_many_samples_of_each_task(tune: Any, sizes: list[tuple[int, int]]) -> None:
    """10 in a batch of each task that learns, rounded up so that all tasks divide it; 5 of each before learning."""
    second = trained(steps=0, batch_size=10 * M, learning_starts=5 * M).adapt(new_env(), tune=tune, init="mean")
    third = second.adapt(new_env(("later",), (2,)), tune=tune, init="mean")
    assert [(model.batch_size, model.learning_starts) for model in (second, third)] == sizes


def test_normalisation_of_the_old_tasks_stays() -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(M))
    model = trained(env=env)
    raw = old_observations()
    before = env.normalize_obs(raw)
    new = model.adapt(new_env(), init="mean").learn(60)
    after = new.get_vec_normalize_env()
    assert isinstance(after, MultiTaskVecNormalize)
    assert after.obs_statistics == "per-task"
    np.testing.assert_array_equal(after.normalize_obs(old_observations(2))[:, : 2 + M], before)
    counts = [rms.count for rms in after.obs_rms]
    assert counts[0] == counts[2] < counts[3]
    pooled = model.adapt(new_env(), tune="all", init="mean").get_vec_normalize_env()
    assert isinstance(pooled, MultiTaskVecNormalize)
    assert pooled.obs_statistics == "pooled"


def test_the_replay_buffer_grows() -> None:
    model = trained()
    new = model.adapt(new_env(), tune="all", init="mean")
    assert isinstance(new.replay_buffer, MultiTaskReplayBuffer)
    assert new.replay_buffer.capacity_per_task == 200
    assert new.replay_buffer.added_per_task.tolist() == [20, 20, 20, 0, 0]
    states = {tuple(row) for row in new.replay_buffer.sample(300).observations[:, :2].tolist()}
    assert model.replay_buffer is not None
    old = {tuple(row) for row in model.replay_buffer.sample(3000).observations[:, :2].tolist()}
    assert states <= old
    assert len(states) > 50  # of 60 that were stored
    frozen = model.adapt(new_env(), init="mean")
    assert frozen.replay_buffer is not None
    assert frozen.replay_buffer.size() == 0
    assert (frozen.batch_size, new.batch_size) == (10, 20)  # 4 of each task that learns, as far as 5 tasks divide it


def test_a_replay_buffer_with_other_room() -> None:
    model = trained()
    options: dict[str, Any] = dict(tune="all", init="mean", buffer_size=500)
    message = "room for 200 transitions of each task, not for 100 as with buffer_size=500: leave buffer_size out"
    with pytest.raises(ConfigurationError, match=message):
        model.adapt(new_env(), **options)
    assert model.replay_buffer is not None
    model.replay_buffer.reset()
    grown = model.adapt(new_env(), **options).replay_buffer
    assert isinstance(grown, MultiTaskReplayBuffer)
    assert grown.capacity_per_task == 100


def test_listed_temperatures_and_reward_scales_grow() -> None:
    model = trained(ent_coef=[0.1, 0.2, 0.3], reward_scaling="per-task")
    new = model.adapt(new_env(), init="mean")
    np.testing.assert_allclose(new.ent_coef_tensor.numpy(), [0.1, 0.2, 0.3, 0.2, 0.2], rtol=1e-6)
    assert new.reward_scale is not None
    assert model.reward_scale is not None
    np.testing.assert_array_equal(new.reward_scale.largest_returns(), [*model.reward_scale.largest_returns(), 0, 0])
    new.learn(60)
    discounted = model.adapt(new_env(), init="mean", gamma=0.9)
    assert discounted.reward_scale is not None
    assert discounted.reward_scale.largest_returns().tolist() == [0] * 5  # those of another discount tell nothing


def test_action_noise_is_a_model_s_own() -> None:
    """It remembers its last value."""
    model = trained(action_noise=OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2)))
    adapted = model.adapt(new_env(goals=(3, 1)))
    assert adapted.action_noise is not model.action_noise


def test_fixed_temperatures_begin_as_the_mean_of_the_first_tasks() -> None:
    model = trained(ent_coef=[0.1, 0.2, 0.6])
    again = model.adapt(new_env(), init="nearest").adapt(new_env(("newer-0", "newer-1")), init="mean")
    assert np.asarray(again.ent_coef)[-2:] == pytest.approx([0.3, 0.3])
