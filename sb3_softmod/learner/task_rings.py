"""What a replay buffer of many tasks keeps: a ring of transitions for each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.utils import get_device
from torch import Tensor

from sb3_softmod.common.checks import require_integer, require_number
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import check_space, split, task_ids

#: Transitions that the rows of a buffer can be counted up to.
LARGEST_BUFFER = 2**31 - 1


class TaskRings(ReplayBuffer):
    """Storing, and what was stored in segments for checkpoints; arguments as of :class:`.MultiTaskReplayBuffer`.

    A transition is a row of its task's ring. Its next state is that of the row where its env went on, or an end. Such
    links stay within an episode.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        num_tasks: int,
        storage_device: th.device | str = "cpu",
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        check_space(observation_space, num_tasks)
        if optimize_memory_usage:
            raise ConfigurationError("MultiTaskReplayBuffer has no optimize_memory_usage; leave it False.")
        if handle_timeout_termination is not True:
            raise ConfigurationError(
                "MultiTaskReplayBuffer always bootstraps a truncated episode: leave handle_timeout_termination True."
            )
        if not isinstance(action_space, spaces.Box):
            raise ConfigurationError(f"MultiTaskReplayBuffer stores continuous actions (a Box), not {action_space}.")
        require_integer("buffer_size", buffer_size, 1, LARGEST_BUFFER)
        require_integer("n_envs", n_envs, 1)
        require_integer("n_steps", n_steps, 1)
        require_number("gamma", gamma, 0, 1)
        if buffer_size < num_tasks:
            raise ConfigurationError(f"buffer_size={buffer_size} leaves no room for each of {num_tasks} tasks.")
        # BaseBuffer's, since ReplayBuffer's would allocate its own arrays.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.num_tasks = num_tasks
        self.storage_device = get_device(storage_device)
        self.n_steps, self.gamma = n_steps, gamma
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True
        self.capacity_per_task = buffer_size // num_tasks
        self.state_dim = self.obs_shape[0] - num_tasks
        self._make_rings(0)
        self.reset()

    def allocate(self) -> None:
        """Take the memory of all rows, unless that was done: a model that only acts needs none.

        :raises ConfigurationError: if there is not so much
        """
        if not len(self._rows):
            self._make_rings(self.num_tasks * self.capacity_per_task)

    def _make_rings(self, size: int) -> None:
        """Task t owns the rows from ``t * capacity_per_task`` on; no size stands for memory to be taken later."""
        # Not zeros, which torch writes: the memory of a row that was never stored is never touched.
        width = self.state_dim + self.action_dim + 1
        try:
            self._rows = th.empty(size, width, device=self.storage_device)  # state, action, reward
            # The row that holds the next state; or ~e where that is the end e. A row leads to one of its own ring that
            # was stored by a later call, and a ring overwrites its oldest rows first: a row that is there leads to one
            # that is there, however many envs share the ring.
            self._next = th.empty(size, dtype=th.int32, device=self.storage_device)
        except RuntimeError as error:  # torch has no better one for memory that there is not
            raise ConfigurationError(
                f"buffer_size={self.buffer_size} needs {4e-9 * size * (width + 1):.1f} GB on {self.storage_device}, "
                "which are not there: lower buffer_size."
            ) from error

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self._content = object()  # tells a mark of what was here before from one of what comes now
        self.added_per_task = np.zeros(self.num_tasks, np.int64)
        self._latest = _Latest(*(np.zeros(0, np.int64) for _ in _Latest._fields))
        # Next states that are no row's state, each with 1 if the episode terminated there, 0 if it was cut or goes on.
        self._ends = th.empty(0, self.state_dim + 1, device=self.storage_device)
        # The transition that each end belongs to: its task, and how many the task had before it.
        self._end_tasks = np.zeros(0, np.int64)
        self._end_numbers = np.zeros(0, np.int64)
        self._free_ends = np.zeros(0, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated arrays."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, (Tensor, np.ndarray)))

    @property
    def num_present(self) -> int:
        """How many tasks have transitions: the tasks of a batch."""
        return int(np.count_nonzero(self.added_per_task))

    def size_per_task(self) -> np.ndarray:
        """How many transitions of each task can be sampled, ``[M]``."""
        return np.minimum(self.added_per_task, self.capacity_per_task)

    def size(self) -> int:
        """How many transitions can be sampled, over all tasks."""
        return int(self.size_per_task().sum())

    # ----------------------------------------------------------------- storing

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Store one transition of each env in the ring of its task.

        :param obs: ``[n_envs, O + M]``
        :param next_obs: ``[n_envs, O + M]``; of an episode that ended, its last observation
        :param action: ``[n_envs, action_dim]``
        :param reward: ``[n_envs]``
        :param done: ``[n_envs]``
        :param infos: of each env; ``TimeLimit.truncated`` marks an episode that was cut, not ended
        :raises ConfigurationError: for more envs of one task than the task has rows
        """
        self._check_shapes(obs, next_obs, action, reward, done, infos)
        self.allocate()
        ids = task_ids(obs, self.num_tasks)
        counts = np.bincount(ids, minlength=self.num_tasks)
        if counts.max() > self.capacity_per_task:
            raise ConfigurationError(
                f"{counts.max()} envs play task {counts.argmax()}, but buffer_size={self.buffer_size} leaves "
                f"{self.capacity_per_task} transitions for each of {self.num_tasks} tasks: raise buffer_size."
            )
        # Envs of one task in one call take consecutive rows, in the order of the envs.
        order = ids.argsort(kind="stable")
        numbers = self.added_per_task[ids]
        numbers[order] += np.arange(len(ids)) - np.repeat(counts.cumsum() - counts, counts)
        rows = ids * self.capacity_per_task + numbers % self.capacity_per_task
        terminated = np.array(done, np.bool_)
        for env in np.flatnonzero(done).tolist():
            terminated[env] = not infos[env].get("TimeLimit.truncated", False)
        row = (split(obs, self.num_tasks)[0], action.reshape(len(ids), -1), reward[:, None])
        end = (split(next_obs, self.num_tasks)[0], terminated[:, None])
        content = np.concatenate([*row, *end], axis=1, dtype=np.float32)

        # An env that goes on gives its latest row this one as its next, and the end of that one to this one.
        going = self._going_on(ids, content, self.added_per_task + counts - self.capacity_per_task)
        ends = np.full(len(ids), -1)
        ends[going] = self._latest.ends[going]
        ends[ends < 0] = self._take_ends(len(ids) - len(going))
        self._end_tasks[ends] = ids
        self._end_numbers[ends] = numbers
        self._write(content, rows, ends, self._latest.rows[going], rows[going])

        cut = np.array(done, np.bool_) & ~terminated
        self._latest = _Latest(np.where(cut, -1, ids), numbers, rows, ends, content)
        self.added_per_task += counts
        self.full = bool((self.added_per_task >= self.capacity_per_task).all())

    def _check_shapes(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        n = len(infos)
        wanted = ((n, *self.obs_shape), (n, *self.obs_shape), (n, *self.action_space.shape), (n,), (n,))  # type: ignore[misc]
        for name, array, shape in zip(
            ("obs", "next_obs", "action", "reward", "done"), (obs, next_obs, action, reward, done), wanted, strict=True
        ):
            if np.shape(array) != shape:
                raise ConfigurationError(f"{name} of {n} envs has the shape {shape}, not {np.shape(array)}.")

    def _going_on(self, ids: np.ndarray, content: np.ndarray, oldest: np.ndarray) -> np.ndarray:
        """The envs that go on from where their latest transition led; indices.

        Told by the states alone, so that it does not matter who reset an env, and when.

        :param ids: ``[n_envs]``, their tasks
        :param content: see :class:`_Latest`
        :param oldest: ``[M]``, the transitions before these are being overwritten
        """
        latest = self._latest
        if len(latest.ids) != len(ids):
            return np.zeros(0, np.int64)
        state, before = content[:, : self.state_dim], latest.content[:, -self.state_dim - 1 : -1]
        # As bits: 0.0 is not -0.0, and NaN is NaN.
        same = (state.view(np.int32) == before.view(np.int32)).all(1)
        terminated = latest.content[:, -1] == 1
        return np.flatnonzero(same & (ids == latest.ids) & (latest.numbers >= oldest[ids]) & ~terminated)

    def _take_ends(self, count: int) -> np.ndarray:
        """Ends that belong to no transition, ``[count]``."""
        if count > len(self._free_ends):
            oldest = (self.added_per_task - self.capacity_per_task)[self._end_tasks]
            free = np.flatnonzero(self._end_numbers < oldest)  # their transitions were overwritten
            size = len(self._ends)
            if len(free) < count + size // 8:  # searching for a few each time would cost more
                more = size + count
                self._ends = th.cat([self._ends, self._ends.new_empty(more, self.state_dim + 1)])
                self._end_tasks = np.pad(self._end_tasks, (0, more))
                # Belonging to no transition: found free as long as nothing is stored in them.
                self._end_numbers = np.pad(self._end_numbers, (0, more), constant_values=np.iinfo(np.int64).min)
                free = np.concatenate([free, np.arange(size, size + more)])
            self._free_ends = free
        taken, self._free_ends = self._free_ends[:count], self._free_ends[count:]
        return taken

    def _write(
        self, content: np.ndarray, rows: np.ndarray, ends: np.ndarray, before: np.ndarray, after: np.ndarray
    ) -> None:
        """Write rows and ends, and the rows ``after`` as what is next to the rows ``before``."""
        values = self._to_storage(content)
        indices = self._to_storage(np.concatenate([rows, before, ~ends, after, ends]))
        n, linked, width = len(rows), len(rows) + len(before), self._rows.shape[1]
        self._rows.index_copy_(0, indices[:n], values[:, :width])
        self._next.index_copy_(0, indices[:linked], indices[linked : 2 * linked].int())
        self._ends.index_copy_(0, indices[2 * linked :], values[:, width:])

    def _to_storage(self, array: np.ndarray) -> Tensor:
        return send(th.from_numpy(array), self.storage_device)

    # -------------------------------------------------------------- in segments

    def mark(self) -> Mark:
        """This moment, for :meth:`segment`."""
        return Mark(self._content, self.added_per_task.copy(), self._latest.rows.copy())

    def segment(self, since: Mark | None = None) -> dict[str, np.ndarray] | None:
        """The transitions that were added since a mark and are still there, to be written once and never again.

        :param since: None for all
        :return: arrays for :meth:`restore`; None for a mark of other content, which a new sequence must replace
        """
        if since is None:
            since = Mark(self._content, np.zeros(self.num_tasks, np.int64), np.zeros(0, np.int64))
        if since.content is not self._content:
            return None
        first = np.maximum(since.added_per_task, self.added_per_task - self.capacity_per_task)
        rows = self._to_storage(self._rows_of(first, self.added_per_task))
        # What was the latest row of an env then had its next state aside, and has it in a row by now.
        opened = self._to_storage(since.open_rows)
        return {
            "first": first,
            "added_per_task": self.added_per_task.copy(),
            "rows": self._rows[rows].cpu().numpy(),
            "next": self._next[rows].cpu().numpy(),
            "open_rows": since.open_rows,
            "open_next": self._next[opened].cpu().numpy(),
        }

    def head(self) -> dict[str, np.ndarray]:
        """What changes in place, and so belongs to this moment alone; with the segments so far, for :meth:`restore`."""
        latest = {f"latest_{name}": array for name, array in self._latest._asdict().items()}
        ends = {name: getattr(self, f"_{name}").copy() for name in ("end_tasks", "end_numbers", "free_ends")}
        shape = np.array([self.num_tasks, self.capacity_per_task, *self._rows.shape[1:]])
        return {"shape": shape, "ends": self._ends.cpu().numpy().copy(), **ends, **latest}

    def restore(self, segments: Iterable[Mapping[str, np.ndarray]], head: Mapping[str, np.ndarray]) -> None:
        """Take over the transitions of another buffer.

        :param segments: all of its segments, in order
        :param head: its head at the last of them
        :raises ConfigurationError: if that has another number of tasks, capacity, or width of states and actions
        """
        shape = [self.num_tasks, self.capacity_per_task, self._rows.shape[1]]
        if head["shape"].tolist() != shape:
            raise ConfigurationError(
                "The saved replay buffer does not fit: its number of tasks, transitions of each task, and numbers in a "
                f"transition are {head['shape'].tolist()}, here they are {shape}."
            )
        self.reset()
        self.allocate()
        for segment in segments:
            rows = self._to_storage(self._rows_of(segment["first"], segment["added_per_task"]))
            self._rows[rows] = self._to_storage(segment["rows"])
            self._next[rows] = self._to_storage(segment["next"])
            self._next[self._to_storage(segment["open_rows"])] = self._to_storage(segment["open_next"])
            self.added_per_task = segment["added_per_task"].copy()
        self._ends = self._to_storage(head["ends"].copy())
        self._end_tasks, self._end_numbers = head["end_tasks"].copy(), head["end_numbers"].copy()
        self._free_ends = head["free_ends"].copy()
        self._latest = _Latest(*(head[f"latest_{name}"].copy() for name in _Latest._fields))
        self.full = bool((self.added_per_task >= self.capacity_per_task).all())

    def _rows_of(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The rows of each task's transitions from ``first`` until before ``end``, both ``[M]``; ordered by task."""
        rows = [
            task * self.capacity_per_task + np.arange(a, b) % self.capacity_per_task
            for task, (a, b) in enumerate(zip(first, end, strict=True))
        ]
        return np.concatenate(rows)


class Mark(NamedTuple):
    """A moment in the life of a buffer."""

    content: object
    added_per_task: np.ndarray  # [M]
    open_rows: np.ndarray  # [n_envs], whose next states were aside


class _Latest(NamedTuple):
    """The latest transition of each env."""

    ids: np.ndarray  # [n_envs], its task; -1 if the episode was cut, so that no row of the next one follows
    numbers: np.ndarray  # [n_envs], how many transitions its task had before it
    rows: np.ndarray  # [n_envs]
    ends: np.ndarray  # [n_envs], the end that holds its next state
    content: np.ndarray  # [n_envs, (O + A + 1) + (O + 1)], what is in its row and its end


def send(tensor: Tensor, device: th.device) -> Tensor:
    """The tensor on a device; a GPU is not waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_cuda else tensor.pin_memory()).to(device, non_blocking=True)
