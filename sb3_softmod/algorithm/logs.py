"""What is logged of each task."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.logger import Logger


def record(logger: Logger, group: str, name: str, values: np.ndarray, task_names: list[str]) -> None:
    """Log the mean over the tasks everywhere, and each task to every writer but the terminal.

    :param values: ``[M]``; NaN for a task that has none
    """
    logger.record(f"{group}/{name}", float(np.nanmean(values)))
    for task, value in zip(task_names, values, strict=True):
        if np.isfinite(value):
            # The terminal cuts keys at 36 characters and raises where two then coincide.
            logger.record(f"{name}/{task}", float(value), exclude=("stdout", "log"))
