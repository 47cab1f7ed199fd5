"""What the driver of a grid asks of whatever runs its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.process import Outcome


class Ended(NamedTuple):
    """How the run of a cell ended.

    :param why: the last lines that it said
    """

    cell: Cell
    outcome: Outcome
    why: str


class Runner(Protocol):
    """Runs cells somewhere, and starts those that fail again."""

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse cells that would never fit."""

    def start(self, cell: Cell) -> bool:
        """Start a run, now or as soon as there is room; False if it must be asked again."""

    def ended(self) -> list[Ended]:
        """The runs that have ended since the last call."""

    def stop(self) -> None:
        """Let every run write a checkpoint and end; returns once they have."""

    def kill(self) -> None:
        """End every run at once."""
