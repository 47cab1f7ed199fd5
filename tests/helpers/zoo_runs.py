"""Tiny runs of the command line, for the tests of the zoo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import torch as th
import yaml

from sb3_softmod import MultiTaskSAC
from sb3_softmod.cli import main

#: Everything in this process, one episode of each task in an evaluation.
TINY = ["--vec-env", "dummy", "--eval-episodes", "1", "--num-threads", "1", "--verbose", "0"]
TINY_ENV = ["horizon:5"]
#: With one env for each task of MT3, and two samples of each in a batch.
TINY_PARAMS = ["n_envs:3", "batch_size:6", "learning_starts:30", "buffer_size:600", "train_freq:5"]


def train(
    folder: Path,
    *options: str,
    algo: str = "softmod_deep",
    env: str = "MT3",
    steps: int = 150,
    env_kwargs: Sequence[str] = (),
    params: Sequence[str] = (),
) -> int:
    """``sb3-softmod train`` with the laptop's settings, made small; the exit status."""
    command = f"train --algo {algo} --env {env} -f {folder} -n {steps} --conf-file laptop --seed 3".split()
    kwargs = ["--env-kwargs", *TINY_ENV, *env_kwargs, "-params", *TINY_PARAMS, *params]
    return main([*command, "--eval-freq", "75", *TINY, *options, *kwargs])


MT3 = ["reach-v3", "drawer-close-v3", "button-press-topdown-v3"]


def run_of(folder: Path, algo: str = "softmod_deep", env: str = "MT3", number: int = 1) -> Path:
    return folder / algo / f"{env}_{number}"


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def config(run: Path) -> dict[str, Any]:
    return yaml.load((run / run.name.rpartition("_")[0] / "config.yml").read_text(), yaml.UnsafeLoader)


def assert_same_training(run: Path, other: Path, task_set: str) -> None:
    """All that two runs have learned and logged is the same, to the bit, but for times."""
    for name in (f"{task_set}.zip", "best_model.zip"):
        ours, theirs = (MultiTaskSAC.load(each / name) for each in (run, other))
        assert ours.num_timesteps == theirs.num_timesteps
        th.testing.assert_close(ours.get_parameters(), theirs.get_parameters(), rtol=0, atol=0)
        assert th.equal(ours.log_ent_coef, theirs.log_ent_coef)  # type: ignore[arg-type]
    for name in ("progress.csv", "evaluations.csv", "0.monitor.csv"):
        skipped = int(name == "0.monitor.csv")  # its first line is no table
        table, other_table = (pandas.read_csv(each / name, skiprows=skipped) for each in (run, other))
        columns = [column for column in table.columns if column not in ("t", "time/fps", "time/time_elapsed")]
        pandas.testing.assert_frame_equal(table[columns], other_table[columns])
        assert len(table) > 1
