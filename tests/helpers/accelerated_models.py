"""Models that learn with and without acceleration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from stable_baselines3.common.logger import Logger

from sb3_softmod import MultiTaskSAC
from sb3_softmod.methods import METHODS

M = 4
SMALL: dict[str, dict[str, Any]] = {
    "SoftModPolicy": dict(embedding_dim=12, module_dim=8),
    "MixtureOfExpertsPolicy": dict(net_arch=[12, 10], gating_arch=[9]),
    "HardRoutingPolicy": dict(num_layers=2, embedding_dim=12, module_dim=8),
    "CAREPolicy": dict(embedding_dim=6, encoder_arch=[7], net_arch=[12, 10]),
    "FiLMPolicy": dict(embedding_dim=6, net_arch=[12, 10]),
    "BROPolicy": dict(width=12, embedding_dim=6),
}
needs_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")


def make_model(method: str = "softmod_official", **kwargs: Any) -> MultiTaskSAC:
    """A small model whose buffer holds 50 transitions of each task."""
    policy = METHODS[method].policy
    assert isinstance(policy, str)
    options: dict[str, Any] = dict(
        batch_size=8 * M,
        learning_starts=10 * M,
        buffer_size=4000,
        policy_kwargs=SMALL.get(policy, dict(net_arch=[12, 10])),
        seed=0,
        device="cpu",
    )
    env = kwargs.pop("env", None) or make_point_mass_env(M)
    model = METHODS[method].make(env, **{**options, **kwargs})
    model.set_logger(Logger(folder=None, output_formats=[]))
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.normal(size=(51, M, 2)), np.tile(np.eye(M), (51, 1, 1))], -1).astype(np.float32)
    assert model.replay_buffer is not None
    for row in range(50):
        reward, actions = rng.normal(size=M), rng.uniform(-1, 1, (M, 2))
        model.replay_buffer.add(states[row], states[row + 1], actions, reward, np.zeros(M, bool), [{}] * M)
    return model


def take_steps(model: MultiTaskSAC, steps: int) -> dict[str, np.ndarray]:
    """Gradient steps on the same batches for every model; their mean metrics, each ``[M]``."""
    th.manual_seed(1)
    np.random.seed(1)
    for _ in range(steps):  # as many calls as in training
        model.train(1, 8 * M)
    return model._metrics.pop()


def largest_difference(one: MultiTaskSAC, other: MultiTaskSAC) -> float:
    theirs = other.policy.state_dict()
    return max(float((p - theirs[name]).abs().max()) for name, p in one.policy.state_dict().items())
