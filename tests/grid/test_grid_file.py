"""The file of a grid, the identity of its cells, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grid_runs import cells_of, write_grid

from sb3_softmod import ConfigurationError
from sb3_softmod.cli import main
from sb3_softmod.grid.cells import Resources
from sb3_softmod.grid.file import grid_of_options, parse_memory, parse_seeds, read_grid
from sb3_softmod.grid.resources import Capacity, memory_of, refuse_misfits


def changed(path: Path, **keys: Any) -> Path:
    content = yaml.safe_load(path.read_text())
    content["train"] |= keys.pop("train", {})
    path.write_text(yaml.safe_dump(content | keys))
    return path


def test_cells(tmp_path: Path) -> None:
    cells = cells_of(write_grid(tmp_path, seeds="0-1,5"))
    assert [(cell.method, cell.seed) for cell in cells] == [
        (method, seed) for method in ("softmod_shallow", "mt_sac") for seed in (0, 1, 5)
    ]
    assert len({cell.name for cell in cells}) == 6
    cell = cells[0]
    assert cell.folder.parent == tmp_path / "runs" / "softmod_shallow" / "Points"
    assert cell.folder.name.startswith("seed-0-")
    assert cell.identity["budget"] == {"env_steps": 200}
    assert cell.identity["hyperparams"]["policy_kwargs"]["module_dim"] == 8
    words = shlex.split(cell.command())
    words = words[words.index("sb3-softmod") :]
    assert words[:7] == ["sb3-softmod", "train", "--algo", "softmod_shallow", "--env", "Points", "--seed"]
    assert words[words.index("--conf-file") + 1] == str(tmp_path / "points.yml")
    assert "horizon:10" in words


def test_identity(tmp_path: Path) -> None:
    """It changes with what changes the numbers, wherever that is written, and with nothing else."""
    path = write_grid(tmp_path, algos=["mt_sac"], seeds=0)
    (before,) = cells_of(path)
    settings = tmp_path / "points.yml"
    settings.write_text("# A comment\n" + settings.read_text())
    (cell,) = cells_of(changed(path, resources={"threads": 4, "gpus": 0.5}, retries=0, train={"save-freq": 80}))
    assert cell.name == before.name
    names = {before.name}
    for train in (
        {"eval-episodes": 2},
        {"params": {"gamma": 0.9}},
        {"n-timesteps": 100},
        {"env-kwargs": {"horizon": 9}},
    ):
        (cell,) = cells_of(changed(path, train=train))
        names.add(cell.name)
    settings.write_text(settings.read_text().replace("batch_size: 8", "batch_size: 10"))
    (cell,) = cells_of(path)
    names.add(cell.name)
    assert len(names) == 6


def test_same_cell_in_two_blocks(tmp_path: Path) -> None:
    path = write_grid(tmp_path, seeds="0-1")
    block = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump([block, {**block, "seeds": "1-2"}]))
    assert sorted((cell.method, cell.seed) for cell in cells_of(path)) == [
        (method, seed) for method in ("mt_sac", "softmod_shallow") for seed in (0, 1, 2)
    ]


def test_minutes(tmp_path: Path) -> None:
    path = write_grid(tmp_path, algos=["mt_sac"], seeds=0)
    (one,) = cells_of(changed(path, train={"minutes": [2]}))
    (two,) = cells_of(changed(path, train={"minutes": [1, 2]}))
    assert one.identity["budget"] == {"minutes": 2}
    assert two.identity["budget"] == {"minutes": (1, 2)}  # which has another model to save


def test_resources() -> None:
    assert Resources().arguments() == ["--num-threads", "1", "--device", "cpu", "--vec-env", "dummy"]
    many = ["--num-threads", "3", "--device", "cuda", "--vec-env", "subproc"]
    assert Resources(threads=5, gpus=0.5).arguments() == many
    assert Resources(threads=5).workers == 2


def test_commands_keep_to_the_threads(tmp_path: Path) -> None:
    """Also as a job array runs them: envs get the processes, and torch the threads, that they have in a grid."""
    (cell,) = cells_of(changed(write_grid(tmp_path, algos=["mt_sac"], seeds=0), resources={"threads": 5}))
    (tmp_path / "sb3-softmod").write_text('#!/bin/sh\necho "$SB3_SOFTMOD_WORKERS $OMP_NUM_THREADS $1 $2 $3"\n')
    (tmp_path / "sb3-softmod").chmod(0o755)
    (tmp_path / "cells.txt").write_text(cell.command() + "\n")
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    said = subprocess.run(
        ["sh", "-c", 'eval exec $(sed -n "1p" cells.txt)'],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert said == "2 3 train --algo mt_sac\n"


def test_seeds_and_sizes() -> None:
    assert parse_seeds("f", "0-3,7, 2") == [0, 1, 2, 3, 7]
    assert parse_seeds("f", 4) == [4]
    assert parse_seeds("f", [3, "5-6"]) == [3, 5, 6]
    assert [parse_memory("f", text) for text in ("4G", "1.5GB", "800m", 1000)] == [
        4 * 10**9,
        15 * 10**8,
        8 * 10**8,
        1000,
    ]


def test_memory(tmp_path: Path) -> None:
    """The estimate grows with the replay buffer by the bytes of its rows, and a tenth of those."""
    path = write_grid(tmp_path, algos=["mt_sac"], seeds=0)
    (small,) = cells_of(path)
    (large,) = cells_of(changed(path, train={"params": {"buffer_size": 1_002_000}}))
    # 2 numbers of a state, 2 of an action, reward and index of the next state, 4 bytes each.
    assert memory_of(large) - memory_of(small) == pytest.approx(1.1 * 24 * 1_000_000, abs=1)
    (given,) = cells_of(changed(path, resources={"memory": "2G"}))
    assert memory_of(given) == 2 * 10**9


def test_memory_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached pages of files are there for a run: the kernel gives them back."""
    says = {
        "/proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "4000000000\n",
        "/sys/fs/cgroup/memory.current": "3000000000\n",
        "/sys/fs/cgroup/memory.stat": "anon 500000000\nactive_file 7\ninactive_file 2000000000\n",
    }
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: says.get(str(path)) or read_text(path))
    assert Capacity.of_this_machine().memory == 3e9


def test_misfits(tmp_path: Path) -> None:
    cells = cells_of(changed(write_grid(tmp_path, algos=["mt_sac"]), resources={"threads": 2, "memory": "2G"}))
    refuse_misfits(cells, [Capacity(1, 8e9, ()), Capacity(2, 2e9, ())], "the nodes")
    for place in (Capacity(1, 8e9, ()), Capacity(8, 1.9e9, ())):
        with pytest.raises(ConfigurationError) as error:
            refuse_misfits(cells, [place], "this machine")
        assert f"{cells[0].name} needs 2 threads, 2.0 GB; {cells[1].name} needs" in str(error.value)
        assert f"which fit nowhere: this machine has {place}. Nothing was started." in str(error.value)
    (cell, _) = cells_of(changed(tmp_path / "grid.yml", resources={"gpus": 0.5}))
    with pytest.raises(ConfigurationError, match=r"needs 1 threads, .* GB, 0.5 GPUs"):
        refuse_misfits([cell], [Capacity(8, 1e12, ())], "this machine")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"algo": "x"}, "unknown key 'algo': did you mean 'algos'?"),
        ({"algos": ["softmod_deap"]}, "Unknown algo 'softmod_deap': did you mean 'softmod_deep'"),
        ({"envs": ["MT51"]}, "Unknown env 'MT51': did you mean"),
        ({"envs": []}, "envs is missing."),
        ({"algos": 3}, "algos must be names, not 3."),
        ({"seeds": "a-b"}, "seeds must be numbers such as 3, [0, 1, 2], 0-9 or 0-4,7, not 'a-b'."),
        ({"seeds": "5-2"}, "seeds '5-2' must go up"),
        ({"retries": -1}, "retries must be at least 0, not -1."),
        ({"resources": {"thread": 1}}, "resources: unknown key 'thread': did you mean 'threads'?"),
        ({"resources": {"threads": 0}}, "threads must be at least 1, not 0."),
        ({"resources": {"gpus": 1.5}}, "gpus must be a fraction of one, or a whole number, not 1.5."),
        ({"resources": {"memory": "lots"}}, "memory must be a size such as 4G or 800M, not 'lots'."),
        ({"resources": {"memory": "4GiB"}}, "memory must be a size such as 4G or 800M, not '4GiB'."),
        ({"shared": "maybe"}, "shared must be True or False, not 'maybe'."),
        (
            {"train": {"n-timestops": 9}},
            "Unknown option '--n-timestops' of sb3-softmod train: did you mean '--n-timesteps'",
        ),
        ({"train": {"seed": 9}}, "--seed is no option of train in a grid: seeds says it."),
        ({"train": {"see": 9}}, "--see is no option of train in a grid: seeds says it."),
        ({"train": {"device": "cuda"}}, "--device is no option of train in a grid: resources: gpus says it."),
        ({"train": {"params": {"gama": 0.9}}}, "Unknown hyperparameter 'gama': did you mean 'gamma'?"),
        ({"train": {"conf-file": "no.yml"}}, "There is no file of hyperparameters 'no.yml'"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = changed(write_grid(tmp_path, algos=["mt_sac"], seeds=0), **keys)
    with pytest.raises(ConfigurationError) as error:
        read_grid(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(tmp_path / "runs")]
    options = ["--conf-file", "laptop", "-n", "100", "-params", "gamma:0.9"]
    line = ["grid", "--algos", "mt_sac", "softmod_shallow", "--envs", "MT3", "--seeds", "0-1", *where, *options]
    assert main([*line, "--threads", "2", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(
        "env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 SB3_SOFTMOD_WORKERS=1 "
        "sb3-softmod train --algo mt_sac --env MT3 --seed 0 --num-threads 1 --device cpu --vec-env subproc "
        f"--conf-file laptop -n 100 -params gamma:0.9 -f {tmp_path}/runs/mt_sac/MT3/seed-0-"
    )
    assert main([*line, "--status"]) == 0
    table = capsys.readouterr().out
    assert "0 done, 0 running, 4 waiting, 0 failed" in table
    assert re.search(r"^cell +state +steps +success +left +$", table, re.MULTILINE)  # whole, also in a file
    assert not (tmp_path / "runs").exists()
    for wrong, message in (
        (["grid"], "Name a file, or say --algos too"),
        (["grid", "--algos", "mt_sac"], "Name a file, or say --envs too"),
        (["grid", "no.yml"], "Cannot read no.yml"),
        (["grid", "no.yml", "--threads", "2"], "no.yml says what the grid is: write --threads into it."),
        (["grid", "no.yml", "-n", "3"], "no.yml says what the grid is: write -n into it."),
        ([*line, "--seed", "3"], "the command line: --seed is no option of train in a grid: seeds says it."),
        ([*line, "--memory", "none"], "the command line: memory must be a size"),
        ([*line, "--track"], "--track needs a package that is not installed: pip install wandb"),
    ):
        assert main(wrong) == 2
        assert f"sb3-softmod: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--conf", "points.yml"], ["--conf=points.yml"], ["-co", "points.yml"]])
def test_abbreviated_options(option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that name a file too, a run in another working folder finds it."""
    write_grid(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--gym-packages", "grid_points", *option]
    (cell,) = grid_of_options(["mt_sac"], ["Points"], "0", options, {}, tmp_path / "runs").cells
    assert str(tmp_path / "points.yml") in shlex.split(cell.command())


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are grouped by method and set, and one that goes on is the same run."""
    from sb3_softmod.grid.process import Order
    from sb3_softmod.zoo import train

    monkeypatch.setattr(train, "find_spec", lambda name: object())
    cell, _ = cells_of(changed(write_grid(tmp_path, algos=["mt_sac"]), train={"track": True}))
    words = shlex.split(cell.command())
    assert words[words.index("--wandb-group") + 1] == "mt_sac/Points"
    order = Order.of(cell)
    assert order.environment["WANDB_RUN_ID"] == cell.name.replace("/", "-")
    assert order.environment["WANDB_RESUME"] == "allow"


def test_identity_is_json(tmp_path: Path) -> None:
    """Whatever Python code a file of settings is."""
    settings = tmp_path / "mine.py"
    settings.write_text(
        "import torch\n"
        "hyperparams = {'Points': dict(n_timesteps=9, n_envs=2, batch_size=4, "
        "policy_kwargs=dict(activation_fn=torch.nn.Tanh))}\n"
    )
    path = write_grid(tmp_path / "grid", algos=["mt_sac"], seeds=0)
    (cell,) = cells_of(changed(path, train={"conf-file": str(settings)}))
    assert json.loads(json.dumps(cell.identity))["hyperparams"]["policy_kwargs"]["activation_fn"] == (
        "torch.nn.modules.activation.Tanh"
    )
