"""Gradients of each task, and what to do where they conflict: PCGrad (Yu et al. 2020, arXiv 2001.06782)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sb3_softmod.networks.layers import by_group

#: From the tensors of some rows of a batch to their mean loss, and to metrics of each row.
LossFunction = Callable[..., tuple[Tensor, Any]]


class _With(nn.Module):
    """A function of a module, as a module: parameters can be put in the place of its own during the call."""

    def __init__(self, module: nn.Module, function: LossFunction) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Any]:
        return self.function(*tensors)


def task_gradients(
    module: nn.Module, loss_function: LossFunction, tensors: tuple[Tensor, ...], num_tasks: int
) -> tuple[dict[str, Tensor], Any]:
    """The gradient of each task's mean loss, all tasks in one batched backward pass.

    :param module: whose parameters that take gradients are meant; ``loss_function`` uses it
    :param loss_function: see :data:`LossFunction`
    :param tensors: ``[B, ...]``, rows ordered by task, the same number of each
    :param num_tasks: M, those of the rows
    :return: the name of each parameter with its gradients ``[M, *shape]``, and the metrics of all B rows
    """
    parameters = {f"module.{name}": p.detach() for name, p in module.named_parameters() if p.requires_grad}
    call = _With(module, loss_function)

    def loss_of_task(parameters: dict[str, Tensor], *rows: Tensor) -> tuple[Tensor, Any]:
        return functional_call(call, parameters, rows)

    by_task = tuple(tensor.unflatten(0, (num_tasks, -1)) for tensor in tensors)
    of_each = vmap(grad(loss_of_task, has_aux=True), in_dims=(None, *[0] * len(tensors)), randomness="different")
    with by_group():
        gradients, metrics = of_each(parameters, *by_task)
    metrics = th.utils._pytree.tree_map(lambda metric: metric.flatten(0, 1), metrics)
    return {name.removeprefix("module."): g for name, g in gradients.items()}, metrics


def pcgrad(gradients: dict[str, Tensor], orders: Tensor) -> dict[str, Tensor]:
    """Project each task's gradient onto the normal plane of every gradient that it conflicts with, and take the mean.

    Each member of an ensemble is a network of its own: its conflicts are its own.

    :param gradients: ``[M, E, ...]`` of each parameter
    :param orders: ``[M, M]``, row i a permutation of the tasks: the order in which gradient i meets the others
    :return: ``[E, ...]`` of each parameter
    """
    gram = inner_products(gradients)
    return combined(gradients, _pcgrad_weights(gram, orders.to(gram.device)) / len(orders))


def inner_products(gradients: dict[str, Tensor]) -> Tensor:
    """Of every two tasks' gradients, for each member of an ensemble.

    :param gradients: ``[M, E, ...]`` of each parameter
    :return: ``[E, M, M]``, in float64, for which an MPS device has to ask the CPU
    """
    flat = [g.flatten(2) for g in gradients.values()]  # [M, E, P]
    gram = th.stack([th.einsum("iep,jep->eij", g, g) for g in flat]).sum(0)
    return gram.to("cpu" if gram.device.type == "mps" else gram.device).double()


def combined(gradients: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """The sum of the tasks' gradients times their weights.

    :param gradients: ``[M, E, ...]`` of each parameter
    :param weights: ``[E, M]``
    :return: ``[E, ...]`` of each parameter
    """
    return {
        name: th.einsum("em,mep->ep", weights.to(g.dtype).to(g.device), g.flatten(2)).view(g.shape[1:])
        for name, g in gradients.items()
    }


def _pcgrad_weights(gram: Tensor, orders: Tensor) -> Tensor:
    """PCGrad in the space of the gradients' inner products: no pass over the parameters for each pair.

    :param gram: ``[E, M, M]``, the inner products of the tasks' gradients
    :param orders: ``[M, M]``
    :return: ``[E, M]``: the sum of the projected gradients is the sum of the gradients times these
    """
    num_tasks = len(orders)
    rows = th.arange(num_tasks, device=gram.device)
    norms = gram.diagonal(dim1=-2, dim2=-1)  # squared, [E, M]
    combination = th.eye(num_tasks, dtype=gram.dtype, device=gram.device).repeat(len(gram), 1, 1)
    for other in orders.T:  # each gradient meets its next one
        product = (combination * gram[:, other]).sum(-1)  # of gradient i, as it is now, with its other: [E, M]
        conflict = (product < 0) & (other != rows)
        combination[:, rows, other] -= th.where(conflict, product / norms[:, other], 0.0)
    return combination.sum(1)
