"""Pictures of the envs, upright, or an error that says what is missing."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecVideoRecorder
from worker_envs import Drawn

from sb3_softmod import make_multitask_env

# Red is the robot, green the drawer, which stands in front of it.
SCRIPT = """
import json, sys
import numpy as np
from sb3_softmod import make_metaworld_env
env = make_metaworld_env(
    "drawer-close-v3", seed=0, render_mode="rgb_array", camera_name=sys.argv[1], n_workers=int(sys.argv[2])
)
env.reset()
picture = env.get_images()[0]
red, green, blue = picture.astype(int).transpose(2, 0, 1)
robot, drawer = np.argwhere((red > 2 * green) & (red > 2 * blue)), np.argwhere((green > 1.4 * red))
print(json.dumps(dict(
    shape=picture.shape, same=bool((env.render() == picture).all()),
    robot=robot.mean(0).tolist(), drawer=drawer.mean(0).tolist(),
    top=picture[0].std(0).max(), bottom=picture[-1].std(0).max(),
)))
env.close()
"""


def run(backend: str, camera: str = "corner2", n_workers: int = 0) -> subprocess.CompletedProcess[str]:
    """In a process of its own: MuJoCo looks for OpenGL when it is imported."""
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, camera, str(n_workers)],
        capture_output=True,
        text=True,
        env={**env, "MUJOCO_GL": backend},
    )


@pytest.mark.parametrize(("camera", "n_workers"), [("corner2", 1), ("corner", 0), ("corner3", 0)])
def test_software_rendering(camera: str, n_workers: int) -> None:
    out = run("osmesa", camera, n_workers)
    if ctypes.util.find_library("OSMesa") is None:
        assert "ConfigurationError: MuJoCo finds no OpenGL library" in out.stderr
        assert "MUJOCO_GL=osmesa before Python starts; the latter needs the Debian package libosmesa6" in out.stderr
        return
    seen = json.loads(out.stdout)
    assert seen["shape"] == [480, 480, 3]
    assert seen["same"]
    assert seen["robot"][0] < seen["drawer"][0]  # the arm rises above the table
    # Behind corner2 and corner3 the robot is on the left of the table; corner looks from the other side. A picture that
    # is mirrored, or upside down, has it the other way round.
    assert (seen["robot"][1] < seen["drawer"][1]) == (camera != "corner")
    if camera != "corner3":  # which looks down on the floor
        assert seen["top"] < 5  # the sky
        assert seen["bottom"] > 20


def test_no_display() -> None:
    out = run("glfw")
    assert "ConfigurationError: Rendering failed (FatalError: an OpenGL platform library has not been" in out.stderr
    assert "set MUJOCO_GL=egl or, for software rendering, MUJOCO_GL=osmesa" in out.stderr
    assert "libosmesa6" in out.stderr


@pytest.mark.parametrize("n_workers", [0, 1])
def test_pictures_of_all_envs(n_workers: int) -> None:
    env = make_multitask_env({"a": lambda: Drawn(0), "b": lambda: Drawn(1)}, seed=0, n_workers=n_workers)
    env.reset()
    assert env.render_mode == "rgb_array"
    picture: Any = env.render()
    assert picture.shape == (32, 16, 3)  # one above the other
    np.testing.assert_array_equal(np.flatnonzero(picture[:, 0, 0] == 255), [0, 16])
    env.close()


def test_video(tmp_path: Path) -> None:
    env = make_multitask_env({"a": lambda: Drawn(0), "b": lambda: Drawn(1)}, seed=0, n_workers=1)
    recorder = VecVideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=5)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.zeros((2, 2)))
    recorder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
