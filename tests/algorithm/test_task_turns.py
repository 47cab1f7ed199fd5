"""Trainings whose envs do not play every task, or not at once: they learn from the tasks that there are, and say so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from point_mass import PointMass, make_task
from reference_surgery import pcgrad_by_loops
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_softmod import (
    ConfigurationError,
    MultiTaskReplayBuffer,
    MultiTaskSAC,
    MultiTaskVecEnv,
    MultiTaskVecNormalize,
    SoftModSAC,
    TaskEnv,
)
from sb3_softmod.algorithm import task_turns
from sb3_softmod.envs.registered import TasksInTurn
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.learner.loss_weights import loss_weights
from sb3_softmod.routing.snapshots import RoutingSnapshotCallback, RoutingSnapshots

M = 3
NAMES = [f"corner-{i}" for i in range(M)]
SMALL: dict[str, Any] = dict(embedding_dim=6, module_dim=4, num_modules=2, num_layers=2)


def envs(*tasks: int) -> VecEnv:
    return DummyVecEnv([partial(make_task, task, M) for task in tasks])


class Switching(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Goes on to another task at each reset; whether it says so is left to its subclass."""

    def __init__(self, order: Iterable[int] = range(M)) -> None:
        self._tasks = [make_task(task, M, horizon=10) for task in order]
        self._episodes = -1
        super().__init__(self._tasks[0])

    @property
    def task_id(self) -> int:
        return self.env.get_wrapper_attr("task_id")

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._episodes += 1
        self.env = self._tasks[self._episodes % len(self._tasks)]
        return self.env.reset(**kwargs)


class Announced(Switching):
    tasks_in_turn = range(M)


class ByHand(gym.Env[np.ndarray, np.ndarray]):
    """An env of nobody's class: it has the three attributes that every env of a task needs."""

    observation_space = spaces.Box(-np.inf, np.inf, (1 + M,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    num_tasks, task_names, task_id = M, NAMES, 2

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.array([0, 0, 0, 1], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.array([action[0], 0, 0, 1], np.float32), float(action[1]), False, bool(action[0] > 0.5), {}


def make_endless(task: int, copy: int) -> TaskEnv:
    return TaskEnv(PointMass(task), task, NAMES)  # no time limit


def make_model(env: VecEnv | gym.Env[Any, Any], **kwargs: Any) -> SoftModSAC:
    options: dict[str, Any] = dict(batch_size=6 * M, learning_starts=12, buffer_size=3000, policy_kwargs=SMALL)
    return SoftModSAC("SoftModPolicy", env, seed=0, device="cpu", **{**options, **kwargs})


def tasks_of(batch: ReplayBufferSamples) -> dict[int, int]:
    """How many rows each task has in a batch whose rows are ordered by task."""
    ids = batch.observations[:, -M:].argmax(1).tolist()
    assert ids == sorted(ids)
    assert th.equal(batch.observations[:, -M:], batch.next_observations[:, -M:])
    return {task: ids.count(task) for task in ids}


# ------------------------------------------------------------------ tasks that never come


PARTIAL: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "one env of one task": (lambda: make_task(1, M), [1]),
    "copies of one task": (lambda: envs(2, 2), [2]),
    "as many copies of one task as tasks": (lambda: envs(0, 0, 0), [0]),
    "two of three tasks": (lambda: envs(2, 0), [0, 2]),
    "two tasks, unevenly": (lambda: envs(1, 2, 2, 2), [1, 2]),
    "normalised": (lambda: MultiTaskVecNormalize(envs(2, 0), "per-task"), [0, 2]),
    "an env of nobody's class": (ByHand, [2]),
}


@pytest.mark.parametrize("options", [{}, dict(overlap=True), dict(gradient_surgery="pcgrad")], ids=str)
@pytest.mark.parametrize("case", PARTIAL)
def test_the_tasks_that_there_are_are_learned_from(case: str, options: dict[str, Any]) -> None:
    make, played = PARTIAL[case]
    model = make_model(make(), **options)
    absent = [f"'{NAMES[task]}'" for task in range(M) if task not in played]
    message = f"No env plays task.* {', '.join(absent)}: {len(played)} of 3 tasks are learned from"
    with pytest.warns(UserWarning, match=message) as caught:
        model.learn(12 + 8 * model.n_envs, log_interval=None)
    assert caught[0].filename == __file__
    assert model._n_updates == 8
    batch = model.replay_buffer.sample(6 * M)  # type: ignore[union-attr]
    assert tasks_of(batch) == dict.fromkeys(played, 6 * M // len(played))
    assert model.log_ent_coef is not None
    moved = model.log_ent_coef.detach().abs() > 1e-4
    assert moved.nonzero().flatten().tolist() == played


@pytest.mark.parametrize("weighting", ["uniform", "alpha", "log_alpha"])
def test_metrics_are_of_the_tasks_that_there_are(weighting: str) -> None:
    kept: dict[str, float] = {}

    class Keeping(Logger):
        def record(self, key: str, value: Any, exclude: Any = None) -> None:
            kept[key] = value

    model = make_model(envs(2, 0), ent_coef=[0.2, 1e-8, 2.0], loss_weighting=weighting)
    model.set_logger(Keeping(folder=None, output_formats=[]))
    with pytest.warns(UserWarning, match="No env plays task 'corner-1'"):
        model.learn(30, log_interval=None)
    model.dump_logs()
    for metric in ("ent_coef", "loss_weight", "q_value", "critic_loss", "actor_loss", "log_prob"):
        values = [kept[f"{metric}/{NAMES[task]}"] for task in (0, 2)]
        assert f"{metric}/{NAMES[1]}" not in kept
        assert all(math.isfinite(value) and value != 0 for value in values)
        assert kept[f"train/{metric}"] == pytest.approx(np.mean(values))
    expected = loss_weights(weighting, th.tensor([0.2, 2.0]))  # type: ignore[arg-type]
    found = [kept[f"loss_weight/{NAMES[task]}"] for task in (0, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_of_the_tasks_that_there_are() -> None:
    alpha, present = th.tensor([0.2, 0.001, 2.0, 0.7]), th.tensor([True, False, True, True])
    for weighting in ("uniform", "alpha", "log_alpha"):
        weights = loss_weights(weighting, alpha, present)
        assert weights[1] == 0
        th.testing.assert_close(weights[present], loss_weights(weighting, alpha[present]))
    success = th.tensor([0.0, 0.3, 0.9, 1.0])
    weights = loss_weights("success", alpha, present, success)
    th.testing.assert_close(weights, th.tensor([1.1, 0.0, 0.2, 0.1]) * 3 / 1.4)


def test_going_on_with_one_task_leaves_the_other_temperatures(tmp_path: Path) -> None:
    """Though Adam's momentum of before would move them."""
    model = make_model(envs(0, 1, 2)).learn(30)
    model.save(tmp_path / "model")
    model = SoftModSAC.load(tmp_path / "model", env=envs(1), device="cpu", learning_starts=0)
    assert model.log_ent_coef is not None
    before = model.log_ent_coef.detach().clone()
    with pytest.warns(UserWarning, match="No env plays tasks 'corner-0', 'corner-2'"):
        model.learn(20)
    assert model._n_updates == 6 + 20
    assert (model.log_ent_coef != before).tolist() == [False, True, False]


def test_one_of_many_tasks_is_learned_as_if_alone() -> None:
    """Single-task networks share nothing: with the others absent, a step is that of the task among all of them."""
    options: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[8]), batch_size=4 * M, seed=0, device="cpu")
    alone, among = (MultiTaskSAC("SingleTaskPolicy", envs(*tasks), **options) for tasks in ([1], [0, 1, 2]))
    for model in (alone, among):
        model.set_logger(Logger(folder=None, output_formats=[]))
    rng = np.random.default_rng(0)
    rows = th.tensor(rng.normal(size=(4, 2 + 2 + 2 + 1)), dtype=th.float32)

    def batch(tasks: list[int]) -> ReplayBufferSamples:
        one_hot = th.eye(M)[tasks].repeat_interleave(4, 0)
        state, following, action, reward = (x.repeat(len(tasks), 1) for x in rows.split([2, 2, 2, 1], 1))
        done = th.ones_like(reward)  # the target is the reward, whatever is drawn
        return ReplayBufferSamples(
            th.cat([state, one_hot], 1), action.tanh(), th.cat([following, one_hot], 1), done, reward
        )

    alone._learner()(batch([1]), 1)
    among._learner()(batch([0, 1, 2]), 3)
    network, other = alone.critic.network, among.critic.network
    initial = MultiTaskSAC("SingleTaskPolicy", envs(0, 1, 2), **options).critic.network
    for a, b, start in zip(network.parameters(), other.parameters(), initial.parameters(), strict=True):  # type: ignore[union-attr]
        th.testing.assert_close(a[:, 1], b[:, 1])
        assert th.equal(a[:, [0, 2]], start[:, [0, 2]])
        assert not th.equal(b[:, 0], start[:, 0])


class Conflicting(MultiTaskReplayBuffer):
    """A batch of tasks 0 and 2, which want opposite values of the same states."""

    num_present = 2

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        state = th.linspace(-1, 1, 16).view(8, 2).repeat(2, 1)
        task = th.tensor([0, 2]).repeat_interleave(8)
        obs = th.cat([state, th.eye(M)[task]], 1)
        return ReplayBufferSamples(
            obs, th.zeros(len(obs), 2), obs, th.ones(len(obs), 1), 5 * (1.0 - task.float().view(-1, 1))
        )


def test_gradient_surgery_among_the_tasks_that_there_are() -> None:
    """With plain gradient descent the step shows the gradient; of two tasks there is one order only."""
    options: dict[str, Any] = dict(
        policy_kwargs=dict(net_arch=[12, 10], optimizer_class=th.optim.SGD), replay_buffer_class=Conflicting
    )
    model = MultiTaskSAC(
        "MTMlpPolicy", envs(0, 2), batch_size=24, gradient_surgery="pcgrad", seed=0, device="cpu", **options
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    batch = model.replay_buffer.sample(16)  # type: ignore[union-attr]
    critic = model.critic
    before = {name: p.detach().clone() for name, p in critic.named_parameters()}
    flat: list[list[th.Tensor]] = [[], []]  # of each member the gradients of both tasks
    for rows in (slice(0, 8), slice(8, 16)):
        critic.zero_grad()
        q = th.cat(critic(batch.observations[rows], batch.actions[rows]), 1)
        (0.5 * (q - batch.rewards[rows]).square()).sum(1).mean().backward()
        for member in range(2):
            flat[member].append(th.cat([p.grad[member].flatten() for p in critic.parameters() if p.grad is not None]))
    assert all(one @ two < 0 for one, two in flat)
    model.train(1, 24)
    for member in range(2):
        moved = th.cat([(before[n] - p.detach())[member].flatten() for n, p in critic.named_parameters()])
        expected = model.lr_schedule(1) * pcgrad_by_loops(flat[member], [[1], [0]])
        th.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)


def test_routing_snapshots_of_the_tasks_that_there_are(tmp_path: Path) -> None:
    model = make_model(envs(2, 0))
    with pytest.warns(UserWarning, match="No env plays"):
        model.learn(40, RoutingSnapshotCallback(tmp_path / "routing.npz", every=10))
    snapshots = RoutingSnapshots.load(tmp_path / "routing.npz")
    assert snapshots.steps.tolist() == [4, 14, 24, 34, 40]
    assert np.isfinite(snapshots.entropy).all(0).tolist() == [True, False, True]


# ------------------------------------------------------------------ tasks whose turn comes


def test_a_buffer_of_all_tasks_is_learned_from_whoever_plays() -> None:
    full = make_model(envs(0, 1, 2)).learn(15)
    model = make_model(envs(1))
    model.replay_buffer = full.replay_buffer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(20)
    assert tasks_of(model.replay_buffer.sample(6 * M)) == {0: 6, 1: 6, 2: 6}  # type: ignore[union-attr]
    assert model._n_updates == 8


TURNS: dict[str, Callable[[], Any]] = {
    "MultiTaskVecEnv": lambda: MultiTaskVecEnv(
        [lambda copy, task=task: make_task(task, M, horizon=10) for task in range(M)], n_envs=1, n_workers=0
    ),
    "one env of a registered set": lambda: TasksInTurn(
        [lambda copy, task=task: make_task(task, M, horizon=10) for task in range(M)]
    ),
    "an env that says so": Announced,
    "as many of them as tasks": lambda: DummyVecEnv([Announced] * M),
}


@pytest.mark.parametrize("case", TURNS)
def test_learning_waits_for_turns_that_come(case: str) -> None:
    model = make_model(TURNS[case](), learning_starts=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(50 * model.n_envs, log_interval=None)
    assert model._n_updates == 50 - 2 * 10  # after the first step of the third task's first episode
    assert tasks_of(model.replay_buffer.sample(6 * M)) == {0: 6, 1: 6, 2: 6}  # type: ignore[union-attr]


def test_envs_that_play_one_task_each_say_so() -> None:
    env = MultiTaskVecEnv([partial(make_endless, task) for task in range(M)], n_workers=0)
    assert env.has_attr("tasks_in_turn")
    assert env.get_attr("tasks_in_turn", [2, 0]) == [(2,), (0,)]
    env.close()


def test_an_evaluation_does_not_wait_for_a_turn_that_never_comes() -> None:
    class Actor:
        def predict(self, observations: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
            return np.zeros((len(observations), 2), np.float32), None

    assert evaluate_tasks(Actor(), DummyVecEnv([Announced]), n_eval_episodes=2).episodes == [2, 2, 2]
    message = "list task 'corner-2' in tasks_in_turn, but began .* on end of other tasks: list the tasks that an env"
    with pytest.raises(ConfigurationError, match=message):
        evaluate_tasks(Actor(), DummyVecEnv([partial(Announced, [1, 0])]), n_eval_episodes=2)


def test_a_task_that_comes_unannounced_is_learned_from_then_on() -> None:
    model = make_model(Switching([1, 0]))
    with pytest.warns(UserWarning, match=r"No env plays tasks 'corner-0', 'corner-2'.*attribute tasks_in_turn, a list"):
        model.learn(10)
    assert tasks_of(model.replay_buffer.sample(6 * M)) == {1: 18}  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="No env plays"):
        model.learn(5, reset_num_timesteps=False)
    assert model._n_updates == 3
    assert tasks_of(model.replay_buffer.sample(6 * M)) == {0: 9, 1: 9}  # type: ignore[union-attr]


def test_a_task_that_never_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes without an end: a short training says that it only waited, a longer one learns without that task."""
    model = make_model(MultiTaskVecEnv([partial(make_endless, task) for task in range(M)], n_envs=2, n_workers=0))
    message = "No gradient step was taken.* task 'corner-2' had none yet.*TimeLimit"
    with pytest.warns(UserWarning, match=message) as caught:
        model.learn(100, log_interval=None)
    assert [each.filename for each in caught] == [__file__]
    assert model._n_updates == 0
    monkeypatch.setattr(task_turns, "PATIENCE", 50)
    message = "After 152 environment steps no env has played task 'corner-2': learning begins with the other tasks"
    with pytest.warns(UserWarning, match=message) as caught:
        model.learn(70, log_interval=None, reset_num_timesteps=False)
    assert [each.filename for each in caught] == [__file__]  # once
    assert model._n_updates == 10
    assert tasks_of(model.replay_buffer.sample(6 * M)) == {0: 9, 1: 9}  # type: ignore[union-attr]


def test_transitions_of_before_are_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that an adapted model takes over: the turns of its envs have just begun."""

    def make() -> SoftModSAC:
        return make_model(MultiTaskVecEnv([partial(make_endless, task) for task in range(M)], n_envs=2, n_workers=0))

    first, second = make(), make()
    with pytest.warns(UserWarning, match="No gradient step was taken"):
        first.learn(100, log_interval=None)
    second.replay_buffer = first.replay_buffer
    monkeypatch.setattr(task_turns, "PATIENCE", 20)
    with pytest.warns(UserWarning, match="No gradient step was taken"):
        second.learn(40, log_interval=None)
    with pytest.warns(UserWarning, match="After 62 environment steps no env has played task 'corner-2'"):
        second.learn(40, log_interval=None)  # whose steps are counted from 0 again


def test_no_word_before_learning_starts() -> None:
    """Collecting transitions alone is what ``learning_starts`` asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_model(envs(0, 1, 2), learning_starts=1000).learn(30)._n_updates == 0
        assert make_model(Announced(), learning_starts=1000).learn(30)._n_updates == 0


# --------------------------------------------------------------------------- batches


def make_buffer(rows: list[int]) -> MultiTaskReplayBuffer:
    """So many transitions of each task; the reward is the task's and the state says which transition it is."""
    space = spaces.Box(-np.inf, np.inf, (1 + len(rows),), np.float32)
    buffer = MultiTaskReplayBuffer(100, space, spaces.Box(-1, 1, (1,)), "cpu", num_tasks=len(rows))
    for task, count in enumerate(rows):
        for row in range(count):
            one_hot = np.eye(len(rows))[task]
            obs, following = (np.array([[state, *one_hot]], np.float32) for state in (row, row + 0.5))
            buffer.add(obs, following, np.zeros((1, 1)), np.full(1, task), np.zeros(1, bool), [{}])
    return buffer


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        ([3, 0, 4, 0], 20, {0: 10, 2: 10}),
        ([3, 5, 4, 0], 20, {0: 6, 1: 6, 2: 6}),  # 20 rows are not divisible by 3
        ([0, 0, 0, 2], 4, {3: 4}),
        ([3, 5, 4, 0], 4, {0: 1, 1: 1, 2: 1}),
        ([1, 1, 1, 1], 20, {0: 5, 1: 5, 2: 5, 3: 5}),
    ],
)
def test_batches_are_balanced_among_the_tasks_with_transitions(
    rows: list[int], batch_size: int, expected: dict[int, int]
) -> None:
    buffer = make_buffer(rows)
    assert buffer.num_present == len(expected)
    seen: set[tuple[int, int]] = set()
    for _ in range(30):
        batch = buffer.sample(batch_size)
        ids = batch.observations[:, 1:].argmax(1)
        assert {task: ids.tolist().count(task) for task in ids.tolist()} == expected
        assert th.equal(batch.rewards.flatten(), ids.float())
        assert th.equal(batch.next_observations[:, 1:], batch.observations[:, 1:])
        seen |= set(zip(ids.tolist(), batch.observations[:, 0].int().tolist(), strict=True))
    assert seen == {(task, row) for task, count in enumerate(rows) for row in range(count)}


@pytest.mark.parametrize("statistics", ["pooled", "per-task"])
def test_each_task_is_normalised_by_its_own_numbers(statistics: Any) -> None:
    env = MultiTaskVecNormalize(envs(0, 1, 2), statistics)
    rng = np.random.default_rng(0)
    for group, rms in enumerate([*env.obs_rms, *env.ret_rms]):
        rms.mean, rms.var = rms.mean + group, rms.var * (2.0 + group)
    model = make_model(env)
    buffer = model.replay_buffer
    assert buffer is not None
    for _ in range(5):
        obs = np.concatenate([rng.normal(size=(2, 2)), np.eye(M)[[2, 0]]], 1).astype(np.float32)
        buffer.add(obs, obs, np.zeros((2, 2)), np.array([7.0, 5.0]), np.zeros(2), [{}, {}])
    batches = []
    for normalising in (None, env):
        th.manual_seed(0)
        batches.append(buffer.sample(6 * M, normalising))
    raw, scaled = batches
    assert tasks_of(raw) == {0: 9, 2: 9}
    ids = raw.observations[:, -M:].argmax(1).numpy()
    np.testing.assert_allclose(scaled.observations, env.normalize_obs(raw.observations.numpy()), rtol=1e-6)
    np.testing.assert_allclose(scaled.rewards[:, 0], env.normalize_reward(raw.rewards[:, 0].numpy(), ids), rtol=1e-6)
    assert not np.allclose(scaled.rewards, raw.rewards)


def test_a_batch_of_another_buffer_may_lack_a_task_by_chance() -> None:
    """Its metrics are then no zeros among those of the batches that have it."""
    model = make_model(envs(0, 1, 2), replay_buffer_class=ReplayBuffer)
    model.set_logger(Logger(folder=None, output_formats=[]))
    one_hot = th.eye(M)[[0, 0, 2]]
    obs = th.cat([th.ones(3, 2), one_hot], 1)
    metrics = model._learner()(ReplayBufferSamples(obs, th.zeros(3, 2), obs, th.zeros(3, 1), th.ones(3, 1)))
    metrics = metrics[~metrics.isnan().all(1)]  # without scales of rewards, which this model has not
    assert metrics.isnan().any(0).tolist() == metrics.isnan().all(0).tolist() == [False, True, False]


def test_an_empty_buffer_is_named() -> None:
    with pytest.raises(ConfigurationError, match="The replay buffer holds no transitions yet"):
        make_buffer([0, 0]).sample(4)
