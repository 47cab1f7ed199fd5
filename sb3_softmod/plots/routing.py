"""The routing that a policy learned, drawn as in Figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sb3_softmod.errors import ConfigurationError
from sb3_softmod.networks import SoftModularNetwork
from sb3_softmod.task_observation import split

#: One hue from light to dark: ordered in print and for every kind of colour vision.
_COLOURS = "Blues"


def mean_routing(
    network: th.nn.Module, observations: np.ndarray, task_names: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """The routing probabilities of each task, averaged over the states of rollouts.

    :param network: an actor's network
    :param observations: ``[..., O + M]``, of all tasks
    :param task_names: of all tasks
    :return: task name to layers ``[n, n]`` (target module, source module), and a last ``[n]`` with the routed head;
        tasks that no observation shows are left out
    :raises ConfigurationError: for a network that has no routing
    """
    if not isinstance(network, SoftModularNetwork):
        raise ConfigurationError(f"{type(network).__name__} has no routing to draw: a SoftModularNetwork has.")
    flat = observations.reshape(-1, observations.shape[-1])
    state, task = split(th.as_tensor(flat, device=next(network.parameters()).device), len(task_names))
    with th.no_grad():
        layers = [layer[0].cpu().numpy() for layer in network.routing(state, task)]
    ids = task.argmax(-1).cpu().numpy()
    return {
        name: [layer[ids == task_id].mean(0) for layer in layers]
        for task_id, name in enumerate(task_names)
        if (ids == task_id).any()
    }


def draw_routing(routing: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draw the modules of each task as layers of dots, joined by lines as dark and thick as they are probable.

    :param routing: what :func:`mean_routing` returns
    :return: a figure with one panel for each task
    """
    columns = min(len(routing), 5)
    rows = -(-len(routing) // columns)
    depth = len(next(iter(routing.values()))) + 1
    figure = Figure(figsize=(2.6 * columns + 0.9, (0.75 * depth + 0.9) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    scale = Normalize(0.0, 1.0)
    for axis, (name, layers) in zip(axes, routing.items(), strict=False):
        _draw_task(axis, layers, scale)
        axis.set_title(name, fontsize=9)
    for axis in axes[len(routing) :]:
        axis.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=axes.tolist(), shrink=0.7, pad=0.02)
    bar.set_label("routing probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _draw_task(axis: Axes, layers: Sequence[np.ndarray], scale: Normalize) -> None:
    colours = matplotlib.colormaps[_COLOURS]
    n = layers[0].shape[-1]
    centre = (n - 1) / 2
    for level, layer in enumerate(layers):
        vector = layer.ndim == 1  # the routed head: all modules into one output
        matrix = layer[None] if vector else layer
        for target, source in np.ndindex(*matrix.shape):
            p = float(matrix[target, source])
            axis.plot(
                [source, centre if vector else target],
                [-level, -level - 1],
                color=colours(scale(p)),
                linewidth=0.5 + 4.5 * p,
                solid_capstyle="round",
                zorder=1 + p,
            )
        if vector:
            axis.scatter([centre], [-level - 1], s=60, marker="s", color="0.25", zorder=3)
    levels = [level for level in range(len(layers) + 1) if level == 0 or layers[level - 1].ndim == 2]
    for level in levels:
        axis.scatter(range(n), [-level] * n, s=70, facecolor="white", edgecolor="0.25", linewidth=1.2, zorder=3)
    axis.set_yticks([-level for level in levels], [f"layer {level + 1}" for level in levels], fontsize=7)
    axis.set_xticks([])
    axis.set_xlim(-0.6, n - 0.4)
    axis.set_ylim(-len(layers) - 0.4, 0.4)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
