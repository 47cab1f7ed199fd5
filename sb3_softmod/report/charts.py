"""The charts of the page, by Vega-Lite: their specifications, and the JavaScript that draws them without a network."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
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
    """Vega, Vega-Lite and Vega-Embed of the version that Altair writes for, to stand in a script element."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return str(vl_convert.javascript_bundle(vl_version=version)).replace("</script", r"<\/script")


@dataclass(frozen=True)
class Style:
    """An entry of the legend.

    :param colour: as "#2a87c8"
    :param dashes: lengths of dash and gap in pixels
    """

    colour: str
    dashes: tuple[int, int]


def styles_of(lines: Sequence[Line]) -> dict[str, Style]:
    """The legend: a style for each series. A mean whose runs have styles of their own is grey."""
    own = list(dict.fromkeys(line.series for line in lines if not line.is_mean))
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
    x = alt.X(
        "steps:Q",
        scale=alt.Scale(domain=[0, max(int(line.steps[-1]) for line in lines)], nice=False),
        axis=alt.Axis(
            labelExpr="datum.value ? format(datum.value, '~s') : '0'",
            tickCount=4,
            grid=False,
            title=None,
            labelFlush=True,
            labelOverlap=True,
        ),
    )
    domain, ticks = _domain_and_ticks(metric, lines, panels)
    y = dict(
        scale=alt.Scale(type="log" if metric.logarithmic else "linear", domain=domain, nice=True, clamp=True),
        axis=alt.Axis(format=number, title=None, domain=False, ticks=False, labelOverlap=True, **ticks),
    )
    colours, dashes = [s.colour for s in styles.values()], [list(s.dashes) for s in styles.values()]
    base = alt.Chart(alt.NamedData(name=ROWS)).encode(
        x,
        alt.Color("series:N", scale=alt.Scale(domain=list(styles), range=colours), legend=None),
        alt.Detail("run:N"),
    )
    curves = base.mark_line(strokeJoin="round", strokeCap="round").encode(
        alt.Y("value:Q", **y),
        alt.StrokeDash("series:N", scale=alt.Scale(domain=list(styles), range=dashes), legend=None),
        # Runs stand back where there is their mean.
        strokeWidth=alt.condition("datum.mean", alt.value(3), alt.value(1.25 if has_means else 1.75)),
        opacity=alt.condition("datum.mean", alt.value(1), alt.value(0.6 if has_means else 1)),
    )
    under_pointer = alt.selection_point(
        name="pointer", on="pointermove", clear="pointerout", nearest=True, fields=["run", "steps"], empty=False
    )
    points = base.mark_point(filled=True, size=60, strokeWidth=0).encode(
        alt.Y("value:Q", **y),
        opacity=alt.condition(under_pointer, alt.value(1), alt.value(0)),
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("steps:Q", title="environment steps", format=",.0f"),
            alt.Tooltip("value:Q", title=metric.title.lower(), format=number),
            *([alt.Tooltip("low:Q", title="95 % from", format=number)] if has_bands else []),
            *([alt.Tooltip("high:Q", title="95 % to", format=number)] if has_bands else []),
        ],
    )
    layers = [curves, points.add_params(under_pointer)]
    if has_bands:
        bands = base.mark_area(opacity=0.15).transform_filter("isValid(datum.low)")
        layers.insert(0, bands.encode(alt.Y("low:Q", **y), alt.Y2("high:Q")))
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    layered = alt.layer(*layers).properties(width="container", height=height, autosize=fit)
    page = layered.configure(background="transparent", font="system-ui, sans-serif", view=alt.ViewConfig(stroke=None))
    specification: dict[str, Any] = page.to_dict()
    return specification


def _domain_and_ticks(
    metric: Metric, lines: Sequence[Line], panels: slice
) -> tuple[tuple[float, float], dict[str, Any]]:
    """From the smallest to the largest value, 0 to 1 for rates; a logarithmic axis has whole powers of ten around those
    that are positive, and grid lines at no more than five of them.
    """
    ticks = {"tickCount": 4}
    if metric.percent:
        return (0.0, 1.0), ticks
    values = np.concatenate([part[:, panels].ravel() for line in lines for part in (line.values, *(line.band or ()))])
    values = values[np.isfinite(values)]
    if metric.logarithmic:
        logs = np.log10(values[values > 0])
        low, high = (int(np.floor(logs.min())), int(np.ceil(logs.max()))) if len(logs) else (0, 1)
        high = max(high, low + 1)
        return (10.0**low, 10.0**high), {"values": [10.0**k for k in range(low, high + 1, -(-(high - low) // 4))]}
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5), ticks
