"""How the routing changes while a model learns."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import as_path, replacing
from sb3_softmod.common.task_observation import task_names_of, tasks_in_turn
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.routing.routes import RoutingSamples, RoutingStatistics, routed_networks, sample_routing

#: States of each task in a snapshot.
_STATES = 64


@dataclass(frozen=True)
class RoutingSnapshots:
    """The actor's mean routing of each task at S moments of a training; NaN where a snapshot has no state of a task.

    :param steps: ``[S]``, environment steps over all tasks
    :param task_names: of all M tasks
    :param entropy: ``[S, M]``, see :meth:`.RoutingSamples.entropy`
    :param layers: each ``[S, M, n, n]`` (target module, source module); a routed head adds a last ``[S, M, n]``
    """

    steps: np.ndarray
    task_names: list[str]
    entropy: np.ndarray
    layers: list[np.ndarray]

    @classmethod
    def of(cls, step: int, samples: RoutingSamples) -> RoutingSnapshots:
        """One snapshot, of samples of the actor after so many environment steps."""
        mean, entropy = RoutingStatistics.of(samples).mean, samples.entropy()
        layers = []
        for k, layer in enumerate(samples.layers):
            missing = np.full(layer.shape[1:], np.nan, np.float32)
            layers.append(np.stack([mean[name][k] if name in mean else missing for name in samples.task_names])[None])
        values = np.array([[entropy.get(name, np.nan) for name in samples.task_names]])
        return cls(np.array([step]), samples.task_names, values, layers)

    def then(self, later: RoutingSnapshots) -> RoutingSnapshots:
        """These, and later ones of the same training.

        :raises ConfigurationError: for other tasks, or a network of another size
        """
        for what, ours, theirs in (
            ("tasks", self.task_names, later.task_names),
            ("layers", [p.shape[2:] for p in self.layers], [p.shape[2:] for p in later.layers]),
        ):
            if ours != theirs:
                raise ConfigurationError(f"The earlier snapshots are of other {what}: {ours}, not {theirs}.")
        return RoutingSnapshots(
            np.concatenate([self.steps, later.steps]),
            self.task_names,
            np.concatenate([self.entropy, later.entropy]),
            [np.concatenate(pair) for pair in zip(self.layers, later.layers, strict=True)],
        )

    def until(self, step: int) -> RoutingSnapshots:
        """Those up to a step."""
        kept = self.steps <= step
        return RoutingSnapshots(
            self.steps[kept], self.task_names, self.entropy[kept], [layer[kept] for layer in self.layers]
        )

    def _fits_together(self) -> bool:
        if self.steps.ndim != 1 or not isinstance(self.task_names, list):
            return False
        sizes = (len(self.steps), len(self.task_names))
        return self.entropy.shape == sizes and all(layer.shape[:2] == sizes for layer in self.layers)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` with ``steps``, ``task_names``, ``entropy`` and ``layer_0``, ``layer_1``, ...

        :raises FileError: if it cannot be written
        """
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez(
                file,
                steps=self.steps,
                task_names=np.array(self.task_names),
                entropy=self.entropy,
                **{f"layer_{k}": layer for k, layer in enumerate(self.layers)},  # type: ignore[arg-type]
            )

    @classmethod
    def load(cls, path: str | Path) -> RoutingSnapshots:
        """Read what :meth:`save` wrote.

        :raises ConfigurationError: naming the file, where it is missing or no such file
        """
        try:
            with np.load(path) as file:
                layers = [file[f"layer_{k}"] for k in range(sum(name.startswith("layer_") for name in file.files))]
                found = cls(file["steps"], file["task_names"].tolist(), file["entropy"], layers)
            if not found._fits_together():
                raise ValueError("its arrays do not fit together")
            return found
        except FileNotFoundError as error:
            raise ConfigurationError(f"There is no file {path}: RoutingSnapshotCallback writes one.") from error
        except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"{path} holds no snapshots of RoutingSnapshotCallback ({error}).") from error


class RoutingSnapshotCallback(BaseCallback):
    """Keeps the actor's mean routing of each task, every some steps, over states from the replay buffer.

    The training goes on as it would without it: no step of an env, no draw from a random generator that the training
    uses. The logs get ``routing/entropy``, its mean over the tasks, and ``routing_entropy/<task>``.

    The first snapshot is taken as soon as every task that the envs play is in the buffer, the last one when the
    training ends. A training that goes on (``reset_num_timesteps=False``) appends to its file.

    :param path: the ``.npz`` file, see :class:`RoutingSnapshots`
    :param every: environment steps (of all envs together) between two snapshots
    :param verbose: as in SB3
    :raises ConfigurationError: for fewer than one step
    """

    def __init__(self, path: str | Path, every: int = 10_000, verbose: int = 0) -> None:
        super().__init__(verbose)
        require_integer("every", every, 1)
        self.path = as_path(path)
        self.every = every
        self._taken: RoutingSnapshots | None = None
        self._next = 0  # the step of the next snapshot

    def _on_training_start(self) -> None:
        routed_networks(self.model)
        if not isinstance(getattr(self.model, "replay_buffer", None), ReplayBuffer):
            raise ConfigurationError(
                "RoutingSnapshotCallback draws its states from a replay buffer, and "
                f"{type(self.model).__name__} has none."
            )
        self._played = tasks_in_turn(self.training_env, len(task_names_of(self.training_env)))
        self._taken, self._next = None, 0
        if not self.path.exists():
            return
        if self.num_timesteps == 0:
            raise ConfigurationError(
                f"{self.path} holds the snapshots of another training: take another path, or remove it."
            )
        # A training that was cut off repeats the steps since it was last saved.
        self._taken = RoutingSnapshots.load(self.path).until(self.num_timesteps)
        self._next = self._last_step() + self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._take()
        return True

    def _on_training_end(self) -> None:
        if self.num_timesteps > self._last_step():
            self._take()

    def _last_step(self) -> int:
        """The step of the last snapshot, 0 without one."""
        return 0 if self._taken is None or not len(self._taken.steps) else int(self._taken.steps[-1])

    def _take(self) -> None:
        buffer = self.model.replay_buffer  # type: ignore[attr-defined]
        by_task = isinstance(buffer, MultiTaskReplayBuffer)
        if not (buffer.size_per_task()[self._played].all() if by_task else buffer.size()):
            return  # some task was not seen yet
        names = task_names_of(self.training_env)
        with _same_random_numbers():
            batch = buffer.sample(_STATES * len(names), env=self.model.get_vec_normalize_env())
        samples = sample_routing(self.model, batch.observations.cpu().numpy(), None, names)[0]
        new = RoutingSnapshots.of(self.num_timesteps, samples)
        self._taken = new if self._taken is None else self._taken.then(new)
        self._taken.save(self.path)
        self._next = self.num_timesteps + self.every
        self.logger.record("routing/entropy", float(np.nanmean(new.entropy)))
        for name, value in zip(names, new.entropy[0], strict=True):
            if np.isfinite(value):
                self.logger.record(f"routing_entropy/{name}", float(value), exclude=("stdout", "log"))


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave the generators that replay buffers draw from as they were: numpy's (SB3's buffers) and torch's (ours)."""
    state = np.random.get_state()
    try:
        with th.random.fork_rng(range(th.cuda.device_count())):
            yield
    finally:
        np.random.set_state(state)
