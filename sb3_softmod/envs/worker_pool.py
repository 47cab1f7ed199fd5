"""The workers of a vector of envs, asked together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from multiprocessing.util import Finalize
from typing import Any

import numpy as np

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.cores import usable_cores
from sb3_softmod.common.errors import ConfigurationError, EnvError, SoftModError
from sb3_softmod.common.task_observation import check_common
from sb3_softmod.envs.origin import Origin
from sb3_softmod.envs.worker import Replay, TaskMaker, check_task, step_dtype
from sb3_softmod.envs.worker_process import LocalWorker, WorkerLost, WorkerProcess

Worker = LocalWorker | WorkerProcess

#: The variable of the environment that holds the default number of workers.
WORKERS = "SB3_SOFTMOD_WORKERS"


class WorkerPool:
    """Deals envs out to workers, and starts those.

    :param makers: one for each task
    :param tasks: what each env plays; whoever changes that writes it here
    :param copies: for each env which copy of its tasks it plays
    :param n_workers: processes; 0 for none; default one for each core, none in a daemonic process
    :param auto_reset: whether an env goes on to its next episode by itself
    """

    def __init__(
        self,
        makers: Sequence[TaskMaker],
        tasks: list[int],
        copies: list[int],
        *,
        n_workers: int | None,
        auto_reset: bool,
    ) -> None:
        n_workers = default_workers() if n_workers is None else n_workers
        require_integer("n_workers", n_workers, 0)
        self._worker_class = WorkerProcess if n_workers else LocalWorker
        self._makers = list(makers)
        self._copies = copies
        self._auto_reset = auto_reset
        self.tasks = tasks
        #: What the first env says of itself: :data:`.FACTS`.
        self.facts: dict[str, Any] = {}
        #: For each env those of its first task that decide whether another env can go on for it: :func:`.settings_of`.
        self.settings: list[dict[str, Any]] = []
        n_workers = min(max(n_workers, 1), len(tasks))
        #: The envs of each worker. Neighbours often cost the same, so they are dealt out in turn.
        self.shares = [slice(first, None, n_workers) for first in range(n_workers)]
        self.workers: list[Worker] = []
        #: Ends the workers; once only, never from a fork of this process, and at the latest when nobody uses the pool
        #: any more, or at the end of this process, which may be one of multiprocessing's.
        self.close = Finalize(self, _close_all, (self.workers,), exitpriority=0)
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def envs(self, number: int) -> list[int]:
        """The envs of a worker."""
        return list(range(len(self.tasks)))[self.shares[number]]

    def split(self, indices: Iterable[int]) -> dict[int, list[int]]:
        """Which worker has which of these envs."""
        parts: dict[int, list[int]] = {}
        for index in indices:
            parts.setdefault(index % len(self.workers), []).append(index)
        return parts

    def name(self, index: int) -> str | int:
        """The name of the task that an env plays, or its id before the names are known."""
        names, task = self.facts.get("task_names"), self.tasks[index]
        return names[task] if names else task

    def receive(self, number: int) -> Any:
        """The answer of a worker; raises what the envs raised.

        :raises EnvError: if the worker died
        :raises AnswerLost: if none is to come
        """
        try:
            return self.workers[number].receive()
        except WorkerLost as loss:
            envs = ", ".join(f"env {index} (task {self.name(index)!r})" for index in self.envs(number))
            raise EnvError(f"{loss} Its envs: {envs}.") from None

    def ask(
        self, command: str, questions: dict[int, tuple[Any, ...]]
    ) -> tuple[dict[int, Any], dict[int, SoftModError]]:
        """Ask some workers at once, for a command whose answer has an entry for each env.

        :param questions: arguments for each worker
        :return: the answers of all, by env, and the errors, by worker
        """
        answers: dict[int, Any] = {}
        errors: dict[int, SoftModError] = {}
        for number, arguments in questions.items():
            self.workers[number].send(command, *arguments)
        for number in questions:
            try:
                answers |= self.receive(number)
            except SoftModError as error:
                errors[number] = error
        return answers, errors

    def demand(self, command: str, questions: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """As :meth:`ask`, but raises the first error."""
        answers, errors = self.ask(command, questions)
        for error in errors.values():
            raise error
        return answers

    def resume(
        self, origins: dict[tuple[int, int], Origin], replays: dict[int, Replay]
    ) -> dict[int, tuple[bool, Origin, dict[str, Any]]]:
        """:meth:`.EnvGroup.resume` of all workers that have one of these envs; an error closes the pool."""
        seed = {name: value for name, value in self.settings[0].items() if name == "seed"}
        questions: dict[int, tuple[Any, ...]] = {}
        for number in self.split([*(index for index, _ in origins), *replays]):
            envs = self.envs(number)
            questions[number] = (
                {key: origin for key, origin in origins.items() if key[0] in envs},
                {index: replay for index, replay in replays.items() if index in envs},
                seed,
            )
        try:
            return self.demand("resume", questions)
        except BaseException:
            self.close()
            raise

    def step_of(self, index: int) -> np.ndarray:
        """The last step of an env, as its worker wrote it."""
        return self.workers[index % len(self.workers)].steps[index // len(self.workers)]

    def restart(self, number: int) -> None:
        """Replace a worker; its envs are built when they begin an episode."""
        self.workers[number].close()
        self.workers[number] = self._worker_class()
        self._set_up(number)
        self.receive(number)
        self._attach(number)

    def _start_all(self) -> None:
        """Start the workers, build the envs side by side, and check that they fit together."""
        numbers = range(len(self.shares))
        for _ in numbers:
            self.workers.append(self._worker_class())
        for number in numbers:
            self._set_up(number)
        for number in numbers:
            self.receive(number)
        facts = self.demand("build", {n: ({i: self.tasks[i] for i in self.envs(n)},) for n in numbers})
        self.facts = facts[0]
        self.settings = [facts[index].pop("settings") for index in range(len(self.tasks))]
        self._check([facts[index] for index in range(len(self.tasks))])
        self.dtype = step_dtype(self.facts["observation_space"], self.facts["action_space"])
        for number in numbers:
            self._attach(number)

    def _set_up(self, number: int) -> None:
        copies = {index: self._copies[index] for index in self.envs(number)}
        self.workers[number].send("set_up", self._makers, copies, self._auto_reset)

    def _attach(self, number: int) -> None:
        try:
            self.workers[number].attach(self.dtype, self.facts, len(self.envs(number)))
        except WorkerLost as loss:
            raise EnvError(f"Before its first step: {loss}") from None

    def _check(self, facts: list[dict[str, Any]]) -> None:
        """Refuse envs that do not fit together."""
        names = self.facts["task_names"]
        for task, fact in zip(self.tasks, facts, strict=True):
            check_task(task, fact, names, len(self._makers))
        for space in ("action_space", "observation_space"):
            check_common(space, [names[task] for task in self.tasks], [fact[space] for fact in facts])


def _close_all(workers: list[Worker]) -> None:
    for worker in workers:  # so that they end side by side
        worker.hang_up()
    for worker in workers:
        worker.close()


def default_workers() -> int:
    """One worker for each core that this process may use; none for a process that is one of many itself.

    :data:`WORKERS` in the environment says how many instead: of one run among those of a grid.

    :raises ConfigurationError: for a variable that is no number
    """
    if multiprocessing.current_process().daemon:  # of a multiprocessing.Pool, most likely
        return 0
    if given := os.environ.get(WORKERS):
        if not given.isdecimal():
            raise ConfigurationError(f"The variable {WORKERS} must be a number of processes, not {given!r}.")
        return int(given)
    return usable_cores()
