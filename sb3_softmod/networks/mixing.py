"""The sums that put the modules of one layer before those of the next."""

from __future__ import annotations

from typing import Any

import torch as th
from torch import Tensor
from torch.autograd.function import once_differentiable

from sb3_softmod.networks.layers import is_by_group, is_compiling

#: From so many rows on, a pass over memory for each term costs less than a product of tiny matrices for each row.
_MANY = 128


def mix(weights: Tensor, outputs: Tensor) -> Tensor:
    """Combine the outputs of modules: sum_j w_ij out_j for each row.

    Many products of tiny matrices; compiled, sums that the compiler puts in one loop with what is around them.

    :param weights: ``[E, B, i, j]``
    :param outputs: ``[E, j, B, d]``
    :return: ``[E, i, B, d]``
    """
    if is_compiling():
        return (weights.movedim(1, 3).unsqueeze(-1) * outputs.unsqueeze(1)).sum(2)
    if outputs.device.type == "cpu" and outputs.shape[2] >= _MANY and not (is_by_group() or _is_taken_down()):
        dtype = th.get_autocast_dtype("cpu") if th.is_autocast_enabled("cpu") else weights.dtype
        return _Mix.apply(weights.to(dtype), outputs.to(dtype))
    return th.einsum("ebij,ejbd->eibd", weights, outputs)


def _is_taken_down() -> bool:
    """Whether torch takes down what happens, to export it."""
    return th.compiler.is_exporting() or th.jit.is_tracing()


class _Mix(th.autograd.Function):
    """A sum of scaled outputs for each module: on CPUs several times faster than as many small products as rows.

    What it gives has the modules before the rows in memory too, so that the next product needs no copy of it.
    """

    @staticmethod
    def forward(weights: Tensor, outputs: Tensor) -> Tensor:
        targets = outputs.new_empty(len(outputs), weights.shape[2], *outputs.shape[2:])
        return _sum_into(targets, weights, outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, outputs = ctx.saved_tensors
        of_weights, of_outputs = ctx.needs_input_grad
        return (
            _inner_products(grad, outputs) if of_weights else None,
            _sum_into(th.empty_like(outputs), weights.mT, grad) if of_outputs else None,
        )


def _sum_into(out: Tensor, weights: Tensor, terms: Tensor) -> Tensor:
    """``[E, B, i, j]`` and ``[E, j, B, d]`` to ``out``, ``[E, i, B, d]``."""
    for i, target in enumerate(out.unbind(1)):
        for j, term in enumerate(terms.unbind(1)):
            weight = weights[:, :, i, j, None]
            if j:
                target.addcmul_(term, weight)
            else:
                th.mul(term, weight, out=target)
    return out


def _inner_products(one: Tensor, other: Tensor) -> Tensor:
    """``[E, i, B, d]`` and ``[E, j, B, d]`` to ``[E, B, i, j]``, over d."""
    if one.dtype == th.bfloat16:  # whose small products are slower than sums
        return (one.unsqueeze(2) * other.unsqueeze(1)).sum(-1).permute(0, 3, 1, 2)
    pairs = zip(one, other, strict=True)
    return th.stack([th.bmm(g.transpose(0, 1), out.permute(1, 2, 0)) for g, out in pairs])
