"""Which task comes next, for envs that are fewer than the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Rotation:
    """Tasks in turn; the first ``n_envs`` are given out at the beginning, one to each env.

    :param num_tasks: M
    :param n_envs: fewer than M
    """

    def __init__(self, num_tasks: int, n_envs: int) -> None:
        self._num_tasks = num_tasks
        self._given = n_envs
        self._seeds: Sequence[int | None] = [None] * n_envs
        self._met: set[tuple[int, int]] = set()

    def next_task(self) -> int:
        """The task whose turn it is."""
        task = self._given % self._num_tasks
        self._given += 1
        return task

    def seed(self, seeds: Sequence[int | None], tasks: Sequence[int]) -> None:
        """Take up the seeds of a reset, for the tasks that come later too.

        :param seeds: one for each env; without any, those of before stay
        :param tasks: what the envs play now
        """
        if any(seed is not None for seed in seeds):
            self._seeds = seeds
            self._met = set(enumerate(tasks))

    def seed_of(self, env: int, task: int) -> int | None:
        """A seed of its own for the first episode of a task in an env after it was seeded; None for later ones."""
        seed = self._seeds[env]
        if seed is None or (env, task) in self._met:
            return None
        self._met.add((env, task))
        return (seed + len(self._seeds) * (task + 1)) % 2**32

    def progress(self) -> dict[str, Any]:
        """What :meth:`set_progress` takes."""
        return {"given": self._given, "seeds": list(self._seeds), "met": sorted(self._met)}

    def set_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on where another rotation of as many tasks and envs was."""
        self._given, self._seeds, self._met = progress["given"], list(progress["seeds"]), set(progress["met"])
