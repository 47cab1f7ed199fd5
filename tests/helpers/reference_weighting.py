"""GradNorm, FAMO and uncertainty as their papers write them down, task by task, to compare ours with.

Each trains a network by plain gradient descent. A task's loss is the sum over the critics, as the network minimises it;
``num_critics`` makes means of these where the size matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch as th
from torch import Tensor, nn

#: The loss of a task, with gradient.
TaskLoss = Callable[[int], Tensor]


class Adam:
    """Kingma & Ba's Algorithm 1 for a list of numbers, the decay added to the gradients."""

    def __init__(self, rate: float, decay: float = 0.0) -> None:
        self.rate, self.decay, self.steps = rate, decay, 0
        self.moments: dict[int, tuple[float, float]] = {}

    def step(self, numbers: list[float], gradients: list[float]) -> None:
        self.steps += 1
        of_first, of_second = 1 - math.pow(0.9, self.steps), 1 - math.pow(0.999, self.steps)
        for i, gradient in enumerate(gradients):
            gradient += self.decay * numbers[i]
            first, second = self.moments.get(i, (0.0, 0.0))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            self.moments[i] = first, second
            moved = self.rate * first / of_first / (math.sqrt(second / of_second) + 1e-8)
            numbers[i] = numbers[i] - moved


def softmax(numbers: list[float]) -> list[float]:
    raised = [math.exp(number) for number in numbers]
    return [each / sum(raised) for each in raised]


def descend(network: nn.Module, losses: Iterable[Tensor], weights: list[float], rate: float) -> None:
    """One step along the gradient of the mean of the weighted losses."""
    network.zero_grad()
    th.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).mean().backward()
    with th.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)


def famo(
    network: nn.Module, loss: TaskLoss, least: list[float], steps: int, rate: float, num_critics: int
) -> list[list[float]]:
    """Algorithm 1 of Liu et al. with the Adam of its appendix C; the weights of each step, M times the paper's.

    :param least: the least that each loss can be
    """
    num_tasks = len(least)
    xi, adam, history = [0.0] * num_tasks, Adam(0.025, 0.01), []

    def above(i: int) -> float:
        return (loss(i).item() - least[i]) / num_critics + 1e-8

    for _ in range(steps):
        z, before = softmax(xi), [above(i) for i in range(num_tasks)]
        c = 1 / sum(z[i] / before[i] for i in range(num_tasks))
        weights = [num_tasks * c * z[i] / before[i] for i in range(num_tasks)]
        descend(network, map(loss, range(num_tasks)), weights, rate)
        fell = [math.log(before[i]) - math.log(above(i)) for i in range(num_tasks)]
        delta = [0.0] * num_tasks
        for i in range(num_tasks):
            for j in range(num_tasks):
                delta[i] += z[j] * ((i == j) - z[i]) * fell[j]  # dz_j / dxi_i
        adam.step(xi, delta)
        history.append(weights)
    return history


def gradnorm(
    network: nn.Module, loss: TaskLoss, least: list[float], steps: int, rate: float, shared: Tensor, asymmetry: float
) -> list[list[float]]:
    """Algorithm 1 of Chen et al.; the weights of each step.

    :param least: the least that each loss can be
    :param shared: W
    """
    num_tasks = len(least)
    weights, adam, history = [1.0] * num_tasks, Adam(0.025), []
    first = [loss(i).item() - least[i] for i in range(num_tasks)]
    for _ in range(steps):
        history.append(list(weights))
        sizes = [float(th.autograd.grad(loss(i), shared)[0].norm()) for i in range(num_tasks)]
        weighted = [weights[i] * sizes[i] for i in range(num_tasks)]
        ratio = [(loss(i).item() - least[i]) / first[i] for i in range(num_tasks)]
        gradients = []
        for i in range(num_tasks):
            slowness = ratio[i] / (sum(ratio) / num_tasks)
            target = sum(weighted) / num_tasks * slowness**asymmetry
            gradients.append(sizes[i] if weighted[i] > target else -sizes[i])
        descend(network, map(loss, range(num_tasks)), weights, rate)
        adam.step(weights, gradients)
        total = sum(weights)
        weights = [num_tasks * weight / total for weight in weights]
    return history


def uncertainty(
    network: nn.Module, loss: TaskLoss, num_tasks: int, steps: int, rate: float, num_critics: int
) -> list[list[float]]:
    """Eq. 7 of Kendall et al., exp(-s) times the loss plus s / 2 for each critic; s has Adam at the network's rate."""
    s, adam, history = [0.0] * num_tasks, Adam(rate), []
    for _ in range(steps):
        weights = [math.exp(-each) for each in s]
        gradients = [-weights[i] * loss(i).item() / num_critics + 0.5 for i in range(num_tasks)]
        descend(network, map(loss, range(num_tasks)), weights, rate)
        adam.step(s, gradients)
        history.append(weights)
    return history
