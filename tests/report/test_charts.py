"""The charts of a report are Vega-Lite, readable and small."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import vl_convert

from sb3_softmod.report.charts import chart, javascript, styles_of
from sb3_softmod.report.curves import METRICS, Label, Line, lines_of


def a_line(values: list[float], **options: Any) -> Line:
    """Of one task: the mean is its own value."""
    column = np.array(values)
    return Line("seed 1", "seed 1", np.arange(1, len(values) + 1) * 10, np.column_stack([column, column]), **options)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
@pytest.mark.parametrize("values", [[0.25, np.nan, 0.5], [0.25], [np.nan], [0.0, 0.0]], ids=str)
def test_charts_are_vega_lite(metric: Any, values: list[float]) -> None:
    line = a_line(values)
    lines = [line, Line("mean", "mean", line.steps, line.values, (line.values, line.values), is_mean=True)]
    for drawn in (lines[:1], lines):
        found = chart(metric, drawn, slice(1), styles_of(drawn), height=100)
        vega = vl_convert.vegalite_to_vega(found)
        scales = {scale["name"]: scale for scale in vega["scales"]}
        assert scales["x"]["domain"] == [0, 10 * len(values)]
        assert scales["y"]["type"] == ("log" if metric.logarithmic else "linear")
        low, high = scales["y"]["domain"]
        assert low < high
        assert "url" not in json.dumps(found)
        tooltips = [mark["encode"]["update"].get("tooltip") for mark in vega["marks"] if "encode" in mark]
        assert {"signal": "datum.datum"} in tooltips  # of the nearest row


def test_axes() -> None:
    metrics = {metric.key: metric for metric in METRICS}

    def y_of(key: str, values: list[float]) -> dict[str, Any]:
        line = a_line(values)
        return chart(metrics[key], [line], slice(1), styles_of([line]), height=100)["layer"][0]["encoding"]["y"]

    assert y_of("success", [0.2, 0.3])["scale"]["domain"] == [0, 1]
    assert y_of("q_value", [-2, 3])["scale"]["domain"] == [-2, 3]
    logarithmic = y_of("ent_coef", [0.003, np.nan, 2.0, 0.0])
    assert logarithmic["scale"]["domain"] == [0.001, 10]
    assert logarithmic["axis"]["values"] == [0.001, 0.01, 0.1, 1, 10]
    assert len(y_of("ent_coef", [1e-9, 1.0])["axis"]["values"]) <= 5


def test_every_series_has_a_style_of_its_own() -> None:
    values = np.zeros((1, 2))
    lines = [Line(f"seed {seed}", f"seed {seed}", np.ones(1), values) for seed in range(20)]
    mean = Line("mean", "mean", np.ones(1), values, is_mean=True)
    styles = styles_of([*lines, mean])
    assert len(styles) == len({(style.colour, style.dashes) for style in styles.values()}) == 21


def test_many_tasks_and_runs_make_no_large_page() -> None:
    logged = np.random.default_rng(0).random((5000, 50))
    labels = [Label(f"seed {seed}", "Ours", f"seed {seed}") for seed in range(10)]
    lines = lines_of(METRICS[1], [(label, np.arange(5000) * 1000, logged) for label in labels])
    assert len(lines) == 11
    assert lines[0].steps[[0, -1]].tolist() == [0, 4_999_000]
    size = len(json.dumps([line.as_json() for line in lines]))
    assert len(METRICS) * size + len(javascript()) < 5_000_000


def test_means_over_seeds_are_geometric_on_a_logarithmic_axis() -> None:
    metric = next(metric for metric in METRICS if metric.logarithmic)
    found = [
        (Label(name, "Ours", name), np.array([1]), np.array([[value]]))
        for name, value in zip("abc", (1, 10, 100), strict=True)
    ]
    *_, mean = lines_of(metric, found)
    assert mean.band is not None
    np.testing.assert_allclose(mean.values, [[10, 10]])
    np.testing.assert_allclose(mean.band[0] * mean.band[1], [[100, 100]])
    assert (mean.band[0] > 0).all()
