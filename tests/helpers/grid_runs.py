"""A grid of tiny runs on point masses, and the same runs by ``sb3-softmod train``, for the tests of grids."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from zoo_runs import assert_same_training

from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.file import read_grid
from sb3_softmod.grid.folder import run_of

HELPERS = Path(__file__).parent
STEPS = 200
#: Seconds after which a grid hangs.
PATIENCE = 600

_PARAMETERS = {
    "Points": {
        "n_timesteps": STEPS,
        "n_envs": 2,
        "batch_size": 8,
        "buffer_size": 2000,
        "learning_starts": 20,
        "train_freq": 2,
    },
    "policies": {"SoftModPolicy": {"embedding_dim": 8, "module_dim": 8}, "MTMlpPolicy": {"net_arch": [8, 8]}},
}


def write_grid(
    folder: Path,
    algos: Sequence[str] = ("softmod_shallow", "mt_sac"),
    seeds: Any = "0-1",
    params: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Path:
    """Write a file of a grid, whose runs go beside it.

    :param params: hyperparameters that are not those of all
    :param keys: further ones of the file
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "points.yml").write_text(yaml.safe_dump(_PARAMETERS))
    train: dict[str, Any] = {
        "conf-file": "points.yml",
        "gym-packages": "grid_points",
        "eval-freq": 100,
        "eval-episodes": 1,
        "save-freq": 40,
        "env-kwargs": {"horizon": 10},
    }
    if params:
        train["params"] = dict(params)
    content = {"algos": list(algos), "envs": "Points", "seeds": seeds, "train": train, "runs": "runs", **keys}
    path = folder / "grid.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def once(steps: int, folder: Path, how: str) -> dict[str, Any]:
    """Hyperparameters with a callback of :class:`grid_points.Once`."""
    return {"callback": [{"grid_points.Once": {"steps": steps, "folder": str(folder), "how": how}}]}


def environment() -> dict[str, str]:
    """Of processes that know the set."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(HELPERS)]),
        "OMP_NUM_THREADS": "1",
    }


def start(*arguments: object) -> subprocess.Popen[str]:
    """``sb3-softmod`` in a process of its own; its output is one stream."""
    command = [sys.executable, "-m", "sb3_softmod.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def call(*arguments: object) -> tuple[int, str]:
    """Its exit code and output."""
    process = start(*arguments)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def cells_of(path: Path) -> list[Cell]:
    return read_grid(path).cells


def processes_of(cell: Cell) -> list[int]:
    """The processes that have trained a cell, by its log."""
    log = cell.folder / "train.log"
    text = log.read_text() if log.exists() else ""
    return [int(pid) for pid in re.findall(r"^#### .*, process (\d+):", text, re.MULTILINE)]


def attempts(cell: Cell) -> int:
    """How many processes have trained a cell."""
    return len(processes_of(cell))


def train_arguments(cell: Cell, folder: Path) -> list[str]:
    """Of ``sb3-softmod``, for the same run in another folder."""
    words = shlex.split(cell.command().replace(str(cell.folder), str(folder)))
    return words[words.index("train") :]


def train_alone(cell: Cell, folder: Path) -> Path:
    """The same run by ``sb3-softmod train``; its folder."""
    code, output = call(*train_arguments(cell, folder))
    assert code == 0, output
    run = run_of(folder)
    assert run is not None
    return run


def assert_same(run: Path | None, other: Path | None) -> None:
    """All that was learned and measured is the same, to the bit."""
    assert run is not None
    assert other is not None
    assert_same_training(run, other, "Points")
    with zipfile.ZipFile(run / "Points.zip") as file:
        assert file.testzip() is None
