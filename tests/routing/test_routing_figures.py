"""The figures of the routing show the numbers that they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_routing import model
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from point_mass import make_point_mass_env

from sb3_softmod import ConfigurationError, FileError, MultiTaskSAC
from sb3_softmod.routing.figures import plot_routing, plot_routing_history
from sb3_softmod.routing.history_figure import distance_to_last, draw_routing_history
from sb3_softmod.routing.map_figure import draw_routing_map, embed_routes, task_order, task_style
from sb3_softmod.routing.network_figure import (
    BAND,
    MARK,
    NetworkDrawing,
    colour,
    draw_routing,
    draw_shared_routing,
    width,
)
from sb3_softmod.routing.routes import RoutingSamples, RoutingStatistics
from sb3_softmod.routing.snapshots import RoutingSnapshots

FIRST, SECOND = np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([[0.76, 0.24], [0.2, 0.8]])
STD = np.array([[0.1, 0.0], [0.2, 0.3]])
HEAD = np.array([0.25, 0.75])


def random_samples(num_tasks: int, each: int = 5, n: int = 4, head: bool = True, spread: float = 0.1) -> RoutingSamples:
    """Logits of a task's own, and a little noise for each state."""
    random = np.random.default_rng(0)
    ids = np.repeat(np.arange(num_tasks), each)
    layers = []
    for shape in [(n, n), (n, n), *[(n,)] * head]:
        logits = 3 * random.normal(size=(num_tasks, *shape))[ids] + spread * random.normal(size=(len(ids), *shape))
        p = np.exp(logits)
        layers.append(p / p.sum(-1, keepdims=True))
    return RoutingSamples("actor", [f"task-{i}" for i in range(num_tasks)], ids, layers)


def lines_of(collection: LineCollection) -> dict[tuple[float, ...], tuple[float, tuple[float, ...]]]:
    """Width and colour of each line by its ends, ``(x, y, x, y)``."""
    segments = [tuple(np.round(segment, 6).ravel().tolist()) for segment in collection.get_segments()]
    colours = np.broadcast_to(collection.get_color(), (len(segments), 4))
    widths = collection.get_linewidths()  # type: ignore[attr-defined]
    return {ends: (float(w), tuple(c.tolist())) for ends, w, c in zip(segments, widths, colours, strict=True)}


def layer_of(axis: Axes, zorder: float) -> LineCollection:
    return next(c for c in axis.collections if isinstance(c, LineCollection) and c.get_zorder() == zorder)


# ------------------------------------------------------------------- Figure 3


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_lines_are_the_probabilities(scale: float) -> None:
    axis = Figure().subplots()
    drawing = NetworkDrawing(axis, [FIRST, HEAD], std=[STD, 0 * HEAD], scale=scale)
    lines, bands = lines_of(drawing.lines), lines_of(drawing.bands)
    assert len(lines) == len(bands) == 6
    for (target, source), p in np.ndenumerate(FIRST):
        ends = (source, 0, target, -1)
        assert lines[ends] == (pytest.approx(scale * width(p)), pytest.approx(tuple(colour(p))))
        assert bands[ends][0] == pytest.approx(scale * (width(p) + BAND * STD[target, source]))
    for source, p in enumerate(HEAD):  # into one square in the middle
        ends = (source, -1, 0.5, -2)
        assert lines[ends] == (pytest.approx(scale * width(p)), pytest.approx(tuple(colour(p))))
    modules, head = drawing.modules
    assert modules.get_offsets().shape == (4, 2)  # type: ignore[union-attr]
    np.testing.assert_array_equal(head.get_offsets(), [[0.5, -2]])
    # The most probable connection lies on top, and `order` and `connections` tell which it is.
    assert drawing.connections[drawing.order[-1]].tolist() == [0, 0, 0]
    drawing.label_layers(axis)
    assert [text.get_text() for text in axis.texts] == ["layer 1", "layer 2", "head"]


def test_update_shows_other_probabilities() -> None:
    drawing = NetworkDrawing(Figure().subplots(), [FIRST])
    drawing.update([SECOND])
    assert lines_of(drawing.lines)[(1, 0, 1, -1)] == (pytest.approx(width(0.8)), pytest.approx(tuple(colour(0.8))))


def test_darker_and_thicker_is_more() -> None:
    p = np.linspace(0, 1, 11)
    lightness = colour(p)[:, :3] @ (0.299, 0.587, 0.114)  # as in print without colour
    assert (np.diff(lightness) < 0).all()
    assert (np.diff(width(p)) > 0).all()


@pytest.mark.parametrize("num_tasks", [1, 3, 10, 25, 50])
def test_a_panel_for_each_task(num_tasks: int) -> None:
    statistics = RoutingStatistics.of(random_samples(num_tasks, head=num_tasks == 3))
    figure = draw_routing(statistics)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == statistics.task_names
    for axis, layers in zip(panels, statistics.mean.values(), strict=True):
        assert sorted(w for w, _ in lines_of(layer_of(axis, 3)).values()) == pytest.approx(
            sorted((1 if num_tasks <= 12 else 0.65) * width(np.concatenate([p.ravel() for p in layers])))
        )
    across, down = figure.get_size_inches()
    assert across < 20
    assert down < 16
    assert figure.legends[0].get_texts()[0].get_text() == "probability 0%"


def test_pairs_with_their_shared_paths() -> None:
    statistics = RoutingStatistics("critic 1", {"a": [FIRST], "b": [SECOND]}, {"a": [0 * STD], "b": [0 * STD]})
    figure = draw_shared_routing(statistics, [("a", "b")])
    (box,) = figure.subfigs
    assert box.get_suptitle() == "1 of 2 strong connections shared"
    for axis, p in zip(box.axes, (FIRST, SECOND), strict=True):
        marked = {ends: w for ends, (w, _) in lines_of(layer_of(axis, 3.1)).items() if w}
        assert marked == {(0, 0, 0, -1): pytest.approx(0.85 * (width(p[0, 0]) + MARK))}
    assert "strong in both: at least 1.5/n = 0.75" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_unknown_tasks_and_no_tasks_are_refused() -> None:
    statistics = RoutingStatistics.of(random_samples(2))
    with pytest.raises(ConfigurationError, match="No routing of a task 'task-7': there is task-0, task-1"):
        draw_shared_routing(statistics, [("task-0", "task-7")])
    with pytest.raises(ConfigurationError, match="no pair of tasks"):
        draw_shared_routing(statistics, [])
    with pytest.raises(ConfigurationError, match="no routing to draw"):
        draw_routing(RoutingStatistics("actor", {}, {}))


# ------------------------------------------------------------------- Figure 4


def test_states_of_a_task_are_neighbours() -> None:
    samples = random_samples(3, each=20)
    points, ids = embed_routes(samples, seed=1)
    centres = np.stack([points[ids == task].mean(0) for task in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    np.testing.assert_array_equal(nearest, ids)
    np.testing.assert_array_equal(points, embed_routes(samples, seed=1)[0])


def test_t_sne_of_hardly_any_states() -> None:
    assert embed_routes(random_samples(2, each=1))[0].shape == (2, 2)
    even = random_samples(2, each=3)
    even.layers[:] = [np.full_like(layer, 0.25) for layer in even.layers]
    assert not embed_routes(even)[0].any()
    with pytest.raises(ConfigurationError, match="at least two states, not 1"):
        embed_routes(random_samples(1, each=1))


def test_long_rollouts_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_softmod.routing.map_figure._MOST_STATES", 20)
    _, ids = embed_routes(random_samples(2, each=50))
    np.testing.assert_array_equal(np.bincount(ids), [10, 10])


def test_similar_tasks_stand_side_by_side() -> None:
    a, b = FIRST, np.array([[0.1, 0.9], [0.9, 0.1]])
    mean = {"a": [a], "b": [b], "like a": [a + 0.01 * np.array([[1, -1], [1, -1]])], "like b": [b]}
    order, tree = task_order(RoutingStatistics("actor", mean, {}))
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset((0, 2)), frozenset((1, 3))}
    np.testing.assert_allclose(tree[:, 2], [0, 0.01, (0.8 + 0.6 + 0.79 + 0.61) / 4], atol=1e-9)


@pytest.mark.parametrize("num_tasks", [1, 2, 6, 50])
def test_map_of_the_routes(num_tasks: int) -> None:
    samples = random_samples(num_tasks, each=3)
    figure = draw_routing_map(samples)
    if num_tasks == 1:
        assert [text.get_text() for text in figure.axes[0].texts] == ["task-0"]
        return
    points, tree, matrix, _ = figure.axes
    statistics = RoutingStatistics.of(samples)
    order, _ = task_order(statistics)
    np.testing.assert_allclose(matrix.images[0].get_array(), statistics.similarity[np.ix_(order, order)])  # type: ignore[arg-type]
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == [f"{k + 1}  task-{i}" for k, i in enumerate(order)]
    names = [f"task-{i}" for i in order] if num_tasks == 2 else [str(k + 1) for k in range(num_tasks)]
    assert [text.get_text() for text in points.texts] == names
    # The markers beside the rows are those of the points, and each label is at its task's points.
    for dots, beside, text, task in zip(points.collections, matrix.collections, points.texts, order, strict=True):
        assert dots.get_label() == f"task-{task}"
        np.testing.assert_array_equal(dots.get_facecolor(), beside.get_facecolor())
        np.testing.assert_array_equal(dots.get_paths()[0].vertices, beside.get_paths()[0].vertices)
        assert (np.asarray(dots.get_offsets()) == text.xy).all(1).any()  # type: ignore[attr-defined]
    ends = np.concatenate([np.asarray(line.get_xydata()) for line in tree.lines])
    leaves = set(np.round(ends[ends[:, 0] == 0, 1], 6).tolist())
    assert leaves == set(range(num_tasks))
    assert tree.get_ylim() == matrix.get_ylim()


def test_fifty_tasks_look_different() -> None:
    styles = [task_style(place, 1) for place in range(50)]
    assert len({(style["facecolor"], style["marker"]) for style in styles}) == 50
    assert len({to_rgba(style["facecolor"]) for style in styles[:8]}) == 8
    assert len({style["marker"] for style in styles[:8]}) == 8


# -------------------------------------------------------------------- history


def snapshots() -> RoutingSnapshots:
    """Of two tasks; the first stays as it is, the second goes from ``FIRST`` to ``SECOND``."""
    layers = np.array([[FIRST, FIRST], [FIRST, (FIRST + SECOND) / 2], [FIRST, SECOND]])
    heads = np.array([[HEAD, HEAD]] * 3)
    return RoutingSnapshots(np.array([10, 20, 40]), ["a", "b"], np.array([[0.9, 0.8]] * 3), [layers, heads])


def test_history_shows_the_snapshots() -> None:
    taken = snapshots()
    last = np.abs(FIRST - SECOND).sum() / 2 / 3  # over three targets
    np.testing.assert_allclose(distance_to_last(taken), [[0, last], [0, last / 2], [0, 0]], atol=1e-12)
    figure = draw_routing_history(taken)
    (entropy, distance), panels = figure.subfigs[0].axes, figure.subfigs[1].axes[:2]
    for axis, values in ((entropy, taken.entropy), (distance, distance_to_last(taken))):
        for line, expected in zip(axis.lines, [*values.T, values.mean(1)], strict=True):
            np.testing.assert_array_equal(line.get_xdata(), taken.steps)
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)
    for task, axis in enumerate(panels):
        shown: Any = axis.collections[0].get_array()
        np.testing.assert_allclose(shown[:4], taken.layers[0][:, task].reshape(3, 4).T)
        np.testing.assert_allclose(shown[4:], taken.layers[1][:, task].T)
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["1 to 2", "2 to head"]


def test_history_as_files(tmp_path: Path) -> None:
    snapshots().save(tmp_path / "routing.npz")
    files = plot_routing_history(tmp_path / "routing.npz", tmp_path / "figures")
    assert [file.name for file in files] == ["routing-history.svg", "routing-history.png"]
    assert all(file.stat().st_size > 5000 for file in files)
    snapshots().until(10).save(tmp_path / "one.npz")
    with pytest.raises(ConfigurationError, match="at least two snapshots, not 1"):
        plot_routing_history(tmp_path / "one.npz", tmp_path)


# -------------------------------------------------------------------- all of it


def test_all_figures_as_files(tmp_path: Path) -> None:
    files = plot_routing(model(), make_point_mass_env(2), tmp_path / "figures", steps=5)
    stems = ["actor", "actor-pairs", "actor-map", "critic-1", "critic-1-pairs", "critic-2", "critic-2-pairs"]
    assert [f.name for f in files] == [f"routing-{stem}.{kind}" for stem in stems for kind in ("svg", "png")]
    assert all(file.stat().st_size > 5000 for file in files)


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    env = make_point_mass_env(2)
    with pytest.raises(ConfigurationError, match="MTMlpPolicy has no routing to show"):
        plot_routing(MultiTaskSAC("MTMlpPolicy", env, buffer_size=100), env, tmp_path)
    with pytest.raises(ConfigurationError, match="steps must be at least 1, not 0"):
        plot_routing(model(), env, tmp_path, steps=0)
    assert not list(tmp_path.iterdir())


def test_folders_of_figures(tmp_path: Path) -> None:
    """A name is one, and what cannot be one is found before the rollouts."""
    snapshots().save(tmp_path / "routing.npz")
    files = plot_routing_history(str(tmp_path / "routing.npz"), str(tmp_path / "figures"))
    assert [file.parent for file in files] == [tmp_path / "figures"] * 2
    env = make_point_mass_env(2)
    env.reset = lambda: pytest.fail("the rollouts began")  # type: ignore[method-assign]
    blocked = str(tmp_path / "routing.npz" / "figures")
    for draw in (lambda: plot_routing(model(), env, blocked), lambda: plot_routing_history(files[0], blocked)):
        with pytest.raises(FileError, match=r"Cannot write to .*figures: .*routing\.npz is no folder"):
            draw()
