"""Models as they were in a checkpoint."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_softmod.common.errors import CheckpointError
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.learner.task_rings import Mark
from sb3_softmod.saving.checkpoints import Checkpoint, find
from sb3_softmod.saving.training_state import restore

#: The files of a checkpoint.
MODEL, STATE, BUFFER, OTHER_BUFFER = "model.zip", "state.pkl", "buffer.npz", "replay_buffer.pkl"


class Written(NamedTuple):
    """A checkpoint that a training wrote or began from."""

    checkpoint: Checkpoint
    mark: Mark | None  # what its segments of the replay buffer hold; None for a buffer of SB3


def mark_of(buffer: ReplayBuffer | None) -> Mark | None:
    """What a replay buffer holds now; None for one of SB3."""
    return buffer.mark() if isinstance(buffer, MultiTaskReplayBuffer) else None


def load_checkpoint(cls: Any, path: str | Path, env: Any, **kwargs: Any) -> Any:
    """A model as it was in a checkpoint, with its replay buffer, its envs and all generators.

    :param cls: its class, a :class:`.SavingSAC`
    :param path: see :func:`.checkpoints.find`
    :param env: made with the same arguments as before
    :param kwargs: of ``cls.load``
    :raises CheckpointError: without a good checkpoint
    :raises ConfigurationError: for an env that does not fit
    """
    checkpoint = find(path)
    model = cls.load(checkpoint.file(MODEL), env=env, **kwargs)
    buffer = model.replay_buffer
    if isinstance(buffer, MultiTaskReplayBuffer):
        buffer.restore(map(_arrays, checkpoint.segment_files()), _arrays(checkpoint.file(BUFFER)))
    else:
        model.load_replay_buffer(checkpoint.file(OTHER_BUFFER), truncate_last_traj=False)
    try:
        state = pickle.loads(checkpoint.file(STATE).read_bytes())
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.file(STATE)} needs code that is not there: {error}.") from error
    model._set_learning_progress(state)
    restore(model, state)
    model.resumed_from, model._state_to_continue = checkpoint, state
    model._checkpoints = {checkpoint.folder.parent.resolve(): Written(checkpoint, mark_of(buffer))}
    return model


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)
