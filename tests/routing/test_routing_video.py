"""A video shows the picture and the routing of the same moment."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from known_routing import ACTOR, model
from point_mass import PointMass, make_point_mass_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecEnv, TaskEnv
from sb3_softmod.routing.network_figure import colour, width
from sb3_softmod.routing.video import RoutingPanel, record_routing, routing_frames

NAMES = ["corner-0", "corner-1"]


class Filmed(PointMass):
    """A picture of 65 x 49, odd numbers, as bright as its position; it moves to the right, whatever it is told."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def step(self, action: np.ndarray) -> Any:
        return super().step(np.array([0.25, 0.0]))

    def render(self) -> Any:
        return np.full((65, 49, 3), round(128 + 100 * self.position[0]), np.uint8)


def make_filmed(task: int, copy: int = 0) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(Filmed(task), 6), task, NAMES)


def test_panel_shows_the_probabilities() -> None:
    panel = RoutingPanel("a task", [np.full((2, 2), 0.5)], height=240)
    before = panel.picture([np.full((2, 2), 0.5)], "step 0")
    after = panel.picture([ACTOR[0]], "step 1")
    lines: Any = panel.drawing.lines
    order = panel.drawing.order
    np.testing.assert_allclose(lines.get_linewidths(), 1.4 * width(ACTOR[0].ravel()[order]))
    np.testing.assert_allclose(lines.get_color(), colour(ACTOR[0].ravel()[order]))
    assert before.shape == after.shape == (240, 216, 3)
    assert before.dtype == np.uint8
    assert (before != after).any()
    # Nothing is left of an earlier frame, and only connections and caption change.
    np.testing.assert_array_equal(panel.picture([np.full((2, 2), 0.5)], "step 0"), before)
    changed = np.flatnonzero((before != after).any((1, 2)))
    assert changed.min() > 15
    assert changed.max() < 205


@pytest.mark.parametrize("rotating", [False, True])
def test_frames_show_one_moment(rotating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer envs than tasks too, which then take turns."""
    shown: list[np.ndarray] = []
    picture = RoutingPanel.picture

    def noted(self: RoutingPanel, layers: Any, caption: str) -> np.ndarray:
        shown.append(layers[0])
        return picture(self, layers, caption)

    monkeypatch.setattr(RoutingPanel, "picture", noted)
    env = (
        MultiTaskVecEnv([partial(make_filmed, task) for task in range(2)], n_envs=1, n_workers=0)
        if rotating
        else DummyVecEnv([partial(make_filmed, task) for task in range(2)])
    )
    frames = list(routing_frames(model(), env, "corner-1"))
    assert len(frames) == len(shown) == 6  # an episode
    for frame, p in zip(frames, shown, strict=True):
        assert frame.shape[0] == 64
        assert frame.shape[1] % 2 == 0
        position = (float(frame[0, 0, 0]) - 128) / 100
        logits = np.log(ACTOR[1]) * max(position, 0)  # what the known network computes from the position
        np.testing.assert_allclose(p, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), atol=0.01)
    env.close()


def test_videos(tmp_path: Path) -> None:
    env = DummyVecEnv([partial(make_filmed, task) for task in range(2)])
    files = record_routing(model(), env, tmp_path / "videos")
    assert [file.name for file in files] == ["routing-corner-0.mp4", "routing-corner-1.mp4"]
    count, _ = imageio_ffmpeg.count_frames_and_secs(str(files[0]))
    assert count == 6
    assert record_routing(model(), env, tmp_path, tasks=["corner-1"]) == [tmp_path / "routing-corner-1.mp4"]


def test_what_cannot_be_filmed_is_refused(tmp_path: Path) -> None:
    env = DummyVecEnv([partial(make_filmed, task) for task in range(2)])
    with pytest.raises(ConfigurationError, match="Unknown task 'corner-2': did you mean"):
        record_routing(model(), env, tmp_path, tasks=["corner-2"])
    with pytest.raises(ConfigurationError, match='A video needs an env with render_mode="rgb_array", not None'):
        record_routing(model(), make_point_mass_env(2), tmp_path)
    with pytest.raises(ConfigurationError, match="MTMlpPolicy has no routing to show"):
        record_routing(MultiTaskSAC("MTMlpPolicy", env, buffer_size=100), env, tmp_path)
    assert not list(tmp_path.iterdir())
