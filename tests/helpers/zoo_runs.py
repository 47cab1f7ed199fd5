"""Tiny runs of the command line, for the tests of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
