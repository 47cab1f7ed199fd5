"""Models as they were after some minutes of training, and its end after the last of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_softmod.common.checks import require_number
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import as_path, check_writable, write_text
from sb3_softmod.saving.sac import SavingSAC
from sb3_softmod.saving.training_state import callbacks_of

#: What :class:`TimedSnapshots` writes beside the models.
SNAPSHOTS = "snapshots.json"


class TimedSnapshots(BaseCallback):
    """Saves the model after so many minutes of training, and ends the training after the last of them.

    The clock runs from the beginning of ``learn``, so that the compilation of networks counts and the making of envs
    does not. It stands still while a :class:`.MultiTaskEvalCallback` evaluates. A training that is resumed from a
    checkpoint goes on with the minutes of the checkpoint: neither the break nor what was lost counts.

    After each mark there are ``model_15min.zip`` and, for all marks so far, ``snapshots.json``: a list of ``minutes``,
    ``seconds`` (of training; a little later than the mark), ``env_steps`` (over all tasks) and ``gradient_steps``. The
    seconds until now are logged as ``time/training_seconds``.

    :param path: the folder for them, that of the run
    :param minutes: the marks, in any order; fractions are allowed
    :param verbose: 1 prints a line for each
    :raises ConfigurationError: for no marks, or marks that are not positive or there twice
    :raises FileError: when ``learn`` begins: if ``path`` cannot be written to
    """

    def __init__(self, path: str | Path, minutes: Sequence[float], verbose: int = 0) -> None:
        super().__init__(verbose)
        self.minutes = check_minutes(minutes)
        self.path = as_path(path)
        #: Of the marks that were reached: what ``snapshots.json`` holds.
        self.snapshots: list[dict[str, float]] = []
        self._seconds_before = 0.0

    @property
    def finished(self) -> bool:
        """Whether the last mark was reached."""
        return not self._left

    @property
    def _left(self) -> list[float]:
        """The marks to come; a training that is resumed may have others than before, and those may be past."""
        reached = {each["minutes"] for each in self.snapshots}
        return [each for each in self.minutes if each not in reached and 60 * each > self._seconds_before]

    def progress(self) -> dict[str, Any]:
        """For a checkpoint: how long the training took until now, and what was saved."""
        return {"seconds": self.seconds(), "snapshots": list(self.snapshots)}

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Go on with that time."""
        self._seconds_before, self.snapshots = progress["seconds"], list(progress["snapshots"])

    def seconds(self) -> float:
        """Of training until now, without evaluations; may be called while ``learn`` runs."""
        return self._seconds_before + time.monotonic() - self._start - (self._evaluating() - self._evaluating_before)

    def _on_training_start(self) -> None:
        if not isinstance(self.model, SavingSAC):
            raise ConfigurationError(
                f"TimedSnapshots is for SoftModSAC and MultiTaskSAC, not {type(self.model).__name__}."
            )
        if self.model.lr_schedule(1.0) != self.model.lr_schedule(0.0):
            raise ConfigurationError(
                "A training of some minutes cannot have a schedule of the learning rate: it runs over a number of "
                "steps, which nobody knows then. Set a constant learning_rate."
            )
        check_writable(self.path / SNAPSHOTS)
        self._others = list(callbacks_of(self.locals["callback"]))
        self._evaluating_before = self._evaluating()
        self._start = time.monotonic()

    def _on_step(self) -> bool:
        seconds = self.seconds()
        self.logger.record("time/training_seconds", round(seconds, 1), exclude="tensorboard")
        for mark in self._left:
            if seconds >= 60 * mark:
                self._save(mark, seconds)
        return not self.finished

    def _on_training_end(self) -> None:
        self._seconds_before = self.seconds()  # for another learn()
        self._start, self._evaluating_before = time.monotonic(), self._evaluating()

    def _save(self, minutes: float, seconds: float) -> None:
        self.model.save(self.path / snapshot_name(minutes))
        steps = {"env_steps": self.num_timesteps, "gradient_steps": self.model._n_updates}
        self.snapshots.append({"minutes": minutes, "seconds": round(seconds, 1), **steps})
        write_text(self.path / SNAPSHOTS, json.dumps(self.snapshots, indent=1) + "\n")
        if self.verbose >= 1:
            print(f"After {minutes:g} minutes: {self.path / snapshot_name(minutes)}, step {self.num_timesteps:,}")

    def _evaluating(self) -> float:
        """Seconds that other callbacks spent on evaluations."""
        return sum(getattr(each, "seconds_of_evaluation", 0.0) for each in self._others)


def snapshot_name(minutes: float) -> str:
    """The file of the model after some minutes, ``model_15min.zip``."""
    return f"model_{minutes:g}min.zip"


def check_minutes(minutes: Sequence[float]) -> list[float]:
    """The marks in their order.

    :raises ConfigurationError: for no marks, or marks that are not positive or there twice
    """
    if isinstance(minutes, (str, bytes)) or not isinstance(minutes, Sequence) or not minutes:
        raise ConfigurationError(f"minutes must be one or more numbers, not {minutes!r}.")
    for each in minutes:
        require_number("minutes", each, above=0)
    names = [snapshot_name(each) for each in minutes]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"minutes must differ: two of {', '.join(f'{each:g}' for each in minutes)} are equal.")
    return sorted(minutes)
