"""Which tasks the envs play, and whether learning waits for one whose turn is still to come."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import tasks_in_turn
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer

#: Transitions, for each task, that learning waits for the turns of all: longer than episodes usually are.
PATIENCE = 1000


class TaskTurns:
    """Decides when balanced batches can begin, and says what a training goes without.

    :param env: what it learns in
    :param task_names: of all M tasks
    """

    def __init__(self, env: VecEnv, task_names: Sequence[str]) -> None:
        self._names = task_names
        self._played = tasks_in_turn(env, len(task_names))  # [M], now or later
        self._waiting = False
        self._warned = False
        self._buffer = 0  # which one it was that a training began with
        self._before = 0  # transitions that were in it before the model took a step, as in that of an adapted one

    def begin(self, buffer: ReplayBuffer | None, learning: Sequence[int], num_timesteps: int) -> None:
        """A training begins; warn of the tasks that it cannot learn from.

        :param learning: the tasks that can learn, by id
        :param num_timesteps: steps that the model has taken
        :raises ConfigurationError: for envs that play others
        """
        self._waiting = False
        if id(buffer) != self._buffer and isinstance(buffer, MultiTaskReplayBuffer):
            self._buffer = id(buffer)
            self._before = 0 if num_timesteps else int(buffer.added_per_task.sum())
        idle = ~np.isin(range(len(self._played)), learning)
        if (self._played & idle).any():
            raise ConfigurationError(
                f"The envs play {self._listed(self._played & idle)}, of which nothing learns in a model that was "
                f"adapted: learn in envs of the new tasks alone, {self._listed(~idle)} (model.set_env)."
            )
        there = self._played | idle
        if isinstance(buffer, MultiTaskReplayBuffer):
            there = there | (buffer.added_per_task > 0)
        if not there.all():
            warnings.warn(
                f"No env plays {self._listed(~there)}: {(there & ~idle).sum()} of {len(learning)} tasks are learned "
                "from. (An env "
                "that goes on to other tasks says so by its attribute tasks_in_turn, a list of their ids.)",
                stacklevel=6,
            )

    def wait(self, buffer: ReplayBuffer | None) -> bool:
        """Whether learning waits for a task that has no transitions yet, but whose turn comes.

        A wait that takes too long ends with a warning: learning then goes on without that task until it comes.
        """
        self._waiting = False
        if not isinstance(buffer, MultiTaskReplayBuffer):
            return False
        awaited = self._played & (buffer.added_per_task == 0)
        collected = buffer.added_per_task.sum() - self._before
        if not awaited.any() or not buffer.added_per_task.any():
            return False
        if collected <= PATIENCE * len(awaited):
            self._waiting = True
            return True
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"After {collected} environment steps no env has played {self._listed(awaited)}: learning begins with "
                f"the other tasks. {_WHAT_TO_DO}",
                stacklevel=6,
            )
        return False

    def end(self, buffer: ReplayBuffer | None) -> None:
        """A training is over; warn if it only waited."""
        if self._waiting and isinstance(buffer, MultiTaskReplayBuffer):
            awaited = self._played & (buffer.added_per_task == 0)
            warnings.warn(
                f"No gradient step was taken: learning waits until every task had its turn, and "
                f"{self._listed(awaited)} had none yet. {_WHAT_TO_DO} Or train for longer.",
                stacklevel=3,
            )

    def _listed(self, which: np.ndarray) -> str:
        names = [repr(name) for name, chosen in zip(self._names, which, strict=True) if chosen]
        more = f" and {len(names) - 5} more tasks" if len(names) > 5 else ""
        return f"task{'s' * (len(names) > 1)} {', '.join(names[:5])}{more}"


_WHAT_TO_DO = (
    "A turn comes when an episode ends: give the envs a time limit (gymnasium.wrappers.TimeLimit, or the horizon of "
    "the function that makes them), or take an env for each task."
)
