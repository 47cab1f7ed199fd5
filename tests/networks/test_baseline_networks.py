"""The networks of the baselines against their definitions, which ``plain_networks`` writes as loops in float64."""

from __future__ import annotations

import itertools

import pytest
import torch as th
from plain_networks import IN, OUT, PLAIN, SIZES, M, batch, gram_schmidt, linear, make, perceptron
from torch import Tensor, nn

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
from sb3_softmod.networks.base import in_task_order
from sb3_softmod.networks.moore import orthonormalize

NETWORKS = list(PLAIN)
IDS = [2, 0, 4, 2, 4, 4, 0, 2, 4, 0, 2, 2]  # in no order, each task another number of times, 1 and 3 not at all
PRESENT, ABSENT = [0, 2, 4], [1, 3]

# Where a parameter holds entries of one task alone: along its second axis, or in a column of the layer that reads
# the one-hot task behind the state.
ROW, ONE_HOT = "row", "one-hot"
TASK_ENTRIES: dict[type[MultiTaskNetwork], dict[str, str]] = {
    MlpNetwork: {"mlp.layers.0.weight": ONE_HOT},
    MultiHeadNetwork: {"trunk.layers.0.weight": ONE_HOT, "heads.weight": ROW, "heads.bias": ROW},
    SingleTaskNetwork: {f"mlps.layers.{k}.{kind}": ROW for k in range(3) for kind in ("weight", "bias")},
    MixtureOfExpertsNetwork: {"experts.layers.0.weight": ONE_HOT, "gating.layers.0.weight": ONE_HOT},
    HardRoutingNetwork: {"controller": ROW},
    CARENetwork: {"task_embedding": ROW},
    PaCoNetwork: {"composition": ROW},
    MOORENetwork: {"task_weights": ROW, "heads.weight": ROW, "heads.bias": ROW},
    FiLMNetwork: {"task_embedding": ROW},
    BroNetwork: {"task_embedding": ROW},
}
ALL_TASK_ENTRIES = [(network_class, name) for network_class, names in TASK_ENTRIES.items() for name in names]


def entries(parameter: Tensor, kind: str, t: int) -> Tensor:
    """What belongs to task t, a view with the layers of the batch in front and their entries along the last axis."""
    if kind == ROW:
        return parameter[:, t].view(len(parameter), -1)
    return parameter[..., IN + t].flatten(0, -2)


# ---------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("own_inputs", [False, True], ids=["same inputs", "own inputs"])
@pytest.mark.parametrize("ensemble_size", [1, 2])
@pytest.mark.parametrize(("network_class", "size"), [(c, size) for c in NETWORKS for size in range(len(SIZES[c]))])
def test_output(network_class: type[MultiTaskNetwork], size: int, ensemble_size: int, own_inputs: bool) -> None:
    network = make(network_class, ensemble_size, size)
    inputs, task = batch(IDS, ensemble_size if own_inputs else None)
    with th.no_grad():
        out = network(inputs, task)
        assert out.shape == (ensemble_size, len(IDS), OUT)
        assert out.std() > 0.05
        for e, (b, t) in itertools.product(range(ensemble_size), enumerate(IDS)):
            x = inputs[e, b] if own_inputs else inputs[b]
            assert (out[e, b] - PLAIN[network_class](network, e, x, t)).abs().max() < 1e-10


@pytest.mark.parametrize("network_class", NETWORKS)
def test_rows_do_not_depend_on_each_other(network_class: type[MultiTaskNetwork]) -> None:
    network = make(network_class, 2)
    inputs, task = batch(IDS)
    out = network(inputs, task)
    order = th.randperm(len(IDS))
    assert (network(inputs[order], task[order]) - out[:, order]).abs().max() < 1e-12
    for b in range(len(IDS)):
        assert (network(inputs[b : b + 1], task[b : b + 1])[:, 0] - out[:, b]).abs().max() < 1e-12


@pytest.mark.parametrize("network_class", NETWORKS)
def test_rows_in_the_order_of_the_tasks(network_class: type[MultiTaskNetwork]) -> None:
    """A network that is told of the order gives the same, and the same gradients."""
    network = make(network_class, 2)
    inputs, task = batch([t for t in range(M) for _ in range(3)])
    found = []
    for told in ([], [network]):
        network.zero_grad()
        with in_task_order(told):
            out = network(inputs, task)
        out.square().sum().backward()
        found.append([out, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert not network.in_task_order
    for known, unknown in zip(*found, strict=True):
        assert (known - unknown).abs().max() < 1e-10


def test_default_sizes() -> None:
    """Those of the papers, for Meta-World's actor on MT10: 39 inputs, 8 outputs."""

    def size(*widths: int) -> int:
        return sum((i + 1) * o for i, o in itertools.pairwise(widths))

    trunk = (400, 400, 400)
    expected = {
        MlpNetwork: size(49, *trunk, 8),
        MultiHeadNetwork: size(49, *trunk) + 10 * size(400, 8),
        SingleTaskNetwork: 10 * size(39, *trunk, 8),
        MixtureOfExpertsNetwork: 4 * size(49, *trunk, 8) + size(49, 400, 4),
        HardRoutingNetwork: size(39, 400, 400) + 4 * size(400, 128, 128, 128, 8) + 10 * 4 * 4,
        CARENetwork: 10 * 50
        + size(50, 50, 50, 50)
        + size(50, 50, 50, 6)
        + 6 * size(39, 50, 50, 50)
        + size(100, *trunk, 8),
        PaCoNetwork: 5 * size(39, *trunk, 8) + 10 * 5,
        MOORENetwork: 4 * size(39, *trunk) + 10 * 4 + 10 * size(400, 8),
        FiLMNetwork: 10 * 50 + size(50, 2 * 3 * 400) + size(39, *trunk, 8),
        BroNetwork: 10 * 32 + size(71, 512) + 2 * 512 + 2 * (size(512, 512, 512) + 4 * 512) + size(512, 8),
    }
    for network_class, count in expected.items():
        assert sum(p.numel() for p in network_class(39, 8, 10).parameters()) == count, network_class
        critics = network_class(43, 1, 10, ensemble_size=2)
        assert all(len(p) == 2 for p in critics.parameters())


# ------------------------------------------------------------------------------ isolation


@pytest.mark.parametrize(("network_class", "name"), ALL_TASK_ENTRIES)
def test_a_task_depends_on_its_own_entries_alone(network_class: type[MultiTaskNetwork], name: str) -> None:
    network = make(network_class, 2)
    inputs, task = batch([*range(M), *range(M)])
    before = network(inputs, task)
    parameter, kind = network.get_parameter(name), TASK_ENTRIES[network_class][name]
    for t in range(M):
        kept = parameter.detach().clone()
        with th.no_grad():
            entries(parameter, kind, t).mul_(-1).add_(0.5)  # of logits, the least becomes the greatest
        after = network(inputs, task)
        for b in range(len(task)):
            if b % M == t:
                assert ((after[:, b] - before[:, b]).abs().amax(-1) > 1e-6).all()  # in both members
            else:
                assert th.equal(after[:, b], before[:, b])
        with th.no_grad():
            parameter.copy_(kept)


# ------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("network_class", [c for c in NETWORKS if c is not HardRoutingNetwork])
def test_gradients_reach_the_present_tasks_and_all_that_is_shared(network_class: type[MultiTaskNetwork]) -> None:
    network = make(network_class, 2)
    inputs, task = batch(IDS)
    out = network(inputs, task)
    (out * th.randn_like(out)).sum().backward()
    for name, parameter in network.named_parameters():
        grad, kind = parameter.grad, TASK_ENTRIES[network_class].get(name)
        assert grad is not None
        if kind is not None:
            for t in ABSENT:
                assert (entries(grad, kind, t) == 0).all(), name
            for t in PRESENT:
                assert (entries(grad, kind, t) != 0).any(-1).all(), name
        if kind in (None, ONE_HOT):
            shared = grad if kind is None else grad[..., :IN]
            layer = network.get_submodule(name.rpartition(".")[0])
            # Each layer of the batch: of each member, and of each expert, encoder or set of parameters.
            batch_axes = len(layer.batch_shape) if isinstance(layer, BatchedLinear) else 1
            assert (shared.flatten(batch_axes) != 0).any(-1).all(), name


@pytest.mark.parametrize("network_class", NETWORKS)
def test_gradients_are_those_of_the_definition(network_class: type[MultiTaskNetwork]) -> None:
    network = make(network_class, 2)
    inputs, task = batch(IDS)
    direction = th.randn(2, len(IDS), OUT, dtype=th.float64)
    loops = [[PLAIN[network_class](network, e, inputs[b], t) for b, t in enumerate(IDS)] for e in range(2)]
    gradients = []
    for out in (network(inputs, task), th.stack([th.stack(of_member) for of_member in loops])):
        network.zero_grad()
        (out * direction).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    ours, expected = gradients
    assert ours.keys() == expected.keys()
    for name, grad in ours.items():
        assert (grad - expected[name]).abs().max() < 1e-9, name


@pytest.mark.parametrize("network_class", NETWORKS)
def test_a_member_takes_gradients_from_its_own_output_alone(network_class: type[MultiTaskNetwork]) -> None:
    network = make(network_class, 2)
    inputs, task = batch(IDS)
    inputs.requires_grad_()
    network(inputs, task)[1].square().sum().backward()
    for name, parameter in network.named_parameters():
        if name != "controller":  # it has no gradient at all, see test_hard_routing.py
            assert parameter.grad is not None
            assert (parameter.grad[0] == 0).all(), name
            assert (parameter.grad[1] != 0).any(), name
    assert inputs.grad is not None
    assert (inputs.grad != 0).any(-1).all()


# ---------------------------------------------------------------- what only one of them has


def test_multi_head_with_one_task_is_the_mlp() -> None:
    th.manual_seed(0)
    heads = MultiHeadNetwork(IN, OUT, 1, net_arch=[8, 7], ensemble_size=2).double()
    mlp = MlpNetwork(IN, OUT, 1, net_arch=[8, 7], ensemble_size=2).double()
    with th.no_grad():
        for ours, theirs in zip(mlp.parameters(), heads.parameters(), strict=True):
            ours.copy_(theirs.view_as(ours))
    inputs, _ = batch(IDS)
    task = th.ones(len(IDS), 1, dtype=th.float64)
    assert (heads(inputs, task) - mlp(inputs, task)).abs().max() < 1e-12


def test_single_task_is_one_perceptron_per_task() -> None:
    """Of torch's own layers, and each trained by its own rows."""
    network = make(SingleTaskNetwork, 2)
    inputs, task = batch(IDS)
    out = network(inputs, task)
    out.square().sum().backward()
    for e, t in itertools.product(range(2), range(M)):
        alone = [nn.Linear(*widths, dtype=th.float64) for widths in itertools.pairwise((IN, 8, 7, OUT))]
        with th.no_grad():
            for layer, of_all in zip(alone, network.mlps.layers, strict=True):
                layer.weight.copy_(of_all.weight[e, t])
                layer.bias.copy_(of_all.bias[e, t])
        rows = th.tensor(IDS) == t
        expected = nn.Sequential(alone[0], nn.ReLU(), alone[1], nn.ReLU(), alone[2])(inputs[rows])
        assert th.allclose(out[e, rows], expected, rtol=0, atol=1e-12)
        expected.square().sum().backward()
        for layer, of_all in zip(alone, network.mlps.layers, strict=True):
            assert layer.weight.grad is not None
            assert layer.bias.grad is not None
            assert th.allclose(of_all.weight.grad[e, t], layer.weight.grad, rtol=0, atol=1e-11)
            assert th.allclose(of_all.bias.grad[e, t], layer.bias.grad, rtol=0, atol=1e-11)


def test_gates_and_attention_are_distributions() -> None:
    inputs, task = batch(IDS, 2)
    gates = make(MixtureOfExpertsNetwork, 2).gates(inputs, task)
    attention = make(CARENetwork, 2).attention_weights(task)
    for weights in (gates, attention):
        assert weights.shape == (2, len(IDS), 3)
        assert (weights > 0).all()
        assert (weights.sum(-1) - 1).abs().max() < 1e-12
        assert weights.max() - weights.min() > 0.1  # not merely uniform
    same_task = [b for b, t in enumerate(IDS) if t == 2]
    assert (attention[:, same_task] - attention[:, same_task[:1]]).abs().max() < 1e-12  # the state does not count
    assert gates[:, same_task].std(1).min() > 1e-3  # here it does


def test_gates_of_a_task_have_weights_of_their_own() -> None:
    network = make(MixtureOfExpertsNetwork, 2)
    inputs, task = batch([0, 1, 0, 1])
    before = network.gates(inputs, task)
    with th.no_grad():
        network.gating.layers[0].weight[..., IN + 1] += 1.0
    after = network.gates(inputs, task)
    assert th.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert (after[:, [1, 3]] - before[:, [1, 3]]).abs().amax(-1).min() > 1e-6


def test_paco_is_linear_in_the_composition() -> None:
    """A task with the weights of one set has that set's parameters."""
    network = make(PaCoNetwork)
    with th.no_grad():
        network.composition.copy_(th.eye(M, 3, dtype=th.float64))
    inputs, task = batch([0, 1, 2])
    out = network(inputs, task)
    for k in range(3):
        assert (out[0, k] - perceptron(network.parameter_sets, inputs[k], 0, k)).abs().max() < 1e-12


def test_film_without_modulation_is_a_perceptron_of_the_state() -> None:
    network = make(FiLMNetwork)
    with th.no_grad():
        for parameter in network.modulation.parameters():
            parameter.zero_()
    inputs, task = batch([0, 3])
    out = network(inputs, task)
    for b in range(2):
        assert (out[0, b] - perceptron(network.layers, inputs[b], 0)).abs().max() < 1e-12


def near_parallel(spread: float, dtype: th.dtype) -> Tensor:
    """Vectors ``[2, 4, 50, 16]`` that differ from each other by ``spread`` of their length."""
    generator = th.Generator().manual_seed(1)
    common = th.randn(2, 1, 50, 16, generator=generator, dtype=th.float64)
    return (common + spread * th.randn(2, 4, 50, 16, generator=generator, dtype=th.float64)).to(dtype)


def deviation(features: Tensor) -> float:
    """How far vectors ``[E, K, B, d]`` are from orthonormal along K."""
    gram = th.einsum("ekbd,elbd->ebkl", features, features)
    return (gram - th.eye(gram.shape[-1], dtype=gram.dtype)).abs().max().item()


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-6])
def test_moore_features_are_orthonormal(spread: float) -> None:
    assert deviation(orthonormalize(near_parallel(spread, th.float32))) < 1e-5
    if spread == 1e-4:  # where projecting once is not enough
        vectors = near_parallel(spread, th.float32)
        once = th.stack([th.stack(gram_schmidt(vectors[0, :, b])) for b in range(50)], 1)
        assert deviation(once.unsqueeze(0)) > 1e-5


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_moore_features_are_those_of_gram_schmidt(spread: float) -> None:
    """The factor Q of the QR decomposition whose R has a positive diagonal: the same spans, the same signs."""
    vectors = near_parallel(spread, th.float64)
    q, r = th.linalg.qr(vectors.permute(0, 2, 3, 1))  # [E, B, d, K]
    expected = (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).permute(0, 3, 1, 2)
    assert (orthonormalize(vectors) - expected).abs().max() < 1e-8


def test_moore_features_of_nearly_equal_experts() -> None:
    network = make(MOORENetwork, 2).float()
    with th.no_grad():
        for parameter in network.experts.parameters():
            parameter.copy_(parameter[:, :1] + 1e-4 * th.randn_like(parameter))
    inputs, task = batch(IDS)
    assert deviation(network.features(inputs.float())) < 1e-5
    network(inputs.float(), task.float()).square().sum().backward()
    assert all(th.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_moore_experts_do_not_see_the_task() -> None:
    network = make(MOORENetwork)
    inputs, _ = batch(IDS)
    for k, b in itertools.product(range(3), range(len(IDS))):
        raw = [perceptron(network.experts.layers, inputs[b], 0, i) for i in range(3)]
        assert (network.features(inputs)[0, k, b] - gram_schmidt(raw)[k]).abs().max() < 1e-10
    head = linear(network.heads, th.zeros(7, dtype=th.float64), 0, 1)
    assert th.equal(head, network.heads.bias[0, 1])
