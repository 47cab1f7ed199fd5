"""How far a grid has come, read from the folders of its cells, whoever runs them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sb3_softmod.common.csv_files import last_rows, number
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import read_json
from sb3_softmod.grid.cells import Cell
from sb3_softmod.grid.claims import claimed, owner_of
from sb3_softmod.grid.folder import QUEUED, failure_of, is_finished, is_written, run_of
from sb3_softmod.runs.progress import PROGRESS
from sb3_softmod.runs.run import EVALUATIONS, Run

DONE, RUNNING, WAITING, FAILED = "done", "running", "waiting", "failed"
_STYLES = {DONE: "green", RUNNING: "bold", WAITING: "dim", FAILED: "red"}


@dataclass(frozen=True)
class CellStatus:
    """What is known of a cell.

    :param state: :data:`DONE`, :data:`RUNNING`, :data:`WAITING` or :data:`FAILED`
    :param steps: environment steps that it has logged
    :param fraction: of its budget, from 0 to 1
    :param success: the mean over tasks at the last evaluation; NaN before the first
    :param seconds_left: None where nothing tells
    :param note: why it failed, or where it runs
    """

    state: str
    steps: int = 0
    fraction: float = 0.0
    success: float = math.nan
    seconds_left: float | None = None
    note: str = ""


def status_of(cell: Cell) -> CellStatus:
    """Read it from the folder of a cell."""
    folder = cell.folder
    run = run_of(folder)
    steps, per_second, seconds = _progress(run) if run else (0, 0.0, 0.0)
    success = _success(run) if run else math.nan
    if is_finished(folder):
        assert run is not None
        return CellStatus(DONE, int(read_json(run / "run.json").get("env_steps", cell.settings.steps)), 1.0, success)
    left: float | None
    if cell.settings.minutes:
        planned = 60 * max(cell.settings.minutes)
        fraction, left = min(seconds / planned, 1.0), planned - seconds
    else:
        fraction = min(steps / cell.settings.steps, 1.0)
        left = (cell.settings.steps - steps) / per_second if per_second > 0 else None
    failure = failure_of(folder)
    if claimed(folder) and not (folder / QUEUED).exists():
        return CellStatus(RUNNING, steps, fraction, success, left, owner_of(folder))
    if is_written(folder):
        return CellStatus(RUNNING, steps, fraction, success, left, "a process of no grid")
    if failure is not None:
        return CellStatus(FAILED, steps, fraction, success, note=str(failure.get("why")).splitlines()[-1])
    return CellStatus(WAITING, steps, fraction, success, note="goes on from its checkpoint" if run else "")


def table_of(cells: Sequence[Cell], states: Iterable[str] = (RUNNING, FAILED, WAITING, DONE)) -> Table:
    """A line for each cell.

    :param states: those to show, in their order; the caption counts all
    """
    found = {cell.name: status_of(cell) for cell in cells}
    counts = {state: sum(each.state == state for each in found.values()) for state in (DONE, RUNNING, WAITING, FAILED)}
    table = Table(caption=", ".join(f"{count} {state}" for state, count in counts.items()), box=None, pad_edge=False)
    table.add_column("cell", min_width=max((len(name) for name in found), default=0))
    for column in ("state", "", "steps", "success", "left", ""):
        table.add_column(column, justify="right" if column in ("steps", "success", "left") else "left")
    for state in states:
        for name, each in found.items():
            if each.state == state:
                table.add_row(name, Text(state, _STYLES[state]), *_columns(each))
    return table


def _columns(status: CellStatus) -> tuple[ProgressBar, str, str, str, Text]:
    return (
        ProgressBar(total=1.0, completed=status.fraction, width=16),
        f"{status.steps:,}" if status.steps else "",
        "" if math.isnan(status.success) else f"{100 * status.success:.1f} %",
        "" if status.seconds_left is None else str(timedelta(seconds=max(round(status.seconds_left), 0))),
        Text(status.note, overflow="ellipsis", no_wrap=True),
    )


def failures_of(cells: Sequence[Cell], count: int) -> str:
    """The last lines of all cells that were given up."""
    parts = []
    for cell in cells:
        if (failure := failure_of(cell.folder)) is not None:
            lines = str(failure.get("why")).splitlines()[-count:]
            parts.append("\n".join([f"{cell.name} failed:", *(f"    {line}" for line in lines)]))
    return "\n".join(parts)


def _progress(run: Path) -> tuple[int, float, float]:
    """Environment steps, steps a second, and seconds of training where its budget is one of minutes, as last logged."""
    rows = last_rows(run / PROGRESS)[::-1]
    found = []
    for key in ("total_timesteps", "fps", "training_seconds"):
        values = (number(row.get(f"time/{key}", "")) for row in rows)  # no row needs to have all of them
        found.append(next(filter(math.isfinite, values), 0.0))
    steps, per_second, seconds = found
    return int(steps), per_second, seconds


def _success(run: Path) -> float:
    """The mean over tasks at the newest evaluation that is there for all of them."""
    rows = last_rows(run / EVALUATIONS)
    try:
        tasks = len(Run.unevaluated(run).task_names)
    except ConfigurationError:  # not there yet, or being replaced
        return math.nan
    for steps in dict.fromkeys(row.get("timesteps") for row in reversed(rows)):
        rates = [number(row.get("success_rate", "")) for row in rows if row.get("timesteps") == steps]
        if len(rates) == tasks:
            return float(np.nanmean(rates)) if np.isfinite(rates).any() else math.nan
    return math.nan
