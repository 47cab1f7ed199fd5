"""Sums of modules' outputs: for batches, another way to the same numbers as for a few rows."""

from __future__ import annotations

import pytest
import torch as th
from torch import Tensor

from sb3_softmod.networks.mixing import mix

E, D = 2, 8


def tensors(modules: int, targets: int, rows: int, dtype: th.dtype, by_row: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, outputs and a gradient; ``by_row``: outputs lie row by row, as layers of one input give them."""
    generator = th.Generator().manual_seed(modules)
    shape = (E, rows, modules, D) if by_row else (E, modules, rows, D)
    weights, outputs, grad = (
        th.randn(size, dtype=th.float64, generator=generator).to(dtype)
        for size in ((E, rows, targets, modules), shape, (E, targets, rows, D))
    )
    outputs = outputs.transpose(1, 2) if by_row else outputs
    return weights.requires_grad_(), outputs.requires_grad_(), grad


def by_sums(weights: Tensor, outputs: Tensor) -> Tensor:
    """``[E, i, B, d]``, as the definition has it."""
    return (weights.permute(0, 2, 3, 1).unsqueeze(-1) * outputs.unsqueeze(1)).sum(2)


SIZES = [(2, 2, 150), (4, 4, 150), (3, 1, 150), (1, 1, 150), (4, 4, 5)]


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize(("modules", "targets", "rows"), SIZES)
def test_outputs_and_gradients(modules: int, targets: int, rows: int, by_row: bool) -> None:
    weights, outputs, grad = tensors(modules, targets, rows, th.float64, by_row)
    results = []
    for function in (mix, by_sums):
        out = function(weights, outputs)
        results.append([out, *th.autograd.grad(out, (weights, outputs), grad)])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-12


def test_only_one_of_the_two_learns() -> None:
    """As where the critics judge the actor, or an adapted network keeps its modules."""
    weights, outputs, grad = tensors(2, 2, 150, th.float64, False)
    both = th.autograd.grad(mix(weights, outputs), (weights, outputs), grad)
    assert th.equal(th.autograd.grad(mix(weights, outputs.detach()), weights, grad)[0], both[0])
    assert th.equal(th.autograd.grad(mix(weights.detach(), outputs), outputs, grad)[0], both[1])


def test_bf16() -> None:
    """In the type of other products under autocast, within its rounding, and gradients in the types of the tensors."""
    weights, outputs, grad = tensors(4, 4, 150, th.float32, True)
    expected = th.autograd.grad(by_sums(weights, outputs), (weights, outputs), grad)
    with th.autocast("cpu", th.bfloat16):
        out = mix(weights, outputs)
    assert out.dtype == th.bfloat16
    assert (out.float() - by_sums(weights, outputs)).abs().max() < 0.1  # of some 10
    for found, of_fp32 in zip(th.autograd.grad(out, (weights, outputs), grad.bfloat16()), expected, strict=True):
        assert found.dtype == th.float32
        assert (found - of_fp32).abs().max() < 0.02 * of_fp32.abs().max()
