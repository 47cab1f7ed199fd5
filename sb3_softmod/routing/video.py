"""Videos of episodes with the routing of each moment beside the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.checks import require_choice
from sb3_softmod.common.files import as_path
from sb3_softmod.common.task_observation import task_names_of
from sb3_softmod.evaluation.video import VideoFile, check_pictures, episode_frames, played_tasks
from sb3_softmod.routing.network_figure import NetworkDrawing, draw_legend
from sb3_softmod.routing.routes import routed_networks, sample_routing


class RoutingPanel:
    """A picture of the base network that changes from frame to frame: all but the connections is drawn only once.

    :param title: above it
    :param layers: the first probabilities, in the form of :class:`.NetworkDrawing`
    :param height: of the picture in pixels, even
    """

    _SCALE = 1.4

    def __init__(self, title: str, layers: Sequence[np.ndarray], height: int) -> None:
        inches = 4.8
        figure = Figure(figsize=(0.9 * inches, inches), dpi=height / inches)
        self._canvas = FigureCanvasAgg(figure)
        self._axis = figure.add_axes((0.2, 0.16, 0.74, 0.7))
        #: The artists whose widths and colours are the probabilities.
        self.drawing = NetworkDrawing(self._axis, layers, scale=self._SCALE)
        self.drawing.label_layers(self._axis)
        figure.text(0.5, 0.95, title, ha="center", va="center", fontsize=11, fontweight="bold")
        draw_legend(figure, self._SCALE, loc="lower center")
        #: Below the title.
        self.caption = figure.text(0.5, 0.895, "", ha="center", va="center", fontsize=9)
        self._changing = [self.drawing.lines, *self.drawing.modules, self.caption]
        for artist in self._changing:
            artist.set_animated(True)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(figure.bbox)

    def picture(self, layers: Sequence[np.ndarray], caption: str) -> np.ndarray:
        """The panel with other probabilities.

        :param layers: in the form of the first ones
        :param caption: a few words
        :return: ``[height, width, 3]`` uint8
        """
        self.drawing.update(layers)
        self.caption.set_text(caption)
        self._canvas.restore_region(self._background)
        for artist in self._changing:
            artist.draw(self._canvas.get_renderer())
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()


def record_routing(model: Any, env: VecEnv, out: str | Path, *, tasks: Sequence[str] | None = None) -> list[Path]:
    """Film an episode of each task by the deterministic policy, with the actor's routing of each moment beside it.

    :param model: any algorithm of SB3 with a soft-modular network
    :param env: a multi-task env with ``render_mode="rgb_array"``; it is reset for each task
    :param out: folder, made if need be
    :param tasks: their names; default all that the env plays
    :return: the files, ``routing-<task>.mp4``
    :raises ConfigurationError: for a model without routing, an env without pictures, an unknown task, or without
        imageio-ffmpeg
    """
    routed_networks(model)
    check_pictures(env)
    names = played_tasks(env)
    for name in tasks or ():
        require_choice("task", name, names)
    out = as_path(out)
    files = {name: out / f"routing-{name}.mp4" for name in (names if tasks is None else tasks)}
    for name, file in files.items():
        with VideoFile(file) as video:
            for frame in routing_frames(model, env, name):
                video.write(frame)
    return list(files.values())


def routing_frames(model: Any, env: VecEnv, task: str) -> Iterator[np.ndarray]:
    """The frames of the first episode of a task, see :func:`record_routing`.

    :return: ``[height, width, 3]`` uint8 each; both even, as video players want them
    """
    names, panel = task_names_of(env), None
    for step, (observation, image) in enumerate(episode_frames(model, env, task)):
        layers = [p[0] for p in sample_routing(model, observation, None, names)[0].layers]
        panel = panel or RoutingPanel(task, layers, len(image))
        beside = panel.picture(layers, f"step {step}")
        yield np.concatenate([image, beside[:, : beside.shape[1] // 2 * 2]], 1)
