"""A task set of point masses for grids: ``--gym-packages grid_points`` makes it known, as "Points".

Its envs have no simulator, so that a run takes as long as Python needs to load.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from point_mass import HORIZON, PointMass
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softmod.envs import dm_control, gymnasium_tasks
from sb3_softmod.envs.task_sets import TASK_SETS, TaskSet
from sb3_softmod.envs.worker import TaskMaker

TASKS = ("point-a", "point-b")
_of_suite = dm_control.make_task_makers


def make_task_makers(tasks: str | Sequence[str], **kwargs: Any) -> list[TaskMaker]:
    if tuple(tasks) != TASKS:
        return _of_suite(tasks, **kwargs)
    sources = {name: partial(PointMass, goal) for goal, name in enumerate(TASKS)}
    return gymnasium_tasks.make_task_makers(
        sources, seed=kwargs.get("seed"), max_episode_steps=kwargs.get("max_episode_steps", HORIZON)
    )


dm_control.make_task_makers = make_task_makers
POINTS = TASK_SETS["Points"] = TaskSet("Points", "dm_control", TASKS, 0)


class Once(BaseCallback):
    """Does something to its process once, after some steps of the first attempt.

    :param steps: environment steps
    :param folder: where it leaves a mark, so that it happens once
    :param how: "SIGKILL" or "SIGTERM" to this process, "raise", always; "wait", until there is a file "go" there
    """

    def __init__(self, steps: int, folder: str, how: str) -> None:
        super().__init__()
        self.steps, self.folder, self.how = steps, Path(folder), how

    def _on_step(self) -> bool:
        if self.num_timesteps < self.steps:
            return True
        if self.how == "raise":
            raise ZeroDivisionError("on purpose")
        try:
            (self.folder / f"happened-{self.model.seed}").touch(exist_ok=False)
        except FileExistsError:
            return True
        if self.how == "wait":
            while not (self.folder / "go").exists():
                time.sleep(0.05)
        else:
            os.kill(os.getpid(), signal.Signals[self.how])
        return True
