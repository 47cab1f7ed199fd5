"""A trained model that acts by a mixture of its tasks, in a task that it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_softmod.algorithm.learning_sac import LearningSAC
from sb3_softmod.algorithm.options import TOLERANCE, check_observation
from sb3_softmod.common.checks import require_choice, require_names, require_number
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import check_task_names, make_space, split
from sb3_softmod.envs.normalization_statistics import mixed_statistics
from sb3_softmod.networks import MultiTaskNetwork


class MixedModel:
    r"""What :meth:`.MultiTaskSAC.with_route` returns: a model under other tasks, each a mixture of those that it knows.

    Where the model's networks read the one-hot task z, they read :math:`\sum_i w_i z_i`; of soft modularization, that
    routes by the mixture of the task embeddings. Nothing is copied and nothing learned: it acts as the model does at
    that moment. It takes the place of a model in :func:`.evaluate_tasks`, videos, figures of the routing and SB3's
    ``evaluate_policy``.

    Observations are normalised by the model's statistics; where each task has its own, by mean and variance of
    observations of which a share :math:`w_i` is of task i.

    :param model: with a policy whose networks take mixtures
    :param mixture: the share of each task, by name; those that are left out have none
    :param as_task: None: there is one task, whatever it is called, and it is played by the mixture. A name: the model's
        own tasks are played as ever, and after them is that one
    :raises ConfigurationError: for unknown tasks, shares below 0 or that do not sum to 1 (within 0.001), a name that
        the model has already, and a policy that a mixture means nothing to
    """

    def __init__(self, model: LearningSAC, mixture: Mapping[str, float], as_task: str | None = None) -> None:
        _check_networks(model.policy)
        known = list(model.task_names)
        shares = _shares(mixture, known)
        self.model = model
        self.mixture = dict(mixture)
        #: Of all tasks that are played, by id; empty where the only one goes by any name.
        self.task_names: list[str] = []
        #: ``[K, M]``, of each of the K tasks that are played the shares of the M tasks that the model learned.
        self.routes = shares[None]
        if as_task is not None:
            _check_name(as_task, known)
            self.task_names = [*known, as_task]
            self.routes = np.concatenate([np.eye(len(known), dtype=np.float32), shares[None]])
        self.num_tasks = len(self.routes)
        self.policy = model.policy
        self.action_space = model.action_space
        width = model.observation_space.shape[0] - len(known)  # type: ignore[index]
        self.observation_space = make_space(width, self.num_tasks)

    @property
    def normalization(self) -> dict[str, Any] | None:
        """Statistics of a :class:`.MultiTaskVecNormalize` for the tasks that are played; None for raw observations."""
        statistics = self.model.observation_statistics()
        return None if statistics is None else mixed_statistics(statistics, self.routes)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The actions for some observations; arguments as in SB3.

        :param observation: ``[O + K]`` or ``[B, O + K]``, of the K tasks that are played
        :raises ConfigurationError: for observations of another shape, or that name no task
        """
        check_observation(observation, self.observation_space, self.num_tasks)
        own, task = split(np.asarray(observation, np.float32), self.num_tasks)
        return self.model.predict(np.concatenate([own, task @ self.routes], -1), state, episode_start, deterministic)


def _check_name(name: object, known: list[str]) -> None:
    """:raises ConfigurationError: for what cannot be the name of one more task"""
    if not isinstance(name, str):
        raise ConfigurationError(f"as_task must be the name of a task, not {name!r}.")
    check_task_names([name])
    if name in known:
        raise ConfigurationError(f"The model knows a task {name!r} already: name the new one otherwise.")


def _shares(mixture: Mapping[str, float], known: list[str]) -> np.ndarray:
    """The share of each task, ``[M]`` float32."""
    require_names("A mixture", mixture)
    for task, share in mixture.items():
        require_choice("task", task, known)
        require_number(f"The share of {task!r}", share, 0)
    total = sum(mixture.values())
    if abs(total - 1) > TOLERANCE:
        raise ConfigurationError(f"The shares of a mixture must sum to 1, not to {total:g}: {dict(mixture)}.")
    return np.array([mixture.get(task, 0.0) for task in known], np.float32)


def _check_networks(policy: Any) -> None:
    """:raises ConfigurationError: for a policy that a mixture of tasks means nothing to"""
    network = getattr(policy.actor, "network", None)
    if isinstance(network, MultiTaskNetwork) and not network.mixes_tasks:
        raise ConfigurationError(
            f"{type(policy).__name__} cannot act by a mixture of tasks: {type(network).__name__} takes one at a time."
        )
