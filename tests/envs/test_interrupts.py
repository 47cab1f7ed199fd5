"""Ctrl-C at any line of a step or a reset of a MultiTaskVecEnv: what comes next works, or raises our error."""

from __future__ import annotations

import itertools
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
from worker_envs import make_seeded

from sb3_softmod import MultiTaskVecEnv, SoftModError

#: The lines that are meant. What they call of multiprocessing counts as a part of them.
FOLDER = "sb3_softmod/envs/"


class Hang(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def ctrl_c_at(line: int) -> Iterator[list[str]]:
    """KeyboardInterrupt at a line, counted from 0; yields where that was, nothing if it was not reached."""
    where: list[str] = []
    count = itertools.count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if FOLDER not in frame.f_code.co_filename:
            return None
        if event == "line" and next(count) == line:
            where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield where
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)


def make_env(n_workers: int, n_envs: int | None = None) -> MultiTaskVecEnv:
    return MultiTaskVecEnv([partial(make_seeded, task) for task in range(3)], n_envs=n_envs, n_workers=n_workers)


def act(env: MultiTaskVecEnv, *, wait: bool = False) -> list[Any]:
    """One step, or what is still to come of it, as it was returned."""
    obs, rewards, dones, infos = env.step_wait() if wait else env.step(np.full((env.num_envs, 2), 0.1, np.float32))
    return [obs, rewards, dones, [info["task_id"] for info in infos]]


def begin(env: MultiTaskVecEnv) -> np.ndarray:
    env.seed(3)
    return env.reset()


def outcome(call: Callable[[], list[Any]]) -> list[Any] | SoftModError:
    try:
        return call()
    except SoftModError as error:
        return error


@pytest.mark.parametrize(
    ("n_workers", "n_envs", "call", "then"),
    [
        (0, None, "step", "step_wait"),
        (0, None, "step", "reset"),
        (2, None, "step", "step_wait"),
        (2, 2, "step", "reset"),
        (2, 2, "reset", "step"),
    ],
)
def test_ctrl_c_at_every_line(n_workers: int, n_envs: int | None, call: str, then: str) -> None:
    """In the first step after a reset, in which an episode ends, or in that reset; nothing hangs or is mixed up."""
    twin = make_env(0, n_envs)
    expected: list[Any] = [begin(twin), *(act(twin) for _ in range(4))]
    assert n_envs or expected[1][2].any()
    env, made, worked = make_env(n_workers, n_envs), 1, 0
    for line in itertools.count():
        signal.setitimer(signal.ITIMER_REAL, 20)
        begin(env)
        with ctrl_c_at(line) as where:
            act(env) if call == "step" else begin(env)
        if not where:
            break
        if then != "reset":
            found = outcome(lambda env=env: act(env, wait=then == "step_wait"))  # type: ignore[misc]
            if isinstance(found, SoftModError):
                assert len(str(found)) > 30, where
            else:
                worked += 1
                if n_envs is None:
                    assert_same(found, expected[1], where)
        begun = outcome(lambda env=env: [begin(env)])  # type: ignore[misc]
        if isinstance(begun, SoftModError):
            assert re.search("is closed, by|in the middle of a message", str(begun)), (where, begun)
            env.close()
            env, made = make_env(n_workers, n_envs), made + 1
            begun = [begin(env)]
        if n_envs is None:
            assert_same(begun, expected[:1], where)
        twin.set_progress(env.progress())
        for step in range(1, 4):
            found = act(env)
            assert_same(found, act(twin), where)
            if n_envs is None:
                assert_same(found, expected[step], where)
    env.close()
    assert line > 60
    assert made < 1 + line / 5  # as a rule the env can be used again
    assert worked or then == "reset"


def assert_same(a: list[Any], b: list[Any], where: object) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(where))
