"""What is logged of each task, and how TensorBoard lays it out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from sb3_softmod.learner.gradient_step import METRICS

#: Of episodes: SB3 logs their means itself, as ``rollout/success_rate``, ``ep_rew_mean`` and ``ep_len_mean``.
_OF_SB3 = ("success_rate", "return", "length")


def record(logger: Logger, group: str, name: str, values: np.ndarray, task_names: list[str]) -> None:
    """Log the mean over the tasks everywhere, and each task to every writer but the terminal.

    :param values: ``[M]``; NaN for a task that has none
    """
    logger.record(f"{group}/{name}", float(np.nanmean(values)))
    _record_tasks(logger, name, values, task_names)


def record_episodes(logger: Logger, means: Mapping[str, np.ndarray], task_names: list[str]) -> None:
    """Log how the last episodes of each task went, and means where SB3 logs none: no row under two names.

    :param means: of each metric ``[M]``, see :meth:`.EpisodeStatistics.means`
    """
    for name, values in means.items():
        if name in _OF_SB3:
            _record_tasks(logger, f"task_{name}", values, task_names)
        else:
            record(logger, "rollout", f"task_{name}", values, task_names)


def lay_out(logger: Logger) -> None:
    """Give TensorBoard's custom scalars a chart for each metric, with a line for each task; success comes first."""
    episodes = {"training": "task_{}/", "evaluation": "eval_{}/"}
    charts = {
        "success": {place: _chart(tag.format("success_rate")) for place, tag in episodes.items()},
        "return": {place: _chart(tag.format("return")) for place, tag in episodes.items()},
        "learning": {name: _chart(f"{name}/") for name in METRICS},
    }
    for writer in logger.output_formats:
        if isinstance(writer, TensorBoardOutputFormat):
            writer.writer.add_custom_scalars(charts)


def _chart(tag: str) -> list[object]:
    return ["Multiline", [f"^{tag}"]]  # a regular expression: one for all tasks


def _record_tasks(logger: Logger, name: str, values: np.ndarray, task_names: list[str]) -> None:
    for task, value in zip(task_names, values, strict=True):
        if np.isfinite(value):
            # The terminal cuts keys at 36 characters and raises where two then coincide.
            logger.record(f"{name}/{task}", float(value), exclude=("stdout", "log"))
