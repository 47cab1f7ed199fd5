"""Videos with the name of the task on every frame."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from worker_envs import Drawn
from zoo_runs import train

from sb3_softmod import ConfigurationError, GymnasiumVecEnv, TaskEnv
from sb3_softmod.envs.some_tasks import SomeTasks
from sb3_softmod.evaluation.video import Filmed, VideoFile, episode_frames, labelled, record_episodes


def frames_of(path: Path) -> np.ndarray:
    """``[n, height, width, 3]``"""
    reader: Any = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def test_the_label() -> None:
    grey = np.full((240, 320, 3), 90, np.uint8)
    frame = labelled(grey, "reach-v3")
    changed = (frame != grey).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert rows.max() < 40  # in the upper
    assert columns.max() < 120  # left corner
    assert frame.min() == 0  # white on black
    assert frame.max() > 200
    assert (labelled(grey, "reach-v2") != frame).any()
    assert (grey == 90).all()


def test_some_tasks_of_a_policy_are_filmed(tmp_path: Path) -> None:
    """Those that the env plays, of all that it knows; another one would never begin."""
    names = ["old", "new"]
    env = SomeTasks(
        DummyVecEnv(
            [partial(make_large, 0, ["new"])],
        ),
        names,
    )
    env.render_mode = "rgb_array"

    class Still:
        def predict(self, observations: np.ndarray, **_: Any) -> Any:
            return np.zeros((len(observations), *env.action_space.shape), np.float32), None  # type: ignore[misc]

    assert record_episodes(Still(), env, tmp_path) == [tmp_path / "new.mp4"]
    with pytest.raises(ConfigurationError, match="Unknown task of this env 'old': known are 'new'"):
        next(episode_frames(Still(), env, "old"))


class Large(Drawn):
    """A picture whose brightness tells the step."""

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return super().step(action)

    def render(self) -> Any:
        return np.full((120, 160, 3), 20 * self.steps, np.uint8)


def make_large(task: int = 0, names: Sequence[str] = ("only",)) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(Large(task), 6 - 2 * task), task, names)


def test_the_first_episode_is_filmed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mp4"
    with VideoFile(path) as video:
        for text in ("a", "b"):
            env = Filmed(DummyVecEnv([partial(make_large)]), video, text)
            env.reset()
            for _ in range(10):
                env.step(np.zeros((1, 2)))
    frames = frames_of(path)
    assert frames.shape == (2 * 6, 120, 160, 3)  # of each the reset and five steps; the sixth ends the episode
    brightness = frames[:, 60:, 80:].mean((1, 2, 3))
    np.testing.assert_allclose(brightness, [0, 20, 40, 60, 80, 100] * 2, atol=4)


def test_a_vector_env_of_gymnasium(tmp_path: Path) -> None:
    class Still:
        def predict(self, observations: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
            return np.zeros((len(observations), 2)), None

    env = GymnasiumVecEnv(SyncVectorEnv([partial(make_large, task, ["long", "short"]) for task in range(2)]))
    files = record_episodes(Still(), env, tmp_path)
    assert [file.name for file in files] == ["long.mp4", "short.mp4"]
    for file, steps in zip(files, (6, 4), strict=True):
        brightness = frames_of(file)[:, 60:, 80:].mean((1, 2, 3))
        np.testing.assert_allclose(brightness, 20 * np.arange(steps), atol=4)


def test_enjoy_makes_a_video(tmp_path: Path) -> None:
    assert train(tmp_path, "--eval-freq", "-1", steps=9) == 0
    command = f"enjoy --algo softmod_deep --env MT3 -f {tmp_path} --episodes 2 --video {tmp_path / 'out.mp4'}".split()
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-m", "sb3_softmod.cli", *command],
        capture_output=True,
        text=True,
        env={**env, "MUJOCO_GL": "osmesa"},
    )
    if ctypes.util.find_library("OSMesa") is None:
        assert done.returncode == 2
        assert "sb3-softmod: MuJoCo finds no OpenGL library" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        frames = frames_of(tmp_path / "out.mp4").astype(int)
        assert frames.shape == (3 * 5, 480, 480, 3)  # of three tasks the first episode, five steps each
        corners = frames[:, 10:50, 10:90]
        assert (np.ptp(corners.reshape(15, -1), 1) > 200).all()  # white on black
        red, green, blue = frames[7].transpose(2, 0, 1)
        robot, drawer = np.argwhere((red > 2 * green) & (red > 2 * blue)), np.argwhere(green > 1.4 * red)
        assert robot.mean(0)[0] < drawer.mean(0)[0]  # upright: the arm rises above the table
