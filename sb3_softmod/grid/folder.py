"""The folder of a cell: how far its run has come, and what comes next. Nothing here imports torch.

::

    METHOD/SET/seed-0-1a2b3c4d/
        cell.json       what the cell is
        claims/         who works at it
        queued          the claim is that of a driver, whose cluster has no room yet
        train.log       what its processes said
        failed.json     why it was given up
        tensorboard/
        METHOD/SET_1/   the run, as train leaves it
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import read_json
from sb3_softmod.saving.checkpoints import has_checkpoint, is_locked

LOG, FAILURE, IDENTITY, QUEUED = "train.log", "failed.json", "cell.json", "queued"
#: A line of the log that begins so stands above what one attempt said.
ATTEMPT = "#### "
_MANIFEST, _TENSORBOARD = "run.json", "tensorboard"


def next_arguments(folder: Path, arguments: Sequence[str], resources: Sequence[str]) -> list[str]:
    """What ``train`` is to be called with now: to begin, or to go on.

    :param folder: of a cell that is not finished
    :param arguments: of a run that begins
    :param resources: those among them that a run may go on with
    """
    run = run_of(folder)
    if run is None or not has_checkpoint(run):
        return [*arguments, "-f", str(folder), "-tb", str(folder / _TENSORBOARD)]
    return ["--resume", str(run), *resources]


def run_of(folder: Path) -> Path | None:
    """The run folder of a cell; None before there is one."""
    found = sorted(path.parent for path in folder.glob(f"*/*/{_MANIFEST}"))
    return found[-1] if found else None


def is_finished(folder: Path) -> bool:
    """Whether the run of a cell has reached its budget or was ended by a callback, and its model is there, whole."""
    run = run_of(folder)
    if run is None:
        return False
    with suppress(ConfigurationError):  # broken, or gone meanwhile
        manifest = read_json(run / _MANIFEST)
        if not zipfile.is_zipfile(run / f"{manifest.get('task_set')}.zip"):
            return False
        # Once the last model is written the checkpoints go: one that still has some was killed before.
        ended = manifest.get("status") == "ended early"
        return ended or (manifest.get("status") == "finished" and not has_checkpoint(run))
    return False


def clear_beginning(folder: Path, arguments: Sequence[str]) -> None:
    """Remove what a run that never wrote a checkpoint has left in the folder of a cell: the next one begins anew.

    The caller has claimed the folder. What others keep there, as W&B does, stays.

    :param arguments: of a run that begins
    :raises FileError: for a run that was finished, whose last model somebody has taken away
    """
    method, task_set = (arguments[arguments.index(option) + 1] for option in ("--algo", "--env"))
    for run in folder.glob(f"{method}/{task_set}_[0-9]*"):
        if has_checkpoint(run):
            continue
        status = None
        with suppress(ConfigurationError):  # broken
            status = read_json(run / _MANIFEST).get("status")
        if status in ("finished", "ended early"):
            raise FileError(f"{run} is finished, but its {task_set}.zip is missing: put it back, or remove the folder.")
        shutil.rmtree(run)
    if run_of(folder) is None:
        shutil.rmtree(folder / _TENSORBOARD, ignore_errors=True)


def is_written(folder: Path) -> bool:
    """Whether a process that no grid started, one of ``grid --commands``, trains in a cell."""
    return any(is_locked(run.parent) for run in folder.glob(f"*/*/{_MANIFEST}"))


def failure_of(folder: Path) -> Mapping[str, Any] | None:
    """Why a cell was given up, and when; None where it was not."""
    if not (folder / FAILURE).exists():
        return None
    with suppress(ConfigurationError):
        return read_json(folder / FAILURE)
    return None


def attempts(folder: Path) -> int:
    """How many processes have trained the cell, or tried to."""
    path = folder / LOG
    if not path.exists():
        return 0
    with path.open(errors="replace") as file:
        return sum(line.startswith(ATTEMPT) for line in file)


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
