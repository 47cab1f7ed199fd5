"""How the routing changed while a model learned."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.routing.map_figure import task_style
from sb3_softmod.routing.network_figure import colour
from sb3_softmod.routing.snapshots import RoutingSnapshots

#: The lines of more tasks than these are grey, beside their mean.
_MOST_COLOURS = 10


def distance_to_last(snapshots: RoutingSnapshots) -> np.ndarray:
    """How far the routes of each snapshot are from those of the last one.

    The total variation distance between the sources of a target module, averaged over all targets of all layers: 1
    minus :attr:`.RoutingStatistics.similarity`.

    :return: ``[S, M]``, from 0 to 1
    """
    S, M = snapshots.entropy.shape
    rows = np.concatenate([layer.reshape(S, M, -1, layer.shape[-1]) for layer in snapshots.layers], 2)
    return 0.5 * np.abs(rows - rows[-1]).sum(-1).mean(-1)


def draw_routing_history(snapshots: RoutingSnapshots) -> Figure:
    """Over the steps of a training: how undecided the routing is, how far from its end, and every probability.

    :param snapshots: what :class:`.RoutingSnapshotCallback` wrote
    :return: a figure; below the curves a panel for each task, with a row for each connection
    :raises ConfigurationError: for fewer than two snapshots
    """
    if len(snapshots.steps) < 2:
        raise ConfigurationError(f"A change takes at least two snapshots, not {len(snapshots.steps)}.")
    count = len(snapshots.task_names)
    rows = 1 if count <= 5 else round(np.sqrt(count / 2))
    columns = -(-count // rows)
    across = max(columns * (2.2 if columns <= 5 else 1.5) + 1.0, 8.0)
    figure = Figure(figsize=(across, 2.6 + rows * (1.9 if rows <= 2 else 1.5)), layout="constrained")
    figure.suptitle("Routing of the actor during training", fontsize=11)
    upper, lower = figure.subfigures(  # type: ignore[misc]
        2, 1, height_ratios=(2.4, rows * (1.9 if rows <= 2 else 1.5))
    )
    left, right = upper.subplots(1, 2)
    _draw_curves(left, snapshots, snapshots.entropy, "entropy of the routing (1: even)")
    _draw_curves(right, snapshots, distance_to_last(snapshots), "distance to the last routing")
    if count <= _MOST_COLOURS:
        upper.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)

    axes = lower.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for task, (axis, name) in enumerate(zip(axes, snapshots.task_names, strict=False)):
        _draw_probabilities(axis, snapshots, task)
        axis.set_title(name, fontsize=8.5 if columns <= 5 else 6)
        if task % columns == 0:
            axis.set_ylabel("layers", fontsize=7)
    for axis in axes[count:]:
        axis.set_axis_off()
    bar = lower.colorbar(ScalarMappable(Normalize(0, 1), _colours()), ax=axes.tolist(), aspect=30, pad=0.01)
    bar.set_label("probability of each connection", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _draw_curves(axis: Axes, snapshots: RoutingSnapshots, values: np.ndarray, label: str) -> None:
    few = len(snapshots.task_names) <= _MOST_COLOURS
    for task, name in enumerate(snapshots.task_names):
        style = task_style(task, 0)
        look: dict[str, Any] = dict(color="0.75", linewidth=0.7)
        if few:
            sparse = -(-len(snapshots.steps) // 12)
            look = dict(color=style["facecolor"], marker=style["marker"], markersize=4, markevery=sparse)
        axis.plot(snapshots.steps, values[:, task], label=name, **look)
    axis.plot(snapshots.steps, np.nanmean(values, 1), color="black", linewidth=2, label="mean of the tasks")
    axis.set(ylim=(-0.02, 1.02), xlabel="environment steps")
    axis.set_title(label, fontsize=9)
    axis.xaxis.label.set_fontsize(8)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=7)
    axis.grid(color="0.92")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_probabilities(axis: Axes, snapshots: RoutingSnapshots, task: int) -> None:
    """A row for each connection, by layer, target and source, and a column for each snapshot."""
    S = len(snapshots.steps)
    blocks = [layer[:, task].reshape(S, -1).T for layer in snapshots.layers]
    ends = np.cumsum([len(block) for block in blocks])
    middles = (snapshots.steps[1:] + snapshots.steps[:-1]) / 2
    columns = np.concatenate([snapshots.steps[:1], middles, snapshots.steps[-1:]])
    axis.pcolormesh(
        columns, np.arange(ends[-1] + 1), np.concatenate(blocks), cmap=_colours(), vmin=0, vmax=1, rasterized=True
    )
    for end in ends[:-1]:
        axis.axhline(end, color="black", linewidth=0.8)
    axis.set_ylim(ends[-1], 0)
    names = [
        f"{k + 1} to {'head' if layer.ndim == 3 else k + 2}" for k, layer in enumerate(snapshots.layers)
    ]  # of the layers that a connection joins
    axis.set_yticks([end - len(block) / 2 for end, block in zip(ends, blocks, strict=True)], names)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(labelsize=6.5, length=2)


def _colours() -> ListedColormap:
    return ListedColormap(colour(np.linspace(0, 1, 256)))
