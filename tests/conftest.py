"""Shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

# The tests share the cores, and most envs here are made, played and gone sooner than a worker process has started.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SB3_SOFTMOD_WORKERS"] = "0"

import pytest
import torch as th
from child_processes import workers_of

from sb3_softmod.envs.task_sets import TASK_SETS
from sb3_softmod.envs.worker_pool import WORKERS
from sb3_softmod.methods import METHODS

#: Whose tests take longest, by far: begun last, they would leave the other cores idle.
LONGEST = ("test_notebooks.py", "test_documented_commands.py", "test_learning.py", "test_zoo_resume.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others in the order of their names."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture
def worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envs have workers where nothing is said of them, as they do for users."""
    monkeypatch.delenv(WORKERS)


@pytest.fixture(autouse=True, scope="module")
def _no_worker_stays() -> Iterator[None]:
    """A file leaves no process behind; an env that is part of a cycle ends its own when that is collected."""
    yield
    if workers_of(os.getpid()):
        gc.collect()
        assert not workers_of(os.getpid())


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
