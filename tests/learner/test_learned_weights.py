"""Weights of the critics' losses that are learned: GradNorm, FAMO and uncertainty."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_weighting as reference
import torch as th
from accelerated_models import SMALL, largest_difference
from accelerated_models import make_model as make_filled_model
from point_mass import make_point_mass_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from sb3_softmod import (
    ConfigurationError,
    FileError,
    MultiTaskReplayBuffer,
    MultiTaskSAC,
    MultiTaskSACPolicy,
    NonFiniteError,
)
from sb3_softmod.learner.critic_objectives import make_objective
from sb3_softmod.learner.gradient_norms import WatchedFunction
from sb3_softmod.learner.learned_weights import FAMO, LEARNED_WEIGHTINGS, GradNorm, TaskLosses, Uncertainty
from sb3_softmod.learner.nonfinite import tensors_of
from sb3_softmod.methods import METHODS
from sb3_softmod.networks import MlpNetwork, MultiTaskNetwork
from sb3_softmod.policies import POLICIES
from sb3_softmod.saving.models import saved_facts

M, B = 4, 32
CPU = th.device("cpu")
SHARING = [name for name in POLICIES if name != "SingleTaskPolicy"]


class Ended(MultiTaskReplayBuffer):
    """One batch always, of tasks whose rewards are 1, 2, 4 and 8 times as large; episodes end: they are the target."""

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        generator = th.Generator().manual_seed(3)
        state = th.randn(B, 2, generator=generator)
        task = th.arange(M).repeat_interleave(B // M)
        obs = th.cat([state, th.eye(M)[task]], 1)
        reward = 2.0 ** task.view(-1, 1) * (state[:, :1] + 0.3 * th.randn(B, 1, generator=generator))
        actions = th.rand(B, 2, generator=generator) * 2 - 1
        return ReplayBufferSamples(obs, actions, obs, th.ones(B, 1), reward)


def make_model(weighting: str, policy: str = "MTMlpPolicy", **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(
        batch_size=B,
        learning_starts=10 * M,
        buffer_size=4000,
        policy_kwargs=SMALL.get(policy, dict(net_arch=[12, 10])),
        seed=0,
        device="cpu",
    )
    env = kwargs.pop("env", None) or make_point_mass_env(M)
    model = MultiTaskSAC(policy, env, loss_weighting=weighting, **{**options, **kwargs})  # type: ignore[arg-type]
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def logged_weights(model: MultiTaskSAC, steps: int) -> list[list[float]]:
    """What each of some gradient steps logs."""
    history = []
    for _ in range(steps):
        model.train(1, B)
        history.append(model._metrics.pop()["loss_weight"].tolist())
    return history


def step_of(optimizer: th.optim.Optimizer) -> None:
    optimizer.step()


# --------------------------------------------------------------------------- against plain loops


@pytest.mark.parametrize("critic", ["mse", "categorical"])
@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
def test_equals_the_algorithm_of_the_paper(weighting: str, critic: Any) -> None:
    """30 gradient steps of the critics by plain descent: weights in each, and what the critics learned."""
    rate, steps = 0.01, 30
    options: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[12, 10], optimizer_class=th.optim.SGD))
    model = make_model(weighting, critic=critic, learning_rate=rate, replay_buffer_class=Ended, **options)
    theirs = copy.deepcopy(model.critic)
    batch = model.replay_buffer.sample(B)  # type: ignore[union-attr]
    objective = make_objective(critic, getattr(model.policy, "value_atoms", None), CPU)
    reward = batch.rewards.flatten()
    with th.no_grad():
        predictions = objective.predict(theirs, batch.next_observations, batch.actions)
        target = objective.target(predictions, "min", th.zeros(B), reward, th.zeros(B))

    def loss(i: int) -> Tensor:
        rows = slice(8 * i, 8 * i + 8)
        found = objective.predict(theirs, batch.observations[rows], batch.actions[rows])
        return objective.losses(found, target[rows]).sum(0).mean()

    # Of a squared error it is 0; of a cross-entropy that of the target with itself.
    own = [0.0] * B if critic == "mse" else (-(target * target.clamp(min=1e-30).log()).sum(-1)).tolist()
    least = [2 * sum(own[8 * i : 8 * i + 8]) / 8 for i in range(M)]  # of two critics
    if weighting == "famo":
        expected = reference.famo(theirs, loss, least, steps, rate, 2)
    elif weighting == "gradnorm":
        shared = theirs.network.mlp.layers[-1].weight  # type: ignore[union-attr, index]
        expected = reference.gradnorm(theirs, loss, least, steps, rate, shared, 0.12)
    else:
        expected = reference.uncertainty(theirs, loss, M, steps, rate, 2)
    found = logged_weights(model, steps)
    assert np.abs(np.array(expected[-1]) - 1).max() > 0.03  # they are not the uniform ones
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    for own_parameter, their_parameter in zip(model.critic.parameters(), theirs.parameters(), strict=True):
        th.testing.assert_close(own_parameter, their_parameter, rtol=1e-4, atol=1e-5)


def test_uncertainty_finds_the_variance() -> None:
    """Of critics that stay: one over the mean squared error."""
    weights = Uncertainty(3, CPU, learning_rate=0.1)
    squared = th.tensor([0.01, 1.0, 25.0])
    losses = TaskLosses(squared / 2, squared / 2, th.ones(3, dtype=th.bool))
    for _ in range(400):
        weights.learn(weights.gradient(losses, lambda: losses, th.Tensor), losses.present, step_of)
    th.testing.assert_close(weights.weights(losses), 1 / squared, rtol=1e-3, atol=0)


def test_gradnorm_makes_gradients_of_one_size() -> None:
    """Tasks whose gradients stay 1, 10 and 100 times as large, and that learn alike."""
    sizes, present = th.tensor([1.0, 10.0, 100.0]), th.ones(3, dtype=th.bool)
    weights = GradNorm(3, CPU, learning_rate=0.01)
    losses = TaskLosses(sizes, sizes, present)
    for _ in range(1000):
        weighted = weights.weights(losses) * sizes
        gradient = weights.gradient(losses, lambda: losses, lambda: weighted)  # noqa: B023
        weights.learn(gradient, present, step_of)
    found = weights.weights(losses)
    assert found.sum() == pytest.approx(3)
    assert (found > 0).all()
    assert found[0] / found[1] == pytest.approx(10, rel=0.1)


def test_famo_favours_the_task_that_falls_less() -> None:
    weights, present = FAMO(2, CPU), th.ones(2, dtype=th.bool)
    before, after = th.tensor([1.0, 4.0]), th.tensor([0.5, 3.9])
    losses = TaskLosses(before, before, present)
    assert weights.weights(losses).tolist() == pytest.approx([1.6, 0.4])  # of one over the loss, mean 1
    gradient = weights.gradient(losses, lambda: TaskLosses(after, after, present), th.Tensor)
    assert gradient[0] > 0 > gradient[1]
    weights.learn(gradient, present, step_of)
    assert weights.weights(losses)[1] > 0.4


# -------------------------------------------------------------------------- norms of the gradients


@pytest.mark.parametrize("critic", ["mse", "categorical"])
@pytest.mark.parametrize("policy", SHARING)
def test_the_norms_equal_one_backward_pass_each(policy: str, critic: Any) -> None:
    model = make_model("uniform", policy, critic=critic)
    network: MultiTaskNetwork = model.critic.network  # type: ignore[assignment]
    network.train(False)  # routes that are not drawn
    layer = network.last_shared_layer
    assert isinstance(layer, nn.Module)
    batch = Ended.sample(model.replay_buffer, B)  # type: ignore[arg-type]

    def q_values(obs: Tensor, actions: Tensor) -> Tensor:
        return th.cat(model.critic(obs, actions), 1)

    watched = WatchedFunction(q_values, layer)
    (watched(batch.observations, batch.actions) - batch.rewards).square().sum(1).mean().backward()
    found = watched.gradient_norms(M)
    for task in range(M):
        rows = slice(8 * task, 8 * task + 8)
        q = q_values(batch.observations[rows], batch.actions[rows])
        loss = (q - batch.rewards[rows]).square().sum(1).mean() / M
        (gradient,) = th.autograd.grad(loss, layer.get_parameter("weight"))
        assert found[task].item() == pytest.approx(gradient.norm().item(), rel=1e-4)
        assert found[task] > 0


def test_a_layer_that_is_not_read_is_refused() -> None:
    class Idle(MlpNetwork):
        @property
        def last_shared_layer(self) -> nn.Module:
            return nn.Linear(2, 2)

    class IdlePolicy(MultiTaskSACPolicy):
        network_class = Idle

    model = make_model("gradnorm", policy=IdlePolicy, replay_buffer_class=Ended)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="last_shared_layer of the critics' network has no part"):
        model.train(1, B)


# --------------------------------------------------------------------------------------- in SAC


@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
def test_the_actor_has_uniform_weights(weighting: str) -> None:
    """From equal critics its first step is that of uniform weights, bit for bit."""
    actors = []
    for each in ("uniform", weighting):
        model = make_model(each, replay_buffer_class=Ended, learning_rate=1e-3)
        model.critic.optimizer.step = lambda *_: None  # type: ignore[method-assign, assignment]
        th.manual_seed(1)
        model.train(1, B)
        actors.append([p.detach().clone() for p in model.actor.parameters()])
    assert all(map(th.equal, *actors))


@pytest.mark.parametrize(
    ("weighting", "policy"),
    [
        *(("gradnorm", policy) for policy in SHARING),
        *(("famo", policy) for policy in ("HardRoutingPolicy", "MlpPolicy")),
        *(("uncertainty", policy) for policy in ("HardRoutingPolicy", "MlpPolicy")),
    ],
)
def test_policies_learn_with_it(weighting: str, policy: str) -> None:
    sizes = dict(policy_kwargs=dict(net_arch=[8])) if policy == "MlpPolicy" else {}
    model = make_model(weighting, policy, max_grad_norm=1.0, **sizes)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(100)
    moved = {name for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
    assert moved == set(before)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    weights = model._metrics.pop()["loss_weight"]
    assert np.ptp(weights) > 0
    if weighting != "uncertainty":
        assert weights.mean() == pytest.approx(1, rel=1e-5)
    for module in (model.actor, model.critic):
        copy.deepcopy(module)  # nothing of the pass is left behind


@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
def test_tasks_that_are_left_out_stay(weighting: str) -> None:
    """Of three tasks the batches hold two: the numbers of the other do not move, and it has no part in the weights."""
    model = make_filled_model("mt_sac", loss_weighting=weighting)
    buffer: Any = model.replay_buffer
    step, batch = model._learner(), buffer.sample(8 * M)
    rows = th.cat([th.arange(8), th.arange(16, 24)])
    part = ReplayBufferSamples(**{name: tensor[rows] for name, tensor in tensors_of(batch).items()})
    model.policy.set_training_mode(True)
    step.set_learning_rate(1e-3)
    for number in range(5):
        metrics = step(part, num_present=2, at=(number + 1, 0))
        assert metrics[1].isnan().tolist() == [False, True, False, True]
        if weighting != "uncertainty":
            assert metrics[1].nanmean().item() == pytest.approx(1)
    learned = model.learned_weights
    assert learned is not None
    start = 1.0 if weighting == "gradnorm" else 0.0
    assert (learned.numbers == start).tolist() == [False, True, False, True]


def test_the_rate_of_the_model_is_uncertaintys_alone() -> None:
    for weighting, rate in (("uncertainty", 1e-3), ("famo", 0.025), ("gradnorm", 0.025)):
        model = make_model(weighting, replay_buffer_class=Ended, learning_rate=1e-3)
        model.train(1, B)
        assert model.learned_weights is not None
        assert model.learned_weights.optimizer.param_groups[0]["lr"] == rate


def test_an_attribute_that_is_changed_counts_from_the_next_step_on() -> None:
    model = make_model("uniform", replay_buffer_class=Ended)
    assert logged_weights(model, 1) == [[1.0] * M]
    model.loss_weighting = "famo"
    assert np.ptp(logged_weights(model, 2)[1]) > 0.1
    learned = model.learned_weights
    assert learned is not None
    logits = learned.numbers.tolist()
    model.loss_weighting_kwargs = dict(learning_rate=1e-9)
    logged_weights(model, 1)
    assert model.learned_weights is not None
    assert model.learned_weights is not learned
    assert model.learned_weights.numbers.tolist() == pytest.approx(logits, abs=1e-7)  # they go on from there
    model.gradient_surgery = "pcgrad"
    with pytest.raises(ConfigurationError, match="'famo' does not go with gradient_surgery='pcgrad'"):
        model.train(1, B)
    model.gradient_surgery, model.loss_weighting, model.loss_weighting_kwargs = None, "uniform", {}
    assert logged_weights(model, 1) == [[1.0] * M]


# ------------------------------------------------------------------------------ precision and speed


@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
def test_bf16(weighting: str) -> None:
    tolerance = {"gradnorm": 0.01, "famo": 0.03, "uncertainty": 0.003}[weighting]
    rate = 0.01 if weighting == "uncertainty" else 3e-4  # its weights move with the learning rate of the model
    options: dict[str, Any] = dict(replay_buffer_class=Ended, learning_rate=rate)
    plain, bf16 = (make_model(weighting, precision=precision, **options) for precision in ("fp32", "bf16"))
    weights = logged_weights(plain, 3)
    assert np.abs(np.array(weights) - 1).max() > 3 * tolerance
    # The weights of the first steps are of losses and gradients that differ in their third digit.
    np.testing.assert_allclose(logged_weights(bf16, 3), weights, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
def test_compiled_is_the_same(weighting: str) -> None:
    th._dynamo.reset()
    models = [make_model(weighting, replay_buffer_class=Ended, compile=on) for on in (False, True)]
    histories = []
    for model in models:
        th.manual_seed(1)
        histories.append(logged_weights(model, 4))
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)
    assert largest_difference(*models) < 1e-5
    th._dynamo.reset()


# ------------------------------------------------------------------------------------------ saving


@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
@pytest.mark.parametrize("safe", [False, True])
def test_a_file_goes_on_bit_for_bit(weighting: str, safe: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if weighting == "uncertainty" else dict(loss_weighting_kwargs=dict(learning_rate=0.1))
    model = make_model(weighting, replay_buffer_class=Ended, **options)
    logged_weights(model, 5)
    model.save(tmp_path / "model")
    how: dict[str, Any] = dict(safe=True, policy="MTMlpPolicy", buffer_size=100) if safe else {}
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), "cpu", replay_buffer_class=Ended, **how)
    loaded.set_logger(Logger(folder=None, output_formats=[]))
    own, theirs = model.learned_weights, loaded.learned_weights
    assert own is not None
    assert theirs is not None
    assert theirs.progress() == own.progress()
    assert loaded.loss_weighting_kwargs == model.loss_weighting_kwargs
    assert json.dumps(saved_facts(tmp_path / "model.zip")["loss_weighting_progress"])  # plain, not pickled
    if not safe:
        for each in (model, loaded):
            th.manual_seed(0)
            each.train(5, B)
        assert theirs.progress() == own.progress()
        assert all(map(th.equal, model.policy.parameters(), loaded.policy.parameters()))


def test_another_weighting_than_the_files_begins_anew(tmp_path: Path) -> None:
    model = make_model("famo", replay_buffer_class=Ended)
    logged_weights(model, 3)
    model.save(tmp_path / "model")
    load = MultiTaskSAC.load
    loaded = load(tmp_path / "model", make_point_mass_env(M), loss_weighting="gradnorm")
    assert isinstance(loaded.learned_weights, GradNorm)
    assert loaded.learned_weights.numbers.tolist() == [1.0] * M
    assert load(tmp_path / "model", make_point_mass_env(M), loss_weighting="alpha").learned_weights is None
    slower = load(tmp_path / "model", make_point_mass_env(M), loss_weighting_kwargs=dict(learning_rate=1e-3))
    assert model.learned_weights is not None
    assert slower.learned_weights is not None
    assert slower.learned_weights.progress() == model.learned_weights.progress()
    assert slower.learned_weights.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("progress", "message"),
    [
        ([], "it holds no numbers"),
        (dict(numbers=[0.0] * 3), "its numbers are not 4 finite numbers"),
        (dict(numbers=[0.0] * 3 + [float("nan")]), "its numbers are not 4 finite numbers"),
        (dict(numbers=["a"] * 4), "it holds what are no numbers"),
        (dict(numbers=[0.0] * 4, step=[1.0]), "its step are not"),
    ],
)
def test_a_file_with_broken_weights_is_refused(progress: Any, message: str, tmp_path: Path) -> None:
    model = make_model("famo")
    model.learned_weights.progress = lambda: progress  # type: ignore[union-attr, method-assign]
    model.save(tmp_path / "model")
    with pytest.raises(FileError, match=rf"what loss_weighting='famo' has learned for 4 tasks: {message}"):
        MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M))


@pytest.mark.parametrize("weighting", LEARNED_WEIGHTINGS)
def test_an_update_that_is_not_finite_changes_nothing_and_is_dumped(weighting: str, tmp_path: Path) -> None:
    model = make_model(weighting, replay_buffer_class=Ended)
    logged_weights(model, 3)
    model.logger.dir = str(tmp_path)
    before = model.learned_weights.progress()  # type: ignore[union-attr]
    good = {name: value.clone() for name, value in model.critic.state_dict().items()}
    model.critic.network.mlp.layers[0].weight.data[0, 0, 0] = th.inf  # type: ignore[union-attr, index]
    with pytest.raises(NonFiniteError, match="the loss of the critic") as error:
        model.train(1, B)
    assert model.learned_weights.progress() == before  # type: ignore[union-attr]
    again = make_model(weighting, replay_buffer_class=Ended)
    with pytest.raises(NonFiniteError, match="the loss of the critic") as repeated:
        again.replay_dump(tmp_path / "nonfinite-4.pt")
    assert str(repeated.value).split(". The update")[0] == str(error.value).split(". The update")[0]
    assert again.learned_weights.numbers.tolist() == before["numbers"]  # type: ignore[union-attr]
    model.critic.network.mlp.layers[0].weight.data[0, 0, 0] = good["network.mlp.layers.0.weight"][0, 0, 0]  # type: ignore[union-attr, index]
    assert all(th.equal(value, good[name]) for name, value in model.critic.state_dict().items())


# ---------------------------------------------------------------------------------------- refused


class SilentNetwork(MlpNetwork):
    last_shared_layer = MultiTaskNetwork.last_shared_layer  # type: ignore[assignment]


class SilentPolicy(MultiTaskSACPolicy):
    network_class = SilentNetwork


@pytest.mark.parametrize(
    ("weighting", "kwargs", "message"),
    [
        ("famos", {}, "Unknown loss_weighting 'famos': did you mean 'famo'"),
        ("famo", dict(gradient_surgery="pcgrad"), "'famo' does not go with gradient_surgery='pcgrad'"),
        ("gradnorm", dict(env=make_point_mass_env(1)), "balances tasks against each other, and there is one"),
        ("uncertainty", dict(policy="SingleTaskPolicy"), "The tasks of SingleTaskPolicy share no parameter"),
        ("gradnorm", dict(policy="MlpPolicy", policy_kwargs={}), "needs a policy of this package, not SACPolicy"),
        ("gradnorm", dict(policy=SilentPolicy), "SilentNetwork does not say which that is: give it the property"),
        ("gradnorm", dict(replay_buffer_class=ReplayBuffer), "needs the balanced batches of MultiTaskReplayBuffer"),
        ("famo", dict(replay_buffer_class=ReplayBuffer), "needs the balanced batches of MultiTaskReplayBuffer"),
        ("famo", dict(loss_weighting_kwargs=dict(weightdecay=1)), "no option 'weightdecay': did you mean 'weight_dec"),
        ("famo", dict(loss_weighting_kwargs=dict(weight_decay=-1)), "weight_decay of loss_weighting_kwargs must be at"),
        ("famo", dict(loss_weighting_kwargs=dict(learning_rate=0)), "learning_rate of loss_weighting_kwargs must be p"),
        ("gradnorm", dict(loss_weighting_kwargs=dict(asymmetry="a")), "asymmetry of loss_weighting_kwargs must be a"),
        ("uncertainty", dict(loss_weighting_kwargs=dict(learning_rate=1)), "it has none, leave loss_weighting_kwargs"),
        ("alpha", dict(loss_weighting_kwargs=dict(asymmetry=1)), "'alpha' has no option 'asymmetry': it has none"),
        ("famo", dict(loss_weighting_kwargs=[1]), r"loss_weighting_kwargs must map names to values \(a dict\)"),
    ],
)
def test_what_cannot_work_is_refused(weighting: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(weighting, **kwargs)


def test_methods() -> None:
    for name in ("gradnorm", "famo", "uncertainty"):
        method = METHODS[f"mt_sac_{name}"]
        assert method.policy == "MTMlpPolicy"
        assert method.options["loss_weighting"] == name
