"""The policies and the extractor inside SB3's own algorithms, and alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from point_mass import make_point_mass_env
from stable_baselines3 import PPO, TD3

from sb3_softmod import ConfigurationError, SoftModPolicy, SoftModularExtractor

SMALL: dict[str, Any] = dict(embedding_dim=12, module_dim=8)
SPACE = spaces.Box(-np.inf, np.inf, (6,), np.float32)  # 2 entries and 4 tasks
ACTIONS = spaces.Box(-2.0, 2.0, (3,), np.float32)


def observations(size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    one_hot = np.eye(4, dtype=np.float32)[rng.integers(4, size=size)]
    return np.concatenate([rng.normal(size=(size, 2)).astype(np.float32), one_hot], 1)


def make_policy(**kwargs: Any) -> SoftModPolicy:
    th.manual_seed(0)
    return SoftModPolicy(SPACE, ACTIONS, lambda _: 1e-3, num_tasks=4, **{**SMALL, **kwargs})


def test_actions_of_one_observation_and_of_a_batch() -> None:
    policy = make_policy()
    batch = observations(5)
    actions, _ = policy.predict(batch, deterministic=True)
    assert actions.shape == (5, 3)
    single, _ = policy.predict(batch[2], deterministic=True)
    np.testing.assert_allclose(single, actions[2], atol=1e-6)
    sampled, _ = policy.predict(np.repeat(batch[:1], 500, 0))
    assert (np.abs(sampled) <= 2).all()
    assert sampled.std(0).min() > 0.1


def test_the_task_decides() -> None:
    same_state = np.concatenate([np.zeros((4, 2)), np.eye(4)], 1).astype(np.float32)
    actions, _ = make_policy().predict(same_state, deterministic=True)
    assert len(np.unique(actions.round(6), axis=0)) == 4


def test_the_training_mode_reaches_every_layer() -> None:
    policy = make_policy()
    for mode in (True, True, False, False, True):
        policy.set_training_mode(mode)
        for module in (policy.actor, policy.critic):
            assert {layer.training for layer in module.modules()} == {mode}


def test_networks_learn_after_they_acted() -> None:
    policy, batch = make_policy(), observations(5)
    policy.predict(batch)
    policy.actor(th.as_tensor(batch)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.actor.parameters())


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(variant="official", routing_dim=9),
        dict(preset="deep", condition_on_obs=False),
        dict(num_layers=3, num_modules=3, n_critics=3, optimizer_kwargs=dict(eps=1e-5)),
        dict(state_hidden=[10, 11], routing_history="all_probabilities", head="routed", activate_embedding=True),
    ],
)
def test_save_and_load_keep_everything(kwargs: dict[str, Any], tmp_path: Path) -> None:
    policy = make_policy(**kwargs)
    policy.save(str(tmp_path / "policy.pth"))
    loaded = SoftModPolicy.load(str(tmp_path / "policy.pth"))
    assert loaded.actor.network.options == policy.actor.network.options  # type: ignore[union-attr]
    assert loaded.critic.n_critics == policy.critic.n_critics
    assert loaded.optimizer_kwargs == policy.optimizer_kwargs
    obs = observations(7)
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], policy.predict(obs, deterministic=True)[0]
    )
    tensors = th.tensor(obs), th.rand(7, 3)
    for q, expected in zip(loaded.critic(*tensors), policy.critic(*tensors), strict=True):
        assert th.equal(q, expected)

    policy.actor.save(str(tmp_path / "actor.pth"))
    actor = type(policy.actor).load(str(tmp_path / "actor.pth"))
    assert th.equal(actor(tensors[0], deterministic=True), policy.actor(tensors[0], deterministic=True))


def test_critics_share_nothing() -> None:
    critic = make_policy().critic
    obs, actions = th.tensor(observations(6)), th.rand(6, 3)
    first, second = critic(obs, actions)
    assert first.shape == (6, 1)
    assert (first - second).abs().max() > 1e-3
    assert th.equal(critic.q1_forward(obs, actions), first)
    first.sum().backward()
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].abs().max() == 0  # the second member's


@pytest.mark.parametrize("algorithm", [PPO, TD3])
def test_extractor_in_other_algorithms(algorithm: Any, tmp_path: Path) -> None:
    env = make_point_mass_env(4)
    extractor = dict(num_tasks=4, features_dim=16, variant="official", **SMALL)
    policy_kwargs = dict(
        features_extractor_class=SoftModularExtractor, features_extractor_kwargs=extractor, net_arch=[]
    )
    options: dict[str, Any] = dict(n_steps=32, batch_size=32) if algorithm is PPO else dict(learning_starts=40)
    model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, **options)
    parts = [model.policy] if algorithm is PPO else [model.actor, model.critic]
    learning = [p for part in parts for p in part.features_extractor.parameters()]
    before = [p.detach().clone() for p in learning]
    model.learn(256)
    assert learning
    assert not any(th.equal(p, b) for p, b in zip(learning, before, strict=True))
    model.save(tmp_path / "model")
    obs = env.reset()
    again = algorithm.load(tmp_path / "model").predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(again, model.predict(obs, deterministic=True)[0])


def test_extractor_is_the_rectified_network() -> None:
    extractor = SoftModularExtractor(SPACE, num_tasks=4, features_dim=16, **SMALL)
    obs = th.tensor(observations(5))
    expected = extractor.network(obs[:, :2], obs[:, 2:])[0].clamp(min=0)
    assert th.equal(extractor(obs), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_tasks=None), "needs the number of tasks: policy_kwargs="),
        (dict(num_tasks=6), "cannot be an observation followed by a one-hot task of 6 entries"),
        (dict(num_module=3), "Unknown option 'num_module' of SoftModPolicy: did you mean 'num_modules'"),
        (dict(ensemble_size=3), "Unknown option 'ensemble_size'"),
        (dict(use_sde=True), "has no gSDE"),
        (dict(preset="depp"), "Unknown preset 'depp': did you mean 'deep'"),
    ],
)
def test_bad_options_are_refused(kwargs: dict[str, Any], message: str) -> None:
    options = {"num_tasks": 4, **kwargs}
    with pytest.raises(ConfigurationError, match=message):
        SoftModPolicy(SPACE, ACTIONS, lambda _: 1e-3, **options)
