"""Runs on this machine, as many side by side as fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sb3_softmod.common.errors import FileError
from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.folder import last_lines
from sb3_softmod.grid.process import Order, Outcome, RunProcess
from sb3_softmod.grid.resources import Capacity, memory_of, refuse_misfits
from sb3_softmod.grid.runner import Ended


@dataclass
class _Running:
    cell: Cell
    process: RunProcess
    memory: int
    gpus: list[str]


class LocalRunner:
    """Starts processes on this machine; what a run takes is counted, and started is only what is left for.

    :param measure: the capacity of the machine, now
    """

    def __init__(self, measure: Callable[[], Capacity]) -> None:
        self._measure = measure
        self.capacity = measure()
        self._running: list[_Running] = []
        self._failures: dict[str, int] = {}

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse cells that would never fit."""
        if not self._running:  # others may have given memory back; what runs of this command have is counted
            self.capacity = self._measure()
        refuse_misfits(cells, [self.capacity], "this machine")

    def start(self, cell: Cell) -> bool:
        """Start a run if there is room for it; whether there was."""
        memory, gpus = memory_of(cell), self._gpus_for(cell.resources.gpus)
        cores = sum(each.cell.resources.threads for each in self._running)
        taken = sum(each.memory for each in self._running)
        if (
            gpus is None
            or cores + cell.resources.threads > self.capacity.cores
            or taken + memory > self.capacity.memory
        ):
            return False
        self._running.append(self._launch(cell, memory, gpus))
        return True

    def ended(self) -> list[Ended]:
        """The runs that have ended since the last call; those that failed are started again, unless too often."""
        ended = []
        for each in list(self._running):
            outcome = each.process.poll()
            if outcome is None:
                continue
            self._running.remove(each)
            name = each.cell.name
            if outcome in (Outcome.FAILED, Outcome.STOPPED):  # nobody here has stopped it: somebody else did
                self._failures[name] = self._failures.get(name, 0) + 1
                if self._failures[name] <= each.cell.retries:
                    try:
                        self._running.append(self._launch(each.cell, each.memory, each.gpus))
                        continue
                    except (FileError, OSError) as error:  # a full disk, or no memory for a process
                        ended.append(Ended(each.cell, outcome, f"It could not be started again: {error}"))
                        continue
            why = "\n".join(filter(None, [*last_lines(each.cell.folder, 10), each.process.reason()]))
            ended.append(Ended(each.cell, outcome, why))
        return ended

    def stop(self) -> None:
        """Let every run write a checkpoint and end; returns once they have."""
        for each in self._running:
            each.process.stop()
        for each in self._running:
            each.process.wait()
        self._running = []

    def kill(self) -> None:
        """End every run at once, also from a signal's handler in the middle of :meth:`stop`."""
        for each in self._running:
            each.process.kill()

    def _launch(self, cell: Cell, memory: int, gpus: list[str]) -> _Running:
        seen = ",".join(gpus) if self.capacity.gpus else None
        return _Running(cell, RunProcess(Order.of(cell), gpus=seen), memory, gpus)

    def _gpus_for(self, wanted: float) -> list[str] | None:
        """Names of GPUs with so much left; None where there are none."""
        used = dict.fromkeys(self.capacity.gpus, 0.0)
        for each in self._running:
            for name in each.gpus:
                used[name] += min(each.cell.resources.gpus, 1.0)
        share = min(wanted, 1.0)
        free = sorted((name for name in used if used[name] + share <= 1.0 + 1e-9), key=used.__getitem__)
        count = math.ceil(wanted)
        return free[:count] if len(free) >= count else None
