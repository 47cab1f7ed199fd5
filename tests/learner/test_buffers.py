"""The multi-task replay buffer against a plain list of transitions."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from point_mass import PointMass, make_point_mass_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softmod import ConfigurationError, MultiTaskReplayBuffer, MultiTaskSAC, make_multitask_env

WIDTH, M, ACTION = 3, 4, 2


def make(buffer_size: int, num_tasks: int = M, width: int = WIDTH, action: int = ACTION, **kwargs: Any) -> Listed:
    observation = spaces.Box(-np.inf, np.inf, (width + num_tasks,), np.float32)
    box = spaces.Box(-1, 1, (action,))
    return Listed(buffer_size, observation, box, kwargs.pop("device", "cpu"), num_tasks=num_tasks, **kwargs)


class Listed(MultiTaskReplayBuffer):
    """Keeps each transition in a plain list too, one for each task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listed: list[list[tuple[float, ...]]] = [[] for _ in range(self.num_tasks)]

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
        ids = obs[:, -self.num_tasks :].argmax(1)
        ended = [d and not info.get("TimeLimit.truncated", False) for d, info in zip(done, infos, strict=True)]
        parts = (obs[:, : -self.num_tasks], next_obs[:, : -self.num_tasks], action, reward[:, None], np.c_[ended])
        for task, row in zip(ids, np.concatenate(parts, 1).astype(np.float32).tolist(), strict=True):
            self.listed[task].append(tuple(row))

    def drawn(self, batches: int) -> list[list[tuple[float, ...]]]:
        """The transitions of each task in so many batches of 10 samples a task."""
        out: list[list[tuple[float, ...]]] = [[] for _ in range(self.num_tasks)]
        for _ in range(batches):
            batch = self.sample(10 * self.num_tasks)
            assert all(x.dtype == th.float32 and x.is_contiguous() for x in batch[:5])
            assert [x.shape[1] for x in batch[:5]] == [self.obs_shape[0], self.action_dim, self.obs_shape[0], 1, 1]
            obs, actions, next_obs, dones, rewards = (x.numpy() for x in batch[:5])
            one_hot = np.eye(self.num_tasks, dtype=np.float32).repeat(10, 0)  # balanced, ordered by task
            np.testing.assert_array_equal(obs[:, -self.num_tasks :], one_hot)
            np.testing.assert_array_equal(next_obs[:, -self.num_tasks :], one_hot)
            parts = (obs[:, : -self.num_tasks], next_obs[:, : -self.num_tasks], actions, rewards, dones)
            for i, row in enumerate(np.concatenate(parts, 1).tolist()):
                out[i // 10].append(tuple(row))
        return out

    def check(self) -> None:
        """Draws nothing but the last transitions of each task, and all of them."""
        kept = [rows[-self.capacity_per_task :] for rows in self.listed]
        assert self.size_per_task().tolist() == [len(rows) for rows in kept]
        assert self.size() == sum(map(len, kept))
        assert self.added_per_task.tolist() == [len(rows) for rows in self.listed]
        assert self.full == all(len(rows) == self.capacity_per_task for rows in kept)
        for rows, seen in zip(kept, self.drawn(2 * self.capacity_per_task), strict=True):
            assert len(set(rows)) == len(rows)  # or the next would be too easy
            assert set(seen) == set(rows)


class Envs:
    """Envs whose few states recur, with episodes of 1 to 8 steps; all arrays are overwritten by the next step.

    :param ids: the first task of each
    :param rotating: whether an env goes on to another task when its episode ends
    :param restarts: whether envs are restarted in the middle of an episode, which nobody is told of
    """

    def __init__(self, seed: int, ids: Iterable[int], rotating: bool, restarts: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.ids, self.rotating, self.restarts = np.array(list(ids)), rotating, restarts
        n = len(self.ids)
        self.obs, self.next_obs = np.zeros((2, n, WIDTH + M), np.float32)
        self._put(self.obs, range(n))

    def _put(self, obs: np.ndarray, envs: Sequence[int]) -> None:
        for env in envs:
            obs[env, :WIDTH] = self.rng.integers(2, size=WIDTH)
            obs[env, WIDTH:] = np.eye(M)[self.ids[env]]

    def step_into(self, buffer: MultiTaskReplayBuffer) -> None:
        n = len(self.ids)
        self._put(self.next_obs, range(n))
        done = self.rng.random(n) < 0.2
        infos = [{"TimeLimit.truncated": bool(self.rng.random() < 0.5)} if d else {} for d in done]
        action = self.rng.uniform(-1, 1, (n, ACTION)).astype(np.float32)
        buffer.add(self.obs, self.next_obs, action, self.rng.normal(size=n), done, infos)
        ended = np.flatnonzero(done).tolist()
        if self.rotating:
            self.ids[ended] = self.rng.integers(M, size=len(ended))
        self.obs[...] = self.next_obs
        again = np.flatnonzero(self.rng.random(n) < 0.1).tolist() if self.restarts else []
        self._put(self.obs, ended + again)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one env a task": dict(ids=range(M), rotating=False),
    "three envs a task": dict(ids=np.repeat(np.arange(M), 3), rotating=False),
    "uneven": dict(ids=[0, 1, 1, 2, 2, 2, 3], rotating=False),
    "taking turns": dict(ids=range(M - 1), rotating=True),
    "one env": dict(ids=[0], rotating=True),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [3, 20])
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_transitions_are_those_of_a_list(layout: str, restarts: bool, capacity: int, seed: int) -> None:
    buffer = make(capacity * M + 3)
    envs = Envs(seed, restarts=restarts, **LAYOUTS[layout])
    steps = 0
    while not buffer.size_per_task().all():
        envs.step_into(buffer)
        steps += 1
    for _ in range(4):  # wraps around several times
        buffer.check()
        for _ in range(2 * steps + 5):
            envs.step_into(buffer)
    buffer.check()


@pytest.mark.parametrize("seed", range(3))
def test_envs_may_change_at_any_time(seed: int) -> None:
    """In number, order and task, and be taken away in mid-episode."""
    rng = np.random.default_rng(seed)
    buffer = make(9 * M)
    for task in range(M):
        Envs(seed, [task], rotating=False, restarts=False).step_into(buffer)
    all_envs = [Envs(10 * seed + i, rng.integers(M, size=size), True, True) for i, size in enumerate((2, 2, 3, 1))]
    for _ in range(30):
        envs = all_envs[rng.integers(len(all_envs))]
        for _ in range(rng.integers(1, 6)):
            envs.step_into(buffer)
        buffer.check()


@pytest.mark.parametrize("fill", [3, 25])
def test_a_file_goes_on_where_it_stopped(fill: int) -> None:
    buffer = make(9 * M)
    envs = Envs(0, np.repeat(np.arange(M), 2), rotating=True, restarts=True)
    for _ in range(fill):
        envs.step_into(buffer)
    loaded = pickle.loads(pickle.dumps(buffer))
    for one in (buffer, loaded):
        one.check()
    for _ in range(5):
        envs.step_into(loaded)
        loaded.check()
    buffer.check()  # is another one


def test_a_file_is_as_large_as_what_was_stored() -> None:
    buffer = make(1_000_000)
    Envs(0, range(M), rotating=False, restarts=False).step_into(buffer)
    assert len(pickle.dumps(buffer)) < 10_000


def test_a_file_of_another_layout_is_refused() -> None:
    old = MultiTaskReplayBuffer.__new__(MultiTaskReplayBuffer)
    with pytest.raises(ConfigurationError, match="saved by an older version, in another layout: collect"):
        old.__setstate__(dict(observations=np.zeros((4, 3)), next_observations=np.zeros((4, 3))))


@pytest.mark.parametrize("truncate_last_traj", [True, False])
def test_the_transitions_of_a_training(truncate_last_traj: bool, tmp_path: Path) -> None:
    """Three envs take turns at four tasks, in a training of several parts."""
    corners = {f"corner-{i}": partial(PointMass, i) for i in range(M)}
    env = make_multitask_env(corners, n_envs=3, n_workers=0, max_episode_steps=7)

    def model() -> MultiTaskSAC:
        return MultiTaskSAC(
            "MlpPolicy", env, replay_buffer_class=Listed, buffer_size=30 * M, learning_starts=10_000, batch_size=M
        )

    def check(model: MultiTaskSAC) -> None:
        assert isinstance(model.replay_buffer, Listed)
        model.replay_buffer.check()

    first = model()
    first.learn(100)
    check(first)
    first.learn(40, reset_num_timesteps=False)  # goes on in mid-episode
    first.learn(40)  # resets the envs
    first.set_env(make_multitask_env(corners, n_envs=3, n_workers=0, max_episode_steps=5))
    first.learn(40, reset_num_timesteps=False)
    check(first)
    first.save_replay_buffer(tmp_path / "buffer.pkl")
    second = model()
    second.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=truncate_last_traj)
    second.learn(50)
    check(second)
    assert second.replay_buffer.size() == 30 * M  # type: ignore[union-attr]


def test_every_transition_is_as_likely_as_any_other() -> None:
    buffer = make(40 * M)
    envs = Envs(0, np.repeat(np.arange(M), 2), rotating=False, restarts=True)
    for _ in range(50):
        envs.step_into(buffer)
    set_random_seed(0)
    for rows in buffer.drawn(1600):  # 400 of each, with a standard deviation of 20
        counts = np.unique(rows, axis=0, return_counts=True)[1]
        assert len(counts) == 40
        assert np.abs(counts - 400).max() < 5 * 20
        assert 13 < counts.std() < 29


def test_seeds() -> None:
    buffer = make(40 * M)
    envs = Envs(0, range(M), rotating=False, restarts=False)
    for _ in range(30):
        envs.step_into(buffer)
    drawn = []
    for seed in (1, 1, 2):
        set_random_seed(seed)
        drawn.append(buffer.drawn(2))
    assert drawn[0] == drawn[1] != drawn[2]


def test_tasks_of_unequal_age_are_still_balanced() -> None:
    buffer = make(400)
    envs = Envs(1, [0, 0, 0], rotating=False, restarts=False)
    for _ in range(20):
        envs.step_into(buffer)
    Envs(2, range(M), rotating=False, restarts=False).step_into(buffer)
    assert buffer.size_per_task().tolist() == [61, 1, 1, 1]
    assert not buffer.full
    tasks = buffer.sample(40 * M).observations[:, WIDTH:].argmax(1)
    assert np.bincount(tasks.numpy(), minlength=M).tolist() == [40] * M


def test_memory_per_transition() -> None:
    """With Meta-World's shapes and the paper's episodes: 180 bytes, and those of the ends."""
    tasks, width, action, steps = 10, 39, 4, 3000
    buffer = make(steps * tasks, tasks, width, action)
    rng = np.random.default_rng(0)
    one_hot = np.eye(tasks, dtype=np.float32)
    states = rng.normal(size=(2, tasks, width)).astype(np.float32)
    for t in range(steps):
        obs, next_obs = (np.concatenate([states[i % 2], one_hot], 1) for i in (t, t + 1))
        done = np.full(tasks, t % 200 == 199)
        MultiTaskReplayBuffer.add(
            buffer,
            obs,
            next_obs,
            np.zeros((tasks, action)),
            np.zeros(tasks),
            done,
            [{"TimeLimit.truncated": True}] * 10,
        )
        if done[0]:
            states[(t + 1) % 2] = rng.normal(size=(tasks, width))
    assert buffer.full
    assert 180 < buffer.nbytes / buffer.size() < 184


def test_the_memory_of_ends_is_used_again() -> None:
    """Where every episode is a step long, each transition has an end, and no more."""
    buffer = make(50 * M)
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(400):
        obs, next_obs = np.concatenate([rng.normal(size=(2, M, WIDTH)), np.broadcast_to(np.eye(M), (2, M, M))], 2)
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (M, ACTION)), np.zeros(M), np.ones(M, bool), [{}] * M)
        taken.append(buffer.nbytes)
    assert taken[-1] == taken[100]
    buffer.check()


def test_memory_is_not_taken_before_it_is_filled() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux tells")
    before = int(statm.read_text().split()[1])
    buffer = make(10_000_000, 50, 39, 4)
    assert buffer.nbytes == 50 * 8  # where memory is taken as a whole, as on a GPU, it has to wait
    buffer.allocate()
    assert buffer.nbytes == 1_800_000_000 + 50 * 8
    assert (int(statm.read_text().split()[1]) - before) * 4096 < 20_000_000


def test_nothing_waits_for_the_device() -> None:
    """On torch's meta device, which has shapes and no values, an operation that needs a value raises."""
    buffer = make(9 * M, storage_device="meta", device="meta")
    envs = Envs(0, np.repeat(np.arange(M), 2), rotating=True, restarts=True)
    for _ in range(30):
        envs.step_into(buffer)
    batch = buffer.sample(8 * M)
    assert [tuple(x.shape) for x in batch[:5]] == [(32, 7), (32, 2), (32, 7), (32, 1), (32, 1)]
    assert batch.observations.device.type == "meta"


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_storage_on_a_gpu() -> None:
    on_gpu, on_cpu = (make(9 * M, storage_device=device) for device in ("cuda", "cpu"))
    for buffer in (on_gpu, on_cpu):
        envs = Envs(0, np.repeat(np.arange(M), 2), rotating=True, restarts=True)
        for _ in range(30):
            envs.step_into(buffer)
        buffer.check()
    assert on_gpu.listed == on_cpu.listed
    pickle.loads(pickle.dumps(on_gpu)).check()
    th.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.device = th.device("cuda")
        envs.step_into(on_gpu)
        assert on_gpu.sample(8 * M).observations.is_cuda
    finally:
        th.cuda.set_sync_debug_mode("default")


def test_rewards_normalised_by_sb3() -> None:
    env = VecNormalize(make_point_mass_env(M), norm_obs=False)
    model = MultiTaskSAC("MlpPolicy", env, learning_starts=1000, seed=0)
    model.learn(120)
    assert model.replay_buffer is not None
    set_random_seed(0)
    raw = model.replay_buffer.sample(10 * M)
    set_random_seed(0)
    scaled = model.replay_buffer.sample(10 * M, env=env)
    np.testing.assert_array_equal(scaled.rewards.numpy(), env.normalize_reward(raw.rewards.numpy()))
    np.testing.assert_array_equal(scaled.observations.numpy(), raw.observations.numpy())
    assert not np.array_equal(scaled.rewards.numpy(), raw.rewards.numpy())


def test_reset() -> None:
    buffer = make(9 * M)
    envs = Envs(0, range(M), rotating=False, restarts=False)
    for _ in range(12):
        envs.step_into(buffer)
    buffer.reset()
    assert buffer.size() == 0
    assert not buffer.full
    buffer.listed = [[] for _ in range(M)]
    for _ in range(12):
        envs.step_into(buffer)
    buffer.check()


def test_bad_input_is_refused() -> None:
    buffer = make(100)
    with pytest.raises(ConfigurationError, match="The replay buffer holds no transitions yet"):
        buffer.sample(8)
    envs = Envs(0, range(M), rotating=False, restarts=False)
    envs.step_into(buffer)
    with pytest.raises(ConfigurationError, match=r"batch_size=10 is not divisible by the 4 tasks.* take 8 or 12"):
        buffer.sample(10)
    with pytest.raises(ConfigurationError, match=r"batch_size=3 .* take 4\."):
        buffer.sample(3)
    envs.obs[2, WIDTH:] = 0.5
    with pytest.raises(ConfigurationError, match=r"observation of env 2 does not end in a one-hot task of 4 entries"):
        envs.step_into(buffer)
    with pytest.raises(ConfigurationError, match=r"buffer_size=3 leaves no room for each of 4 tasks"):
        make(3)
    many = Envs(0, [1, 1, 1], rotating=False, restarts=False)
    with pytest.raises(
        ConfigurationError, match=r"3 envs play task 1, but buffer_size=8 leaves 2 transitions for each of 4 tasks: rai"
    ):
        many.step_into(make(8))
