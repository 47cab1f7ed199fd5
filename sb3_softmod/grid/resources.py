"""What a run takes, what this machine has, and which cells fit nowhere."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sb3_softmod.common.cores import usable_cores
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs.registered import make_env
from sb3_softmod.grid.cells import Cell
from sb3_softmod.learner.replay_buffer import nbytes_of

#: Bytes of a process that learns, without envs and replay buffer, of one that steps envs, and of an env; what was
#: measured stands in docs/grid.md.
_LEARNER, _WORKER, _ENV = 900e6, 80e6, 30e6
#: SB3's, where a file names none.
_BUFFER_SIZE = 1_000_000


@dataclass(frozen=True)
class Capacity:
    """What a machine has for runs.

    :param cores: that this process may use
    :param memory: bytes
    :param gpus: the names of those that it may see, as in CUDA_VISIBLE_DEVICES
    """

    cores: int
    memory: float
    gpus: tuple[str, ...]

    @classmethod
    def of_this_machine(cls) -> Capacity:
        """What this process may use, by the limits of its container too."""
        return cls(usable_cores(), _memory(), _gpus())

    def holds(self, cell: Cell) -> bool:
        """Whether a cell would fit if nothing else ran."""
        needs = cell.resources
        return (
            needs.threads <= self.cores and memory_of(cell) <= self.memory and math.ceil(needs.gpus) <= len(self.gpus)
        )

    def __str__(self) -> str:
        gpus = f", {len(self.gpus)} GPUs" if self.gpus else ""
        return f"{self.cores} cores, {self.memory / 1e9:.1f} GB{gpus}"


def memory_of(cell: Cell) -> int:
    """Bytes that a run of a cell takes: as its resources say, or estimated.

    The estimate is the full replay buffer, and a tenth of it for what a checkpoint copies, the envs and the processes.
    """
    if cell.resources.memory is not None:
        return cell.resources.memory
    settings = cell.settings
    size = settings.hyperparams.get("buffer_size", _BUFFER_SIZE)
    copies = 1.1 * _bytes_a_transition(settings.task_set, settings.num_tasks) * size
    return int(copies + _LEARNER + _WORKER * cell.resources.workers + _ENV * settings.num_envs)


@cache
def _bytes_a_transition(task_set: str, num_tasks: int) -> int:
    env = make_env(task_set)
    try:
        return nbytes_of(1, env.observation_space, env.action_space, num_tasks)
    finally:
        env.close()


def needs_of(cell: Cell) -> str:
    """What a cell takes, in words."""
    gpus = f", {cell.resources.gpus:g} GPUs" if cell.resources.gpus else ""
    return f"{cell.resources.threads} threads, {memory_of(cell) / 1e9:.1f} GB{gpus}"


def refuse_misfits(cells: Iterable[Cell], places: Sequence[Capacity], where: str) -> None:
    """Refuse a grid of which a cell fits into none of the places, before anything starts.

    :param where: what the places are, in words
    :raises ConfigurationError: naming the cells and the largest place
    """
    misfits = [cell for cell in cells if not any(place.holds(cell) for place in places)]
    if misfits:
        named = "; ".join(f"{cell.name} needs {needs_of(cell)}" for cell in misfits[:3])
        more = f" (and {len(misfits) - 3} more)" if len(misfits) > 3 else ""
        there = "; ".join(sorted({str(place) for place in places})) or "nothing"
        raise ConfigurationError(
            f"{named}{more}, which fit nowhere: {where} {'have' if len(places) > 1 else 'has'} {there}. Nothing was "
            "started. Lower buffer_size or n_envs, or say in resources what a run takes."
        )


def _memory() -> float:
    found = []
    with suppress(OSError, StopIteration):
        found.append(1024.0 * _number_after("MemAvailable", Path("/proc/meminfo")))
    with suppress(OSError, ValueError, StopIteration):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # Cached pages of files count as used until somebody wants their memory.
        found.append(float(limit - used + _number_after("inactive_file", group / "memory.stat")))
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return min(found, default=math.inf)


def _number_after(name: str, path: Path) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def _gpus() -> tuple[str, ...]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch as th

    return tuple(str(number) for number in range(th.cuda.device_count()))
