"""The routing figure shows the probabilities that it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_softmod import ConfigurationError, SoftModularNetwork
from sb3_softmod.plots.routing import draw_routing, mean_routing

NAMES = ["first", "second", "third"]


def test_mean_over_the_states_of_each_task() -> None:
    th.manual_seed(0)
    network = SoftModularNetwork(4, 2, 3, variant="official", num_layers=3, embedding_dim=8, module_dim=5)
    state, ids = th.randn(40, 4), th.arange(40) % 2  # the third task is not among them
    task = th.eye(3)[ids]
    routing = mean_routing(network, th.cat([state, task], 1).numpy().reshape(8, 5, 7), NAMES)
    assert list(routing) == ["first", "second"]
    for index, layer in enumerate(network.routing(state, task)):
        expected = layer[0, ids == 1].mean(0).detach().numpy()
        np.testing.assert_allclose(routing["second"][index], expected, atol=1e-6)


def test_lines_are_the_probabilities(tmp_path: Path) -> None:
    layer = np.array([[0.9, 0.1], [0.3, 0.7]])  # target, source
    figure = draw_routing({"a": [layer], "b": [layer.T, np.array([0.2, 0.8])]})
    first, second, *_ = figure.axes
    widths = {(line.get_xdata()[0], line.get_xdata()[1]): line.get_linewidth() for line in first.lines}  # type: ignore[index]
    for (target, source), p in np.ndenumerate(layer):
        assert widths[(source, target)] == pytest.approx(0.5 + 4.5 * p)
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    assert len(second.lines) == 4 + 2
    figure.savefig(tmp_path / "routing.png")
    assert (tmp_path / "routing.png").stat().st_size > 1000


def test_a_network_without_routing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Linear has no routing to draw"):
        mean_routing(nn.Linear(2, 2), np.zeros((3, 5)), NAMES)
