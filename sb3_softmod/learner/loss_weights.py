"""How much the loss of each task counts: Eq. 10 of the paper, and others that nothing is learned for."""

from __future__ import annotations

from typing import Literal, get_args

import torch as th
from torch import Tensor

LossWeighting = Literal["uniform", "alpha", "log_alpha", "success", "gradnorm", "famo", "uncertainty"]
LOSS_WEIGHTINGS: tuple[LossWeighting, ...] = get_args(LossWeighting)

#: How many of a task's last episodes in training its rate of success is of.
RECENT_EPISODES = 10
#: What a task that always succeeds counts; one that never does counts 1 more.
_LEAST = 0.1


def loss_weights(
    weighting: LossWeighting, alpha: Tensor, present: Tensor | None = None, success: Tensor | None = None
) -> Tensor:
    r"""The weights of the tasks' losses, without gradient.

    :param weighting: "alpha": :math:`w_i = M e^{-\alpha_i} / \sum_j e^{-\alpha_j}`, Eq. 10 scaled to a mean of 1;
        "log_alpha": the same over :math:`\log \alpha_i`, as in the authors' code; "success": in proportion to
        :math:`1.1 - s_i`, of the rates of success; "uniform": all 1, and so for weights that are learned, which the
        critics' losses alone have, see :mod:`.learned_weights`
    :param alpha: ``[M]``, the temperatures
    :param present: ``[M]`` booleans, the tasks that are learned from; the sums and M are then over these; None for all
    :param success: ``[M]``, the rates of success in the last :data:`RECENT_EPISODES` episodes of each task; for
        "success" alone
    :return: ``[M]``, positive, of mean 1 over the tasks present; 0 for others
    """
    alpha = alpha.detach()
    if weighting == "success":
        assert success is not None
        failing = 1 + _LEAST - success
        if present is None:
            return failing / failing.mean()
        failing = failing.masked_fill(~present, 0.0)
        return failing * (present.sum() / failing.sum())
    if weighting not in ("alpha", "log_alpha"):
        return th.ones_like(alpha) if present is None else present.to(alpha.dtype)
    logits = -alpha if weighting == "alpha" else -alpha.log()
    if present is None:
        return len(alpha) * th.softmax(logits, 0)
    return present.sum() * th.softmax(logits.masked_fill(~present, -th.inf), 0)
