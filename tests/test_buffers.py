"""The multi-task replay buffer against a plain list of transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_softmod import ConfigurationError, MultiTaskReplayBuffer

WIDTH, M, ACTION = 3, 4, 2


def make(buffer_size: int, n_envs: int = M) -> MultiTaskReplayBuffer:
    observation = spaces.Box(-np.inf, np.inf, (WIDTH + M,), np.float32)
    return MultiTaskReplayBuffer(
        buffer_size, observation, spaces.Box(-1, 1, (ACTION,)), "cpu", n_envs=n_envs, num_tasks=M
    )


def transition(rng: np.random.Generator, ids: np.ndarray) -> dict[str, Any]:
    n = len(ids)
    one_hot = np.eye(M, dtype=np.float32)[ids]
    done = rng.random(n) < 0.3
    return dict(
        obs=np.concatenate([rng.normal(size=(n, WIDTH)).astype(np.float32), one_hot], 1),
        next_obs=np.concatenate([rng.normal(size=(n, WIDTH)).astype(np.float32), one_hot], 1),
        action=rng.uniform(-1, 1, (n, ACTION)).astype(np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        done=done,
        infos=[{"TimeLimit.truncated": bool(d and rng.random() < 0.5)} for d in done],
    )


@pytest.mark.parametrize("ids_of", ["one env a task", "three envs a task", "any task in any env"])
def test_every_sample_is_one_of_the_last_transitions_of_its_task(ids_of: str) -> None:
    rng = np.random.default_rng(0)
    capacity = 10
    buffer = make(capacity * M + 3)
    kept: list[list[tuple[float, ...]]] = [[] for _ in range(M)]

    def row(obs: np.ndarray, next_obs: np.ndarray, action: np.ndarray, reward: float, done: float) -> tuple[float, ...]:
        return (*obs.tolist(), *next_obs.tolist(), *action.tolist(), float(reward), float(done))

    for _ in range(40):  # wraps around several times
        ids = {
            "one env a task": np.arange(M),
            "three envs a task": np.repeat(np.arange(M), 3),
            "any task in any env": rng.integers(M, size=6),
        }[ids_of]
        t = transition(rng, ids)
        buffer.add(**t)
        for i, task in enumerate(ids):
            ended = t["done"][i] and not t["infos"][i]["TimeLimit.truncated"]
            kept[task].append(row(t["obs"][i], t["next_obs"][i], t["action"][i], t["reward"][i], ended))
    assert buffer.size_per_task().tolist() == [capacity] * M
    assert buffer.size() == capacity * M
    assert buffer.full

    seen: list[set[tuple[float, ...]]] = [set() for _ in range(M)]
    for _ in range(60):
        batch = [x.numpy() for x in buffer.sample(8 * M)[:5]]
        obs, actions, next_obs, dones, rewards = batch
        tasks = obs[:, WIDTH:].argmax(1)
        assert np.bincount(tasks, minlength=M).tolist() == [8] * M  # balanced
        np.testing.assert_array_equal(next_obs[:, WIDTH:], obs[:, WIDTH:])
        assert all(x.dtype == np.float32 for x in batch)
        for b, task in enumerate(tasks):
            seen[task].add(row(obs[b], next_obs[b], actions[b], rewards[b, 0], dones[b, 0]))
    for task in range(M):
        assert seen[task] == set(kept[task][-capacity:])


def test_tasks_of_unequal_age_are_still_balanced() -> None:
    rng = np.random.default_rng(1)
    buffer = make(400)
    for _ in range(20):
        buffer.add(**transition(rng, np.zeros(3, int)))
    buffer.add(**transition(rng, np.arange(M)))
    assert buffer.size_per_task().tolist() == [61, 1, 1, 1]
    assert not buffer.full
    tasks = buffer.sample(40 * M).observations[:, WIDTH:].argmax(1)
    assert np.bincount(tasks.numpy(), minlength=M).tolist() == [40] * M


def test_memory_per_transition() -> None:
    """Observations twice, action and reward in float32, a byte for done; no one-hot."""
    buffer = make(1000 * M)
    arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones)
    assert sum(array.nbytes for array in arrays) == 1000 * M * (4 * (2 * WIDTH + ACTION + 1) + 1)


def test_reset() -> None:
    buffer = make(100)
    buffer.add(**transition(np.random.default_rng(0), np.arange(M)))
    buffer.reset()
    assert buffer.size() == 0


def test_bad_input_is_refused() -> None:
    buffer = make(100)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match=r"No transitions of task 0 yet: raise learning_starts"):
        buffer.sample(8)
    buffer.add(**transition(rng, np.arange(M)))
    with pytest.raises(ConfigurationError, match=r"batch_size=10 is not divisible by the 4 tasks.* take 8 or 12"):
        buffer.sample(10)
    with pytest.raises(ConfigurationError, match=r"batch_size=3 .* take 4\."):
        buffer.sample(3)
    bad = transition(rng, np.arange(M))
    bad["obs"][2, WIDTH:] = 0.5
    with pytest.raises(ConfigurationError, match=r"observation of env 2 does not end in a one-hot task of 4 entries"):
        buffer.add(**bad)
    with pytest.raises(ConfigurationError, match=r"buffer_size=3 leaves no room for each of 4 tasks"):
        make(3)
