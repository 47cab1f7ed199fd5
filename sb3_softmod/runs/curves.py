"""Success rate against environment steps, as in Figures 5 and 6 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.runs.run import Run, grouped, one_a_seed
from sb3_softmod.runs.setting import differences
from sb3_softmod.runs.statistics import ENOUGH_SEEDS, mean_and_interval

#: Characters of a line of the legend.
_LINE = 100
#: Points of a curve between which runs are interpolated.
POINTS = 200


@dataclass(frozen=True)
class Curve:
    """Success over seeds.

    :param label: method, number of seeds and what sets it apart from other curves of the method
    :param steps: ``[n]``, environment steps over all tasks
    :param success: ``[seeds, n, M]``
    :param task_names: M names
    :param goals: what its evaluations were played on
    """

    label: str
    steps: np.ndarray
    success: np.ndarray
    task_names: list[str]
    goals: str


def collect_curves(runs: Sequence[Run], benchmark: str) -> list[Curve]:
    """A curve for each method and setting on one benchmark, as far as all of its runs came.

    :param runs: what :func:`.find_runs` found
    :param benchmark: a task set
    :raises ConfigurationError: if no run of it was evaluated, or a seed was run twice
    """
    evaluated = [run for run in runs if run.reports_success]
    groups = [one_a_seed(group) for group in grouped(run for run in evaluated if run.benchmark == benchmark)]
    if not groups:
        known = ", ".join(sorted({run.benchmark for run in evaluated})) or "nothing"
        raise ConfigurationError(
            f"No run on {benchmark} was evaluated, with tasks that report success; there are such runs on {known}."
        )
    curves = []
    for group in groups:
        same_method = [other[0].setting for other in groups if other[0].method == group[0].method]
        found = aligned([(run.timesteps, run.success) for run in group])
        if found is None:
            raise ConfigurationError(
                f"The runs of {group[0].title} on {benchmark} have no steps in common: {group[0].folder} and others."
            )
        steps, success = found
        count, episodes = len(group), min(run.episodes for run in group)
        facts = [
            f"{count} seed{'s' * (count > 1)} of {episodes} episodes a task",
            *(["no interval"] if count < ENOUGH_SEEDS else []),
            *differences(group[0].setting, same_method),
        ]
        label = f"{group[0].title} ({', '.join(facts)})"
        curves.append(Curve(label, steps, success, group[0].task_names, group[0].goals))
    return curves


def aligned(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Curves of several runs at the same steps, from where all of them begin to where the first of them ends.

    :param curves: of each run the steps ``[n]``, ascending, and the values ``[n, M]``
    :return: steps ``[m]`` and the interpolated values ``[runs, m, M]``; None if they have no steps in common
    """
    begin, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if begin > end:
        return None
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[(steps >= begin) & (steps <= end)]
    if len(steps) > POINTS:
        steps = np.linspace(begin, end, POINTS)
    values = [np.stack([np.interp(steps, at, task) for task in values.T], 1) for at, values in curves]
    return steps, np.stack(values)


def draw_curves(runs: Sequence[Run], benchmark: str, *, by_task: bool = False) -> Figure:
    """The mean over the seeds with its 95 % interval, see :func:`.mean_and_interval`, of the mean over tasks or of each
    task; of one or two seeds the mean alone.

    :param runs: what :func:`.find_runs` found
    :param benchmark: a task set
    :param by_task: a panel for each task instead of one for their mean
    :raises ConfigurationError: for panels of runs of different tasks, and as :func:`collect_curves`
    """
    curves = collect_curves(runs, benchmark)
    if by_task and any(curve.task_names != curves[0].task_names for curve in curves):
        raise ConfigurationError(f"The runs on {benchmark} are of different tasks: draw one after the other.")
    names = curves[0].task_names if by_task else [f"{benchmark}, mean of {len(curves[0].task_names)} tasks"]
    columns = min(len(names), 5)
    rows = -(-len(names) // columns)
    width = 3.0 * columns + 0.4 if by_task else 6.4
    figure = Figure(figsize=(width, 2.3 * rows + 0.9 if by_task else 4.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for index, (axis, name) in enumerate(zip(axes, names, strict=False)):
        for place, curve in enumerate(curves):
            success = curve.success[:, :, index] if by_task else np.nanmean(curve.success, -1)
            mean, interval = mean_and_interval(100 * success)
            band = None if interval is None else tuple(np.clip(bound, 0, 100) for bound in interval)
            draw_band(axis, place, curve.steps, mean, band, linewidth=1.6, label=fill(curve.label, _LINE))
        axis.set_title(name, fontsize=9)
        axis.set_ylim(-3, 103)
        quieten(axis)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(names) - columns) : len(names)]:  # nothing stands below
        axis.set_xlabel("environment steps", fontsize=8)
        axis.tick_params(labelbottom=True)
    figure.supylabel("success rate (%)", fontsize=9)
    goals = " and ".join(dict.fromkeys(curve.goals for curve in curves))
    figure.suptitle(
        f"evaluations during training, {goals}; bands: 95 % of the mean over seeds", fontsize=8, color="0.35"
    )
    ncols = min(len(curves), 2 if by_task else 1)
    legend = axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", fontsize=8, frameon=False, ncols=ncols)
    return figure


def draw_band(
    axis: Axes, place: int, x: np.ndarray, y: np.ndarray, band: tuple[np.ndarray, np.ndarray] | None, **line: Any
) -> None:
    """A curve, in its band if it has one; colours and dashes together, by its place, tell it apart without colour
    vision.
    """
    colour = colormaps["tab10" if place < 10 else "tab20b"](place % 10)
    marker = "o" if len(x) == 1 else None  # one point alone is no line
    axis.plot(x, y, ("-", "--", "-.", ":")[place % 4], color=colour, marker=marker, **line)
    if band is not None:
        axis.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)


def quieten(axis: Axes) -> None:
    """Little ink for what is no curve."""
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
