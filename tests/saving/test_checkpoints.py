"""The files of checkpoints: written whole or not at all, checked before they are read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from resumable_run import names

from sb3_softmod.common.errors import CheckpointError
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
