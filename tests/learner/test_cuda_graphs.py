"""CUDA graphs as far as a machine without a GPU shows them: what is recorded, when anew, and on which device.

In the place of ``torch.cuda`` there is a stand-in with two devices, the first of which is current. It takes note of
what it is asked, and its graphs compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch as th
from point_mass import make_point_mass_env
from small_networks import TINY
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskSACPolicy
from sb3_softmod.learner.acceleration import Acceleration, RecordedStep
from sb3_softmod.learner.gradient_step import GradientStep
from sb3_softmod.networks import MlpNetwork, MultiTaskNetwork
from sb3_softmod.policies import POLICIES, MTMlpPolicy, MultiTaskActor

M = 2
CPU, SECOND = th.device("cpu"), th.device("cuda", 1)


class Stream:
    """Of one device; waits for others of it alone."""

    def __init__(self, device: th.device) -> None:
        self.device = th.device(device)
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        assert other.device == self.device, f"a stream of {self.device} waits for one of {other.device}"
        self.waited_for.append(other)


class Cuda:
    """The stand-in."""

    def __init__(self) -> None:
        self.current = th.device("cuda", 0)
        self.streams = {self.current: Stream(self.current), SECOND: Stream(SECOND)}
        self.recordings: list[tuple[th.device, th.device, str]] = []  # current device, device of the stream, mode
        self.replays = 0

    def current_stream(self, device: th.device | None = None) -> Stream:
        return self.streams[device or self.current]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.streams[stream.device]
        self.streams[stream.device] = stream
        yield
        self.streams[stream.device] = before

    @contextmanager
    def device(self, device: th.device) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: Any, stream: Stream, capture_error_mode: str = "global") -> Iterator[None]:
        self.recordings.append((self.current, stream.device, capture_error_mode))
        with self.stream(stream):
            yield

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    for name in ("current_stream", "stream", "device", "graph"):
        monkeypatch.setattr(th.cuda, name, getattr(fake, name))
    monkeypatch.setattr(th.cuda, "Stream", Stream)
    monkeypatch.setattr(th.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=fake.replay))
    return fake


def batch_of(rows: int, discounts: Tensor | None = None) -> ReplayBufferSamples:
    obs = th.cat([th.ones(rows, 2), th.eye(M).repeat(rows // M, 1)], 1)
    return ReplayBufferSamples(obs, th.zeros(rows, 2), obs, th.zeros(rows, 1), th.ones(rows, 1), discounts)


class Taken:
    """A step that says when it is taken in Python."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.main, self.times = cuda, cuda.streams[SECOND], 0

    def __call__(self, batch: ReplayBufferSamples) -> Tensor:
        self.times += 1
        assert self.cuda.current_stream(SECOND) is not self.main  # it runs on the side
        return batch.rewards.sum()


def test_steps_run_and_are_recorded_on_their_device(cuda: Cuda) -> None:
    """Another device than the current one: the copies of the batch are then waited for, and waited for by."""
    main = cuda.streams[SECOND]
    step = Taken(cuda)
    recorded = RecordedStep(step, SECOND, lambda: ())
    for _ in range(3):
        assert recorded(batch_of(4)) == 4
    stream: Any = recorded.stream
    assert stream.waited_for == [main] * 3
    assert main.waited_for == [stream] * 3
    for _ in range(5):
        recorded(batch_of(4))
    assert cuda.recordings == [(SECOND, SECOND, "thread_local")]
    assert (step.times, cuda.replays) == (4, 5)
    assert cuda.streams[SECOND] is main
    assert cuda.current == th.device("cuda", 0)


def test_a_replay_sees_its_own_batch(cuda: Cuda) -> None:
    seen: list[ReplayBufferSamples] = []

    def step(batch: ReplayBufferSamples) -> Tensor:
        seen.append(batch)
        return batch.rewards

    recorded = RecordedStep(step, SECOND, lambda: ())
    for number in range(6):
        batch = batch_of(4, discounts=th.full((4, 1), float(number)))
        recorded(batch)
    assert len(seen) == 4
    for static, tensor in zip(seen[-1], batch, strict=True):
        assert static is not None
        assert tensor is not None
        assert th.equal(static, tensor)  # in the place that the graph reads
        assert static is not tensor


@pytest.mark.parametrize("what", ["rows", "discounts", "settings"])
def test_what_changes_is_recorded_anew(what: str, cuda: Cuda) -> None:
    settings = dict(gamma=0.9)
    step = Taken(cuda)
    recorded = RecordedStep(step, SECOND, lambda: tuple(settings.items()))
    for _ in range(10):
        recorded(batch_of(4))
    assert (step.times, cuda.replays, len(cuda.recordings)) == (4, 7, 1)
    rows, discounts = 4, None
    if what == "rows":
        rows = 6
    elif what == "discounts":
        discounts = th.ones(4, 1)
    else:
        settings["gamma"] = 0.5
    for _ in range(10):
        recorded(batch_of(rows, discounts))
    assert (step.times, cuda.replays, len(cuda.recordings)) == (8, 14, 2)


class Recorded(Acceleration):
    """Optimizers as on a CPU, and steps that are recorded."""

    def step(self, step: Any, settings: Any) -> Any:
        return RecordedStep(step, SECOND, settings)


def of(name: str, value: Any) -> Callable[[MultiTaskSAC], Any]:
    return lambda model: setattr(model, name, value)


def group(optimizer: Callable[[MultiTaskSAC], Any], name: str, value: Any) -> Callable[[MultiTaskSAC], Any]:
    return lambda model: optimizer(model).param_groups[0].update({name: value})


CHANGES: dict[str, Callable[[MultiTaskSAC], Any]] = {
    "gamma": of("gamma", 0.5),
    "max_grad_norm": of("max_grad_norm", 0.1),
    "max_grad_norm, to none": of("max_grad_norm", None),
    "target_entropy": of("target_entropy", -7.0),
    "loss_weighting": of("loss_weighting", "alpha"),
    "gradient_surgery": of("gradient_surgery", "pcgrad"),
    "fixed temperatures": of("ent_coef_tensor", th.full((M,), 0.5)),
    "the actor's learning rate, as a number": group(lambda model: model.actor.optimizer, "lr", 1.0),
    "the critics' weight decay": group(lambda model: model.critic.optimizer, "weight_decay", 0.1),
    "the temperatures' betas": group(lambda model: model.ent_coef_optimizer, "betas", (0.5, 0.9)),
    "a frozen parameter": lambda model: next(model.actor.parameters()).requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_changed_is_recorded_anew(change: str, cuda: Cuda) -> None:
    """Each of these is a number of Python's in the gradient step, which a graph would go on with as it was."""
    model = MultiTaskSAC(
        "MTMlpPolicy",
        make_point_mass_env(M),
        ent_coef=0.1 if change == "fixed temperatures" else "auto",
        policy_kwargs=dict(net_arch=[4]),
        max_grad_norm=1.0,
        seed=0,
        device="cpu",
    )
    model.policy.set_training_mode(True)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    step = GradientStep(model._learner_state(), Recorded(CPU, "fp32", compile=False, cuda_graphs=False, storage=CPU))
    model.actor.network.register_forward_hook(count)  # type: ignore[union-attr]
    batch = batch_of(4)
    for _ in range(6):
        step(batch)
        step.set_learning_rate(1e-3)
    before = passes
    assert len(cuda.recordings) == 1
    for _ in range(3):
        step(batch)
        step.update_targets()
    assert passes == before  # nothing of it is read any more
    CHANGES[change](model)
    vars(step.state).update(vars(model._learner_state()))
    step(batch)
    assert passes > before
    for _ in range(5):
        step(batch)
    assert len(cuda.recordings) == 2


def test_fewer_tasks_are_recorded_anew(cuda: Cuda) -> None:
    model = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(M), policy_kwargs=dict(net_arch=[4]), device="cpu")
    step = GradientStep(model._learner_state(), Recorded(CPU, "fp32", compile=False, cuda_graphs=False, storage=CPU))
    batch = batch_of(4)
    for num_present in (0, 1, 2):
        for _ in range(5):
            step(batch, num_present)
    assert len(cuda.recordings) == 3


# ------------------------------------------------------------------------- what is recorded


class Custom(MlpNetwork):
    """A subclass of ours, which may do anything."""

    def forward(self, inputs: Tensor, task: Tensor) -> Tensor:
        return super().forward(inputs, task) * float(task.sum() > 0)  # waits for the device


class Declared(Custom):
    capturable = True


class CustomPolicy(MultiTaskSACPolicy):
    network_class = Custom


class DeclaredPolicy(MultiTaskSACPolicy):
    network_class = Declared


class OtherActor(MultiTaskActor):
    """Of a policy that makes its own."""


class OtherActorPolicy(MTMlpPolicy):
    def make_actor(self, features_extractor: Any = None) -> MultiTaskActor:
        space: Any = self.action_space
        return OtherActor(self.observation_space, space, self.num_tasks, self.network_class, self.network_kwargs)


def on_gpu(policy: Any, **kwargs: Any) -> MultiTaskSAC:
    """A model that takes itself to be on a GPU, for decisions alone."""
    options: dict[str, Any] = dict(policy_kwargs=TINY.get(policy, dict(net_arch=[4])), precision="fp32", device="cpu")
    model = MultiTaskSAC(policy, make_point_mass_env(M), **{**options, **kwargs})
    model.device = th.device("cuda")
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_our_networks_are_recorded(policy: str) -> None:
    assert on_gpu(policy)._acceleration().cuda_graphs == (policy != "SingleTaskPolicy")


@pytest.mark.parametrize(
    ("policy", "kwargs", "message"),
    [
        (
            CustomPolicy,
            {},
            r"does not work with Custom, which does not say \(capturable = True\)",
        ),
        ("SingleTaskPolicy", {}, "does not work with SingleTaskNetwork, which does not say"),
        (OtherActorPolicy, {}, "needs actor and critics of this package"),
        ("MlpPolicy", {}, "needs a policy of this package, not SACPolicy"),
        (
            "MTMlpPolicy",
            dict(policy_kwargs=dict(net_arch=[4], optimizer_class=th.optim.RMSprop)),
            "needs Adam or AdamW, not RMSprop",
        ),
    ],
)
def test_others_are_not_recorded_and_refused_by_name(policy: Any, kwargs: dict[str, Any], message: str) -> None:
    model = on_gpu(policy, **kwargs)
    assert not model._acceleration().cuda_graphs
    model.cuda_graphs = True
    with pytest.raises(ConfigurationError, match=f"cuda_graphs=True {message}.*leave it at 'auto' or False"):
        model._acceleration()


def test_a_network_is_recorded_if_its_own_class_says_so() -> None:
    assert not MultiTaskNetwork.capturable
    assert MlpNetwork.capturable
    assert not Custom.capturable
    assert on_gpu(DeclaredPolicy)._acceleration().cuda_graphs
