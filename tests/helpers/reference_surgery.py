"""Gradient surgery as the paper writes it down, to compare ours with."""

from __future__ import annotations

import torch as th
from torch import Tensor


def pcgrad_by_loops(gradients: list[Tensor], orders: list[list[int]]) -> Tensor:
    """Algorithm 1 of the paper on flat gradients, for given orders; the mean instead of the sum."""
    projected = [g.clone() for g in gradients]
    for i, order in enumerate(orders):
        for j in order:
            if j == i:
                continue
            inner = projected[i] @ gradients[j]
            if inner < 0:
                projected[i] -= inner / gradients[j].square().sum() * gradients[j]
    return th.stack(projected).mean(0)
