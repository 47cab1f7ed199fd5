"""The baseline networks once more: one member, one sample, one layer at a time, as their definitions say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch as th
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_softmod.networks import (
    BatchedLinear,
    BroNetwork,
    CARENetwork,
    FiLMNetwork,
    HardRoutingNetwork,
    MixtureOfExpertsNetwork,
    MlpNetwork,
    MOORENetwork,
    MultiHeadNetwork,
    MultiTaskNetwork,
    PaCoNetwork,
    SingleTaskNetwork,
)
from sb3_softmod.networks.bronet import ResidualBlock
from sb3_softmod.networks.layers import BatchedLayerNorm, Normalization

IN, OUT, M = 5, 3, 5
NORMALIZED: dict[str, Any] = dict(net_arch=[8, 7], normalization="layer")

#: Each network in several sizes; the first is the one that tests of a single size use, the last, where there are four,
#: is normalised.
SIZES: dict[type[MultiTaskNetwork], list[dict[str, Any]]] = {
    MlpNetwork: [dict(net_arch=[8, 7]), dict(net_arch=[]), dict(net_arch=(6, 6, 6)), NORMALIZED],
    MultiHeadNetwork: [dict(net_arch=[8, 7]), dict(net_arch=[4]), dict(net_arch=[6, 5, 4, 3]), NORMALIZED],
    SingleTaskNetwork: [dict(net_arch=[8, 7]), dict(net_arch=[]), dict(net_arch=[6, 5, 4]), NORMALIZED],
    MixtureOfExpertsNetwork: [
        dict(num_experts=3, net_arch=[8, 7], gating_arch=[6]),
        dict(num_experts=1, net_arch=[6], gating_arch=[]),
        dict(num_experts=4, net_arch=[], gating_arch=[4, 5]),
        dict(num_experts=3, gating_arch=[6], **NORMALIZED),
    ],
    HardRoutingNetwork: [
        dict(num_layers=2, num_modules=3, module_dim=8, embedding_dim=7),
        dict(num_layers=1, num_modules=2, module_dim=4, embedding_dim=6),
        dict(num_layers=3, num_modules=2, module_dim=5, embedding_dim=5),
    ],
    CARENetwork: [
        dict(num_encoders=3, embedding_dim=7, encoder_arch=[12], net_arch=[8, 7]),
        dict(num_encoders=1, embedding_dim=4, encoder_arch=[], net_arch=[]),
        dict(num_encoders=4, embedding_dim=5, encoder_arch=[6, 4], net_arch=[5]),
    ],
    PaCoNetwork: [
        dict(num_parameter_sets=3, net_arch=[8, 7]),
        dict(num_parameter_sets=1, net_arch=[]),
        dict(num_parameter_sets=6, net_arch=[5, 4, 3]),
    ],
    MOORENetwork: [
        dict(num_experts=3, net_arch=[8, 7]),
        dict(num_experts=1, net_arch=[4]),
        dict(num_experts=4, net_arch=[6, 6, 4]),
    ],
    FiLMNetwork: [
        dict(embedding_dim=6, net_arch=[8, 7]),
        dict(embedding_dim=1, net_arch=[4]),
        dict(embedding_dim=9, net_arch=[6, 4, 5]),
        dict(embedding_dim=6, **NORMALIZED),
    ],
    BroNetwork: [
        dict(width=8, num_blocks=2, embedding_dim=6),
        dict(width=5, num_blocks=1, embedding_dim=1),
        dict(width=6, num_blocks=3, embedding_dim=9),
    ],
}


def make(network_class: type[MultiTaskNetwork], ensemble_size: int = 1, size: int = 0) -> Any:
    """A network in float64, in evaluation mode, far from linear: its weights are twice their initial values.

    Parameters that begin as ones or zeros are drawn.
    """
    th.manual_seed(size)
    network = network_class(IN, OUT, M, ensemble_size=ensemble_size, **SIZES[network_class][size]).double().eval()
    with th.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
            if (parameter == parameter.flatten()[0]).all():
                parameter.normal_()
    return network


def batch(ids: Sequence[int], members: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs, ``[B, IN]`` or ``[members, B, IN]``, and the one-hot tasks of the ids."""
    generator = th.Generator().manual_seed(7)
    shape = (len(ids), IN) if members is None else (members, len(ids), IN)
    return th.randn(shape, dtype=th.float64, generator=generator), one_hot(ids)


def one_hot(ids: int | Sequence[int], width: int = M) -> Tensor:
    return th.eye(width, dtype=th.float64)[ids]


# ------------------------------------------------------------------------- the definitions


def linear(layer: nn.Module, x: Tensor, *index: int) -> Tensor:
    """One layer of the batch on one vector."""
    assert isinstance(layer, BatchedLinear)
    return F.linear(x, layer.weight[index], layer.bias[index])


def perceptron(
    layers: Iterable[nn.Module], x: Tensor, *index: int, normalization: Normalization | None = None
) -> Tensor:
    """With layer normalisation before each ReLU, or without."""
    for k, layer in enumerate(layers):
        x = linear(layer, normalize(x, normalization).clamp(min=0) if k else x, *index)
    return x


def normalize(x: Tensor, normalization: Normalization | None) -> Tensor:
    return layer_norm(x) if normalization == "layer" else x


def layer_norm(x: Tensor) -> Tensor:
    """Over the entries of one vector, by its definition."""
    centred = x - x.sum() / len(x)
    return centred / (centred.square().sum() / len(x) + 1e-5).sqrt()


def softmax(logits: Tensor) -> list[Tensor]:
    total = sum((logit.exp() for logit in logits), th.zeros((), dtype=logits.dtype))
    return [logit.exp() / total for logit in logits]


def weighted_sum(weights: Iterable[Tensor], terms: Iterable[Tensor]) -> Tensor:
    products = [weight * term for weight, term in zip(weights, terms, strict=True)]
    return sum(products[1:], products[0])


def mlp(network: MlpNetwork, e: int, x: Tensor, t: int) -> Tensor:
    return perceptron(network.mlp.layers, th.cat([x, one_hot(t)]), e, normalization=network.mlp.normalization)


def multi_head(network: MultiHeadNetwork, e: int, x: Tensor, t: int) -> Tensor:
    norm = network.trunk.normalization
    hidden = perceptron(network.trunk.layers, th.cat([x, one_hot(t)]), e, normalization=norm)
    return linear(network.heads, normalize(hidden, norm).clamp(min=0), e, t)


def single_task(network: SingleTaskNetwork, e: int, x: Tensor, t: int) -> Tensor:
    return perceptron(network.mlps.layers, x, e, t, normalization=network.mlps.normalization)


def mixture_of_experts(network: MixtureOfExpertsNetwork, e: int, x: Tensor, t: int) -> Tensor:
    x = th.cat([x, one_hot(t)])
    norm = network.experts.normalization
    gates = softmax(perceptron(network.gating.layers, x, e, normalization=norm))
    experts = [perceptron(network.experts.layers, x, e, k, normalization=norm) for k in range(len(gates))]
    return weighted_sum(gates, experts)


def care(network: CARENetwork, e: int, x: Tensor, t: int) -> Tensor:
    embedding = network.task_embedding[e, t].clamp(min=0)
    context = perceptron(network.context.layers, embedding, e)
    attention = softmax(perceptron(network.attention.layers, context, e))
    encodings = [perceptron(network.encoders.layers, x, e, k) for k in range(len(attention))]
    return perceptron(network.mlp.layers, th.cat([weighted_sum(attention, encodings), context]), e)


def paco(network: PaCoNetwork, e: int, x: Tensor, t: int) -> Tensor:
    """With the task's own parameters, which the network never forms."""
    w = network.composition[e, t]
    for k, layer in enumerate(network.parameter_sets):
        assert isinstance(layer, BatchedLinear)
        theta = weighted_sum(w, layer.weight[e]), weighted_sum(w, layer.bias[e])
        x = F.linear(x.clamp(min=0) if k else x, *theta)
    return x


def gram_schmidt(vectors: Iterable[Tensor]) -> list[Tensor]:
    """The textbook's: each vector less its projections on the ones before, then scaled to length 1."""
    basis: list[Tensor] = []
    for vector in vectors:
        rest = vector - sum((vector.dot(u) * u for u in basis), th.zeros_like(vector))
        basis.append(rest / rest.dot(rest).sqrt())
    return basis


def moore(network: MOORENetwork, e: int, x: Tensor, t: int) -> Tensor:
    weights = network.task_weights[e, t]
    features = gram_schmidt(perceptron(network.experts.layers, x, e, k) for k in range(len(weights)))
    return linear(network.heads, weighted_sum(weights, features).tanh(), e, t)


def film(network: FiLMNetwork, e: int, x: Tensor, t: int) -> Tensor:
    """The modulation holds the scales of all layers, then the shifts of all layers."""
    embedding = network.task_embedding[e, t].clamp(min=0)
    modulation = linear(network.modulation, embedding, e)
    *hidden, last = network.layers
    offset, total = 0, len(modulation) // 2
    for layer in hidden:
        x = normalize(linear(layer, x, e), network.normalization)
        gamma, beta = modulation[offset : offset + len(x)], modulation[total + offset : total + offset + len(x)]
        x = ((1 + gamma) * x + beta).clamp(min=0)
        offset += len(gamma)
    return linear(last, x, e)


def bro(network: BroNetwork, e: int, x: Tensor, t: int) -> Tensor:
    def norm(layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, BatchedLayerNorm)
        return layer.weight[e] * layer_norm(x) + layer.bias[e]

    embedding = network.task_embedding[e, t]
    x = linear(network.encoder, th.cat([x, embedding / embedding.dot(embedding).sqrt()]), e)
    x = norm(network.encoder_norm, x).clamp(min=0)
    for block in network.blocks:
        assert isinstance(block, ResidualBlock)
        hidden = norm(block.hidden_norm, linear(block.hidden, x, e)).clamp(min=0)
        x = x + norm(block.out_norm, linear(block.out, hidden, e))
    return linear(network.head, x, e)


def on_route(network: HardRoutingNetwork, e: int, x: Tensor, route: Sequence[int]) -> Tensor:
    """Through one module of each layer."""
    g = perceptron(network.state_encoder.layers, x, e)
    for k, (layer, j) in enumerate(zip(network.module_layers, route, strict=True)):
        g = linear(layer, g.clamp(min=0) if k else g, e, j)
    return g


def greedy_routing(network: HardRoutingNetwork, e: int, x: Tensor, t: int) -> Tensor:
    best = [max(range(len(logits)), key=logits.tolist().__getitem__) for logits in network.controller[e, t]]
    return on_route(network, e, x, best)


def route_of(network: HardRoutingNetwork, e: int, x: Tensor, out: Tensor) -> tuple[int, ...]:
    """The only route whose output this is."""
    routes = itertools.product(range(network.controller.shape[-1]), repeat=len(network.module_layers))
    (found,) = (route for route in routes if (on_route(network, e, x, route) - out).abs().max() < 1e-10)
    return found


PLAIN: dict[type[MultiTaskNetwork], Callable[[Any, int, Tensor, int], Tensor]] = {
    MlpNetwork: mlp,
    MultiHeadNetwork: multi_head,
    SingleTaskNetwork: single_task,
    MixtureOfExpertsNetwork: mixture_of_experts,
    HardRoutingNetwork: greedy_routing,
    CARENetwork: care,
    PaCoNetwork: paco,
    MOORENetwork: moore,
    FiLMNetwork: film,
    BroNetwork: bro,
}
