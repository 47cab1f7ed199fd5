"""The result of an evaluation, and how to read it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sb3_softmod.common.errors import FileError
from sb3_softmod.common.files import read_json, write_text

if TYPE_CHECKING:
    import pandas as pd

#: The quantile of the normal distribution that leaves 95 % within.
_Z = 1.959964


def wilson_interval(rate: float, episodes: int) -> tuple[float, float]:
    """The 95 % confidence interval of a success rate (Wilson 1927).

    :param rate: share of successes
    :param episodes: out of how many
    :return: lower and upper bound; NaN without episodes
    """
    if not episodes or math.isnan(rate):
        return math.nan, math.nan
    z2 = _Z**2 / episodes
    centre = rate + z2 / 2
    half = _Z * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


@dataclass(frozen=True)
class TaskEvaluation:
    """What :func:`.evaluate_tasks` found; every list has an entry for each task. ``print`` shows it as a table.

    :param task_names: the tasks
    :param episodes: how many episodes were played
    :param success_rate: share of episodes that succeeded at any step; NaN for a task that reports no success
    :param success_at_end_rate: share that succeeded at the last step
    :param mean_return: mean undiscounted return
    :param length: mean length
    :param settings: how it was played: episodes, goals, seed, ...
    """

    task_names: list[str]
    episodes: list[int]
    success_rate: list[float]
    success_at_end_rate: list[float]
    mean_return: list[float]
    length: list[float]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def success_interval(self) -> list[tuple[float, float]]:
        """The 95 % interval of each task's success rate, see :func:`wilson_interval`."""
        return [wilson_interval(*pair) for pair in zip(self.success_rate, self.episodes, strict=True)]

    @property
    def mean_success_rate(self) -> float:
        """The mean over the tasks that were played and report success."""
        return mean_over_tasks(self.success_rate)

    @property
    def standard_error(self) -> float:
        """Of ``mean_success_rate``, of episodes that succeed by chance at each task's rate: √(Σ p(1 − p) / n) / M."""
        variances = [p * (1 - p) / n for p, n in zip(self.success_rate, self.episodes, strict=True) if math.isfinite(p)]
        return math.sqrt(sum(variances)) / len(variances) if variances else math.nan

    def to_frame(self) -> pd.DataFrame:
        """A row for each task, by its name (needs pandas)."""
        import pandas as pd

        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "settings"}
        columns["success_low"], columns["success_high"] = zip(*self.success_interval, strict=True)
        return pd.DataFrame(columns).set_index("task_names").rename_axis("task")

    def to_json(self, path: str | Path | None = None) -> str:
        """As JSON, with the means over the tasks; NaN becomes null.

        :param path: a file to write it to, too
        :raises FileError: if it cannot be written
        """
        content = {
            "settings": dict(self.settings),
            "mean": {name: mean_over_tasks(getattr(self, name)) for name in _METRICS},
            "tasks": {
                task: {
                    "episodes": self.episodes[i],
                    **{name: getattr(self, name)[i] for name in _METRICS},
                    "success_interval": self.success_interval[i],
                }
                for i, task in enumerate(self.task_names)
            },
        }
        text = json.dumps(without_nan(content), indent=1)
        if path is not None:
            write_text(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, path: str | Path) -> TaskEvaluation:
        """What :meth:`to_json` wrote.

        :param path: of the file
        :raises FileError: naming the file, if it is missing or broken
        """
        content = read_json(path)
        try:
            tasks = content["tasks"]
            metrics = {
                name: [math.nan if task[name] is None else float(task[name]) for task in tasks.values()]
                for name in _METRICS
            }
            episodes = [int(task["episodes"]) for task in tasks.values()]
            settings = dict(content["settings"])
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is broken ({type(error).__name__}: {error}).") from error
        rates = [*metrics["success_rate"], *metrics["success_at_end_rate"]]
        if not tasks or min(episodes) < 0 or not all(math.isnan(rate) or 0 <= rate <= 1 for rate in rates):
            raise FileError(f"{path} is broken: it needs tasks with success rates from 0 to 1, of 0 episodes or more.")
        return cls(list(tasks), episodes, settings=settings, **metrics)

    def table(self) -> Table:
        """A table of all tasks and their means, for ``rich``."""
        played = sorted({n for n in self.episodes if n})
        episodes = " to ".join(str(n) for n in (played[:1] + played[1:][-1:]))
        table = Table(
            title=f"{episodes or 'no'} episode{'s' * (played != [1])} a task", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("task", no_wrap=True)
        for column in ("success", "95 % interval", "at the end", "return", "length"):
            table.add_column(column, justify="right", no_wrap=True)
        columns = [getattr(self, metric) for metric in _METRICS]
        rows = list(zip(self.task_names, *columns, map(interval, self.success_interval), strict=True))
        rows.append(("mean", *map(mean_over_tasks, columns), ""))
        for name, success, at_end, mean_return, length, bounds in rows:
            table.add_row(Text(name), percent(success), bounds, percent(at_end), number(mean_return), number(length))
        return table

    def _repr_html_(self) -> str:
        """The same table, in a notebook."""
        table = self.table()
        columns = [list(column.cells) for column in table.columns]
        head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
        rows = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in zip(*columns, strict=True))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{escape(str(table.title))}</caption><tr>{head}</tr>{body}</table>"

    def __str__(self) -> str:
        text = io.StringIO()
        # In a notebook, rich would display the table here, or add codes for colours.
        Console(file=text, width=100, force_jupyter=False, force_terminal=False).print(self.table())
        return text.getvalue().rstrip()


_METRICS = ("success_rate", "success_at_end_rate", "mean_return", "length")


def mean_over_tasks(values: list[float]) -> float:
    """The mean over the tasks that have a number; NaN where none has."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def percent(rate: float) -> str:
    """A rate for a table, 0 or 100 % only where it is that; nothing for NaN."""
    if math.isnan(rate):
        return ""
    least, most = (0 if rate < 1e-9 else 1), (100 if rate > 1 - 1e-9 else 99)
    return f"{min(max(round(100 * rate), least), most)} %"


def interval(bounds: tuple[float, float]) -> str:
    """Two rates for a table; nothing for NaN."""
    return "" if math.isnan(bounds[0]) else f"{percent(bounds[0])} to {percent(bounds[1])}"


def number(value: float) -> str:
    """A number for a table; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.0f}"


def without_nan(content: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
