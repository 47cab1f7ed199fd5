"""One cell of a grid: what it is, what it takes, and where it is."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sb3_softmod.envs.worker_pool import WORKERS
from sb3_softmod.grid.folder import next_arguments
from sb3_softmod.zoo.settings import RunSettings, settings_of


@dataclass(frozen=True)
class Resources:
    """What a run takes.

    :param threads: at most so many cores are busy at any time; with one, the envs are stepped by the process that
        learns, else a half of them by their own processes
    :param memory: bytes; None: as estimated
    :param gpus: a fraction shares one; with none a run learns on the CPU
    """

    threads: int = 1
    memory: int | None = None
    gpus: float = 0.0

    @property
    def workers(self) -> int:
        """The processes that step the envs."""
        return self.threads // 2

    def arguments(self) -> list[str]:
        """Of ``train``; they leave its numbers as they are."""
        stepping = ["--vec-env", "subproc" if self.workers else "dummy"]
        device = "cuda" if self.gpus else "cpu"
        return ["--num-threads", str(self.threads - self.workers), "--device", device, *stepping]

    def environment(self) -> dict[str, str]:
        """Variables for what has no option."""
        threads = str(self.threads - self.workers)
        return {
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
            WORKERS: str(max(self.workers, 1)),
        }


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    :param method: its name in the registry
    :param seed: of everything
    :param root: the folder of the grid
    :param options: of ``train``, without those of method, tasks, seed, folders and resources
    :param resources: that it takes
    :param retries: how often it is started again when it fails
    :param settings: what its command line comes to
    """

    method: str
    seed: int
    root: Path
    options: tuple[str, ...]
    resources: Resources
    retries: int
    settings: RunSettings

    @classmethod
    def make(
        cls,
        method: str,
        task_set: str,
        seed: int,
        root: Path,
        options: Sequence[str],
        resources: Resources,
        retries: int,
    ) -> Cell:
        """Read its command line.

        :raises ConfigurationError: for whatever ``train`` would refuse
        """
        arguments = ["--algo", method, "--env", task_set, "--seed", str(seed), *options]
        return cls(method, seed, root, tuple(options), resources, retries, settings_of(arguments))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes it another run than any other: method, tasks, seed, budget and settings, whatever file they came
        from; not what leaves the numbers as they are, such as threads and devices."""
        settings = self.settings
        minutes = settings.minutes if len(settings.minutes) > 1 else sum(settings.minutes)
        return {
            "method": self.method,
            "task_set": settings.task_set,
            "seed": self.seed,
            "budget": {"minutes": minutes} if minutes else {"env_steps": settings.steps},
            "hyperparams": settings.hyperparams,
            "options": settings.options,
        }

    @cached_property
    def name(self) -> str:
        """Its folder below that of the grid: method, set, seed, and a digest of its identity."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.group}/seed-{self.seed}-{digest}"

    @property
    def group(self) -> str:
        """What it shares with the other seeds."""
        return f"{self.method}/{self.settings.task_set}"

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.root / self.name

    def arguments(self) -> list[str]:
        """Of ``train``, but for the folders, see :func:`.next_arguments`."""
        track = ["--wandb-group", self.group] if "--track" in self.options else []
        of_cell = ["--algo", self.method, "--env", self.settings.task_set, "--seed", str(self.seed)]
        return [*of_cell, *self.resources.arguments(), *track, *self.options]

    def command(self) -> str:
        """The command line that begins it, or goes on with it."""
        arguments = next_arguments(self.folder, self.arguments(), self.resources.arguments())
        # By env, because a shell that is given the line by exec takes no assignment before the command.
        variables = [f"{name}={value}" for name, value in self.resources.environment().items()]
        return shlex.join(["env", *variables, "sb3-softmod", "train", *arguments])
