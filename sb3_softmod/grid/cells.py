"""One cell of a grid: what it is, where it is, and how far it has come. What is on the disk says it all."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import read_json
from sb3_softmod.runs.run import MANIFEST
from sb3_softmod.saving.checkpoints import FOLDER as CHECKPOINTS
from sb3_softmod.zoo.settings import RunSettings, settings_of

#: In the folder of a cell: what its process said, and why it was given up.
LOG, FAILURE, IDENTITY = "train.log", "failed.json", "cell.json"
#: A line of the log that begins so stands above what one attempt said.
ATTEMPT = "#### "


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
        stepping = [] if self.workers else ["--vec-env", "dummy"]
        device = "cuda" if self.gpus else "cpu"
        return ["--num-threads", str(self.threads - self.workers), "--device", device, *stepping]


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
        cls, method: str, task_set: str, seed: int, root: Path, options: Sequence[str], resources: Resources, retries: int
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
        return {
            "method": self.method,
            "task_set": settings.task_set,
            "seed": self.seed,
            "budget": {"env_steps": settings.steps} if settings.minutes is None else {"minutes": settings.minutes},
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
        """Of ``train``, but for the folders, see :func:`in_folder`."""
        track = ["--wandb-group", self.group] if "--track" in self.options else []
        of_cell = ["--algo", self.method, "--env", self.settings.task_set, "--seed", str(self.seed)]
        return [*of_cell, *self.resources.arguments(), *track, *self.options]

    def command(self) -> str:
        """The command line that begins it, or goes on with it."""
        arguments = next_arguments(self.folder, self.arguments(), self.resources.arguments())
        return shlex.join(["sb3-softmod", "train", *arguments])


def in_folder(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Arguments of ``train`` with the folders of a cell."""
    return [*arguments, "-f", str(folder), "-tb", str(folder / "tensorboard")]


def next_arguments(folder: Path, arguments: Sequence[str], resources: Sequence[str]) -> list[str]:
    """What ``train`` is to be called with now: to begin, or to go on.

    :param folder: of a cell that is not finished
    :param arguments: of a run that begins
    :param resources: those among them that a run may go on with
    """
    run = run_of(folder)
    if run is None or not any((run / CHECKPOINTS).glob("[0-9]*")):
        return in_folder(folder, arguments)
    return ["--resume", str(run), *resources]


def run_of(folder: Path) -> Path | None:
    """The run folder of a cell; None before there is one."""
    found = sorted(path.parent for path in folder.glob(f"*/*/{MANIFEST}"))
    return found[-1] if found else None


def is_finished(folder: Path) -> bool:
    """Whether the run of a cell has reached its budget, and its model is there, whole."""
    run = run_of(folder)
    if run is None:
        return False
    with suppress(ConfigurationError):  # broken, or gone meanwhile
        manifest = read_json(run / MANIFEST)
        return manifest.get("status") == "finished" and zipfile.is_zipfile(run / f"{manifest.get('task_set')}.zip")
    return False


def clear_beginning(folder: Path) -> None:
    """Remove what a run that never wrote a checkpoint has left in the folder of a cell: the next one begins anew.

    The caller has claimed the folder.
    """
    for run in (path for path in folder.glob("*/*_[0-9]*") if path.is_dir()):
        if not any((run / CHECKPOINTS).glob("[0-9]*")):
            shutil.rmtree(run)


def failure_of(folder: Path) -> Mapping[str, Any] | None:
    """Why a cell was given up, and when; None where it was not."""
    if not (folder / FAILURE).exists():
        return None
    with suppress(ConfigurationError):
        return read_json(folder / FAILURE)
    return None


def last_lines(folder: Path, count: int) -> list[str]:
    """The last lines that a process of the cell has said."""
    path = folder / LOG
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 20_000, 0))
        lines = file.read().decode(errors="replace").splitlines()
    started = [number for number, line in enumerate(lines) if line.startswith(ATTEMPT)]
    return [line.rstrip() for line in lines[started[-1] + 1 if started else 0 :] if line.strip()][-count:]
