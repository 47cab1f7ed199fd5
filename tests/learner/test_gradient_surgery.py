"""PCGrad: each task's gradients, their projection, and the step of the algorithm."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch as th
from point_mass import make_point_mass_env
from reference_surgery import pcgrad_by_loops
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_softmod import ConfigurationError, MultiTaskReplayBuffer, MultiTaskSAC
from sb3_softmod.learner.gradient_surgery import pcgrad, task_gradients
from sb3_softmod.policies import POLICIES

M = 4
SMALL: dict[str, dict[str, Any]] = {
    "SoftModPolicy": dict(embedding_dim=12, module_dim=8),
    "MixtureOfExpertsPolicy": dict(net_arch=[12, 10], gating_arch=[9]),
    "HardRoutingPolicy": dict(num_layers=2, embedding_dim=12, module_dim=8),
    "CAREPolicy": dict(embedding_dim=6, encoder_arch=[7], net_arch=[12, 10]),
    "FiLMPolicy": dict(embedding_dim=6, net_arch=[12, 10]),
    "BROPolicy": dict(width=12, embedding_dim=6),
}
SHARING = [name for name in POLICIES if name != "SingleTaskPolicy"]


def make_model(policy: str = "MTMlpPolicy", **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(
        batch_size=8 * M,
        learning_starts=10 * M,
        buffer_size=4000,
        policy_kwargs=SMALL.get(policy, dict(net_arch=[12, 10])),
        gradient_surgery="pcgrad",
        seed=0,
    )
    return MultiTaskSAC(policy, make_point_mass_env(M), **{**options, **kwargs})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_tasks", [5, 10, 20])
def test_equals_the_algorithm_of_the_paper(num_tasks: int, seed: int) -> None:
    generator = th.Generator().manual_seed(seed)
    shapes = {"a": (2, 3, 2), "b": (2, 4)}  # two members: each is a network of its own
    gradients = {
        name: th.randn(num_tasks, *shape, dtype=th.float64, generator=generator) for name, shape in shapes.items()
    }
    orders = th.rand(num_tasks, num_tasks, generator=generator).argsort(-1)
    result = pcgrad(gradients, orders)
    assert {name: g.shape for name, g in result.items()} == shapes
    for member in range(2):
        flat = [th.cat([g[i, member].flatten() for g in gradients.values()]) for i in range(num_tasks)]
        assert any(a @ b < 0 for a, b in itertools.combinations(flat, 2))
        expected = pcgrad_by_loops(flat, orders.tolist())
        actual = th.cat([g[member].flatten() for g in result.values()])
        th.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_layer_norm_in_bf16() -> None:
    """vmap takes no gradient whose parts have two types."""
    options: dict[str, Any] = dict(batch_size=8, learning_starts=20, buffer_size=400, seed=0, device="cpu")
    kwargs = dict(net_arch=[8, 8], normalization="layer")
    env = make_point_mass_env()
    model = MultiTaskSAC(
        "MTMlpPolicy", env, policy_kwargs=kwargs, gradient_surgery="pcgrad", precision="bf16", **options
    )
    before = [parameter.clone() for parameter in model.critic.parameters()]
    model.learn(40)
    assert model._n_updates > 0
    assert all(not th.equal(a, b) for a, b in zip(before, model.critic.parameters(), strict=True))


def test_gradients_without_conflict_stay() -> None:
    gradients = {"a": th.rand(5, 2, 7, 3), "b": th.zeros(5, 2, 4)}  # all inner products positive
    result = pcgrad(gradients, th.rand(5, 5).argsort(-1))
    for name, g in result.items():
        th.testing.assert_close(g, gradients[name].mean(0), rtol=1e-6, atol=0)
    for name, g in pcgrad({"a": th.eye(5).view(5, 1, 5)}, th.rand(5, 5).argsort(-1)).items():  # orthogonal ones too
        assert th.equal(g, th.full((1, 5), 0.2)), name


def test_opposite_gradients_of_two_tasks_vanish() -> None:
    g = th.randn(1, 6)
    result = pcgrad({"a": th.stack([g, -2 * g])}, th.tensor([[0, 1], [1, 0]]))
    th.testing.assert_close(result["a"], th.zeros(1, 6), rtol=0, atol=1e-6)


def test_a_device_without_float64_needs_none() -> None:
    """Apple's: told without one, by tensors that have a device, a type and a shape, but no numbers."""
    float64: list[str] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            float64.extend(t.device.type for t in tree_leaves(out) if isinstance(t, Tensor) and t.dtype is th.float64)
            return out

    with FakeTensorMode(), Noting():
        result = pcgrad({"a": th.empty(5, 2, 3, device="mps")}, th.empty(5, 5, device="mps").argsort(-1))["a"]
    assert (result.device.type, result.dtype, result.shape) == ("mps", th.float32, (2, 3))
    assert set(float64) == {"cpu"}


@pytest.mark.parametrize("policy", [name for name in SHARING if name != "HardRoutingPolicy"])  # whose routes are drawn
def test_the_gradients_of_the_tasks_equal_one_backward_pass_each(policy: str) -> None:
    critic = make_model(policy).critic
    generator = th.Generator().manual_seed(1)
    obs = th.cat([th.randn(5 * M, 2, generator=generator), th.eye(M).repeat_interleave(5, 0)], 1)
    actions, target = th.rand(5 * M, 2, generator=generator), th.randn(5 * M, 1, generator=generator)

    def loss(obs: Tensor, actions: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        losses = (th.cat(critic(obs, actions), 1) - target).square().sum(1)
        return losses.mean(), (losses,)

    gradients, (losses,) = task_gradients(critic, loss, (obs, actions, target), M)
    assert losses.shape == (5 * M,)
    assert set(gradients) == {name for name, _ in critic.named_parameters()}
    for task in range(M):
        rows = slice(5 * task, 5 * task + 5)
        critic.zero_grad()
        loss(obs[rows], actions[rows], target[rows])[0].backward()
        for name, parameter in critic.named_parameters():
            assert parameter.grad is not None
            th.testing.assert_close(gradients[name][task], parameter.grad, rtol=1e-4, atol=1e-6)


class Conflicting(MultiTaskReplayBuffer):
    """A batch whose tasks want opposite values of the same states."""

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        state = th.linspace(-1, 1, 16).view(8, 2).repeat(self.num_tasks, 1)
        task = th.arange(self.num_tasks).repeat_interleave(8)
        obs = th.cat([state, th.eye(self.num_tasks)[task]], 1)
        sign = 1.0 - 2.0 * (task % 2).float().view(-1, 1)
        return ReplayBufferSamples(obs, th.zeros(len(obs), 2), obs, th.ones(len(obs), 1), 5 * sign)


def test_the_critics_step_is_the_projected_one() -> None:
    """With plain gradient descent the step shows the gradient; of two tasks there is one order only."""
    options: dict[str, Any] = dict(
        policy_kwargs=dict(net_arch=[12, 10], optimizer_class=th.optim.SGD), replay_buffer_class=Conflicting
    )
    env = make_point_mass_env(2)
    model = MultiTaskSAC("MTMlpPolicy", env, batch_size=16, gradient_surgery="pcgrad", seed=0, **options)
    model.set_logger(Logger(folder=None, output_formats=[]))
    batch = model.replay_buffer.sample(16)  # type: ignore[union-attr]
    critic = model.critic
    before = {name: p.detach().clone() for name, p in critic.named_parameters()}
    flat: list[list[Tensor]] = [[], []]  # of each member the gradients of both tasks
    for rows in (slice(0, 8), slice(8, 16)):
        critic.zero_grad()
        q = th.cat(critic(batch.observations[rows], batch.actions[rows]), 1)
        (0.5 * (q - batch.rewards[rows]).square()).sum(1).mean().backward()  # done: the target is the reward
        for member in range(2):
            flat[member].append(th.cat([p.grad[member].flatten() for p in critic.parameters() if p.grad is not None]))
    assert all(one @ two < 0 for one, two in flat)
    model.train(1, 16)
    for member in range(2):
        moved = th.cat([(before[n] - p.detach())[member].flatten() for n, p in critic.named_parameters()])
        expected = model.lr_schedule(1) * pcgrad_by_loops(flat[member], [[1], [0]])
        th.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("policy", SHARING)
def test_every_method_learns_with_it(policy: str) -> None:
    model = make_model(policy, max_grad_norm=1.0, loss_weighting="alpha")
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(100)
    moved = {name for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
    assert moved == set(before)  # the controllers of Hard Routing too
    assert all(p.isfinite().all() for p in model.policy.parameters())
    for module in (model.actor, model.critic):
        copy.deepcopy(module.network)  # nothing of the mapped pass is left behind


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(gradient_surgery="pcgard"), "Unknown gradient_surgery 'pcgard': did you mean 'pcgrad'"),
        (dict(policy="SingleTaskPolicy"), "The tasks of SingleTaskPolicy share no parameter"),
        (dict(policy="MlpPolicy", policy_kwargs={}), "needs a policy of this package, not SACPolicy"),
        (dict(replay_buffer_class=ReplayBuffer), "needs the balanced batches of MultiTaskReplayBuffer"),
    ],
)
def test_what_cannot_work_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(**kwargs)
