"""Videos of episodes, with the name of the task on every frame."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_softmod.common.checks import require_choice
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import as_path, check_file
from sb3_softmod.common.task_observation import task_ids, task_names_of, tasks_in_turn
from sb3_softmod.evaluation.evaluate import act

#: Frames a second; Meta-World's robot takes 80 steps in one, so that it moves at half its speed.
FPS = 40

#: A video ends here, where the episode has no end.
_MOST_FRAMES = 1000


class VideoFile:
    """Writes frames to an mp4 file, one after the other. A context manager.

    :param path: of the file, which ends in ``.mp4``; its folder is made
    :raises ConfigurationError: without imageio-ffmpeg, or for a file of that name that cannot be
    """

    def __init__(self, path: Path) -> None:
        if find_spec("imageio_ffmpeg") is None:
            raise ConfigurationError("A video needs imageio-ffmpeg: pip install 'sb3-softmod[plots]'")
        check_file(path)
        if path.suffix != ".mp4":
            raise ConfigurationError(f"The name of a video must end in .mp4, not as {path} does.")
        self._path = path
        self._writer: Generator[None, Any, None] | None = None

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, frame: np.ndarray, text: str = "") -> None:
        """Add a frame.

        :param frame: ``[height, width, 3]`` uint8, the same size each time
        :param text: to draw on it
        """
        import imageio_ffmpeg  # an extra

        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            height, width = frame.shape[:2]
            self._writer = imageio_ffmpeg.write_frames(str(self._path), (width, height), fps=FPS, macro_block_size=1)
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(labelled(frame, text) if text else frame))


def labelled(frame: np.ndarray, text: str) -> np.ndarray:
    """A frame with a line of text in its upper left corner, white on black.

    :param frame: ``[height, width, 3]`` uint8
    :return: the same shape
    """
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(frame.shape[0] // 24, 10))
    margin = frame.shape[0] // 60 + 1
    box = draw.textbbox((2 * margin, 2 * margin), text, font=font)
    draw.rectangle((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin), fill="black")
    draw.text((2 * margin, 2 * margin), text, font=font, fill="white")
    return np.asarray(image)


class Filmed(VecEnvWrapper):
    """Writes the first episode of an env to a video.

    :param venv: one env, with ``render_mode="rgb_array"``
    :param video: the file
    :param text: to draw on the frames
    """

    def __init__(self, venv: VecEnv, video: VideoFile, text: str) -> None:
        super().__init__(venv)
        self._video = video
        self._text = text
        self._filming = True

    def reset(self) -> VecEnvObs:
        """Reset the env."""
        observations = self.venv.reset()
        self._film()
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Step the env."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self._filming &= not dones[0]  # the env is in its next episode then
        self._film()
        return observations, rewards, dones, infos

    def _film(self) -> None:
        if self._filming:
            frame = self.venv.get_images()[0]
            assert frame is not None
            self._video.write(frame, self._text)


def played_tasks(env: VecEnv) -> list[str]:
    """The names of the tasks that an env plays, of all that it knows."""
    names = task_names_of(env)
    return [name for name, played in zip(names, tasks_in_turn(env, len(names)), strict=True) if played]


def check_pictures(env: VecEnv) -> None:
    """:raises ConfigurationError: for an env that draws no pictures"""
    if env.render_mode != "rgb_array":
        raise ConfigurationError(f'A video needs an env with render_mode="rgb_array", not {env.render_mode!r}.')


def record_episodes(model: Any, env: VecEnv, out: str | Path) -> list[Path]:
    """Film an episode of each task by the deterministic policy.

    :param env: a multi-task env with ``render_mode="rgb_array"``; it is reset for each task that it plays
    :param out: folder, made if need be
    :return: the files, ``<task>.mp4``
    :raises ConfigurationError: for an env without pictures, or without imageio-ffmpeg
    """
    check_pictures(env)
    out = as_path(out)
    files = {task: out / f"{task}.mp4" for task in played_tasks(env)}
    for task, file in files.items():
        with VideoFile(file) as video:
            for _, image in episode_frames(model, env, task):
                video.write(image, task)
    return list(files.values())


def episode_frames(model: Any, env: VecEnv, task: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is seen in the first episode of a task.

    :param env: as of :func:`record_episodes`
    :return: of each step the observation ``[1, O + M]`` and the picture of it ``[height, width, 3]`` uint8, both sides
        even, as video players want them
    :raises ConfigurationError: for a task that the env does not play
    """
    require_choice("task of this env", task, played_tasks(env))
    names = task_names_of(env)
    index, frames = None, 0
    with closing(act(model, env)) as playing:
        for observations, _, begins in playing:
            if index is not None and (begins[index] or frames == _MOST_FRAMES):
                return
            if index is None:  # until an env begins an episode of the task; envs may take turns at the tasks
                found = np.flatnonzero(begins & (task_ids(observations, len(names)) == names.index(task)))
                if not found.size:
                    continue
                index = int(found[0])
            image = np.asarray(env.env_method("render", indices=[index])[0])
            frames += 1
            yield observations[index : index + 1], image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]
