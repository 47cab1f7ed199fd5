"""What was measured of each task during training, as the lines of the page's charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softmod.runs.curves import aligned
from sb3_softmod.runs.progress import read_progress
from sb3_softmod.runs.run import Run, grouped
from sb3_softmod.runs.setting import differences
from sb3_softmod.runs.statistics import mean_and_interval

#: Points of a line, and of all lines of a metric together: the page stays small with many tasks and runs.
_POINTS, _ALL_POINTS, _FEWEST_POINTS = 200, 40_000, 20


@dataclass(frozen=True)
class Metric:
    """What a chart shows.

    :param key: of ``evaluations.csv`` in :class:`.Run`, or of ``progress.csv``
    :param title: above the chart
    :param explanation: a sentence below the title
    :param evaluated: measured by the evaluations during training; else logged by the learner
    :param percent: a rate from 0 to 1
    :param logarithmic: on a logarithmic axis
    :param has_mean: the mean over the tasks says something
    """

    key: str
    title: str
    explanation: str
    evaluated: bool = False
    percent: bool = False
    logarithmic: bool = False
    has_mean: bool = True


#: In the order of the page.
METRICS = (
    Metric("success", "Success", "Share of episodes that succeed at any step.", evaluated=True, percent=True),
    Metric("returns", "Return", "Mean undiscounted return of an episode.", evaluated=True),
    Metric("q_value", "Q value", "What the critics expect of the replayed actions, mean over the critics."),
    Metric("critic_loss", "Critic loss", "Before it is weighted by task.", logarithmic=True),
    Metric("actor_loss", "Actor loss", "α log π − Q, before it is weighted by task."),  # noqa: RUF001
    Metric("ent_coef", "Temperature", "The entropy temperature α.", logarithmic=True),  # noqa: RUF001
    Metric("loss_weight", "Loss weight", "How much a task's losses count; 1 is the even share.", has_mean=False),
)


@dataclass(frozen=True)
class Label:
    """What a run is called on the page.

    :param run: its own name
    :param group: of the runs of the same method and setting
    :param series: its entry of the legend, which tells groups apart or, if all runs are of one, the runs
    """

    run: str
    group: str
    series: str


@dataclass(frozen=True)
class Line:
    """What one run, or the mean of several, draws in the chart of each task.

    :param name: of the run, or what it is the mean of
    :param series: its entry of the legend
    :param steps: ``[n]``, environment steps over all tasks
    :param values: ``[n, 1 + M]``, first the mean over the tasks, then each task; NaN is a gap
    :param band: lower and upper bound ``[n, 1 + M]`` of the 95 % interval of a mean over seeds
    :param is_mean: over seeds
    """

    name: str
    series: str
    steps: np.ndarray
    values: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None
    is_mean: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the page: the values ``[1 + M][n]`` with four digits, null for NaN."""
        line = dict(
            name=self.name, series=self.series, mean=self.is_mean, steps=self.steps.round().astype(int).tolist()
        )
        low_and_high = {} if self.band is None else dict(zip(("low", "high"), map(_short, self.band), strict=True))
        return {**line, "values": _short(self.values), **low_and_high}


def labels_of(runs: Sequence[Run]) -> list[Label]:
    """Names that tell runs apart, in their order.

    :param runs: on the same tasks
    """
    groups = grouped(runs)
    labels: dict[Path, Label] = {}
    for group in groups:
        settings = [other[0].setting for other in groups if other[0].method == group[0].method]
        name = ", ".join([group[0].title, *differences(group[0].setting, settings)])
        seeds = [str(run.manifest["seed"]) for run in group]
        counted: set[Any] = set()
        for run in sorted(group, key=lambda run: (run.finished, run.steps), reverse=True):  # as in tables
            seed = str(run.manifest["seed"])
            own = f"seed {seed}" if len(groups) == 1 else f"{name}, seed {seed}"
            own = own if seeds.count(seed) == 1 else f"{own}, {run.folder}"
            # Each seed counts once in a mean; the others of it, begun anew, stand for themselves.
            in_mean = own if (seed, run.origin) in counted else name
            labels[run.folder] = Label(own, in_mean, own if len(groups) == 1 else name)
            counted.add((seed, run.origin))
    return [labels[run.folder] for run in runs]


def measured(run: Run, metric: Metric) -> tuple[np.ndarray, np.ndarray] | None:
    """The environment steps ``[n]`` and the values ``[n, M]`` of a run; None where its evaluations have none.

    :raises ConfigurationError: for a ``progress.csv`` without it
    """
    if not metric.evaluated:
        return read_progress(run.folder, [metric.key], run.task_names)[metric.key]
    values = getattr(run, metric.key)
    return (run.timesteps, values) if np.isfinite(values).any() else None


def lines_of(metric: Metric, found: Sequence[tuple[Label, np.ndarray, np.ndarray]]) -> list[Line]:
    """A line for each run, and one for the mean of several runs of a method.

    :param metric: what they show
    :param found: label, steps ``[n]`` and values ``[n, M]`` of each run that has the metric, see :func:`measured`
    """
    points = int(np.clip(_ALL_POINTS // (len(found) * (1 + found[0][2].shape[1])), _FEWEST_POINTS, _POINTS))
    one_group = all(label.series == label.run for label, _, _ in found)
    lines = []
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for label, steps, of_tasks in found:
        values, rows = np.column_stack([_mean(of_tasks), of_tasks]), _spread(len(steps), points)
        groups.setdefault(label.group, []).append((steps, values))
        lines.append(Line(label.run, label.series, steps[rows], values[rows]))
    for group, members in groups.items():
        common = aligned(members) if len(members) > 1 else None
        if common is None:
            continue
        rows = _spread(len(common[0]), points)
        mean, band = _over_seeds(metric, common[1][:, rows])
        name = f"mean of {len(members)} runs"
        named = (name, name) if one_group else (f"{group}, {name}", group)
        lines.append(Line(*named, common[0][rows], mean, band, is_mean=True))
    return lines


def _over_seeds(metric: Metric, values: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Mean and 95 % interval as they are drawn: within 0 and 1 for rates, of logarithms on a logarithmic axis."""
    if metric.logarithmic:
        mean, band = mean_and_interval(np.log(np.where(values > 0, values, np.nan)))
        return np.exp(mean), band and (np.exp(band[0]), np.exp(band[1]))
    mean, band = mean_and_interval(values)
    if band is not None and metric.percent:
        band = (band[0].clip(0, 1), band[1].clip(0, 1))
    return mean, band


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the tasks, of those that have a value."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _spread(length: int, points: int) -> np.ndarray:
    """Rows from the first to the last."""
    return np.unique(np.linspace(0, length - 1, min(points, length)).round().astype(int))


def _short(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{value:.4g}") if np.isfinite(value) else None for value in column] for column in values.T]
