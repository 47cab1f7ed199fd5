"""Grids on this machine, with real processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grid_runs import (
    PATIENCE,
    assert_same,
    attempts,
    call,
    cells_of,
    environment,
    once,
    start,
    train_alone,
    train_arguments,
    write_grid,
)

from sb3_softmod.cli import main
from sb3_softmod.grid.folder import failure_of, is_finished, run_of
from sb3_softmod.runs.run import find_runs


def wait_for(condition: Any, process: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def test_failures_and_deaths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is killed goes on from its checkpoint, exactly; one that always fails is given up, and said."""
    path = write_grid(tmp_path, params=once(130, tmp_path, "SIGKILL"), algos=["mt_sac"], seeds="0", retries=1)
    bad = path.read_text().replace("SIGKILL", "raise")
    good = path.read_text()
    path.write_text("".join("- " + "\n  ".join(text.splitlines()) + "\n" for text in (good, bad)))
    killed, failing = cells_of(path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert main(["grid", str(path)]) == 2
    said = capsys.readouterr()
    assert set(said.out.splitlines()) >= {
        f"{killed.name}: finished",
        f"{failing.name}: failed: ZeroDivisionError: on purpose",
    }
    assert f"1 of 2 cells failed; the others are finished.\n{failing.name}\n" in said.err
    assert said.err.endswith("    ZeroDivisionError: on purpose\n")
    assert attempts(killed) == attempts(failing) == 2
    assert "train --resume" in (killed.folder / "train.log").read_text()
    assert main(train_arguments(from_start(killed), tmp_path / "alone")) == 0
    assert_same(run_of(killed.folder), run_of(tmp_path / "alone"))
    failure = failure_of(failing.folder)
    assert failure is not None
    assert str(failure["why"]).endswith("ZeroDivisionError: on purpose")
    capsys.readouterr()
    assert main(["grid", str(path), "--status"]) == 0
    said_now = capsys.readouterr().out
    assert "1 done, 0 running, 0 waiting, 1 failed" in said_now
    assert f"{failing.name} failed:" in said_now
    runs, _ = find_runs(tmp_path / "runs")
    assert sorted(run.manifest["status"] for run in runs) == ["failed", "finished"]
    assert main(["grid", str(path), "--commands"]) == 0
    assert f" sb3-softmod train --resume {run_of(failing.folder)} " in capsys.readouterr().out


def from_start(cell: Any) -> Any:
    """The cell as if it had no folder yet, so that its command begins it."""
    return replace(cell, root=cell.root / "none")


@pytest.mark.slow
def test_two_drivers_and_signals(tmp_path: Path) -> None:
    """Each cell is trained once; a driver that is told to end leaves checkpoints, from which the other goes on."""
    path = write_grid(tmp_path, params=once(130, tmp_path, "wait"), algos=["mt_sac"], seeds="0-3")
    cells = cells_of(path)
    first, second = start("grid", path), start("grid", path)
    wait_for(lambda: len(list(tmp_path.glob("happened-*"))) >= 2, first)
    _, output = call("grid", path, "--status")
    assert "0 done, " in output
    assert ", 0 failed" in output
    first.send_signal(signal.SIGTERM)
    time.sleep(2)
    (tmp_path / "go").touch()
    output, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 128 + signal.SIGTERM, output
    assert "Ended by SIGTERM; every run has its checkpoint." in output
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    for cell in cells:
        assert is_finished(cell.folder)
        assert len(list(cell.folder.glob("*/Points_*"))) == 1
        said = (cell.folder / "train.log").read_text()
        assert said.count("train --algo") == 1
    _, output = call("grid", path)
    assert output == "All 4 cells are finished.\n"


@pytest.mark.slow
def test_driver_that_is_killed(tmp_path: Path) -> None:
    """Its runs write checkpoints and end, and the same command goes on."""
    path = write_grid(tmp_path, params=once(130, tmp_path, "wait"), algos=["mt_sac"], seeds="0")
    (cell,) = cells_of(path)
    driver = start("grid", path)
    wait_for(lambda: (tmp_path / "happened-0").exists(), driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    (tmp_path / "go").touch()
    code, output = call("grid", path)
    assert code == 0, output
    assert attempts(cell) == 2
    assert_same(run_of(cell.folder), train_alone(from_start(cell), tmp_path / "alone"))
