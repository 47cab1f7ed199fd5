"""Returns of several steps from the multi-task replay buffer, against SB3's and against a plain loop."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from point_mass import make_point_mass_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from test_buffers import ACTION, LAYOUTS, WIDTH, Envs
from test_buffers import M as TASKS

from sb3_softmod import ConfigurationError, MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecNormalize, SoftModSAC
from sb3_softmod.zoo.configs import load_config

CUT: dict[str, Any] = {"TimeLimit.truncated": True}
M = 2
SMALL: dict[str, Any] = dict(
    batch_size=2 * M, learning_starts=2 * M, policy_kwargs=dict(net_arch=[4]), device="cpu", seed=0
)


# ---------------------------------------------------------------------------------------------- one env, one task


def counting(rewards: Sequence[float], ends: dict[int, str], buffer: ReplayBuffer) -> None:
    """Store transitions of one env of one task, whose states and actions are numbered; after an end comes a gap.

    :param ends: "terminated" or "truncated", by the index of the transition
    """
    state = 0
    for index, reward in enumerate(rewards):
        obs, next_obs = np.array([[state, 1.0]]), np.array([[state + 1, 1.0]])
        infos = [CUT if ends.get(index) == "truncated" else {}]
        buffer.add(obs, next_obs, np.array([[index]]), np.array([reward]), np.array([index in ends]), infos)
        state += 2 if index in ends else 1


def one_task(size: int, **kwargs: Any) -> MultiTaskReplayBuffer:
    observation, action = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-np.inf, np.inf, (1,))
    return MultiTaskReplayBuffer(size, observation, action, "cpu", num_tasks=1, **kwargs)


def by_start(batch: ReplayBufferSamples) -> dict[int, tuple[float, ...]]:
    """The numbers of a batch of :func:`counting`: state, next state, done, return and discount, by the first index."""
    assert batch.discounts is not None
    assert batch.discounts.dtype == th.float32
    columns = (batch.observations[:, :1], batch.next_observations[:, :1], batch.dones, batch.rewards, batch.discounts)
    rows = th.cat(columns, 1).tolist()
    return {int(action): tuple(row) for action, row in zip(batch.actions[:, 0].tolist(), rows, strict=True)}


def test_by_hand() -> None:
    """Episodes of four steps and an end, of two and a cut, and of two so far."""
    buffer = one_task(20, n_steps=3, gamma=0.5)
    counting([1, 2, 4, 8, 16, 32, 64, 128], {3: "terminated", 5: "truncated"}, buffer)
    assert by_start(buffer.sample(400)) == {
        0: (0, 3, 0, 1 + 1 + 1, 0.125),
        1: (1, 4, 1, 2 + 2 + 2, 0.125),
        2: (2, 4, 1, 4 + 4, 0.25),
        3: (3, 4, 1, 8, 0.5),
        4: (5, 7, 0, 16 + 16, 0.25),
        5: (6, 7, 0, 32, 0.5),
        6: (8, 10, 0, 64 + 64, 0.25),
        7: (9, 10, 0, 128, 0.5),
    }


@pytest.mark.parametrize("gamma", [0, 1])
def test_discounts_at_the_limits(gamma: int) -> None:
    buffer = one_task(20, n_steps=3, gamma=gamma)
    counting([1, 2, 4, 8], {3: "terminated"}, buffer)
    assert by_start(buffer.sample(200)) == {
        0: (0, 3, 0, 7 if gamma else 1, gamma),
        1: (1, 4, 1, 14 if gamma else 2, gamma),
        2: (2, 4, 1, 12 if gamma else 4, gamma),
        3: (3, 4, 1, 8, gamma),
    }


def test_a_cut_episode_is_left_where_it_was_cut() -> None:
    """Even where the next one begins in the very state in which it was cut."""
    buffer = one_task(20, n_steps=2, gamma=0.5)
    same = np.array([[7.0, 1.0]])
    for index, cut in enumerate([True, False, False]):
        buffer.add(same, same, np.array([[index]]), np.ones(1), np.array([cut]), [CUT if cut else {}])
    found = by_start(buffer.sample(200))
    assert found == {0: (7, 7, 0, 1, 0.5), 1: (7, 7, 0, 1.5, 0.25), 2: (7, 7, 0, 1, 0.5)}


@pytest.mark.parametrize("n_steps", [2, 3, 8])
@pytest.mark.parametrize("stored", [5, 30, 41, 53, 60])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_same_as_sb3(n_steps: int, stored: int, normalized: bool) -> None:
    """From every transition of a ring of 30, partly filled, full, and overwritten up to once more."""
    rng = np.random.default_rng(stored)
    rewards = rng.normal(size=stored).tolist()
    ends = {int(i): str(rng.choice(["terminated", "truncated"])) for i in np.flatnonzero(rng.random(stored) < 0.15)}
    ours = one_task(30, n_steps=n_steps, gamma=0.9)
    theirs = NStepReplayBuffer(30, ours.observation_space, ours.action_space, "cpu", n_steps=n_steps, gamma=0.9)
    env = None
    if normalized:
        env = VecNormalize(make_point_mass_env(1), norm_obs=False, clip_reward=0.7)
        env.ret_rms.var = np.array(2.0)
    found = []
    for buffer in (ours, theirs):
        counting(rewards, ends, buffer)
        set_random_seed(0)
        found.append(by_start(buffer.sample(1000, env)))
    assert set(found[0]) == set(found[1]) == set(range(max(0, stored - 30), stored))
    for start, numbers in found[0].items():
        assert numbers == pytest.approx(found[1][start], abs=1e-6), start


# ------------------------------------------------------------------------------------------- many tasks and envs


class Followed(MultiTaskReplayBuffer):
    """Keeps the way of each env in a plain list too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, Any]] = []  # of all envs; "then": the index of the step that its env took next
        self.latest: list[int] = []  # of each env
        self.of_task: list[list[int]] = [[] for _ in range(self.num_tasks)]

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: Sequence[dict[str, Any]],
    ) -> None:
        super().add(obs, next_obs, action, reward, done, infos)
        before, self.latest = self.latest, []
        for env, info in enumerate(infos):
            index, task = len(self.steps), int(obs[env, WIDTH:].argmax())
            self.steps.append(
                dict(
                    state=obs[env, :WIDTH].tolist(),
                    next=next_obs[env, :WIDTH].tolist(),
                    action=tuple(action[env].tolist()),
                    reward=float(np.float32(reward[env])),
                    task=task,
                    done=bool(done[env]),
                    terminated=bool(done[env]) and not info.get("TimeLimit.truncated", False),
                    then=None,
                )
            )
            if env < len(before):
                last = self.steps[before[env]]
                # One that is restarted in mid-episode, into the very state that it was in, goes on.
                if not last["done"] and last["task"] == task and last["next"] == self.steps[-1]["state"]:
                    last["then"] = index
            self.latest.append(index)
            self.of_task[task].append(index)

    def expected(self, start: int) -> tuple[float, ...]:
        """Return, next state, done and discount from a step on."""
        at, discount, total = self.steps[start], 1.0, 0.0
        for step in range(self.n_steps):
            total += discount * at["reward"]
            discount *= self.gamma
            if at["then"] is None or step == self.n_steps - 1:
                break
            at = self.steps[at["then"]]
        return (total, *at["next"], float(at["terminated"]), discount)

    def check(self) -> None:
        """Draws the returns of the last transitions of each task, and of all of them."""
        of_action = {step["action"]: index for index, step in enumerate(self.steps)}
        seen: set[int] = set()
        while len(seen) < self.size():
            batch = self.sample(20 * self.num_tasks)
            assert batch.discounts is not None
            states = batch.next_observations[:, :WIDTH]
            numbers = th.cat([batch.rewards, states, batch.dones, batch.discounts], 1).tolist()
            tasks = batch.next_observations[:, WIDTH:].argmax(1).tolist()
            for action, found, task in zip(batch.actions.tolist(), numbers, tasks, strict=True):
                start = of_action[tuple(action)]
                assert start in self.of_task[task][-self.capacity_per_task :]
                assert found == pytest.approx(self.expected(start), abs=1e-5)
                seen.add(start)


def followed(buffer_size: int, **kwargs: Any) -> Followed:
    observation = spaces.Box(-np.inf, np.inf, (WIDTH + TASKS,), np.float32)
    options: dict[str, Any] = dict(num_tasks=TASKS, n_steps=3, gamma=0.9, **kwargs)
    return Followed(buffer_size, observation, spaces.Box(-1, 1, (ACTION,)), options.pop("device", "cpu"), **options)


@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("capacity", [3, 20])
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_way_of_each_env(layout: str, restarts: bool, capacity: int, n_steps: int) -> None:
    """Envs whose few states recur; rings that envs of one task share and that are overwritten several times."""
    buffer = followed(capacity * TASKS)
    buffer.n_steps = n_steps
    envs = Envs(n_steps, restarts=restarts, **LAYOUTS[layout])
    for full in (0.5, 1, 1.3, 2.5):
        while buffer.added_per_task.max() < full * capacity or not buffer.size_per_task().all():
            envs.step_into(buffer)
        buffer.check()


def test_loaded_and_restored_buffers_go_on() -> None:
    """Each link of a file leads where it led, and those that were open then are closed by what comes."""
    buffer = followed(9 * TASKS)
    envs = Envs(0, np.repeat(np.arange(TASKS), 2), rotating=False, restarts=True)
    segments, mark = [buffer.segment()], buffer.mark()
    for calls in (1, 3, 2, 11, 4, 30, 1):
        for _ in range(calls):
            envs.step_into(buffer)
        segments.append(buffer.segment(mark))
        mark = buffer.mark()
        restored = followed(9 * TASKS)
        restored.restore([segment for segment in segments if segment is not None], buffer.head())
        loaded = pickle.loads(pickle.dumps(buffer))
        assert (loaded.n_steps, loaded.gamma) == (3, 0.9)
        restored.steps, restored.latest, restored.of_task = pickle.loads(
            pickle.dumps((buffer.steps, buffer.latest, buffer.of_task))
        )
        drawn = []
        for each in (buffer, restored, loaded):
            set_random_seed(1)
            drawn.append([x.numpy().tobytes() for x in each.sample(40 * TASKS)])  # type: ignore[union-attr]
        assert drawn[0] == drawn[1] == drawn[2]
        state = pickle.dumps(envs)
        for each in (restored, loaded):
            going = pickle.loads(state)
            for _ in range(7):
                going.step_into(each)
            each.check()


def test_one_step_is_what_it_was() -> None:
    buffer = followed(9 * TASKS)
    buffer.n_steps = 1
    envs = Envs(0, range(TASKS), rotating=False, restarts=False)
    for _ in range(30):
        envs.step_into(buffer)
    batch = buffer.sample(10 * TASKS)
    assert batch.discounts is None
    rewards = {step["action"]: step["reward"] for step in buffer.steps}
    assert batch.rewards.flatten().tolist() == [rewards[tuple(action)] for action in batch.actions.tolist()]


def test_buffers_of_before() -> None:
    buffer = one_task(20, n_steps=3, gamma=0.5)
    counting([1, 2, 4], {}, buffer)
    state = buffer.__getstate__()
    del state["n_steps"], state["gamma"]
    old = MultiTaskReplayBuffer.__new__(MultiTaskReplayBuffer)
    old.__setstate__(state)
    assert old.sample(5).discounts is None
    old.n_steps, old.gamma = 3, 0.5
    assert by_start(old.sample(100))[0] == (0, 3, 0, 3, 0.125)


def test_nothing_waits_for_the_device() -> None:
    """On torch's meta device, an operation that needs a value raises."""
    buffer = followed(9 * TASKS, storage_device="meta", device="meta")
    envs = Envs(0, np.repeat(np.arange(TASKS), 2), rotating=True, restarts=True)
    for _ in range(30):
        envs.step_into(buffer)
    batch = buffer.sample(8 * TASKS)
    assert [tuple(x.shape) for x in batch] == [(32, 7), (32, 2), (32, 7), (32, 1), (32, 1), (32, 1)]  # type: ignore[union-attr]


@pytest.mark.parametrize("statistics", ["pooled", "per-task"])
def test_each_reward_is_normalised_before_the_sum(statistics: Any) -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(TASKS), clip_reward=0.3, obs_statistics=statistics)
    model = MultiTaskSAC("MlpPolicy", env, learning_starts=1000, seed=0, n_steps=3, gamma=0.5, device="cpu")
    model.learn(60 * TASKS)
    buffer = model.replay_buffer
    assert isinstance(buffer, MultiTaskReplayBuffer)
    drawn = {}
    for n_steps in (1, 3):
        buffer.n_steps = n_steps
        set_random_seed(0)
        drawn[n_steps] = buffer.sample(500 * TASKS, env=env)
    one, three = drawn[1], drawn[3]
    assert three.discounts is not None
    columns = zip(
        one.observations.tolist(), one.rewards.flatten().tolist(), one.next_observations.tolist(), strict=True
    )
    step = {tuple(state): (reward, tuple(following)) for state, reward, following in columns}  # no state recurs
    clipped = 0
    samples = (three.observations, three.rewards.flatten(), three.next_observations, three.discounts.flatten())
    for state, reward, following, discount in zip(*(x.tolist() for x in samples), strict=True):
        total, at = 0.0, tuple(state)
        for power in range(round(-np.log2(discount))):
            value, at = step[at]
            total += 0.5**power * value
            clipped += abs(value) == np.float32(0.3)
        assert (reward, at) == (pytest.approx(total, abs=1e-6), tuple(following))
    assert clipped > 100
    assert sorted(set(three.discounts.flatten().tolist())) == [0.125, 0.25, 0.5]


# ------------------------------------------------------------------------------------------------------ the model


def make(cls: type[MultiTaskSAC] = MultiTaskSAC, **kwargs: Any) -> Any:
    return cls("MTMlpPolicy", make_point_mass_env(M), **{**SMALL, **kwargs})


@pytest.mark.parametrize("cls", [MultiTaskSAC, SoftModSAC])
def test_a_model_learns_from_them(cls: type[MultiTaskSAC], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is changed counts from the next gradient step on, and SB3 warns of nothing."""
    told = []
    sample = MultiTaskReplayBuffer.sample

    def watched(self: Any, *args: Any, **kwargs: Any) -> ReplayBufferSamples:
        batch = sample(self, *args, **kwargs)
        told.append((self.n_steps, self.gamma, batch.discounts is not None))
        return batch

    monkeypatch.setattr(MultiTaskReplayBuffer, "sample", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(cls, n_steps=3, gamma=0.5)
    assert (model.n_steps, model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 3, 0.5)
    model.learn(6 * M)
    model.n_steps, model.gamma = 1, 0.25
    model.train(1, 2 * M)
    model.n_steps = 2
    model.train(1, 2 * M)
    assert told[-3:] == [(3, 0.5, True), (1, 0.25, False), (2, 0.25, True)]


def test_the_target_bootstraps_with_the_discount_of_the_sample() -> None:
    """The critics' loss of an update is the same from our batch, whatever the model's own discount would be."""
    model = make(n_steps=3, gamma=0.5, ent_coef=0.1, learning_starts=1000).learn(30 * M)
    losses = []
    for gamma in (0.5, 0.9):
        model.gamma = gamma
        step = model._learner()
        model.replay_buffer.gamma = 0.5
        set_random_seed(0)
        batch = model.replay_buffer.sample(8 * M)
        kept = pickle.dumps((model.policy.state_dict(), model.critic.optimizer.state_dict()))
        losses.append(step(batch, M).clone())
        state, optimizer = pickle.loads(kept)
        model.policy.load_state_dict(state)
        model.critic.optimizer.load_state_dict(optimizer)
    assert th.equal(losses[0][4], losses[1][4])


def test_files(tmp_path: Path) -> None:
    model = make(n_steps=3, gamma=0.5).learn(10 * M)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    env = make_point_mass_env(M)
    safe: dict[str, Any] = dict(safe=True, policy="MTMlpPolicy")
    for kwargs, expected in (
        ({}, (3, 0.5)),
        (safe, (3, 0.5)),
        (dict(n_steps=2), (2, 0.5)),
        (dict(n_steps=2, gamma=0.25, **safe), (2, 0.25)),
    ):
        loaded = MultiTaskSAC.load(tmp_path / "model", env, "cpu", **kwargs)
        assert isinstance(loaded.replay_buffer, MultiTaskReplayBuffer)
        assert (loaded.n_steps, loaded.replay_buffer.n_steps, loaded.replay_buffer.gamma) == (expected[0], *expected)
        loaded.load_replay_buffer(tmp_path / "buffer")
        assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.gamma) == expected


def test_hyperparameters_of_the_zoo(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text("default:\n  n_steps: 3\n")
    assert load_config(str(tmp_path / "own.yml"), MultiTaskSAC) == {"default": {"n_steps": 3}}


def test_refused(tmp_path: Path) -> None:
    for cls in (ReplayBuffer, NStepReplayBuffer):
        message = (
            rf"n_steps=3 is for MultiTaskReplayBuffer, not for {cls.__name__}: leave it 1. SB3's NStepReplayBuffer "
            r"takes its own, replay_buffer_kwargs=dict\(n_steps=3\)"
        )
        with pytest.raises(ConfigurationError, match=message):
            make(n_steps=3, replay_buffer_class=cls)
        model = make(replay_buffer_class=cls)
        model.n_steps = 3
        with pytest.raises(ConfigurationError, match=message):
            model.learn(4 * M)
    for n_steps, message in (
        (0, "n_steps must be at least 1, not 0"),
        (1.5, "n_steps must be an integer, not 1.5"),
        (True, "n_steps must be an integer, not True"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make(n_steps=n_steps)
        with pytest.raises(ConfigurationError, match=message):
            one_task(10, n_steps=n_steps)
    with pytest.raises(ConfigurationError, match="gamma must be from 0 to 1, not 2"):
        one_task(10, gamma=2)
    for name in ("n_steps", "gamma"):
        message = f"replay_buffer_kwargs must not hold '{name}': it is an argument of the model"
        with pytest.raises(ConfigurationError, match=message):
            make(replay_buffer_kwargs={name: 1})
    make(n_steps=3).save(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=r"does not go with .*n_steps=3 is for MultiTaskReplayBuffer"):
        MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), replay_buffer_class=ReplayBuffer)
    assert MultiTaskSAC.load(tmp_path / "model", replay_buffer_class=ReplayBuffer, n_steps=1).n_steps == 1
