"""The replay buffer in segments, each written once, and a head."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from stable_baselines3.common.utils import set_random_seed
from test_buffers import LAYOUTS, Envs, Listed, make
from test_buffers import M as TASKS

from sb3_softmod import ConfigurationError


def restored(segments: list[dict[str, np.ndarray]], buffer: Listed, buffer_size: int) -> Listed:
    """Another buffer with the same content."""
    other = make(buffer_size)
    other.restore(segments, buffer.head())
    other.listed = [list(rows) for rows in buffer.listed]
    return other


def same_samples(one: Listed, other: Listed) -> None:
    drawn = []
    for buffer in (one, other):
        set_random_seed(1)
        drawn.append([[x.numpy().tobytes() for x in buffer.sample(40 * TASKS)[:5]] for _ in range(3)])
    assert drawn[0] == drawn[1]
    assert one.size_per_task().tolist() == other.size_per_task().tolist()
    assert one.full == other.full


@pytest.mark.parametrize("capacity", [3, 20])
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_segments_are_the_buffer(layout: str, restarts: bool, capacity: int) -> None:
    """Through wrap-around, ends and truncations, with segments of 0 to many steps, and once those not needed are left
    out; and what is stored afterwards is stored alike."""
    size = capacity * TASKS
    buffer, rng = make(size), np.random.default_rng(capacity)
    envs = Envs(0, restarts=restarts, **LAYOUTS[layout])
    while not buffer.size_per_task().all():
        envs.step_into(buffer)
    segments, mark = [buffer.segment()], buffer.mark()
    for number in range(12):
        for _ in range(rng.integers(0, 2 * capacity)):
            envs.step_into(buffer)
        segments.append(buffer.segment(mark))
        mark = buffer.mark()
        oldest = buffer.added_per_task - capacity
        needed = [segment for segment in segments if segment is not None and (segment["added_per_task"] > oldest).any()]
        other = restored(needed, buffer, size)
        same_samples(buffer, other)
        if number % 4 == 3:
            state = pickle.dumps(envs)
            for one in (buffer, other):
                going = pickle.loads(state)
                for _ in range(capacity + 2):
                    going.step_into(one)
                one.check()
            envs = going
            same_samples(buffer, other)
    assert len(needed) < len(segments) or LAYOUTS[layout]["rotating"]  # which may leave a task alone for long


def test_a_head_is_of_its_moment() -> None:
    buffer = make(9 * TASKS)
    envs = Envs(0, range(TASKS), rotating=False, restarts=False)
    for _ in range(6):
        envs.step_into(buffer)
    segment, head = buffer.segment(), buffer.head()
    assert segment is not None
    set_random_seed(0)
    expected = buffer.sample(80 * TASKS)
    for _ in range(2):
        for _ in range(20):
            envs.step_into(buffer)  # into the first, then into the one that was restored
        buffer = make(9 * TASKS)
        buffer.restore([segment], head)
        set_random_seed(0)
        for found, wanted in zip(buffer.sample(80 * TASKS)[:5], expected[:5], strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_a_mark_of_what_is_gone() -> None:
    buffer = make(9 * TASKS)
    envs = Envs(0, range(TASKS), rotating=False, restarts=False)
    envs.step_into(buffer)
    mark = buffer.mark()
    buffer.reset()
    for _ in range(5):
        envs.step_into(buffer)
    buffer.listed = [rows[-5:] for rows in buffer.listed]
    assert buffer.segment(mark) is None
    whole = buffer.segment()
    assert whole is not None
    same_samples(buffer, restored([whole], buffer, 9 * TASKS))
    copy = pickle.loads(pickle.dumps(buffer))
    assert copy.segment(buffer.mark()) is None


def test_a_buffer_of_another_shape_is_refused() -> None:
    buffer = make(9 * TASKS)
    head = buffer.head()
    for other in (make(8 * TASKS), make(9 * TASKS, width=2), make(9 * TASKS, action=1), make(9 * 3, num_tasks=3)):
        with pytest.raises(
            ConfigurationError, match=r"saved replay buffer does not fit: .* are \[4, 9, 6\], here they are "
        ):
            other.restore([], head)
