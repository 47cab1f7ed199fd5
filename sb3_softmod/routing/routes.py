"""The routing that a model's networks choose, as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_softmod.algorithm.mixed_model import MixedModel
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import split, task_ids
from sb3_softmod.networks import SoftModularNetwork
from sb3_softmod.networks.adapted import groups_of
from sb3_softmod.policies import MultiTaskCritic

#: A connection is strong when its probability is at least this many times the even share 1/n: a network of one module,
#: or one that was not trained, has none.
STRONG = 1.5

#: Steps of each task that the routing of a run is averaged over.
STEPS = 200

#: States that go through a network at once, so that long rollouts of many tasks fit into memory.
_CHUNK = 4096


@dataclass(frozen=True)
class RoutingSamples:
    """The routing probabilities of one network at many states.

    :param network: "actor", "critic 1", "critic 2", ...
    :param task_names: of all M tasks
    :param task_ids: ``[B]``, the task of each state
    :param layers: each ``[B, n, n]`` (target module, source module), whose rows sum to 1; the routed head of the
        official variant adds a last ``[B, n]``
    """

    network: str
    task_names: list[str]
    task_ids: np.ndarray
    layers: list[np.ndarray]

    def tasks(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """The name and the layers of each task that some state is of."""
        for task, name in enumerate(self.task_names):
            rows = self.task_ids == task
            if rows.any():
                yield name, [layer[rows] for layer in self.layers]

    def routes(self) -> np.ndarray:
        """The probabilities of all layers side by side, as the paper's Figure 4 compares them: ``[B, (L - 1) n²]``,
        and n more of a routed head."""
        return np.concatenate([layer.reshape(len(layer), -1) for layer in self.layers], 1)

    def entropy(self) -> dict[str, float]:
        """How undecided the routing of each task is: 1 where all modules count the same, 0 where one counts alone.

        The entropy of a target module's sources divided by log n, averaged over targets, layers and states.
        """
        out = {}
        for name, layers in self.tasks():
            values = [-(p * np.log(np.clip(p, 1e-12, None))).sum(-1) for p in layers]
            total, count = sum(v.sum() for v in values), sum(v.size for v in values)
            out[name] = float(total / count / max(np.log(layers[0].shape[-1]), 1e-12))
        return out


@dataclass(frozen=True)
class RoutingStatistics:
    """The routing of each task over the states of its rollouts, for one network.

    :param network: "actor", "critic 1", ...
    :param mean: of each task, layer by layer ``[n, n]`` (target module, source module), and ``[n]`` for a routed head
    :param std: the standard deviation over the states, in the same form
    """

    network: str
    mean: dict[str, list[np.ndarray]]
    std: dict[str, list[np.ndarray]]

    @classmethod
    def of(cls, samples: RoutingSamples) -> RoutingStatistics:
        """Those of samples; a task without states is left out."""
        tasks = dict(samples.tasks())
        return cls(
            samples.network,
            {name: [layer.mean(0) for layer in layers] for name, layers in tasks.items()},
            {name: [layer.std(0) for layer in layers] for name, layers in tasks.items()},
        )

    @property
    def task_names(self) -> list[str]:
        """The tasks."""
        return list(self.mean)

    @cached_property
    def similarity(self) -> np.ndarray:
        """How alike the mean routes of two tasks are, ``[tasks, tasks]``: from 0 to 1, where they are the same.

        1 minus the total variation distance between the sources of a target module, ``0.5 sum_j |p_ij - q_ij|``,
        averaged over all targets of all layers.
        """
        routes = np.stack([np.concatenate([np.atleast_2d(p) for p in layers]) for layers in self.mean.values()])
        distance = [0.5 * np.abs(routes - route).sum(-1).mean(-1) for route in routes]
        return 1 - np.stack(distance)

    def strong(self, task: str) -> list[np.ndarray]:
        """Which connections have a mean of at least :data:`STRONG` / n, as booleans in the form of the mean."""
        return [layer >= STRONG / layer.shape[-1] for layer in self.mean[task]]

    def shared(self, first: str, second: str) -> list[np.ndarray]:
        """Which connections are strong in both tasks, in the form of the mean."""
        return [a & b for a, b in zip(self.strong(first), self.strong(second), strict=True)]

    def most_similar(self, count: int) -> list[tuple[str, str]]:
        """The pairs of tasks with the most similar routes, the most similar first."""
        pairs = sorted(combinations(range(len(self.mean)), 2), key=lambda pair: -self.similarity[pair])
        return [(self.task_names[a], self.task_names[b]) for a, b in pairs[:count]]


def routed_networks(model: Any) -> dict[str, tuple[nn.Module, SoftModularNetwork]]:
    """The soft-modular networks of a model.

    :param model: any algorithm of SB3
    :return: "actor", "critic" or, of an algorithm without these, "policy", to the part of the policy and the network in
        it: its own, or that of its features extractor
    :raises ConfigurationError: where there is none
    """
    policy = model.policy
    parts = {name: part for name in ("actor", "critic") if (part := getattr(policy, name, None)) is not None}
    found = {}
    for name, part in (parts or {"policy": policy}).items():
        for holder in (part, getattr(part, "features_extractor", None)):
            network = getattr(holder, "network", None)
            if network is not None and isinstance(groups_of(network)[0], SoftModularNetwork):
                found[name] = (part, network)
    if not found:
        raise ConfigurationError(
            f"{type(policy).__name__} has no routing to show: only soft modularization recombines modules by "
            "probabilities. Take a model that was trained with SoftModPolicy (the methods softmod_*), or with "
            "SoftModularExtractor."
        )
    return found


def sample_routing(
    model: Any, observations: np.ndarray, actions: np.ndarray | None, task_names: Sequence[str]
) -> list[RoutingSamples]:
    """The routing of the actor and of each critic along rollouts.

    :param model: any algorithm of SB3 with a soft-modular network, or a :class:`.MixedModel` of one
    :param observations: ``[..., O + M]``, of any tasks
    :param actions: ``[..., action_dim]``, as the env takes them, which critics route by too; None leaves critics out
    :param task_names: of all tasks
    :return: of the actor, and of each critic; of an algorithm without an actor, of its policy
    :raises ConfigurationError: for a model without routing, or observations without a task
    """
    networks = routed_networks(model)
    flat = observations.reshape(-1, observations.shape[-1])
    ids = task_ids(flat, len(task_names), row_of="row")
    out = []
    for name, (part, network) in networks.items():
        inputs, task = split(flat, len(task_names))
        if isinstance(model, MixedModel):
            task = task @ model.routes
        if isinstance(part, MultiTaskCritic):
            if actions is None:
                continue
            inputs = np.concatenate([inputs, model.policy.scale_action(actions.reshape(len(flat), -1))], 1)
        layers = _probabilities(network, inputs, task)
        for member in range(network.ensemble_size):
            title = name if network.ensemble_size == 1 else f"{name} {member + 1}"
            out.append(RoutingSamples(title, list(task_names), ids, [layer[member] for layer in layers]))
    return out


def _probabilities(network: SoftModularNetwork, inputs: np.ndarray, task: np.ndarray) -> list[np.ndarray]:
    """Layers of ``[E, B, n, n]``, and ``[E, B, n]`` of a routed head."""
    parameter = next(network.parameters())
    states, tasks = (th.as_tensor(x, dtype=parameter.dtype, device=parameter.device) for x in (inputs, task))
    with th.no_grad():
        chunks = [
            [layer.cpu().numpy() for layer in network.routing(*chunk)]
            for chunk in zip(states.split(_CHUNK), tasks.split(_CHUNK), strict=True)
        ]
    return [np.concatenate(parts, 1) for parts in zip(*chunks, strict=True)]
