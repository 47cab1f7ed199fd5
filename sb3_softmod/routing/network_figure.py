"""The base network of each task, drawn as in Figure 3 of the paper: modules, joined by their routing probabilities."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, FigureBase
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.routing.routes import STRONG, RoutingStatistics

#: Width of a connection in points, of probability 0 and of probability 1.
THIN, THICK = 0.5, 6.0

#: Width in points that a standard deviation of 1 would add to the band around a connection.
BAND = 36.0

#: Width in points that a mark adds.
MARK = 6.0

#: One hue from light to dark for probabilities, other ones for what is said about them: distinct for every kind of
#: colour vision, and lighter than a probable connection in print without colour.
_BLUES = matplotlib.colormaps["Blues"]
_SPREAD, _SHARED = "#fddcb8", "#ffc53d"
_INK = "0.2"

#: More tasks than these are drawn smaller.
_MANY = 12

#: Inches that the legend needs.
_LEGEND = 7.0

#: The scale of the networks of two tasks side by side.
_PAIR = 0.85


def colour(p: np.ndarray | float) -> np.ndarray:
    """The colour of probabilities, RGBA, a pale blue for 0."""
    return np.asarray(_BLUES(0.2 + 0.8 * np.asarray(p)))


def width(p: np.ndarray | float) -> Any:
    """The width of connections in points."""
    return THIN + (THICK - THIN) * p


class NetworkDrawing:
    """One base network: modules as dots, layer below layer, joined by lines as dark and thick as they are probable.

    :ivar connections: ``[K, 3]``: the upper layer, the target module and the source module of each connection; a head
        is target 0
    :ivar order: which connection each line shows: the more probable ones lie on top
    :ivar lines: the connections; each has the :func:`colour` of its probability, and its :func:`width` times ``scale``
    :ivar bands: around them, in the order of ``connections``, ``BAND * std`` wider

    :param axis: to draw on
    :param layers: probabilities, each ``[n, n]`` (target module, source module), or ``[n]`` for a routed head
    :param std: standard deviations, in the same form
    :param marked: connections to mark with their modules: booleans, in the same form
    :param scale: of widths and dots
    """

    def __init__(
        self,
        axis: Axes,
        layers: Sequence[np.ndarray],
        *,
        std: Sequence[np.ndarray] | None = None,
        marked: Sequence[np.ndarray] | None = None,
        scale: float = 1.0,
    ) -> None:
        n = layers[0].shape[-1]
        routed_head = layers[-1].ndim == 1
        self._scale = scale
        self.connections = np.array(
            [(level, *index) for level, p in enumerate(layers) for index in np.ndindex(np.atleast_2d(p).shape)]
        )
        level, target, source = self.connections.T
        middle = (n - 1) / 2
        ends_at = np.where(routed_head & (level == len(layers) - 1), middle, target)
        self._segments = np.stack([np.stack([source, -level], 1), np.stack([ends_at, -level - 1], 1)], 1)

        axis.set(xlim=(-0.5, n - 0.5), ylim=(-len(layers) - 0.3, 0.3))
        axis.set_axis_off()
        p = _flat(layers)
        if std is not None:
            self.bands = self._add(axis, width(p) + BAND * _flat(std), colors=_SPREAD, capstyle="butt", zorder=1)
        self.lines = self._add(axis, width(p), zorder=3)
        self.update(layers)
        if marked is not None:  # on top of all others, so that a shared path is easy to follow
            chosen = _flat(marked).astype(bool)
            self._add(axis, np.where(chosen, width(p) + MARK, 0), colors=_SHARED, zorder=3.1)
            self._add(axis, np.where(chosen, width(p), 0), colors=colour(p), zorder=3.2)

        levels = len(layers) + (not routed_head)
        x, y = np.meshgrid(np.arange(n), -np.arange(levels))
        dots: dict[str, Any] = dict(edgecolor=_INK, linewidth=1.1 * scale, s=90 * scale**2, zorder=4)
        #: What lies above the lines.
        self.modules = [axis.scatter(x, y, facecolor="white", **dots)]
        if routed_head:
            self.modules.append(axis.scatter([middle], [-levels], marker="s", facecolor=_INK, **dots))
        self._labels = [(-k, f"layer {k + 1}") for k in range(levels)] + [(-levels, "head")] * routed_head

    def update(self, layers: Sequence[np.ndarray]) -> None:
        """Show other probabilities, in the form of those before, in the same artists."""
        p = _flat(layers)
        self.order = np.argsort(p, kind="stable")
        self.lines.set_segments(list(self._segments[self.order]))
        self.lines.set_linewidth(list(self._scale * width(p[self.order])))
        self.lines.set_color(colour(p[self.order]))  # type: ignore[arg-type]

    def label_layers(self, axis: Axes) -> None:
        """Name the layers on the left."""
        for y, text in self._labels:
            axis.annotate(
                text,
                (0, y),
                xytext=(-11 * self._scale - 2, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7.5,
                color="0.35",
            )

    def _add(self, axis: Axes, widths: np.ndarray, **style: Any) -> LineCollection:
        style = {"capstyle": "round", **style}
        lines = LineCollection(list(self._segments), linewidths=list(self._scale * widths), **style)
        axis.add_collection(lines, autolim=False)
        return lines


def draw_routing(statistics: RoutingStatistics) -> Figure:
    """The base network of each task, a panel each, with the spread over the states.

    :raises ConfigurationError: for no task at all
    """
    names = statistics.task_names
    if not names:
        raise ConfigurationError("There is no routing to draw: no state of any task.")
    rows = 1 if len(names) <= 5 else round(np.sqrt(len(names) / 2))
    columns = -(-len(names) // rows)
    scale = 1.0 if len(names) <= _MANY else 0.65
    panel = _panel_size(statistics, scale)
    across = max(columns * (panel[0] + 0.1) + 0.8, _LEGEND)
    figure = figure_of(across, rows * (panel[1] + 0.3) + 0.9, pad=0.08)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for index, (axis, name) in enumerate(zip(axes, names, strict=False)):
        drawing = NetworkDrawing(axis, statistics.mean[name], std=statistics.std[name], scale=scale)
        axis.set_box_aspect(panel[1] / panel[0])
        axis.set_title(_wrapped(name, panel[0], 9.5 * scale**0.6), fontsize=9.5 * scale**0.6)
        if index % columns == 0:
            drawing.label_layers(axis)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(f"{statistics.network.capitalize()}: mean routing over the states of rollouts", fontsize=11)
    bands = {f"std {std:g}": _around(_SPREAD, BAND * std) for std in (0.1, 0.3)}
    draw_legend(figure, scale, more=bands)
    return figure


def draw_task_routing(statistics: RoutingStatistics, task: str) -> Figure:
    """The base network of one task alone, with the spread over the states: :func:`draw_routing`'s panel, bare."""
    across, down = _panel_size(statistics, 1.0)
    figure = Figure(figsize=(across + 0.6, down), layout="constrained")
    axis = figure.subplots()
    NetworkDrawing(axis, statistics.mean[task], std=statistics.std[task]).label_layers(axis)
    return figure


def draw_shared_routing(statistics: RoutingStatistics, pairs: Sequence[tuple[str, str]]) -> Figure:
    """Tasks two by two, with the connections marked that are strong in both.

    Strong and shared are what :meth:`.RoutingStatistics.strong` and :meth:`.RoutingStatistics.shared` say.

    :raises ConfigurationError: for no pair, or an unknown task
    """
    for name in (name for pair in pairs for name in pair):
        if name not in statistics.mean:
            raise ConfigurationError(f"No routing of a task {name!r}: there is {', '.join(statistics.task_names)}.")
    if not pairs:
        raise ConfigurationError("There is no pair of tasks to draw.")
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    across, down = _pair_size(statistics)
    figure = figure_of(max(columns * across, _LEGEND), rows * down + 0.9, pad=0.08)
    boxes = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.04).flatten()
    for box, pair in zip(boxes, pairs, strict=False):
        box.set_facecolor("0.965")
        _draw_pair(box, statistics, pair)
    figure.suptitle(f"{statistics.network.capitalize()}: pairs of tasks and the paths that they share", fontsize=11)
    draw_legend(figure, _PAIR, more={f"strong in both: {strength(statistics)}": _around(_SHARED, MARK)})
    return figure


def draw_task_pair(statistics: RoutingStatistics, pair: tuple[str, str]) -> Figure:
    """Two tasks alone, with what they share marked: a box of :func:`draw_shared_routing`, bare."""
    figure = figure_of(*_pair_size(statistics), pad=0.08)
    _draw_pair(figure, statistics, pair)
    return figure


def strength(statistics: RoutingStatistics) -> str:
    """In words, from which probability on a connection is strong."""
    n = next(iter(statistics.mean.values()))[0].shape[-1]
    return f"at least {STRONG:g}/n = {STRONG / n:.3g}"


def _draw_pair(figure: FigureBase, statistics: RoutingStatistics, pair: tuple[str, str]) -> None:
    shared = statistics.shared(*pair)
    either = sum(int((a | b).sum()) for a, b in zip(*map(statistics.strong, pair), strict=True))
    figure.suptitle(f"{sum(int(s.sum()) for s in shared)} of {either} strong connections shared", fontsize=8.5)
    panel = _panel_size(statistics, _PAIR)
    for index, (axis, name) in enumerate(zip(figure.subplots(1, 2), pair, strict=True)):
        drawing = NetworkDrawing(axis, statistics.mean[name], marked=shared, scale=_PAIR)
        axis.set_box_aspect(panel[1] / panel[0])
        axis.set_title(_wrapped(name, panel[0], 9), fontsize=9)
        if index == 0:
            drawing.label_layers(axis)


def _pair_size(statistics: RoutingStatistics) -> tuple[float, float]:
    """Width and height of two networks with their titles, in inches."""
    across, down = _panel_size(statistics, _PAIR)
    return 2 * across + 0.6, down + 0.7


def figure_of(across: float, down: float, *, pad: float) -> Figure:
    """A figure of a size in inches."""
    figure = Figure(figsize=(across, down), layout="constrained")
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)  # type: ignore[union-attr, call-arg]
    return figure


def _line(line_colour: Any, points: float) -> Line2D:
    return Line2D([], [], color=line_colour, linewidth=points, solid_capstyle="butt")


def _around(line_colour: str, points: float) -> tuple[Line2D, ...]:
    """For the legend, what is drawn around a connection of probability 0.5."""
    return _line(line_colour, width(0.5) + points), _line(colour(0.5), width(0.5))


def draw_legend(
    figure: Figure,
    scale: float,
    *,
    more: dict[str, tuple[Line2D, ...]] | None = None,
    loc: str = "outside lower center",
) -> None:
    """Connections of some probabilities, and what they mean.

    :param figure: to draw on
    :param scale: of the :class:`NetworkDrawing` in it
    :param more: texts and lines, drawn one above the other
    :param loc: where, as in matplotlib
    """
    more = more or {}
    values = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples = [*((_line(colour(p), width(p)),) for p in values), *more.values()]
    for line in (line for lines in samples for line in lines):
        line.set_linewidth(scale * line.get_linewidth())
    texts = [f"{p:.0%}" if p else "probability 0%" for p in values]
    figure.legend(  # type: ignore[call-overload]  # mypy knows no handler for tuples
        samples,
        [*texts, *more],
        loc=loc,
        ncols=len(values) + len(more),
        frameon=False,
        fontsize=8,
        handlelength=2,
        columnspacing=1.2,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )


def _panel_size(statistics: RoutingStatistics, scale: float) -> tuple[float, float]:
    """Width and height of one network in inches."""
    layers = next(iter(statistics.mean.values()))
    n = layers[0].shape[-1]
    return scale * max(0.62 * n, 1.6), scale * (0.8 * len(layers) + 0.2)


def _wrapped(name: str, inches: float, size: float) -> str:
    """A task's name in lines that fit."""
    return textwrap.fill(name, max(int(inches * 72 / (0.56 * size)), 8))


def _flat(layers: Sequence[np.ndarray]) -> np.ndarray:
    """All connections in a row, ``[K]``."""
    return np.concatenate([np.ravel(layer) for layer in layers])
