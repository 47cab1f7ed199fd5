"""Checkpoints that a training writes, also when the disk is full."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from point_mass import make_point_mass_env
from resumable_run import everything, make_env, make_model, names
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from worker_envs import M

from sb3_softmod import ConfigurationError, MultiTaskSAC, SoftModSAC
from sb3_softmod.common.errors import CheckpointError
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback
from sb3_softmod.saving.checkpoints import CheckpointFolder, find


def steps_on_disk(path: Path) -> list[int]:
    return sorted(int(each.name) for each in (path / "checkpoints").glob("[0-9]*"))


def test_the_segments_of_a_training(tmp_path: Path) -> None:
    """Each transition is written once; what the buffer has overwritten goes."""
    model = make_model(make_env())  # 24 transitions of each task
    model.learn(100 * M, CheckpointCallback(tmp_path, save_freq=5, keep_last=1))
    (newest,) = steps_on_disk(tmp_path)
    segments = find(tmp_path).segment_files()
    assert newest == 95 * M
    assert sorted((tmp_path / "checkpoints" / "segments").iterdir()) == sorted(segments)
    assert len(segments) == 5  # of 5 steps each
    assert [len(np.load(file)["rows"]) for file in segments] == [5 * M] * 5


def test_a_folder_that_was_deleted_is_filled_anew(tmp_path: Path) -> None:
    model = make_model(make_env())
    model.learn(12 * M, CheckpointCallback(tmp_path, save_freq=5))
    shutil.rmtree(tmp_path / "checkpoints")
    model.learn(6 * M, CheckpointCallback(tmp_path, save_freq=5), reset_num_timesteps=False)
    expected = everything(model)
    resumed = SoftModSAC.resume(tmp_path, make_env())
    assert resumed.num_timesteps == 17 * M
    resumed.learn(callback=CheckpointCallback(tmp_path))
    assert everything(resumed) == expected


def test_a_buffer_that_was_emptied_begins_anew(tmp_path: Path) -> None:
    model = make_model(make_env())
    callback = CheckpointCallback(tmp_path, save_freq=5)
    model.learn(11 * M, callback)
    assert model.replay_buffer is not None
    model.replay_buffer.reset()
    model.learn(7 * M, callback, reset_num_timesteps=False)
    resumed = SoftModSAC.resume(tmp_path, make_env())
    assert steps_on_disk(tmp_path) == [10 * M, 15 * M]
    assert resumed.replay_buffer is not None
    assert resumed.replay_buffer.size() == 4 * M


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    make_model(make_env()).learn(12 * M, CheckpointCallback(tmp_path, save_freq=5))
    before = names(tmp_path)
    model = make_model(make_env())
    with pytest.raises(
        CheckpointError,
        match=r"holds the checkpoints of another training: go on with it \(SoftModSAC\.resume\), choose ",
    ):
        model.learn(12 * M, CheckpointCallback(tmp_path))
    assert model.num_timesteps == 0
    resumed = SoftModSAC.resume(tmp_path, make_env())
    with pytest.raises(CheckpointError, match="another training"):  # begun anew
        resumed.learn(12 * M, CheckpointCallback(tmp_path))
    assert names(tmp_path) == before


def test_a_second_writer_is_refused_before_training(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", 2)
    model = make_model(make_env())
    with pytest.raises(CheckpointError, match="Another process, or another CheckpointCallback"):
        model.learn(12 * M, CheckpointCallback(tmp_path))
    folder.close()
    assert model.num_timesteps == 0
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written to"):
        model.learn(12 * M, CheckpointCallback(tmp_path / "file"))
    assert model.num_timesteps == 0


def test_a_callback_for_another_model_is_refused(tmp_path: Path) -> None:
    model = SAC("MlpPolicy", make_point_mass_env(1), learning_starts=100)
    with pytest.raises(
        ConfigurationError, match="CheckpointCallback is for SoftModSAC and MultiTaskSAC, not SAC: SB3's"
    ):
        model.learn(5, CheckpointCallback(tmp_path))


def finished(model: MultiTaskSAC) -> dict[str, bytes]:
    model.learn(12 * M)
    return everything(model)


@pytest.mark.parametrize(
    "fails", range(8), ids=["segment", "model", "state", "buffer", "manifest", "new", "old", "top"]
)
def test_a_disk_that_is_full_for_a_while(fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file finds it so: the training goes on, the last checkpoint stays, and the next one is as ever."""
    expected = finished(make_model(make_env()))
    model = make_model(make_env())
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        if model.num_timesteps == 6 * M:
            calls.append(descriptor)
            if len(calls) == fails + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(
        UserWarning, match=r"step 18 could not .*: \[Errno 28\] No .*\. The training goes on; the last on"
    ):
        model.learn(12 * M, CheckpointCallback(tmp_path, save_freq=3))
    assert len(calls) == fails + 1
    assert everything(model) == expected
    assert steps_on_disk(tmp_path) == ([9, 27] if fails < 7 else [18, 27])
    monkeypatch.undo()
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=CheckpointCallback(tmp_path, save_freq=3))
    assert everything(resumed) == expected


class Limit(BaseCallback):
    """In every other step no file may become longer than so many bytes, which the system says as a full disk does."""

    def __init__(self, limits: list[int]) -> None:
        super().__init__()
        self.limits = limits
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def _on_step(self) -> bool:
        self.lift()
        if self.n_calls % 2 == 1 and self.n_calls // 2 < len(self.limits):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limits[self.n_calls // 2], self._before[1]))
        return True

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.mark.parametrize("sb3_buffer", [False, True])
def test_a_disk_that_gets_full_in_the_middle_of_a_file(sb3_buffer: bool, tmp_path: Path) -> None:
    """Torch, zipfile, numpy and pickle meet it: a warning each time, and no other checkpoint suffers."""
    kwargs = dict(replay_buffer_class=ReplayBuffer) if sb3_buffer else {}
    sizes = [1, 100, 300, 700, 1000, 1500, 2500, 4000, 6000, 10_000, 15_000, 20_000, 30_000, 40_000]
    limit = Limit(sizes)
    model = make_model(make_env(), **kwargs)
    steps = (2 * len(sizes) + 2) * M
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model.learn(steps, [CheckpointCallback(tmp_path, save_freq=1, keep_last=100), limit])
    finally:
        limit.lift()
    messages = [str(warning.message) for warning in seen if "could not be written" in str(warning.message)]
    first, last = messages[0], messages[-1]
    assert "step 3 could not be written: [Errno 27] File too large. The training goes on; there is none yet." in first
    assert f"step {(2 * len(sizes) - 1) * M} could not be written: [Errno 27]" in last
    assert f"the last one is of step {(2 * len(sizes) - 2) * M}." in last
    assert len(messages) == len(sizes)
    assert steps_on_disk(tmp_path) == [2 * M * (i + 1) for i in range(len(sizes))] + [steps - M]
    for step in steps_on_disk(tmp_path):
        find(tmp_path / "checkpoints" / f"{step:012d}")
    expected = everything(model)
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path), Limit([])])
    assert everything(resumed) == expected


def test_a_disk_that_is_full_when_a_signal_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class AtStep(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 8:
                monkeypatch.setattr(os, "fsync", full)
                signal.raise_signal(signal.SIGTERM)
            return True

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = make_model(make_env())
    with pytest.warns(
        UserWarning, match=r"step 24 could not be written: .* The training ends; the last one is of step 15"
    ):
        model.learn(20 * M, [CheckpointCallback(tmp_path, save_freq=5), AtStep()])
    assert model.num_timesteps == 8 * M
    assert "Ended by SIGTERM at step 24. To go on from step 15: SoftModSAC.resume(" in capsys.readouterr().out
