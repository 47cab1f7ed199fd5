"""Many linear layers as one batched matrix product."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, Literal, get_args

import torch as th
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from sb3_softmod.common.checks import require_choice

#: "pytorch": U(+-1/sqrt(fan_in)) for weights and biases, the default of :class:`torch.nn.Linear`.
#: "official": the authors' hidden layers, weights U(+-1/sqrt(fan_out)), biases 0.1.
#: "small": the authors' last layers, weights and biases U(+-3e-3).
Init = Literal["pytorch", "official", "small"]

#: What hidden layers do before each ReLU: "layer" is layer normalisation without learned scale and shift.
Normalization = Literal["layer"]


class BatchedLinear(nn.Module):
    """``prod(batch_shape)`` independent linear layers of one size.

    Weights are ``[*batch_shape, out, in]`` as in :class:`torch.nn.Linear`, biases ``[*batch_shape, out]``.
    The input's batch axes may be a prefix of ``batch_shape``: the layers along the axes that it lacks then read
    the same input, and are evaluated as one wide product instead of a product each.

    :param batch_shape: the axes of the batch of layers, for instance ``(E,)`` or ``(E, n)``
    :param in_features: width of the input
    :param out_features: width of the output
    :param init: how the parameters are drawn, see :data:`Init`
    """

    def __init__(self, batch_shape: tuple[int, ...], in_features: int, out_features: int, init: Init = "pytorch"):
        super().__init__()
        self.batch_shape = batch_shape
        self.weight = nn.Parameter(th.empty(*batch_shape, out_features, in_features))
        self.bias = nn.Parameter(th.empty(*batch_shape, out_features))
        with th.no_grad():
            if init == "small":
                self.weight.uniform_(-3e-3, 3e-3)
                self.bias.uniform_(-3e-3, 3e-3)
            elif init == "official":
                bound = 1 / math.sqrt(out_features)
                self.weight.uniform_(-bound, bound)
                self.bias.fill_(0.1)
            else:
                bound = 1 / math.sqrt(in_features)
                self.weight.uniform_(-bound, bound)
                self.bias.uniform_(-bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply every layer.

        :param inputs: ``[*prefix of batch_shape, B, in]``
        :return: ``[*batch_shape, B, out]``
        """
        own_axes = inputs.dim() - 2
        # Layers that share an input are stacked along their output: one matrix with more rows.
        weight, bias = self.weight.flatten(own_axes, -2), self.bias.flatten(own_axes)
        if own_axes == 0:
            out = F.linear(inputs, weight, bias)
        else:
            rows, weight = inputs.flatten(0, own_axes - 1), weight.flatten(0, own_axes - 1)
            bias = bias.flatten(0, -2).unsqueeze(-2)
            out = _product_by_group(rows, weight, bias) if is_by_group() else th.baddbmm(bias, rows, weight.mT)
        if own_axes == 1 == len(self.batch_shape):  # the usual case: [E, B, out] is what the product gave
            return out
        out = out.view(*inputs.shape[:-1], *self.batch_shape[own_axes:], -1)
        return out.movedim(own_axes, -2)

    def extra_repr(self) -> str:
        *_, out_features, in_features = self.weight.shape
        return f"{'x'.join(map(str, self.batch_shape))} layers, in_features={in_features}, out_features={out_features}"


#: Whether a network is evaluated under ``torch.func.vmap``, see :func:`by_group`.
_BY_GROUP = ContextVar("by_group", default=False)


@contextlib.contextmanager
def by_group() -> Iterator[None]:
    """For evaluating networks under ``torch.func.vmap``, mapped over groups of rows that share the weights.

    By itself, vmap makes a batched product of each group with a copy of the weights: many products of few rows.
    """
    token = _BY_GROUP.set(True)
    try:
        yield
    finally:
        _BY_GROUP.reset(token)


def is_by_group() -> bool:
    """Whether :func:`by_group` is on; the compiler may not ask."""
    return not th.compiler.is_compiling() and _BY_GROUP.get()


def _product_by_group(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``[n, b, in]``, ``[n, out, in]`` and ``[n, 1, out]`` to ``[n, b, out]``."""
    if th.is_autocast_enabled(rows.device.type):  # which knows torch's own products only
        dtype = th.get_autocast_dtype(rows.device.type)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), bias.to(dtype)
    return _SharedWeight.apply(rows, weight) + bias


class _SharedWeight(th.autograd.Function):
    """``rows @ weight.mT``; the rows of G groups make one product of G b rows."""

    @staticmethod
    def forward(rows: Tensor, weight: Tensor) -> Tensor:
        return rows @ weight.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight = ctx.needs_input_grad
        return (
            _SharedWeight.apply(grad, weight.mT) if of_rows else None,
            _WeightOfEach.apply(grad.mT, rows) if of_weight else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], rows: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        assert in_dims[1] is None
        rows = rows.movedim(in_dims[0], 1)  # [n, G, b, in]
        return _SharedWeight.apply(rows.flatten(1, 2), weight).unflatten(1, rows.shape[1:3]), 1


class _WeightOfEach(th.autograd.Function):
    """The gradient of a weight, ``[n, out, b]`` times ``[n, b, in]``; that of each group, ``[G, n, out, in]``."""

    @staticmethod
    def forward(grad: Tensor, rows: Tensor) -> Tensor:
        return grad @ rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], grad: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        return grad.movedim(in_dims[0], 0) @ rows.movedim(in_dims[1], 0), 0  # type: ignore[arg-type]


class BatchedMLP(nn.Module):
    """``prod(batch_shape)`` independent multi-layer perceptrons of one shape: ReLU between layers, none after the last.

    :param batch_shape: the axes of the batch, for instance ``(E,)`` or ``(E, K)``
    :param widths: of the input, of each hidden layer and of the output
    :param init: how the parameters are drawn, see :data:`Init`
    :param normalization: of the hidden layers, see :data:`Normalization`
    :raises ConfigurationError: for an unknown normalisation
    """

    def __init__(
        self,
        batch_shape: tuple[int, ...],
        widths: Sequence[int],
        init: Init = "pytorch",
        normalization: Normalization | None = None,
    ):
        super().__init__()
        if normalization is not None:
            require_choice("normalization", normalization, get_args(Normalization))
        self.normalization = normalization
        self.layers = nn.ModuleList(BatchedLinear(batch_shape, *sizes, init) for sizes in pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply every perceptron.

        :param inputs: ``[*prefix of batch_shape, B, in]``
        :return: ``[*batch_shape, B, out]``
        """
        out = inputs
        for k, layer in enumerate(self.layers):
            out = layer(relu(normalize(out, self.normalization)) if k else out)
        return out


class BatchedLayerNorm(nn.Module):
    """``prod(batch_shape)`` independent layer normalisations, with a learned scale and shift of each feature.

    :param batch_shape: the axes of the batch of layers
    :param width: number of features
    """

    def __init__(self, batch_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.ones(*batch_shape, width))
        self.bias = nn.Parameter(th.zeros(*batch_shape, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """``[*batch_shape, B, width]`` to the same, at least float32."""
        return self.bias.unsqueeze(-2) + self.weight.unsqueeze(-2) * layer_norm(at_least_float32(inputs))


def layer_norm(inputs: Tensor) -> Tensor:
    """Layer normalisation over the last axis, in the type of the inputs; in ``by_group`` at least float32, as its
    statistics are.

    A scale of 1 and a shift of 0, being float32, see to the statistics; without them, besides, torch's kernel for CPUs
    takes one number at a time.
    """
    shape, dtype = [inputs.shape[-1]], th.promote_types(inputs.dtype, th.float32)
    if is_by_group():  # vmap cannot have two types in one gradient
        return F.layer_norm(inputs.to(dtype), shape)
    scale, shift = (make(shape, dtype=dtype, device=inputs.device) for make in (th.ones, th.zeros))
    return F.layer_norm(inputs, shape, scale, shift)


def normalize(inputs: Tensor, normalization: Normalization | None) -> Tensor:
    """The normalisation that a network was made with, or none.

    :param inputs: ``[..., features]``
    """
    return inputs if normalization is None else layer_norm(inputs)


class _ReLU(th.autograd.Function):
    """ReLU whose gradient is that of its output times the output's sign."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor) -> Tensor:
        out = th.relu(inputs)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].sign()


def relu(inputs: Tensor) -> Tensor:
    """ReLU.

    For the backward pass of torch's own, the compiler keeps masks of booleans; writing them took its code for CPUs a
    fifth of a gradient step.
    """
    return _ReLU.apply(inputs) if is_compiling() else th.relu(inputs)


def is_compiling() -> bool:
    """Whether torch compiles, and does not merely take down what happens, to export it."""
    return th.compiler.is_compiling() and not th.compiler.is_exporting()


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis; in float32 where autocast gave fewer bits.

    Of rows as short as a routing layer's, torch is several times faster along the first axis than along the last; and
    contiguous, since the small products that mix modules are several times slower on anything else.
    """
    return at_least_float32(logits).movedim(-1, 0).softmax(0).movedim(0, -1).contiguous()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it has fewer bits: autocast leaves what follows a matrix product in its type."""
    return tensor.to(th.promote_types(tensor.dtype, th.float32))
