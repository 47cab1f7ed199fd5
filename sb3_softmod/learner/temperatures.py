"""The entropy temperatures of the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_softmod.common.checks import require_number
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.learner.loss_weights import LossWeighting


class Temperatures(NamedTuple):
    """The temperatures of a model, learned or fixed.

    :param log_alpha: ``[M]``, their logarithms, where they are learned
    :param optimizer: of these
    :param alpha: ``[M]``, where they are fixed
    """

    log_alpha: th.Tensor | None
    optimizer: th.optim.Optimizer | None
    alpha: th.Tensor | None

    def values(self) -> th.Tensor:
        """What they are now, ``[M]``, without gradient."""
        if self.alpha is not None:
            return self.alpha
        assert self.log_alpha is not None
        return self.log_alpha.detach().exp()

    def losses(self, log_prob: th.Tensor, target_entropy: float, present: th.Tensor) -> th.Tensor:
        """Eq. 2 for each task of a batch; temperatures that are learned get their gradients.

        :param log_prob: ``[M]``, the mean over each task's samples
        :param target_entropy: what they aim at
        :param present: ``[M]``, 1 for the tasks of the batch, 0 for others
        :return: ``[M]``
        """
        if self.optimizer is None or self.log_alpha is None:
            return th.zeros_like(log_prob)
        losses = -self.log_alpha * (log_prob + target_entropy * present)
        self.optimizer.zero_grad()
        losses.sum().backward()  # a sum, so that a step does not shrink with the number of tasks
        return losses.detach()

    def step(self, step: Callable[[th.optim.Optimizer], None], present: th.Tensor | None) -> None:
        """Let those that are learned take a step.

        :param step: that of an optimizer
        :param present: ``[M]``, whether a task is in the batch, where some are not: the others' temperatures stay
        """
        if self.optimizer is None or self.log_alpha is None:
            return
        before = self.log_alpha.detach().clone()
        step(self.optimizer)
        if present is not None:  # Adam's momentum moves what has no gradient too
            self.log_alpha.data.copy_(th.where(present, self.log_alpha.detach(), before))


def initial_temperatures(ent_coef: Any, num_tasks: int, weighting: LossWeighting) -> th.Tensor:
    """The first temperature of each task.

    :param ent_coef: "auto" (1), "auto_0.1" (0.1), a number, or one for each task
    :param num_tasks: M
    :param weighting: how the temperatures weight the losses; "log_alpha" needs positive ones
    :return: ``[M]``
    :raises ConfigurationError: for anything else, or a list of another length
    """
    learned = isinstance(ent_coef, str)
    listed = not learned and isinstance(ent_coef, (Sequence, np.ndarray))
    try:
        if learned:
            prefix, _, start = ent_coef.partition("_")
            values = [float(start or 1.0)] if prefix == "auto" and "_" not in start else []  # Python reads 0_1 as 1
        else:
            values = [float(value) for value in (ent_coef if listed else [ent_coef])]
    except (TypeError, ValueError):
        values = []
    # A fixed temperature may be 0; one that is learned, or whose logarithm is used, may not.
    lowest = th.finfo(th.float32).tiny if learned or weighting == "log_alpha" else 0.0
    if not values or not all(math.isfinite(value) and value >= lowest for value in values):
        raise ConfigurationError(
            f'ent_coef must be "auto", "auto_0.1" (any positive start), a number of at least 0 (above 0 with '
            f'loss_weighting="log_alpha"), or a list of {num_tasks} such numbers, not {ent_coef!r}.'
        )
    if listed and len(values) != num_tasks:
        raise ConfigurationError(f"ent_coef lists {len(values)} temperatures, but there are {num_tasks} tasks.")
    return th.tensor(values if listed else values * num_tasks, dtype=th.float32)


def target_entropy_of(given: Any, action_dim: int) -> float:
    """The entropy that the temperatures aim at.

    :param given: "auto" (-A), "auto_0.5" (half of that, or any other multiple), or a number
    :param action_dim: A
    :raises ConfigurationError: for anything else
    """
    if not isinstance(given, str):
        require_number("target_entropy", given)
        return float(given)
    prefix, separator, multiple = given.partition("_")
    try:
        entropy = (
            -action_dim * (float(multiple) if separator else 1.0)
            if prefix == "auto" and "_" not in multiple
            else math.nan
        )
    except ValueError:
        entropy = math.nan
    if not math.isfinite(entropy):
        raise ConfigurationError(
            f'target_entropy must be "auto" (minus the number of action dimensions), "auto_0.5" (minus half of it), or '
            f"a number, not {given!r}."
        )
    return entropy
