"""Curves of each task as small panels with the same axes: numbers for the template to draw.

A panel is 100 units wide and high and is stretched to the width of the page, while the labels, which are text of the
page, keep their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

#: Points of a curve.
_POINTS = 200


@dataclass(frozen=True)
class Axis:
    """An axis from 0 to 100.

    :param ticks: where the ticks stand, and their labels
    :param place: where numbers lie on it
    """

    ticks: list[tuple[float, str]]
    place: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Panel:
    """One curve.

    :param title: above it
    :param last: the last value as text; empty without one
    :param path: of an SVG path
    :param end: the last point, as a path that a round line cap makes a dot
    """

    title: str
    last: str
    path: str
    end: str


@dataclass(frozen=True)
class Chart:
    """Curves over the environment steps.

    :param mean: of all tasks
    :param panels: of each task
    :param x: the steps
    :param y: the values
    """

    mean: Panel
    panels: list[Panel]
    x: Axis
    y: Axis


def chart(
    steps: np.ndarray,
    values: np.ndarray,
    task_names: Sequence[str],
    *,
    y: Axis,
    text: Callable[[float], str],
) -> Chart:
    """Draw the values of each task, and their mean.

    :param steps: ``[n]``, n at least 1
    :param values: ``[n, M]``; NaN is left out
    :param task_names: M names
    :param y: the axis of the values
    :param text: how to write a value
    """
    rows = np.unique(np.linspace(0, len(steps) - 1, min(_POINTS, len(steps))).round().astype(int))
    steps, values = steps[rows], values[rows]
    end = float(steps[-1])
    x = linear(0, end, short)
    # The end has a label too, and those that would touch it have none.
    x = Axis([*(tick for tick in x.ticks if tick[0] < 90), (100, short(end))], x.place)
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)

    def panel(title: str, curve: np.ndarray) -> Panel:
        seen = np.isfinite(curve)
        if not seen.any():
            return Panel(title, "", "", "")
        points = [f"{a:.4g},{b:.4g}" for a, b in zip(x.place(steps[seen]), 100 - y.place(curve[seen]), strict=True)]
        return Panel(title, text(float(curve[seen][-1])), "M" + " ".join(points), f"M{points[-1]}h0")

    return Chart(panel("mean", mean), [panel(*pair) for pair in zip(task_names, values.T, strict=True)], x, y)


def linear(low: float, high: float, text: Callable[[float], str], *, ends_at_tick: bool = False) -> Axis:
    """An axis of equal steps.

    :param low: where it begins
    :param high: where it ends
    :param text: how to write a value
    :param ends_at_tick: lengthen it to whole ticks
    """
    if high <= low:
        high = low + 1
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    if ends_at_tick:
        low, high = ticks[0], ticks[-1]
    place = lambda values: 100 * (np.asarray(values) - low) / (high - low)
    return Axis([(float(place(t)), text(float(t))) for t in ticks if low <= t <= high], place)


def logarithmic(values: np.ndarray) -> Axis:
    """An axis of powers of ten around positive values.

    :param values: of any shape; NaN and what is not positive do not count
    """
    logs = np.log10(values[np.isfinite(values) & (values > 0)])
    low, high = (int(np.floor(logs.min())), int(np.ceil(logs.max()))) if logs.size else (0, 1)
    high = max(high, low + 1)
    every = -(-(high - low) // 4)
    place = lambda values: 100 * (np.log10(np.clip(values, 10.0**low, None)) - low) / (high - low)
    return Axis([(100 * (k - low) / (high - low), f"{10.0**k:g}") for k in range(low, high + 1, every)], place)


def short(value: float) -> str:
    """A number in a few characters: 360k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"
