"""Gradient surgery as the paper writes it down, to compare ours with."""

from __future__ import annotations

from collections.abc import Callable

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


# What the papers of TorchJD's aggregators define, of a matrix J [M, P] whose rows are the tasks' gradients.


def nearest_in_dual_cone(J: Tensor, vector: Tensor) -> Tensor:
    """The x nearest to a vector with J x >= 0, by trying which of the constraints hold it (Lopez-Paz and Ranzato 2017,
    Eq. 11; Quinton and Rey 2024, Eq. 3)."""
    found = []
    for chosen in subsets(len(J)):
        A = J[chosen]
        x = vector - th.linalg.pinv(A) @ (A @ vector)
        if (J @ x >= -1e-9).all():
            found.append(x)
    return min(found, key=lambda x: float((x - vector).norm()))


def upgrad(J: Tensor) -> Tensor:
    """Quinton and Rey 2024, Definition 3: the mean of the gradients, each projected onto the dual cone of all."""
    return th.stack([nearest_in_dual_cone(J, g) for g in J]).mean(0)


def dualproj(J: Tensor) -> Tensor:
    """Lopez-Paz and Ranzato 2017: the mean gradient, projected."""
    return nearest_in_dual_cone(J, J.mean(0))


def mgda(J: Tensor) -> Tensor:
    """Désidéri 2012: the shortest vector of the gradients' convex hull, by trying which of them span it."""
    found = []
    for chosen in subsets(len(J)):
        if chosen:
            first, others = J[chosen[0]], J[chosen[1:]] - J[chosen[0]]
            shares = th.linalg.pinv(others.T) @ -first
            if (shares >= 0).all() and shares.sum() <= 1:
                found.append(first + shares @ others)
    return min(found, key=lambda x: float(x.norm()))


def cagrad(J: Tensor, c: float) -> Tensor:
    """Liu et al. 2021, Algorithm 1: the step from the mean gradient g_0, of length c |g_0|, that does most for the task
    that it does least for; by its dual, min over w of <g_w, g_0> + c |g_0| |g_w|."""
    mean = J.mean(0)
    length = c * mean.norm()

    def dual(w: Tensor) -> float:
        return float((w @ J) @ mean + length * (w @ J).norm())

    worst = least_on_simplex(dual, len(J)) @ J
    return mean + length * worst / worst.norm()


def imtl_g(J: Tensor) -> Tensor:
    """Liu et al. 2021 (Towards Impartial Multi-task Learning), Eq. 5: weights of sum 1 with which the result is as long
    along every task's gradient."""
    units = J / J.norm(dim=1, keepdim=True)
    equations = th.cat([(units[1:] - units[0]) @ J.T, th.ones(1, len(J), dtype=J.dtype)])
    right = th.zeros(len(J), dtype=J.dtype)
    right[-1] = 1
    return th.linalg.solve(equations, right) @ J


def aligned_mtl(J: Tensor) -> Tensor:
    """Senushkin et al. 2023, Algorithm 1: the mean of the rows after all singular values became the least of them."""
    U, singular, Vt = th.linalg.svd(J, full_matrices=False)
    return (singular.min() * U @ Vt).mean(0)


def config(J: Tensor) -> Tensor:
    """Liu et al. 2024 (ConFIG), Eq. 2: the direction with the same cosine to all, as long as their parts along it."""
    units = J / J.norm(dim=1, keepdim=True)
    direction = th.linalg.solve(units @ units.T, th.ones(len(J), dtype=J.dtype)) @ units
    direction = direction / direction.norm()
    return (J @ direction).sum() * direction


def fairgrad(J: Tensor, alpha: float) -> Tensor:
    """Ban and Ji 2024, Eq. 4: the weights w > 0 with J Jᵀ w = w^(-1/alpha), by Newton's method on log w."""
    gram = J @ J.T
    log_w = -gram.diagonal().mean().log() * alpha / (1 + alpha) * th.ones(len(J), dtype=J.dtype)
    for _ in range(200):
        w = log_w.exp()
        residual = gram @ w - w ** (-1 / alpha)
        slope = gram * w + th.diag(w ** (-1 / alpha) / alpha)
        log_w = log_w - th.linalg.solve(slope, residual).clamp(-0.5, 0.5)
    assert (residual / w ** (-1 / alpha)).abs().max() < 1e-10
    return log_w.exp() @ J


def nash_mtl(J: Tensor) -> Tensor:
    """Navon et al. 2022, Claim 3.1: J Jᵀ w = 1 / w; by the authors' code no longer than 1."""
    vector = fairgrad(J, 1)
    return vector / vector.norm().clamp(min=1)


def graddrop(J: Tensor, uniform: Tensor) -> Tensor:
    """Chen et al. 2020, Algorithm 1: of each parameter the positive or the negative parts alone, by chance."""
    out = th.zeros_like(J[0])
    for p, column in enumerate(J.T):
        purity = 0.5 * (1 + column.sum() / column.abs().sum())
        kept = column.clamp(min=0) if purity > uniform[p] else column.clamp(max=0)
        out[p] = kept.sum()
    return out


def gradvac(J: Tensor, targets: Tensor, orders: list[list[int]], beta: float = 0.5) -> Tensor:
    """Wang et al. 2021, Algorithm 1; the targets ``[M, M]`` of the cosines move in place."""
    changed = J.clone()
    for i, order in enumerate(orders):
        for j in order:
            cosine = changed[i] @ J[j] / (changed[i].norm() * J[j].norm())
            target = targets[i, j].clone()
            if cosine < target:
                root, target_root = (1 - cosine**2).sqrt(), (1 - target**2).sqrt()
                share = changed[i].norm() * (target * root - cosine * target_root) / (J[j].norm() * target_root)
                changed[i] = changed[i] + share * J[j]
            targets[i, j] = (1 - beta) * target + beta * cosine
    return changed.sum(0)


def excess_mtl(steps: list[Tensor], rate: float = 1.0) -> Tensor:
    """He et al. 2024, Eqs. 6, 7 and 9, of the gradients of several steps: the result of the last. By the authors' code,
    risks are relative to those of the first step from the second on."""
    weights, squares, first = th.full_like(steps[0][:, 0], 1 / len(steps[0])), th.zeros_like(steps[0]), None
    for J in steps:
        squares += J**2
        excess = (J**2 / (squares + 1e-7).sqrt()).sum(1)
        weights = weights * (rate * (excess if first is None else excess / first)).exp()
        first = excess if first is None else first
        weights = weights / weights.sum()
    return weights @ steps[-1]


def subsets(size: int) -> list[list[int]]:
    return [[i for i in range(size) if number >> i & 1] for number in range(2**size)]


def least_on_simplex(function: Callable[[Tensor], float], size: int) -> Tensor:
    """Where a convex function is least over 2 or 3 shares of sum 1, by golden sections."""

    def least(of: Callable[[float], float], high: float) -> float:
        low, ratio = 0.0, (5**0.5 - 1) / 2
        for _ in range(70):
            a, b = high - ratio * (high - low), low + ratio * (high - low)
            low, high = (low, b) if of(a) < of(b) else (a, high)
        return (low + high) / 2

    def shares(*first: float) -> Tensor:
        return th.tensor([*first, 1 - sum(first)], dtype=th.float64)

    if size == 2:
        return shares(least(lambda x: function(shares(x)), 1.0))
    inner = lambda x: least(lambda y: function(shares(x, y)), 1 - x)
    x = least(lambda x: function(shares(x, inner(x))), 1.0)
    return shares(x, inner(x))
