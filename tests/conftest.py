"""Shared by all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch as th

from sb3_softmod.envs.task_sets import TASK_SETS
from sb3_softmod.methods import METHODS


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are fastest on one thread, and sums are then always in the same order."""
    th.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Ctrl-C interrupts, also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_methods() -> Iterator[None]:
    """A method that a test registers is gone after it; other files of the process compare what is registered."""
    registered = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(registered)


@pytest.fixture(autouse=True, scope="module")
def _own_task_sets(request: pytest.FixtureRequest) -> Iterator[None]:
    """The point masses of the grids' tests are known to these alone; other files compare what is known."""
    if request.path.parent.name != "grid":
        yield
        return
    import grid_points  # which adds the set, as in the processes of the runs

    TASK_SETS["Points"] = grid_points.POINTS
    yield
    del TASK_SETS["Points"]
