"""The options of the baselines' networks and policies, and every policy inside SB3's own SAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from plain_networks import IN, OUT, SIZES, M
from point_mass import make_point_mass_env
from stable_baselines3 import SAC

from sb3_softmod import ConfigurationError
from sb3_softmod.networks import (
    BroNetwork,
    CARENetwork,
    FiLMNetwork,
    HardRoutingNetwork,
    MixtureOfExpertsNetwork,
    MOORENetwork,
    MultiHeadNetwork,
    MultiTaskNetwork,
    PaCoNetwork,
)
from sb3_softmod.policies import POLICIES, MultiTaskSACPolicy

NETWORKS = list(SIZES)
WITH_NET_ARCH = [c for c in NETWORKS if c not in (HardRoutingNetwork, BroNetwork)]


@pytest.mark.parametrize(
    ("net_arch", "message"),
    [
        (400, "net_arch must be a list of layer widths, not 400"),
        ("400", "net_arch must be a list of layer widths, not '400'"),
        (dict(pi=[8], qf=[8]), "net_arch must be a list of layer widths, not {'pi'"),
        ([8, 0], "Each width in net_arch must be from 1 to 65536, not 0"),
        ([8, -1], "Each width in net_arch must be from 1 to 65536, not -1"),
        ([8.0], "Each width in net_arch must be an integer, not 8.0"),
        ([True], "Each width in net_arch must be an integer, not True"),
    ],
)
@pytest.mark.parametrize("network_class", WITH_NET_ARCH)
def test_bad_net_arch_is_refused(network_class: type[MultiTaskNetwork], net_arch: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        network_class(IN, OUT, M, net_arch=net_arch)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("network_class", "options", "message"),
    [
        (MultiHeadNetwork, dict(net_arch=[]), "net_arch needs at least 1 layer"),
        (MOORENetwork, dict(net_arch=[]), "net_arch needs at least 1 layer"),
        (FiLMNetwork, dict(net_arch=[]), "net_arch needs at least 1 layer"),
        (FiLMNetwork, dict(embedding_dim=0), "embedding_dim must be from 1 to 65536, not 0"),
        (MOORENetwork, dict(num_experts=9, net_arch=[16, 8]), "num_experts=9 features of width 8 .* cannot be orthog"),
        (MOORENetwork, dict(num_experts=0), "num_experts must be from 1 to 65536, not 0"),
        (MixtureOfExpertsNetwork, dict(num_experts=2.0), "num_experts must be an integer, not 2.0"),
        (MixtureOfExpertsNetwork, dict(gating_arch=5), "gating_arch must be a list of layer widths, not 5"),
        (CARENetwork, dict(num_encoders=-1), "num_encoders must be from 1 to 65536, not -1"),
        (CARENetwork, dict(embedding_dim="50"), "embedding_dim must be an integer, not '50'"),
        (CARENetwork, dict(encoder_arch=[0]), "Each width in encoder_arch must be from 1 to 65536, not 0"),
        (PaCoNetwork, dict(num_parameter_sets=0), "num_parameter_sets must be from 1 to 65536, not 0"),
        (HardRoutingNetwork, dict(num_layers=0), "num_layers must be from 1 to 65536, not 0"),
        (HardRoutingNetwork, dict(num_modules=None), "num_modules must be an integer, not None"),
        (HardRoutingNetwork, dict(module_dim=-3), "module_dim must be from 1 to 65536, not -3"),
        (HardRoutingNetwork, dict(embedding_dim=0), "embedding_dim must be from 1 to 65536, not 0"),
        (BroNetwork, dict(width=0), "width must be from 1 to 65536, not 0"),
        (BroNetwork, dict(num_blocks=0), "num_blocks must be from 1 to 65536, not 0"),
        (BroNetwork, dict(embedding_dim=-2), "embedding_dim must be from 1 to 65536, not -2"),
        *((c, dict(ensemble_size=0), "ensemble_size must be from 1 to 65536, not 0") for c in NETWORKS),
    ],
)
def test_bad_sizes_are_refused(network_class: type[MultiTaskNetwork], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        network_class(IN, OUT, M, **options)


@pytest.mark.parametrize("policy_class", POLICIES.values())
def test_unknown_options_are_refused(policy_class: type[MultiTaskSACPolicy]) -> None:
    space, actions = spaces.Box(-np.inf, np.inf, (6,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
    network_class = policy_class.network_class
    others = "num_blocks" if network_class is BroNetwork else "module_dim"
    known = "net_arch" if network_class in WITH_NET_ARCH else others
    options: dict[str, Any] = {known[:-1]: [8]}
    message = f"Unknown option '{known[:-1]}' of {policy_class.__name__}: did you mean '{known}'"
    with pytest.raises(ConfigurationError, match=message):
        policy_class(space, actions, lambda _: 1e-3, num_tasks=4, **options)
    with pytest.raises(ConfigurationError, match="Unknown option 'ensemble_size'"):
        policy_class(space, actions, lambda _: 1e-3, num_tasks=4, ensemble_size=2)


# ------------------------------------------------------------------------- in plain SB3


@pytest.mark.parametrize("name", POLICIES)
def test_in_plain_sac(name: str, tmp_path: Path) -> None:
    policy_class = POLICIES[name]
    options = SIZES.get(policy_class.network_class, [dict(embedding_dim=8, module_dim=6)])[0]
    env = make_point_mass_env(4)
    model = SAC(
        policy_class,
        env,
        policy_kwargs=dict(num_tasks=4, n_critics=3, **options),
        learning_starts=40,
        batch_size=32,
        buffer_size=1000,
        seed=0,
    )
    assert isinstance(model.policy, policy_class)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(120)
    for key, value in model.policy.state_dict().items():
        if key.endswith("controller"):  # of Hard Routing: without MultiTaskSAC it stays as it was drawn
            assert (value - before[key]).abs().max() < 1e-7, key
        else:
            assert not th.equal(value, before[key]), key

    obs = env.reset()
    assert isinstance(obs, np.ndarray)
    expected = model.predict(obs, deterministic=True)[0]
    assert len(np.unique(expected.round(5), axis=0)) == 4
    model.save(tmp_path / "sac")
    np.testing.assert_array_equal(SAC.load(tmp_path / "sac").predict(obs, deterministic=True)[0], expected)

    model.policy.save(str(tmp_path / "policy.pth"))
    policy = policy_class.load(str(tmp_path / "policy.pth"))
    assert policy.network_kwargs == model.policy.network_kwargs == options
    assert policy.critic.n_critics == 3
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], expected)
    tensors = th.tensor(obs), th.rand(4, 2)
    model.policy.set_training_mode(False)
    for q, q_before in zip(policy.critic(*tensors), model.policy.critic(*tensors), strict=True):
        assert th.equal(q, q_before)
