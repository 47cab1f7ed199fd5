"""``progress.csv``: what the logger said during training, of each task too."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

from sb3_softmod.common.csv_files import keep_rows, number
from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.files import as_path, make_folder

PROGRESS = "progress.csv"
_STEPS = "time/total_timesteps"


class ProgressFileCallback(BaseCallback):
    """Writes ``progress.csv``, the CSV of SB3's logger, whatever else the logger writes.

    A training that goes on keeps the rows of the steps that it has behind it.

    :param folder: for the file
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._path = as_path(folder) / PROGRESS

    def _on_training_start(self) -> None:
        make_folder(self._path.parent)
        # learn() has just made its logger anew: there is no earlier moment.
        keep_rows(self._path, _STEPS, self.num_timesteps)
        self.logger.output_formats.append(_ContinuedCSV(self._path))
        # Where a failing gradient step is dumped to; without TensorBoard it would be a temporary folder.
        self.logger.dir = str(self._path.parent)

    def _on_step(self) -> bool:
        return True


class _ContinuedCSV(CSVOutputFormat):
    """Goes on with a file, which SB3's own would empty."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.file = path.open("r+")
        self.keys = next(csv.reader(self.file.read().splitlines()), [])
        self.separator, self.quotechar = ",", '"'


def read_progress(
    folder: str | Path, metrics: Sequence[str], task_names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What was logged for each task.

    :param folder: of a run
    :param metrics: for instance "ent_coef"
    :param task_names: M names
    :return: of each metric the environment steps ``[n]`` (over all tasks) and the values ``[n, M]``, NaN where a task
        had none; a row without any is left out
    :raises ConfigurationError: for no such file, or one that holds no such metric
    """
    path = as_path(folder) / PROGRESS
    try:
        with path.open(newline="", errors="replace") as file:
            # A row without its end is half-written. SB3 writes the header anew when a key is logged for the first time.
            header, *rows = csv.reader([line for line in file if line.endswith("\n")] or [""])
    except FileNotFoundError as error:
        raise ConfigurationError(f"{folder} holds no {PROGRESS}: it was trained without.") from error
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (csv.Error, ValueError) as error:  # ValueError: without a first line
        raise FileError(f"{path} is broken ({error}).") from error
    column = {name: index for index, name in enumerate(header)}
    found = {}
    for metric in metrics:
        wanted = [f"{metric}/{task}" for task in task_names]
        # A task that does not learn, as the old ones of an adapted model, has no column.
        if _STEPS not in column or not any(name in column for name in wanted):
            raise ConfigurationError(f"{path} has no column {_STEPS if _STEPS not in column else wanted[0]}.")
        indices = [column.get(name) for name in (_STEPS, *wanted)]
        whole = [row for row in rows if len(row) == len(header)]
        table = np.array([[np.nan if i is None else number(row[i]) for i in indices] for row in whole])
        table = table.reshape(-1, len(indices))
        table = table[np.isfinite(table[:, 0]) & np.isfinite(table[:, 1:]).any(1)]
        if not len(table):
            raise ConfigurationError(f"{path} holds no {metric} yet.")
        found[metric] = (table[:, 0].astype(int), table[:, 1:])
    return found
