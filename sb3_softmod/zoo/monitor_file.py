"""The file that SB3's and RL Zoo's plots of training read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import replacing
from sb3_softmod.envs.progress import progress_of, set_progress_of


class MonitorFile(VecEnvWrapper):
    """Writes a row to ``0.monitor.csv`` for each episode: return, length, time, task and, if reported, success.

    Unlike SB3's ``VecMonitor`` it leaves the infos alone: an episode that broke off with its worker counts nowhere.

    :param venv: of a task set
    :param folder: for the file
    :param info_keywords: further columns, from the last info of an episode
    :param go_on: append to the file of a run that is resumed
    """

    def __init__(self, venv: VecEnv, folder: str, info_keywords: Sequence[str] = (), *, go_on: bool = False) -> None:
        super().__init__(venv)
        self._columns = ("task_name", "is_success", *info_keywords)
        self._start = time.time()
        self._rows = 0
        self._path = Path(folder) / "0.monitor.csv"
        self._file = ResultsWriter(
            str(self._path), {"t_start": self._start}, self._columns, override_existing=not go_on
        )

    def reset(self) -> VecEnvObs:
        """Reset the envs."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Step the envs, and write down the episodes that ended."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "episode" in info:
                row = {key: info.get(key, "") for key in self._columns}
                elapsed = round(time.time() - self._start, 6)
                self._file.write_row({**row, "r": info["episode"]["r"], "l": info["episode"]["l"], "t": elapsed})
                self._rows += 1
        return observations, rewards, dones, infos

    def progress(self) -> dict[str, Any]:
        """That of the envs, and of the file."""
        return {"envs": progress_of(self.venv), "rows": self._rows, "start": self._start}

    def set_progress(self, progress: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`.MultiTaskVecEnv.set_progress`; later rows are taken out of the file."""
        if "rows" not in progress:
            raise ConfigurationError("The progress is of envs without MonitorFile, but these have it.")
        found = set_progress_of(self.venv, progress["envs"])
        self._rows, self._start = progress["rows"], progress["start"]
        self._file.close()
        lines = self._path.read_bytes().splitlines(True)[: self._rows + 2]  # two lines before the first row
        with replacing(self._path) as draft:
            draft.write_bytes(b"".join(lines))
        self._file = ResultsWriter(str(self._path), extra_keys=self._columns, override_existing=False)
        return found

    def close(self) -> None:
        """Close the envs and the file."""
        self._file.close()
        super().close()
