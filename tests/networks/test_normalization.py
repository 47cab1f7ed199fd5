"""Networks whose hidden layers are normalised, against their definitions, and in what the learner does with them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch as th
from plain_networks import IN, OUT, M, batch, layer_norm, linear, one_hot, perceptron, softmax, weighted_sum
from torch import Tensor

from sb3_softmod import ConfigurationError, SoftModularNetwork
from sb3_softmod.learner.gradient_surgery import task_gradients
from sb3_softmod.networks import (
    BroNetwork,
    FiLMNetwork,
    MixtureOfExpertsNetwork,
    MlpNetwork,
    MultiHeadNetwork,
    MultiTaskNetwork,
    SingleTaskNetwork,
)
from sb3_softmod.networks.layers import normalize

IDS = [2, 0, 4, 2, 1]
NETWORKS: dict[str, tuple[type[MultiTaskNetwork], dict[str, Any]]] = {
    "paper": (SoftModularNetwork, dict(embedding_dim=12, module_dim=8, normalization="layer")),
    "official": (SoftModularNetwork, dict(variant="official", embedding_dim=12, module_dim=8, normalization="layer")),
    "mlp": (MlpNetwork, dict(net_arch=[12, 8], normalization="layer")),
    "multi-head": (MultiHeadNetwork, dict(net_arch=[12, 8], normalization="layer")),
    "experts": (MixtureOfExpertsNetwork, dict(net_arch=[12], gating_arch=[8], normalization="layer")),
    "film": (FiLMNetwork, dict(net_arch=[12, 8], normalization="layer")),
    "bro": (BroNetwork, dict(width=12, embedding_dim=6)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str, ensemble_size: int = 2) -> MultiTaskNetwork:
    th.manual_seed(0)
    network_class, options = NETWORKS[name]
    return network_class(IN, OUT, M, ensemble_size=ensemble_size, **options)


def soft_modular(network: SoftModularNetwork, e: int, x: Tensor, t: int) -> Tensor:
    """Eqs. 5 to 9 with f(s) and the modules' outputs normalised; of the official variant, its own steps."""
    options = network.options
    official, n = options.head == "routed", options.num_modules
    f = layer_norm(perceptron(network.state_encoder.layers, x, e, normalization="layer"))
    product = f * linear(network.task_encoder, one_hot(t), e)
    for layer in network.routing_encoder:
        product = linear(layer, product.clamp(min=0), e)
    g = [f.clamp(min=0) if official else f] * n
    read = product  # by the next W_u
    history: list[Tensor] = []
    for k, (layer, down) in enumerate(zip(network.module_layers, network.routing_down, strict=True)):
        up = linear(network.routing_up[k - 1], read, e) * product if k else product
        logits = linear(down, up.clamp(min=0), e)
        rows = [softmax(row) for row in logits.view(-1, n)]  # one, of the routed head
        history += [probability for row in rows for probability in row]
        read = th.stack(history) if official else logits
        outputs = [layer_norm(linear(layer, g[j], e, j)) for j in range(n)]
        if official:
            g = [weighted_sum(row, outputs).clamp(min=0) for row in rows]
        else:
            g = [weighted_sum(row, [out.clamp(min=0) for out in outputs]) for row in rows]
    if official:
        return linear(network.head, g[0], e)
    return sum((linear(network.head, g[j], e, j) for j in range(n)), th.zeros(OUT, dtype=x.dtype))


@pytest.mark.parametrize("sizes", [(2, 2, 8, 7), (3, 3, 5, 6), (4, 2, 4, 9)])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_soft_modularization(variant: Any, sizes: tuple[int, int, int, int]) -> None:
    L, n, d, D = sizes
    options: dict[str, Any] = dict(num_layers=L, num_modules=n, module_dim=d, embedding_dim=D, init="pytorch")
    if variant == "official":
        options["routing_dim"] = 5
    th.manual_seed(L)
    network = SoftModularNetwork(
        IN, OUT, M, variant=variant, normalization="layer", state_hidden=[6, 5], ensemble_size=2, **options
    ).double()
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    inputs, task = batch(IDS)
    out = network(inputs, task)
    for e, (b, t) in itertools.product(range(2), enumerate(IDS)):
        assert (out[e, b] - soft_modular(network, e, inputs[b], t)).abs().max() < 1e-10


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_soft_modularization_does_not_feel_the_scale_of_its_modules(variant: Any) -> None:
    """Features as large as they like: a hidden module, or the encoder of the state, times 1000 is the same network."""
    network = make(variant).double()
    inputs, task = batch(IDS)
    assert isinstance(network, SoftModularNetwork)
    before = network(inputs, task)
    for layer in (network.module_layers[0], *network.state_encoder.layers):
        with th.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1000.0)
        assert (network(inputs, task) - before).abs().max() < 1e-3
    with th.no_grad():
        network.head.weight.mul_(1000.0)  # which is not normalised
    assert (network(inputs, task) - before).abs().max() > 1.0


@pytest.mark.parametrize("network_class", [SoftModularNetwork, MlpNetwork, MultiHeadNetwork, SingleTaskNetwork])
def test_the_option(network_class: Any) -> None:
    """It adds no parameters and draws no numbers; without it the network is another."""
    networks = []
    for options in ({}, {"normalization": None}, {"normalization": "layer"}):
        th.manual_seed(0)
        networks.append(network_class(IN, OUT, M, **options))
    plain, off, on = (network.state_dict() for network in networks)
    assert plain.keys() == off.keys() == on.keys()
    assert all(th.equal(plain[name], value) for name, value in on.items())
    inputs, task = (tensor.float() for tensor in batch(IDS))
    outputs = [network(inputs, task) for network in networks]
    assert th.equal(outputs[0], outputs[1])
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2
    with pytest.raises(ConfigurationError, match="Unknown normalization 'laier': did you mean 'layer'"):
        network_class(IN, OUT, M, normalization="laier")


def test_the_authors_code_has_no_normalisation() -> None:
    network = make("official")
    assert isinstance(network, SoftModularNetwork)
    with pytest.raises(ConfigurationError, match="The authors' code has normalization=None; this network has 'layer'"):
        network.to_official()


# ----------------------------------------------------------------------- what the learner does


@every_network
def test_bf16_is_close(name: str) -> None:
    network = make(name)
    inputs, task = (tensor.float() for tensor in batch(IDS))
    expected = network(inputs, task)
    with th.autocast("cpu", th.bfloat16):
        out = network(inputs, task)
    assert (out.float() - expected).abs().max() < 0.03 * expected.abs().max().clamp(min=1)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_statistics_are_float32_in_bf16() -> None:
    """Of features far from zero, bf16 would lose the differences; outputs and gradients are rounded once."""
    features = (50 + 4 * th.randn(7, 64, generator=th.Generator().manual_seed(0))).bfloat16()
    grad = th.randn(7, 64, generator=th.Generator().manual_seed(1)).bfloat16()
    found, exact = features.clone().requires_grad_(), features.float().requires_grad_()
    out, expected = normalize(found, "layer"), normalize(exact, "layer")
    out.backward(grad)
    expected.backward(grad.float())
    assert found.grad is not None
    assert exact.grad is not None
    assert out.dtype == th.bfloat16
    th.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-5)
    th.testing.assert_close(found.grad.float(), exact.grad, rtol=2**-8, atol=1e-5)


@every_network
def test_compiles_whole(name: str) -> None:
    """Without a break of the graph, outputs and gradients as without the compiler."""
    network = make(name)
    inputs, task = (tensor.float() for tensor in batch(IDS))
    results = []
    for function in (network, th.compile(network, backend="aot_eager", fullgraph=True)):
        network.zero_grad()
        out = function(inputs, task)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    for found, expected in zip(*results, strict=True):
        th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_network
def test_gradients_of_each_task(name: str) -> None:
    """In one mapped pass, as gradient surgery takes them: those of each task's rows alone."""
    network = make(name).double()
    inputs, task = batch([0, 0, 0, 2, 2, 2])

    def loss(x: Tensor, z: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        losses = network(x, z).square().sum((0, -1))
        return losses.mean(), (losses.detach(),)

    gradients, _ = task_gradients(network, loss, (inputs, task), 2)
    for index, rows in enumerate((slice(0, 3), slice(3, 6))):
        network.zero_grad()
        loss(inputs[rows], task[rows])[0].backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None
            assert (gradients[key][index] - parameter.grad).abs().max() < 1e-10, key


# --------------------------------------------------------------------------- BroNet's embedding


def test_the_norm_of_the_embedding_does_not_count() -> None:
    network = make("bro").double()
    assert isinstance(network, BroNetwork)
    assert (network.task_embedding.norm(dim=-1) - 1).abs().max() < 1e-6
    inputs, task = batch(IDS)
    before = network(inputs, task)
    with th.no_grad():
        network.task_embedding.mul_(th.tensor([0.01, 1, 3, 50, 1000]).view(-1, 1))
    assert (network(inputs, task) - before).abs().max() < 1e-10


def test_a_mixed_task_is_the_mixture_of_embeddings() -> None:
    """Task 4 with the mixture for its embedding, but for the norm, which a mixture keeps."""
    network = make("bro", 1).double()
    assert isinstance(network, BroNetwork)
    inputs, _ = batch([0])
    mixed = network(inputs, th.tensor([[0.25, 0.0, 0.75, 0.0, 0.0]], dtype=th.float64))
    with th.no_grad():
        embedding = network.task_embedding[0]
        mixture = 0.25 * embedding[0] / embedding[0].norm() + 0.75 * embedding[2] / embedding[2].norm()
        embedding[4] = mixture
    expected = network(inputs, mixture.norm() * one_hot([4]))
    assert (mixed - expected).abs().max() < 1e-12


def test_reading_anothers_embedding() -> None:
    critic, actor = make("bro", 2).double(), make("bro", 1).double()
    assert isinstance(critic, BroNetwork)
    assert isinstance(actor, BroNetwork)
    inputs, task = batch(IDS)
    with th.no_grad():
        critic.task_embedding.normal_()
        own = actor(inputs, task)
        actor.task_embedding.copy_(critic.task_embedding[:1])
        expected = actor(inputs, task)
    actor.read_embedding_of(critic)
    assert "task_embedding" not in actor.state_dict()
    out = actor(inputs, task)
    assert th.equal(out, expected)
    assert (out - own).abs().max() > 1e-3
    out.square().sum().backward()
    assert critic.task_embedding.grad is None
    assert all(p.grad is not None and (p.grad != 0).any() for p in actor.parameters())
    with th.no_grad():
        critic.task_embedding[1].normal_()  # the second member's
    assert th.equal(actor(inputs, task), expected)


def test_an_embedding_of_another_width_is_refused() -> None:
    wide = BroNetwork(IN, OUT, M, width=4, embedding_dim=5)
    with pytest.raises(ConfigurationError, match=r"embedding_dim must be the same for actor and critics.*not 6 and 5"):
        BroNetwork(IN, OUT, M, width=4, embedding_dim=6).read_embedding_of(wide)
