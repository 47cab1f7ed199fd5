"""Runs on a Ray cluster: each a task, which starts a process as the local grid does.

Where and when a task runs, and that it is run again when it fails or its worker or node dies, is Ray's doing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.claims import Claim
from sb3_softmod.grid.folder import QUEUED, attempts, last_lines
from sb3_softmod.grid.process import Order, Outcome
from sb3_softmod.grid.resources import Capacity, memory_of, refuse_misfits
from sb3_softmod.grid.runner import Ended

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"--ray needs a package that is not installed ({error}): pip install 'sb3-softmod[cluster]'"
    ) from error

from sb3_softmod.grid.carrying import files_of_driver
from sb3_softmod.grid.task import RunFailedError, train_cell


class RayRunner:
    """Hands every run to Ray.

    :param address: of the cluster, HOST:PORT; "auto" for the one that this machine belongs to
    :param shared: whether all nodes see the folders of the cells; else every task works in a folder of its node, and
        brings what is there to this machine, through Ray, again and again
    :raises ConfigurationError: if there is no such cluster
    """

    def __init__(self, address: str, shared: bool) -> None:
        if address.startswith("ray://"):
            raise ConfigurationError(
                f"--ray {address}: the driver of a grid belongs to the cluster. Start it on one of its machines, with "
                "--ray auto, for instance by ray job submit."
            )
        try:
            if address != "auto":  # for which Ray itself would wait for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"--ray {address}: there is no Ray cluster ({str(error).splitlines()[0]}). Start one with ray start "
                "--head, or name its HOST:PORT."
            ) from error
        self._files = None if shared else files_of_driver()
        self._cells: dict[ray.ObjectRef, Cell] = {}
        self._claims: dict[str, Claim] = {}
        self._claimed: list[Cell] = []
        self._attempts_before: dict[str, int] = {}

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse cells that would fit on no node that there is."""
        refuse_misfits(cells, _capacities(), f"the {len(_capacities())} nodes of the Ray cluster")

    def start(self, cell: Cell) -> bool:
        """Hand a run to Ray, which waits for room."""
        order = Order.of(cell)
        if self._files is not None:  # what works at it does not see the claims of its folder
            claim = Claim.take(cell.folder, on_lost=lambda: os._exit(Outcome.CLAIMED.value))
            if claim is None:
                self._claimed.append(cell)
                return True
            try:
                (cell.folder / QUEUED).touch()
            except OSError:
                claim.release()
                raise
            self._claims[cell.name] = claim
        # A claim may outlive its worker or node: the task that Ray starts again then finds the cell taken, and ends.
        # The next task goes on counting; of the attempts since the first start none has finished the cell.
        begun = attempts(cell.folder)
        failures = begun - self._attempts_before.setdefault(cell.name, begun)
        task = ray.remote(train_cell).options(
            name=cell.name,
            num_cpus=cell.resources.threads,
            num_gpus=cell.resources.gpus,
            memory=memory_of(cell),
            max_retries=max(cell.retries - failures, 0),
            retry_exceptions=[RunFailedError],
        )
        self._cells[task.remote(order, self._files)] = cell
        return True

    def ended(self) -> list[Ended]:
        """The runs whose tasks have ended since the last call, and that Ray does not start again."""
        ended = [Ended(cell, Outcome.CLAIMED, "") for cell in self._claimed]
        self._claimed = []
        if self._cells:
            done, _ = ray.wait(list(self._cells), num_returns=len(self._cells), timeout=0)
            ended += [self._end_of(task, self._cells.pop(task)) for task in done]
        return ended

    def stop(self) -> None:
        """Let every run write a checkpoint and end; returns once they have."""
        for task in self._cells:
            ray.cancel(task)
        if self._cells:
            ray.wait(list(self._cells), num_returns=len(self._cells))
        self._release_all()

    def kill(self) -> None:
        """End every run at once."""
        for task in self._cells:
            with suppress(RayError):
                ray.cancel(task, force=True)
        self._release_all()

    def _end_of(self, task: Any, cell: Cell) -> Ended:
        if claim := self._claims.pop(cell.name, None):
            claim.release()
        try:
            return Ended(cell, Outcome[ray.get(task)], "")
        except RayTaskError as error:
            why = str(error.cause)
        except RayError as error:  # its worker or node has died too often
            why = "\n".join([*last_lines(cell.folder, 10), str(error).partition("\n")[0]])
        return Ended(cell, Outcome.FAILED, why)

    def _release_all(self) -> None:
        self._cells = {}
        for claim in self._claims.values():
            claim.release()
        self._claims = {}


def _capacities() -> list[Capacity]:
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            gpus = tuple(map(str, range(int(has.get("GPU", 0)))))
            found.append(Capacity(int(has.get("CPU", 0)), has.get("memory", 0.0), gpus))
    return found
