"""What is handed to Ray, and what its tasks do, without a cluster: what is remote happens here and now."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grid_runs import cells_of, write_grid

from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.process import Order, Outcome
from sb3_softmod.grid.status import RUNNING, WAITING, status_of

pytest.importorskip("ray")

import ray

from sb3_softmod.grid import task
from sb3_softmod.grid.carrying import Files
from sb3_softmod.grid.ray import RayRunner
from sb3_softmod.grid.task import RunFailedError, train_cell


class Here:
    """An actor."""

    def __init__(self, what: object) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._what, name))


class Handed:
    """A task that was handed to Ray; it ends as it is told."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.outcome: Any = None

    def remote(self, *_: Any) -> Handed:
        return self


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Handed]:
    """The tasks, in their order."""
    tasks: list[Handed] = []

    def options(**given: Any) -> Handed:
        tasks.append(Handed(given))
        return tasks[-1]

    def wait(given: list[Handed], **_: Any) -> tuple[list[Handed], list[Handed]]:
        return [each for each in given if each.outcome], [each for each in given if not each.outcome]

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=options))
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda given: given.outcome.name if isinstance(given, Handed) else given)
    monkeypatch.setattr("sb3_softmod.grid.ray.files_of_driver", lambda: Here(Files()))
    return tasks


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (cell,) = cells_of(write_grid(tmp_path, algos=["mt_sac"], seeds=0, retries=3))
    cell.folder.mkdir(parents=True)
    return cell


def attempt(cell: Cell) -> None:
    with (cell.folder / "train.log").open("a") as log:
        log.write("#### now, process 1: sb3-softmod train\nsomething\n")


def test_retries_of_a_cell_whose_worker_died(cell: Cell, handed: list[Handed]) -> None:
    """Ray starts its task again, which finds the claim of the dead: that begins no new count."""
    attempt(cell)  # of a command before
    runner = RayRunner("auto", shared=True)
    for _ in range(3):
        runner.start(cell)
        attempt(cell)
        handed[-1].outcome = Outcome.CLAIMED
        assert [end.outcome for end in runner.ended()] == [Outcome.CLAIMED]
    assert [each.options["max_retries"] for each in handed] == [3, 2, 1]


def test_queued_is_not_running(cell: Cell, handed: list[Handed]) -> None:
    """Without a shared file system the driver claims a cell before there is room for it."""
    runner = RayRunner("auto", shared=False)
    runner.start(cell)
    assert len(handed) == 1
    assert status_of(cell).state == WAITING
    order = replace(Order.of(cell), arguments=("--algo", "mt_sac", "--env", "nowhere"))
    with pytest.raises(RunFailedError, match="Unknown env 'nowhere'"):
        train_cell(order, Here(Files()))
    assert status_of(cell).state == RUNNING  # until Ray has started it often enough
    handed[0].outcome = Outcome.FAILED
    runner.ended()


def test_reason_without_a_shared_file_system(cell: Cell, handed: list[Handed], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, though nothing stays on the node."""

    class Failing:
        def __init__(self, order: Order) -> None:
            (order.folder / "train.log").write_text("#### now\nthe reason\n")

        def poll(self) -> Outcome:
            return Outcome.FAILED

        def stop(self) -> None:
            pass

        def wait(self) -> None:
            pass

        def reason(self) -> str:
            return "killed by SIGKILL"

    monkeypatch.setattr(task, "RunProcess", Failing)
    with pytest.raises(RunFailedError, match=r"^the reason\nkilled by SIGKILL$"):
        train_cell(Order.of(cell), Here(Files()))
    assert (cell.folder / "train.log").read_text() == "#### now\nthe reason\n"


def test_folder_that_goes_away_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a checkpoint that is pruned."""
    for name in ("checkpoints/20/model.zip", "checkpoints/40/model.zip", "train.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1234")
    scandir = os.scandir

    def pruning(path: Any) -> Any:
        if str(path).endswith("20"):
            os.rename(path, tmp_path.parent / f"{tmp_path.name}-pruned")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", pruning)
    assert Files().listing(str(tmp_path)) == {"checkpoints/40/model.zip": 4, "train.log": 4}
