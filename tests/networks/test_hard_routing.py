"""Hard Routing: one module a layer, and a controller that learns which by the score function."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch as th
from plain_networks import IN, SIZES, M, batch, make, on_route, one_hot, route_of
from torch import Tensor

from sb3_softmod.networks import HardRoutingNetwork

IDS = [2, 0, 4, 2, 4, 4, 0, 2, 4, 0, 2, 2]  # tasks 1 and 3 are absent
PRESENT, ABSENT = [0, 2, 4], [1, 3]


def show_routes(num_tasks: int, L: int, n: int, ensemble_size: int = 1) -> HardRoutingNetwork:
    """A network in training mode whose output is its route: for each layer the one-hot module."""
    network = HardRoutingNetwork(
        IN,
        L * n,
        num_tasks,
        num_layers=L,
        num_modules=n,
        module_dim=L * n,
        embedding_dim=1,
        controller_scale=1.0,
        ensemble_size=ensemble_size,
    ).double()
    with th.no_grad():
        for k, layer in enumerate(network.module_layers):
            layer.weight.copy_(th.eye(L * n) if k else th.zeros(L * n, 1))  # type: ignore[operator]
            layer.bias.copy_(th.eye(L * n)[k * n : (k + 1) * n])  # type: ignore[operator]
    return network


def drawn(network: HardRoutingNetwork, task: Tensor) -> Tensor:
    """The routes ``[E, B, L, n]`` that a network made by :func:`show_routes` draws."""
    out = network(th.zeros(len(task), IN, dtype=th.float64), task)
    return out.detach().unflatten(-1, network.controller.shape[-2:])


def auxiliary_gradient(network: HardRoutingNetwork, losses: Tensor, task: Tensor) -> Tensor:
    """Of the controller, ``[E, M, L, n]``."""
    loss = network.auxiliary_loss(losses, task)
    assert loss is not None
    assert loss.shape == ()
    (gradient,) = th.autograd.grad(loss, network.controller)
    return gradient


# -------------------------------------------------------------------------- one module a layer


@pytest.mark.parametrize("own_inputs", [False, True], ids=["same inputs", "own inputs"])
@pytest.mark.parametrize("ensemble_size", [1, 2])
@pytest.mark.parametrize("size", range(3))
def test_in_training_each_row_passes_one_module_a_layer(size: int, ensemble_size: int, own_inputs: bool) -> None:
    """The output is that of exactly one of the n^L routes (in evaluation: see test_baseline_networks.py)."""
    network = make(HardRoutingNetwork, ensemble_size, size).train()
    ids = [t for t in IDS for _ in range(3)]
    inputs, task = batch(ids, ensemble_size if own_inputs else None)
    with th.no_grad():
        out = network(inputs, task)
        routes = [
            [route_of(network, e, inputs[e, b] if own_inputs else inputs[b], out[e, b]) for b in range(len(ids))]
            for e in range(ensemble_size)
        ]
    assert all(len(set(of_member)) > 1 for of_member in routes)  # they are drawn
    assert ensemble_size == 1 or routes[0] != routes[1]  # each member for itself


def test_greedy_routes() -> None:
    network = make(HardRoutingNetwork, 2)
    inputs, task = batch(IDS)
    routes = network.routes(task)
    assert routes.shape == (2, len(IDS), 2, 3)
    assert th.equal(routes.sum(-1), th.ones(2, len(IDS), 2, dtype=th.float64))
    assert th.equal(routes.unique(), th.tensor([0.0, 1.0], dtype=th.float64))
    assert th.equal(routes.argmax(-1), network.controller[:, IDS].argmax(-1))
    out = network(inputs, task)
    assert all(th.equal(network(inputs, task), out) for _ in range(5))


def test_modules_off_the_route_do_not_count() -> None:
    network = make(HardRoutingNetwork, 2)
    inputs, task = batch([3] * 4)
    out = network(inputs, task)
    used = network.controller[:, 3].argmax(-1)  # [E, L]
    for k, layer in enumerate(network.module_layers):
        off = (th.arange(3) != used[:, k : k + 1]).nonzero(as_tuple=True)
        with th.no_grad():
            layer.weight[off] = 1e6 * th.randn_like(layer.weight[off])
            layer.bias[off] = -1e6
    assert th.equal(network(inputs, task), out)
    with th.no_grad():
        network.module_layers[0].bias[0, used[0, 0]] += 1.0
    assert (network(inputs, task)[0] - out[0]).abs().amax(-1).min() > 1e-6
    assert th.equal(network(inputs, task)[1], out[1])


@pytest.mark.parametrize("training", [False, True])
def test_a_route_depends_on_its_own_task_alone(training: bool) -> None:
    network = show_routes(M, L=3, n=4, ensemble_size=2).train(training)
    with th.no_grad():
        network.controller.copy_(th.randn_like(network.controller))
    task = one_hot([t for t in range(M) for _ in range(20)])
    th.manual_seed(0)
    before = drawn(network, task)
    with th.no_grad():
        network.controller[:, 2].mul_(-5)
    th.manual_seed(0)
    after = drawn(network, task)
    own = task.argmax(-1) == 2
    assert th.equal(after[:, ~own], before[:, ~own])
    assert (after[:, own] != before[:, own]).any()


def test_draws_follow_the_probabilities() -> None:
    """In each member, task and layer; the layers, the rows and the members are drawn independently."""
    th.manual_seed(3)
    L, n, rows = 2, 3, 8000
    network = show_routes(2, L, n, ensemble_size=2)
    with th.no_grad():
        network.controller.copy_(th.randn_like(network.controller))
    p = network.probabilities().detach()
    assert p.shape == (2, 2, L, n)
    assert (p.sum(-1) - 1).abs().max() < 1e-12
    task = one_hot([0, 1] * rows, width=2)
    routes = drawn(network, task).unflatten(1, (rows, 2)).transpose(1, 2)  # [E, M, rows, L, n]
    tolerance = 5 * 0.5 / math.sqrt(rows)  # five standard deviations at least
    assert (routes.mean(2) - p).abs().max() < tolerance
    first, second = routes.unbind(3)
    pairs = th.einsum("etri,etrj->etij", first, second) / rows
    assert (pairs - p[:, :, 0, :, None] * p[:, :, 1, None]).abs().max() < tolerance
    pairs = th.einsum("etri,etrj->etij", first[:, :, 1:], first[:, :, :-1]) / (rows - 1)
    assert (pairs - p[:, :, 0, :, None] * p[:, :, 0, None]).abs().max() < tolerance
    pairs = th.einsum("tri,trj->tij", first[0], first[1]) / rows
    assert (pairs - p[0, :, 0, :, None] * p[1, :, 0, None]).abs().max() < tolerance
    assert (drawn(network, task) != drawn(network, task)).any()  # a new draw each time


# ------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_output_reach_the_modules_on_the_routes(training: bool) -> None:
    network = make(HardRoutingNetwork, 2).train(training)
    inputs, task = batch([0, 2])
    out = network(inputs, task)
    routes = [[route_of(network, e, inputs[b], out[e, b]) for b in range(2)] for e in range(2)]
    out.square().sum().backward()
    assert network.controller.grad is None
    for k, layer in enumerate(network.module_layers):
        for e in range(2):
            used = {route[k] for route in routes[e]}
            for j in range(3):
                for parameter in (layer.weight, layer.bias):
                    assert (parameter.grad[e, j] != 0).any() == (j in used)
    assert all((p.grad != 0).flatten(1).any(1).all() for p in network.state_encoder.parameters())
    # The modules take the gradients that they would take if there were no others.
    grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    for e in range(2):
        for b in range(2):
            on_route(network, e, inputs[b], routes[e][b]).square().sum().backward()
    again = [p.grad for p in network.parameters() if p.grad is not None]
    assert all((grad - expected).abs().max() < 1e-10 for grad, expected in zip(grads, again, strict=True))


def test_auxiliary_loss_reaches_the_present_tasks_of_the_controller_alone() -> None:
    network = make(HardRoutingNetwork, 2).train()
    inputs, task = batch(IDS)
    network(inputs, task)
    losses = th.stack([th.arange(len(IDS), dtype=th.float64).square(), th.zeros(len(IDS), dtype=th.float64)])
    loss = network.auxiliary_loss(losses, task)
    loss.backward()
    grad = network.controller.grad
    assert all(p.grad is None for p in network.parameters() if p is not network.controller)
    assert (grad[0, PRESENT] != 0).any(-1).all()
    assert (grad[0, ABSENT] == 0).all()
    assert (grad[1] == 0).all()  # all of its losses are equal: nothing to learn
    assert th.isfinite(grad).all()


def test_auxiliary_loss_is_of_one_pass_of_training() -> None:
    network = make(HardRoutingNetwork)
    inputs, task = batch(IDS)
    losses = th.randn(1, len(IDS), dtype=th.float64)
    network(inputs, task)
    assert network.auxiliary_loss(losses, task) is None  # the greedy routes of evaluation teach nothing
    network.train()
    with th.no_grad():
        network(inputs, task)
    assert network.auxiliary_loss(losses, task) is None  # nor does a target
    network(inputs, task)
    assert network.auxiliary_loss(losses, task) is not None
    assert network.auxiliary_loss(losses, task) is None  # each pass once


def test_auxiliary_loss_is_the_documented_estimator() -> None:
    """Row by row, with mean and standard deviation of the rewards of the rows of the same task."""
    L, n = 3, 2
    network = show_routes(M, L, n, ensemble_size=2)
    with th.no_grad():
        network.controller.copy_(th.randn_like(network.controller))
    task = one_hot(IDS)
    routes = drawn(network, task)
    losses = 3 + 10 * th.randn(2, len(IDS), dtype=th.float64)
    gradient = auxiliary_gradient(network, losses, task)
    p = network.probabilities().detach()
    for e in range(2):
        expected = th.zeros(M, L, n, dtype=th.float64)
        for b, t in enumerate(IDS):
            rewards = th.stack([-losses[e, other] for other, u in enumerate(IDS) if u == t])
            advantage = (-losses[e, b] - rewards.mean()) / rewards.std(correction=0)
            for k in range(L):  # the gradient of log softmax at the chosen module
                expected[t, k] -= advantage * (routes[e, b, k] - p[e, t, k]) / len(IDS)
        assert (gradient[e] - expected).abs().max() < 1e-10


def test_scale_and_offset_of_a_tasks_losses_do_not_count() -> None:
    network = show_routes(M, 2, 3)
    task, losses = one_hot(IDS), th.randn(1, len(IDS), dtype=th.float64)
    gradients = []
    for scale, offset in ((1.0, 0.0), (1000.0, -50.0)):
        th.manual_seed(0)
        drawn(network, task)
        gradients.append(auxiliary_gradient(network, scale * losses + offset, task))
    assert (gradients[1] - gradients[0]).abs().max() < 1e-10


def test_mixtures_of_tasks_are_drawn_and_scored_from_one_distribution() -> None:
    """That of the mixture of the tasks' logits. Costs that no route changes then teach nothing, on average."""
    th.manual_seed(4)
    L, n, rows = 2, 3, 20_000
    network = show_routes(2, L, n)
    with th.no_grad():
        network.controller.copy_(2 * th.randn_like(network.controller))
    mixtures = th.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=th.float64)
    task = mixtures.repeat(rows, 1)
    routes = drawn(network, task)[0].unflatten(0, (rows, 2))
    p = th.einsum("mt,tln->mln", mixtures, network.controller[0]).softmax(-1)
    tolerance = 5 * 0.5 / math.sqrt(rows)
    assert (routes.mean(0) - p).abs().max() < tolerance
    losses = th.tensor([[0.0, 1.0]], dtype=th.float64).repeat(1, rows)
    assert auxiliary_gradient(network, losses, task).abs().max() < tolerance


# ------------------------------------------------------------------------------ what it estimates


def test_expectation_on_a_bandit_of_two_modules() -> None:
    r"""Module 0 costs 0 and module 1 costs 1. If a share f of the B rows draws module 0, rewards have the mean f - 1
    and the variance f (1 - f), so that the gradient for module 0's logit is exactly -sqrt(f (1 - f)), whatever p.
    Its expectation is the binomial mean of that; with B to infinity sqrt(p (1 - p)), which is the derivative
    p (1 - p) of the expected reward by the logit, divided by the standard deviation of the reward."""
    th.manual_seed(1)
    draws, B, p = 4000, 8, 0.7  # one draw a member
    network = show_routes(1, 1, 2, ensemble_size=draws)
    with th.no_grad():
        network.controller.copy_(th.tensor([math.log(p), math.log(1 - p)]))
    task = one_hot([0] * B, width=1)
    routes = drawn(network, task)
    gradient = auxiliary_gradient(network, routes[..., 0, 1], task).view(draws, 2)
    f = routes[..., 0, 0].mean(1)
    exactly = -(f * (1 - f)).sqrt()
    assert (gradient - th.stack([exactly, -exactly], 1)).abs().max() < 1e-10

    binomial = [math.comb(B, k) * p**k * (1 - p) ** (B - k) for k in range(B + 1)]
    expected = -sum(w * math.sqrt(k / B * (1 - k / B)) for k, w in enumerate(binomial))
    standard_error = gradient[:, 0].std().item() / math.sqrt(draws)
    assert abs(gradient[:, 0].mean().item() - expected) < 4 * standard_error
    assert abs(expected + math.sqrt(p * (1 - p))) < 0.05  # the limit is near already
    assert 4 * standard_error < 0.01


def test_expectation_is_the_analytic_gradient() -> None:
    """Of the expected reward over all routes of two layers, in units of its standard deviation."""
    th.manual_seed(2)
    L, n, rows = 2, 3, 40_000
    network = show_routes(2, L, n)
    with th.no_grad():
        network.controller.copy_(th.randn_like(network.controller))
    costs = th.tensor([[[0, 3, 1], [5, 0, 2], [1, 1, 4]], [[200, 0, 0], [0, 0, 90], [0, 10, 0]]], dtype=th.float64)
    task = one_hot([0, 1, 1, 1] * rows, width=2)  # a quarter of the batch, and three quarters
    routes = drawn(network, task)[0]
    losses = th.einsum("bt,bi,bj,tij->b", task, routes[:, 0], routes[:, 1], costs)
    gradient = auxiliary_gradient(network, losses.unsqueeze(0), task)[0]

    controller = network.controller.detach()[0].requires_grad_()
    p = controller.softmax(-1)
    joint = p[:, 0, :, None] * p[:, 1, None]
    mean = (joint * costs).sum((1, 2))
    deviation = (joint * (costs - mean.view(2, 1, 1)).square()).sum((1, 2)).sqrt().detach()
    share = th.tensor([0.25, 0.75])
    (expected,) = th.autograd.grad((share * mean / deviation).sum(), controller)
    assert expected.abs().max() > 0.1
    assert (gradient - expected).abs().max() < 0.01  # the standard error is below 0.003


def test_probabilities_move_to_the_better_modules() -> None:
    """A bandit with another best route for each task and member, noise, and losses of very different scales."""
    th.manual_seed(0)
    E, L, n = 2, 3, 4
    network = show_routes(M, L, n, ensemble_size=E)
    best = th.randint(n, (E, M, L))
    best[:, 1] = (best[:, 0] + 1) % n
    scale = th.tensor([1.0, 1000.0, 0.01, 1.0, 1.0], dtype=th.float64)
    task = one_hot([0, 1, 2, 3] * 16)  # task 4 never comes
    ids = task.argmax(-1)
    untrained = network.probabilities().detach()[:, 4].clone()
    optimizer = th.optim.Adam([network.controller], 0.03)
    for _ in range(300):
        wrong = (drawn(network, task).argmax(-1) != best[:, ids]).double().sum(-1)  # [E, B], modules on the way
        loss = network.auxiliary_loss((wrong + th.randn_like(wrong)) * scale[ids] + 7, task)
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    p = network.probabilities().detach()
    of_best = p.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    assert of_best[:, :4].min() > 0.9
    assert th.equal(p[:, 4], untrained)
    network.eval()
    assert th.equal(drawn(network, task).argmax(-1), best[:, ids])


def test_initial_controller_is_nearly_uniform() -> None:
    th.manual_seed(0)
    options: dict[str, Any] = SIZES[HardRoutingNetwork][0]
    network = HardRoutingNetwork(IN, 2, 50, **options)
    assert (network.probabilities() - 1 / 3).abs().max() < 0.02
    greedy = network.routes(th.eye(50))[0].argmax(-1)
    assert len(greedy.unique(dim=0)) == 9  # and yet all routes are taken
