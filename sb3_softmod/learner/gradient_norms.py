"""The norms of the tasks' gradients at one layer, from the backward pass of their common loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from torch import Tensor, nn

from sb3_softmod.common.errors import ConfigurationError


class WatchedFunction:
    """A function that evaluates a network, and keeps what goes into one of its layers and comes back to it.

    :param function: not compiled
    :param layer: a linear layer of the network, or a batch of them: from ``[*prefix, B, in]`` to
        ``[*batch_shape, B, out]``, where the prefix is the beginning of the batch's shape
    """

    def __init__(self, function: Callable[..., Any], layer: nn.Module) -> None:
        self._function, self._layer = function, layer
        self._inputs: Tensor | None = None
        self._outputs: Tensor | None = None

    def __call__(self, *args: Any) -> Any:
        handle = self._layer.register_forward_hook(self._keep)
        try:
            return self._function(*args)
        finally:
            handle.remove()

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        if not outputs.requires_grad:
            raise ConfigurationError(
                "loss_weighting='gradnorm' measures gradients at the last layer that all tasks share, and neither that "
                "layer of the critics nor anything before it learns: adapt(tasks, loss_weighting='uniform'), or drop "
                "the old tasks and tune all."
            )
        outputs.retain_grad()
        self._inputs, self._outputs = inputs[0].detach(), outputs

    def gradient_norms(self, num_tasks: int) -> Tensor:
        """Of the last call, after its backward pass: the norms of the tasks' parts of the layer's weights' gradient.

        :param num_tasks: P, of the rows, which are ordered by task, the same number of each
        :return: ``[P]``, float32
        """
        inputs, gradients = self._inputs, None if self._outputs is None else self._outputs.grad
        if inputs is None or gradients is None:
            raise ConfigurationError("The last_shared_layer of the critics' network has no part in their loss.")
        self._inputs = self._outputs = None  # they hold the whole graph
        return linear_gradient_norms(inputs, gradients, num_tasks)


def linear_gradient_norms(inputs: Tensor, gradients: Tensor, num_tasks: int) -> Tensor:
    r"""The norms of each task's gradient of a linear layer's weights, :math:`\lVert \sum_b \delta_b x_b^\top \rVert`.

    By inner products, :math:`\sum_{bc} (\delta_b \cdot \delta_c)(x_b \cdot x_c)`: no gradient of any task is made.

    :param inputs: ``[*prefix, B, in]``, rows ordered by task, the same number of each
    :param gradients: ``[*batch_shape, B, out]``, of the layer's output
    :param num_tasks: P, of the rows
    :return: ``[P]``, over all layers of the batch
    """
    missing, at = gradients.dim() - inputs.dim(), inputs.dim() - 2
    x, delta = (_inner_products(rows.float(), num_tasks) for rows in (inputs, gradients))
    for _ in range(missing):  # layers that read the same input
        x = x.unsqueeze(at)
    squares = (x * delta).sum((-1, -2))  # [*batch_shape, P]
    return squares.reshape(-1, num_tasks).sum(0).clamp(min=0).sqrt()


def _inner_products(rows: Tensor, num_tasks: int) -> Tensor:
    """Of all pairs of a task's rows: ``[..., B, n]`` to ``[..., P, B / P, B / P]``."""
    by_task = rows.unflatten(-2, (num_tasks, -1))
    return th.matmul(by_task, by_task.mT)
