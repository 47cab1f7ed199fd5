"""What the local runner starts when, with processes that do nothing; and what is read from the folders of cells."""

from __future__ import annotations

import csv
import json
import signal
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grid_runs import cells_of, write_grid
from rich.console import Console
from run_folders import write_run

from sb3_softmod.common.csv_files import last_rows
from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.grid import driver, local, process
from sb3_softmod.grid.cells import Cell, Resources
from sb3_softmod.grid.claims import Claim
from sb3_softmod.grid.driver import StoppedError, run_grid
from sb3_softmod.grid.folder import clear_beginning, is_finished, is_written, last_lines, next_arguments, run_of
from sb3_softmod.grid.local import LocalRunner
from sb3_softmod.grid.process import Order, Outcome
from sb3_softmod.grid.resources import Capacity
from sb3_softmod.grid.status import DONE, FAILED, RUNNING, WAITING, status_of, table_of
from sb3_softmod.saving.checkpoints import CheckpointFolder

GB = 10**9


class FakeProcess:
    """Ends when it is told to."""

    started: list[FakeProcess]

    def __init__(self, order: Order, gpus: str | None = None) -> None:
        self.order, self.gpus = order, gpus
        self.outcome: Outcome | None = None
        self.stopped = False
        FakeProcess.started.append(self)

    def poll(self) -> Outcome | None:
        return self.outcome

    def wait(self) -> Outcome:
        assert self.stopped
        return Outcome.STOPPED

    def stop(self) -> None:
        self.stopped = True

    def reason(self) -> str:
        return "killed by SIGKILL"


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    FakeProcess.started = []
    monkeypatch.setattr(local, "RunProcess", FakeProcess)
    monkeypatch.setattr(driver, "TICK", 0.01)
    return FakeProcess.started


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    (cell,) = cells_of(write_grid(tmp_path_factory.mktemp("grid"), algos=["mt_sac"], seeds=0))
    return cell


def cells_with(cell: Cell, tmp_path: Path, number: int, *, retries: int = 0, **resources: Any) -> list[Cell]:
    needs = Resources(**{"memory": GB, **resources})
    return [replace(cell, seed=n, root=tmp_path, resources=needs, retries=retries) for n in range(number)]


@pytest.mark.parametrize(
    ("capacity", "needs", "at_once"),
    [
        (Capacity(4, 100 * GB, ()), dict(threads=1), 4),
        (Capacity(5, 100 * GB, ()), dict(threads=2), 2),
        (Capacity(8, 5 * GB, ()), dict(memory=2 * GB), 2),
        (Capacity(8, 100 * GB, ("0", "3")), dict(gpus=0.5), 4),
        (Capacity(8, 100 * GB, ("0", "3")), dict(gpus=0.4), 4),
        (Capacity(8, 100 * GB, ("0", "1", "2")), dict(gpus=2), 1),
    ],
)
def test_room(
    capacity: Capacity, needs: dict[str, Any], at_once: int, cell: Cell, tmp_path: Path, processes: list[FakeProcess]
) -> None:
    """As many as fit, and the next one when one has ended."""
    runner = LocalRunner(lambda: capacity)
    cells = cells_with(cell, tmp_path, 6, **needs)
    assert [runner.start(each) for each in cells] == [n < at_once for n in range(6)]
    assert not runner.ended()
    processes[0].outcome = Outcome.FINISHED
    assert [end.cell for end in runner.ended()] == [cells[0]]
    assert runner.start(cells[at_once])
    assert not runner.start(cells[-1])


def test_gpus_are_shared_out(cell: Cell, tmp_path: Path, processes: list[FakeProcess]) -> None:
    runner = LocalRunner(lambda: Capacity(8, 100 * GB, ("0", "3")))
    for each in cells_with(cell, tmp_path, 4, gpus=0.5):
        runner.start(each)
    assert [process.gpus for process in processes] == ["0", "3", "0", "3"]
    (without,) = cells_with(cell, tmp_path, 1)
    assert runner.start(without)
    assert processes[-1].gpus == ""


def test_retries(cell: Cell, tmp_path: Path, processes: list[FakeProcess]) -> None:
    runner = LocalRunner(lambda: Capacity(1, 100 * GB, ()))
    (one,) = cells_with(cell, tmp_path, 1, retries=2)
    runner.start(one)
    for outcome in (Outcome.FAILED, Outcome.STOPPED):
        processes[-1].outcome = outcome
        assert not runner.ended()
    assert len(processes) == 3
    processes[-1].outcome = Outcome.FAILED
    (end,) = runner.ended()
    assert (end.cell, end.outcome, end.why) == (one, Outcome.FAILED, "killed by SIGKILL")


def test_claimed_by_somebody_else(
    cell: Cell, tmp_path: Path, processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell that somebody has is waited for, and counts as theirs when they have finished it."""
    monkeypatch.setattr(driver, "LOOK_AGAIN", 0.05)
    (one,) = cells_with(cell, tmp_path, 1)
    claim = Claim.take(one.folder, lambda: None)
    assert claim is not None
    finish = threading.Timer(0.5, lambda: finished_run(one))
    finish.start()
    lines: list[str] = []
    assert run_grid([one], LocalRunner(lambda: Capacity(1, 100 * GB, ())), lines.append) == {}
    claim.release()
    assert lines == [f"{one.name}: finished elsewhere"]
    assert not processes


def test_memory_that_others_give_back(cell: Cell, tmp_path: Path, processes: list[FakeProcess]) -> None:
    """Measured again as long as nothing of one's own runs."""
    free = [0.5 * GB]
    runner = LocalRunner(lambda: Capacity(2, free[0], ()))
    one, two = cells_with(cell, tmp_path, 2)
    with pytest.raises(ConfigurationError, match=r"which fit nowhere: this machine has 2 cores, 0\.5 GB"):
        runner.check([one])
    free[0] = 1.5 * GB
    runner.check([one])
    assert runner.start(one)
    free[0] = 2.5 * GB
    runner.check([two])
    assert not runner.start(two)  # of the 1.5 GB the run has 1
    processes[0].outcome = Outcome.FINISHED
    assert len(runner.ended()) == 1
    assert runner.start(two)


def test_a_cell_that_cannot_be_started(cell: Cell, tmp_path: Path, processes: list[FakeProcess]) -> None:
    """The others go on; other drivers may have room for it."""

    class Full(LocalRunner):
        def start(self, cell: Cell) -> bool:
            if cell.seed == 0:
                raise OSError(28, "No space left on device")
            started = super().start(cell)
            processes[-1].outcome = Outcome.FINISHED
            return started

    first, second = cells_with(cell, tmp_path, 2)
    lines: list[str] = []
    failed = run_grid([first, second], Full(lambda: Capacity(2, 100 * GB, ())), lines.append)
    assert failed == {first.name: "[Errno 28] No space left on device"}
    assert set(lines) == {f"{second.name}: finished", f"{first.name}: failed: [Errno 28] No space left on device"}
    assert status_of(first).state == WAITING


def test_signal(cell: Cell, tmp_path: Path, processes: list[FakeProcess]) -> None:
    """Every run is stopped before the driver ends."""
    cells = cells_with(cell, tmp_path, 2)
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGTERM)).start()
    with pytest.raises(StoppedError, match="SIGTERM"):
        run_grid(cells, LocalRunner(lambda: Capacity(2, 100 * GB, ())), lambda line: None)
    assert [process.stopped for process in processes] == [True, True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_all_at_once(
    cell: Cell, tmp_path: Path, processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []

    class Slow(FakeProcess):
        """While it writes its checkpoint, the user loses patience."""

        def stop(self) -> None:
            super().stop()
            signal.raise_signal(signal.SIGINT)

        def kill(self) -> None:
            killed.append(self.order)

    monkeypatch.setattr(local, "RunProcess", Slow)
    threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(StoppedError, match="SIGINT"):
        run_grid(cells_with(cell, tmp_path, 1), LocalRunner(lambda: Capacity(1, 100 * GB, ())), lambda line: None)
    assert len(killed) == 1


def test_a_run_sees_its_own_gpus(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, env, **__: seen.append(env))
    (one,) = cells_with(cell, tmp_path, 1)
    for gpus in ("3", ""):
        process.RunProcess(Order.of(one), gpus=gpus)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in seen] == ["3", ""]


def finished_run(cell: Cell) -> Path:
    """The run of a cell as train leaves it."""
    run = write_run(cell.folder, "mt_sac", 1, {100: [0.0, 1.0], 200: [1.0, 0.5]}, benchmark="Points")
    with zipfile.ZipFile(run / "Points.zip", "w") as file:
        file.writestr("data", "")
    return run


def running_run(cell: Cell, steps: int) -> Path:
    run = write_run(cell.folder, "mt_sac", 1, {100: [0.0, 1.0]}, benchmark="Points", status="running")
    with (run / "progress.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time/total_timesteps", "time/fps"])
        rows.writerow([steps, 2])
        file.write("15")  # half of a row
    return run


def test_status(cell: Cell, tmp_path: Path) -> None:
    waiting, done, running, ended = cells_with(cell, tmp_path, 4)
    assert status_of(waiting).state == WAITING
    finished_run(done)
    found = status_of(done)
    assert (found.state, found.steps, found.fraction, found.success) == (DONE, 200, 1.0, 0.75)
    running_run(running, 120)
    assert status_of(running).state == WAITING
    assert status_of(running).note == "goes on from its checkpoint"
    claim = Claim.take(running.folder, lambda: None)
    assert claim is not None
    found = status_of(running)
    assert (found.state, found.steps, found.fraction, found.success) == (RUNNING, 120, 0.6, 0.5)
    assert found.seconds_left == 40.0  # 80 steps at 2 a second
    ended.folder.mkdir(parents=True)
    (ended.folder / "failed.json").write_text(json.dumps({"at": time.time(), "why": "first\nthe reason"}))
    assert status_of(ended).state == FAILED
    assert status_of(ended).note == "the reason"
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table_of([waiting, done, running, ended]))
    claim.release()
    text = captured.get()
    assert "1 done, 1 running, 1 waiting, 1 failed" in text
    (line,) = [line for line in text.splitlines() if running.name in line]
    assert "120" in line
    assert "50.0 %" in line
    assert "0:00:40" in line


def test_status_of_minutes(cell: Cell, tmp_path: Path) -> None:
    """What the clock of the run says, which goes on after a break; SB3's begins anew, and counts evaluations."""
    (one,) = cells_with(cell, tmp_path, 1)
    one = replace(one, settings=replace(one.settings, minutes=(10.0,)))
    run = running_run(one, 120)
    rows = "time/total_timesteps,time/time_elapsed,time/training_seconds\n120,7,450.0\n120,7,\n"
    (run / "progress.csv").write_text(rows)
    claim = Claim.take(one.folder, lambda: None)
    assert claim is not None
    found = status_of(one)
    claim.release()
    assert (found.steps, found.fraction, found.seconds_left) == (120, 0.75, 150.0)


def test_what_counts_as_finished(cell: Cell, tmp_path: Path) -> None:
    """The manifest says so, and the last model is whole."""
    one, two = cells_with(cell, tmp_path, 2)
    run = finished_run(one)
    assert is_finished(one.folder)
    content = (run / "Points.zip").read_bytes()
    (run / "Points.zip").write_bytes(content[:20])
    assert not is_finished(one.folder)
    (run / "Points.zip").unlink()
    assert not is_finished(one.folder)
    running_run(two, 50)
    assert not is_finished(two.folder)


def test_begins_anew_or_goes_on(cell: Cell, tmp_path: Path) -> None:
    (one,) = cells_with(cell, tmp_path, 1)
    begin = ["--algo", "mt_sac", "-f", str(one.folder), "-tb", str(one.folder / "tensorboard")]
    assert next_arguments(one.folder, ["--algo", "mt_sac"], ["-P"]) == begin
    run = running_run(one, 50)
    assert next_arguments(one.folder, ["--algo", "mt_sac"], ["-P"]) == begin
    (run / "checkpoints" / "000000000040").mkdir(parents=True)
    assert next_arguments(one.folder, ["--algo", "mt_sac"], ["-P"]) == ["--resume", str(run), "-P"]
    clear_beginning(one.folder, one.arguments())
    assert run_of(one.folder) == run
    (run / "checkpoints" / "000000000040").rmdir()
    clear_beginning(one.folder, one.arguments())
    assert run_of(one.folder) is None


def test_a_finished_run_is_never_removed(cell: Cell, tmp_path: Path) -> None:
    """Nor is one finished whose model may be that of a pause: its checkpoints go when the last model is written."""
    (one,) = cells_with(cell, tmp_path, 1)
    run = finished_run(one)
    checkpoint = run / "checkpoints" / "000000000040"
    checkpoint.mkdir(parents=True)
    assert not is_finished(one.folder)
    checkpoint.rmdir()
    assert is_finished(one.folder)
    (run / "Points.zip").unlink()
    with pytest.raises(FileError, match=r"is finished, but its Points\.zip is missing: put it back, or remove"):
        clear_beginning(one.folder, one.arguments())
    assert (run / "evaluations.csv").exists()


def test_a_run_that_no_grid_started_is_left_alone(cell: Cell, tmp_path: Path) -> None:
    """As of grid --commands, which claims nothing: it locks its checkpoints."""
    (one,) = cells_with(cell, tmp_path, 1)
    run = running_run(one, 50)
    assert not is_written(one.folder)
    assert status_of(one).state == WAITING
    checkpoints = CheckpointFolder(run / "checkpoints", 1)
    assert is_written(one.folder)
    found = status_of(one)
    assert (found.state, found.note) == (RUNNING, "a process of no grid")
    checkpoints.close()
    assert not is_written(one.folder)
    CheckpointFolder(run / "checkpoints", 1).close()  # looking has left no lock


def test_a_run_that_a_callback_ended_is_finished(cell: Cell, tmp_path: Path) -> None:
    (one,) = cells_with(cell, tmp_path, 1)
    run = finished_run(one)
    text = (run / "run.json").read_text()
    assert '"finished"' in text
    (run / "checkpoints" / "000000000040").mkdir(parents=True)
    assert not is_finished(one.folder)
    (run / "run.json").write_text(text.replace('"finished"', '"ended early"'))
    assert is_finished(one.folder)


def test_logs_of_others_stay(cell: Cell, tmp_path: Path) -> None:
    """Those of TensorBoard too when a run goes on; when it begins anew they are of the one before."""
    (one,) = cells_with(cell, tmp_path, 1)
    checkpoint = running_run(one, 50) / "checkpoints" / "000000000040"
    tensorboard = one.folder / "tensorboard" / "mt_sac_1"
    of_others = [one.folder / "wandb" / "offline-run-20260101_101010-ab", one.folder / "runs" / "Points__mt_sac__0__17"]
    for path in (checkpoint, tensorboard, *of_others):
        path.mkdir(parents=True)
    clear_beginning(one.folder, one.arguments())
    assert tensorboard.is_dir()
    assert all(path.is_dir() for path in of_others)
    checkpoint.rmdir()
    clear_beginning(one.folder, one.arguments())
    assert not tensorboard.exists()
    assert all(path.is_dir() for path in of_others)


def test_last_lines_and_rows(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("#### one\nold\n#### two\nfirst\n\nsecond\n")
    assert last_lines(tmp_path, 5) == ["first", "second"]
    assert last_lines(tmp_path, 1) == ["second"]
    assert last_lines(tmp_path / "none", 1) == []
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" + "".join(f"{n},{2 * n}\n" for n in range(1000)) + "7,")
    assert last_rows(table, 100)[-1] == {"a": "999", "b": "1998"}
    assert len(last_rows(table)) == 1000
    assert last_rows(tmp_path / "none.csv") == []
