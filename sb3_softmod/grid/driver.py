"""Brings a grid to its end: every cell trained once, whoever else is at it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from sb3_softmod.common.errors import FileError, SoftModError
from sb3_softmod.common.files import write_text
from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.claims import claimed
from sb3_softmod.grid.folder import FAILURE, IDENTITY, failure_of, is_finished, is_written
from sb3_softmod.grid.process import Outcome
from sb3_softmod.grid.runner import Runner

#: Seconds between two looks at what has happened, and between two at a cell that somebody else has.
TICK, LOOK_AGAIN = 0.25, 5.0


class StoppedError(Exception):
    """A signal ended the driver; every run that it had started has written a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_grid(cells: Sequence[Cell], runner: Runner, report: Callable[[str], None]) -> dict[str, str]:
    """Run all cells that are not finished; those that somebody else has are waited for.

    SIGTERM and Ctrl-C let every run write a checkpoint and end; a second one ends them at once.

    :param cells: of the grid
    :param runner: where they run
    :param report: called with a line for what happens to a cell
    :return: why, of each cell that failed, by its name
    :raises ConfigurationError: for cells that fit nowhere, before anything starts
    :raises StoppedError: after a signal
    """
    began = time.time()
    waiting = [cell for cell in cells if not is_finished(cell.folder)]
    # What others train here has its memory already: it is checked when they leave it.
    unchecked = [cell.name for cell in waiting if _is_taken(cell)]
    runner.check([cell for cell in waiting if cell.name not in unchecked])
    for cell in waiting:
        _describe(cell)
    running: list[Cell] = []
    not_before: dict[str, float] = {}
    failed: dict[str, str] = {}
    with _signals(runner) as signalled:
        while waiting or running:
            if signalled:
                runner.stop()
                raise StoppedError(signalled[0])
            now = time.monotonic()
            for cell in list(waiting):
                if not_before.get(cell.name, 0.0) > now:
                    continue
                if is_finished(cell.folder):  # by somebody else
                    waiting.remove(cell)
                    report(f"{cell.name}: finished elsewhere")
                elif (failure := failure_of(cell.folder)) and failure.get("at", 0.0) > began:
                    waiting.remove(cell)
                    failed[cell.name] = str(failure.get("why"))
                    report(f"{cell.name}: failed elsewhere")
                elif _is_taken(cell):
                    not_before[cell.name] = now + LOOK_AGAIN
                else:
                    try:
                        if cell.name in unchecked:
                            runner.check([cell])
                            unchecked.remove(cell.name)
                        started = runner.start(cell)
                    except (SoftModError, OSError) as error:  # it fits nowhere here, or this disk is full
                        if running:  # which may give back what is missing
                            not_before[cell.name] = now + LOOK_AGAIN
                            continue
                        waiting.remove(cell)
                        failed[cell.name] = str(error)  # not written: others may have room
                        report(f"{cell.name}: failed: {error}")
                        continue
                    if started:
                        waiting.remove(cell)
                        running.append(cell)
            for end in runner.ended():
                running.remove(end.cell)
                if end.outcome is Outcome.CLAIMED:
                    waiting.append(end.cell)
                    not_before[end.cell.name] = time.monotonic() + LOOK_AGAIN
                elif end.outcome is Outcome.FINISHED:
                    report(f"{end.cell.name}: finished")
                else:
                    failed[end.cell.name] = _give_up(
                        end.cell, end.why or f"its process said nothing; {end.outcome.name.lower()}"
                    )
                    report(f"{end.cell.name}: failed: {failed[end.cell.name].splitlines()[-1]}")
            time.sleep(TICK)
    return failed


def _is_taken(cell: Cell) -> bool:
    """Whether somebody else trains it."""
    return claimed(cell.folder) or is_written(cell.folder)


def _describe(cell: Cell) -> None:
    """Write what a folder's name is the digest of, for people."""
    path = cell.folder / IDENTITY
    if not path.exists():
        with suppress(FileError):
            write_text(path, json.dumps(cell.identity, indent=1) + "\n")


def _give_up(cell: Cell, why: str) -> str:
    """Write that a cell failed, and why."""
    if not _is_taken(cell):
        with suppress(FileError):  # a full disk, for one: the other runs go on
            write_text(cell.folder / FAILURE, json.dumps({"at": time.time(), "why": why}) + "\n")
    return why


@contextmanager
def _signals(runner: Runner) -> Iterator[list[int]]:
    """The signals to end that have come, in a list; from the second one on, they end every run at once."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            runner.kill()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
