"""How far the envs are: enough to go on, in another process, bit for bit as if nothing had happened.

The state of a simulator in the middle of an episode cannot be read out of any env. It is reached again instead: by
what the episode began from, :mod:`.origin`, and the actions since.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.envs.origin import Origin
from sb3_softmod.envs.worker import Episode, Replay

#: An episode of more steps than this is not played again: its env begins another one.
LONGEST_REPLAY = 10_000


class Journal:
    """What the episodes of all envs began from, and the actions since.

    :param n_envs: their number
    """

    def __init__(self, n_envs: int) -> None:
        #: The episode that each env plays; None before the first, and for an env that waits to be told the next.
        self.episodes: list[Episode | None] = [None] * n_envs
        #: For each env and task what its episode began from or, of a task that the env does not play, the next will.
        self.origins: dict[tuple[int, int], Origin] = {}
        self._actions: deque[np.ndarray] = deque(maxlen=LONGEST_REPLAY)
        self._num_steps = 0
        self._began = [0] * n_envs  # after how many steps

    def begin(self, index: int, episode: Episode, origin: Origin) -> None:
        """Begin an episode in an env, after the last step."""
        self.episodes[index] = episode
        self.origins[index, episode[0]] = origin
        self._began[index] = self._num_steps
        needed = self._num_steps - min(self._began)
        while len(self._actions) > needed:
            self._actions.popleft()

    def step(self, actions: np.ndarray) -> None:
        """Take note of a step, ``[n_envs, *action shape]``."""
        self._actions.append(actions.copy())
        self._num_steps += 1

    def end(self, index: int, origin: Origin) -> None:
        """End an episode; the next one of its task begins from that origin."""
        episode = self.episodes[index]
        assert episode is not None
        self.origins[index, episode[0]] = origin
        self.episodes[index] = None

    def progress(self) -> dict[str, Any]:
        """What :meth:`set_progress` takes."""
        return {
            "episodes": list(self.episodes),
            "origins": dict(self.origins),
            "lengths": [self._num_steps - began for began in self._began],
            "actions": np.array(self._actions),
        }

    def set_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on where another journal was."""
        self.episodes = list(progress["episodes"])
        self.origins = dict(progress["origins"])
        self._actions = deque(progress["actions"], maxlen=LONGEST_REPLAY)
        self._num_steps = max(progress["lengths"])
        self._began = [self._num_steps - length for length in progress["lengths"]]


def replays(progress: Mapping[str, Any]) -> dict[int, Replay]:
    """For each env the episode to play again.

    :param progress: of the envs
    """
    actions = progress["actions"]
    found: dict[int, Replay] = {}
    for index, (episode, length) in enumerate(zip(progress["episodes"], progress["lengths"], strict=True)):
        own = None
        if length <= len(actions):
            own = np.array([step[index] for step in actions[len(actions) - length :]])
        found[index] = episode, own, progress["last"][index]
    return found


def check(progress: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a progress of envs other than one's own.

    :param own: ``task_names``, ``settings`` and ``last`` of one's own
    :raises ConfigurationError: that names what differs
    """
    if not own.keys() <= progress.keys():
        raise ConfigurationError("This is no progress of a MultiTaskVecEnv: pass what progress() returned.")

    def compare(what: str, theirs: Any, ours: Any) -> None:
        if theirs != ours:
            raise ConfigurationError(
                f"The progress does not fit these envs: {what} is {theirs!r} there and {ours!r} here. Make the envs "
                "with the same arguments."
            )

    compare("the list of tasks", progress["task_names"], own["task_names"])
    compare("the number of envs", len(progress["settings"]), len(own["settings"]))
    for theirs, ours in zip(progress["settings"], own["settings"], strict=True):
        for name in sorted({*ours, *theirs} - {"seed"}):
            compare(f"{name} of {ours['task']!r}", theirs.get(name), ours.get(name))
    compare("the form of actions and observations", progress["last"].dtype, own["last"].dtype)


def warn_of_strayed(tasks: Mapping[int, object]) -> None:
    """Say which envs did not come back to the middle of their episodes.

    :param tasks: what those envs play
    """
    envs = ", ".join(f"env {index} (task {task!r})" for index, task in tasks.items())
    warnings.warn(
        f"Played again, the episodes of these envs went another way, or had more than {LONGEST_REPLAY} steps: {envs}. "
        "They begin their next episodes: the run does not go on exactly as it would have without a break. The random "
        "numbers of an env must come from generators that are attributes of it or its wrappers; what else a wrapper "
        "keeps from episode to episode needs methods progress() and set_progress(progress).",
        stacklevel=3,
    )


def progress_of(env: VecEnv) -> dict[str, Any]:
    """``env.progress()``.

    :raises ConfigurationError: for a VecEnv, or a wrapper around one, that has no such method
    """
    return _checked(env).progress()


def set_progress_of(env: VecEnv, progress: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """``env.set_progress(progress)``.

    :raises ConfigurationError: for a VecEnv, or a wrapper around one, that has no such method
    """
    return _checked(env).set_progress(progress)


def _checked(env: VecEnv) -> Any:
    # By class: SB3's wrappers pass on a method that they lack, which would leave out what they keep themselves.
    if not hasattr(type(env), "set_progress"):
        raise ConfigurationError(
            f"{type(env).__name__} cannot tell how far it is, so that its envs cannot go on after a break: leave it "
            "out, or give it the methods progress() and set_progress(progress)."
        )
    return env
