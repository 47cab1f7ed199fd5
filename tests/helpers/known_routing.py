"""A policy whose routing is known, set by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from point_mass import make_point_mass_env
from stable_baselines3 import SAC

from sb3_softmod import SoftModPolicy, SoftModularNetwork

NAMES = ["corner-0", "corner-1"]

#: Of each task ``[n, n]``: target, source.
ACTOR = np.array([[[0.9, 0.1], [0.3, 0.7]], [[0.8, 0.2], [0.5, 0.5]]])
#: Of each critic.
CRITICS = np.array([ACTOR[::-1], 1 - ACTOR])


def model() -> Any:
    """SAC on two point masses. The actor routes as ``ACTOR`` says where the first entry of the state is 1, and evenly
    where it is not positive; the critics do so by the first entry of the action."""
    model = SAC(
        SoftModPolicy,
        make_point_mass_env(2),
        policy_kwargs=dict(num_tasks=2, num_modules=2, num_layers=2, module_dim=3, embedding_dim=2, state_hidden=[1]),
        buffer_size=100,
        device="cpu",
        seed=0,
    )
    _set(model.actor.network, 0, ACTOR[None])  # type: ignore[arg-type]
    _set(model.critic.network, 2, CRITICS)  # type: ignore[arg-type]
    return model


def _set(network: SoftModularNetwork, entry: int, probabilities: np.ndarray) -> None:
    """Make f(s) = ReLU(s[entry]) in both dimensions and h(z) = z, so that the logits of task t are column t of W_d."""
    with th.no_grad():
        for p in network.parameters():
            p.zero_()
        first, last = network.state_encoder.layers
        first.weight[:, 0, entry] = 1.0  # type: ignore[operator]
        last.weight.fill_(1.0)  # type: ignore[operator]
        network.task_encoder.weight.copy_(th.eye(2))
        logits = th.as_tensor(np.log(probabilities)).flatten(2).mT  # [E, n * n, M]
        network.routing_down[0].weight.copy_(logits)  # type: ignore[operator]


def states(first: list[float], task: int) -> np.ndarray:
    """Observations whose first entry is given, ``[B, 4]``."""
    return np.array([[x, 0.5, *np.eye(2)[task]] for x in first], np.float32)
