"""The paper variant against its equations, written here as plain loops in float64."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import Tensor

from sb3_softmod import ConfigurationError, SoftModularNetwork
from sb3_softmod.networks import BatchedLinear, SoftModularOptions

IN, OUT, M, B = 5, 3, 4, 6
SIZES = [(2, 2, 3, 7), (2, 3, 4, 5), (3, 2, 5, 4), (4, 4, 3, 6), (2, 1, 3, 4)]  # L, n, d, D


def make(L: int, n: int, d: int, D: int, **options: Any) -> SoftModularNetwork:
    th.manual_seed(L * n + d)
    network = SoftModularNetwork(
        IN, OUT, M, num_layers=L, num_modules=n, module_dim=d, embedding_dim=D, **{"init": "pytorch", **options}
    ).double()
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0 if L == 2 else 1.8)  # routing far from uniform, its logits within the range of exp
    return network


def batch(size: int = B) -> tuple[Tensor, Tensor]:
    generator = th.Generator().manual_seed(7)
    inputs = th.randn(size, IN, dtype=th.float64, generator=generator)
    return inputs, th.eye(M, dtype=th.float64)[th.arange(size) % M]


def affine(layer: BatchedLinear, x: Tensor, *index: int) -> Tensor:
    """One layer of the batch on one vector."""
    weight, bias = layer.weight[index], layer.bias[index]
    return th.stack([sum((weight[o, i] * x[i] for i in range(len(x))), bias[o]) for o in range(len(bias))])


def relu(x: Tensor) -> Tensor:
    return th.where(x > 0, x, th.zeros_like(x))


def paper_by_loops(net: SoftModularNetwork, s: Tensor, z: Tensor, e: int) -> tuple[Tensor, list[Tensor]]:
    """Eqs. 5 to 9 for one state, one task, one member."""
    L, n = net.options.num_layers, net.options.num_modules
    f = s
    for k, layer in enumerate(net.state_encoder.layers):
        f = affine(layer, relu(f) if k else f, e)  # type: ignore[arg-type]
    h = affine(net.task_encoder, z, e)
    product = f * h if net.options.condition_on_obs else h
    logits = [affine(net.routing_down[0], relu(product), e)]  # type: ignore[arg-type]  # Eq. 6
    for k in range(1, L - 1):  # Eq. 5
        up = affine(net.routing_up[k - 1], logits[-1], e)  # type: ignore[arg-type]
        logits.append(affine(net.routing_down[k], relu(up * product), e))  # type: ignore[arg-type]
    probabilities = []
    for p in logits:  # Eq. 7
        rows = th.zeros(n, n, dtype=p.dtype)
        for i, j in itertools.product(range(n), range(n)):
            rows[i, j] = p[i * n + j].exp() / sum(p[i * n + k].exp() for k in range(n))
        probabilities.append(rows)
    g = [f] * n
    for k in range(L - 1):  # Eq. 8
        outputs = [relu(affine(net.module_layers[k], g[j], e, j)) for j in range(n)]  # type: ignore[arg-type]
        g = [sum((probabilities[k][i, j] * outputs[j] for j in range(n)), th.zeros(1)) for i in range(n)]
    out = sum((affine(net.head, g[j], e, j) for j in range(n)), th.zeros(OUT, dtype=s.dtype))  # Eq. 9
    return out, probabilities


@pytest.mark.parametrize("condition_on_obs", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_equations(sizes: tuple[int, int, int, int], condition_on_obs: bool) -> None:
    network = make(*sizes, ensemble_size=2, condition_on_obs=condition_on_obs)
    inputs, task = batch()
    out, routing = network(inputs, task), network.routing(inputs, task)
    assert out.shape == (2, B, OUT)
    assert len(routing) == sizes[0] - 1
    for e, b in itertools.product(range(2), range(B)):
        expected, probabilities = paper_by_loops(network, inputs[b], task[b], e)
        assert (out[e, b] - expected).abs().max() < 1e-10
        for layer, p in zip(routing, probabilities, strict=True):
            assert (layer[e, b] - p).abs().max() < 1e-10


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_routing_rows_sum_to_one(variant: str) -> None:
    network = make(4, 3, 5, 6, variant=variant, ensemble_size=2)
    layers = network.routing(*batch())
    assert [tuple(p.shape) for p in layers] == [(2, B, 3, 3)] * 3 + [(2, B, 3)] * (variant == "official")
    for p in layers:
        assert (p >= 0).all()
        assert (p.sum(-1) - 1).abs().max() < 1e-12
        assert p.max() - p.min() > 0.05  # not merely uniform


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_gradcheck(variant: str) -> None:
    network = make(3, 2, 2, 3, variant=variant, ensemble_size=2, routing_dim=3 if variant == "official" else None)
    inputs, task = batch(3)
    inputs.requires_grad_()
    names, parameters = zip(*network.named_parameters(), strict=True)

    def evaluate(x: Tensor, *values: Tensor) -> Tensor:
        return th.func.functional_call(network, dict(zip(names, values, strict=True)), (x, task))

    assert th.autograd.gradcheck(evaluate, (inputs, *parameters))


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("shared_inputs", [True, False])
def test_ensemble_equals_single_networks(variant: str, shared_inputs: bool) -> None:
    E = 3
    together = make(3, 2, 4, 5, variant=variant, ensemble_size=E)
    inputs, task = batch()
    if not shared_inputs:
        inputs = th.stack([inputs * (e + 1) for e in range(E)])
    out = together(inputs, task)
    out.square().sum().backward()
    for e in range(E):
        alone = make(3, 2, 4, 5, variant=variant)
        with th.no_grad():
            for single, parameter in zip(alone.parameters(), together.parameters(), strict=True):
                single.copy_(parameter[e : e + 1])
        alone_out = alone(inputs if shared_inputs else inputs[e], task)
        assert (alone_out[0] - out[e]).abs().max() < 1e-10
        alone_out.square().sum().backward()
        for single, parameter in zip(alone.parameters(), together.parameters(), strict=True):
            assert single.grad is not None
            assert parameter.grad is not None
            assert (single.grad[0] - parameter.grad[e]).abs().max() < 1e-10


def test_clipping_is_per_member() -> None:
    network = make(2, 2, 3, 4, ensemble_size=3)
    for parameter in network.parameters():
        scale = th.tensor([0.001, 1.0, 100.0], dtype=th.float64).view(3, *[1] * (parameter.dim() - 1))
        parameter.grad = scale * th.ones_like(parameter)
    before = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.clip_grad_norm_(2.0)
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    norms = th.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
    assert all(th.equal(g[0], b[0]) for g, b in zip(grads, before, strict=True))  # small: untouched
    assert (norms[1:] - 2.0).abs().max() < 1e-5


def test_each_row_of_the_table_changes_the_network() -> None:
    """Every option of the variant table is one of its own and has an effect."""
    inputs, task = batch()
    base = make(3, 2, 4, 5)(inputs, task)
    for option in (
        dict(num_routing_layers=2, routing_dim=6),
        dict(routing_history="all_probabilities"),
        dict(activate_embedding=True),
        dict(module_activation="after_mixing"),
        dict(head="routed"),
        dict(condition_on_obs=False),
        dict(state_hidden=[8, 8]),
    ):
        out = make(3, 2, 4, 5, **option)(inputs, task)
        assert out.shape == base.shape
        assert (out - base).abs().max() > 1e-3, option


def test_presets() -> None:
    for preset, sizes in {"shallow": (2, 2, 256), "deep": (4, 4, 128)}.items():
        options = SoftModularNetwork(4, 2, 3, preset=preset).options  # type: ignore[arg-type]
        assert (options.num_layers, options.num_modules, options.module_dim, options.embedding_dim) == (*sizes, 400)
    assert SoftModularNetwork(4, 2, 3, preset="deep", num_modules=2).options.num_modules == 2


def test_none_leaves_an_option_open() -> None:
    left_open: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(SoftModularOptions))
    options = SoftModularNetwork(4, 2, 3, **left_open).options
    assert options == SoftModularNetwork(4, 2, 3).options
    assert (options.embedding_dim, options.condition_on_obs) == (400, True)


def test_integers_of_numpy_are_sizes() -> None:
    sizes = dict(num_layers=3, num_modules=2, module_dim=5, embedding_dim=6, num_routing_layers=1, routing_dim=7)
    of_numpy: dict[str, Any] = {name: np.int64(size) for name, size in sizes.items()}
    network = SoftModularNetwork(IN, OUT, M, **of_numpy, state_hidden=[np.int32(8)], ensemble_size=np.int64(2))
    assert network.options == SoftModularNetwork(IN, OUT, M, **sizes, state_hidden=[8]).options  # type: ignore[arg-type]
    assert network(th.zeros(1, IN), th.eye(M)[:1]).shape == (2, 1, OUT)


def test_official_initialisation_routes_almost_evenly() -> None:
    th.manual_seed(0)
    network = SoftModularNetwork(IN, OUT, M, variant="official", preset="deep")
    inputs, task = batch()
    for p in network.routing(inputs.float(), task.float()):
        assert (p - 0.25).abs().max() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="offical"), "Unknown variant 'offical': did you mean 'official'"),
        (dict(preset="deeper"), "Unknown preset 'deeper': did you mean 'deep'"),
        (dict(head="routing"), "Unknown head 'routing': did you mean 'routed'"),
        (dict(num_layers=1), "num_layers must be at least 2"),
        (dict(num_modules=0), "num_modules must be from 1 to 65536, not 0"),
        (dict(module_dim=2.5), "module_dim must be an integer, not 2.5"),
        (dict(state_hidden=400), "state_hidden must be a list of layer widths, not 400"),
        (dict(state_hidden=[-1]), "Each width in state_hidden must be from 1 to 65536, not -1"),
        (dict(num_routing_layers=-1), "num_routing_layers must be from 0 to 65536, not -1"),
        (dict(routing_dim=64), "routing_dim=64 needs num_routing_layers of at least 1"),
        (dict(ensemble_size=0), "ensemble_size must be from 1 to 65536, not 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SoftModularNetwork(IN, OUT, M, **options)
