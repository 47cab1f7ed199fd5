"""The files of checkpoints: written whole or not at all, checked before they are read."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from point_mass import make_point_mass_env
from resumable_run import everything, make_env, make_model
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from worker_envs import M

from sb3_softmod import ConfigurationError, MultiTaskSAC, SoftModSAC
from sb3_softmod.common.errors import CheckpointError
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback
from sb3_softmod.saving.checkpoints import FORMAT, Checkpoint, CheckpointFolder, find

# --------------------------------------------------------------------------------- the folder


def writer(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def write(folder: CheckpointFolder, step: int, before: Checkpoint | None = None) -> Checkpoint:
    """A checkpoint whose segments are that of the checkpoint before and one more."""
    segments = {} if before is None else dict(list(before.segments.items())[-1:])
    files = {"model": writer(f"model {step}"), "state": writer(f"state {step}")}
    return folder.write(step, files, {"at": step}, segments, writer(f"segment {step}"), {"last": step})


def content(checkpoint: Checkpoint) -> tuple[int, list[str], list[str]]:
    names = sorted(checkpoint.files)
    return (
        checkpoint.step,
        [checkpoint.file(name).read_text() for name in names],
        [path.read_text() for path in checkpoint.segment_files()],
    )


def names(path: Path) -> list[str]:
    """All that is in the folder, but for the lock."""
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file() and each.name != ".lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def folder(path: Path) -> Iterator[CheckpointFolder]:
    folder = CheckpointFolder(path, keep_last=2)
    yield folder
    folder.close()


def filled(folder: CheckpointFolder, *steps: int) -> Checkpoint:
    newest = None
    for step in steps:
        newest = write(folder, step, newest)
    assert newest is not None
    return newest


def test_what_is_written_is_found(folder: CheckpointFolder, path: Path, tmp_path: Path) -> None:
    written = filled(folder, 10, 20)
    for place in (tmp_path, path, path / "000000000020"):
        found = find(place)
        assert found == written
        assert content(found) == (20, ["model 20", "state 20"], ["segment 10", "segment 20"])
        assert (found.facts, [entry["last"] for entry in found.segments.values()]) == ({"at": 20}, [10, 20])
    assert content(find(path / "000000000010")) == (10, ["model 10", "state 10"], ["segment 10"])


def test_the_last_ones_and_their_segments_are_kept(folder: CheckpointFolder, path: Path) -> None:
    filled(folder, 10, 20, 30, 40)
    kept = [f"{step:012d}/{name}" for step in (30, 40) for name in ("manifest.json", "model", "state")]
    assert names(path) == [*kept, *(f"segments/{step:012d}-0.npz" for step in (20, 30, 40))]


def test_a_checkpoint_replaces_those_after_it(folder: CheckpointFolder, path: Path) -> None:
    """From the first one another way: the same steps are reached again, and the segments of both ways are apart."""
    first = write(folder, 10)
    filled(folder, 20)
    write(folder, 20, first)
    assert content(find(path)) == (20, ["model 20", "state 20"], ["segment 10", "segment 20"])
    write(folder, 15, first)
    assert content(find(path)) == (15, ["model 15", "state 15"], ["segment 10", "segment 15"])
    assert not (path / "000000000020").exists()


@pytest.mark.parametrize("file", ["segment", "model", "state"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_raises(file: str, error: BaseException, folder: CheckpointFolder, path: Path) -> None:
    newest = filled(folder, 10, 20)
    before = names(path)

    def half(path: Path) -> None:
        path.write_text("half")
        raise error

    files = {name: half if name == file else writer(name) for name in ("model", "state")}
    for step in (30, 40):
        with pytest.raises(type(error)):
            folder.write(step, files, {}, newest.segments, half if file == "segment" else writer("all of it"))
        assert names(path) == before
        assert list(path.glob(".partial*")) == []
    assert content(find(path))[0] == 20
    write(folder, 50, newest)
    assert content(find(path)) == (50, ["model 50", "state 50"], ["segment 20", "segment 50"])


def test_at_no_moment_is_there_nothing_good(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy before and after each operation on files is what a process that is killed there leaves."""
    copies = path.parent / "copies"
    states: list[Path] = []

    def take_copy() -> None:
        states.append(copies / str(len(states)))
        shutil.copytree(path, states[-1])

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            take_copy()
            return function(*args, **kwargs)

        return call

    folder = CheckpointFolder(path, keep_last=1)
    newest = first = filled(folder, 10, 20)
    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "rmdir"), (os, "unlink"), *((Path, n) for n in ("replace", "unlink"))):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        newest = write(folder, 30, newest)
        write(folder, 40, first)  # one that began from an older one, which is gone by now
        take_copy()
    folder.close()
    assert len(states) > 30
    seen = []
    for state in states:
        found = find(state)
        seen.append(found.step)
        again = CheckpointFolder(state, keep_last=1)
        later = write(again, 50, found)
        again.close()
        assert content(find(state)) == content(later)
        assert not [name for name in names(state) if ".partial" in name]
        assert len(list(state.glob("[0-9]*"))) == 1
    assert seen == sorted(seen)
    assert set(seen) == {20, 30, 40}


# ------------------------------------------------------------------------- what can be wrong


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[:-1])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])


MESSAGES = {
    "missing": "cannot be read: No such file or directory.",
    "truncated": "instead of",
    "empty": "has 0 bytes instead of",
    "a bit": "is corrupted: its checksum is not that of when it was written.",
}


@pytest.mark.parametrize("how", MESSAGES)
@pytest.mark.parametrize("file", ["000000000020/model", "000000000020/state", "segments/000000000020-0.npz"])
def test_a_damaged_file(file: str, how: str, folder: CheckpointFolder, path: Path) -> None:
    filled(folder, 10, 20)
    damage(path / file, how)
    with pytest.warns(UserWarning, match="Going on from the checkpoint at step 10, because newer ones cannot be") as w:
        assert content(find(path)) == (10, ["model 10", "state 10"], ["segment 10"])
    (message,) = (str(warning.message) for warning in w)
    assert f"that at step 20: {path / file} " in message
    assert MESSAGES[how] in message
    with pytest.raises(CheckpointError, match=MESSAGES[how]):
        find(path / "000000000020")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "manifest.json cannot be read: No such file or directory."),
        ("", r"manifest.json is corrupted: JSONDecodeError\("),
        ("half", r"manifest.json is corrupted: JSONDecodeError\("),
        ("[]", r"manifest.json is corrupted: TypeError\("),
        ("{}", r"manifest.json is corrupted: KeyError\('format'\)"),
        ("step", "manifest.json is corrupted: its checksum is not that of when it was written."),
    ],
)
def test_a_damaged_manifest(text: str | None, message: str, folder: CheckpointFolder, path: Path) -> None:
    filled(folder, 10, 20)
    manifest = path / "000000000020" / "manifest.json"
    whole = manifest.read_text()
    manifest.unlink()
    if text is not None:
        changed = {"half": whole[: len(whole) // 2], "step": whole.replace('"last": 10', '"last": 11')}
        manifest.write_text(changed.get(text, text))
        assert manifest.read_text() != whole
    with pytest.warns(UserWarning, match=f"cannot be used; that at step 20: .*{message}"):
        assert find(path).step == 10
    write(folder, 30, find(path / "000000000010"))  # one that cannot be read does not take a good one's place
    assert sorted(each.name for each in path.glob("[0-9]*")) == ["000000000010", "000000000030"]
    assert content(find(path)) == (30, ["model 30", "state 30"], ["segment 10", "segment 30"])


@pytest.mark.parametrize(("other", "word"), [(FORMAT + 1, "newer"), (FORMAT - 1, "older")])
def test_another_format(other: int, word: str, folder: CheckpointFolder, path: Path) -> None:
    filled(folder, 10)
    manifest = path / "000000000010" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": other, "version": "9.8"}))
    with pytest.raises(
        CheckpointError,
        match=f"format {other}, which is {word} than the format {FORMAT} that this version reads: use sb3-softmod 9.8,",
    ):
        find(path)


def test_no_good_one(folder: CheckpointFolder, path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .*\."):
        find(tmp_path)
    filled(folder, 10, 20)
    damage(path / "000000000020" / "model", "a bit")
    damage(path / "segments" / "000000000010-0.npz", "missing")
    with pytest.raises(
        CheckpointError, match=r"None of the checkpoints in .* can be used; that at step 20: .* that at "
    ):
        find(tmp_path)


def test_folders_that_are_refused(folder: CheckpointFolder, path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Another process, or another CheckpointCallback, writes checkpoints to "):
        CheckpointFolder(path, 2)
    folder.close()
    CheckpointFolder(path, 2).close()
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"Checkpoints cannot be written to .*file/checkpoints: Not a directory\."
    ):
        CheckpointFolder(tmp_path / "file" / "checkpoints", 2)


# ---------------------------------------------------------------------------- of a training


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
