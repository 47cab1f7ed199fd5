"""What a task of Ray does for a cell. A worker of Ray loads this, and neither torch nor RL Zoo with it."""

from __future__ import annotations

import platform
import time
from typing import Any

from sb3_softmod.grid.carrying import Carrier
from sb3_softmod.grid.folder import IDENTITY, last_lines
from sb3_softmod.grid.process import Order, Outcome, RunProcess

#: Seconds between two looks at the process.
_TICK = 0.2


class RunFailedError(Exception):
    """A run failed, or was stopped by somebody else; Ray starts its task again."""


class NotSharedError(Exception):
    """A node does not see the folders of the grid."""


def train_cell(order: Order, files: Any) -> str:
    """Train a cell on a node; the name of the outcome.

    :param files: the files of the driver's machine; None where this one sees them
    """
    if files is None:
        if not (order.folder / IDENTITY).exists():
            raise NotSharedError(
                f"The node {platform.node()} does not see {order.folder}: let runs be a folder of a file system that "
                "all nodes share, or write shared: false, and Ray brings the files."
            )
        return _train(order, None)
    carrier = Carrier(files, order)
    if not carrier.fetch():
        return Outcome.CLAIMED.name
    return _train(carrier.order, carrier)


def _train(order: Order, carrier: Carrier | None) -> str:
    process = RunProcess(order)
    try:
        while (outcome := process.poll()) is None:
            time.sleep(_TICK)
            if carrier is not None:
                carrier.bring_if_due()
    finally:  # the task may be cancelled
        process.stop()
        process.wait()
        if carrier is not None:
            carrier.bring()
        said = last_lines(order.folder, 10)
        if carrier is not None:
            carrier.clear()
    if outcome in (Outcome.FAILED, Outcome.STOPPED):
        raise RunFailedError("\n".join(filter(None, [*said, process.reason()])))
    return outcome.name
