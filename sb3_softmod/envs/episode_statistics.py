"""Returns, lengths and successes of the last episodes of each task."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

#: What is kept of an episode, by the key under which the envs report it.
_REPORTED = {"success_rate": "is_success", "success_at_end_rate": "is_success_at_end"}
METRICS = ("success_rate", "success_at_end_rate", "return", "length")


class EpisodeStatistics:
    """The last episodes of each task.

    :param num_tasks: M
    :param window: how many episodes of each task to keep
    """

    #: How many episodes were taken up; files of older versions hold statistics without it.
    num_added = 0

    def __init__(self, num_tasks: int, window: int) -> None:
        self._episodes: list[deque[dict[str, float]]] = [deque(maxlen=window) for _ in range(num_tasks)]

    def add(self, infos: Iterable[dict[str, Any]]) -> None:
        """Take up the episodes that end with these infos of one vector step."""
        for info in infos:
            if "task_id" not in info or not info.keys() & {"episode", "terminal_observation"}:
                continue
            record = {name: float(info[key]) for name, key in _REPORTED.items() if key in info}
            if "episode" in info:  # an env of gymnasium.make leaves that to SB3's Monitor
                record |= {"return": float(info["episode"]["r"]), "length": float(info["episode"]["l"])}
            if record:
                self._episodes[info["task_id"]].append(record)
                self.num_added += 1

    def num_episodes(self) -> list[int]:
        """How many episodes of each task are kept."""
        return [len(episodes) for episodes in self._episodes]

    def last(self, count: int) -> EpisodeStatistics:
        """The last ``count`` of the kept episodes of each task."""
        part = EpisodeStatistics(len(self._episodes), count)
        for episodes, kept in zip(part._episodes, self._episodes, strict=True):
            episodes.extend(kept)
        return part

    def means(self) -> dict[str, np.ndarray]:
        """The mean of each metric for each task.

        :return: metric to ``[M]``, NaN for a task without episodes; a metric that no task reports is left out. Of a
            task some of whose episodes report success, the others count as failures
        """
        out = {}
        for metric in METRICS:
            reports = [any(metric in episode for episode in task) for task in self._episodes]
            if any(reports):
                out[metric] = np.array(
                    [
                        # An env may speak of success only when there is one.
                        np.mean([episode.get(metric, 0.0) for episode in task]) if reported else np.nan
                        for task, reported in zip(self._episodes, reports, strict=True)
                    ]
                )
        return out

    def progress(self) -> list[np.ndarray]:
        """What :meth:`set_progress` takes: for each task ``[episodes, metrics]``, NaN for what was not reported."""
        return [
            np.array([[episode.get(metric, np.nan) for metric in METRICS] for episode in task]).reshape(
                -1, len(METRICS)
            )
            for task in self._episodes
        ]

    def set_progress(self, progress: Sequence[np.ndarray]) -> None:
        """Take over the episodes of other statistics of as many tasks."""
        for episodes, kept in zip(self._episodes, progress, strict=True):
            episodes.clear()
            for row in kept.tolist():
                record = dict(zip(METRICS, row, strict=True))
                episodes.append({m: v for m, v in record.items() if not np.isnan(v)})
                self.num_added += 1
