"""The charts of the page, by Vega-Lite: their specifications, and the JavaScript that draws them without a network."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import vl_convert

from sb3_softmod.report.curves import Line, Metric

#: Colours that can be told apart with colour-blind eyes, on white and on black; then the same with dashes.
_COLOURS = ("#2a87c8", "#cc7a00", "#12a37a", "#c86a9b", "#7b6fd0", "#d0582a", "#9a8420")
_DASHES = ((1, 0), (6, 3), (2, 2))
#: Of the mean of several runs of one method, which stand in colours beside it.
_GREY = "#858585"

#: Name of the rows that the page passes to a chart: run, series, mean, steps, value, low, high.
ROWS = "rows"


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed, to stand in a script element."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub wants a snippet, it does not
    return bundle.replace("</script", r"<\/script")


@dataclass(frozen=True)
class Style:
    """An entry of the legend.

    :param colour: as "#2a87c8"
    :param dashes: lengths of dash and gap in pixels
    """

    colour: str
    dashes: tuple[int, int]


def styles_of(lines: Sequence[Line], runs: Sequence[str] = ()) -> dict[str, Style]:
    """The legend: a style for each series. A mean whose runs have styles of their own is grey.

    :param lines: of all charts
    :param runs: series of runs, which have a style without a line too
    """
    own = list(dict.fromkeys([*runs, *(line.series for line in lines if not line.is_mean)]))
    styles = {
        name: Style(_COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS) % len(_DASHES)])
        for place, name in enumerate(own)
    }
    return {**{line.series: Style(_GREY, _DASHES[0]) for line in lines if line.series not in styles}, **styles}


def chart(
    metric: Metric, lines: Sequence[Line], panels: slice, styles: Mapping[str, Style], *, height: int
) -> dict[str, Any]:
    """A chart of :data:`ROWS` over environment steps, with the value under the pointer, as wide as its place.

    :param metric: what it shows
    :param lines: what they show of the tasks
    :param panels: which columns of their values are drawn with these axes
    :param styles: see :func:`styles_of`
    :param height: in pixels
    :return: a Vega-Lite specification
    """
    has_means, has_bands = any(line.is_mean for line in lines), any(line.band for line in lines)
    number = ".0%" if metric.percent else ",.3~r"
    domain, ticks = _domain_and_ticks(metric, lines, panels)
    scale = {"type": "log" if metric.logarithmic else "linear", "domain": domain, "nice": True, "clamp": True}
    quiet = {"title": None, "labelOverlap": True}
    y = {"scale": scale, "axis": {**quiet, **ticks, "format": number, "domain": False, "ticks": False}}
    last = max(int(line.steps[-1]) for line in lines)
    steps = {
        "tickCount": 4,
        "grid": False,
        "labelFlush": True,
        "labelExpr": "datum.value ? format(datum.value, '~s') : '0'",
    }
    x = _field("steps", scale={"domain": [0, last], "nice": False}, axis={**quiet, **steps})
    look = {"domain": list(styles), "range": [style.colour for style in styles.values()]}
    dashes = {**look, "range": [list(style.dashes) for style in styles.values()]}
    curves = {
        "mark": {"type": "line", "strokeJoin": "round", "strokeCap": "round"},
        "encoding": {
            "y": _field("value", **y),
            "strokeDash": _name("series", scale=dashes, legend=None),
            # Runs stand back where there is their mean.
            "strokeWidth": _if("datum.mean", 3, 1.25 if has_means else 1.75),
            "opacity": _if("datum.mean", 1, 0.6 if has_means else 1),
        },
    }
    nearest = {"type": "point", "on": "pointermove", "clear": "pointerout", "nearest": True, "fields": ["run", "steps"]}
    points = {
        "params": [{"name": "pointer", "select": nearest}],
        # The page writes the row in words.
        "mark": {"type": "point", "filled": True, "size": 60, "strokeWidth": 0, "tooltip": {"content": "data"}},
        "encoding": {
            "y": _field("value", **y),
            "opacity": {"condition": {"param": "pointer", "empty": False, "value": 1}, "value": 0},
        },
    }
    bands = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "area", "opacity": 0.15},
        "encoding": {"y": _field("low", **y), "y2": {"field": "high"}},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"name": ROWS},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "encoding": {"x": x, "color": _name("series", scale=look, legend=None), "detail": {"field": "run"}},
        "layer": [*([bands] if has_bands else []), curves, points],
        "config": {"background": "transparent", "font": "system-ui, sans-serif", "view": {"stroke": None}},
    }


def _field(name: str, **options: Any) -> dict[str, Any]:
    return {"field": name, "type": "quantitative", **options}


def _name(name: str, **options: Any) -> dict[str, Any]:
    return {"field": name, "type": "nominal", **options}


def _if(test: str, value: float, otherwise: float) -> dict[str, Any]:
    return {"condition": {"test": test, "value": value}, "value": otherwise}


def _domain_and_ticks(metric: Metric, lines: Sequence[Line], panels: slice) -> tuple[list[float], dict[str, Any]]:
    """From the smallest to the largest value, 0 to 1 for rates; a logarithmic axis has whole powers of ten around those
    that are positive, and grid lines at no more than five of them.
    """
    ticks = {"tickCount": 4}
    if metric.percent:
        return [0.0, 1.0], ticks
    values = np.concatenate([part[:, panels].ravel() for line in lines for part in (line.values, *(line.band or ()))])
    values = values[np.isfinite(values)]
    if metric.logarithmic:
        logs = np.log10(values[values > 0])
        first, last = (int(np.floor(logs.min())), int(np.ceil(logs.max()))) if len(logs) else (0, 1)
        last = max(last, first + 1)
        powers = range(first, last + 1, -(-(last - first) // 4))
        return [10.0**first, 10.0**last], {"values": [10.0**power for power in powers]}
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return [low, high] if low < high else [low - 0.5, high + 0.5], ticks
