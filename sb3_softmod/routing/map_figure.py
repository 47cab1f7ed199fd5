"""Which tasks are routed alike: the paper's Figure 4, beside the similarity of each pair of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.routing.network_figure import figure_of
from sb3_softmod.routing.routes import RoutingSamples, RoutingStatistics

#: Okabe and Ito's colours, which every kind of colour vision tells apart, without their black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")
_MARKERS = "osD^vPX*"

#: t-SNE takes a while: more states than these in total are thinned out.
_MOST_STATES = 2000

#: The points of more tasks than these are numbered instead of named, so that the labels do not overlap.
_MOST_NAMES = 5

#: The similarities of more tasks than these are not written into the matrix.
_MOST_NUMBERS = 15


def embed_routes(samples: RoutingSamples, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The routes of states in the plane, near each other where they are alike, by t-SNE.

    The perplexity is 30, or a third of the states where there are few.

    :param samples: of one network; at most 2000 states are taken, evenly from each task
    :param seed: of t-SNE
    :return: points ``[B', 2]``, and the task of each ``[B']``
    :raises ConfigurationError: for fewer than two states, or without scikit-learn
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigurationError("t-SNE needs scikit-learn: pip install 'sb3-softmod[plots]'.") from error
    rows = _thinned(samples.task_ids)
    routes = samples.routes()[rows]
    if len(routes) < 2:
        raise ConfigurationError(f"t-SNE needs at least two states, not {len(routes)}.")
    centred = routes - routes.mean(0)
    size = np.abs(centred).max()
    if size < 1e-6:  # all the same: t-SNE would divide by 0
        return np.zeros((len(routes), 2)), samples.task_ids[rows]
    perplexity = min(30.0, (len(routes) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(centred / size)
    return points, samples.task_ids[rows]


def task_order(statistics: RoutingStatistics) -> tuple[list[int], np.ndarray]:
    """Cluster at least two tasks by the similarity of their routes (average linkage), similar ones side by side.

    :return: the indices of the tasks in that order, and SciPy's linkage matrix ``[tasks - 1, 4]`` of their distances
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    # What SciPy calls a condensed matrix: each pair once.
    distances = 1 - statistics.similarity[np.triu_indices(len(statistics.mean), 1)]
    tree = linkage(np.clip(distances, 0, None), "average", optimal_ordering=True)
    return leaves_list(tree).tolist(), tree


def draw_routing_map(samples: RoutingSamples, *, seed: int = 0) -> Figure:
    """t-SNE of the routes of all states, and the similarity of each pair of tasks with a dendrogram.

    :param samples: of one network
    :param seed: of t-SNE
    :return: a figure; of one task without similarities
    :raises ConfigurationError: for fewer than two states, or without scikit-learn
    """
    statistics = RoutingStatistics.of(samples)
    if len(statistics.mean) == 1:
        figure = draw_routing_points(samples, seed=seed)
    else:
        side = _side(statistics, 5)
        figure = figure_of(2 * side + 3.6, side + 1.2, pad=0.1)
        left, tree, right = figure.subplots(1, 3, width_ratios=(side, 1.0, side))
        _draw_points(left, samples, _places(samples), seed)
        _draw_tasks(tree, right, statistics)
    figure.suptitle(f"{samples.network.capitalize()}: which tasks are routed alike", fontsize=12)
    return figure


def draw_routing_points(samples: RoutingSamples, *, seed: int = 0) -> Figure:
    """The left half of :func:`draw_routing_map`, whose arguments these are: t-SNE alone."""
    figure = figure_of(6, 5.5, pad=0.1)
    _draw_points(figure.subplots(), samples, _places(samples), seed)
    return figure


def draw_routing_similarity(statistics: RoutingStatistics) -> Figure:
    """The right half of :func:`draw_routing_map`: similarities and dendrogram alone, of at least two tasks."""
    side = _side(statistics, 3.5)
    figure = figure_of(side + 3, side + 0.5, pad=0.1)
    tree, right = figure.subplots(1, 2, width_ratios=(1.0, side))
    _draw_tasks(tree, right, statistics)
    return figure


def _side(statistics: RoutingStatistics, least: float) -> float:
    """Of the matrix, in inches."""
    return float(np.clip(0.45 * len(statistics.mean), least, 9))


def _places(samples: RoutingSamples) -> list[int]:
    """The tasks that some state is of, similar ones side by side."""
    statistics = RoutingStatistics.of(samples)
    order = task_order(statistics)[0] if len(statistics.mean) > 1 else [0]
    return [samples.task_names.index(statistics.task_names[index]) for index in order]


def _draw_tasks(tree_axis: Axes, matrix_axis: Axes, statistics: RoutingStatistics) -> None:
    """The dendrogram and, beside it, the matrix."""
    order, tree = task_order(statistics)
    names = [statistics.task_names[index] for index in order]
    # Of matrix and tree, from a whole tenth, and from 0.9 at most: untrained routes all look the same.
    lowest = min(np.floor(10 * statistics.similarity.min()) / 10, 0.9)
    _draw_tree(tree_axis, tree, 1 - lowest)
    _draw_similarity(matrix_axis, names, statistics.similarity[np.ix_(order, order)], lowest)


def task_style(place: int, size: float) -> dict[str, Any]:
    """How the points of a task look: colour and marker together are its own, for up to 64 tasks.

    :param place: of the task in the order of the figure, from 0
    :param size: of a marker, in square points
    """
    kinds = len(_COLOURS)
    return dict(
        facecolor=_COLOURS[place % kinds],
        marker=_MARKERS[(place + place // kinds) % kinds],
        s=size,
        edgecolor="0.25",
        linewidth=0.3,
    )


def _draw_points(axis: Axes, samples: RoutingSamples, order: list[int], seed: int) -> None:
    """The points of each task in a colour and marker of its own, with its name or, of many, its number in the order."""
    points, ids = embed_routes(samples, seed=seed)
    few = len(order) <= _MOST_NAMES
    size = 24 if len(order) <= _MOST_NUMBERS else 14
    for place, task in enumerate(order):
        own = points[ids == task]
        axis.scatter(*own.T, label=samples.task_names[task], zorder=2, **task_style(place, size))
        # At the point that is nearest to all others, so that the label is on the cluster even if that is bent.
        centre = own[np.abs(own[:, None] - own).sum((1, 2)).argmin()]
        axis.annotate(
            samples.task_names[task] if few else str(place + 1),
            centre,
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            fontweight="bold",
            zorder=3,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white", alpha=0.85)],
        )
    axis.margins(0.2 if few else 0.06, 0.06)
    numbers = "" if few else ", a number a task"
    axis.set(xticks=[], yticks=[], xlabel=f"t-SNE of all routing probabilities: a point is a state{numbers}")
    axis.xaxis.label.set_fontsize(9)
    for spine in axis.spines.values():
        spine.set_color("0.8")


def _draw_tree(axis: Axes, tree: np.ndarray, farthest: float) -> None:
    """The dendrogram, its leaves at the rows 0, 1, ... of the matrix beside it, and distances up to ``farthest``."""
    from scipy.cluster.hierarchy import dendrogram

    drawn = dendrogram(tree, no_plot=True)
    for heights, places in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        axis.plot(heights, np.asarray(places) / 10 - 0.5, color="0.3", linewidth=0.9)  # SciPy's leaf k is at 10 k + 5
    axis.set(xlim=(farthest, 0), ylim=(len(tree) + 0.5, -0.5))
    axis.set_axis_off()


def _draw_similarity(axis: Axes, names: list[str], similarity: np.ndarray, lowest: float) -> None:
    """The matrix, with the numbers, names and markers of the tasks at its rows: the legend of the points too."""
    count = len(names)
    few = count <= _MOST_NUMBERS
    image = axis.imshow(similarity, cmap="cividis", vmin=lowest, vmax=1, aspect="auto")
    axis.yaxis.tick_right()
    axis.set_yticks(range(count), [f"{place + 1}  {name}" for place, name in enumerate(names)], fontsize=8)
    axis.set_xticks(range(count), [str(place + 1) for place in range(count)], fontsize=8 if few else 6)
    axis.tick_params(length=0)
    axis.tick_params("y", pad=20)
    for place in range(count):
        beside = axis.get_yaxis_transform()  # x of the axes, y of the data
        axis.scatter(1.02, place, transform=beside, clip_on=False, **task_style(place, 30))
    if few:
        for (row, column), value in np.ndenumerate(similarity):
            ink = "white" if value < (lowest + 1) / 2 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    bar = axis.figure.colorbar(image, ax=axis, location="bottom", shrink=0.7, aspect=40, pad=0.02)
    bar.set_label("similarity: 1 - mean total variation distance of the mean routes", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _thinned(ids: np.ndarray) -> np.ndarray:
    """Indices of at most :data:`_MOST_STATES` states, evenly spread over those of each task."""
    tasks = np.unique(ids)
    share = max(_MOST_STATES // len(tasks), 1)
    rows = [np.flatnonzero(ids == task) for task in tasks]
    return np.concatenate([own[np.linspace(0, len(own) - 1, min(share, len(own))).astype(int)] for own in rows])
