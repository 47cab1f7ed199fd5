"""Grids on a real Ray: two nodes on this machine, as processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
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
    processes_of,
    start,
    train_alone,
    write_grid,
)

from sb3_softmod.cli import main
from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.folder import is_finished, run_of

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without room for runs, and two nodes with room for two each."""
    from ray.cluster_utils import Cluster

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, cpus: int = 2) -> Any:
    return cluster.add_node(num_cpus=cpus, memory=8 * 10**9)


def wait_for(condition: Any, process: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def marks(folder: Path) -> list[Path]:
    return sorted(folder.glob("happened-*"))


def checkpointed(cell: Cell) -> bool:
    run = run_of(cell.folder)
    return run is not None and any((run / "checkpoints").glob("[0-9]*"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """The runs of the grid by ``sb3-softmod train``, of method and seed."""
    folder = tmp_path_factory.mktemp("alone")
    cells = cells_of(write_grid(folder))
    return {(cell.method, cell.seed): train_alone(cell, folder / f"alone-{n}") for n, cell in enumerate(cells)}


@pytest.mark.parametrize("shared", [True, False])
def test_equals_train(shared: bool, cluster: Any, alone: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    """With a file system that the nodes share, and without."""
    for _ in range(2):
        add_node(cluster)
    path = write_grid(tmp_path, shared=shared)
    code, output = call("grid", path, "--ray", cluster.address)
    assert code == 0, output
    assert output.endswith("All 4 cells are finished.\n")
    for cell in cells_of(path):
        assert is_finished(cell.folder)
        assert attempts(cell) == 1
        assert_same(run_of(cell.folder), alone[cell.method, cell.seed])


@pytest.mark.parametrize("shared", [True, False])
def test_node_that_dies(shared: bool, cluster: Any, alone: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    """Its runs go on from their checkpoints on the other node, and end as if nothing had happened."""
    node = add_node(cluster)
    path = write_grid(tmp_path, params=once(130, tmp_path, "wait"), algos=["mt_sac"], shared=shared)
    driver = start("grid", path, "--ray", cluster.address)
    cells = cells_of(path)
    wait_for(lambda: len(marks(tmp_path)) == 2 and all(map(checkpointed, cells)), driver)
    add_node(cluster)
    cluster.remove_node(node, allow_graceful=False)
    for cell in cells:  # which die with their node; here they would live on until their worker has noticed its end
        os.kill(processes_of(cell)[-1], signal.SIGKILL)
    (tmp_path / "go").touch()
    output, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, output
    for cell in cells:
        assert attempts(cell) == 2
        assert "train --resume" in (cell.folder / "train.log").read_text()
        assert_same(run_of(cell.folder), alone[cell.method, cell.seed])


def test_driver_that_is_killed(cluster: Any, tmp_path: Path) -> None:
    """The same command again trains nothing twice, and loses nothing."""
    add_node(cluster)
    path = write_grid(tmp_path, params=once(130, tmp_path, "wait"), seeds="0-2", algos=["mt_sac"])
    cells = cells_of(path)
    (tmp_path / "happened-0").touch()  # the first run goes through
    driver = start("grid", path, "--ray", cluster.address)
    wait_for(lambda: is_finished(cells[0].folder) and len(marks(tmp_path)) == 3, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    (tmp_path / "go").touch()
    code, output = call("grid", path, "--ray", cluster.address)
    assert code == 0, output
    assert attempts(cells[0]) == 1
    for cell in cells[1:]:
        assert is_finished(cell.folder)
        assert attempts(cell) <= 2
        said = (cell.folder / "train.log").read_text()
        assert said.count("train --algo") == 1  # begun once: the second attempt goes on


def test_failing_and_impossible_cells(cluster: Any, tmp_path: Path) -> None:
    add_node(cluster)
    path = write_grid(tmp_path, params=once(60, tmp_path, "raise"), seeds="0", algos=["mt_sac"], retries=1)
    (failing,) = cells_of(path)
    blocks = path.read_text()
    good = write_grid(tmp_path / "good", seeds="0", algos=["mt_sac"])
    both = tmp_path / "both.yml"
    both.write_text(_as_blocks(blocks, good.read_text().replace("points.yml", str(tmp_path / "points.yml"))))
    code, output = call("grid", both, "--ray", cluster.address)
    assert code == 2
    assert "1 of 2 cells failed; the others are finished." in output
    assert "ZeroDivisionError: on purpose" in output
    assert attempts(failing) == 2
    code, output = call("grid", both, "--status")
    assert "1 done, 0 running, 0 waiting, 1 failed" in output
    assert "ZeroDivisionError: on purpose" in output

    large = write_grid(tmp_path / "large", seeds="0", algos=["mt_sac"], resources={"memory": "9G"})
    code, output = call("grid", large, "--ray", cluster.address)
    assert code == 2
    assert "needs 1 threads, 9.0 GB, which fit nowhere: the 2 nodes of the Ray cluster have" in output
    assert not (tmp_path / "large" / "runs").exists()


def _as_blocks(*texts: str) -> str:
    return "".join("- " + "\n  ".join(text.splitlines()) + "\n" for text in texts)


def test_signal_to_the_driver(cluster: Any, tmp_path: Path) -> None:
    """Without a shared file system too, the checkpoints are at home when it ends."""
    add_node(cluster)
    path = write_grid(tmp_path, params=once(130, tmp_path, "wait"), seeds="0", algos=["mt_sac"], shared=False)
    (cell,) = cells_of(path)
    driver = start("grid", path, "--ray", cluster.address)
    wait_for(lambda: marks(tmp_path), driver)
    driver.send_signal(signal.SIGTERM)
    time.sleep(2)
    (tmp_path / "go").touch()
    output, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 128 + signal.SIGTERM, output
    run = run_of(cell.folder)
    assert run is not None
    assert sorted(int(each.name) for each in (run / "checkpoints").glob("[0-9]*"))[-1] >= 130
    code, output = call("grid", path, "--ray", cluster.address)
    assert code == 0, output
    assert is_finished(cell.folder)


def test_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said at once."""
    path = write_grid(tmp_path, seeds="0", algos=["mt_sac"])
    for address, message in (
        ("auto", "there is no Ray cluster"),
        ("127.0.0.1:1", "there is no Ray cluster"),
        ("nowhere", "there is no Ray cluster"),
        ("ray://127.0.0.1:10001", "the driver of a grid belongs to the cluster"),
    ):
        assert main(["grid", str(path), "--ray", address]) == 2
        assert f"--ray {address}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
