"""Checkpoints while a model learns, and what a signal to end does."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import CheckpointError, ConfigurationError
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.saving.checkpoints import FOLDER, CheckpointFolder, Writer
from sb3_softmod.saving.resuming import BUFFER, MODEL, OTHER_BUFFER, STATE, Written, mark_of
from sb3_softmod.saving.sac import SavingSAC
from sb3_softmod.saving.training_state import callbacks_of, training_state

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class CheckpointCallback(BaseCallback):
    """Writes all that the future of a training depends on, so that it goes on after any end, as if there was none.

    A checkpoint holds parameters, optimizers, temperatures, random generators, the progress of the envs, of the
    callbacks and of the logger, and the replay buffer, of which each transition is written once. It is written between
    two steps of the envs, whole or not at all; :meth:`.MultiTaskSAC.resume` goes on from the newest good one. One that
    cannot be written, on a full disk for instance, is left out with a warning, and the older ones stay.

    SIGTERM and Ctrl-C write a checkpoint and end ``learn``, which then returns; a second one ends at once.

    :param path: of the run; the checkpoints are in its folder ``checkpoints``
    :param save_freq: steps of the vectorised env between two checkpoints; 0: only where a signal ends the training
    :param keep_last: how many to keep
    :param how_to_resume: what is printed after a signal; default a line of Python
    :param verbose: 1 prints a line for each checkpoint
    :raises ConfigurationError: for negative numbers, or fewer than one to keep
    :raises CheckpointError: when ``learn`` begins: if ``path`` cannot be written to, belongs to another process, or
        holds the checkpoints of another training
    """

    def __init__(
        self,
        path: str | Path,
        save_freq: int = 10_000,
        keep_last: int = 2,
        how_to_resume: str | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value, least in (("save_freq", save_freq, 0), ("keep_last", keep_last, 1)):
            require_integer(name, value, least)
        self.path = Path(path)
        self.save_freq = save_freq
        self.keep_last = keep_last
        self.how_to_resume = how_to_resume
        #: The name of the signal that ended the training, None if none did.
        self.ended_by: str | None = None
        self._folder: CheckpointFolder | None = None
        self._calls_at_newest = 0
        self._seconds_before = 0.0
        self._handlers: dict[int, Any] = {}

    def progress(self) -> dict[str, Any]:
        """For a checkpoint: the steps so far, and the seconds of training."""
        return {"n_calls": self.n_calls, "seconds": self._seconds()}

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Go on counting steps, and seconds of training."""
        self.n_calls = self._calls_at_newest = progress["n_calls"]
        self._seconds_before = progress["seconds"]

    # ------------------------------------------------------------ of the training

    def _on_training_start(self) -> None:
        if not isinstance(self.model, SavingSAC):
            raise ConfigurationError(
                f"CheckpointCallback is for SoftModSAC and MultiTaskSAC, not {type(self.model).__name__}: SB3's own "
                "saves such models."
            )
        self.ended_by = None
        self._start = time.monotonic()
        folder = (self.path / FOLDER).resolve()  # whatever folder the process changes to
        self._folder = CheckpointFolder(folder, self.keep_last)
        newest = self._newest()
        if newest is not None and not newest.checkpoint.folder.is_dir():  # somebody deleted it
            del self.model._checkpoints[folder]
            newest = None
        last = -1 if newest is None else newest.checkpoint.step
        if last > self.model.num_timesteps or (last < 0 and any(folder.glob("[0-9]*"))):
            raise CheckpointError(
                f"{folder} holds the checkpoints of another training: go on with it "
                f"({type(self.model).__name__}.resume), choose another path, or remove the folder."
            )
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # as nohup has it; not one of Python's
                    self._handlers[number] = handler
                    signal.signal(number, self._note)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # A signal in the last step, after which nobody asks any more. RL Zoo ends its first callback a second time,
        # when all is written and the folder closed.
        # It does so too where the training never began, and there is no model yet.
        if self.ended_by and self._folder is not None and self.model.num_timesteps >= self.model._total_timesteps:
            self.between_steps(self.locals["callback"])

    def between_steps(self, callback: BaseCallback) -> bool:
        """Write a checkpoint if it is time to; nothing of the training may be under way.

        :param callback: all callbacks of the training
        :return: whether to go on with the training
        """
        due = self.save_freq > 0 and self.n_calls - self._calls_at_newest >= self.save_freq
        if due or self.ended_by:
            self._write(callback)
        if self.ended_by:
            self._say_how_to_resume()
        return self.ended_by is None

    def release(self) -> None:
        """Give back signals and folder; ``learn`` calls it, however it ends."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._folder is not None:
            self._seconds_before = self._seconds()
            self._folder.close()
            self._folder = None

    # ------------------------------------------------------------------- writing

    def _write(self, callback: BaseCallback) -> None:
        assert self._folder is not None
        model: SavingSAC = self.model  # type: ignore[assignment]
        newest = self._newest()
        if newest is not None and newest.checkpoint.step == model.num_timesteps:
            return
        self._calls_at_newest = self.n_calls
        buffer = model.replay_buffer
        files: dict[str, Writer] = {MODEL: partial(_save, model)}
        state = training_state(model, callback, model._learning_progress(), model._settings)
        files[STATE] = partial(_dump, state)
        segments: dict[str, dict[str, Any]] = {}
        segment, counts = None, None
        if isinstance(buffer, MultiTaskReplayBuffer):
            added = buffer.segment(newest.mark) if newest is not None and newest.mark is not None else None
            if added is None:  # the first one, or the buffer was emptied or replaced
                added = buffer.segment()
            elif newest is not None:
                segments = _needed(newest.checkpoint.segments, buffer)
            segment, counts = _arrays(added), {"last": buffer.added_per_task.tolist()}
            files[BUFFER] = _arrays(buffer.head())
        else:
            files[OTHER_BUFFER] = partial(_pickle, buffer)
        start = time.monotonic()
        try:
            facts = {"seconds": round(self._seconds(), 1)}
            written = self._folder.write(model.num_timesteps, files, facts, segments, segment, counts)
        except OSError as error:
            last = "there is none yet" if newest is None else f"the last one is of step {newest.checkpoint.step:,}"
            warnings.warn(
                f"The checkpoint at step {model.num_timesteps:,} could not be written: {error}. The training "
                f"{'ends' if self.ended_by else 'goes on'}; {last}.",
                stacklevel=2,
            )
            return
        model._checkpoints[self._folder.path] = Written(written, mark_of(model.replay_buffer))
        if self.verbose >= 1:
            print(f"Checkpoint {written.folder} ({time.monotonic() - start:.1f} s)")

    def _newest(self) -> Written | None:
        """The last checkpoint in this folder, if it is of this training."""
        assert self._folder is not None
        return self.model._checkpoints.get(self._folder.path)  # type: ignore[attr-defined]

    def _seconds(self) -> float:
        """Of training, those before a break included."""
        return self._seconds_before + time.monotonic() - self._start

    # ------------------------------------------------------------------- signals

    def _note(self, number: int, _frame: Any) -> None:
        for each in reversed(checkpoint_callbacks(self.locals["callback"])):  # handlers are a stack
            each.ended_by = signal.Signals(number).name
            if number in each._handlers:
                signal.signal(number, each._handlers[number])  # a second one does what it would have done
        text = f"\n{self.ended_by}: a checkpoint after this step, then the end. Once more ends at once.\n"
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, text.encode())  # not print: the signal may have come in the middle of one

    def _say_how_to_resume(self) -> None:
        newest, step = self._newest(), self.model.num_timesteps
        if newest is None:  # none could be written, which was said
            return
        how = self.how_to_resume or (
            f"{type(self.model).__name__}.resume({str(self.path)!r}, env=...).learn(callback=...)"
        )
        at = "" if newest.checkpoint.step == step else f" from step {newest.checkpoint.step:,}"
        print(f"Ended by {self.ended_by} at step {step:,}. To go on{at}: {how}", flush=True)


def checkpoint_callbacks(callback: MaybeCallback) -> list[CheckpointCallback]:
    """Those among the callbacks of a training, in their order.

    :param callback: what ``learn`` takes
    """
    return [each for each in callbacks_of(callback) if isinstance(each, CheckpointCallback)]


def _needed(segments: dict[str, dict[str, Any]], buffer: MultiTaskReplayBuffer) -> dict[str, dict[str, Any]]:
    """The segments of which the buffer still has transitions."""
    oldest = buffer.added_per_task - buffer.capacity_per_task
    return {name: entry for name, entry in segments.items() if (np.array(entry["last"]) > oldest).any()}


def _dump(state: dict[str, Any], path: Path) -> None:
    path.write_bytes(cloudpickle.dumps(state))


def _save(model: SavingSAC, path: Path) -> None:
    content = io.BytesIO()
    model.save(content)  # SB3 would leave a file open that the disk has no room for
    path.write_bytes(content.getbuffer())


def _pickle(buffer: Any, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(buffer, file, protocol=pickle.HIGHEST_PROTOCOL)


def _arrays(arrays: Any) -> Writer:
    def write(path: Path) -> None:
        with path.open("wb") as file:  # given a name, numpy would change it
            np.savez(file, **arrays)

    return write
