"""Figures and videos as data URIs, so that they are part of the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.task_observation import task_names_of
from sb3_softmod.evaluation.evaluate import rollout
from sb3_softmod.evaluation.video import record_episodes
from sb3_softmod.routing.map_figure import draw_routing_points, draw_routing_similarity
from sb3_softmod.routing.network_figure import colour, draw_task_pair, draw_task_routing, strength, width
from sb3_softmod.routing.routes import STEPS, RoutingStatistics, sample_routing
from sb3_softmod.routing.video import record_routing

#: Pairs of tasks whose shared paths are shown.
_PAIRS = 6


def routing_pictures(model: Any, env: VecEnv) -> dict[str, Any]:
    """Draw the routing of a model over rollouts of its deterministic policy.

    :param env: with an env for each task; it is reset
    :return: names of "networks" and "tasks"; "drawings" of each network and task; for the "legend" probabilities with
        the width in points and the colour of their connections; the most similar "pairs" of tasks, and from which
        "strength" on connections are marked there; and as data URIs the "points" of t-SNE, and the "similarity" of each
        pair of tasks, empty for one task
    :raises ConfigurationError: for a model without routing, or without scikit-learn
    """
    all_samples = sample_routing(model, *rollout(model, env, STEPS), task_names_of(env))
    drawings = []
    for samples in all_samples:
        statistics, entropy = RoutingStatistics.of(samples), samples.entropy()
        for task in statistics.task_names:
            image = image_uri(draw_task_routing(statistics, task))
            drawings.append(dict(network=samples.network, task=task, entropy=entropy[task], image=image))
    actor = RoutingStatistics.of(all_samples[0])
    pairs = actor.most_similar(_PAIRS)
    return dict(
        networks=[samples.network for samples in all_samples],
        tasks=actor.task_names,
        drawings=drawings,
        legend=[(p, width(p), to_hex(tuple(colour(p)))) for p in (0.0, 0.25, 0.5, 0.75, 1.0)],
        pairs=[dict(tasks=pair, image=image_uri(draw_task_pair(actor, pair))) for pair in pairs],
        strength=strength(actor),
        points=image_uri(draw_routing_points(all_samples[0])),
        similarity=image_uri(draw_routing_similarity(actor)) if pairs else "",
    )


def videos(model: Any, env: VecEnv, *, routed: bool) -> dict[str, str]:
    """An episode of each task, with the routing of each moment where the model has one.

    :param env: with ``render_mode="rgb_array"``
    :param routed: whether the model has a soft-modular network
    :return: data URIs by task
    :raises ConfigurationError: without imageio-ffmpeg
    """
    with TemporaryDirectory() as folder:
        files = (record_routing if routed else record_episodes)(model, env, Path(folder))
        uris = [_data_uri("video/mp4", file.read_bytes()) for file in files]
    return dict(zip(task_names_of(env), uris, strict=True))


def image_uri(figure: Figure) -> str:
    """A figure as SVG, and as an image of its own: the ids of several in one page would collide."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return _data_uri("image/svg+xml", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
